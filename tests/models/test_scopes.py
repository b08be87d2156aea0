"""Operations carry the names of the blocks they belong to, so that profiles and compiler reports group by block."""

import re
from dataclasses import replace

import jax
import pytest

from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec
from vpp_jax.training.state import Trainer

pytestmark = pytest.mark.medium

UNET = ["unet/" + name for name in ("time_embedding", "conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")]
ENCODER = ["vae.encoder/" + name for name in ("down_blocks.0", "down_blocks.1", "down_blocks.2", "mid_block")]
SCOPES = {
    "vae": [*ENCODER, *("vae.decoder/" + name for name in ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"))],
    "video": [*UNET, "unet/up_blocks.1", "unet/conv_out", *ENCODER, "text"],
    "policy": [
        *UNET,
        *ENCODER,
        "text",
        "video_former/layers.0",
        "action_transformer.encoder/blocks.0",
        "action_transformer.decoder/blocks.0",
        "action_transformer.modulations",
    ],
}
TRAINED = {"vae": "up_blocks.0", "video": "down_blocks.0", "policy": "video_former"}


@pytest.mark.parametrize("name", SCOPES)
def test_the_training_step_names_its_blocks(micro_config, name):
    """Forwards, and with autodiff's marks around the name, backwards."""
    config = micro_config(name)
    config = replace(config, policy_diffusion=replace(config.policy_diffusion, feature_draws=0))
    trainer = Trainer(make_stage(config))
    batch = {field: jax.ShapeDtypeStruct((4, *spec.shape), spec.dtype) for field, spec in example_spec(config).items()}
    lowered = jax.jit(trainer.step).lower(trainer.abstract, trainer.stage.abstract_frozen(), batch)
    raw = re.findall(r'loc\("([^"]*)"', lowered.as_text(debug_info=True))
    paths = {re.sub(r"\w+\(|\)", "", path) for path in raw}
    missing = [scope for scope in [*SCOPES[name], "optimizer", "ema"] if not any(f"/{scope}/" in f"/{path}/" for path in paths)]
    assert not missing, sorted(paths)[:40]
    assert any("transpose(" in path and TRAINED[name] in path for path in raw)
