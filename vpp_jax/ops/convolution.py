"""Convolutions of images [n h w c] and videos [b t h w c], stride 1 unless stated otherwise.

The type of x and kernel is the type of the computation. On CPU XLA's own convolutions are slow, so that small ones become matrix
products and wide ones in float32 go through Winograd's algorithm; accelerators always run the direct convolution.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vpp_jax.ops.dense import matmul
from vpp_jax.ops.precision import exact
from vpp_jax.ops.winograd import winograd_convolution, winograd_upsample_convolution

WINOGRAD_MIN_CHANNELS = 128  # with fewer channels the transforms cost more than they save
TEMPORAL_MATMUL_BELOW = 256  # input channels


def conv2d(
    x: Float[Array, "n h w i"],
    kernel: Float[Array, "k k i o"],
    bias: Float[Array, "o"],
    *,
    stride: int = 1,
    padding: int | Sequence[tuple[int, int]] = 0,
) -> Float[Array, "n h2 w2 o"]:
    """Zero padding, the same on all sides or ((top, bottom), (left, right)).

    A 1x1 convolution is a matrix product. So is a 3x3 one on images of at most 2x2 pixels, where every output sees every input: there
    XLA:CPU's convolutions are more than ten times slower than the product with the matrix of the whole image.
    """
    n, h, w, _ = x.shape
    size, outputs = kernel.shape[0], kernel.shape[-1]
    sides = [(padding, padding)] * 2 if isinstance(padding, int) else [(first, last) for first, last in padding]
    if size == stride == 1 and sides == [(0, 0)] * 2:
        y = matmul(x, kernel[0, 0])
    elif size == 3 and stride == 1 and max(h, w) <= 2 and sides == [(1, 1)] * 2:
        taps = [kernel[1 - i : 1 - i + h, 1 - j : 1 - j + w] for i in range(h) for j in range(w)]
        whole = jnp.concatenate([tap.reshape(-1, outputs) for tap in taps], axis=1)
        y = matmul(x.reshape(n, -1), whole).reshape(n, h, w, outputs)
    else:
        y = _convolve(x, kernel, sides, stride)
    return y + bias


def upsample_conv2d(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"], bias: Float[Array, "o"]) -> Float[Array, "n 2*h 2*w o"]:
    """x doubled in height and width by nearest neighbours, then a 3x3 convolution with padding 1."""

    def plain(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        n, h, w, c = x.shape
        doubled = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)
        return conv2d(doubled, kernel, bias, padding=1)

    def fused(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return winograd_upsample_convolution(x, kernel) + bias

    if min(kernel.shape[-2:]) >= WINOGRAD_MIN_CHANNELS and x.dtype == jnp.float32:
        return lax.platform_dependent(x, kernel, bias, cpu=fused, default=plain)
    return plain(x, kernel, bias)


def temporal_conv(x: Float[Array, "b t h w i"], kernel: Float[Array, "3 1 1 i o"], bias: Float[Array, "o"]) -> Float[Array, "b t h w o"]:
    """3x1x1 convolution over frames, zeros before the first and after the last.

    With few channels it is three matrix products, whose results are shifted by a frame and added (two to five times faster on CPU,
    measured at 8 to 64 channels); with many it is a convolution, which does not write the three results.
    """
    if x.shape[-1] < TEMPORAL_MATMUL_BELOW:
        before, here, after = (matmul(frames, tap[0, 0]) for frames, tap in zip((x[:, :-1], x, x[:, 1:]), kernel, strict=True))
        rest = ((0, 0),) * 3
        y = here + jnp.pad(before, ((0, 0), (1, 0), *rest)) + jnp.pad(after, ((0, 0), (0, 1), *rest))
    else:
        y = _convolve(x, kernel, [(1, 1), (0, 0), (0, 0)])
    return y + bias


def _convolve(x: jax.Array, kernel: jax.Array, padding: list[tuple[int, int]], stride: int = 1) -> jax.Array:
    """Winograd's algorithm on CPU where it is faster and as exact: many channels, stride 1, even sizes, float32."""
    spatial = "DHW"[-(x.ndim - 2) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")

    def direct(x: jax.Array, kernel: jax.Array) -> jax.Array:
        strides = (stride,) * len(spatial)
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, precision=exact(x.dtype))

    convolved = [size for size, pads in zip(x.shape[1:-1], padding, strict=True) if pads == (1, 1)]
    fits = stride == 1 and all(pads == ((size - 1) // 2,) * 2 for size, pads in zip(kernel.shape, padding, strict=False))
    even = all(size % 2 == 0 and size >= 4 for size in convolved)
    if fits and even and min(kernel.shape[-2:]) >= WINOGRAD_MIN_CHANNELS and x.dtype == jnp.float32:
        return lax.platform_dependent(x, kernel, cpu=winograd_convolution, default=direct)
    return direct(x, kernel)
