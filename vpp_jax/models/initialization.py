"""Initialisations that differ from the layers' defaults, as in the published training."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from vpp_jax.models.layers import Linear


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
