"""Linear maps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vpp_jax.ops.precision import exact


class Affine(NamedTuple):
    """Weights of a linear map, in the compute type; `bias` is None for a map without one."""

    kernel: Float[Array, "i o"]
    bias: Float[Array, "o"] | None = None


def linear(x: Float[Array, "*b i"], weights: Affine) -> Float[Array, "*b o"]:
    """x @ kernel + bias, along the last axis."""
    y = matmul(x, weights.kernel)
    return y if weights.bias is None else y + weights.bias


def matmul(x: Float[Array, "*b i"], kernel: Float[Array, "i o"]) -> Float[Array, "*b o"]:
    """x @ kernel as a product of two matrices: with several leading axes XLA:CPU's kernel gradient takes twice as long."""
    return jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=exact(x.dtype)).reshape(*x.shape[:-1], kernel.shape[-1])


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[... heads·d] -> [... heads d]."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)
