"""Layers against flax, lax and closed forms: fast forms must be the same function as the plain ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from vpp_jax import ops
from vpp_jax.functional import PureModule
from vpp_jax.models.initialization import InitRngs
from vpp_jax.models.layers import (
    GEGLU,
    AlphaBlender,
    Conv2d,
    FeedForward,
    GroupNorm,
    LayerNorm,
    TemporalConv,
    check_dtype,
    sinusoidal_embedding,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def test_sinusoidal_embedding_closed_form():
    values, dim = np.array([0.0, 1.637, 127.0]), 8
    angles = values[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(values), dim), np.hstack([np.cos(angles), np.sin(angles)]), atol=2e-5)
    angles = values[:, None] * 10_000.0 ** (-np.arange(4) / 3)
    got = sinusoidal_embedding(jnp.asarray(values), dim, sine_first=True, include_last=True)
    np.testing.assert_allclose(got, np.hstack([np.sin(angles), np.cos(angles)]), atol=2e-5)
    with pytest.raises(ValueError, match="even"):
        sinusoidal_embedding(jnp.ones(2), 7)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101)
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(ops.gelu(jnp.asarray(x, jnp.float32)), expected, atol=1e-6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((200, 200))
    assert ops.dropout(x, 0.5, None) is x
    dropped = np.asarray(ops.dropout(x, 0.3, jax.random.key(0)))
    assert set(np.unique(dropped)) == {np.float32(0.0), np.float32(1 / 0.7)}
    assert abs(dropped.mean() - 1) < 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 2), (5, 4)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, None), (1, 1, None), (3, 2, 1), (3, 2, ((0, 1), (0, 1)))])
def test_conv2d_equals_lax(size, kernel, stride, padding):
    conv = Conv2d(3, 5, size=kernel, stride=stride, padding=padding, rngs=nnx.Rngs(0))
    conv.bias[...] = normal(5)
    x = normal(2, *size, 3)
    sides = padding if isinstance(padding, tuple) else ((kernel // 2,) * 2,) * 2
    plain = lax.conv_general_dilated(x, conv.kernel[...], (stride,) * 2, sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(conv(x), plain + conv.bias[...], atol=1e-5)


@pytest.mark.parametrize("threshold", [0, 256])
@pytest.mark.parametrize("frames", [1, 4])
def test_temporal_conv_equals_lax_in_both_forms(monkeypatch, threshold, frames):
    monkeypatch.setattr("vpp_jax.ops.convolution.TEMPORAL_MATMUL_BELOW", threshold)
    pure = PureModule.of(lambda rngs: TemporalConv(3, 5, rngs=rngs))
    x, kernel, bias, cotangent = normal(2, frames, 2, 3, 3), normal(3, 1, 1, 3, 5), normal(5), normal(2, frames, 2, 3, 5)

    def plain(x, kernel):
        sides = ((1, 1), (0, 0), (0, 0))
        return lax.conv_general_dilated(x, kernel, (1, 1, 1), sides, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")) + bias

    def ours(x, kernel):
        return pure.bind({"kernel": kernel, "bias": bias})(x)

    (value, pull), (expected, pull_plain) = jax.vjp(ours, x, kernel), jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    for got, want in zip(pull(cotangent), pull_plain(cotangent), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 5, 12), (2, 3, 4, 5, 12)])
def test_group_norm_equals_flax_with_gradient(shape):
    scale, bias, x, cotangent = normal(12), normal(12), 3 * normal(*shape) + 1, normal(*shape)

    def function(build):
        pure = PureModule.of(build)
        return lambda x, scale, bias: pure.bind({"scale": scale, "bias": bias})(x)

    ours = function(lambda rngs: GroupNorm(12, groups=4, eps=1e-5, rngs=rngs))
    axes = tuple(range(1, len(shape)))
    flax = function(lambda rngs: nnx.GroupNorm(12, 4, epsilon=1e-5, use_fast_variance=False, reduction_axes=axes, rngs=rngs))
    value, pull = jax.vjp(ours, x, scale, bias)
    expected, pull_flax = jax.vjp(flax, x, scale, bias)
    np.testing.assert_allclose(value, expected, atol=2e-5)
    for got, want in zip(pull(cotangent), pull_flax(cotangent), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_group_norm_keeps_precision_in_nearly_constant_groups():
    x = (100 + 1e-2 * RNG.standard_normal((4, 1, 1, 8))).astype(np.float32)  # one pixel, groups of two channels
    wide = x.astype(np.float64).reshape(4, 4, 2)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    got = GroupNorm(8, groups=4, eps=1e-6, rngs=nnx.Rngs(0))(jnp.asarray(x))
    np.testing.assert_allclose(got.reshape(4, 4, 2), expected, atol=1e-4)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="norm_groups"):
        GroupNorm(10, groups=4, rngs=nnx.Rngs(0))


def test_types_of_a_computation():
    for name in ("float32", "bfloat16"):
        check_dtype(name)
    with pytest.raises(ValueError, match="enable_x64"):
        check_dtype("float64")
    with jax.enable_x64(True):
        check_dtype("float64")


@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_norm_equals_flax(use_bias):
    ours = LayerNorm(6, use_bias=use_bias, rngs=nnx.Rngs(0))
    flax = nnx.LayerNorm(6, epsilon=1e-5, use_bias=use_bias, use_fast_variance=False, rngs=nnx.Rngs(0))
    ours.scale[...] = flax.scale[...] = normal(6)
    if use_bias:
        ours.bias[...] = flax.bias[...] = normal(6)
    x = 5 + normal(3, 4, 6)
    np.testing.assert_allclose(ours(x), flax(x), atol=2e-5)


def test_geglu_gates_with_the_second_half():
    module, x = GEGLU(3, 4, rngs=nnx.Rngs(0)), normal(2, 3)
    both = x @ module.proj.kernel[...]
    np.testing.assert_allclose(module(x), both[:, :4] * jax.nn.gelu(both[:, 4:], approximate=False), atol=1e-5)
    assert FeedForward(3, rngs=nnx.Rngs(0)).net[2].kernel[...].shape == (12, 3)


def test_mixing_gate_and_its_reverse():
    spatial, temporal = normal(2, 3), normal(2, 3)
    share = 1 / (1 + math.exp(-0.7))
    gate = AlphaBlender(initial=0.7, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(gate(spatial, temporal), share * spatial + (1 - share) * temporal, atol=1e-6)
    gate = AlphaBlender(initial=0.7, reverse=True, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(gate(spatial, temporal), (1 - share) * spatial + share * temporal, atol=1e-6)


@pytest.mark.parametrize("make", [LayerNorm, lambda c, **kw: GroupNorm(c, groups=2, **kw), lambda c, **kw: Conv2d(c, c, **kw)])
def test_parameters_stay_float32_when_computing_in_bfloat16(make):
    module = make(4, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert module(jnp.ones((1, 3, 3, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} == {jnp.dtype("float32")}


def test_initial_values_are_normal_disjoint_and_reproducible():
    sizes = [(1000, 100), (3, 5), (1000, 250), (600, 1000), (7,)]  # slices, a new block, larger than a block

    def draw(seed: int) -> list[np.ndarray]:
        rngs = InitRngs(seed)
        return [np.asarray(rngs.normal(size)).ravel() for size in sizes]

    first, again, other = draw(0), draw(0), draw(1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    values = np.concatenate(first)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert len(np.unique(values)) > 0.9 * len(values)  # float32 normals collide now and then, a reused block would halve this
    assert not np.intersect1d(first[1], other[1]).size
