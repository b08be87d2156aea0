"""Sigma densities against scipy-free closed forms: quantiles, bounds, moments."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion.densities import SigmaDensityConfig, sample_sigma, truncated_loglogistic_quantile
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas

COUNT = 40000


def draw(**fields) -> np.ndarray:
    return np.asarray(sample_sigma(jax.random.key(3), (COUNT,), SigmaDensityConfig(**fields)))


def largest_cdf_gap(samples: np.ndarray, cdf) -> float:
    """Kolmogorov-Smirnov statistic; below 1.63/sqrt(n) = 0.008 at the 1 % level."""
    ordered = cdf(np.sort(samples.astype(np.float64)))
    grid = np.arange(len(ordered) + 1) / len(ordered)
    return max(np.max(grid[1:] - ordered), np.max(ordered - grid[:-1]))


def truncated_cdf(sigma: np.ndarray) -> np.ndarray:
    def logistic(s):
        return 1 / (1 + np.exp(-(np.log(s) - np.log(0.5)) / 0.5))

    return (logistic(sigma) - logistic(0.001)) / (logistic(80.0) - logistic(0.001))


def test_lognormal_moments():
    logs = np.log(draw(kind="lognormal", mean=0.7, std=1.6))
    assert abs(logs.mean() - 0.7) < 0.03
    assert abs(logs.std() - 1.6) < 0.03


@pytest.mark.parametrize(
    ("kind", "cdf"),
    [
        ("truncated_loglogistic", truncated_cdf),
        ("loguniform", lambda s: np.log(s / 0.001) / np.log(80 / 0.001)),
        ("uniform", lambda s: (s - 0.001) / (80 - 0.001)),
        ("v_diffusion", lambda s: (np.arctan(s / 0.5) - np.arctan(0.002)) / (np.arctan(160) - np.arctan(0.002))),
    ],
)
def test_bounded_densities_follow_their_distribution(kind, cdf):
    samples = draw(kind=kind, sigma_min=0.001, sigma_max=80.0)
    assert samples.dtype == np.float32
    assert samples.min() >= 0.001 * (1 - 1e-5)
    assert samples.max() <= 80.0 * (1 + 1e-5)
    assert largest_cdf_gap(samples, cdf) < 0.008


def test_split_lognormal_follows_its_distribution():
    """Half a normal on each side of loc, the two continuous there: their masses are as their widths."""
    left, right = 0.4, 1.1

    def cdf(sigma):
        distance = np.log(sigma) - 0.2
        below = np.array([1 + math.erf(z / left / math.sqrt(2)) for z in np.minimum(distance, 0)]) * left / (left + right)
        above = np.array([math.erf(z / right / math.sqrt(2)) for z in np.maximum(distance, 0)]) * right / (left + right)
        return below + above

    samples = draw(kind="split_lognormal", loc=0.2, std_left=left, std_right=right)
    assert largest_cdf_gap(samples, cdf) < 0.008


def test_discrete_levels_are_equally_likely():
    noise_schedule = NoiseScheduleConfig("karras", num_sampling_steps=8, sigma_min=0.05, sigma_max=20.0)
    values, counts = np.unique(draw(kind="discrete", noise_schedule=noise_schedule), return_counts=True)
    np.testing.assert_array_equal(values, get_sigmas(noise_schedule)[-2::-1])
    expected = COUNT / 8
    assert np.sum((counts - expected) ** 2 / expected) < 18.5  # chi-square with 7 degrees of freedom, 1 % level


def test_v_diffusion_is_accurate_far_out():
    """The same uniform numbers in double precision; with sigma_max 1e6 the tangent of a float32 angle would be off by 1e-3."""
    u = np.asarray(jax.random.uniform(jax.random.key(3), (COUNT,)), np.float64)
    low, high = np.arctan(1e-6 / 0.5), np.arctan(1e6 / 0.5)
    samples = draw(kind="v_diffusion", sigma_min=1e-6, sigma_max=1e6)
    np.testing.assert_allclose(samples, 0.5 * np.tan(low + u * (high - low)), rtol=2e-6)
    assert samples.max() > 4e3


def test_truncation_bites():
    narrow = draw(kind="truncated_loglogistic", sigma_min=0.4, sigma_max=0.6)
    assert narrow.min() >= 0.4 * (1 - 1e-5)
    assert narrow.max() <= 0.6 * (1 + 1e-5)
    assert narrow.std() > 0.03


def test_loglogistic_quantile_is_accurate_in_both_tails():
    config = SigmaDensityConfig(kind="truncated_loglogistic")
    u = np.float32([0.0, 1e-6, 1e-3, 0.5, 0.999, 1 - 2.0**-20, 1.0])
    low, high = (1 / (1 + np.exp(-(np.log(s) - np.log(0.5)) / 0.5)) for s in (0.001, 80.0))
    v = low + u.astype(np.float64) * (high - low)
    expected = np.exp(0.5 * np.log(v / (1 - v)) + np.log(0.5))
    np.testing.assert_allclose(truncated_loglogistic_quantile(jnp.asarray(u), config), expected, rtol=2e-6)


def test_recorded_loglogistic_map(reference_data):
    vectors = np.load(reference_data / "parity" / "vectors.npz")
    got = truncated_loglogistic_quantile(jnp.asarray(vectors["loglogistic_u"]), SigmaDensityConfig(kind="truncated_loglogistic"))
    # u is rounded to float32 (6e-8), which 1 - u = 0.01 magnifies to 3e-6 in log odds
    np.testing.assert_allclose(got, vectors["loglogistic_sigma"], rtol=5e-6)


@pytest.mark.parametrize(
    "kind", ["lognormal", "truncated_loglogistic", "loguniform", "uniform", "v_diffusion", "discrete", "split_lognormal"]
)
def test_draws_are_a_function_of_the_key_and_jit(kind):
    config = SigmaDensityConfig(kind=kind)
    draw_five = jax.jit(lambda key: sample_sigma(key, (5,), config))
    first, again, other = draw_five(jax.random.key(0)), draw_five(jax.random.key(0)), draw_five(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.all(np.isfinite(first))
    assert np.all(first > 0)
    assert len(np.unique(first)) > 1
    assert first.dtype == jnp.float32


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "log_normal"}, "log_normal.*lognormal"),
        ({"std": 0.0}, "std"),
        ({"scale": -1.0}, "scale"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_max"),
        ({"mean": float("nan")}, "mean"),
        ({"sigma_data": 0.0}, "sigma_data"),
        ({"std_left": -1.0}, "std_left"),
        ({"std": float("nan")}, "std"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SigmaDensityConfig(**fields)
