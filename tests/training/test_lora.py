"""Adapters: what is trained, what the forward pass sees, and what later stages load."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.config import ConfigError, LoRAConfig, check_inputs, from_config_dict, to_dict
from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import list_tensors, load_params
from vpp_jax.training.lora import abstract_adapters, adapters_of, init_adapters, merge
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.state import TrainState

BASE = {"unet/a.to_q.kernel": (6, 4), "unet/a.to_q.bias": (4,), "unet/b.to_k.kernel": (3, 5), "unet/conv.kernel": (3, 3, 6, 4)}
CONFIG = LoRAConfig(rank=2, alpha=6.0, target=(r"unet/.*\.to_[qk]\.kernel",))


@pytest.fixture
def base():
    return {name: jax.random.normal(jax.random.key(index), shape) for index, (name, shape) in enumerate(BASE.items())}


def test_names_shapes_and_the_first_forward_pass(base):
    abstract = abstract_adapters(CONFIG, base)
    assert {name: spec.shape for name, spec in abstract.items()} == {
        "lora/unet/a.to_q.down.kernel": (6, 2),
        "lora/unet/a.to_q.up.kernel": (2, 4),
        "lora/unet/b.to_k.down.kernel": (3, 2),
        "lora/unet/b.to_k.up.kernel": (2, 5),
    }
    assert adapters_of(abstract)["unet/b.to_k.kernel"] == ("lora/unet/b.to_k.down.kernel", "lora/unet/b.to_k.up.kernel")
    adapters = init_adapters(abstract, jax.random.key(0))
    merged = merge(base | adapters, CONFIG.scale)
    assert merged.keys() == base.keys()
    assert all(np.array_equal(merged[name], base[name]) for name in base)
    assert all(np.abs(adapters[name]).max() > 0 for name in adapters if ".down." in name)


def test_merging_is_w_plus_alpha_over_rank_times_a_b(base):
    rng = np.random.default_rng(0)
    adapters = {name: jnp.asarray(rng.normal(size=spec.shape), jnp.float32) for name, spec in abstract_adapters(CONFIG, base).items()}
    low = base | {"unet/a.to_q.kernel": base["unet/a.to_q.kernel"].astype(jnp.bfloat16)}
    merged = merge(low | adapters, CONFIG.scale)
    down, up = (np.asarray(adapters[f"lora/unet/a.to_q.{side}.kernel"], np.float64) for side in ("down", "up"))
    expected = np.asarray(low["unet/a.to_q.kernel"], np.float64) + 3.0 * down @ up
    assert merged["unet/a.to_q.kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(merged["unet/a.to_q.kernel"], np.float64), expected, rtol=2**-8, atol=1e-3)
    assert merged["unet/conv.kernel"] is low["unet/conv.kernel"]


def test_patterns_that_do_not_fit_are_named(base):
    with pytest.raises(ConfigError, match=r"lora\.target: 'unet/x' matches no parameter, e\.g\. unet/a\.to_q\.kernel"):
        abstract_adapters(LoRAConfig(rank=1, target=("unet/x",)), base)
    with pytest.raises(ConfigError, match=r"matches unet/conv\.kernel \(3, 3, 6, 4\), expected linear layers' kernels only"):
        abstract_adapters(LoRAConfig(rank=1, target=(r"unet/conv.*",)), base)


def test_who_loads_such_a_checkpoint_gets_merged_kernels(base, toy, tmp_path):
    rng = np.random.default_rng(1)
    adapters = {name: jnp.asarray(rng.normal(size=spec.shape), jnp.float32) for name, spec in abstract_adapters(CONFIG, base).items()}
    averages = {name: 0.5 * value for name, value in adapters.items()}
    config = dataclasses.replace(toy.toy_config(), stage="vae")
    tree = to_dict(config) | {"lora": to_dict(CONFIG)}
    checkpoints = Checkpoints(tmp_path / "checkpoints", max_to_keep=1)
    checkpoints.save_frozen(base)
    checkpoints.save(1, TrainState(jnp.int32(1), adapters, averages, {}), {"stage": "video", "config": tree}, None)
    checkpoints.close()
    wanted = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in base.items()}
    for item, trained in (("params", adapters), ("ema", averages)):
        loaded, expected = load_params(tmp_path, wanted, item=item, stage="video"), merge(base | trained, CONFIG.scale)
        for name in base:
            np.testing.assert_allclose(loaded[name], expected[name], rtol=1e-6, atol=1e-6)
    one = "unet/b.to_k.kernel"  # a part of the model
    np.testing.assert_allclose(load_params(tmp_path, {one: wanted[one]})[one], merge(base | averages, 3.0)[one], rtol=1e-5)
    assert set(list_tensors(tmp_path)) == {*base, *adapters}


def test_stage_video_trains_adapters_alone(micro_config):
    config = dataclasses.replace(micro_config("video"), lora=LoRAConfig(rank=3))
    stage = make_stage(config)
    trained, frozen = stage.abstract_trainable(), stage.abstract_frozen()
    assert all(name.startswith("lora/unet/") for name in trained)
    assert {name.split("/")[0] for name in frozen} == {"unet", "vae", "text", "latents"}
    plain = make_stage(micro_config("video"))
    assert set(adapters_of(trained)) < set(plain.abstract_trainable()) < set(frozen)


def test_adapters_need_a_model_and_stage_video(micro_config):
    tree = to_dict(micro_config("video")) | {"lora": {"rank": 2}, "init": {"vae": "somewhere"}}
    tree["data"]["datasets"][0]["path"] = "data"
    with pytest.raises(ConfigError, match=r"no model to adapt: set init\.video"):
        check_inputs(from_config_dict(tree))
    with pytest.raises(ConfigError, match=r"lora\.rank is 2 in stage policy"):
        from_config_dict(to_dict(micro_config("policy")) | {"lora": {"rank": 2}})
    with pytest.raises(ConfigError, match="target is empty"):
        LoRAConfig(rank=1, target=())
