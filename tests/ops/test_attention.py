"""Attention against loops over the softmax formula in double precision, the properties of its masks, and its other forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax import ops
from vpp_jax.ops import dot_product_attention

RNG = np.random.default_rng(0)
Q, K, V = (jnp.asarray(RNG.standard_normal((2, n, 6)), jnp.float32) for n in (5, 7, 7))


def reference(q, k, v, heads, visible):
    """One query, head and batch element at a time; `visible(b, i)` are the keys that query i may see."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    width, out = q.shape[-1] // heads, np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(q.shape[1]):
                keys = visible(b, i)
                weights = np.exp(k[b, keys, part] @ q[b, i, part] / np.sqrt(width))
                out[b, i, part] = weights @ v[b, keys, part] / weights.sum()
    return out


def test_attention_is_softmax_attention():
    np.testing.assert_allclose(ops.attention(Q, K, V, heads=3), reference(Q, K, V, 3, lambda b, i: np.arange(7)), atol=1e-5)


def test_causal_is_aligned_at_the_top_left():
    got = ops.attention(Q, K, V, heads=2, causal=True)
    np.testing.assert_allclose(got, reference(Q, K, V, 2, lambda b, i: np.arange(i + 1)), atol=1e-5)
    changed = V.at[:, 5:].add(10)  # later than the last of five queries
    np.testing.assert_array_equal(ops.attention(Q, K, changed, heads=2, causal=True), got)


def test_mask_hides_keys_alone_and_with_causality():
    mask = RNG.random((2, 7)) < 0.5
    mask[:, 0] = True
    got = ops.attention(Q, K, V, heads=2, mask=jnp.asarray(mask)[:, None])
    np.testing.assert_allclose(got, reference(Q, K, V, 2, lambda b, i: np.flatnonzero(mask[b])), atol=1e-5)
    got = ops.attention(Q, K, V, heads=2, causal=True, mask=jnp.asarray(mask)[:, None])
    np.testing.assert_allclose(got, reference(Q, K, V, 2, lambda b, i: np.flatnonzero(mask[b, : i + 1])), atol=1e-5)


def test_dropout_of_weights_needs_a_key_and_has_the_right_mean():
    plain = ops.attention(Q, K, V, heads=2)
    np.testing.assert_array_equal(ops.attention(Q, K, V, heads=2, dropout_rate=0.3), plain)
    keys = jax.random.split(jax.random.key(0), 2000)
    dropped = jax.vmap(lambda key: ops.attention(Q, K, V, heads=2, dropout_rate=0.3, key=key))(keys)
    assert float(jnp.std(dropped, axis=0).min()) > 0.01
    np.testing.assert_allclose(dropped.mean(0), plain, atol=0.08)


def test_softmax_in_float32_for_bfloat16_inputs():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (Q, K, V))
    got = ops.attention(q, k, v, heads=2)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), ops.attention(Q, K, V, heads=2), atol=0.05)


def test_long_sequences_example_by_example_are_the_same(monkeypatch):
    """The form for CPU against the one for accelerators, values and gradients."""
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((3, 2, 16, 8)).astype(np.float32) for _ in range(3))

    def value_and_gradients(limit):
        monkeypatch.setattr(dot_product_attention, "MAPPED_MIN_SCORES", limit)
        loss = jax.jit(jax.value_and_grad(lambda *inputs: jnp.sum(jnp.sin(ops.attention(*inputs, heads=2))), (0, 1, 2)))
        assert ("while" in loss.lower(q, k, v).as_text()) == (limit == 256)
        return jax.tree.leaves(loss(q, k, v))

    for mapped, whole in zip(value_and_gradients(256), value_and_gradients(257), strict=True):
        np.testing.assert_allclose(mapped, whole, atol=1e-5)


def projections(rng, c: int, d: int, inner: int) -> ops.Projections:
    widths = ((c, inner), (d, inner), (d, inner), (inner, c))

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return ops.Projections(*(ops.Affine(draw(i, o) / np.sqrt(i), draw(o)) for i, o in widths))


@pytest.mark.parametrize(("queries", "keys"), [(9, 5), (3, 40), (9, 9)], ids=["few keys", "few queries", "many of both"])
def test_cross_attention_is_the_same_in_every_order_of_its_products(queries, keys):
    """Values, and gradients of every weight, against the order as it is written in the formula; heads are 8 wide."""
    rng = np.random.default_rng(4)
    x, context = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, queries, 16), (2, keys, 12)))
    weights = projections(rng, 16, 12, 16)

    def plain(weights, x, context):
        q, k, v = ops.linear(x, weights.query), ops.linear(context, weights.key), ops.linear(context, weights.value)
        return ops.linear(ops.attention(q, k, v, heads=2), weights.output)

    def ours(weights, x, context):
        return ops.multi_head_attention(x, context, weights, heads=2)

    same_program = str(jax.make_jaxpr(ours)(weights, x, context)) == str(jax.make_jaxpr(plain)(weights, x, context))
    assert same_program == (queries == keys == 9)
    np.testing.assert_allclose(ours(weights, x, context), plain(weights, x, context), atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda *args, function=function: jnp.sum(jnp.sin(function(*args))), (0, 1, 2)))(weights, x, context)
        for function in (ours, plain)
    ]
    for got, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_attention_over_another_axis():
    """Of a video, over the frames of each position, as if these were the batch."""
    rng = np.random.default_rng(5)
    x, weights = jnp.asarray(rng.standard_normal((2, 3, 4, 8)), jnp.float32), projections(rng, 8, 8, 8)
    expected = ops.multi_head_attention(x.swapaxes(1, 2), None, weights, heads=2).swapaxes(1, 2)
    np.testing.assert_allclose(ops.multi_head_attention(x, None, weights, heads=2, axis=1), expected, atol=1e-6)
