"""Winograd's convolution against the direct one, and where convolutions use it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vpp_jax import ops
from vpp_jax.ops import winograd
from vpp_jax.ops.convolution import WINOGRAD_MIN_CHANNELS
from vpp_jax.ops.winograd import outputs_per_window, winograd_convolution, winograd_upsample_convolution

IMAGES = ("NHWC", "HWIO", "NHWC")
VIDEOS = ("NDHWC", "DHWIO", "NDHWC")


def exact(x, kernel, numbers):
    """The direct convolution in float64."""
    padding = [((size - 1) // 2,) * 2 for size in kernel.shape[:-2]]
    with jax.enable_x64(True):
        wide = (jnp.asarray(value, jnp.float64) for value in (x, kernel))
        return np.asarray(lax.conv_general_dilated(*wide, (1,) * len(padding), padding, dimension_numbers=numbers))


@pytest.mark.parametrize(
    ("shape", "kernel", "numbers"),
    [
        ((2, 4, 6, 24), (3, 3, 24, 16), IMAGES),
        ((2, 6, 3, 5, 24), (3, 1, 1, 24, 8), VIDEOS),
        ((1, 2, 2, 8), (3, 3, 8, 8), IMAGES),
        ((16, 16, 16, 24), (3, 3, 24, 16), IMAGES),
        ((8, 8, 5, 7, 24), (3, 1, 1, 24, 8), VIDEOS),
    ],
)
def test_equals_the_direct_convolution(shape, kernel, numbers):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=kernel).astype(np.float32)
    expected = exact(x, kernel, numbers)
    np.testing.assert_allclose(winograd_convolution(jnp.asarray(x), jnp.asarray(kernel)), expected, atol=3e-6 * np.abs(expected).max())


def test_windows_of_four_outputs_where_there_are_many():
    assert outputs_per_window((16, 16, 16, 8), (0, 1)) == outputs_per_window((8, 8, 5, 7, 8), (0,)) == 4
    assert outputs_per_window((15, 16, 16, 8), (0, 1)) == outputs_per_window((16, 18, 16, 8), (0, 1)) == 2


def test_the_points_make_windows_of_four_nearly_as_exact(monkeypatch):
    rng = np.random.default_rng(3)
    x, kernel = rng.normal(size=(16, 16, 16, 320)).astype(np.float32), rng.normal(size=(3, 3, 320, 32)).astype(np.float32)
    expected = exact(x, kernel, IMAGES)

    def error(**values):
        for name, value in values.items():
            monkeypatch.setattr(winograd, name, value)
        return np.abs(jax.jit(lambda *inputs: winograd_convolution(*inputs))(x, kernel) - expected).max() / np.abs(expected).max()

    ours, usual, two = error(), error(NEAR=1.0, FAR=2.0), error(WIDE_FROM=10**9)
    assert two < ours < 8 * two
    assert 3 * ours < usual


@pytest.mark.parametrize("shape", [(2, 3, 4, 24), (1, 1, 1, 8)])
def test_equals_the_convolution_of_doubled_images(shape):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(3, 3, shape[-1], 16)).astype(np.float32)
    expected = exact(x.repeat(2, 1).repeat(2, 2), kernel, IMAGES)
    np.testing.assert_allclose(
        winograd_upsample_convolution(jnp.asarray(x), jnp.asarray(kernel)), expected, atol=3e-6 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("channels", "dtype", "expected"), [(WINOGRAD_MIN_CHANNELS, "float32", 9), (WINOGRAD_MIN_CHANNELS, "bfloat16", 0), (8, "float32", 0)]
)
def test_doubled_images_are_made_only_where_channels_are_few(channels, dtype, expected):
    rng = np.random.default_rng(2)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((1, 4, 4, channels), (3, 3, channels, channels)))
    bias = jnp.arange(channels, dtype=dtype)
    assert jax.jit(ops.upsample_conv2d).lower(x, kernel, bias).as_text().count("stablehlo.dot_general") == expected
    theirs = np.asarray(ops.conv2d(x.repeat(2, 1).repeat(2, 2), kernel, bias, padding=1), np.float32)
    ours = np.asarray(ops.upsample_conv2d(x, kernel, bias), np.float32)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_odd_sizes_and_other_kernels_are_refused():
    for shape, kernel in (((1, 5, 4, 8), (3, 3, 8, 8)), ((1, 4, 4, 8), (5, 5, 8, 8))):
        with pytest.raises(ValueError, match="expected kernel sizes 1 or 3, and even sizes"):
            winograd_convolution(jnp.zeros(shape), jnp.zeros(kernel))


def program(x, kernel, padding, stride, platform):
    bias = jax.ShapeDtypeStruct(kernel.shape[-1:], x.dtype)
    convolve = partial(ops.conv2d, stride=stride, padding=padding) if len(x.shape) == 4 else ops.temporal_conv
    text = jax.jit(convolve).trace(x, kernel, bias).lower(lowering_platforms=(platform,)).as_text()
    return text.count("stablehlo.dot_general"), text.count("stablehlo.convolution")


C = WINOGRAD_MIN_CHANNELS


@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "stride", "dtype", "platform", "expected"),
    [
        ((1, 4, 4, C), (3, 3, C, C), ((1, 1), (1, 1)), 1, "float32", "cpu", (16, 0)),
        ((1, 4, 4, 4, 2 * C), (3, 1, 1, 2 * C, C), ((1, 1), (0, 0), (0, 0)), 1, "float32", "cpu", (4, 0)),
        ((1, 4, 4, C), (3, 3, C, C), ((1, 1), (1, 1)), 1, "float32", "tpu", (0, 1)),
        ((1, 4, 4, C), (3, 3, C, C), ((1, 1), (1, 1)), 1, "bfloat16", "cpu", (0, 1)),
        ((1, 4, 4, C), (3, 3, C, C), ((1, 1), (1, 1)), 2, "float32", "cpu", (0, 1)),
        ((1, 4, 4, C), (3, 3, C, C), ((0, 1), (0, 1)), 2, "float32", "cpu", (0, 1)),
        ((1, 5, 4, C), (3, 3, C, C), ((1, 1), (1, 1)), 1, "float32", "cpu", (0, 1)),
        ((1, 4, 4, C), (3, 3, C, C // 2), ((1, 1), (1, 1)), 1, "float32", "cpu", (0, 1)),
    ],
)
def test_used_where_it_fits(shape, kernel, padding, stride, dtype, platform, expected):
    x, weights = (jax.ShapeDtypeStruct(size, dtype) for size in (shape, kernel))
    assert program(x, weights, padding, stride, platform) == expected


@pytest.mark.parametrize(
    ("shape", "kernel", "cache_entries"),
    [
        ((1, 4, 4, C), (3, 3, C, C), None),
        ((1, 64, 64, 8), (3, 3, 8, 12), None),
        ((2, 4, 4, 4, 8), (3, 1, 1, 8, 12), None),
        ((6, 8, 8, 8), (3, 3, 8, 12), 4000),
    ],
    ids=["F(2, 3)", "F(4, 3)", "over frames", "an image at a time"],
)
def test_gradients_are_those_of_the_direct_convolution(shape, kernel, cache_entries, monkeypatch):
    rng = np.random.default_rng(1)
    x, weights = rng.normal(size=shape).astype(np.float32), rng.normal(size=kernel).astype(np.float32)
    numbers = IMAGES if len(shape) == 4 else VIDEOS
    padding = tuple(((size - 1) // 2,) * 2 for size in kernel[:-2])
    if cache_entries is not None:
        monkeypatch.setattr(winograd, "CACHE_ENTRIES", cache_entries)
        assert winograd._images_at_once(6, 16 * 4 * 4 * 8, 16 * 8 * 12) == 1

    def direct(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1,) * len(padding), padding, dimension_numbers=numbers)

    ours = jax.jit(jax.grad(lambda *inputs: jnp.sum(jnp.sin(winograd_convolution(*inputs))), (0, 1)))(x, weights)
    theirs = jax.jit(jax.grad(lambda *inputs: jnp.sum(jnp.sin(direct(*inputs))), (0, 1)))(x, weights)
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
