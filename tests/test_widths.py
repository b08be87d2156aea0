"""A width changes in one place: what depends on it follows, and the stage still fits together."""

from functools import reduce

import jax
import pytest

from vpp_jax.cli.config_flag import load_config
from vpp_jax.common.config_fields import groups
from vpp_jax.config import ExperimentConfig, from_config_dict, to_dict
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec

# The field that changes -> (value at size tiny, value at size svd, what follows from the latter).
CHANGES = {
    "model.text.width": (32, 256, {"model.unet.cross_attention_dim": 512}),
    "model.text.projection_dim": (24, 256, {"model.action.goal_dim": 256}),
    "model.vae.latent_channels": (4, 16, {"model.unet.in_channels": 32, "model.unet.out_channels": 16}),
    "model.unet.block_out_channels": ((24, 32), (160, 320, 640, 640), {"model.former.condition_dim": 1280}),
    "model.tap_blocks": ((0, 1), (1, 2), {"model.former.condition_dim": 1920}),
    "model.former.dim": (32, 256, {"model.action.token_dim": 256}),
    "model.action.action_horizon": (12, 20, {"data.action_horizon": 20}),
    "model.frames": (6, 8, {"model.former.frames": 8, "data.clip_frames": 8}),
}
VIDEO = ("model.text.width", "model.vae.latent_channels", "model.unet.block_out_channels", "model.frames")


def changed(name: str, values: dict) -> ExperimentConfig:
    tree = to_dict(load_config(f"configs/{name}.py"))
    for field, value in values.items():
        *above, last = field.split(".")
        reduce(dict.__getitem__, above, tree)[last] = value
    return from_config_dict(tree)


def derived(config: ExperimentConfig) -> dict[str, int]:
    return {entry.name: entry.value for group in groups(config) for entry in group.derived}


def trace_loss(config: ExperimentConfig) -> None:
    """Shapes of parameters and example batch pass through the stage's loss; an error where two parts do not fit."""
    stage = make_stage(config)
    batch = {name: jax.ShapeDtypeStruct((2, *value.shape), value.dtype) for name, value in example_spec(config).items()}
    loss, _ = jax.eval_shape(stage.loss, stage.abstract_trainable(), stage.abstract_frozen(), batch, jax.random.key(0))
    assert loss.shape == ()


@pytest.mark.parametrize("field", CHANGES)
def test_what_follows_at_the_published_size(field):
    """Exactly the fields that are named change, in every stage that builds them."""
    value, expected = CHANGES[field][1:]
    before, after = (derived(changed("svd_calvin_policy", values)) for values in ({}, {field: value}))
    assert {name: after[name] for name in after if after[name] != before[name]} == expected


@pytest.mark.medium
@pytest.mark.parametrize(("stage", "field"), [*(("policy", field) for field in CHANGES), *(("video", field) for field in VIDEO)])
def test_a_tiny_stage_with_one_width_changed(stage, field):
    trace_loss(changed(f"tiny_calvin_{stage}", {field: CHANGES[field][0]}))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["video", "policy"])
def test_a_published_stage_with_every_width_changed(stage):
    trace_loss(changed(f"svd_calvin_{stage}", {field: value for field, (_, value, _) in CHANGES.items()}))


def test_the_vae_has_clips_of_its_own_length():
    config = changed("tiny_calvin_vae", {"vae_training.clip_frames": 5})
    assert (config.data.clip_frames, config.model.frames) == (5, 8)
    trace_loss(config)
