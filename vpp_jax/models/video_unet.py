"""SpatioTemporalUNet: the denoiser of Stable Video Diffusion (Blattmann et al. 2023), conditioned on text instead of an image embedding.

It predicts 16 frames of latents (stage 1) and, run once on noise, gives the predictive features of stage 2: the outputs of its up blocks
("taps"). `VideoUNetConfig()` is the published img2vid architecture (1,524,623,082 parameters); smaller ones use the same classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from vpp_jax.models.layers import Conv2d, GroupNorm, TimestepEmbedding, check_dtype, silu, sinusoidal_embedding
from vpp_jax.models.unet_blocks import REMAT, BlockShape, DownBlock, MidBlock, UpBlock, per_frame, remat


@dataclass(frozen=True)
class VideoUNetConfig:
    """Architecture of a SpatioTemporalUNet. Lists run from the highest resolution down.

    in_channels: noisy latent and image latent concatenated. last_tap: None builds the whole U-Net; i builds up blocks 0…i and no
    output layer. norm_groups divides every width. remat: a key of `unet_blocks.REMAT`, what the backward pass computes
    again. dtype: of the computation; parameters are float32.
    """

    in_channels: int = 8
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention_levels: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    attention_heads: tuple[int, ...] = (5, 10, 20, 20)
    cross_attention_dim: int = 1024
    addition_time_embed_dim: int = 256
    norm_groups: int = 32
    last_tap: int | None = None
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for name in ("attention_levels", "attention_heads"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, block_out_channels has {levels}: give one per level")
        for name in ("in_channels", "out_channels", "layers_per_block", "cross_attention_dim", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for channels, heads in zip(self.block_out_channels, self.attention_heads, strict=True):
            if channels % self.norm_groups:
                raise ValueError(f"norm_groups {self.norm_groups} does not divide block_out_channels entry {channels}")
            if heads < 1 or channels % heads:
                raise ValueError(f"attention_heads entry {heads} does not divide block_out_channels entry {channels}")
        if self.addition_time_embed_dim % 2 or any(c % 2 for c in self.block_out_channels):
            raise ValueError("addition_time_embed_dim and block_out_channels must be even: sinusoids come in pairs")
        if self.last_tap is not None and not 0 <= self.last_tap < levels:
            raise ValueError(f"last_tap must be between 0 and {levels - 1} (or None for the whole U-Net), got {self.last_tap}")
        check_dtype(self.dtype)
        if self.remat not in REMAT:
            raise ValueError(f"remat must be one of {', '.join(REMAT)}, got {self.remat}")

    @staticmethod
    def from_earlier(fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """`remat` was a bool: checkpoints hold such configurations."""
        remat = fields.get("remat")
        return {**fields, "remat": "blocks" if remat else "none"} if isinstance(remat, bool) else fields

    def tap_shape(self, index: int, height: int, width: int) -> tuple[int, int, int]:
        """Height, width and channels of tap `index` for latents of the given size."""
        levels = len(self.block_out_channels)
        scale = 2 ** max(levels - 2 - index, 0)
        return height // scale, width // scale, self.block_out_channels[levels - 1 - index]


class UNetOutput(NamedTuple):
    """sample: prediction [b t h w c_out], None when the U-Net stops early. taps: up block index -> output [b t h_i w_i c_i]."""

    sample: Float[Array, "b t h w c"] | None
    taps: dict[int, Float[Array, "b t hi wi ci"]]


class SpatioTemporalUNet(nnx.Module):
    """Video U-Net with residual blocks and transformers over space and time, text cross-attention and taps on the up blocks."""

    def __init__(self, config: VideoUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, layers, dtype = config.block_out_channels, config.layers_per_block, config.dtype
        heads = [h if attends else None for h, attends in zip(config.attention_heads, config.attention_levels, strict=True)]
        last = len(channels) - 1
        time_dim = 4 * channels[0]
        shape = BlockShape(time_dim, config.cross_attention_dim, config.norm_groups, dtype, config.remat)

        self.conv_in = Conv2d(config.in_channels, channels[0], dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(channels[0], time_dim, dtype=dtype, rngs=rngs)
        self.add_embedding = TimestepEmbedding(3 * config.addition_time_embed_dim, time_dim, dtype=dtype, rngs=rngs)

        skips, width, down = [channels[0]], channels[0], []
        for level, outputs in enumerate(channels):
            down.append(DownBlock(width, outputs, layers, heads[level], shape, downsample=level < last, rngs=rngs))
            skips += [outputs] * (layers + (level < last))
            width = outputs
        self.down_blocks = nnx.List(down)
        self.mid_block = MidBlock(width, config.attention_heads[-1], shape, rngs=rngs)

        up = []
        for i in range(last + 1 if config.last_tap is None else config.last_tap + 1):
            used = [skips.pop() for _ in range(layers + 1)]
            outputs = channels[last - i]
            up.append(UpBlock(width, outputs, used, heads[last - i], shape, upsample=i < last, rngs=rngs))
            width = outputs
        self.up_blocks = nnx.List(up)

        if config.last_tap is None:
            self.conv_norm_out = GroupNorm(width, groups=config.norm_groups, eps=1e-5, dtype=dtype, rngs=rngs)
            self.conv_out = Conv2d(width, config.out_channels, zero=True, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        sample: Float[Array, "b t h w c_in"],
        c_noise: Float[Array, "b"],
        encoder_hidden_states: Float[Array, "b l d"],
        added_time_ids: Float[Array, "b 3"],
        *,
        taps: tuple[int, ...] = (),
    ) -> UNetOutput:
        """sample: preconditioned noisy latents and image latent. c_noise: ¼ ln σ. encoder_hidden_states: text, the same for all frames.

        added_time_ids: (frames per second, motion bucket, noise augmentation). taps: up blocks whose outputs (after upsampling) to
        return. Height and width must be divisible by 2^(levels - 1).
        """
        self._check(sample, encoder_hidden_states, taps)
        call = remat if self.config.remat == "everything" else _call
        time = silu(self._time(c_noise, added_time_ids))
        text = encoder_hidden_states.astype(self.config.dtype)

        x = per_frame(self.conv_in, sample)
        skips = [x]
        for block in self.down_blocks:
            x, more = call(block, x, time, text)
            skips += more
        x = call(self.mid_block, x, time, text)

        tapped = {}
        for i, block in enumerate(self.up_blocks):
            x = call(block, x, [skips.pop() for _ in block.resnets], time, text)
            if i in taps:
                tapped[i] = x
        if self.config.last_tap is not None:
            return UNetOutput(None, tapped)
        return UNetOutput(per_frame(lambda frames: self.conv_out(silu(self.conv_norm_out(frames))), x), tapped)

    def _time(self, c_noise: Float[Array, "b"], added_time_ids: Float[Array, "b 3"]) -> Float[Array, "b d"]:
        ids = sinusoidal_embedding(added_time_ids, self.config.addition_time_embed_dim)
        noise = self.time_embedding(sinusoidal_embedding(c_noise, self.config.block_out_channels[0]))
        return noise + self.add_embedding(ids.reshape(ids.shape[0], -1))

    def _check(self, sample: jax.Array, text: jax.Array, taps: tuple[int, ...]) -> None:
        config, factor = self.config, 2 ** (len(self.config.block_out_channels) - 1)
        if sample.ndim != 5 or sample.shape[-1] != config.in_channels or sample.shape[2] % factor or sample.shape[3] % factor:
            raise ValueError(f"sample must be [b t h w {config.in_channels}] with h and w divisible by {factor}, got {sample.shape}")
        if text.ndim != 3 or text.shape[-1] != config.cross_attention_dim or text.shape[0] != sample.shape[0]:
            raise ValueError(f"encoder_hidden_states must be [{sample.shape[0]} l {config.cross_attention_dim}], got {text.shape}")
        if any(not 0 <= i < len(self.up_blocks) for i in taps):
            raise ValueError(f"taps {taps} ask for up blocks that are not built: this U-Net has {len(self.up_blocks)}")


def _call(block: nnx.Module, *args):
    return block(*args)
