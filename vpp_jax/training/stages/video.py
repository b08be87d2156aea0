"""Stage `video`: text-guided EDM training of the spatio-temporal U-Net on clips (paper section 3.1)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loader import clip_source
from data_pipelines.sources import Source
from vpp_jax.config import ExperimentConfig
from vpp_jax.diffusion.per_example import example_keys
from vpp_jax.functional import AbstractParams, Params, with_prefix
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.models.video_vae import Posterior
from vpp_jax.parallel.first_examples import map_first_examples
from vpp_jax.parallel.mesh import compiler_options
from vpp_jax.training.checkpoints import load_params, read_metadata
from vpp_jax.training.compatibility import check_model_agrees
from vpp_jax.training.distributed import on_host
from vpp_jax.training.latents import check_latents, vae_identity
from vpp_jax.training.lora import abstract_adapters, init_adapters, merge
from vpp_jax.training.motion import motion_metrics
from vpp_jax.training.previews import PREVIEW_EXAMPLES, false_colours, write_strips
from vpp_jax.training.stages.specs import as_frozen
from vpp_jax.video_predictor import SCALING_FACTOR, VideoPredictor, to_uint8_image


@dataclass(frozen=True)
class VideoStage:
    config: ExperimentConfig

    @cached_property
    def predictor(self) -> VideoPredictor:
        return VideoPredictor(self.config.model, self.config.video_diffusion)

    def abstract_trainable(self) -> AbstractParams:
        return abstract_adapters(self.config.lora, self._unet) if self.config.lora.rank else self._all_trainable

    def abstract_frozen(self) -> AbstractParams:
        scaling = {SCALING_FACTOR: jax.ShapeDtypeStruct((), jnp.float32)}
        frozen_text = {} if self.config.model.text_trainable else self._text
        base = self._all_trainable if self.config.lora.rank else {}
        return as_frozen(with_prefix("vae", self.predictor.vae.abstract) | scaling | frozen_text | base, self.config.model)

    @property
    def _all_trainable(self) -> AbstractParams:
        """The trainable parameters without adapters."""
        return self._unet | (self._text if self.config.model.text_trainable else {})

    @property
    def _unet(self) -> AbstractParams:
        return with_prefix("unet", self.predictor.unet.abstract)

    @property
    def _text(self) -> AbstractParams:
        return with_prefix("text", self.predictor.text.abstract)

    def init_trainable(self, key: jax.Array) -> Params:
        if self.config.lora.rank:
            return init_adapters(self.abstract_trainable(), key)
        unet_key, text_key = jax.random.split(key)
        params = with_prefix("unet", self.predictor.unet.init(unet_key))
        if self.config.model.text_trainable:
            params |= with_prefix("text", self.predictor.text.init(text_key))
        return params

    def load_trainable(self, shardings: Mapping[str, jax.sharding.Sharding]) -> Params | None:
        """Fine-tuning: the video model of `init.video`, e.g. imported Stable Video Diffusion; its EMA if it has one."""
        return self._from_video(self._all_trainable, shardings) if self.config.init.video and not self.config.lora.rank else None

    def load_frozen(self, shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
        """The VAE and its scaling factor from the checkpoint `init.vae`. What else is frozen (the text encoder, with adapters the U-Net)
        from `init.video`; for a fresh U-Net the text encoder stored beside the VAE."""
        directory, abstract = self.config.init.vae, self.abstract_frozen()
        of_video = {name: spec for name, spec in abstract.items() if self.config.init.video and name.startswith(("text/", "unet/"))}
        of_vae = {name: spec for name, spec in abstract.items() if name != SCALING_FACTOR and name not in of_video}
        params = load_params(directory, of_vae, {name: shardings[name] for name in of_vae}, stage="vae")
        check_model_agrees(self.config, directory, ("vae",))
        if of_video:
            params |= self._from_video(of_video, shardings)
        factor = jnp.float32(read_metadata(directory)["latent_scaling_factor"])
        return params | {SCALING_FACTOR: jax.device_put(factor, shardings[SCALING_FACTOR])}

    def _from_video(self, abstract: AbstractParams, shardings: Mapping[str, jax.sharding.Sharding]) -> Params:
        directory = self.config.init.video
        params = load_params(directory, abstract, {name: shardings[name] for name in abstract}, stage="video")
        check_model_agrees(self.config, directory, ("unet", "text"))
        return params

    def source(self, split: str, frozen: Params, workdir: Path, dataset: str = "") -> Source:
        """Clips as images, or as latents of the VAE in `frozen`."""
        model, data = self.config.model, self.config.data.only(dataset)
        tokenizer = CLIPTokenizer(model.text_length)
        source = clip_source(data, model.image_size, tokenizer, model.text_length, split, accept_latents=True, seed=self.config.seed)
        if any(entry.latents for entry in data.datasets):
            identity = vae_identity(model.vae, frozen)
            for member in source.sources:
                check_latents(member, identity, self.config.init.vae)
        return source

    def loss(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array, training: bool = True):
        video = Posterior(batch["latent_mean"], batch["latent_logvar"]) if "latent_mean" in batch else batch["video"]
        return self.predictor.loss(self._merged(trainable, frozen), video, batch["text_ids"], batch["text_mask"], key, training)

    def _merged(self, trainable: Params, frozen: Params) -> Params:
        return merge(trainable | frozen, self.config.lora.scale) if self.config.lora.rank else trainable | frozen

    def loss_weight(self, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.float32(len(batch["text_ids"]))

    def plot_batch(self, batch: dict[str, np.ndarray], path: Path) -> None:
        """Latents are shown in false colours, since there are no parameters here to decode them with."""
        clips = {name: value[:PREVIEW_EXAMPLES] for name, value in batch.items()}
        videos = false_colours(clips["latent_mean"]) if "latent_mean" in clips else clips["video"]
        write_strips(path, [[(text, video)] for text, video in zip(self._instructions(clips), videos, strict=True)])

    def _instructions(self, clips: dict[str, np.ndarray]) -> list[str]:
        return CLIPTokenizer(self.config.model.text_length).decode(clips["text_ids"], clips["text_mask"])

    def plot_predictions(
        self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array, path: Path | None
    ) -> dict[str, float]:
        """Strips of the true clip and of the one sampled from its first frame and instruction; `motion_metrics` of these clips."""
        shown = on_host(self._preview(trainable, frozen, batch, key))
        if path is not None:
            trios = zip(self._instructions(shown), shown["true"], shown["predicted"], strict=True)
            write_strips(path, [[(f"true: {text}", true), ("predicted", ours)] for text, true, ours in trios])
        return motion_metrics(shown["true"], shown["predicted"])

    @cached_property
    def _previewer(self) -> VideoPredictor:
        """The predictor, with the guidance of previews."""
        diffusion = self.config.video_diffusion
        if not diffusion.preview_guidance_max:
            return self.predictor
        return VideoPredictor(self.config.model, replace(diffusion, guidance_max=diffusion.preview_guidance_max))

    @cached_property
    def _preview(self):
        return jax.jit(self.preview, compiler_options=compiler_options())

    def preview(self, trainable: Params, frozen: Params, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """True clips, and clips sampled from their first frames, uint8 [b t h w 3], with their tokens; latents are decoded."""
        params, keys = self._merged(trainable, frozen), example_keys(key, len(batch["text_ids"]))

        def true_and_predicted(clips: dict[str, jax.Array]) -> dict[str, jax.Array]:
            tokens = {name: clips[name] for name in ("text_ids", "text_mask")}
            if "latent_mean" not in clips:
                predicted = self._previewer.generate(params, clips["video"][:, 0], **tokens, key=clips["keys"])
                return tokens | {"true": clips["video"], "predicted": predicted}
            mean = clips["latent_mean"].astype(jnp.float32)
            true = to_uint8_image(self.predictor.decode_latents(params, mean * params[SCALING_FACTOR]))
            return tokens | {"true": true, "predicted": self._previewer.generate_from(params, mean[:, 0], **tokens, key=clips["keys"])}

        return map_first_examples(true_and_predicted, batch | {"keys": keys}, PREVIEW_EXAMPLES)

    def final_metadata(self, trainable: Params, frozen: Params, batches: Iterable[dict[str, jax.Array]]) -> dict[str, float]:
        return {"latent_scaling_factor": float(frozen[SCALING_FACTOR])}
