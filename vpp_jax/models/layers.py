"""Building blocks shared by every model. All arrays are channels last.

    cast_and_gather                a kernel in the type of the computation; all are read through it
    compute_dtype, check_dtype     the types of a computation that a configuration may name
    at_least_float32               for what bfloat16 is too coarse for: statistics, softmax, noise levels, losses
    dropout, gelu, silu            functions; `dropout(x, rate, key)` is the identity when `key` is None
    standard_normal                initial values from `rngs`, cheap to compile
    sinusoidal_embedding           scalars -> [cos, sin] or [sin, cos]
    Linear, Conv2d, TemporalConv   `kernel` [in, out], [kh, kw, in, out], [3, 1, 1, in, out]; `bias` [out]
    GroupNorm, LayerNorm           statistics in float32 at least; LayerNorm with or without bias
    TimestepEmbedding              linear_1 -> SiLU -> linear_2
    GEGLU, FeedForward             `net.0.proj`, `net.2`: the gated feed-forward of Stable Diffusion
    MLP                            plain two-layer perceptron, names and activation of the caller's choice, optional biases and dropout
    AlphaBlender                   sigmoid(mix_factor) blend of a spatial and a temporal branch
    Identity                       keeps the numbering of a published nn.Sequential where an entry has no parameters

Parameters are created in float32; `dtype` is the type of the computation. Kernels start from N(0, 1/fan-in), biases
from zero. `zero=True` starts a kernel from zero: used for the last convolution of residual branches, so that a deep network trained
from scratch begins as the identity. Loading published weights is unaffected.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vpp_jax.common.config_fields import setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.ops.winograd import doubled_convolution, winograd_convolution

silu = jax.nn.silu


def gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Exact GELU, x/2 (1 + erf(x/√2)). `jax.nn.gelu` computes it through erfc, which costs several times more on CPU."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


def compute_dtype() -> Any:
    """The declaration of a configuration's field `dtype`; float64 is for comparisons without rounding."""
    return setting(
        "float32", "type of the computation; parameters that are trained are float32", choices=("float32", "bfloat16", "float64")
    )


def check_dtype(dtype: str) -> None:
    """ConfigError where JAX would not compute in `dtype`."""
    if dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("dtype float64 needs jax.enable_x64(True): without it JAX computes in float32")


def at_least_float32(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """x in float32; in float64 if it is."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cast_and_gather(param: nnx.Param, dtype: DTypeLike) -> jax.Array:
    """A kernel in the type of the computation, through what `PureModule.bind` attached to it: on a mesh, the gathering of its shards."""
    value = param[...].astype(dtype)
    return param.gather(value) if param.has_metadata("gather") else value


def dropout(x: Float[Array, "*s"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*s"]:
    """Zeroes each entry with probability `rate` and rescales the rest by 1/(1 - rate). `key=None` means evaluation: returns `x`."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def sinusoidal_embedding(
    values: Float[Array, "*b"], dim: int, *, sine_first: bool = False, include_last: bool = False, max_period: float = 10_000.0
) -> Float[Array, "*b dim"]:
    """[cos(v f), sin(v f)] with f_k = max_period^(-k/(dim/2)), float32 (float64 if the values are).

    `sine_first` swaps the halves; `include_last` spaces the frequencies so that the last is exactly 1/max_period (divides by dim/2 - 1).
    """
    if dim % 2:
        raise ValueError(f"a sinusoidal embedding needs an even width, got {dim}")
    half, values = dim // 2, at_least_float32(values)
    exponents = jnp.arange(half, dtype=values.dtype) / (half - 1 if include_last else half)
    angles = values[..., None] * jnp.exp(-math.log(max_period) * exponents)
    parts = [jnp.sin(angles), jnp.cos(angles)] if sine_first else [jnp.cos(angles), jnp.sin(angles)]
    return jnp.concatenate(parts, axis=-1)


class _NormalPool:
    """Hands out disjoint slices of blocks of normal values drawn from one stream of `rngs`."""

    BLOCK = 2**18

    def __init__(self):
        self.block, self.used = None, self.BLOCK

    def take(self, rngs: nnx.Rngs, count: int) -> jax.Array:
        if count > self.BLOCK:
            return jax.random.normal(rngs.params(), (count,))
        if self.used + count > self.BLOCK:
            self.block, self.used = jax.random.normal(rngs.params(), (self.BLOCK,)), 0
        self.used += count
        return self.block[self.used - count : self.used]


_POOLS: weakref.WeakKeyDictionary[nnx.Rngs, _NormalPool] = weakref.WeakKeyDictionary()


def standard_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """Initial values ~ N(0, 1). Small arrays are slices of a shared block: a draw for each of hundreds takes half a minute to compile."""
    return _POOLS.setdefault(rngs, _NormalPool()).take(rngs, math.prod(shape)).reshape(shape)


def _kernel(shape: tuple[int, ...], zero: bool, rngs: nnx.Rngs) -> nnx.Param:
    if zero:
        return nnx.Param(jnp.zeros(shape, jnp.float32))
    return nnx.Param(standard_normal(rngs, shape) / math.sqrt(math.prod(shape[:-1])))


