"""Several micro-batches give the update of one batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from vpp_jax.config import ConfigError, MeshConfig
from vpp_jax.parallel.mesh import make_mesh
from vpp_jax.training.accumulation import check_micro_batches, loss_and_gradients
from vpp_jax.training.state import Trainer


@pytest.mark.parametrize("grad_accum_steps", [1, 2, 3, 6])
def test_weighted_mean_over_micro_batches_is_the_mean_over_the_batch(grad_accum_steps):
    """Squared error over the valid entries only: micro-batches contain different numbers of them, one of them none at all."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    valid = np.array([1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 1], np.float64)  # rows 1, 4, 7, 10: one pass of three
    p = rng.normal(size=3)

    def objective(params, rows):
        x, y, valid = rows
        error = jnp.sum(valid * (x @ params["p"] - y) ** 2) / jnp.maximum(jnp.sum(valid), 1.0)
        return error, ({"rows": jnp.float32(len(y))}, jnp.sum(valid))

    loss, metrics, gradients = loss_and_gradients(
        objective, {"p": jnp.asarray(p)}, tuple(map(jnp.asarray, (x, y, valid))), grad_accum_steps
    )
    residual = valid * (x @ p - y)
    assert float(loss) == pytest.approx(np.sum(residual**2) / valid.sum(), rel=1e-5)
    np.testing.assert_allclose(gradients["p"], 2 * residual @ x / valid.sum(), rtol=2e-5)
    assert float(metrics["rows"]) == 12 / grad_accum_steps


@pytest.fixture(scope="module")
def updated(toy):
    """grad_accum_steps -> parameters and metrics after one real training step."""

    def update(grad_accum_steps):
        stage = toy.ToyStage(toy.toy_config(grad_accum_steps=grad_accum_steps))
        trainer = Trainer(stage)
        state = jax.jit(trainer.init)(jax.random.key(0))
        source = stage.source("train", {}, None)
        batch = {name: np.stack([source[i][name] for i in range(8)]) for name in ("x", "y", "number")}
        after, metrics, _ = jax.jit(trainer.step)(state, stage.load_frozen({"vae/lift.kernel": jax.devices()[0]}), batch)
        return after.opt_state[0].mu, metrics

    return {steps: update(steps) for steps in (1, 4)}


def test_a_training_step_in_four_passes(updated):
    """Noise belongs to rows, so loss and gradients (Adam's first moments) agree to the rounding of float32 sums."""
    (one, metrics), (four, others) = updated[1], updated[4]
    assert metrics.keys() == others.keys()
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(others[name]), rel=1e-5), name
    for name, value in one.items():
        np.testing.assert_allclose(value, four[name], rtol=1e-4, atol=1e-6 * float(jnp.abs(value).max()))


def test_a_batch_that_does_not_divide_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"is 128, expected a multiple of 256 \(mesh data x fsdp\): take a slice of 128 chips, or .*=256"):
        check_micro_batches(128, 1, AbstractMesh((32, 8, 1), ("data", "fsdp", "tensor")))
    with pytest.raises(ConfigError, match=r"is 48, .*: take a slice of 32 chips, or data\.batch_size=128"):
        check_micro_batches(48, 1, AbstractMesh((8, 16, 2), ("data", "fsdp", "tensor")))


def test_passes_must_fit_batch_and_mesh(toy):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    check_micro_batches(8, 4, mesh)
    with pytest.raises(
        ConfigError, match=r"batch_size is 8, expected a multiple of 1 \(mesh data x fsdp\) times 3 \(train\.grad_accum_steps\)"
    ):
        check_micro_batches(8, 3, mesh)
    config = toy.toy_config()
    accumulating = replace(config.train, grad_accum_steps=3)
    with pytest.raises(ConfigError, match=r"train\.grad_accum_steps is 3, which does not divide data\.batch_size = 8"):
        replace(config, train=accumulating)
