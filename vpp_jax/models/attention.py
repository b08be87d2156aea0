"""One attention for every model: spatial, temporal, cross, perceiver and causal.

    attend(q, k, v, heads=…)   scaled dot-product attention on projected arrays; causal, masked, with dropout on the weights
    Attention                  separate projections of a query and an optional context; names, biases and widths are options
    FusedAttention             self-attention with one `qkv` projection and `proj`

The softmax runs in float32 at least, whatever the compute type.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from vpp_jax.models.layers import Linear, cast_and_gather, dropout
from vpp_jax.ops.flash import flash_attend, flash_fits


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
    n, m = q.shape[-2], k.shape[-2]
    allowed = None if mask is None else mask[..., None, :, :]
    if causal:
        triangle = jnp.arange(m) <= jnp.arange(n)[:, None]
        allowed = triangle if allowed is None else allowed & triangle
    forms = {}
    if allowed is None and key is None and q.ndim > 2 and q.shape[:-2] == k.shape[:-2]:
        if n * m >= MAP_FROM:
            forms["cpu"] = partial(_mapped_attention, heads)
        if n >= FLASH_FROM and q.dtype == jnp.bfloat16 and flash_fits(n, m, q.shape[-1] // heads):
            forms["tpu"] = partial(flash_attend, heads)
    if forms:
        return lax.platform_dependent(q, k, v, **forms, default=partial(_attend, heads))
    return _attend(heads, q, k, v, allowed, dropout_rate, key)


MAP_FROM = 512 * 512  # scores per head; from here on those of a whole batch leave the caches of a processor
FLASH_FROM = 256  # tokens; with fewer the scores are small beside the queries


def _attend(
    heads: int,
    q: Float[Array, "*b n c"],
    k: Float[Array, "*b m c"],
    v: Float[Array, "*b m d"],
    allowed: Bool[Array, "*#b 1 #n m"] | None = None,
    dropout_rate: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "*b n d"]:
    """The weights are normalised after the product with v, which is smaller than they are."""
    q = q / math.sqrt(q.shape[-1] // heads)
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3) for x in (q, k, v))
    scores = jnp.einsum("...nc,...mc->...nm", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    if allowed is not None:
        scores = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - lax.stop_gradient(jnp.max(scores, -1, keepdims=True)))
    total = jnp.sum(weights, -1, keepdims=True)
    weights = dropout(weights, dropout_rate, key).astype(v.dtype)
    out = jnp.einsum("...nm,...md->...nd", weights, v, preferred_element_type=total.dtype) / total
    out = out.astype(v.dtype).swapaxes(-2, -3)
    return out.reshape(*out.shape[:-2], -1)


def _mapped_attention(
    heads: int, q: Float[Array, "*b n c"], k: Float[Array, "*b m c"], v: Float[Array, "*b m d"]
) -> Float[Array, "*b n d"]:
    """`_attend`, one example after the other: faster on CPU (`benchmarks/cpu_forms.py`)."""
    examples = tuple(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    return lax.map(lambda example: _attend(heads, *example), examples).reshape(*q.shape[:-1], v.shape[-1])


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
        self.head_dim = channels // heads if head_dim is None else head_dim
        inner = heads * self.head_dim
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
        return self._out(x)

    @property
    def _out(self) -> Linear:
        name, dot, _ = self.names[3].partition(".")
        return getattr(self, name)[0] if dot else getattr(self, name)

    def _absorbed_cross_attention(self, x: Float[Array, "*b n c"], context: Float[Array, "*b m d"]) -> Float[Array, "*b n o"]:
        """The same for fewer context tokens than a head is wide, as of many pixels to one sentence: no query is ever made.

        With q_h = W_q,h x the score of key k is (W_q,hᵀ k)·x, and the output is Σ a (W_o,h v): the projections of the many queries move to
        the few keys and values. A query then costs heads·m·(c + o) multiplications instead of heads·head_dim·(c + o + 2 m).
        """
        to_q, to_k, to_v = (getattr(self, name) for name in self.names[:3])
        per_head = lambda x: x.reshape(*x.shape[:-1], self.heads, self.head_dim)  # noqa: E731
        keys, values = per_head(to_k(context) / math.sqrt(self.head_dim)), per_head(to_v(context))
        maps = jnp.einsum("chd,...mhd->...chm", per_head(cast_and_gather(to_q.kernel, x.dtype)), keys)
        scores = jnp.einsum("...nc,...chm->...nhm", x, maps, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        if to_q.bias is not None:
            scores = scores + jnp.einsum("hd,...mhd->...hm", per_head(to_q.bias[...].astype(x.dtype)), keys)[..., None, :, :]
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        kernel = cast_and_gather(self._out.kernel, x.dtype).reshape(self.heads, self.head_dim, -1)
        out = jnp.einsum("...nhm,...hmo->...no", weights, jnp.einsum("...mhd,hdo->...hmo", values, kernel))
        return out if self._out.bias is None else out + self._out.bias[...].astype(x.dtype)

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        context: Float[Array, "*b m d"] | None = None,
        *,
        mask: Bool[Array, "*#b #n m"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*b n o"]:
        if context is not None and mask is None and key is None and not self.causal and context.shape[-2] < self.head_dim:
            return self._absorbed_cross_attention(x, context)
        q, k, v = self.project(x, x if context is None else context)
        return self.output(attend(q, k, v, heads=self.heads, causal=self.causal, mask=mask, dropout_rate=self.dropout_rate, key=key))


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
