"""Noise schedules: the descending noise levels of a sampler, one table row per kind.

Noise schedules are host constants: computed in double precision with numpy, returned as float32, including the final 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vpp_jax.common.config_fields import check_ranges, setting
from vpp_jax.common.errors import ConfigError

KINDS = ("exponential", "karras", "linear", "svd_euler", "ve", "vp", "cosine", "iddpm")
IDDPM_LEVELS = 1000


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """Noise levels of a sampler, from `sigma_max` down to `sigma_min`, then 0. With one step the only level is the first.

    exponential  evenly spaced in ln σ (the policy: 10 steps, 80 → 1.0 in CALVIN evaluation, 80 → 0.001 in validation)
    karras       evenly spaced in σ^(1/rho) (Karras et al. 2022, equation 5)
    linear       evenly spaced in σ
    svd_euler    Stable Video Diffusion's Euler scheduler: karras (rho 7, 700 → 0.002), started from noise of scale √(sigma_max²+1)
    ve           variance exploding: σ² geometric (Karras et al. 2022, table 1), which are the levels of exponential
    vp           variance preserving: σ = √(exp(beta_d t²/2 + beta_min t) − 1) for t evenly from 1 to eps_s (the same table);
                 reads neither sigma_min nor sigma_max
    cosine       evenly spaced in arctan σ: the cosine schedule ᾱ = cos²(arctan σ) of Nichol & Dhariwal 2021, cut at both ends
    iddpm        the same authors' discrete schedule, 1000 levels: those from sigma_min to sigma_max, thinned out evenly
                 (Karras et al. 2022, table 1). The ends are levels of the schedule: 0.0064 and 80.2 for 0.006 and 81
    """

    kind: str = setting("exponential", "which schedule", choices=KINDS)
    num_sampling_steps: int = setting(10, "noise levels, the closing 0 not counted", at_least=1)
    sigma_min: float = setting(1.0, "last level before 0", more_than=0)
    sigma_max: float = setting(80.0, "first level", more_than=0)
    rho: float = setting(7.0, "exponent of karras and svd_euler", more_than=0)
    beta_d: float = setting(19.9, "vp: slope of beta", more_than=0)
    beta_min: float = setting(0.1, "vp: beta at time 0", more_than=0)
    eps_s: float = setting(0.001, "vp: last time", more_than=0, less_than=1)

    def __post_init__(self):
        check_ranges(self)
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(f"sigma_min is {self.sigma_min}, expected less than sigma_max = {self.sigma_max}")
        if np.any(np.diff(get_sigmas(self)) >= 0):
            raise ConfigError(f"num_sampling_steps is {self.num_sampling_steps}, too many for kind {self.kind} in float32: levels repeat")


def get_sigmas(config: NoiseScheduleConfig) -> Float[np.ndarray, "levels"]:
    """Noise levels σ_0 > … > σ_{steps−1} > 0 with a final 0, float32."""
    progress = np.linspace(0.0, 1.0, config.num_sampling_steps)
    return np.append(_NOISE_SCHEDULES[config.kind](progress, config), 0.0).astype(np.float32)


def initial_scale(config: NoiseScheduleConfig) -> float:
    """Standard deviation of the sample a sampler starts from: the first level, and √(σ_max²+1) where the noise schedule is SVD's."""
    return math.hypot(config.sigma_max, 1.0) if config.kind == "svd_euler" else float(get_sigmas(config)[0])


def _exponential(progress: np.ndarray, config: NoiseScheduleConfig) -> np.ndarray:
    return config.sigma_max * (config.sigma_min / config.sigma_max) ** progress


def _karras(progress: np.ndarray, config: NoiseScheduleConfig) -> np.ndarray:
    high, low = config.sigma_max ** (1 / config.rho), config.sigma_min ** (1 / config.rho)
    return (high + progress * (low - high)) ** config.rho


def _linear(progress: np.ndarray, config: NoiseScheduleConfig) -> np.ndarray:
    return config.sigma_max + progress * (config.sigma_min - config.sigma_max)


def _cosine(progress: np.ndarray, config: NoiseScheduleConfig) -> np.ndarray:
    high, low = math.atan(config.sigma_max), math.atan(config.sigma_min)
    return np.where(progress == 0, config.sigma_max, np.tan(high + progress * (low - high)))


def _vp(progress: np.ndarray, config: NoiseScheduleConfig) -> np.ndarray:
    t = 1.0 + progress * (config.eps_s - 1.0)
    return np.sqrt(np.expm1(config.beta_d * t**2 / 2 + config.beta_min * t))


def _iddpm(progress: np.ndarray, config: NoiseScheduleConfig) -> np.ndarray:
    """σ_j² + 1 = ᾱ_M/ᾱ_j with ᾱ_j = sin²(π/2 · j/M/1.008); j = 0, where ᾱ is 0, takes the largest growth 1/0.001 instead."""
    alpha = np.sin(0.5 * np.pi * np.arange(IDDPM_LEVELS + 1) / IDDPM_LEVELS / 1.008) ** 2
    growth = 1.0 / np.maximum(alpha[:-1] / alpha[1:], 0.001)
    table = np.sqrt(np.cumprod(growth[::-1])[::-1] - 1.0)
    inside = table[(table >= config.sigma_min) & (table <= config.sigma_max)]
    if len(inside) < config.num_sampling_steps:
        between = f"between {config.sigma_min} and {config.sigma_max}"
        raise ValueError(
            f"a noise schedule of kind iddpm has {len(inside)} levels {between}, fewer than the {config.num_sampling_steps} steps"
        )
    return inside[np.round(progress * (len(inside) - 1)).astype(int)]


_NOISE_SCHEDULES: dict[str, Callable[[np.ndarray, NoiseScheduleConfig], np.ndarray]] = {
    "exponential": _exponential,
    "karras": _karras,
    "linear": _linear,
    "svd_euler": _karras,
    "ve": _exponential,
    "vp": _vp,
    "cosine": _cosine,
    "iddpm": _iddpm,
}