class Identity(nnx.Module):
    """An entry without parameters (activation, dropout) in a numbered list."""


def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [... i] @ kernel [i o] as a product of two matrices: with several leading axes XLA:CPU's kernel gradient takes twice as long."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


BLOCK_ROWS, BLOCKS_FROM = 512, 2**22


def blockwise(function: Callable[[Array], Array], x: Float[Array, "*b c"], width: int) -> Float[Array, "*b d"]:
    """`function` of rows [n c], whose widest intermediate has `width` columns, on x.

    On CPU, where such an intermediate would have more than `BLOCKS_FROM` entries, `BLOCK_ROWS` rows go through all of `function` before the
    next ones enter it and stay in the caches meanwhile (`benchmarks/cpu_forms.py`).
    """
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) % BLOCK_ROWS == 0 and len(rows) * width >= BLOCKS_FROM:
        blocks = lambda rows: lax.map(function, rows.reshape(-1, BLOCK_ROWS, rows.shape[-1])).reshape(len(rows), -1)  # noqa: E731
        y = lax.platform_dependent(rows, cpu=blocks, default=function)
    else:
        y = function(rows)
    return y.reshape(*x.shape[:-1], -1)


WINOGRAD_FROM = 128  # channels; with fewer the transforms cost more than they save


def convolve(
    x: Float[Array, "n *s i"], kernel: Float[Array, "*k i o"], padding: Sequence[tuple[int, int]], stride: int = 1
) -> Float[Array, "n *s2 o"]:
    """Convolution of images [n h w c] or videos [n t h w c]; on CPU by Winograd's algorithm where that is faster and as exact."""
    spatial = "DHW"[-(x.ndim - 2) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (stride,) * len(spatial), padding, dimension_numbers=numbers)

    convolved = [size for size, pads in zip(x.shape[1:-1], padding, strict=True) if tuple(pads) == (1, 1)]
    fits = stride == 1 and all(pads == ((size - 1) // 2,) * 2 for size, pads in zip(kernel.shape, map(tuple, padding), strict=False))
    even = all(size % 2 == 0 and size >= 4 for size in convolved)
    if fits and even and min(kernel.shape[-2:]) >= WINOGRAD_FROM and x.dtype == jnp.float32:
        return lax.platform_dependent(x, kernel, cpu=winograd_convolution, default=direct)
    return direct(x, kernel)


class Linear(nnx.Module):
    """x [... in] -> [... out]."""

    def __init__(
        self, inputs: int, outputs: int, *, use_bias: bool = True, zero: bool = False, dtype: DTypeLike = "float32", rngs: nnx.Rngs
    ):
        self.kernel = _kernel((inputs, outputs), zero, rngs)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32)) if use_bias else nnx.data(None)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        y = _matmul(x.astype(self.dtype), cast_and_gather(self.kernel, self.dtype))
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Conv2d(nnx.Module):
    """x [n h w in] -> [n h' w' out], NHWC. `padding` is the same on all sides or ((top, bottom), (left, right)).

    A 1x1 convolution is a matrix product. So is a 3x3 one on images of at most 2x2 pixels, where every output sees every input: there
    XLA:CPU's convolutions are more than ten times slower than the product with the matrix of the whole image. Larger 3x3 ones with many
    channels go through `convolve`.
    """

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
        if padding is None:
            padding = size // 2
        self.padding = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        x, kernel = x.astype(self.dtype), cast_and_gather(self.kernel, self.dtype)
        n, h, w, _ = x.shape
        size, outputs = kernel.shape[0], kernel.shape[-1]
        if size == self.stride == 1:
            y = _matmul(x, kernel[0, 0])
        elif size == 3 and self.stride == 1 and max(h, w) <= 2 and self.padding == ((1, 1), (1, 1)):
            taps = [kernel[1 - i : 1 - i + h, 1 - j : 1 - j + w] for i in range(h) for j in range(w)]
            whole = jnp.concatenate([tap.reshape(-1, outputs) for tap in taps], axis=1)
            y = (x.reshape(n, -1) @ whole).reshape(n, h, w, outputs)
        else:
            y = convolve(x, kernel, self.padding, self.stride)
        return y + self.bias[...].astype(self.dtype)

    def upsample_conv(self, x: Float[Array, "n h w i"]) -> Float[Array, "n 2*h 2*w o"]:
        """The same of x doubled in height and width by nearest neighbours, for 3x3 with padding 1; with many channels faster on CPU."""

        def plain(x: jax.Array) -> jax.Array:
            n, h, w, c = x.shape
            return self(jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c))

        def fused(x: jax.Array) -> jax.Array:
            return doubled_convolution(x, cast_and_gather(self.kernel, self.dtype)) + self.bias[...]

        x = x.astype(self.dtype)
        if min(self.kernel.shape[-2:]) >= WINOGRAD_FROM and x.dtype == jnp.float32:
            return lax.platform_dependent(x, cpu=fused, default=plain)
        return plain(x)


