"""Winograd's minimal filtering F(2, 3) (Lavin & Gray 2015, section 4.1): convolutions with kernels of three as fewer products.

Two neighbouring outputs of a kernel of three share their inputs: four products give both, where the plain sum takes six. Along two
axes that is 16 instead of 36. With many channels each product is a matrix product, and the transforms before and after, sums and
differences of neighbours, cost little beside them. In float32 the result is as exact as that of a direct convolution (the transforms'
only factor is 1/2). XLA's matrix products run faster than its convolutions on CPU, so that both effects multiply
(`benchmarks/cpu_forms.py`).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

CACHE_ENTRIES = 7 * 2**20  # float32 values in a last-level cache, 28 MB


def winograd_convolution(x: Float[Array, "n *s i"], kernel: Float[Array, "*k i o"]) -> Float[Array, "n *s o"]:
    """Stride 1, zero padding of 1 along axes whose kernel has size 3; the other sizes are 1.

    Args:
      x: channels last; even sizes along the axes to convolve.
      kernel: one size per axis of s, e.g. [3, 3, i, o] for images, [3, 1, 1, i, o] for videos along time.
    """
    axes = [axis for axis, size in enumerate(kernel.shape[:-2]) if size == 3]
    if any(size not in (1, 3) for size in kernel.shape[:-2]) or any(x.shape[1 + axis] % 2 for axis in axes):
        raise ValueError(f"kernel {kernel.shape} on {x.shape}: expected kernel sizes 1 or 3, and even sizes of x where it is 3")
    kernels = [kernel]
    for axis in axes:
        kernels = [part for whole in kernels for part in _kernel_parts(whole, axis)]

    def convolve(x: jax.Array) -> jax.Array:
        inputs = [x]
        for axis in axes:
            inputs = [part for whole in inputs for part in _input_parts(whole, 1 + axis)]
        outputs = [_product(part, weights) for part, weights in zip(inputs, kernels, strict=True)]
        for axis in reversed(axes):
            outputs = [_outputs(outputs[i : i + 4], 1 + axis) for i in range(0, len(outputs), 4)]
        return outputs[0]

    chunk = _images_at_once(len(x), 2 ** len(axes) * x[0].size, sum(weights.size for weights in kernels))
    if chunk == len(x):
        return convolve(x)
    return lax.map(convolve, x.reshape(-1, chunk, *x.shape[1:])).reshape(*x.shape[:-1], kernel.shape[-1])


def doubled_convolution(x: Float[Array, "n h w i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "n 2*h 2*w o"]:
    """`winograd_convolution` of x doubled along both axes by nearest neighbours, which is never made: 9 products in place of 16.

    Of the four neighbours that two outputs share the middle two are equal, so that the third product of F(2, 3), of their difference, is
    zero.
    """
    inputs, kernels = [x], [kernel]
    for axis in (0, 1):
        inputs = [part for whole in inputs for part in _doubled_input_parts(whole, 1 + axis)]
        kernels = [part for whole in kernels for part in _doubled_kernel_parts(whole, axis)]
    outputs = [_product(part, weights) for part, weights in zip(inputs, kernels, strict=True)]
    for axis in (1, 0):
        outputs = [_side_by_side(a + b, b - d, 1 + axis) for a, b, d in zip(outputs[::3], outputs[1::3], outputs[2::3], strict=True)]
    return outputs[0]


def _images_at_once(images: int, transformed: int, kernels: int) -> int:
    """How many images to convolve together: as many as keep their transformed inputs in the cache, unless the kernels fill it anyway."""
    if kernels > CACHE_ENTRIES:
        return images
    return max(count for count in range(1, images + 1) if images % count == 0 and (count == 1 or count * transformed <= CACHE_ENTRIES // 2))


def _input_parts(x: jax.Array, axis: int) -> list[jax.Array]:
    """Windows of four neighbours at every second place, transformed: four arrays, half as long."""
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])
    a, b, c, d = (lax.slice_in_dim(padded, start, start + x.shape[axis] - 1, 2, axis) for start in range(4))
    return [a - c, b + c, c - b, b - d]


def _kernel_parts(kernel: jax.Array, axis: int) -> list[jax.Array]:
    left, middle, right = (lax.slice_in_dim(kernel, i, i + 1, 1, axis) for i in range(3))
    return [left, 0.5 * (left + middle + right), 0.5 * (left - middle + right), right]


def _doubled_input_parts(x: jax.Array, axis: int) -> list[jax.Array]:
    """`_input_parts` of the neighbours (before, x, x, after), without the third, the second halved."""
    padded = jnp.pad(x, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)])
    before, after = (lax.slice_in_dim(padded, start, start + x.shape[axis], 1, axis) for start in (0, 2))
    return [before - x, x, x - after]


def _doubled_kernel_parts(kernel: jax.Array, axis: int) -> list[jax.Array]:
    left, middle, right = (lax.slice_in_dim(kernel, i, i + 1, 1, axis) for i in range(3))
    return [left, left + middle + right, right]


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    inputs, outputs = kernel.shape[-2:]
    return (x.reshape(-1, inputs) @ kernel.reshape(inputs, outputs)).reshape(*x.shape[:-1], outputs)


def _outputs(products: Sequence[jax.Array], axis: int) -> jax.Array:
    """The two outputs of every window, side by side again."""
    a, b, c, d = products
    return _side_by_side(a + b + c, b - c - d, axis)


def _side_by_side(first: jax.Array, second: jax.Array, axis: int) -> jax.Array:
    """Entries of both in turn along `axis`."""
    pairs = jnp.stack([first, second], axis + 1)
    return pairs.reshape(*first.shape[:axis], math.prod(pairs.shape[axis : axis + 2]), *first.shape[axis + 1 :])
