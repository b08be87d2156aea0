"""Products in float32 are products in float32, on every platform."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


def exact(dtype: DTypeLike) -> lax.Precision | None:
    """The precision of products of arrays of type `dtype`.

    By default a TPU multiplies float32 as bfloat16, and a GPU as TF32: a configuration that says float32 would get 8 or 11 bits. For that
    speed set `dtype` to bfloat16, which moves half the bytes, too.
    """
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None
