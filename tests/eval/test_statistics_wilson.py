"""The interval against its definition, published values and its coverage."""

import numpy as np
import pytest

from eval.statistics import success_rate, wilson_interval


def test_bounds_solve_the_score_equation():
    """At both ends the observed rate lies exactly z standard errors (of that end) away."""
    for successes, trials in [(1, 10), (5, 10), (37, 80), (79, 80)]:
        for bound in wilson_interval(successes, trials, 0.95):
            distance = abs(successes / trials - bound) / np.sqrt(bound * (1 - bound) / trials)
            assert distance == pytest.approx(1.959964, abs=1e-5)


def test_known_values():
    # Newcombe 1998 (Statistics in Medicine 17, table I), method 3: score without continuity correction
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_symmetry_edges_and_errors():
    low, high = wilson_interval(3, 11)
    assert wilson_interval(8, 11) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(7, 7)[1] == 1.0
    assert success_rate(0, 0).rate is None
    with pytest.raises(ValueError, match="12 successes out of 11"):
        wilson_interval(12, 11)


def test_coverage_is_near_nominal():
    rng = np.random.default_rng(0)
    inside = [low <= 0.3 <= high for low, high in (wilson_interval(int(k), 40) for k in rng.binomial(40, 0.3, 4000))]
    assert 0.93 < np.mean(inside) < 0.975
