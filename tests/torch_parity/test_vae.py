"""The video VAE against diffusers' AutoencoderKLTemporalDecoder: blocks of the encoder and of the decoder, then both halves."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("diffusers", reason="diffusers is not installed: `make parity` compares with it")

import torch
from comparison import (
    BFLOAT16,
    FLOAT64,
    FORWARD,
    GRADIENT,
    check,
    check_gradients,
    images,
    load,
    normal,
    randomized,
    record,
    submodule,
    videos,
)
from diffusers import AutoencoderKLTemporalDecoder

from vpp_jax.functional import PureModule
from vpp_jax.models.video_vae import TemporalVAE, VideoVAEConfig

CONFIG = VideoVAEConfig(block_out_channels=(32, 64, 64))
SHALLOW = VideoVAEConfig(block_out_channels=(32, 64))  # compiles in half the time
BATCH, FRAMES = 2, 5


def diffusers_vae(config: VideoVAEConfig) -> AutoencoderKLTemporalDecoder:
    return randomized(
        AutoencoderKLTemporalDecoder(
            block_out_channels=config.block_out_channels,
            down_block_types=("DownEncoderBlock2D",) * len(config.block_out_channels),
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
        )
    )


@pytest.fixture(scope="module")
def theirs():
    return diffusers_vae(CONFIG)


@pytest.fixture(scope="module")
def pure():
    return PureModule.of(lambda rngs: TemporalVAE(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def params(pure, theirs):
    return load(pure, theirs)


STILLS = normal(1, 2, 3, 24, 16)  # not square: a swap of the axes shows
LATENTS = normal(2, BATCH, FRAMES, CONFIG.latent_channels, 4, 6)
ENCODER = (
    "encoder.conv_in",
    "encoder.down_blocks.0.resnets.0",
    "encoder.down_blocks.1.resnets.0",
    "encoder.down_blocks.0.downsamplers.0",
    "encoder.down_blocks.0",
    "encoder.down_blocks.1",
    "encoder.down_blocks.2",
    "encoder.mid_block.attentions.0",
    "encoder.mid_block",
    "encoder",
    "quant_conv",
)
DECODER = (
    "decoder.conv_in",
    "decoder.mid_block.resnets.0.spatial_res_block",
    "decoder.mid_block.resnets.0",
    "decoder.mid_block.attentions.0",
    "decoder.mid_block",
    "decoder.up_blocks.0",
    "decoder.up_blocks.1",
    "decoder.up_blocks.2.resnets.0",
    "decoder.up_blocks.2",
    "decoder.up_blocks.0.upsamplers.0",
    "decoder.conv_norm_out",
    "decoder.conv_out",
    "decoder",
)
ON_VIDEOS = {"SpatioTemporalResBlock", "MidBlockTemporalDecoder", "UpBlockTemporalDecoder", "TemporalDecoder"}


@pytest.fixture(scope="module")
def calls(theirs):
    def run():
        theirs.encode(STILLS)
        theirs.decode(LATENTS.flatten(0, 1), num_frames=FRAMES)

    return record(theirs, ENCODER + DECODER, run)


@pytest.mark.parametrize("path", ENCODER + DECODER)
def test_block(path, calls, theirs, pure, params):
    on_videos = type(theirs.get_submodule(path)).__name__ in ON_VIDEOS
    layout = (lambda x: videos(x, FRAMES)) if on_videos else images
    x = layout(next(iter(calls[path].arguments.values())))
    got = jax.jit(lambda params, x: submodule(pure.bind(params), path)(x))(params, x)
    check(got, layout(calls[path].output), what=path)


def test_temporal_block_has_its_own_eps(theirs, pure, params):
    """Nearly constant input: here an eps of 1e-5 and one of 1e-6 give different results."""
    block = theirs.get_submodule("decoder.mid_block.resnets.0.temporal_res_block")
    x = 2e-3 * normal(3, BATCH, 64, FRAMES, 4, 6)
    with torch.no_grad():
        want = block(x, None)
    got = jax.jit(lambda params, x: submodule(pure.bind(params), "decoder.mid_block.resnets.0.temporal_res_block")(x))(params, images(x))
    check(got - images(x), images(want - x), what="residual of the temporal block")


@pytest.fixture(scope="module")
def encode(pure):
    return jax.jit(lambda params, x: pure.bind(params).encode(x))


@pytest.fixture(scope="module")
def decode(pure):
    return jax.jit(lambda params, z: pure.bind(params).decode(z))


def test_posterior(theirs, encode, params):
    with torch.no_grad():
        want = theirs.encode(STILLS).latent_dist
    got = encode(params, images(STILLS))
    check(got.mean, images(want.mode()), what="mean")
    check(got.logvar, images(want.logvar), what="logvar")
    check(got.kl().sum((1, 2, 3)), want.kl(), what="KL divergence")


@pytest.mark.parametrize("chunk", [2, 5])
def test_decoding_in_chunks(chunk, theirs, decode, params):
    """As the published pipeline does it: consecutive frames, the last chunk shorter; the chunks' borders change the result."""
    for begin in range(0, FRAMES, chunk):
        part = LATENTS[:, begin : begin + chunk]
        with torch.no_grad():
            want = theirs.decode(part.flatten(0, 1), num_frames=part.shape[1]).sample
        check(decode(params, np.moveaxis(part.numpy(), 2, -1)), videos(want, part.shape[1]), what=f"frames from {begin}")


def check_both_halves(config: VideoVAEConfig, stills: torch.Tensor, forward: float, gradient: float):
    """Encoded, decoded again, and the gradients of all weights on the way."""
    theirs, pure = diffusers_vae(config), PureModule.of(lambda rngs: TemporalVAE(config, rngs=rngs))
    direction, params = normal(4, *stills.shape).to(stills.dtype), load(pure, theirs)
    frames = theirs.decode(theirs.encode(stills).latent_dist.mode(), num_frames=2).sample
    (frames * direction).sum().backward()

    def objective(params):
        model = pure.bind(params)
        frames = model.decode(model.encode(images(stills)).mean[None])[0]
        return (frames * images(direction)).sum(), frames

    gradients, got = jax.jit(jax.grad(objective, has_aux=True))(params)
    check(got, images(frames), forward, "frames")
    check_gradients(gradients, theirs, tolerance=gradient)


def test_gradients_of_all_weights_through_both_halves():
    check_both_halves(SHALLOW, STILLS, FORWARD, GRADIENT)


def test_the_same_function_in_float64(float64):
    check_both_halves(dataclasses.replace(SHALLOW, dtype="float64"), STILLS.double(), FLOAT64, FLOAT64)


def test_bfloat16_stays_close():
    theirs = diffusers_vae(SHALLOW)
    pure = PureModule.of(lambda rngs: TemporalVAE(dataclasses.replace(SHALLOW, dtype="bfloat16"), rngs=rngs))
    params = load(pure, theirs)
    with torch.no_grad():
        latents = theirs.encode(STILLS).latent_dist.mode()
        frames = theirs.decode(LATENTS.flatten(0, 1), num_frames=FRAMES).sample
    check(jax.jit(lambda p, x: pure.bind(p).encode(x).mean)(params, images(STILLS)), images(latents), BFLOAT16, "latents")
    got = jax.jit(lambda p, z: pure.bind(p).decode(z))(params, np.moveaxis(LATENTS.numpy(), 2, -1))
    check(got, videos(frames, FRAMES), BFLOAT16, "frames")
