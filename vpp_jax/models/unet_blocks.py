"""Blocks of Stable Video Diffusion's U-Net: residual blocks and transformers over space and time, and the levels built from them.

Every array between blocks is a video [b t h w c]. Attribute names are those of the published state dict. The text has no frame axis:
both cross-attentions (per frame, and the temporal one, which uses the text of frame 0) attend to the same tokens, so queries of all frames
are computed in one product instead of one per frame or per pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vpp_jax import ops
from vpp_jax.models.attention import Attention
from vpp_jax.models.layers import (
    AlphaBlender,
    Conv2d,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    TemporalConv,
    TimestepEmbedding,
    sinusoidal_embedding,
)

Video = Float[Array, "b t h w c"]
OtherVideo = Float[Array, "b t _ _ _"]  # of other sizes or channels
Text = Float[Array, "b l d"]


# What the backward pass recomputes instead of storing, from nothing to (almost) everything.
REMAT = {
    "none": "nothing",
    "attention": "the weights of the spatial self-attention",
    "blocks": "each residual block and each transformer, from its input",
    "everything": "each level from its input, and within it each block",
}


@dataclass(frozen=True)
class BlockShape:
    """Settings of all blocks of one U-Net: widths of time embedding and text, groups of GroupNorm, compute type, a key of `REMAT`."""

    time_dim: int
    text_dim: int
    groups: int
    dtype: DTypeLike
    remat: str = "none"

    def call(self, block: nnx.Module, *args):
        """block(*args), a residual block or a transformer, under the policy."""
        return remat(block, *args) if self.remat in ("blocks", "everything") else block(*args)


def remat(function: Callable, *args):
    """function(*args), rematerialised in the backward pass: only the arguments are stored."""
    return jax.checkpoint(lambda *args: function(*args))(*args)


def per_frame(module: Callable[[jax.Array], jax.Array], x: Video) -> OtherVideo:
    """Applies an image module, or a function of images, [n h w c] to every frame."""
    y = module(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


class ResBlock(nnx.Module):
    """norm, SiLU, conv, + time embedding, norm, SiLU, conv, + input. x [b … c_in] -> [b … c_out].

    `temporal=False`: 3x3 convolutions of images [n h w c], statistics per image. `temporal=True`: 3x1x1 convolutions of videos
    [b t h w c], statistics over all frames jointly. The second convolution starts from zero (see `layers`).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        groups: int,
        eps: float,
        temporal: bool = False,
        time_dim: int | None = None,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        conv = TemporalConv if temporal else Conv2d
        self.norm1 = GroupNorm(inputs, groups=groups, eps=eps, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, outputs, dtype=dtype, rngs=rngs)
        if time_dim is not None:
            self.time_emb_proj = Linear(time_dim, outputs, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(outputs, groups=groups, eps=eps, dtype=dtype, rngs=rngs)
        self.conv2 = conv(outputs, outputs, zero=True, dtype=dtype, rngs=rngs)
        if inputs != outputs:
            self.conv_shortcut = Conv2d(inputs, outputs, size=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n *s c"], time: Float[Array, "b e"] | None = None) -> Float[Array, "n *s c2"]:
        """`time`: SiLU of the time embedding; n may be a multiple of b (frames folded into the batch)."""
        h = self.conv1(ops.silu(self.norm1(x)))
        if time is not None:
            shift = jnp.repeat(self.time_emb_proj(time), x.shape[0] // time.shape[0], axis=0)
            h = h + shift.reshape(shift.shape[0], *(1,) * (h.ndim - 2), -1)
        h = self.conv2(ops.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class SpatioTemporalResBlock(nnx.Module):
    """A spatial residual block, a temporal one on its output, and a gate that blends the two."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        groups: int,
        eps: float,
        temporal_eps: float | None = None,
        time_dim: int | None = None,
        reverse_mix: bool = False,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        shared = {"groups": groups, "time_dim": time_dim, "dtype": dtype, "rngs": rngs}
        self.spatial_res_block = ResBlock(inputs, outputs, eps=eps, **shared)
        self.temporal_res_block = ResBlock(outputs, outputs, eps=eps if temporal_eps is None else temporal_eps, temporal=True, **shared)
        self.time_mixer = AlphaBlender(initial=0.0 if reverse_mix else 0.5, reverse=reverse_mix, rngs=rngs)

    def __call__(self, x: Video, time: Float[Array, "b e"] | None = None) -> OtherVideo:
        spatial = self.spatial_res_block(x.reshape(-1, *x.shape[2:]), time)
        spatial = spatial.reshape(*x.shape[:2], *spatial.shape[1:])
        return self.time_mixer(spatial, self.temporal_res_block(spatial, time))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention to the text and a gated feed-forward, each pre-normed and residual: x [b t s c].

    `temporal=False`: attention over the s positions of each frame. `temporal=True`: attention over the t frames of each position, and
    one more feed-forward (`norm_in`, `ff_in`) in front.
    """

    def __init__(self, channels: int, heads: int, shape: BlockShape, *, temporal: bool, rngs: nnx.Rngs):
        dtype = shape.dtype
        self.temporal, self.remat = temporal, shape.remat
        if temporal:
            self.norm_in = LayerNorm(channels, dtype=dtype, rngs=rngs)
            self.ff_in = FeedForward(channels, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.attn1 = Attention(channels, heads=heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.attn2 = Attention(channels, heads=heads, context_dim=shape.text_dim, dtype=dtype, rngs=rngs)
        self.norm3 = LayerNorm(channels, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t s c"], text: Text) -> Float[Array, "b t s c"]:
        if self.temporal:
            x = x + self.ff_in(self.norm_in(x))
        x = x + self.self_attention(self.norm1(x))
        queries = self.norm2(x)
        x = x + self.attn2(queries.reshape(x.shape[0], -1, x.shape[-1]), text).reshape(x.shape)
        return x + self.ff(self.norm3(x))

    def self_attention(self, x: Float[Array, "b t s c"]) -> Float[Array, "b t s c"]:
        if self.temporal:
            return self.attn1(x, axis=1)
        return remat(self.attn1, x) if self.remat == "attention" else self.attn1(x)


class SpatioTemporalTransformer(nnx.Module):
    """GroupNorm, Linear, a spatial block, a temporal block on (its output + embedding of the frame index), gate, Linear, + input."""

    def __init__(self, channels: int, heads: int, shape: BlockShape, *, rngs: nnx.Rngs):
        dtype = shape.dtype
        self.norm = GroupNorm(channels, groups=shape.groups, eps=1e-6, dtype=dtype, rngs=rngs)
        self.proj_in = Linear(channels, channels, dtype=dtype, rngs=rngs)
        self.transformer_blocks = nnx.List([TransformerBlock(channels, heads, shape, temporal=False, rngs=rngs)])
        self.temporal_transformer_blocks = nnx.List([TransformerBlock(channels, heads, shape, temporal=True, rngs=rngs)])
        self.time_pos_embed = TimestepEmbedding(channels, 4 * channels, channels, dtype=dtype, rngs=rngs)
        self.time_mixer = AlphaBlender(rngs=rngs)
        self.proj_out = Linear(channels, channels, zero=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Video, text: Text) -> Video:
        b, t, h, w, c = x.shape
        tokens = self.proj_in(per_frame(self.norm, x)).reshape(b, t, h * w, c)
        spatial = self.transformer_blocks[0](tokens, text)
        position = self.time_pos_embed(sinusoidal_embedding(jnp.arange(t, dtype=jnp.promote_types(x.dtype, jnp.float32)), c))
        temporal = self.temporal_transformer_blocks[0](spatial + position[:, None], text)
        return x + self.proj_out(self.time_mixer(spatial, temporal)).reshape(x.shape)


class Downsample(nnx.Module):
    """Halves height and width: 3x3 convolution with stride 2 and padding 1."""

    def __init__(self, channels: int, *, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.conv = Conv2d(channels, channels, stride=2, padding=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles height and width: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int, *, dtype: DTypeLike = "float32", rngs: nnx.Rngs):
        self.conv = Conv2d(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        return self.conv.upsample_conv(x)


class DownBlock(nnx.Module):
    """One encoder level. Returns its output and the skip connections: the output of every layer and of the downsampling."""

    def __init__(self, inputs: int, outputs: int, layers: int, heads: int | None, shape: BlockShape, *, downsample: bool, rngs: nnx.Rngs):
        shared = {"groups": shape.groups, "eps": 1e-5 if heads is None else 1e-6, "time_dim": shape.time_dim, "dtype": shape.dtype}
        widths = [inputs] + [outputs] * (layers - 1)
        self.resnets = nnx.List([SpatioTemporalResBlock(width, outputs, **shared, rngs=rngs) for width in widths])
        self.attentions = _attentions(outputs, heads, layers, shape, rngs)
        self.downsamplers = nnx.List([Downsample(outputs, dtype=shape.dtype, rngs=rngs)] if downsample else [])
        self.shape = shape

    def __call__(self, x: Video, time: Float[Array, "b e"], text: Text) -> tuple[OtherVideo, list[OtherVideo]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = self.shape.call(resnet, x, time)
            if self.attentions:
                x = self.shape.call(self.attentions[i], x, text)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = per_frame(downsampler, x)
            skips.append(x)
        return x, skips


class MidBlock(nnx.Module):
    """The bottom: residual block, transformer, residual block."""

    def __init__(self, channels: int, heads: int, shape: BlockShape, *, rngs: nnx.Rngs):
        shared = {"groups": shape.groups, "eps": 1e-5, "time_dim": shape.time_dim, "dtype": shape.dtype}
        self.resnets = nnx.List([SpatioTemporalResBlock(channels, channels, **shared, rngs=rngs) for _ in range(2)])
        self.attentions = _attentions(channels, heads, 1, shape, rngs)
        self.shape = shape

    def __call__(self, x: Video, time: Float[Array, "b e"], text: Text) -> Video:
        call = self.shape.call
        x = call(self.attentions[0], call(self.resnets[0], x, time), text)
        return call(self.resnets[1], x, time)


class UpBlock(nnx.Module):
    """One decoder level: each layer reads [hidden, skip] concatenated on channels; `skips` are given in the order they are used."""

    def __init__(
        self, inputs: int, outputs: int, skips: list[int], heads: int | None, shape: BlockShape, *, upsample: bool, rngs: nnx.Rngs
    ):
        shared = {"groups": shape.groups, "eps": 1e-6, "time_dim": shape.time_dim, "dtype": shape.dtype}
        widths = [inputs] + [outputs] * (len(skips) - 1)
        self.resnets = nnx.List(
            [SpatioTemporalResBlock(width + skip, outputs, **shared, rngs=rngs) for width, skip in zip(widths, skips, strict=True)]
        )
        self.attentions = _attentions(outputs, heads, len(skips), shape, rngs)
        self.upsamplers = nnx.List([Upsample(outputs, dtype=shape.dtype, rngs=rngs)] if upsample else [])
        self.shape = shape

    def __call__(self, x: Video, skips: list[OtherVideo], time: Float[Array, "b e"], text: Text) -> OtherVideo:
        for i, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            x = self.shape.call(resnet, jnp.concatenate([x, skip], axis=-1), time)
            if self.attentions:
                x = self.shape.call(self.attentions[i], x, text)
        for upsampler in self.upsamplers:
            x = per_frame(upsampler, x)
        return x


def _attentions(channels: int, heads: int | None, count: int, shape: BlockShape, rngs: nnx.Rngs) -> nnx.List:
    """`heads=None`: a level without attention."""
    return nnx.List([] if heads is None else [SpatioTemporalTransformer(channels, heads, shape, rngs=rngs) for _ in range(count)])
