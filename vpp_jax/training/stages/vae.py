"""Stage `vae`: trains the temporal VAE from scratch, for sizes without a published one (`svd` loads Stability's)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from data_pipelines.loader import clip_source
from data_pipelines.sources import Source
from vpp_jax.config import ExperimentConfig
from vpp_jax.diffusion.per_example import example_keys, normal_per_example
from vpp_jax.functional import AbstractParams, Params, PureModule, select, with_prefix
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.models.video_vae import TemporalVAE
from vpp_jax.parallel.first_examples import map_first_examples
from vpp_jax.parallel.mesh import compiler_options
from vpp_jax.training.distributed import on_host
from vpp_jax.training.previews import PREVIEW_EXAMPLES, write_strips
from vpp_jax.video_predictor import VideoPredictor, to_float_image, to_uint8_image

INITIAL_LOGVAR = -6.0  # of an untrained encoder's posterior; at 0 the noise is as large as the latents, and hundreds of steps are lost


@dataclass(frozen=True)
class VAEStage:
    config: ExperimentConfig

    @cached_property
    def predictor(self) -> VideoPredictor:
        return VideoPredictor(self.config.model, self.config.video_diffusion)

    @property
    def vae(self) -> PureModule[TemporalVAE]:
        return self.predictor.vae

    def abstract_trainable(self) -> AbstractParams:
        return with_prefix("vae", self.vae.abstract)

    def abstract_frozen(self) -> AbstractParams:
        return {}

    def init_trainable(self, key: jax.Array) -> Params:
        params, bias = with_prefix("vae", self.vae.init(key)), "vae/quant_conv.bias"
        return params | {bias: params[bias].at[self.config.model.vae.latent_channels :].set(INITIAL_LOGVAR)}

    def load_trainable(self, shardings: Mapping[str, jax.sharding.Sharding]) -> None:
        """None: always initialised randomly."""

    def load_frozen(self, shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
        return {}

    def source(self, split: str, frozen: Params, workdir: Path, dataset: str = "") -> Source:
        model = self.config.model
        return clip_source(self.config.data.only(dataset), model.image_size, CLIPTokenizer(model.text_length), model.text_length, split)

    def loss(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array, training: bool = True):
        """L1 reconstruction of clips plus `kl_weight` times the KL divergence per latent value."""
        clips = to_float_image(batch["video"])
        count, frames = clips.shape[:2]
        vae = self.vae.bind(select("vae", trainable))
        posterior = vae.encode(rearrange(clips, "b t h w c -> (b t) h w c"))
        mean, logvar = posterior.mean.astype(jnp.float32), posterior.logvar.astype(jnp.float32)
        noise = normal_per_example(example_keys(key, count), (frames, *mean.shape[1:])).reshape(mean.shape)
        latents = mean + jnp.exp(0.5 * logvar) * noise
        decoded = vae.decode(rearrange(latents, "(b t) h w c -> b t h w c", b=count))
        reconstruction = jnp.mean(jnp.abs(decoded.astype(jnp.float32) - clips))
        divergence = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1.0 - logvar)
        metrics = {"reconstruction_l1": reconstruction, "kl": divergence, "latent_std": jnp.std(mean)}
        return reconstruction + self.config.vae_training.kl_weight * divergence, metrics

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.float32(len(batch["video"]))

    def plot_batch(self, batch: dict[str, np.ndarray], path: Path) -> None:
        write_strips(path, [[("", video)] for video in batch["video"][:PREVIEW_EXAMPLES]])

    def plot_predictions(
        self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array, path: Path | None
    ) -> dict[str, float]:
        """Strips of true and reconstructed frames, one pair per clip."""
        shown = on_host(self._preview(trainable, frozen, batch, key))
        if path is not None:
            pairs = zip(shown["true"], shown["reconstructed"], strict=True)
            write_strips(path, [[("true", true), ("reconstructed", ours)] for true, ours in pairs])
        return {}

    @cached_property
    def _preview(self):
        return jax.jit(self.preview, compiler_options=compiler_options())

    def preview(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """True and reconstructed clips, uint8."""

        def reconstruct(clips: jax.Array) -> dict[str, jax.Array]:
            return {"true": clips, "reconstructed": self._reconstruct(trainable, clips)}

        return map_first_examples(reconstruct, batch["video"], PREVIEW_EXAMPLES)

    def _reconstruct(self, trainable: Params, clips: jax.Array) -> jax.Array:
        vae = self.vae.bind(select("vae", trainable))
        posterior = vae.encode(rearrange(to_float_image(clips), "b t h w c -> (b t) h w c"))
        return to_uint8_image(vae.decode(rearrange(posterior.mean, "(b t) h w c -> b t h w c", b=clips.shape[0])))

    def final_metadata(self, trainable: Params, frozen: Params, batches: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
        """The factor that gives the latents unit standard deviation, as 0.18215 does for Stability's VAE."""
        encode = jax.jit(
            lambda params, clips: self.predictor.encode_images(params, rearrange(clips, "b t h w c -> (b t) h w c")),
            compiler_options=compiler_options(),
        )
        values = np.concatenate([on_host(encode(trainable, batch["video"])).ravel() for batch in batches])
        return {"latent_scaling_factor": float(1.0 / values.std())}
