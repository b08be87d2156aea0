"""TemporalVAE: the autoencoder of Stable Video Diffusion (an image encoder, and a decoder with temporal layers).

Images are float32 in [-1, 1]; latents are 2^(levels - 1) times smaller and unscaled: the caller applies the factor that gives
them unit variance for diffusion (0.18215 for the published weights). `VideoVAEConfig()` is the published architecture (97,742,847
parameters).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vpp_jax import ops
from vpp_jax.common.config_fields import check_ranges, setting
from vpp_jax.common.errors import ConfigError
from vpp_jax.models.attention import Attention
from vpp_jax.models.layers import Conv2d, GroupNorm, TemporalConv, check_dtype, compute_dtype
from vpp_jax.models.unet_blocks import ResBlock, SpatioTemporalResBlock, Upsample, per_frame

EPS = 1e-6
TEMPORAL_EPS = 1e-5  # only the decoder's temporal residual blocks


@dataclass(frozen=True)
class VideoVAEConfig:
    """The temporal VAE: image encoder, temporal decoder. The defaults are Stable Video Diffusion's."""

    block_out_channels: tuple[int, ...] = setting((128, 256, 512, 512), "width of each level, from the pixels down", at_least=1)
    layers_per_block: int = setting(2, "residual blocks per level of the encoder; the decoder has one more", at_least=1)
    latent_channels: int = setting(4, "channels of the latents", at_least=1)
    norm_groups: int = setting(32, "groups of the group normalisations; divides every width", at_least=1)
    dtype: str = compute_dtype()

    def __post_init__(self):
        check_ranges(self)
        if not self.block_out_channels:
            raise ConfigError("block_out_channels is empty, expected at least one level")
        for channels in self.block_out_channels:
            if channels % self.norm_groups:
                raise ConfigError(f"norm_groups {self.norm_groups} does not divide block_out_channels entry {channels}")
        check_dtype(self.dtype)

    @property
    def downscale(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.block_out_channels) - 1)


class Posterior(NamedTuple):
    """Diagonal Gaussian over unscaled latents, float32; `logvar` is clamped to [-30, 20]."""

    mean: Float[Array, "n h w c"]
    logvar: Float[Array, "n h w c"]

    def sample(self, key: Key[Array, ""]) -> Float[Array, "..."]:
        return self.mean + jnp.exp(0.5 * self.logvar) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def kl(self) -> Float[Array, "..."]:
        """KL divergence to the standard normal, in nats per latent value."""
        return 0.5 * (jnp.square(self.mean) + jnp.exp(self.logvar) - 1.0 - self.logvar)


