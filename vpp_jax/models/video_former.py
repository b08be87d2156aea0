"""Video Former (paper, section 3.3): predictive features of all frames and views -> a few tokens for the policy.

Every frame has its own small set of learnt latent queries. In each layer they attend to the frame's features (spatial
attention) and along time (temporal attention, not in the 2D variant), followed by a feed-forward. The linear variant of the ablation
projects every feature token without pooling. Parameter names are the published ones.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vpp_jax import ops
from vpp_jax.common.config_fields import check_ranges, derived, setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.models.attention import FusedAttention
from vpp_jax.models.initialization import uniform_linears
from vpp_jax.models.layers import MLP, Identity, LayerNorm, Linear, check_dtype, compute_dtype

VARIANTS = ("3d", "2d", "linear")


@dataclass(frozen=True)
class VideoFormerConfig:
    """The Video Former. The defaults are the published CALVIN model: 17,713,536 parameters, 16 x 14 tokens of width 384."""

    variant: str = setting("3d", "'2d' has no temporal attention; 'linear' reads dim, frames and condition_dim alone", choices=VARIANTS)
    dim: int = setting(384, "width of the tokens; feed-forward layers are 4 x dim wide", at_least=1)
    depth: int = setting(6, "layers", at_least=1)
    heads: int = setting(8, "attention heads; temporal attention splits dim into as many", at_least=1)
    dim_head: int = setting(64, "width of a head of spatial attention", at_least=1)
    frames: int = derived(16, "frames of the features", "model.frames")
    tokens_per_frame: int = setting(14, "latent queries per frame", at_least=1)
    condition_dim: int = derived(2560, "channels of the features", "model.tap_blocks and model.unet.block_out_channels")
    dtype: str = compute_dtype()

    def __post_init__(self):
        check_ranges(self)
        if self.variant == "3d" and self.dim % self.heads:
            raise ConfigError(f"dim is {self.dim}, expected a multiple of heads = {self.heads} for temporal attention")
        check_dtype(self.dtype)


class VideoFormer(nnx.Module):
    """Features [b t n c] -> tokens [b t·tokens_per_frame dim], frame-major; linear variant: [b t·n dim]."""

    def __init__(self, config: VideoFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dim, config.dtype
        if config.variant == "linear":
            self.proj = Linear(config.condition_dim, dim, dtype=dtype, rngs=rngs)
        else:
            self.latents = nnx.Param(jax.random.normal(rngs.params(), (config.frames, config.tokens_per_frame, dim)))
            self.time_pos_emb = nnx.Param(jax.random.normal(rngs.params(), (config.frames, 1, dim)))
            # "goal_emb" is the published name; it embeds the features
            self.goal_emb = MLP(config.condition_dim, 2 * dim, dim, names=("0", "2"), dtype=dtype, rngs=rngs)
            self.layers = nnx.List([self._layer(config, rngs) for _ in range(config.depth)])
            self.norm = LayerNorm(dim, dtype=dtype, rngs=rngs)
        uniform_linears(self, rngs)

    @staticmethod
    def _layer(config: VideoFormerConfig, rngs: nnx.Rngs) -> nnx.List:
        dim, dtype = config.dim, config.dtype
        spatial = PerceiverAttention(dim, heads=config.heads, dim_head=config.dim_head, dtype=dtype, rngs=rngs)
        temporal = [FusedAttention(dim, heads=config.heads, dtype=dtype, rngs=rngs)] if config.variant == "3d" else []
        feed_forward = nnx.List(
            [
                LayerNorm(dim, dtype=dtype, rngs=rngs),
                Linear(dim, 4 * dim, use_bias=False, dtype=dtype, rngs=rngs),
                Identity(),
                Linear(4 * dim, dim, use_bias=False, dtype=dtype, rngs=rngs),
            ]
        )
        return nnx.List([spatial, *temporal, feed_forward])

    @jax.named_scope("video_former")
    def __call__(self, features: Float[Array, "b t n c"], mask: Bool[Array, "b n"] | None = None) -> Float[Array, "b m d"]:
        """mask: False where a position is of a camera that the robot lacks: it gets no attention. The linear variant cannot do that."""
        config = self.config
        batch, frames, _, channels = features.shape
        if (frames, channels) != (config.frames, config.condition_dim):
            raise ValueError(
                f"video former expects features of {config.frames} frames and {config.condition_dim} channels, got shape {features.shape}"
            )
        if config.variant == "linear":
            if mask is not None:
                raise ValueError("the linear variant of the Video Former has no attention that could leave a camera out")
            return self.proj(features).reshape(batch, -1, config.dim)

        media = self.goal_emb(features) + self.time_pos_emb[...].astype(config.dtype)
        tokens = jnp.broadcast_to(self.latents[...].astype(config.dtype), (batch, *self.latents[...].shape))
        for i, layer in enumerate(self.layers):
            with jax.named_scope(f"layers.{i}"):
                tokens = tokens + layer[0](tokens, media, mask)
                if config.variant == "3d":
                    # published without a preceding norm
                    tokens = tokens + layer[1](tokens.swapaxes(1, 2)).swapaxes(1, 2)
                norm, first, _, second = layer[-1]
                tokens = tokens + second(ops.gelu(first(norm(tokens))))
        return self.norm(tokens.reshape(batch, -1, config.dim))


class PerceiverAttention(nnx.Module):
    """Latents [... n d] attend to media [... m d] and to themselves (Flamingo's resampler, Alayrac et al. 2022) -> [... n d]."""

    def __init__(self, dim: int, *, heads: int, dim_head: int, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.heads = heads
        self.norm_media = LayerNorm(dim, dtype=dtype, rngs=rngs)
        self.norm_latents = LayerNorm(dim, dtype=dtype, rngs=rngs)
        inner = heads * dim_head
        self.to_q, self.to_k, self.to_v = (Linear(dim, inner, use_bias=False, dtype=dtype, rngs=rngs) for _ in range(3))
        self.to_out = Linear(inner, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self, latents: Float[Array, "b t n d"], media: Float[Array, "b t m d"], mask: Bool[Array, "b m"] | None = None
    ) -> Float[Array, "b t n d"]:
        """mask: media tokens that may be seen."""
        latents = self.norm_latents(latents)
        context = jnp.concatenate([self.norm_media(media), latents], axis=-2)
        projections = ops.Projections(*(linear.affine() for linear in (self.to_q, self.to_k, self.to_v, self.to_out)))
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones((len(mask), latents.shape[-2]), bool)], axis=-1)[:, None, None]
        return ops.multi_head_attention(latents, context, projections, heads=self.heads, mask=mask)
