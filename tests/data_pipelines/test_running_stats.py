"""Streaming statistics: equal to NumPy's to the promised digits, and independent of order and splitting."""

import math

import numpy as np
import pytest

from data_pipelines import running_stats
from data_pipelines.running_stats import RunningStats


def stats_of(*parts) -> RunningStats:
    made = RunningStats(parts[0].shape[1])
    for part in parts:
        made.add(part)
    return made


@pytest.fixture(scope="module")
def awkward():
    """Numbers of every kind: far from zero with a small spread, over many powers, subnormal, both signs and zeros."""
    rng = np.random.default_rng(0)
    n = 5001
    powers = np.ldexp(rng.standard_normal(n), rng.integers(-140, 120, n))
    return np.stack([1e6 + rng.standard_normal(n), powers, rng.choice([-0.0, 0.0, 1e-45, 1, -1], n), rng.uniform(-1, 1, n)], 1).astype("f")


def test_moments_are_numpys_to_seven_digits(awkward):
    made = stats_of(*np.array_split(awkward, 50)).summary()
    values = awkward.astype(np.float64)
    np.testing.assert_allclose(made["std"], values.std(0), rtol=1e-6)
    np.testing.assert_array_less(np.abs(made["mean"] - values.mean(0)), 1e-6 * values.std(0))
    np.testing.assert_array_equal(made["min"], awkward.min(0))
    np.testing.assert_array_equal(made["max"], awkward.max(0))


def test_moments_are_rounded(awkward):
    """Differences in the last bits of the arithmetic are rounded away before hashing."""
    for mean, std in zip(*(stats_of(awkward).summary()[name].tolist() for name in ("mean", "std")), strict=True):
        assert std == float(f"{std:.6e}")
        assert mean == round(mean, 6 - math.floor(math.log10(std)))


def test_a_constant_has_zero_deviation():
    made = stats_of(*[np.full((n, 1), 0.1, np.float32) for n in (1, 3, 7)]).summary()
    assert (made["mean"][0], made["std"][0]) == (np.float32(0.1), 0.0)


def test_quantiles_of_few_numbers_are_numpys(awkward):
    made = stats_of(awkward)
    assert made.relative_error == 0
    levels = (0, 0.01, 0.37, 0.5, 0.99, 1)
    np.testing.assert_allclose(made.quantiles(levels), np.quantile(awkward.astype(np.float64), levels, axis=0), rtol=1e-14)
    np.testing.assert_array_equal(stats_of(awkward[:1]).quantiles((0.5,))[0], awkward[0])


def test_quantiles_of_many_numbers_stay_within_the_bound(awkward, monkeypatch):
    monkeypatch.setattr(running_stats, "MAX_BINS", 3000)
    monkeypatch.setattr(running_stats, "ROWS_AT_ONCE", 1000)
    made = stats_of(awkward)
    assert max(len(keys) for keys, _ in made._bins) <= 3000
    assert 0 < made.relative_error < 0.3
    ordered = np.sort(awkward.astype(np.float64), axis=0)
    for rank in (0, 50, 2500, 4950, 5000):
        wrong = np.abs(made.quantiles((rank / 5000,))[0] - ordered[rank])
        assert (wrong <= made.relative_error * np.maximum(np.abs(ordered[rank]), np.finfo("f").tiny)).all()


@pytest.mark.parametrize("max_bins", [1 << 16, 300])
def test_order_and_splitting_of_episodes_do_not_matter(awkward, monkeypatch, max_bins):
    monkeypatch.setattr(running_stats, "MAX_BINS", max_bins)
    monkeypatch.setattr(running_stats, "ROWS_AT_ONCE", 512)
    episodes = np.array_split(awkward, 97)
    expected = stats_of(*episodes)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(episodes))
        merged = RunningStats(awkward.shape[1])
        for part in np.split(order, np.sort(rng.integers(0, len(order), 4))):
            made = stats_of(*(episodes[index] for index in part)) if len(part) else RunningStats(awkward.shape[1])
            merged.merge(RunningStats.from_arrays(made.to_arrays()))
        assert merged.count == len(awkward)
        for name, row in merged.summary().items():
            np.testing.assert_array_equal(row, expected.summary()[name])
        np.testing.assert_array_equal(merged.quantiles((0.02, 0.5, 0.98)), expected.quantiles((0.02, 0.5, 0.98)))


def test_memory_does_not_grow(monkeypatch):
    monkeypatch.setattr(running_stats, "ROWS_AT_ONCE", 1 << 14)
    made, rng = RunningStats(1), np.random.default_rng(0)
    parts = [rng.standard_normal((1 << 14, 1), np.float32) for _ in range(16)]
    for part in parts:
        made.add(part)
    assert len(made._bins[0][0]) <= running_stats.MAX_BINS
    assert not made._buffer
    assert made.relative_error <= 2**-12
    everything = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(made.quantiles((0.99,))[0], np.quantile(everything, 0.99, axis=0), rtol=2**-12)
