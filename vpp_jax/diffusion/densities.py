"""Densities of the training noise level σ, one table row per kind.

A row maps (key, shape, config) to float32 samples. A new kind is one function, its name in `KINDS`, one entry in `_SAMPLERS` and,
where it has parameters of its own, a field of `SigmaDensityConfig`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vpp_jax.common.config_fields import check_ranges, group, setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas

Shape = tuple[int, ...]
KINDS = ("lognormal", "truncated_loglogistic", "loguniform", "uniform", "v_diffusion", "discrete", "split_lognormal")


@dataclass(frozen=True)
class SigmaDensityConfig:
    """One density of the noise level sigma in training; a kind reads only the fields named for it.

    lognormal              ln σ ~ N(mean, std²), unbounded (the video model: 0.7, 1.6)
    truncated_loglogistic  ln σ ~ Logistic(loc, scale), restricted to [sigma_min, sigma_max] (the policy: ln 0.5, 0.5, 0.001, 80)
    loguniform             ln σ uniform on [ln sigma_min, ln sigma_max]
    uniform                σ uniform on [sigma_min, sigma_max]
    v_diffusion            arctan(σ / sigma_data) uniform, for σ in [sigma_min, sigma_max]: time of the cosine schedule uniform
    discrete               one of the levels of `noise_schedule`, its closing 0 excepted, equally likely
    split_lognormal        ln σ falls off from loc as a normal density of width std_left below and std_right above, continuous at loc
    """

    kind: str = setting("lognormal", "which density", choices=KINDS)
    mean: float = setting(0.7, "mean of ln sigma")
    std: float = setting(1.6, "standard deviation of ln sigma", more_than=0)
    loc: float = setting(math.log(0.5), "location of ln sigma")
    scale: float = setting(0.5, "scale of the logistic density", more_than=0)
    sigma_min: float = setting(0.001, "smallest sigma", more_than=0)
    sigma_max: float = setting(80.0, "largest sigma", more_than=0)
    sigma_data: float = setting(0.5, "standard deviation of the data", more_than=0)
    std_left: float = setting(1.2, "width below loc", more_than=0)
    std_right: float = setting(1.2, "width above loc", more_than=0)
    noise_schedule: NoiseScheduleConfig = group(
        lambda: NoiseScheduleConfig("exponential", num_sampling_steps=1000, sigma_min=0.001, sigma_max=80.0)
    )

    def __post_init__(self):
        check_ranges(self)
        if self.sigma_min >= self.sigma_max:
            raise ConfigError(f"sigma_min is {self.sigma_min}, expected less than sigma_max = {self.sigma_max}")


def sample_sigma(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    """Noise levels of `shape`, float32, independent and distributed as `config` says."""
    return _SAMPLERS[config.kind](key, shape, config)


def truncated_loglogistic_quantile(u: Float[Array, "..."], config: SigmaDensityConfig) -> Float[Array, "..."]:
    """σ below which the share `u` in [0, 1] of the truncated log-logistic lies.

    With F(s) = sigmoid((ln s − loc)/scale): σ = F⁻¹(F(min) + u·(F(max) − F(min))). The probability and its complement are carried
    separately: near 80 the complement is 4e-5, and one minus a float32 probability would have only three digits of it.
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


def _v_diffusion(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    """σ = sigma_data·tan θ as sin θ over cos θ, from both θ and π/2 − θ: the tangent of θ alone loses digits near π/2."""
    u = jax.random.uniform(key, shape)
    low, high = math.atan(config.sigma_min / config.sigma_data), math.atan(config.sigma_max / config.sigma_data)
    angle = low + u * (high - low)
    rest = math.atan(config.sigma_data / config.sigma_max) + (1.0 - u) * (high - low)
    return config.sigma_data * jnp.sin(angle) / jnp.sin(rest)


def _discrete(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    return jax.random.choice(key, jnp.asarray(get_sigmas(config.noise_schedule)[:-1]), shape)


def _split_lognormal(key: jax.Array, shape: Shape, config: SigmaDensityConfig) -> Float[Array, "..."]:
    side_key, distance_key = jax.random.split(key)
    left = jax.random.bernoulli(side_key, config.std_left / (config.std_left + config.std_right), shape)
    distance = jnp.abs(jax.random.normal(distance_key, shape))
    return jnp.exp(config.loc + jnp.where(left, -config.std_left, config.std_right) * distance)


_SAMPLERS: dict[str, Callable[[jax.Array, Shape, SigmaDensityConfig], Float[Array, "..."]]] = {
    "lognormal": _lognormal,
    "truncated_loglogistic": _truncated_loglogistic,
    "loguniform": _loguniform,
    "uniform": _uniform,
    "v_diffusion": _v_diffusion,
    "discrete": _discrete,
    "split_lognormal": _split_lognormal,
}
