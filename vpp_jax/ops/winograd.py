"""Winograd's minimal filtering F(2, 3) and F(4, 3) (Lavin & Gray 2015, section 4): convolutions with kernels of size 3 in fewer products.

Two neighbouring outputs of a kernel of size 3 share inputs: four products compute both instead of six, and six products four outputs
instead of twelve. Along two axes that is 16 instead of 36, and 36 instead of 144. With many channels each product is a matrix product, and
the transforms before and after, sums of neighbours, are cheap in comparison. XLA's matrix products run faster than its convolutions on
CPU, so both effects multiply (`benchmarks/cpu_forms.py`).

Rounding: F(2, 3), with the points 0, 1, -1, is as exact as direct summation. F(4, 3) needs two more points. With the usual 2 and -2 the
largest error was 18 times that of F(2, 3) at 640 channels; with 3/4, -3/4, 3/2, -3/2 instead of all four, whose powers are near 1 and
exact in binary, three to five times (tested in `tests/ops/test_winograd.py`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

CACHE_ENTRIES = 7 * 2**20  # float32 values in a last-level cache, 28 MB
NEAR, FAR = 0.75, 1.5  # the points of F(4, 3) besides 0 and infinity, with both signs
WIDE_FROM = 256  # windows of four along each axis, over all images; with fewer, the larger kernels of F(4, 3) cost as much as they save


@jax.custom_vjp
def winograd_convolution(x: Float[Array, "n *s i"], kernel: Float[Array, "*k i o"]) -> Float[Array, "n *s o"]:
    """Stride 1, zero padding of 1 along axes whose kernel has size 3; the other sizes are 1.

    The backward pass keeps x and kernel, not the transformed windows, and convolves with the mirrored kernel for the gradient of x.

    Args:
      x: channels last; even sizes along the axes to convolve.
      kernel: one size per axis of s, e.g. [3, 3, i, o] for images, [3, 1, 1, i, o] for videos along time.
    """
    return _convolution(x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolution(x, kernel), (x, kernel)


def _backward(kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    mirrored = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
    (of_kernel,) = jax.linear_transpose(lambda kernel: _convolution(x, kernel), kernel)(gradient)
    return _convolution(gradient, mirrored), of_kernel


winograd_convolution.defvjp(_forward, _backward)


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    axes = [axis for axis, size in enumerate(kernel.shape[:-2]) if size == 3]
    if any(size not in (1, 3) for size in kernel.shape[:-2]) or any(x.shape[1 + axis] % 2 for axis in axes):
        raise ValueError(f"kernel {kernel.shape} on {x.shape}: expected kernel sizes 1 or 3, and even sizes of x where it is 3")
    tile = outputs_per_window(x.shape, axes)
    size, (input_parts, kernel_parts, outputs_of) = tile + 2, TRANSFORMS[tile]
    kernels = [kernel]
    for axis in axes:
        kernels = [part for whole in kernels for part in kernel_parts(*_thirds(whole, axis))]

    def convolve(x: jax.Array) -> jax.Array:
        inputs = [x]
        for axis in axes:
            inputs = [part for whole in inputs for part in input_parts(*_windows(whole, 1 + axis, tile))]
        outputs = [_product(part, weights) for part, weights in zip(inputs, kernels, strict=True)]
        for axis in reversed(axes):
            groups = [outputs[i : i + size] for i in range(0, len(outputs), size)]
            outputs = [_side_by_side(outputs_of(*group), 1 + axis) for group in groups]
        return outputs[0]

    chunk = _images_at_once(len(x), x[0].size * size ** len(axes) // tile ** len(axes), sum(weights.size for weights in kernels))
    if chunk == len(x):
        return convolve(x)
    return lax.map(convolve, x.reshape(-1, chunk, *x.shape[1:])).reshape(*x.shape[:-1], kernel.shape[-1])


def outputs_per_window(shape: Sequence[int], axes: Sequence[int]) -> int:
    """4 for F(4, 3) or 2 for F(2, 3), for x of this shape convolved along `axes` (0: the first after n)."""
    windows = math.prod(shape[:-1]) // 4 ** len(axes)
    return 4 if all(shape[1 + axis] % 4 == 0 for axis in axes) and windows >= WIDE_FROM else 2


def winograd_upsample_convolution(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n 2*h 2*w o"]:
    """`winograd_convolution` of x doubled along both axes by nearest neighbours, which is never materialised: 9 products instead of 16.

    Of the four neighbours that two outputs share the middle two are equal, so that the third product of F(2, 3), of their difference, is
    zero.
    """
    inputs, kernels = [x], [kernel]
    for axis in (0, 1):
        inputs = [part for whole in inputs for part in _upsampled_input_parts(whole, 1 + axis)]
        kernels = [part for whole in kernels for part in _upsampled_kernel_parts(whole, axis)]
    outputs = [_product(part, weights) for part, weights in zip(inputs, kernels, strict=True)]
    for axis in (1, 0):
        outputs = [_side_by_side([a + b, b - d], 1 + axis) for a, b, d in zip(outputs[::3], outputs[1::3], outputs[2::3], strict=True)]
    return outputs[0]


def _images_at_once(images: int, transformed: int, kernels: int) -> int:
    """How many images to convolve together: as many as fit their transformed inputs in the cache, unless the kernels fill it already."""
    if kernels > CACHE_ENTRIES:
        return images
    return max(count for count in range(1, images + 1) if images % count == 0 and (count == 1 or count * transformed <= CACHE_ENTRIES // 2))


def _windows(x: jax.Array, axis: int, tile: int) -> list[jax.Array]:
    """The first, second, ... entries of all windows of tile + 2 neighbours, one window for every `tile` entries."""
    padded = _padded(x, axis)
    return [lax.slice_in_dim(padded, start, start + x.shape[axis] - tile + 1, tile, axis) for start in range(tile + 2)]


def _padded(x: jax.Array, axis: int) -> jax.Array:
    return jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])


def _thirds(kernel: jax.Array, axis: int) -> list[jax.Array]:
    return [lax.slice_in_dim(kernel, i, i + 1, 1, axis) for i in range(3)]


def _inputs_of_2(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> list[jax.Array]:
    return [a - c, b + c, c - b, b - d]


def _kernels_of_2(left: jax.Array, middle: jax.Array, right: jax.Array) -> list[jax.Array]:
    return [left, 0.5 * (left + middle + right), 0.5 * (left - middle + right), right]


def _outputs_of_2(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> list[jax.Array]:
    return [a + b + c, b - c - d]


def _inputs_of_4(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, e: jax.Array, f: jax.Array) -> list[jax.Array]:
    """Coefficients, constant first, of the product of (z - point) over all points but the part's own."""
    near, far = NEAR**2, FAR**2
    near_even, near_odd = e - far * c, NEAR * (d - far * b)
    far_even, far_odd = e - near * c, FAR * (d - near * b)
    ends = [near * far * first - (near + far) * middle + last for first, middle, last in ((a, c, e), (b, d, f))]
    return [ends[0], near_even + near_odd, near_even - near_odd, far_even + far_odd, far_even - far_odd, ends[1]]


