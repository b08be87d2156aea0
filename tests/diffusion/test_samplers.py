"""Samplers against closed forms for Gaussian data.

For data N(m, s²) the denoiser is D(x, σ) = (s² x + σ² m)/(s² + σ²), and the probability-flow ODE keeps (x − m)/√(s² + σ²) constant.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion.linear_multistep import dpmpp_2m, euler_ancestral, lms
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas
from vpp_jax.diffusion.samplers import SAMPLERS, sample, sample_trajectory

MEAN, SPREAD = 0.3, 0.5
STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde")
DETERMINISTIC = tuple(kind for kind in SAMPLERS if kind not in STOCHASTIC)
KEY = jax.random.key(7)


def gaussian_denoiser(x, sigma):
    sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def flow(x, start, end):
    return MEAN + (x - MEAN) * np.sqrt((SPREAD**2 + end**2) / (SPREAD**2 + start**2))


@pytest.fixture(scope="module")
def start():
    return 10.0 * jax.random.normal(jax.random.key(0), (64, 3))


# --- the ODE ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("ddim", 0.9, 1.1), ("euler", 0.9, 1.1), ("heun", 1.85, 2.15), ("dpm_2", 1.85, 2.15), ("dpmpp_2m", 1.85, 2.3), ("lms", 3.0, 4.5)],
)
def test_order_of_convergence(kind, low, high):
    """Observed in double precision: rounding would hide the higher orders."""
    with jax.enable_x64(True):
        x = jnp.asarray([[-20.0], [5.0], [12.0]], jnp.float64)
        errors = []
        for steps in (32, 64, 128):
            sigmas = get_sigmas(NoiseScheduleConfig("karras", steps, 0.1, 10.0)).astype(np.float64)[:-1]
            result = sample(gaussian_denoiser, x, sigmas, kind)
            assert result.dtype == jnp.float64
            errors.append(float(np.max(np.abs(result - flow(np.asarray(x), sigmas[0], sigmas[-1])))))
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all((low < measured) & (measured < high)), (measured, errors)


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_full_noise_schedule_recovers_the_data_distribution(kind):
    x = 80.0 * jax.random.normal(jax.random.key(1), (4096, 4))
    sigmas = get_sigmas(NoiseScheduleConfig("karras", 200, 0.002, 80.0))
    result = np.asarray(sample(gaussian_denoiser, x, sigmas, kind))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, flow(np.asarray(x), 80.0, 0.0), rtol=0.05, atol=1e-2)
    assert abs(result.std() / SPREAD - 1) < 0.05


def test_ddim_and_euler_are_one_step_in_two_spellings(start):
    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 10, 0.05, 10.0))
    ddim, euler = (sample(gaussian_denoiser, start, sigmas, kind) for kind in ("ddim", "euler"))
    np.testing.assert_allclose(ddim, euler, rtol=1e-4, atol=1e-5)


# --- the stochastic kinds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("kind", STOCHASTIC)
def test_stochastic_results_follow_the_data_distribution(kind, eta):
    """Mean and variance over 40,000 samples, with standard errors 0.0025 and 0.0018; a step of first order leaves the rest."""
    x = MEAN + np.sqrt(80.0**2 + SPREAD**2) * jax.random.normal(jax.random.key(1), (400, 100))
    sigmas = get_sigmas(NoiseScheduleConfig("karras", 256, 0.002, 80.0))
    result = np.asarray(sample(gaussian_denoiser, x, sigmas, kind, KEY, eta))
    assert abs(result.mean() - MEAN) < 0.01
    assert abs(result.var() - SPREAD**2) < 0.02


@pytest.mark.parametrize(("kind", "limit"), [("euler_ancestral", "euler"), ("dpmpp_2m_sde", "dpmpp_2m")])
def test_without_noise_the_stochastic_kinds_are_their_ode(kind, limit, start):
    sigmas = get_sigmas(NoiseScheduleConfig("karras", 12, 0.05, 10.0))
    np.testing.assert_allclose(
        sample(gaussian_denoiser, start, sigmas, kind, eta=0.0), sample(gaussian_denoiser, start, sigmas, limit), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_noise_of_a_row_depends_on_its_key_alone(kind, start):
    sigmas = get_sigmas(NoiseScheduleConfig("karras", 6, 0.05, 10.0))
    draw = jax.jit(lambda x, key: sample(gaussian_denoiser, x, sigmas, kind, key))
    keys, few = jax.random.split(KEY, 64), np.array([40, 3, 17])
    together = np.asarray(draw(start, keys))
    np.testing.assert_allclose(draw(start[few], keys[few]), together[few], rtol=1e-6, atol=1e-6)
    same_start = np.asarray(draw(jnp.zeros((64, 3)), keys))
    assert len(np.unique(same_start)) == same_start.size  # and differs between rows and within them
    np.testing.assert_allclose(draw(start, KEY), together, rtol=1e-6, atol=1e-6)  # one key is split into one per example
    assert np.abs(draw(start, jax.random.key(8)) - together).min() > 0


def test_an_ancestral_step_is_the_posterior_of_gaussian_noise():
    """x_σ' given x_σ and the clean x: x + σ'²/σ²·(x_σ − x), with variance σ'²(σ² − σ'²)/σ². The first step of 2M SDE is the same one."""
    sigmas = np.array([80.0, 20.0, 3.0, 0.5, 0.0])
    now, following = sigmas[:-1], sigmas[1:]
    steps, first = euler_ancestral(sigmas, 1.0), dpmpp_2m(sigmas, 1.0)
    np.testing.assert_allclose(steps.keep, following**2 / now**2, rtol=1e-12)
    np.testing.assert_allclose(steps.weights[:, 0], 1 - following**2 / now**2, rtol=1e-12)
    np.testing.assert_allclose(steps.spread**2, following**2 * (now**2 - following**2) / now**2, rtol=1e-12)
    for ours, theirs in zip(first, steps, strict=True):
        np.testing.assert_allclose(ours[0].sum(), theirs[0].sum(), rtol=1e-12)


# --- multistep coefficients -------------------------------------------------------------------------------------------------------


def test_lms_on_even_steps_is_adams_bashforth():
    weights = lms(np.linspace(10.0, 4.0, 7), 0.0).weights
    np.testing.assert_allclose(weights[0], [-1, 0, 0, 0], rtol=1e-12)
    np.testing.assert_allclose(weights[1], np.array([-3, 1, 0, 0]) / 2, rtol=1e-12)
    np.testing.assert_allclose(weights[2], np.array([-23, 16, -5, 0]) / 12, rtol=1e-12)
    np.testing.assert_allclose(weights[3:], np.tile(np.array([-55, 59, -37, 9]) / 24, (3, 1)), rtol=1e-12)


def test_lms_integrates_cubics_in_sigma_exactly():
    sigmas = np.array([9.0, 6.5, 5.9, 3.0, 1.2, 0.4])
    slope = np.polynomial.Polynomial([0.3, -2.0, 0.7, 0.11])
    weights = lms(sigmas, 0.0).weights
    for step in (3, 4):
        moved = weights[step] @ slope(sigmas[[step, step - 1, step - 2, step - 3]])
        np.testing.assert_allclose(moved, slope.integ()(sigmas[step + 1]) - slope.integ()(sigmas[step]), rtol=1e-10)


def test_2m_reaches_the_middle_of_a_step_by_extrapolation():
    """In λ = −ln σ: a denoised sample linear in λ is replaced by its value at the middle of the step."""
    sigmas = np.array([10.0, 4.0, 2.5, 0.3])
    steps, places = dpmpp_2m(sigmas, 0.0), -np.log(sigmas)
    for step in (1, 2):
        middle = (places[step] + places[step + 1]) / 2
        gain = 1 - sigmas[step + 1] / sigmas[step]
        np.testing.assert_allclose(steps.weights[step] @ places[[step, step - 1]], gain * middle, rtol=1e-12)
    np.testing.assert_allclose(steps.weights[0], [0.6, 0.0], atol=1e-12)


# --- every kind -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAMPLERS)
def test_two_point_data_ends_at_the_points(kind):
    """For data ±1 the denoiser is tanh(x/σ²), and samples land on ±1; those of the ODE keep their sign."""
    x = 20.0 * jax.random.normal(jax.random.key(2), (256, 1))
    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 30, 0.01, 20.0))
    result = sample(lambda x, sigma: jnp.tanh(x / sigma[:, None] ** 2), x, sigmas, kind, KEY)
    np.testing.assert_allclose(jnp.abs(result), 1.0, atol=1e-4)
    if kind in DETERMINISTIC:
        np.testing.assert_array_equal(jnp.sign(result), jnp.sign(x))
    else:
        assert 0.3 < jnp.mean(result > 0) < 0.7


@pytest.mark.parametrize("kind", SAMPLERS)
def test_denoiser_calls_and_the_levels_they_see(kind, start):
    seen = []

    def watched(x, sigma):
        jax.debug.callback(lambda s: seen.append(np.asarray(s)), sigma)
        return gaussian_denoiser(x, sigma)

    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 5, 1.0, 16.0))
    jax.block_until_ready(sample(watched, start, sigmas, kind, KEY))
    jax.effects_barrier()
    assert all(level.shape == (64,) for level in seen)
    expected = [16, 8, 4, 2, 1]  # never 0
    expected += {"heun": [8, 4, 2, 1], "dpm_2": list(np.sqrt([16 * 8, 8 * 4, 4 * 2, 2 * 1]))}.get(kind, [])
    np.testing.assert_allclose(np.sort([level[0] for level in seen]), np.sort(expected), rtol=1e-6)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_prepared_levels_are_those_asked_for(kind, start):
    """What is prepared reaches the call of its level: a denoiser that reads only that gives the same samples."""
    sigmas = get_sigmas(NoiseScheduleConfig("karras", 5, 0.1, 10.0))
    prepared = []

    def prepare(levels):
        prepared.append(levels)
        return jnp.log(levels)

    def from_prepared(x, sigma, log_sigma):
        assert log_sigma.shape == (1,)
        return gaussian_denoiser(x, jnp.exp(jnp.broadcast_to(log_sigma, sigma.shape)))

    got = sample(from_prepared, start, sigmas, kind, KEY, prepare=prepare)
    np.testing.assert_allclose(got, sample(gaussian_denoiser, start, sigmas, kind, KEY), rtol=2e-5, atol=2e-6)
    assert all(bool(jnp.all(levels > 0)) for levels in prepared)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_last_step_returns_the_denoised_sample(kind, start):
    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 6, 0.5, 10.0))
    result, seen = sample_trajectory(gaussian_denoiser, start, sigmas, kind, KEY)
    assert seen.states.shape == seen.denoised.shape == (6, 64, 3)
    np.testing.assert_array_equal(seen.states[0], start)
    np.testing.assert_allclose(result, seen.denoised[-1], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(result, sample(gaussian_denoiser, start, sigmas, kind, KEY))
    one_step = np.float32([10.0, 0.0])
    np.testing.assert_allclose(
        sample(gaussian_denoiser, start, one_step, kind, KEY), gaussian_denoiser(start, jnp.full(64, 10.0)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", SAMPLERS)
def test_traced_once_whatever_the_number_of_steps(kind, start):
    traces = {}
    for steps in (3, 40):
        calls = []

        def counted(x, sigma, calls=calls):
            calls.append(1)
            return gaussian_denoiser(x, sigma)

        sigmas = get_sigmas(NoiseScheduleConfig("karras", steps, 0.1, 10.0))
        draw = jax.jit(lambda x, key, sigmas=sigmas, counted=counted: sample(counted, x, sigmas, kind, key))
        draw(start, KEY)
        draw(2 * start, jax.random.key(1))
        traces[steps] = len(calls)
    assert traces[3] == traces[40] <= 2


def test_recorded_ddim_trajectories(reference_data):
    """Published states, one after the other: each step from the recorded denoised samples."""
    vectors = np.load(reference_data / "parity" / "vectors.npz")
    for low in ("0.001", "1.0"):
        sigmas, denoised = (jnp.asarray(vectors[f"ddim_{name}_{low}"]) for name in ("sigmas", "denoised"))

        def replay(x, sigma, sigmas=sigmas, denoised=denoised):
            return denoised[jnp.argmin(jnp.abs(sigmas[:-1] - sigma[0]))]

        result, seen = sample_trajectory(replay, jnp.asarray(vectors["ddim_x_T"]), sigmas, "ddim")
        np.testing.assert_allclose(result, vectors[f"ddim_out_{low}"], atol=1e-6)
        np.testing.assert_allclose(seen.states, vectors[f"ddim_x_{low}"], rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_refused(start):
    levels = np.float32([1, 0])
    with pytest.raises(ValueError, match=r"ddpm.*heun"):
        sample(gaussian_denoiser, start, levels, "ddpm")
    with pytest.raises(ValueError, match="two noise levels"):
        sample(gaussian_denoiser, start, np.float32([1]))
    with pytest.raises(ValueError, match="euler_ancestral draws noise: pass key"):
        sample(gaussian_denoiser, start, levels, "euler_ancestral")
    with pytest.raises(ValueError, match="64, one per example"):
        sample(gaussian_denoiser, start, levels, "dpmpp_2m_sde", jax.random.split(KEY, 3))
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        sample(gaussian_denoiser, start, levels, "dpmpp_2m_sde", KEY, eta=1.5)
    with pytest.raises(ValueError, match="lms computes its coefficients on the host"):
        jax.jit(lambda sigmas: sample(gaussian_denoiser, start, sigmas, "lms"))(levels)
