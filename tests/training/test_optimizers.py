"""Learning rates, clipping, freezing and EMA against closed forms and against optax itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vpp_jax.config import ConfigError, OptimizerConfig, TrainConfig
from vpp_jax.training.optimizers import clip_by_norm, group_norms, make_optimizer, squared_norms, trained_names, used_learning_rate
from vpp_jax.training.schedules import make_schedule
from vpp_jax.training.state import Trainer, ema_decay


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 1e-5), (999, 9.991e-5), (3000, 1e-4), (27_500, 5.0e-5), (50_000, 1e-10), (60_000, 1e-10)]
)
def test_tri_stage_has_the_published_values(count, expected):
    """The published policy's schedule definition: 50,000 steps, ratios 0.02 / 0.08 / 0.9, 1e-5 -> 1e-4 -> 1e-10."""
    ratios = {"warmup_ratio": 0.02, "hold_ratio": 0.08, "initial_scale": 0.1, "final_scale": 1e-6}
    config = OptimizerConfig(learning_rate=1e-4, schedule="tri_stage", **ratios)
    assert float(make_schedule(config, 50_000)(count)) == pytest.approx(expected, rel=1e-4)


def test_cosine_and_constant():
    cosine = make_schedule(OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_ratio=0.1, initial_scale=0.0, final_scale=0.5), 100)
    values = np.array([cosine(count) for count in range(101)])
    np.testing.assert_allclose(values[:10], 2.0 * np.arange(10) / 10, rtol=1e-6)
    expected = 2.0 * (0.5 + 0.5 * 0.5 * (1 + np.cos(np.pi * np.arange(91) / 90)))
    np.testing.assert_allclose(values[10:], expected, rtol=1e-5)
    constant = make_schedule(OptimizerConfig(learning_rate=2.0, warmup_ratio=0.5, initial_scale=0.5), 8)
    np.testing.assert_allclose([constant(count) for count in (0, 2, 4, 7, 100)], [1.0, 1.5, 2.0, 2.0, 2.0])


def test_updates_are_those_of_optax_adamw():
    config = OptimizerConfig(learning_rate=1e-2, betas=(0.9, 0.9), weight_decay=0.05)
    ours, reference = make_optimizer(config, 10), optax.adamw(1e-2, b1=0.9, b2=0.9, eps=1e-8, weight_decay=0.05)
    params = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2))}
    mine, theirs = ours.init(params), reference.init(params)
    for step in range(4):
        grads = {name: jnp.sin(value + step) for name, value in params.items()}
        update, mine = ours.update(grads, mine, params)
        expected, theirs = reference.update(grads, theirs, params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), update, expected)
        params = optax.apply_updates(params, update)


def test_the_logged_learning_rate_is_the_one_that_was_used():
    """The first step of a run of plain sign updates moves by the learning rate itself: Adam's first update has size one."""
    config = OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_ratio=0.5, initial_scale=0.2)
    optimizer = make_optimizer(config, 10)
    params = {"a": jnp.zeros(2)}
    state = optimizer.init(params)
    schedule = make_schedule(config, 10)
    for step in range(10):
        update, state = optimizer.update({"a": jnp.ones(2)}, state, params)
        assert float(used_learning_rate(state)) == float(schedule(step))
        np.testing.assert_allclose(update["a"], -float(schedule(step)), rtol=1e-4)


def test_clipping_and_norms():
    grads = {"unet/a": jnp.array([3.0, 0.0]), "unet/b": jnp.array([4.0]), "head/c": jnp.array([12.0])}
    norms = group_norms(squared_norms(grads))
    assert {name: float(value) for name, value in norms.items()} == {"grad_norm": 13.0, "grad_norm/unet": 5.0, "grad_norm/head": 12.0}
    clipped = clip_by_norm(grads, norms["grad_norm"], 1.3)
    assert float(group_norms(squared_norms(clipped))["grad_norm"]) == pytest.approx(1.3)
    np.testing.assert_allclose(clipped["unet/a"], grads["unet/a"] / 10, rtol=1e-6)
    assert clip_by_norm(grads, norms["grad_norm"], 0.0) is grads
    assert all(np.array_equal(clip_by_norm(grads, norms["grad_norm"], 20.0)[name], grads[name]) for name in grads)


def test_trainable_patterns():
    names = ("unet/temporal.kernel", "unet/spatial.kernel", "text/embedding")
    assert trained_names(OptimizerConfig(trainable=(r"unet/temporal.*", "text/.*")), names) == {names[0], names[2]}
    with pytest.raises(ConfigError, match=r"'temporal' matches none of text, unet/\.\.\., e\.g\. unet/temporal\.kernel"):
        trained_names(OptimizerConfig(trainable=("temporal",)), names)
    with pytest.raises(ConfigError, match="is not a regular expression"):
        trained_names(OptimizerConfig(trainable=("(",)), names)


def test_held_parameters_do_not_move_and_have_no_moments(toy):
    config = toy.toy_config(ema_decay=0.5)
    stage = toy.ToyStage(config.__class__(**config.__dict__ | {"optimizer": OptimizerConfig(trainable=("head/.*",), grad_clip=0.0)}))
    trainer = Trainer(stage)
    before = jax.jit(trainer.init)(jax.random.key(0))
    batch = {name: np.stack([stage.source("train", {}, None)[i][name] for i in range(8)]) for name in ("x", "y", "number")}
    after, metrics, squares = jax.jit(trainer.step)(before, stage.load_frozen({"vae/lift.kernel": jax.devices()[0]}), batch)
    assert all(np.array_equal(before.params[name], after.params[name]) == (not name.startswith("head/")) for name in before.params)
    assert set(squares) == {"head/last.kernel", "head/last.bias"}
    assert set(after.opt_state[0].mu) == set(squares)
    assert {"loss", "learning_rate", "grad_norm", "grad_norm/head", "mean_number"} == set(metrics)
    # decay (1 + 0) / (10 + 0) at the first update
    expected = 0.1 * before.params["head/last.bias"] + 0.9 * after.params["head/last.bias"]
    np.testing.assert_allclose(after.ema["head/last.bias"], expected, rtol=1e-5)
    assert after.eval_params is after.ema


def test_ema_decay_warms_up():
    config = TrainConfig(ema_decay=0.99)
    values = [float(ema_decay(jnp.int32(n), config)) for n in (0, 8, 80, 10_000)]
    np.testing.assert_allclose(values, [0.1, 0.5, 0.9, 0.99], rtol=1e-6)
    assert math.isclose(float(ema_decay(jnp.int32(0), TrainConfig(ema_decay=0.99, ema_warmup=False))), 0.99, rel_tol=1e-6)
