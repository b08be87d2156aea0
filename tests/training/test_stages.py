"""Each stage can overfit one batch: model, loss and optimizer work together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.state import Trainer
from vpp_jax.video_predictor import SCALING_FACTOR

pytestmark = pytest.mark.medium


def batch_of(config, stage: str) -> dict[str, np.ndarray]:
    """One batch with smooth images: noise could not be compressed by any VAE."""
    rng, rows = np.random.default_rng(0), 2
    model, length = config.model, config.model.text_length
    grid = np.linspace(0, 2 * np.pi, model.image_size)
    phase = rng.uniform(0, 6, (rows, config.data.clip_frames, 1, 1, 3))
    waves = np.sin(grid[:, None, None] + phase) * np.cos(grid[None, :, None] - phase)
    text = {"text_ids": rng.integers(1, 1000, (rows, length)).astype(np.int32), "text_mask": np.ones((rows, length), bool)}
    text["text_ids"][:, -1] = 49407
    if stage != "policy":
        return text | {"video": (127.5 + 127 * waves).astype(np.uint8)}
    features = rng.normal(size=(rows, model.frames, 128, model.former.condition_dim)).astype(np.float16)
    action = np.repeat(rng.choice([-0.9, 0.9], (rows, 1, 7)), model.action.action_horizon, axis=1).astype(
        np.float32
    )  # steps have no positions
    mask = np.ones((rows, model.action.action_horizon), bool)
    return text | {"features": features, "proprio": rng.normal(size=(rows, 15)).astype(np.float32), "action": action, "action_mask": mask}


@pytest.mark.parametrize(("name", "steps", "share"), [("vae", 60, 0.5), ("video", 120, 0.8), ("policy", 300, 0.6)])
def test_one_batch_is_overfitted(micro_config, name, steps, share):
    config = micro_config(name)
    faster = dataclasses.replace(config.optimizer, learning_rate=5e-3)
    stage = make_stage(dataclasses.replace(config, optimizer=faster))
    trainer = Trainer(stage)
    state = jax.jit(trainer.init)(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), len(stage.abstract_frozen()) + 1)
    frozen = {
        name: 0.1 * jax.random.normal(key, spec.shape) for key, (name, spec) in zip(keys, stage.abstract_frozen().items(), strict=False)
    } | ({SCALING_FACTOR: jnp.float32(1.0)} if name != "vae" else {})
    if name == "video":  # a VAE whose posterior has no width: the same clip gives the same latents
        frozen |= {f"vae/{key}": value for key, value in jax.jit(stage.predictor.vae.init)(jax.random.key(2)).items()}
        frozen["vae/quant_conv.bias"] = jnp.array([0.0] * 4 + [-30.0] * 4)
    batch = batch_of(config, name)
    step, losses = jax.jit(trainer.step, donate_argnums=0), []
    for _ in range(steps):
        state, metrics, _ = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < share * np.mean(losses[:5])
