"""Shapes and types derived from the configuration: of one training example, and of frozen parameters."""

import jax
import numpy as np

from vpp_jax.config import ExperimentConfig, ModelConfig
from vpp_jax.functional import AbstractParams


def example_spec(config: ExperimentConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """name -> shape (without the batch axis) and type of the examples of the stage's source."""
    model, shape = config.model, jax.ShapeDtypeStruct
    image = (model.image_size, model.image_size, 3)
    if config.stage != "policy":
        if any(entry.latents for entry in config.data.datasets):
            size = model.image_size // model.vae.downscale
            latents = shape((config.data.clip_frames, size, size, model.vae.latent_channels), np.float16)
            return {"latent_mean": latents, "latent_logvar": latents, **_text(model.text_length)}
        return {"video": shape((config.data.clip_frames, *image), np.uint8), **_text(model.text_length)}
    actions = (model.action.action_horizon, model.action.action_dim)
    return {
        **_observation(config, image),
        "proprio": shape((model.action.proprio_dim,), np.float32),
        "action": shape(actions, np.float32),
        "action_mask": shape(actions[:1], bool),
        **_text(model.goal_length),
        "robot": shape((), np.int32),
        "control_hz": shape((), np.float32),
        **({"view_mask": shape((len(model.views),), bool), "action_dims": shape(actions[1:], bool)} if config.several_robots else {}),
    }


def _observation(config: ExperimentConfig, image: tuple[int, int, int]) -> dict[str, jax.ShapeDtypeStruct]:
    """The images of all views, or with `feature_draws` the cached features of them."""
    model, shape = config.model, jax.ShapeDtypeStruct
    if not config.policy_diffusion.feature_draws:
        return {f"images/{view}": shape(image, np.uint8) for view in model.views}
    return {"features": shape(feature_shape(model), np.float16), "observation": shape((), np.int32)}


def feature_shape(model: ModelConfig) -> tuple[int, int, int]:
    """(frames, positions of all views, channels) of an observation's predictive features."""
    latent = model.image_size // model.vae.downscale
    height, width, _ = model.unet.tap_shape(model.tap_blocks[-1], latent, latent)
    return model.frames, len(model.views) * height * width, model.former.condition_dim


def _text(length: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {"text_ids": jax.ShapeDtypeStruct((length,), np.int32), "text_mask": jax.ShapeDtypeStruct((length,), bool)}


def as_frozen(abstract: AbstractParams, model: ModelConfig) -> AbstractParams:
    """Frozen parameters as they are stored: kernels and embedding tables in the type their network computes with.

    They are cast to it wherever they are read, so results do not change; in bfloat16 they take half the memory. Vectors (scales, biases,
    gates) remain float32, since normalisation computes in float32.
    """
    types = {"vae": model.vae.dtype, "unet": model.unet.dtype, "text": model.text.dtype, "goal_text_encoder": model.text.dtype}

    def stored(name: str, value: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, types[name.split("/")[0]] if len(value.shape) > 1 else value.dtype)

    return {name: stored(name, value) for name, value in abstract.items()}
