"""One attention for every model: spatial, temporal, cross, perceiver and causal.

    attend(q, k, v, heads=…)   scaled dot-product attention on projected arrays; causal, masked, with dropout on the weights
    Attention                  separate projections of a query and an optional context; names, biases and widths are options
    FusedAttention             self-attention with one `qkv` projection and `proj`

The softmax runs in float32 whatever the compute type.
"""

import math

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from vpp_jax.models.layers import Linear, dropout


def attend(
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
    n, m, width = q.shape[-2], k.shape[-2], q.shape[-1] // heads
    allowed = None if mask is None else mask[..., None, :, :]
    if causal:
        triangle = jnp.arange(m) <= jnp.arange(n)[:, None]
        allowed = triangle if allowed is None else allowed & triangle
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3) for x in (q / math.sqrt(width), k, v))
    if allowed is None and key is None and n * m >= MAP_FROM and q.ndim > 3 and q.shape[:-3] == k.shape[:-3]:
        out = lax.platform_dependent(q, k, v, cpu=_attend_one_by_one, default=_attend)
    else:
        out = _attend(q, k, v, allowed, dropout_rate, key)
    out = out.swapaxes(-2, -3)
    return out.reshape(*out.shape[:-2], -1)


MAP_FROM = 128 * 128  # scores per head; from here on those of a whole batch leave the processor's caches


def _attend(
    q: Float[Array, "*b h n c"],
    k: Float[Array, "*b h m c"],
    v: Float[Array, "*b h m d"],
    allowed: Bool[Array, "*#b 1 #n m"] | None = None,
    dropout_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*b h n d"]:
    """Heads in front; q already scaled. The weights are normalised after the product with v, which is smaller than they are."""
    scores = jnp.einsum("...nc,...mc->...nm", q, k, preferred_element_type=jnp.float32)
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    total = jnp.sum(weights, -1, keepdims=True)
    out = jnp.einsum("...nm,...md->...nd", dropout(weights, dropout_rate, key).astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total).astype(v.dtype)


def _attend_one_by_one(q: Float[Array, "*b h n c"], k: Float[Array, "*b h m c"], v: Float[Array, "*b h m d"]) -> Float[Array, "*b h n d"]:
    """`_attend`, one example after the other: four times faster on CPU at 1024 tokens (benchmarks/attention.py)."""
    flat = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v)]
    out = lax.map(lambda one: _attend(*one), tuple(flat))
    return out.reshape(*q.shape[:-1], v.shape[-1])


class Attention(nnx.Module):
    """Multi-head attention of x [... n c] to a context [... m d] (default: x itself) -> [... n o].

    names: attributes of the query, key, value and output projections; a trailing `.0` puts the output into a one-entry list, which is
    how Stable Diffusion's state dicts spell it. head_dim · heads may differ from the width of x.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        head_dim: int | None = None,
        context_dim: int | None = None,
        outputs: int | None = None,
        qkv_bias: bool = False,
        out_bias: bool = True,
        causal: bool = False,
        dropout_rate: float = 0.0,
        names: tuple[str, str, str, str] = ("to_q", "to_k", "to_v", "to_out.0"),
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        if head_dim is None and channels % heads:
            raise ValueError(f"{channels} channels cannot be divided into {heads} attention heads")
        inner = heads * (channels // heads if head_dim is None else head_dim)
        self.heads, self.causal, self.dropout_rate, self.names = heads, causal, dropout_rate, names
        context = channels if context_dim is None else context_dim
        setattr(self, names[0], Linear(channels, inner, use_bias=qkv_bias, dtype=dtype, rngs=rngs))
        setattr(self, names[1], Linear(context, inner, use_bias=qkv_bias, dtype=dtype, rngs=rngs))
        setattr(self, names[2], Linear(context, inner, use_bias=qkv_bias, dtype=dtype, rngs=rngs))
        out = Linear(inner, channels if outputs is None else outputs, use_bias=out_bias, dtype=dtype, rngs=rngs)
        name, dot, _ = names[3].partition(".")
        setattr(self, name, nnx.List([out]) if dot else out)

    def project(self, x: Float[Array, "*b n c"], context: Float[Array, "*b2 m d"]) -> tuple[Array, Array, Array]:
        """Query, key and value before the split into heads."""
        to_q, to_k, to_v = (getattr(self, name) for name in self.names[:3])
        return to_q(x), to_k(context), to_v(context)

    def output(self, x: Float[Array, "*b n i"]) -> Float[Array, "*b n o"]:
        name, dot, _ = self.names[3].partition(".")
        out = getattr(self, name)
        return out[0](x) if dot else out(x)

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        context: Float[Array, "*b m d"] | None = None,
        *,
        mask: Bool[Array, "*#b #n m"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*b n o"]:
        q, k, v = self.project(x, x if context is None else context)
        return self.output(
            attend(q, k, v, heads=self.heads, causal=self.causal, mask=mask, dropout_rate=self.dropout_rate, key=key)
        )


class FusedAttention(nnx.Module):
    """Multi-head self-attention with one projection `qkv` (its thirds are query, key, value) and `proj`: [... n c] -> [... n c]."""

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        qkv_bias: bool = True,
        out_bias: bool = True,
        causal: bool = False,
        dropout_rate: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be divided into {heads} attention heads")
        self.heads, self.causal, self.dropout_rate = heads, causal, dropout_rate
        self.qkv = Linear(channels, 3 * channels, use_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.proj = Linear(channels, channels, use_bias=out_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*b n c"], *, mask: Bool[Array, "*#b #n n"] | None = None, key: Key[Array, ""] | None = None
    ) -> Float[Array, "*b n c"]:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return self.proj(attend(q, k, v, heads=self.heads, causal=self.causal, mask=mask, dropout_rate=self.dropout_rate, key=key))
