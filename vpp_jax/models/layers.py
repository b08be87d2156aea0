"""Building blocks shared by every model: parameters with their names, and the operation of `vpp_jax.ops` that reads them.

    cast_and_gather                a kernel in the type of the computation; all are read through it
    compute_dtype, check_dtype     the types of a computation that a configuration may name
    sinusoidal_embedding           scalars -> [cos, sin] or [sin, cos]
    Linear, Conv2d, TemporalConv   `kernel` [in, out], [kh, kw, in, out], [3, 1, 1, in, out]; `bias` [out]
    GroupNorm, LayerNorm           statistics in float32 at least; LayerNorm with or without bias
    TimestepEmbedding              linear_1 -> SiLU -> linear_2
    GEGLU, FeedForward             `net.0.proj`, `net.2`: the gated feed-forward of Stable Diffusion
    MLP                            plain two-layer perceptron, names and activation of the caller's choice, optional biases and dropout
    AlphaBlender                   sigmoid(mix_factor) blend of a spatial and a temporal branch
    Identity                       keeps the numbering of a published nn.Sequential where an entry has no parameters

All arrays are channels last. Parameters are created in float32; `dtype` is the type of the computation. Kernels start from N(0, 1/fan-in),
biases from zero. `zero=True` starts a kernel from zero: used for the last convolution of residual branches, so that a deep network trained
from scratch begins as the identity. Loading published weights is unaffected.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vpp_jax import ops
from vpp_jax.common.config_fields import setting
from vpp_jax.common.errors import ConfigError


def compute_dtype() -> Any:
    """Declaration of the configuration field `dtype`; float64 is for comparisons without rounding."""
    return setting(
        "float32", "type of the computation; parameters that are trained are float32", choices=("float32", "bfloat16", "float64")
    )


def check_dtype(dtype: str) -> None:
    """ConfigError if JAX would not compute in `dtype`."""
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
        raise ConfigError("dtype float64 needs jax.enable_x64(True): without it JAX computes in float32")


def cast_and_gather(param: nnx.Param, dtype: DTypeLike) -> jax.Array:
    """A kernel in the compute type, gathered over `fsdp` if the current mesh shards it (`PureModule.bind` attaches the gather)."""
    value = param[...].astype(dtype)
    return param.gather(value) if param.has_metadata("gather") else value


def sinusoidal_embedding(
    values: Float[Array, "*b"], dim: int, *, sine_first: bool = False, include_last: bool = False, max_period: float = 10_000.0
) -> Float[Array, "*b dim"]:
    """[cos(v f), sin(v f)] with f_k = max_period^(-k/(dim/2)), float32 (float64 if the values are).

    `sine_first` swaps the halves; `include_last` spaces the frequencies so that the last is exactly 1/max_period (divides by dim/2 - 1).
    """
    if dim % 2:
        raise ValueError(f"a sinusoidal embedding needs an even width, got {dim}")
    half, values = dim // 2, ops.at_least_float32(values)
    exponents = jnp.arange(half, dtype=values.dtype) / (half - 1 if include_last else half)
    angles = values[..., None] * jnp.exp(-math.log(max_period) * exponents)
    parts = [jnp.sin(angles), jnp.cos(angles)] if sine_first else [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts, axis=-1)


def _kernel(shape: tuple[int, ...], zero: bool, rngs: nnx.Rngs) -> nnx.Param:
    if zero:
        return nnx.Param(jnp.zeros(shape, jnp.float32))
    return nnx.Param(rngs.normal(shape) / math.sqrt(math.prod(shape[:-1])))


class Identity(nnx.Module):
    """An entry without parameters (activation, dropout) in a numbered list."""


class Linear(nnx.Module):
    """x [... in] -> [... out]."""

    def __init__(
        self, inputs: int, outputs: int, *, use_bias: bool = True, zero: bool = False, dtype: DTypeLike = "float32", rngs: nnx.Rngs
    ):
        self.kernel = _kernel((inputs, outputs), zero, rngs)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else nnx.data(None)
        self.dtype = dtype

    def affine(self) -> ops.Affine:
        """Kernel and bias in the compute type."""
        return ops.Affine(cast_and_gather(self.kernel, self.dtype), None if self.bias is None else self.bias[...].astype(self.dtype))

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return ops.linear(x.astype(self.dtype), self.affine())


class Conv2d(nnx.Module):
    """x [n h w in] -> [n h' w' out], NHWC. `padding` is the same on all sides or ((top, bottom), (left, right))."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        stride: int = 1,
        padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None,
        zero: bool = False,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.kernel = _kernel((size, size, inputs, outputs), zero, rngs)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.padding = size // 2 if padding is None else padding
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        return ops.conv2d(x.astype(self.dtype), *self._weights(), stride=self.stride, padding=self.padding)

    def upsample_conv(self, x: Float[Array, "n h w i"]) -> Float[Array, "n 2*h 2*w o"]:
        """The 3x3 convolution of x doubled in height and width by nearest neighbours."""
        return ops.upsample_conv2d(x.astype(self.dtype), *self._weights())

    def _weights(self) -> tuple[jax.Array, jax.Array]:
        return cast_and_gather(self.kernel, self.dtype), self.bias[...].astype(self.dtype)