class MidAttention(Attention):
    """x + attention over all pixels of GroupNorm(x), with one head as wide as the image has channels: x [n h w c]."""

    def __init__(self, channels: int, *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(channels, heads=1, qkv_bias=True, dtype=dtype, rngs=rngs)
        self.group_norm = GroupNorm(channels, groups=groups, eps=EPS, dtype=dtype, rngs=rngs)

    # of images instead of tokens: diffusers has projections and norm in one block, and names its tensors so
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        return x + super().__call__(tokens).reshape(x.shape)


class VAEDownsample(nnx.Module):
    """Halves height and width: pads the right and the bottom by 1, then a 3x3 convolution with stride 2."""

    def __init__(self, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv = Conv2d(channels, channels, stride=2, padding=((0, 1), (0, 1)), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
        return self.conv(x)


class EncoderLevel(nnx.Module):
    """Residual blocks, then downsampling except at the last level."""

    def __init__(self, inputs: int, outputs: int, config: VideoVAEConfig, *, downsample: bool, rngs: nnx.Rngs):
        shared = {"groups": config.norm_groups, "eps": EPS, "dtype": config.dtype, "rngs": rngs}
        widths = [inputs] + [outputs] * (config.layers_per_block - 1)
        self.resnets = nnx.List([ResBlock(width, outputs, **shared) for width in widths])
        self.downsamplers = nnx.List([VAEDownsample(outputs, dtype=config.dtype, rngs=rngs)] if downsample else [])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c2"]:
        for module in (*self.resnets, *self.downsamplers):
            x = module(x)
        return x


class EncoderMid(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, config: VideoVAEConfig, *, rngs: nnx.Rngs):
        shared = {"groups": config.norm_groups, "dtype": config.dtype, "rngs": rngs}
        self.attentions = nnx.List([MidAttention(channels, **shared)])
        self.resnets = nnx.List([ResBlock(channels, channels, eps=EPS, **shared) for _ in range(2)])

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nnx.Module):
    """Images [n h w 3] -> moments [n h/f w/f 2c], before `quant_conv`."""

    def __init__(self, config: VideoVAEConfig, *, rngs: nnx.Rngs):
        channels, dtype = config.block_out_channels, config.dtype
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.conv_in = Conv2d(3, channels[0], dtype=dtype, rngs=rngs)
        self.down_blocks = nnx.List(
            [EncoderLevel(inputs[i], channels[i], config, downsample=i < last, rngs=rngs) for i in range(len(channels))]
        )
        self.mid_block = EncoderMid(channels[-1], config, rngs=rngs)
        self.conv_norm_out = GroupNorm(channels[-1], groups=config.norm_groups, eps=EPS, dtype=dtype, rngs=rngs)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w 3"]) -> Float[Array, "n h2 w2 m"]:
        x = self.conv_in(x)
        for i, block in enumerate(self.down_blocks):
            with jax.named_scope(f"down_blocks.{i}"):
                x = block(x)
        with jax.named_scope("mid_block"):
            x = self.mid_block(x)
        return self.conv_out(ops.silu(self.conv_norm_out(x)))


def _video_block(inputs: int, outputs: int, config: VideoVAEConfig, rngs: nnx.Rngs) -> SpatioTemporalResBlock:
    """A spatio-temporal residual block of the decoder: other eps along time, and the blend reversed."""
    shared = {"groups": config.norm_groups, "dtype": config.dtype, "rngs": rngs}
    return SpatioTemporalResBlock(inputs, outputs, eps=EPS, temporal_eps=TEMPORAL_EPS, reverse_mix=True, **shared)


class DecoderMid(nnx.Module):
    """layers_per_block residual blocks with one attention after the first.

    With a single layer the published class holds the attention without using it; so does this one, to keep the list of parameters.
    """

    def __init__(self, channels: int, config: VideoVAEConfig, *, rngs: nnx.Rngs):
        self.attentions = nnx.List([MidAttention(channels, groups=config.norm_groups, dtype=config.dtype, rngs=rngs)])
        self.resnets = nnx.List([_video_block(channels, channels, config, rngs) for _ in range(config.layers_per_block)])

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        x = self.resnets[0](x)
        for i, resnet in enumerate(self.resnets[1:]):
            if i == 0:
                x = per_frame(self.attentions[0], x)
            x = resnet(x)
        return x


class DecoderLevel(nnx.Module):
    """layers_per_block + 1 residual blocks, then upsampling except at the last level."""

    def __init__(self, inputs: int, outputs: int, config: VideoVAEConfig, *, upsample: bool, rngs: nnx.Rngs):
        widths = [inputs] + [outputs] * config.layers_per_block
        self.resnets = nnx.List([_video_block(width, outputs, config, rngs) for width in widths])
        self.upsamplers = nnx.List([Upsample(outputs, dtype=config.dtype, rngs=rngs)] if upsample else [])

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 c2"]:
        for resnet in self.resnets:
            x = resnet(x)
        for upsampler in self.upsamplers:
            x = per_frame(upsampler, x)
        return x


class TemporalDecoder(nnx.Module):
    """Latents [b t h w c] -> video [b t H W 3]."""

    def __init__(self, config: VideoVAEConfig, *, rngs: nnx.Rngs):
        channels, dtype = config.block_out_channels[::-1], config.dtype
        inputs = (channels[0], *channels[:-1])
        last = len(channels) - 1
        self.conv_in = Conv2d(config.latent_channels, channels[0], dtype=dtype, rngs=rngs)
        self.mid_block = DecoderMid(channels[0], config, rngs=rngs)
        self.up_blocks = nnx.List(
            [DecoderLevel(inputs[i], channels[i], config, upsample=i < last, rngs=rngs) for i in range(len(channels))]
        )
        self.conv_norm_out = GroupNorm(channels[-1], groups=config.norm_groups, eps=EPS, dtype=dtype, rngs=rngs)
        self.conv_out = Conv2d(channels[-1], 3, dtype=dtype, rngs=rngs)
        self.time_conv_out = TemporalConv(3, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 3"]:
        with jax.named_scope("mid_block"):
            x = self.mid_block(per_frame(self.conv_in, x))
        for i, block in enumerate(self.up_blocks):
            with jax.named_scope(f"up_blocks.{i}"):
                x = block(x)
        return self.time_conv_out(per_frame(lambda frames: self.conv_out(ops.silu(self.conv_norm_out(frames))), x))


class TemporalVAE(nnx.Module):
    """Encoder of single images, decoder of videos."""

    def __init__(self, config: VideoVAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        moments = 2 * config.latent_channels
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = TemporalDecoder(config, rngs=rngs)
        self.quant_conv = Conv2d(moments, moments, size=1, dtype=config.dtype, rngs=rngs)

    @jax.named_scope("vae.encoder")
    def encode(self, images: Float[Array, "n h w 3"]) -> Posterior:
        """Images in [-1, 1] -> posterior over unscaled latents [n h/f w/f c]. The mode is `.mean`."""
        factor = self.config.downscale
        if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % factor or images.shape[2] % factor:
            raise ValueError(f"images must be [n h w 3] with h and w divisible by {factor}, got {images.shape}")
        mean, logvar = jnp.split(ops.at_least_float32(self.quant_conv(self.encoder(images))), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30.0, 20.0))

    @jax.named_scope("vae.decoder")
    def decode(self, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t H W 3"]:
        """Unscaled latents -> video, about [-1, 1], not clipped. Frames depend on neighbours: chunks decode differently at borders."""
        if latents.ndim != 5 or latents.shape[-1] != self.config.latent_channels:
            raise ValueError(f"latents must be [b t h w {self.config.latent_channels}], got {latents.shape}")
        return self.decoder(latents)
