"""Streamed statistics: exact where promised, within the promised bound elsewhere, and the same in any order."""

import math
from fractions import Fraction

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


def test_moments_are_exact_to_the_last_bit(awkward):
    made = stats_of(awkward).summary()
    for column, values in enumerate(awkward.T.tolist()):
        exact = [Fraction(value) for value in values]
        mean = sum(exact) / len(exact)
        assert made["mean"][column] == float(mean)
        assert made["std"][column] == math.sqrt(float(sum(x * x for x in exact) / len(exact) - mean * mean))
    np.testing.assert_array_equal(made["min"], awkward.min(0))
    np.testing.assert_array_equal(made["max"], awkward.max(0))


def test_quantiles_of_few_numbers_are_numpys(awkward):
    made = stats_of(awkward)
    assert made.relative_error == 0
    for share in (0, 0.01, 0.37, 0.5, 0.99, 1):
        np.testing.assert_allclose(made.quantile(share), np.quantile(awkward.astype(np.float64), share, axis=0), rtol=1e-14)
    np.testing.assert_array_equal(stats_of(awkward[:1]).quantile(0.5), awkward[0])


def test_quantiles_of_many_numbers_stay_within_the_bound(awkward, monkeypatch):
    monkeypatch.setattr(running_stats, "MAX_BINS", 3000)
    monkeypatch.setattr(running_stats, "ROWS_AT_ONCE", 1000)
    made = stats_of(awkward)
    assert max(len(keys) for keys, _ in made._bins) <= 3000
    assert 0 < made.relative_error < 0.3
    ordered = np.sort(awkward.astype(np.float64), axis=0)
    for rank in (0, 50, 2500, 4950, 5000):
        wrong = np.abs(made.quantile(rank / 5000) - ordered[rank])
        assert (wrong <= made.relative_error * np.maximum(np.abs(ordered[rank]), np.finfo("f").tiny)).all()


@pytest.mark.parametrize("max_bins", [1 << 16, 300])
def test_order_and_splitting_do_not_matter(awkward, monkeypatch, max_bins):
    monkeypatch.setattr(running_stats, "MAX_BINS", max_bins)
    monkeypatch.setattr(running_stats, "ROWS_AT_ONCE", 512)
    expected = stats_of(awkward).summary()
    shuffled = np.random.default_rng(1).permutation(awkward)
    merged = stats_of(*np.array_split(shuffled[:1000], 7))
    for part in (shuffled[1000:1010], shuffled[1010:]):
        merged.merge(stats_of(part))
    assert merged.count == len(awkward)
    for name, row in merged.summary().items():
        np.testing.assert_array_equal(row, expected[name])


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
    np.testing.assert_allclose(made.quantile(0.99), np.quantile(everything, 0.99, axis=0), rtol=2**-12)