class TemporalConv(nnx.Module):
    """3x1x1 convolution over frames with zero padding: x [b t h w in] -> [b t h w out].

    The published kernel [out, in, 3, 1, 1] is stored as [3, 1, 1, in, out].
    """

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.kernel = _kernel((3, 1, 1, inputs, outputs), zero, rngs)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
        return ops.temporal_conv(x.astype(self.dtype), cast_and_gather(self.kernel, self.dtype), self.bias[...].astype(self.dtype))


class GroupNorm(nnx.Module):
    """Group normalization over all axes between the first and the last: x [b ... c] -> [b ... c]."""

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be divided into {groups} groups: choose norm_groups as a divisor")
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups = groups
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        return ops.group_norm(x, self.scale[...], self.bias[...], groups=self.groups, eps=self.eps).astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalization of the last axis: x [... c] -> [... c]. `use_bias=False`: only a scale."""

    def __init__(self, channels: int, *, use_bias: bool = True, eps: float = 1e-5, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32)) if use_bias else nnx.data(None)
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        bias = None if self.bias is None else self.bias[...]
        return ops.layer_norm(x, self.scale[...], bias, eps=self.eps).astype(self.dtype)


class TimestepEmbedding(nnx.Module):
    """Embedding of a scalar: sinusoid [b i] -> Linear -> SiLU -> Linear -> [b o]."""

    def __init__(self, inputs: int, hidden: int, outputs: int | None = None, *, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.linear_1 = Linear(inputs, hidden, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(hidden, hidden if outputs is None else outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.linear_2(ops.silu(self.linear_1(x)))


class GEGLU(nnx.Module):
    """x [... i] -> value · GELU(gate), where (value, gate) are the halves of one projection."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.proj = Linear(inputs, 2 * outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return ops.geglu(self.proj(x))


class FeedForward(nnx.Module):
    """The gated feed-forward of Stable Diffusion's transformer blocks: [... c] -> [... c] through a width of `multiple`·c."""

    def __init__(self, channels: int, *, multiple: int = 4, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        hidden = multiple * channels
        self.net = nnx.List([GEGLU(channels, hidden, dtype=dtype, rngs=rngs), Identity(), Linear(hidden, channels, dtype=dtype, rngs=rngs)])
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        gate, out = cast(GEGLU, self.net[0]), cast(Linear, self.net[2])
        return ops.feed_forward(x.astype(self.dtype), gate.proj.affine(), out.affine())


class MLP(nnx.Module):
    """MLP: [... c] -> Linear -> activation -> Linear -> dropout -> [... o]. `names` are the attributes of the two Linears."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        outputs: int | None = None,
        *,
        use_bias: bool = True,
        activation: Callable[[Array], Array] = ops.gelu,
        dropout_rate: float = 0.0,
        names: tuple[str, str] = ("c_fc", "c_proj"),
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.names = names
        self.activation = activation
        self.dropout_rate = dropout_rate
        setattr(self, names[0], Linear(channels, hidden, use_bias=use_bias, dtype=dtype, rngs=rngs))
        setattr(self, names[1], Linear(hidden, channels if outputs is None else outputs, use_bias=use_bias, dtype=dtype, rngs=rngs))

    def __call__(self, x: Float[Array, "*b c"], *, key: Key[Array, ""] | None = None) -> Float[Array, "*b o"]:
        first, second = (getattr(self, name) for name in self.names)
        return ops.dropout(second(self.activation(first(x))), self.dropout_rate, key)


class AlphaBlender(nnx.Module):
    """s·spatial + (1 - s)·temporal with s = sigmoid(mix_factor); `reverse` swaps the weights (in the video VAE's decoder).

    Written as one interpolation: its gradient needs one product with the difference instead of two (a fifth of a VAE step on CPU).
    """

    def __init__(self, *, initial: float = 0.5, reverse: bool = False, rngs: nnx.Rngs):
        self.mix_factor = nnx.Param(jnp.full((1,), initial, jnp.float32))
        self.reverse = reverse

    def __call__(self, spatial: Float[Array, "*s"], temporal: Float[Array, "*s"]) -> Float[Array, "*s"]:
        gate = self.mix_factor[...].astype(jnp.promote_types(spatial.dtype, jnp.float32))
        share = jax.nn.sigmoid(gate).astype(spatial.dtype)
        if self.reverse:
            share = 1 - share
        return temporal + share * (spatial - temporal)
