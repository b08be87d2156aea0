"""The published policy file by its list of tensors: sizes, mapping, and dropped tensors."""

import jax
import numpy as np
import pytest

from vpp_jax.config import ModelConfig, PolicyDiffusionConfig, VideoDiffusionConfig
from vpp_jax.functional import with_prefix
from vpp_jax.interop.matching import compare_names
from vpp_jax.interop.policy_config import policy_model
from vpp_jax.interop.report import ConversionError
from vpp_jax.interop.tensor_mapping import tensor_mappings
from vpp_jax.policy import VideoPredictionPolicy


class Listed:
    """A source of which only names and shapes exist."""

    where = "dp-calvin"

    def __init__(self, shapes):
        self.tensors = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}

    def read(self, name):
        raise AssertionError(f"{name} is read, only names and shapes are asked for")


@pytest.fixture(scope="module")
def shapes(published_shapes):
    """Name -> shape of everything that the published policy holds, from the lists of its four modules."""
    lists = {"video_former": "Video_Former.", "policy": "model.", "langclip": "", "clip_text": "TVP_encoder.text_encoder."}
    return {prefix + key: shape for module, prefix in lists.items() for key, shape in published_shapes(module).items()}


def test_sizes_are_those_of_the_default_configuration(shapes):
    model, notes = policy_model(Listed(shapes).tensors, None, ModelConfig(), "x")
    assert model == ModelConfig()
    assert notes == []


def test_sizes_of_another_robot(shapes):
    """The bimanual variant: features of one up block, 38 numbers per action, 8 of them, proprioception where it is asked for."""
    other = shapes | {
        "Video_Former.goal_emb.0.weight": (768, 1280),
        "model.inner_model.pos_emb": (1, 233, 384),
        "model.inner_model.proprio_emb.0.weight": (768, 38),
        "model.inner_model.action_emb.weight": (384, 38),
        "model.inner_model.action_pred.weight": (38, 384),
        "model.inner_model.action_pred.bias": (38,),
    }
    args = {"model": {"extract_layer_idx": 1, "use_all_layer": False, "use_position_encoding": True, "latent_dim": 512}}
    base = ModelConfig(action=ModelConfig().action.__class__(proprio_dim=1))
    model, notes = policy_model(Listed(other).tensors, args, base, "x")
    assert (model.action.action_dim, model.action.action_horizon, model.action.proprio_dim, model.n_action_steps) == (38, 8, 38, 8)
    assert (model.former.condition_dim, model.tap_blocks, model.position_encode) == (1280, (1,), True)
    assert notes == ["args have latent_dim = 512, the tensors 384", "position_encode is True as in args, not False"]


def test_something_else_is_no_policy():
    with pytest.raises(ConversionError, match=r"does not look like a policy .* KeyError 'Video_Former\.latents"):
        policy_model(Listed({"conv.weight": (3, 3)}).tensors, None, ModelConfig(), "x")


def test_every_tensor_has_a_place_or_a_reason(shapes):
    policy = VideoPredictionPolicy(ModelConfig(), PolicyDiffusionConfig(), VideoDiffusionConfig())
    wanted = {}
    for group, module, prefix, openai in (
        ("video_former", policy.video_former, "Video_Former.", False),
        ("action_transformer", policy.action_transformer, "model.inner_model.", False),
        ("text", policy.predictor.text, "TVP_encoder.text_encoder.", False),
        ("goal_text_encoder", policy.goal_text_encoder, "language_goal.clip_rn50.", True),
    ):
        wanted |= with_prefix(group, tensor_mappings(module.abstract, prefix, openai))
    report = compare_names("policy", Listed(shapes), wanted)
    report.check()
    assert len(report.loaded) + len(report.dropped) == len(shapes)
    assert len(report.dropped) == 9 + 152 + 1  # unused tensors of the policy, CLIP's image encoder, its temperature
    fewer = {name: shape for name, shape in shapes.items() if name != "model.inner_model.lang_emb.0.bias"}
    damaged = compare_names("policy", Listed(fewer | {"model.inner_model.tok_emb.bias": (3,)}), wanted)
    with pytest.raises(ConversionError, match=r"1 missing: .*lang_emb\.0\.bias; 0 unexpected; 1 of another shape"):
        damaged.check()
