"""Stage 1 as one object: text encoder + VAE + video U-Net -> training loss, sampled video, predictive features.

All methods are pure functions of a flat parameter dict with the prefixes `text/`, `vae/`, `unet/` and the scalar
`latents/scaling_factor`. Images are uint8 or float32 in [-1, 1], NHWC; videos [b t h w c]; "latents" are VAE means times the
scaling factor, "conditions" are VAE means as they are (VPP divides the first latent by the factor before the U-Net sees it).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, UInt8

from vpp_jax.config import ModelConfig, VideoDiffusionConfig
from vpp_jax.diffusion.densities import sample_sigma
from vpp_jax.diffusion.edm import add_noise, video_preconditioning, video_target
from vpp_jax.diffusion.guidance import frame_guidance, guide
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas, initial_scale
from vpp_jax.diffusion.per_example import example_keys, normal_per_example, split_example_keys
from vpp_jax.diffusion.samplers import sample
from vpp_jax.functional import Params, PureModule, select
from vpp_jax.models.text_encoder import CLIPTextEncoder
from vpp_jax.models.video_unet import SpatioTemporalUNet
from vpp_jax.models.video_vae import Posterior, TemporalVAE
from vpp_jax.ops import at_least_float32

SCALING_FACTOR = "latents/scaling_factor"
FEATURE_SIGMA_MIN = 0.002  # end of the noise schedule of features, as in SVD's scheduler


def to_float_image(images: UInt8[Array, "..."] | Float[Array, "..."]) -> Float[Array, "..."]:
    """uint8 0..255 -> float32 [-1, 1]; floats pass through."""
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


def to_uint8_image(images: Float[Array, "..."]) -> UInt8[Array, "..."]:
    """float [-1, 1] -> uint8, clipped and rounded."""
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def sample_per_example(posterior: Posterior, keys: jax.Array) -> Float[Array, "n ..."]:
    """One sample per example [n ...], each with its own PRNG key [n]."""
    return jax.vmap(Posterior.sample)(posterior, keys)


@dataclass(frozen=True)
class VideoPredictor:
    """VPP's text-guided video prediction model (paper section 3.1).

    `last_tap` builds the U-Net only up to that up block: such a predictor gives features, not videos.
    """

    config: ModelConfig
    diffusion: VideoDiffusionConfig
    last_tap: int | None = None

    @cached_property
    def text(self) -> PureModule[CLIPTextEncoder]:
        return PureModule.of(lambda rngs: CLIPTextEncoder(self.config.text, rngs=rngs))

    @cached_property
    def vae(self) -> PureModule[TemporalVAE]:
        return PureModule.of(lambda rngs: TemporalVAE(self.config.vae, rngs=rngs))

    @cached_property
    def unet(self) -> PureModule[SpatioTemporalUNet]:
        config = self.config.unet_up_to(self.last_tap)
        return PureModule.of(lambda rngs: SpatioTemporalUNet(config, rngs=rngs))

    # --- text -----------------------------------------------------------------------------------------------------------------

    def encode_text(self, params: Params, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Cross-attention input of the U-Net: the CLIP states concatenated with themselves (d = 2 x text width).

        Inside CLIP the mask excludes padding from attention; the U-Net attends to all positions, as published.
        """
        states = at_least_float32(self.text.bind(select("text", params))(ids, mask).hidden)
        if self.config.position_encode:
            width = states.shape[-1]
            frequency = 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
            angle = jnp.arange(states.shape[1])[:, None] * frequency[None]
            states = states + jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        return jnp.concatenate([states, states], axis=-1)

    # --- latents --------------------------------------------------------------------------------------------------------------

    def encode_images(
        self, params: Params, images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"], keys: jax.Array | None = None
    ) -> Float[Array, "n h8 w8 c"]:
        """Unscaled VAE latents: the posterior's mean, or with `keys`, one PRNG key per image, samples of it."""
        posterior = self.posterior(params, images)
        return at_least_float32(posterior.mean if keys is None else sample_per_example(posterior, keys))

    def posterior(self, params: Params, images: UInt8[Array, "n h w 3"] | Float[Array, "n h w 3"]) -> Posterior:
        """The VAE's posterior of each image [n h8 w8 c], unscaled."""
        return self.vae.bind(select("vae", params)).encode(to_float_image(images))

    def decode_latents(self, params: Params, latents: Float[Array, "b t h8 w8 c"]) -> Float[Array, "b t h w 3"]:
        """Scaled latents -> frames in [-1, 1] (not clipped), all frames of a clip at once."""
        vae = self.vae.bind(select("vae", params))
        return at_least_float32(vae.decode(latents / params[SCALING_FACTOR]))

    # --- the denoiser ---------------------------------------------------------------------------------------------------------

    def _unet(
        self, params: Params, scaled_noisy, condition, c_noise, text_states, fps_id: float | jax.Array, noise_aug_id: float = 0.0, taps=()
    ):
        frames = scaled_noisy.shape[1]
        sample_in = jnp.concatenate([scaled_noisy, repeat(condition, "b h w c -> b t h w c", t=frames)], axis=-1)
        time_ids = jnp.tile(jnp.array([[fps_id, self.config.motion_bucket, noise_aug_id]]), (sample_in.shape[0], 1))
        return self.unet.bind(select("unet", params))(sample_in, c_noise, text_states, time_ids, taps=taps)

    def denoise(
        self,
        params: Params,
        noisy: Float[Array, "b t h w c"],
        sigma: Float[Array, " b"],
        condition: Float[Array, "b h w c"],
        text_states: Float[Array, "b l d"],
        *,
        fps_id: float | jax.Array,
        noise_aug_id: float = 0.0,
    ) -> Float[Array, "b t h w c"]:
        """EDM-preconditioned estimate of the clean latents (Karras et al. 2022, eq. 7, with sigma_data = 1)."""
        scale = video_preconditioning(sigma)
        output = self._unet(params, scale.network_input(noisy), condition, scale.c_noise, text_states, fps_id, noise_aug_id).sample
        assert output is not None  # the U-Net does not stop at a tap
        return scale.denoised(noisy, at_least_float32(output))

    def loss(
        self,
        params: Params,
        video: UInt8[Array, "b t h w 3"] | Posterior,
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: jax.Array,
        training: bool = True,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Weighted denoising error of stage 1: mean of (x_hat - x)^2 (sigma^2 + 1) / sigma^2 over everything, frame 0 included.

        `video`: clips, or the precomputed posterior of their frames [b t h8 w8 c]: the loss is the same.
        `key`: one PRNG key, or one per example [b]; random numbers are drawn per example (`example_keys`). `training`: off, every example
        keeps its text.
        """
        encoded = isinstance(video, Posterior)
        batch, frames = (video.mean if encoded else video).shape[:2]
        posterior_keys, sigma_keys, noise_keys, dropout_keys = split_example_keys(example_keys(key, batch), 4)
        frame_keys = rearrange(split_example_keys(posterior_keys, frames), "t b -> (b t)")
        flat = jax.tree.map(lambda values: rearrange(values, "b t h w c -> (b t) h w c"), video)
        posterior = jax.tree.map(at_least_float32, flat if encoded else self.posterior(params, flat))
        flat = sample_per_example(posterior, frame_keys) if self.diffusion.sample_posterior else posterior.mean
        unscaled = jax.lax.stop_gradient(rearrange(flat, "(b t) h w c -> b t h w c", b=batch))
        latents, condition = unscaled * params[SCALING_FACTOR], unscaled[:, 0]
        if self.diffusion.condition_noise and training and not isinstance(video, Posterior):
            condition = self._noisy_condition(params, video[:, 0], posterior_keys)

        text_states = self.encode_text(params, text_ids, text_mask)
        dropped = self.diffusion.conditioning_dropout if training else 0.0
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - dropped, (1, 1)))(dropout_keys)
        text_states = jnp.where(keep, text_states, 0.0)

        sigma = jax.vmap(lambda key: sample_sigma(key, (), self.diffusion.density))(sigma_keys)
        noise = normal_per_example(noise_keys, latents.shape[1:])
        loss = self.denoising_loss(params, latents, condition, text_states, sigma, noise)
        return loss, {"latent_std": jnp.std(latents), "text_kept": jnp.mean(keep.astype(jnp.float32))}

    def _noisy_condition(self, params: Params, image: jax.Array, keys: jax.Array) -> Float[Array, "b h8 w8 c"]:
        """The VAE's mean of `image` with noise of a log-normal strength."""
        mean, std = self.diffusion.condition_noise
        strength_keys, noise_keys = split_example_keys(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), 2)
        strength = jnp.exp(mean + std * normal_per_example(strength_keys, (1, 1, 1)))
        noise = normal_per_example(noise_keys, image.shape[1:])
        return jax.lax.stop_gradient(self.encode_images(params, to_float_image(image) + strength * noise))

    def denoising_loss(
        self,
        params: Params,
        latents: Float[Array, "b t h w c"],
        condition: Float[Array, "b h w c"],
        text_states: Float[Array, "b l d"],
        sigma: Float[Array, " b"],
        noise: Float[Array, "b t h w c"],
    ) -> Float[Array, ""]:
        """`loss` after everything random is drawn: mean of (x_hat - x)^2 (sigma^2 + 1) / sigma^2."""
        scale = video_preconditioning(sigma)
        network_input = scale.network_input(add_noise(latents, noise, sigma))
        output = self._unet(params, network_input, condition, scale.c_noise, text_states, self.config.fps_id_train).sample
        assert output is not None
        # the weight (sigma^2 + 1) / sigma^2 = 1 / c_out^2 turns the error of x_hat into the error of the network's output
        return jnp.mean((at_least_float32(output) - video_target(latents, noise, sigma)) ** 2)

    # --- inference ------------------------------------------------------------------------------------------------------------

    def generate(
        self,
        params: Params,
        image: UInt8[Array, "b h w 3"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: jax.Array,
    ) -> UInt8[Array, "b t h w 3"]:
        """Samples a clip that starts at `image` and follows the instruction, with per-frame classifier-free guidance.

        `key` is one PRNG key, or one per clip [b]; the latter makes a clip independent of the batch.
        """
        return self.generate_from(params, self.encode_images(params, image), text_ids, text_mask, key)

    def generate_from(
        self,
        params: Params,
        condition: Float[Array, "b h8 w8 c"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: jax.Array,
    ) -> UInt8[Array, "b t h w 3"]:
        """`generate` from the unscaled latents of the image."""
        return to_uint8_image(self.sample_frames(params, condition, text_ids, text_mask, key))

    def sample_frames(
        self,
        params: Params,
        condition: Float[Array, "b h8 w8 c"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: jax.Array,
    ) -> Float[Array, "b t h w 3"]:
        """The same before it is clipped and rounded, in [-1, 1]."""
        shape = (self.config.frames, *condition.shape[1:])
        noise = normal_per_example(key, shape) if key.ndim else jax.random.normal(key, (condition.shape[0], *shape))
        text_states = self.encode_text(params, text_ids, text_mask)
        sampler_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(key) if key.ndim else jax.random.fold_in(key, 1)
        latents = self.sample_latents(params, condition, text_states, noise, sampler_keys)
        return self.decode_latents(params, latents)

    def sample_latents(
        self,
        params: Params,
        condition: Float[Array, "b h w c"],
        text_states: Float[Array, "b l d"],
        noise: Float[Array, "b t h w c"],
        key: jax.Array | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Scaled latents of a clip from unit-normal noise; stochastic samplers also need `key`.

        The unconditional branch of the guidance has the image, and zeros as text states.
        """
        scales = frame_guidance(self.config.frames, self.diffusion.guidance_min, self.diffusion.guidance_max)
        ids = {"fps_id": self.config.fps_id_generate, "noise_aug_id": self.config.noise_aug_id_generate}

        def estimate(noisy: jax.Array, sigma: jax.Array) -> jax.Array:
            if self.diffusion.guidance_min == self.diffusion.guidance_max == 1.0:
                return self.denoise(params, noisy, sigma, condition, text_states, **ids)
            noisy, sigma, image = (jnp.concatenate([value, value]) for value in (noisy, sigma, condition))
            states = jnp.concatenate([jnp.zeros_like(text_states), text_states])
            unconditional, conditional = jnp.split(self.denoise(params, noisy, sigma, image, states, **ids), 2)
            return guide(unconditional, conditional, scales)

        noise_schedule = self.diffusion.noise_schedule
        start = noise * initial_scale(noise_schedule)
        return sample(estimate, start, get_sigmas(noise_schedule), self.diffusion.sampler, key, self.diffusion.eta)

    def predictive_features(
        self,
        params: Params,
        image: UInt8[Array, "b h w 3"],
        text_states: Float[Array, "b l d"],
        key: jax.Array | Float[Array, "b t h w c"],
    ) -> Float[Array, "b t n c"]:
        """VPP's predictive visual representation: one U-Net pass from pure noise, tapped at the up blocks (paper section 3.2).

        With `feature_steps` > 1 that many denoising steps without guidance; the last one is tapped.

        `key` is a PRNG key, or the unit-normal noise itself. Every tapped block is upsampled (nearest) to the largest one and
        concatenated on channels in block order; n = spatial positions of the largest tap, d = sum of the taps' channels.
        """
        condition = self.encode_images(params, image)
        shape = (image.shape[0], self.config.frames, *condition.shape[1:])
        is_key = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        noise = jax.random.normal(key, shape) if is_key else key
        noise_schedule = NoiseScheduleConfig(
            "svd_euler", self.config.feature_schedule_steps, FEATURE_SIGMA_MIN, self.config.feature_sigma, rho=7.0
        )
        sigmas = get_sigmas(noise_schedule)[: self.config.feature_steps]
        if len(sigmas) > 1:
            fps_id = self.config.fps_id_features

            def denoise(noisy: jax.Array, sigma: jax.Array) -> jax.Array:
                return self.denoise(params, noisy, sigma, condition, text_states, fps_id=fps_id)

            noise = sample(denoise, noise * initial_scale(noise_schedule), sigmas, kind="euler") / math.hypot(sigmas[-1], 1.0)
        c_noise = jnp.full((image.shape[0],), 0.25 * math.log(sigmas[-1]))
        output = self._unet(params, noise, condition, c_noise, text_states, self.config.fps_id_features, taps=self.config.tap_blocks)
        taps = [output.taps[block] for block in self.config.tap_blocks]
        size = max(tap.shape[2] for tap in taps)
        upsampled = [tap.repeat(size // tap.shape[2], axis=2).repeat(size // tap.shape[3], axis=3) for tap in taps]
        return at_least_float32(rearrange(jnp.concatenate(upsampled, axis=-1), "b t h w c -> b t (h w) c"))

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(frames, positions, channels) of `predictive_features` for one view."""
        size, frames = self.config.image_size, self.config.frames
        image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8)
        text = jax.ShapeDtypeStruct((1, self.config.text_length, 2 * self.config.text.width), jnp.float32)
        noise_size = size // self.config.vae.downscale
        noise = jax.ShapeDtypeStruct((1, frames, noise_size, noise_size, self.config.vae.latent_channels), jnp.float32)
        params = {f"vae/{k}": v for k, v in self.vae.abstract.items()} | {f"unet/{k}": v for k, v in self.unet.abstract.items()}
        return jax.eval_shape(self.predictive_features, params, image, text, noise).shape[1:]
