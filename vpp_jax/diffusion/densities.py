"""Densities that training noise levels σ are drawn from, one table row per kind.

A row maps (key, shape, config) to float32 samples. A new kind is one function, one entry in `_SAMPLERS` and, where it has
parameters of its own, a field of `SigmaDensityConfig`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Shape = tuple[int, ...]


@dataclass(frozen=True)
class SigmaDensityConfig:
    """One density of σ; a kind reads only the fields named for it.

    lognormal              ln σ ~ N(mean, std²), unbounded (the video model: 0.7, 1.6)
    truncated_loglogistic  ln σ ~ Logistic(loc, scale), restricted to [sigma_min, sigma_max] (the policy: ln 0.5, 0.5, 0.001, 80)
    loguniform             ln σ uniform on [ln sigma_min, ln sigma_max]
    uniform                σ uniform on [sigma_min, sigma_max]
    """

    kind: str = "lognormal"
    mean: float = 0.7
    std: float = 1.6
    loc: float = math.log(0.5)
    scale: float = 0.5
    sigma_min: float = 0.001
    sigma_max: float = 80.0

    def __post_init__(self):
        if self.kind not in _SAMPLERS:
            raise ValueError(f"sigma density kind {self.kind!r} is unknown; one of {sorted(_SAMPLERS)}")
        if not self.std > 0 or not self.scale > 0:
            raise ValueError(f"sigma density needs std > 0 and scale > 0, got std={self.std}, scale={self.scale}")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"sigma density needs 0 < sigma_min < sigma_max, got [{self.sigma_min}, {self.sigma_max}]")
        if not (math.isfinite(self.mean) and math.isfinite(self.loc)):
            raise ValueError(f"sigma density needs finite mean and loc, got mean={self.mean}, loc={self.loc}")


def sample_sigma(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    """Noise levels of `shape`, float32, independent and distributed as `config` says."""
    return _SAMPLERS[config.kind](key, shape, config)


def truncated_loglogistic_quantile(u: Float[Array, "..."], config: SigmaDensityConfig) -> Float[Array, "..."]:
    """σ below which the share `u` in [0, 1] of the truncated log-logistic lies.

    With F(s) = sigmoid((ln s − loc)/scale): σ = F⁻¹(F(min) + u·(F(max) − F(min))). The probability and its complement are carried
    separately: near 80 the complement is 4e-5, and one minus a float32 probability would keep only three digits of it.
    """
    u = jnp.asarray(u, jnp.float32)
    low, low_rest = _logistic_and_rest((math.log(config.sigma_min) - config.loc) / config.scale)
    high, high_rest = _logistic_and_rest((math.log(config.sigma_max) - config.loc) / config.scale)
    below = low + u * (high - low)
    above = high_rest + (1.0 - u) * (low_rest - high_rest)
    return jnp.exp(config.scale * (jnp.log(below) - jnp.log(above)) + config.loc)


def _logistic_and_rest(x: float) -> tuple[float, float]:
    """sigmoid(x) and 1 − sigmoid(x) in double precision, without cancellation in the second."""
    return 1.0 / (1.0 + math.exp(-x)), 1.0 / (1.0 + math.exp(x))


def _lognormal(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    return jnp.exp(config.mean + config.std * jax.random.normal(key, shape))


def _truncated_loglogistic(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    return truncated_loglogistic_quantile(jax.random.uniform(key, shape), config)


def _loguniform(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    return jnp.exp(jax.random.uniform(key, shape, minval=math.log(config.sigma_min), maxval=math.log(config.sigma_max)))


def _uniform(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    return jax.random.uniform(key, shape, minval=config.sigma_min, maxval=config.sigma_max)


_SAMPLERS: dict[str, Callable[[jax.Array, Shape, SigmaDensityConfig], Float[Array, "..."]]] = {
    "lognormal": _lognormal,
    "truncated_loglogistic": _truncated_loglogistic,
    "loguniform": _loguniform,
    "uniform": _uniform,
}
