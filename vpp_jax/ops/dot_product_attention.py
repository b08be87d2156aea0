"""Scaled dot-product attention (Vaswani et al. 2017) with heads, with and without projections.

The softmax runs in float32 at least, whatever the compute type. Kernels: long self-attention runs one example at a time on CPU, as flash
attention on TPU (`ops.flash`) and in cuDNN on NVIDIA GPUs (`ops.cudnn`). Cross-attention with few tokens on one side multiplies its
matrices in another order, on every platform.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from vpp_jax.ops.cudnn import cudnn_attention, cudnn_fits
from vpp_jax.ops.dense import Affine, linear, split_heads
from vpp_jax.ops.elementwise import dropout
from vpp_jax.ops.flash import flash_attention, flash_fits
from vpp_jax.ops.precision import exact

MAPPED_MIN_SCORES = 512 * 512  # per head; from this size on the scores of a batch do not fit in the caches of a CPU
FLASH_MIN_TOKENS = 256  # with fewer tokens the scores are small compared with the queries


class Projections(NamedTuple):
    """Weights of multi-head attention; the outputs of query, key and value are the concatenated heads."""

    query: Affine
    key: Affine
    value: Affine
    output: Affine


def multi_head_attention(
    x: Float[Array, "*b n c"],
    context: Float[Array, "*b m d"] | None,
    projections: Projections,
    *,
    heads: int,
    axis: int = -2,
    causal: bool = False,
    mask: Bool[Array, "*#b #n m"] | None = None,
    dropout_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*b n o"]:
    """output(attention(query(x), key(context), value(context))); context None: x itself.

    axis: the axis of x whose positions attend to each other, for self-attention of x with several (videos: over time or over space).
    causal, mask, dropout_rate, key: as in `attention`.
    """
    if context is not None and mask is None and key is None and not causal:
        queries, keys, head_dim = x.shape[-2], context.shape[-2], projections.query.kernel.shape[-1] // heads
        if keys < head_dim and keys <= queries:
            return _absorbed_cross_attention(x, context, projections, heads)
        if queries < head_dim and queries < keys:
            return _absorbed_query_attention(x, context, projections, heads)
    source = x if context is None else context
    q, k, v = linear(x, projections.query), linear(source, projections.key), linear(source, projections.value)
    q, k, v = (y.swapaxes(axis, -2) for y in (q, k, v))
    out = attention(q, k, v, heads=heads, causal=causal, mask=mask, dropout_rate=dropout_rate, key=key)
    return linear(out.swapaxes(axis, -2), projections.output)


def attention(
    q: Float[Array, "*b n c"],
    k: Float[Array, "*b m c"],
    v: Float[Array, "*b m d"],
    *,
    heads: int,
    causal: bool = False,
    mask: Bool[Array, "*#b #n m"] | None = None,
    dropout_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*b n d"]:
    """softmax(q kᵀ/√(c/heads)) v per head; heads are equal slices of the last axis.

    causal: query i sees keys 0…i, aligned at the top left also when n ≠ m (PyTorch's `is_causal`).
    mask: True where a key may be seen, the same for all heads. Every query needs at least one visible key.
    dropout_rate: applied to the attention weights when `key` is given.
    """
    n, m = q.shape[-2], k.shape[-2]
    allowed = None if mask is None else mask[..., None, :, :]
    if causal:
        triangle = jnp.arange(m) <= jnp.arange(n)[:, None]
        allowed = triangle if allowed is None else allowed & triangle
    kernels = {}
    if allowed is None and key is None and q.ndim > 2 and q.shape[:-2] == k.shape[:-2]:
        if n * m >= MAPPED_MIN_SCORES:
            kernels["cpu"] = partial(_mapped_attention, heads)
        if n >= FLASH_MIN_TOKENS and q.dtype == jnp.bfloat16:
            if flash_fits(n, m, q.shape[-1] // heads):
                kernels["tpu"] = partial(flash_attention, heads)
            if cudnn_fits(q, k, v, heads):
                kernels["cuda"] = partial(cudnn_attention, heads)
    if kernels:
        return lax.platform_dependent(q, k, v, **kernels, default=partial(_plain_attention, heads))
    return _plain_attention(heads, q, k, v, allowed, dropout_rate, key)


def _plain_attention(
    heads: int,
    q: Float[Array, "*b n c"],
    k: Float[Array, "*b m c"],
    v: Float[Array, "*b m d"],
    allowed: Bool[Array, "... #n m"] | None = None,
    dropout_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*b n d"]:
    """The weights are normalised after the product with v, which is the smaller array."""
    q = q / math.sqrt(q.shape[-1] // heads)
    q, k, v = (split_heads(x, heads).swapaxes(-2, -3) for x in (q, k, v))
    scores = _einsum("...nc,...mc->...nm", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    total = jnp.sum(weights, -1, keepdims=True)
    weights = dropout(weights, dropout_rate, key).astype(v.dtype)
    out = _einsum("...nm,...md->...nd", weights, v, preferred_element_type=total.dtype) / total
    out = out.astype(v.dtype).swapaxes(-2, -3)
    return out.reshape(*out.shape[:-2], -1)


def _einsum(subscripts: str, *arrays: jax.Array, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    return jnp.einsum(subscripts, *arrays, preferred_element_type=preferred_element_type, precision=exact(arrays[0].dtype))


def _mapped_attention(
    heads: int, q: Float[Array, "*b n c"], k: Float[Array, "*b m c"], v: Float[Array, "*b m d"]
) -> Float[Array, "*b n d"]:
    """`_plain_attention` mapped over the examples: faster on CPU (`benchmarks/cpu_forms.py`)."""
    examples = tuple(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    return lax.map(lambda example: _plain_attention(heads, *example), examples).reshape(*q.shape[:-1], v.shape[-1])


def _absorbed_cross_attention(
    x: Float[Array, "*b n c"], context: Float[Array, "*b m d"], projections: Projections, heads: int
) -> Float[Array, "*b n o"]:
    """For fewer context tokens than a head is wide, e.g. many pixels and one instruction: no query is computed.

    With q_h = W_q,h x the score of key k is (W_q,hᵀ k)·x, and the output is Σ a (W_o,h v): the projections of the many queries are
    applied to the few keys and values. A query then costs heads·m·(c + o) multiplications instead of heads·head_dim·(c + o + 2 m).
    """
    query, output = projections.query, projections.output
    head_dim = query.kernel.shape[-1] // heads
    keys = split_heads(linear(context, projections.key) / math.sqrt(head_dim), heads)
    values = split_heads(linear(context, projections.value), heads)
    maps = _einsum("chd,...mhd->...chm", split_heads(query.kernel, heads), keys)
    scores = _einsum("...nc,...chm->...nhm", x, maps, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    if query.bias is not None:
        scores = scores + _einsum("hd,...mhd->...hm", split_heads(query.bias, heads), keys)[..., None, :, :]
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    kernel = output.kernel.reshape(heads, head_dim, -1)
    out = _einsum("...nhm,...hmo->...no", weights, _einsum("...mhd,hdo->...hmo", values, kernel))
    return out if output.bias is None else out + output.bias


def _absorbed_query_attention(
    x: Float[Array, "*b n c"], context: Float[Array, "*b m d"], projections: Projections, heads: int
) -> Float[Array, "*b n o"]:
    """For fewer queries than a head is wide, e.g. a few latents and the features of a frame: no key or value is computed.

    With q_h = W_q,h x the score of a context token y is q_h·(W_k,h y) = (W_k,hᵀ q_h)·y, and the result is W_v,h Σ a y: the key projection
    is applied to the queries and the value projection to the weighted mean. What remains is attention of heads·n queries to the context
    itself, shared by all heads. That costs n·heads·d per token instead of heads·head_dim·d, and stores no keys and values for the
    gradient. A bias of the keys adds the same to all scores of a query, which softmax ignores.
    """
    dim, head_dim = context.shape[-1], projections.query.kernel.shape[-1] // heads
    key_maps, value_maps = (split_heads(weights.kernel, heads) for weights in (projections.key, projections.value))
    queries = split_heads(linear(x, projections.query), heads)
    # `attention` divides by the root of its input width, here dim; the scale is that of head_dim
    queries = _einsum("...nhc,dhc->...nhd", queries, key_maps) * math.sqrt(dim / head_dim)
    pooled = attention(queries.reshape(*x.shape[:-2], -1, dim), context, context, heads=1)
    values = _einsum("...nhd,dhc->...nhc", pooled.reshape(*x.shape[:-1], heads, dim), value_maps)
    values = values.reshape(*x.shape[:-1], -1)
    if projections.value.bias is not None:
        values = values + projections.value.bias
    return linear(values, projections.output)
