"""The attention modules of every model: spatial, temporal, cross, perceiver and causal.

Attention        separate projections of a query and an optional context; names, biases and widths are options
FusedAttention   self-attention with one `qkv` projection and `proj`
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from vpp_jax import ops
from vpp_jax.models.layers import Linear


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
        inner = channels if head_dim is None else heads * head_dim
        self.heads, self.causal, self.dropout_rate, self.names, self.dtype = heads, causal, dropout_rate, names, dtype
        context = channels if context_dim is None else context_dim
        setattr(self, names[0], Linear(channels, inner, use_bias=qkv_bias, dtype=dtype, rngs=rngs))
        setattr(self, names[1], Linear(context, inner, use_bias=qkv_bias, dtype=dtype, rngs=rngs))
        setattr(self, names[2], Linear(context, inner, use_bias=qkv_bias, dtype=dtype, rngs=rngs))
        out = Linear(inner, channels if outputs is None else outputs, use_bias=out_bias, dtype=dtype, rngs=rngs)
        name, dot, _ = names[3].partition(".")
        setattr(self, name, nnx.List([out]) if dot else out)

    def projections(self) -> ops.Projections:
        name, dot, _ = self.names[3].partition(".")
        output = getattr(self, name)[0] if dot else getattr(self, name)
        query, key, value = (getattr(self, name).affine() for name in self.names[:3])
        return ops.Projections(query, key, value, output.affine())

    def __call__(
        self,
        x: Float[Array, "*b n c"],
        context: Float[Array, "*b m d"] | None = None,
        *,
        axis: int = -2,
        mask: Bool[Array, "*#b #n m"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "*b n o"]:
        """axis: whose positions attend to each other, without a context. mask: True where a key may be seen. `key` enables dropout."""
        return ops.multi_head_attention(
            x.astype(self.dtype),
            None if context is None else context.astype(self.dtype),
            self.projections(),
            heads=self.heads,
            axis=axis,
            causal=self.causal,
            mask=mask,
            dropout_rate=self.dropout_rate,
            key=key,
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
        return self.proj(ops.attention(q, k, v, heads=self.heads, causal=self.causal, mask=mask, dropout_rate=self.dropout_rate, key=key))
