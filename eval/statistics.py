"""Intervals for measured success rates."""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class SuccessRate:
    """Successes out of trials with the Wilson score interval."""

    successes: int
    trials: int
    rate: float | None  # None without trials
    low: float
    high: float

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson 1927: the rates p for which `successes` lies within z standard errors of p * trials; (0, 1) without trials.

    Unlike rate +- z * standard error it stays inside [0, 1] and has a width at 0 % and 100 %.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes out of {trials} trials")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} is outside (0, 1)")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = successes / trials, z * z / trials
    centre = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials)) / (1 + spread)
    # rounding must not move the ends of the scale: at 0 or all successes the bound is exact
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def success_rate(successes: int, trials: int, confidence: float = 0.95) -> SuccessRate:
    low, high = wilson_interval(successes, trials, confidence)
    return SuccessRate(successes, trials, successes / trials if trials else None, low, high)