def _kernels_of_4(left: jax.Array, middle: jax.Array, right: jax.Array) -> list[jax.Array]:
    """The kernel as a polynomial at every point p, over the product of (p - other points)."""
    near, far = NEAR**2, FAR**2

    def both(point: float, scale: float) -> list[jax.Array]:
        even, odd = (left + point**2 * right) / scale, middle * (point / scale)
        return [even + odd, even - odd]

    return [left / (near * far), *both(NEAR, 2 * near * (near - far)), *both(FAR, 2 * far * (far - near)), right]


def _outputs_of_4(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, e: jax.Array, f: jax.Array) -> list[jax.Array]:
    """Sums over the points of their powers 0 to 3 times the products; infinity has the last power alone."""
    near_even, near_odd, far_even, far_odd = b + c, b - c, d + e, d - e
    return [
        a + near_even + far_even,
        NEAR * near_odd + FAR * far_odd,
        NEAR**2 * near_even + FAR**2 * far_even,
        NEAR**3 * near_odd + FAR**3 * far_odd + f,
    ]


# outputs per window: transforms of inputs, kernels and products
TRANSFORMS = {2: (_inputs_of_2, _kernels_of_2, _outputs_of_2), 4: (_inputs_of_4, _kernels_of_4, _outputs_of_4)}


def _upsampled_input_parts(x: jax.Array, axis: int) -> list[jax.Array]:
    """`_inputs_of_2` of the neighbours (before, x, x, after), without the third, the second halved."""
    padded = _padded(x, axis)
    before, after = (lax.slice_in_dim(padded, start, start + x.shape[axis], 1, axis) for start in (0, 2))
    return [before - x, x, x - after]


def _upsampled_kernel_parts(kernel: jax.Array, axis: int) -> list[jax.Array]:
    left, middle, right = _thirds(kernel, axis)
    return [left, left + middle + right, right]


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    inputs, outputs = kernel.shape[-2:]
    return (x.reshape(-1, inputs) @ kernel.reshape(inputs, outputs)).reshape(*x.shape[:-1], outputs)


def _side_by_side(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """Entries of all parts in turn along `axis`."""
    turns = jnp.stack(parts, axis + 1)
    return turns.reshape(*parts[0].shape[:axis], math.prod(turns.shape[axis : axis + 2]), *parts[0].shape[axis + 1 :])
