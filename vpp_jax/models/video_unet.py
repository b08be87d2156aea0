"""SpatioTemporalUNet: the denoiser of Stable Video Diffusion (Blattmann et al. 2023), conditioned on text instead of an image embedding.

It predicts 16 frames of latents (stage 1) and, run once on noise, computes the predictive features of stage 2: the outputs of its up blocks
("taps"). `VideoUNetConfig()` is the published img2vid architecture (1,524,623,082 parameters); smaller ones use the same classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from vpp_jax import ops
from vpp_jax.common.config_fields import ANNOUNCED, check_ranges, derived, setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.models.layers import Conv2d, GroupNorm, TimestepEmbedding, check_dtype, compute_dtype, sinusoidal_embedding
from vpp_jax.models.unet_blocks import REMAT, BlockShape, DownBlock, MidBlock, UpBlock, per_frame, remat


@dataclass(frozen=True)
class VideoUNetConfig:
    """The video U-Net. Sequences run from the highest resolution down. Defaults: Stable Video Diffusion, 1,524,623,082 parameters."""

    in_channels: int = derived(8, "channels of the noisy latent and the image latent together", "model.vae.latent_channels")
    out_channels: int = derived(4, "channels of the prediction", "model.vae.latent_channels")
    block_out_channels: tuple[int, ...] = setting((320, 640, 1280, 1280), "width of each level", at_least=1)
    attention_levels: tuple[bool, ...] = setting((True, True, True, False), "levels with attention")
    layers_per_block: int = setting(2, "residual blocks per level", at_least=1)
    attention_heads: tuple[int, ...] = setting((5, 10, 20, 20), "attention heads of each level", at_least=1)
    cross_attention_dim: int = derived(1024, "width of the text states", "model.text.width")
    addition_time_embed_dim: int = setting(256, "width of the embedding of each micro-conditioning number", at_least=2)
    norm_groups: int = setting(32, "groups of the group normalisations; divides every width", at_least=1)
    last_tap: int | None = derived(
        None, "the last up block that is built, without output layers; none: the whole U-Net", "model.tap_blocks"
    )
    remat: str = setting("none", "what the backward pass computes again to save memory", choices=tuple(REMAT), on_resume=ANNOUNCED)
    dtype: str = compute_dtype()

    def __post_init__(self):
        check_ranges(self)
        levels = len(self.block_out_channels)
        for name in ("attention_levels", "attention_heads"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"{name} has {len(getattr(self, name))} entries, block_out_channels has {levels}: give one per level")
        for channels, heads in zip(self.block_out_channels, self.attention_heads, strict=True):
            if channels % self.norm_groups:
                raise ConfigError(f"norm_groups {self.norm_groups} does not divide block_out_channels entry {channels}")
            if channels % heads:
                raise ConfigError(f"attention_heads entry {heads} does not divide block_out_channels entry {channels}")
        if self.addition_time_embed_dim % 2 or any(channels % 2 for channels in self.block_out_channels):
            raise ConfigError("addition_time_embed_dim and block_out_channels must be even: sinusoids come in pairs")
        if self.last_tap is not None and not 0 <= self.last_tap < levels:
            raise ConfigError(f"last_tap is {self.last_tap}, but the U-Net has up blocks 0 to {levels - 1}")
        check_dtype(self.dtype)

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

    @jax.named_scope("unet")
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
        with jax.named_scope("time_embedding"):
            time = ops.silu(self._time(c_noise, added_time_ids))
        text = encoder_hidden_states.astype(self.config.dtype)

        with jax.named_scope("conv_in"):
            x = per_frame(self.conv_in, sample)
        skips = [x]
        for i, block in enumerate(self.down_blocks):
            with jax.named_scope(f"down_blocks.{i}"):
                x, more = call(block, x, time, text)
            skips += more
        with jax.named_scope("mid_block"):
            x = call(self.mid_block, x, time, text)

        tapped = {}
        for i, block in enumerate(self.up_blocks):
            with jax.named_scope(f"up_blocks.{i}"):
                x = call(block, x, [skips.pop() for _ in block.resnets], time, text)
            if i in taps:
                tapped[i] = x
        if self.config.last_tap is not None:
            return UNetOutput(None, tapped)
        with jax.named_scope("conv_out"):
            return UNetOutput(per_frame(lambda frames: self.conv_out(ops.silu(self.conv_norm_out(frames))), x), tapped)

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