class TemporalConv(nnx.Module):
    """3x1x1 convolution over frames with zero padding: x [b t h w in] -> [b t h w out].

    The published kernel [out, in, 3, 1, 1] is stored as [3, 1, 1, in, out]. With few channels the convolution is three matrix products,
    whose results are shifted by a frame and added (two to five times faster on CPU, measured at 8 to 64 channels); with many it goes
    through `convolve`, which does not write the three results.
    """

    MATMUL_BELOW = 256  # input channels

    def __init__(self, inputs: int, outputs: int, *, zero: bool = False, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.kernel = _kernel((3, 1, 1, inputs, outputs), zero, rngs)
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b t h w i"]) -> Float[Array, "b t h w o"]:
        x, kernel = x.astype(self.dtype), cast_and_gather(self.kernel, self.dtype)
        if x.shape[-1] < self.MATMUL_BELOW:
            before, here, after = (_matmul(frames, tap[0, 0]) for frames, tap in zip((x[:, :-1], x, x[:, 1:]), kernel, strict=True))
            rest = ((0, 0),) * 3
            y = here + jnp.pad(before, ((0, 0), (1, 0), *rest)) + jnp.pad(after, ((0, 0), (0, 1), *rest))
        else:
            y = convolve(x, kernel, ((1, 1), (0, 0), (0, 0)))
        return y + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation over all axes between the first and the last: x [b ... c] -> [b ... c].

    Statistics are per-channel sums of y and y² in float32 at least, averaged within groups of channels; the result is one affine map per
    (example, channel). The array is never reshaped to groups, which makes this several times faster than `nnx.GroupNorm` on CPU.
    y is x minus the group's mean at the first position: the variance does not depend on such a shift, and without it the difference
    of two large sums loses all precision in groups that are nearly constant (small images have many of those).
    """

    def __init__(self, channels: int, *, groups: int = 32, eps: float = 1e-6, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be divided into {groups} groups: choose norm_groups as a divisor")
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))
        self.groups = groups
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        batch, channels = x.shape[0], x.shape[-1]
        axes = tuple(range(1, x.ndim - 1))

        def group_mean(per_channel: jax.Array) -> jax.Array:
            return jnp.repeat(per_channel.reshape(batch, self.groups, -1).mean(-1), channels // self.groups, axis=-1)

        def spread(per_channel: jax.Array) -> jax.Array:
            return jnp.expand_dims(per_channel, axes)

        x = at_least_float32(x)
        y = x - spread(group_mean(lax.stop_gradient(x[(slice(None), *(0,) * len(axes))])))
        mean = group_mean(jnp.mean(y, axes))
        variance = jnp.maximum(group_mean(jnp.mean(lax.square(y), axes)) - lax.square(mean), 0.0)
        gain = self.scale[...] * lax.rsqrt(variance + self.eps)
        return (y * spread(gain) + spread(self.bias[...] - mean * gain)).astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation of the last axis, in float32 at least: x [... c] -> [... c]. `use_bias=False` leaves only the scale."""

    def __init__(self, channels: int, *, use_bias: bool = True, eps: float = 1e-5, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32)) if use_bias else nnx.data(None)
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        wide = at_least_float32(x)
        centred = wide - jnp.mean(wide, -1, keepdims=True)
        y = centred * lax.rsqrt(jnp.mean(lax.square(centred), -1, keepdims=True) + self.eps) * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype)


class TimestepEmbedding(nnx.Module):
    """Embedding of a scalar: sinusoid [b i] -> Linear -> SiLU -> Linear -> [b o]."""

    def __init__(self, inputs: int, hidden: int, outputs: int | None = None, *, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.linear_1 = Linear(inputs, hidden, dtype=dtype, rngs=rngs)
        self.linear_2 = Linear(hidden, hidden if outputs is None else outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        return self.linear_2(silu(self.linear_1(x)))


class GEGLU(nnx.Module):
    """x [... i] -> value · GELU(gate), where (value, gate) are the halves of one projection."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.proj = Linear(inputs, 2 * outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        value, gate = jnp.split(self.proj(x), 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nnx.Module):
    """The gated feed-forward of Stable Diffusion's transformer blocks: [... c] -> [... c] through a width of `multiple`·c."""

    def __init__(self, channels: int, *, multiple: int = 4, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        hidden = multiple * channels
        self.net = nnx.List([GEGLU(channels, hidden, dtype=dtype, rngs=rngs), Identity(), Linear(hidden, channels, dtype=dtype, rngs=rngs)])

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        return blockwise(lambda rows: self.net[2](self.net[0](rows)), x, self.net[0].proj.kernel[...].shape[1])


class MLP(nnx.Module):
    """Plain perceptron: [... c] -> Linear -> activation -> Linear -> dropout -> [... o]. `names` are the attributes of the two Linears."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        outputs: int | None = None,
        *,
        use_bias: bool = True,
        activation: Callable[[Array], Array] = gelu,
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
        return dropout(second(self.activation(first(x))), self.dropout_rate, key)


class AlphaBlender(nnx.Module):
    """s·spatial + (1 - s)·temporal with s = sigmoid(mix_factor); `reverse` exchanges the weights (the video VAE's decoder).

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
