"""Stage 2 as one object: predictive features + Video Former + diffusion transformer -> loss and actions.

Pure functions of one flat parameter dict. Frozen prefixes: `text/`, `vae/`, `unet/` (up to the last tap), `latents/scaling_factor`;
trained ones: `video_former/`, `action_transformer/`, `robots/` (what is learnt of each of several robots), and `goal_text_encoder/`, the
text encoder whose pooled vector is the policy's goal token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int, UInt8

from vpp_jax.config import ModelConfig, PolicyDiffusionConfig, VideoDiffusionConfig
from vpp_jax.diffusion.densities import sample_sigma
from vpp_jax.diffusion.edm import add_noise, policy_preconditioning, policy_target
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas, initial_scale
from vpp_jax.diffusion.per_example import example_keys, normal_per_example, split_example_keys
from vpp_jax.diffusion.samplers import sample
from vpp_jax.functional import Params, PureModule, select
from vpp_jax.models.action_transformer import ActionTransformer
from vpp_jax.models.robot_conditioning import RobotConditioning, RobotTokens
from vpp_jax.models.text_encoder import CLIPTextEncoder
from vpp_jax.models.video_former import VideoFormer
from vpp_jax.ops import at_least_float32
from vpp_jax.video_predictor import VideoPredictor

Images = Mapping[str, UInt8[Array, "b s s 3"]]


class InstructionEmbedding(NamedTuple):
    """What the models condition on, float32. It changes once per task, not once per action chunk, so callers may cache it.

    states: cross-attention input of the video U-Net; goal: pooled, un-normalised CLIP vector for the policy.
    """

    states: Float[Array, "b l d"]
    goal: Float[Array, "b g"]


class Embodiment(NamedTuple):
    """Whose observations and actions those of a batch are, where a policy has several robots.

    robot: number of the robot. control_hz: its control rate. view_mask: whether it has each of the configured views. action_dims: which of
    the policy's action dimensions are its own; the others are padding.
    """

    robot: Int[Array, "b"]
    control_hz: Float[Array, "b"]
    view_mask: Bool[Array, "b v"]
    action_dims: Bool[Array, "b a"]


@dataclass(frozen=True)
class VideoPredictionPolicy:
    """VPP's policy (paper section 3.2-3.3): an implicit inverse dynamics model on top of predicted futures."""

    config: ModelConfig
    diffusion: PolicyDiffusionConfig
    video_diffusion: VideoDiffusionConfig

    @cached_property
    def predictor(self) -> VideoPredictor:
        """The frozen video model, built only up to the last tapped up block, unless features need denoising steps before the tapped one."""
        last_tap = max(self.config.tap_blocks) if self.config.feature_steps == 1 else None
        return VideoPredictor(self.config, self.video_diffusion, last_tap=last_tap)

    @cached_property
    def video_former(self) -> PureModule[VideoFormer]:
        return PureModule.of(lambda rngs: VideoFormer(self.config.former, rngs=rngs))

    @cached_property
    def action_transformer(self) -> PureModule[ActionTransformer]:
        return PureModule.of(lambda rngs: ActionTransformer(self.config.action, rngs=rngs))

    @cached_property
    def robots(self) -> PureModule[RobotConditioning]:
        return PureModule.of(lambda rngs: RobotConditioning(self.config.action, rngs=rngs))

    @cached_property
    def goal_text_encoder(self) -> PureModule[CLIPTextEncoder]:
        return PureModule.of(lambda rngs: CLIPTextEncoder(self.config.text, rngs=rngs))

    # --- observation -> context -----------------------------------------------------------------------------------------------

    def encode_instruction(self, params: Params, text_ids: Int[Array, "b l"], text_mask: Bool[Array, "b l"]) -> InstructionEmbedding:
        """Tokens of `goal_length` -> the embeddings for both models; the U-Net gets the first `text_length` tokens."""
        return InstructionEmbedding(self.video_states(params, text_ids, text_mask), self.goal_vector(params, text_ids, text_mask))

    def video_states(self, params: Params, text_ids: Int[Array, "b l"], text_mask: Bool[Array, "b l"]) -> Float[Array, "b m d"]:
        """Truncated like the tokenizer: an instruction that is too long still ends with the end token, which is also the padding."""
        length, end = self.config.text_length, self.config.text.end_of_text
        if text_ids.shape[1] > length:
            text_ids, text_mask = text_ids[:, :length].at[:, -1].set(end), text_mask[:, :length]
        return self.predictor.encode_text(params, text_ids, text_mask)

    def goal_vector(self, params: Params, text_ids: Int[Array, "b l"], text_mask: Bool[Array, "b l"]) -> Float[Array, "b g"]:
        return at_least_float32(self.goal_text_encoder.bind(select("goal_text_encoder", params))(text_ids, text_mask).pooled)

    def features(self, params: Params, images: Images, text_states: Float[Array, "b l d"], key: jax.Array) -> Float[Array, "b t n c"]:
        """Predictive features of all views, tokens of the views concatenated in the order of `config.views`.

        `key` is one PRNG key, or one key per observation [b]; the latter makes its features independent of the batch.
        The views of an observation are adjacent in the video model's batch, so that they remain on the observation's device.
        """
        views = len(self.config.views)
        stacked = rearrange([images[view] for view in self.config.views], "v b h w c -> (b v) h w c")
        if self.config.fixed_feature_noise:
            noise = self._noise_per_example(jax.random.split(jax.random.key(0), 1), stacked.shape[1])[:1]
            key = jnp.tile(noise, (len(stacked), 1, 1, 1, 1))
        elif key.ndim == 1:
            key = self._noise_per_example(key, stacked.shape[1])
        features = self.predictor.predictive_features(params, stacked, repeat(text_states, "b l d -> (b v) l d", v=views), key)
        return rearrange(features, "(b v) t n d -> b t (v n) d", v=views)

    def _noise_per_example(self, keys: jax.Array, image_size: int) -> Float[Array, "bv t h w c"]:
        size = image_size // self.config.vae.downscale
        shape = (len(self.config.views), self.config.frames, size, size, self.config.vae.latent_channels)
        noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
        return rearrange(noise, "b v t h w c -> (b v) t h w c")

    def context(
        self,
        params: Params,
        features: Float[Array, "b t n d"],
        goal: Float[Array, "b g"],
        proprio: Float[Array, "b p"] | None,
        key: jax.Array | None = None,
        embodiment: Embodiment | None = None,
    ) -> Float[Array, "b m w"]:
        """Encoder output of the policy: computed once per chunk, reused by every denoising step. `key` enables dropout."""
        proprio = proprio if self.config.action.proprio_dim else None
        video_former = self.video_former.bind(select("video_former", params))
        encoder = self.action_transformer.bind(select("action_transformer", params))
        if embodiment is None:
            return encoder.encode(video_former(features), goal, proprio, key=key)
        seen = repeat(embodiment.view_mask, "b v -> b (v n)", n=features.shape[2] // embodiment.view_mask.shape[1])
        own = self._own(params, embodiment)
        return encoder.encode(
            video_former(features, seen),
            goal,
            proprio,
            prompt=own.prompt,
            proprio_in=own.proprio_in,
            control_hz=embodiment.control_hz,
            key=key,
        )

    def _own(self, params: Params, embodiment: Embodiment) -> RobotTokens:
        return self.robots.bind(select("robots", params))(embodiment.robot)

    def _decoder_options(self, params: Params, embodiment: Embodiment | None) -> dict[str, Any]:
        """What the decoder gets of each example's robot."""
        if embodiment is None or not self.config.action.robot_projections:
            return {}
        own = self._own(params, embodiment)
        return {"action_in": own.action_in, "action_out": own.action_out}

    # --- training -------------------------------------------------------------------------------------------------------------

    def loss(
        self,
        params: Params,
        features: Float[Array, "b t n d"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        proprio: Float[Array, "b p"] | None,
        action: Float[Array, "b k a"],
        action_mask: Bool[Array, "b k"],
        key: jax.Array,
        training: bool = True,
        embodiment: Embodiment | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Unweighted EDM loss on the network output (vpp: score matching with sigma_data 0.5), over valid steps only, and of these over the
        dimensions that the robot has.

        `key`: one PRNG key, or one per example [b]. Noise is drawn per example (`example_keys`), dropout masks for the whole batch from
        the first key; `training` off, there is no dropout.
        """
        dropout_keys, sigma_keys, noise_keys = split_example_keys(example_keys(key, action.shape[0]), 3)
        context_key, dropout_key = jax.random.split(dropout_keys[0]) if training else (None, None)
        context = self.context(params, features, self.goal_vector(params, text_ids, text_mask), proprio, context_key, embodiment)
        sigma = jax.vmap(lambda key: sample_sigma(key, (), self.diffusion.density))(sigma_keys)
        scale = policy_preconditioning(sigma, self.diffusion.sigma_data)
        noise = normal_per_example(noise_keys, action.shape[1:])
        noisy = add_noise(action, noise, sigma)
        output = self.action_transformer.bind(select("action_transformer", params)).decode(
            _own_dims(scale.network_input(noisy), embodiment),
            sigma,
            context,
            key=dropout_key,
            **self._decoder_options(params, embodiment),
        )
        target = policy_target(action, noise, sigma, self.diffusion.sigma_data)
        weight = _own_dims(jnp.broadcast_to(action_mask[..., None], target.shape).astype(jnp.float32), embodiment)
        error = jnp.sum(weight * (output - target) ** 2)
        return error / jnp.maximum(jnp.sum(weight), 1.0), {"valid_steps": jnp.mean(action_mask.astype(jnp.float32))}

    # --- inference ------------------------------------------------------------------------------------------------------------

    def sample_actions(
        self,
        params: Params,
        context: Float[Array, "b m w"],
        keys: jax.Array,
        noise_schedule: NoiseScheduleConfig | None = None,
        embodiment: Embodiment | None = None,
    ) -> Float[Array, "b k a"]:
        """Normalised action chunks, one PRNG key each, by the configured sampler (published: DDIM on the exponential noise schedule).

        Dimensions that a robot does not have are 0. `noise_schedule`: None is the configured one.
        """
        config, noise_schedule = self.config.action, noise_schedule or self.diffusion.noise_schedule
        decoder = self.action_transformer.bind(select("action_transformer", params))
        noise = jax.vmap(lambda key: jax.random.normal(key, (config.action_horizon, config.action_dim)))(keys) * initial_scale(
            noise_schedule
        )
        options = self._decoder_options(params, embodiment)
        sampler_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)

        def denoise(noisy: jax.Array, sigma: jax.Array, modulations: jax.Array) -> jax.Array:
            scale = policy_preconditioning(sigma, self.diffusion.sigma_data)
            own = _own_dims(scale.network_input(noisy), embodiment)
            return scale.denoised(noisy, decoder.decode_modulated(own, modulations, context, **options))

        actions = sample(
            denoise,
            noise,
            get_sigmas(noise_schedule),
            self.diffusion.sampler,
            sampler_keys,
            self.diffusion.eta,
            prepare=decoder.modulations,
        )
        return _own_dims(actions, embodiment)

    def act(
        self,
        params: Params,
        images: Images,
        instruction: InstructionEmbedding,
        proprio: Float[Array, "b p"] | None,
        keys: jax.Array,
        embodiment: Embodiment | None = None,
    ) -> Float[Array, "b k a"]:
        """One normalised action chunk per observation; one key per observation [b] makes it independent of the rest of the batch."""
        feature_keys, action_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        features = self.features(params, images, instruction.states, feature_keys)
        context = self.context(params, features, instruction.goal, proprio, embodiment=embodiment)
        return self.sample_actions(params, context, action_keys, embodiment=embodiment)


def _own_dims(values: Float[Array, "b k a"], embodiment: Embodiment | None) -> Float[Array, "b k a"]:
    """Values with zeros in dimensions that the robot does not have."""
    return values if embodiment is None else jnp.where(embodiment.action_dims[:, None], values, 0)
