"""Sigma densities against scipy-free closed forms: quantiles, bounds, moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion.densities import SigmaDensityConfig, sample_sigma, truncated_loglogistic_quantile

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
    ],
)
def test_bounded_densities_follow_their_distribution(kind, cdf):
    samples = draw(kind=kind, sigma_min=0.001, sigma_max=80.0)
    assert samples.dtype == np.float32
    assert samples.min() >= 0.001 * (1 - 1e-5)
    assert samples.max() <= 80.0 * (1 + 1e-5)
    assert largest_cdf_gap(samples, cdf) < 0.008


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
    np.testing.assert_allclose(truncated_loglogistic_quantile(u, config), expected, rtol=2e-6)


def test_recorded_loglogistic_map(shared_data):
    vectors = np.load(shared_data / "parity" / "vectors.npz")
    got = truncated_loglogistic_quantile(vectors["loglogistic_u"], SigmaDensityConfig(kind="truncated_loglogistic"))
    # u is rounded to float32 (6e-8), which 1 - u = 0.01 magnifies to 3e-6 in log odds
    np.testing.assert_allclose(got, vectors["loglogistic_sigma"], rtol=5e-6)


@pytest.mark.parametrize("kind", ["lognormal", "truncated_loglogistic", "loguniform", "uniform"])
def test_draws_are_a_function_of_the_key_and_jit(kind):
    config = SigmaDensityConfig(kind=kind)
    draw_five = jax.jit(lambda key: sample_sigma(key, (5,), config))
    first, again, other = draw_five(jax.random.key(0)), draw_five(jax.random.key(0)), draw_five(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.all(np.isfinite(first))
    assert np.all(first > 0)
    assert len(np.unique(first)) == 5
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
        ({"std": float("nan")}, "std"),
    ],
)
def test_bad_configs_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SigmaDensityConfig(**fields)
