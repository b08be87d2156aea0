"""Samplers against the closed-form solution of the probability-flow ODE.

For data N(0, s²) the denoiser is D(x, σ) = x s²/(s² + σ²) and the flow keeps x/√(s² + σ²) constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion.ladders import LadderConfig, sigma_ladder
from vpp_jax.diffusion.samplers import sample, sample_trajectory

SPREAD = 0.5


def gaussian_denoiser(x, sigma):
    return x * (SPREAD**2 / (SPREAD**2 + sigma**2))[:, None]


def flow(x, start, end):
    return x * np.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


@pytest.fixture(scope="module")
def start():
    return 10.0 * jax.random.normal(jax.random.key(0), (64, 3))


@pytest.mark.parametrize(("kind", "order"), [("ddim", 1), ("euler", 1), ("heun", 2)])
def test_order_of_convergence(kind, order, start):
    errors = []
    for steps in (32, 64, 128):
        sigmas = sigma_ladder(LadderConfig("karras", steps, 0.1, 10.0))[:-1]
        result = sample(gaussian_denoiser, start, sigmas, kind)
        errors.append(float(jnp.max(jnp.abs(result - flow(np.asarray(start), 10.0, 0.1)))))
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(measured, order, atol=0.15)


@pytest.mark.parametrize("kind", ["ddim", "euler", "heun"])
def test_full_ladder_recovers_the_data_distribution(kind):
    x = 80.0 * jax.random.normal(jax.random.key(1), (4096, 4))
    sigmas = sigma_ladder(LadderConfig("karras", 200, 0.002, 80.0))
    result = np.asarray(sample(gaussian_denoiser, x, sigmas, kind))
    np.testing.assert_allclose(result, flow(np.asarray(x), 80.0, 0.0), rtol=0.05, atol=1e-3)
    assert abs(result.std() / SPREAD - 1) < 0.05


def test_two_point_data_ends_at_the_points():
    """For data ±1 the denoiser is tanh(x/σ²): samples keep their sign and land on ±1."""
    x = 20.0 * jax.random.normal(jax.random.key(2), (256, 1))
    result = sample(lambda x, sigma: jnp.tanh(x / sigma[:, None] ** 2), x, sigma_ladder(LadderConfig("exponential", 30, 0.01, 20.0)))
    np.testing.assert_allclose(jnp.abs(result), 1.0, atol=1e-4)
    np.testing.assert_array_equal(jnp.sign(result), jnp.sign(x))


def test_ddim_and_euler_are_one_step_in_two_spellings(start):
    sigmas = sigma_ladder(LadderConfig("exponential", 10, 0.05, 10.0))
    ddim, euler = (sample(gaussian_denoiser, start, sigmas, kind) for kind in ("ddim", "euler"))
    np.testing.assert_allclose(ddim, euler, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "calls"), [("ddim", 5), ("euler", 5), ("heun", 9)])
def test_denoiser_calls_and_the_levels_they_see(kind, calls, start):
    seen = []

    def watched(x, sigma):
        jax.debug.callback(lambda s: seen.append(np.asarray(s)), sigma)
        return gaussian_denoiser(x, sigma)

    sigmas = sigma_ladder(LadderConfig("linear", 5, 1.0, 10.0))
    jax.block_until_ready(sample(watched, start, sigmas, kind))
    jax.effects_barrier()
    assert len(seen) == calls
    assert all(level.shape == (64,) for level in seen)
    assert min(level.min() for level in seen) > 0  # never asked at sigma 0
    np.testing.assert_array_equal(np.unique([level[0] for level in seen]), np.sort(sigmas[:-1]))


def test_last_step_returns_the_denoised_sample(start):
    result, seen = sample_trajectory(gaussian_denoiser, start, sigma_ladder(LadderConfig("exponential", 6, 0.5, 10.0)))
    assert seen.states.shape == seen.denoised.shape == (6, 64, 3)
    np.testing.assert_array_equal(seen.states[0], start)
    np.testing.assert_array_equal(result, seen.denoised[-1])
    np.testing.assert_array_equal(result, sample(gaussian_denoiser, start, sigma_ladder(LadderConfig("exponential", 6, 0.5, 10.0))))


def test_recorded_ddim_trajectories(shared_data):
    """Published states, one after the other: each step from the recorded denoised samples."""
    vectors = np.load(shared_data / "parity" / "vectors.npz")
    for low in ("0.001", "1.0"):
        sigmas, denoised = (jnp.asarray(vectors[f"ddim_{name}_{low}"]) for name in ("sigmas", "denoised"))

        def replay(x, sigma, sigmas=sigmas, denoised=denoised):
            return denoised[jnp.argmin(jnp.abs(sigmas[:-1] - sigma[0]))]

        result, seen = sample_trajectory(replay, jnp.asarray(vectors["ddim_x_T"]), sigmas, "ddim")
        np.testing.assert_allclose(result, vectors[f"ddim_out_{low}"], atol=1e-6)
        np.testing.assert_allclose(seen.states, vectors[f"ddim_x_{low}"], rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_refused(start):
    with pytest.raises(ValueError, match=r"ddpm.*heun"):
        sample(gaussian_denoiser, start, np.float32([1, 0]), "ddpm")
    with pytest.raises(ValueError, match="two noise levels"):
        sample(gaussian_denoiser, start, np.float32([1]))
