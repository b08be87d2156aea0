"""Attention against loops over the softmax formula in double precision, and the properties of its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vpp_jax.functional import PureModule
from vpp_jax.models import attention
from vpp_jax.models.attention import Attention, FusedAttention, attend

RNG = np.random.default_rng(0)
Q, K, V = (RNG.standard_normal((2, n, 6)).astype(np.float32) for n in (5, 7, 7))


def reference(q, k, v, heads, visible):
    """One query, head and batch element at a time; `visible(b, i)` are the keys that query i may see."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    width, out = q.shape[-1] // heads, np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(q.shape[1]):
                keys = visible(b, i)
                weights = np.exp(k[b, keys, part] @ q[b, i, part] / np.sqrt(width))
                out[b, i, part] = weights @ v[b, keys, part] / weights.sum()
    return out


def test_attend_is_softmax_attention():
    np.testing.assert_allclose(attend(Q, K, V, heads=3), reference(Q, K, V, 3, lambda b, i: np.arange(7)), atol=1e-5)


def test_causal_is_aligned_at_the_top_left():
    got = attend(Q, K, V, heads=2, causal=True)
    np.testing.assert_allclose(got, reference(Q, K, V, 2, lambda b, i: np.arange(i + 1)), atol=1e-5)
    changed = V.copy()
    changed[:, 5:] += 10  # later than the last of five queries
    np.testing.assert_array_equal(attend(Q, K, changed, heads=2, causal=True), got)


def test_mask_hides_keys_alone_and_with_causality():
    mask = RNG.random((2, 7)) < 0.5
    mask[:, 0] = True
    got = attend(Q, K, V, heads=2, mask=jnp.asarray(mask)[:, None])
    np.testing.assert_allclose(got, reference(Q, K, V, 2, lambda b, i: np.flatnonzero(mask[b])), atol=1e-5)
    got = attend(Q, K, V, heads=2, causal=True, mask=jnp.asarray(mask)[:, None])
    np.testing.assert_allclose(got, reference(Q, K, V, 2, lambda b, i: np.flatnonzero(mask[b, : i + 1])), atol=1e-5)


def test_dropout_of_weights_needs_a_key_and_has_the_right_mean():
    plain = attend(Q, K, V, heads=2)
    np.testing.assert_array_equal(attend(Q, K, V, heads=2, dropout_rate=0.3), plain)
    keys = jax.random.split(jax.random.key(0), 2000)
    dropped = jax.vmap(lambda key: attend(Q, K, V, heads=2, dropout_rate=0.3, key=key))(keys)
    assert float(jnp.std(dropped, axis=0).min()) > 0.01
    np.testing.assert_allclose(dropped.mean(0), plain, atol=0.08)


def test_attention_names_biases_and_widths():
    pure = PureModule.of(lambda rngs: Attention(6, heads=2, head_dim=4, context_dim=3, rngs=rngs))
    shapes = {name: spec.shape for name, spec in pure.abstract.items()}
    assert shapes == {
        "to_q.kernel": (6, 8),
        "to_k.kernel": (3, 8),
        "to_v.kernel": (3, 8),
        "to_out.0.kernel": (8, 6),
        "to_out.0.bias": (6,),
    }
    names = ("query", "key", "value", "c_proj")
    pure = PureModule.of(lambda rngs: Attention(6, heads=2, qkv_bias=True, out_bias=False, names=names, rngs=rngs))
    assert {name for name in pure.abstract if name.endswith("bias")} == {"query.bias", "key.bias", "value.bias"}
    with pytest.raises(ValueError, match="heads"):
        Attention(6, heads=4, rngs=nnx.Rngs(0))


def test_fused_projection_equals_separate_ones():
    fused, separate = FusedAttention(6, heads=2, rngs=nnx.Rngs(0)), Attention(6, heads=2, qkv_bias=True, rngs=nnx.Rngs(1))
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        getattr(separate, name).kernel[...] = fused.qkv.kernel[...][:, 6 * i : 6 * i + 6]
    separate.to_out[0].kernel[...] = fused.proj.kernel[...]
    np.testing.assert_allclose(fused(jnp.asarray(Q)), separate(jnp.asarray(Q)), atol=1e-6)


def test_softmax_in_float32_for_bfloat16_inputs():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (Q, K, V))
    got = attend(q, k, v, heads=2)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), attend(Q, K, V, heads=2), atol=0.05)


def test_long_sequences_example_by_example_are_the_same(monkeypatch):
    """The form for CPU against the one for accelerators, values and gradients."""
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((3, 2, 16, 8)).astype(np.float32) for _ in range(3))

    def value_and_gradients(limit):
        monkeypatch.setattr(attention, "MAP_FROM", limit)
        loss = jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(jnp.sin(attend(*inputs, heads=2))), (0, 1, 2)))
        assert ("while" in loss.lower(q, k, v).as_text()) == (limit == 256)
        return jax.tree.leaves(loss(q, k, v))

    for mapped, whole in zip(value_and_gradients(256), value_and_gradients(257), strict=True):
        np.testing.assert_allclose(mapped, whole, atol=1e-5)


def test_few_context_tokens_are_attended_without_queries():
    """The projections moved to the context against the plain order: values, and gradients of every parameter."""
    rng = np.random.default_rng(4)
    x, context = rng.standard_normal((2, 9, 16)).astype(np.float32), rng.standard_normal((2, 5, 12)).astype(np.float32)
    pure = PureModule.of(lambda rngs: Attention(16, heads=2, context_dim=12, qkv_bias=True, rngs=rngs))
    params = {name: value + 0.1 for name, value in pure.init(jax.random.key(0)).items()}
    assert context.shape[1] < 16 // 2

    def plain(params):
        module = pure.bind(params)
        return module.output(attend(*module.project(x, context), heads=2))

    np.testing.assert_allclose(pure.bind(params)(x, context), plain(params), atol=1e-5)
    ours, theirs = (
        jax.jit(jax.grad(lambda params, function=function: jnp.sum(jnp.sin(function(params)))))(params)
        for function in (lambda params: pure.bind(params)(x, context), plain)
    )
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-4, err_msg=name)
