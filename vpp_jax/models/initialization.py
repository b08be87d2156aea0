"""Initialisations: normal values that are cheap to compile, and the published training's where they differ from the layers' defaults."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from vpp_jax.models.layers import Linear


class InitRngs(nnx.Rngs):
    """`nnx.Rngs` whose `normal` cuts small arrays from a shared block: a draw for each of hundreds takes half a minute to compile."""

    BLOCK = 2**18
    _block: Any  # float32 [BLOCK], once something was drawn

    def __init__(self, seed: int | Key[Array, ""]):
        super().__init__(seed)
        self._block, self._used = nnx.data(None), self.BLOCK

    def normal(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        """Values ~ N(0, 1), from a part of the block that no other array has."""
        count = math.prod(shape)
        if count > self.BLOCK:
            return jax.random.normal(self(), shape)
        if self._used + count > self.BLOCK:
            self._block, self._used = nnx.data(jax.random.normal(self(), (self.BLOCK,))), 0
        self._used += count
        return self._block[self._used - count : self._used].reshape(shape)


def normal_linears(module: nnx.Module, std: float, rngs: nnx.Rngs) -> None:
    """Reinitialises every Linear inside `module`, in place: kernels N(0, std²), biases zero."""
    for linear in _linears(module):
        linear.kernel[...] = std * jax.random.normal(rngs.params(), linear.kernel[...].shape)
        if linear.bias is not None:
            linear.bias[...] = jnp.zeros_like(linear.bias[...])


def uniform_linears(module: nnx.Module, rngs: nnx.Rngs) -> None:
    """Reinitialises every Linear inside `module`, in place: kernels and biases uniform on ±1/√inputs (PyTorch's default)."""
    for linear in _linears(module):
        bound = 1.0 / math.sqrt(linear.kernel[...].shape[0])
        linear.kernel[...] = jax.random.uniform(rngs.params(), linear.kernel[...].shape, minval=-bound, maxval=bound)
        if linear.bias is not None:
            linear.bias[...] = jax.random.uniform(rngs.params(), linear.bias[...].shape, minval=-bound, maxval=bound)


def _linears(module: nnx.Module) -> list[Linear]:
    return [node for _, node in nnx.iter_modules(module) if isinstance(node, Linear)]
