"""Descending noise levels that a sampler walks down, one table row per kind.

Ladders are host constants: computed in double precision with numpy, returned as float32, the closing 0 included.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class LadderConfig:
    """`steps` noise levels from `sigma_max` down to `sigma_min`, then 0. With one step the only level is `sigma_max`.

    exponential  evenly spaced in ln σ (the policy: 10 steps, 80 → 1.0 in CALVIN evaluation, 80 → 0.001 in validation)
    karras       evenly spaced in σ^(1/rho) (Karras et al. 2022, equation 5)
    linear       evenly spaced in σ
    svd_euler    Stable Video Diffusion's Euler scheduler: karras (rho 7, 700 → 0.002), started from noise of scale √(sigma_max²+1)
    """

    kind: str = "exponential"
    steps: int = 10
    sigma_min: float = 1.0
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        if self.kind not in _LADDERS:
            raise ValueError(f"sigma ladder kind {self.kind!r} is unknown; one of {sorted(_LADDERS)}")
        if self.steps < 1:
            raise ValueError(f"a sigma ladder needs at least one step, got {self.steps}")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"a sigma ladder needs 0 < sigma_min < sigma_max, got [{self.sigma_min}, {self.sigma_max}]")
        if not 0 < self.rho < math.inf:
            raise ValueError(f"a sigma ladder needs rho > 0, got {self.rho}")


def sigma_ladder(config: LadderConfig) -> Float[np.ndarray, "steps+1"]:
    """Noise levels σ_0 > … > σ_{steps−1} > 0 with a final 0, float32."""
    progress = np.linspace(0.0, 1.0, config.steps)
    return np.append(_LADDERS[config.kind](progress, config), 0.0).astype(np.float32)


def initial_scale(config: LadderConfig) -> float:
    """Standard deviation of the sample a sampler starts from: σ_max, and √(σ_max²+1) where the ladder is SVD's."""
    return math.hypot(config.sigma_max, 1.0) if config.kind == "svd_euler" else config.sigma_max


def _exponential(progress: np.ndarray, config: LadderConfig) -> np.ndarray:
    return config.sigma_max * (config.sigma_min / config.sigma_max) ** progress


def _karras(progress: np.ndarray, config: LadderConfig) -> np.ndarray:
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return (high + progress * (low - high)) ** config.rho


def _linear(progress: np.ndarray, config: LadderConfig) -> np.ndarray:
    return config.sigma_max + progress * (config.sigma_min - config.sigma_max)


_LADDERS: dict[str, Callable[[np.ndarray, LadderConfig], np.ndarray]] = {
    "exponential": _exponential,
    "karras": _karras,
    "linear": _linear,
    "svd_euler": _karras,
}
