"""Elementwise functions, and the type of statistics."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

silu = jax.nn.silu


def at_least_float32(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x in float32 (in float64 if it is). For values for which bfloat16 is too coarse: statistics, softmax, noise levels, losses."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Exact GELU, x/2 (1 + erf(x/√2)). `jax.nn.gelu` computes it through erfc, which costs several times more on CPU."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def dropout(x: Float[Array, "*s"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*s"]:
    """Zeroes each entry with probability `rate` and rescales the rest by 1/(1 - rate). `key=None` means evaluation: returns `x`."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
