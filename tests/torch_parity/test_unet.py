"""The video U-Net against diffusers' UNetSpatioTemporalConditionModel: every kind of block, then the full model.

Each block gets the inputs that diffusers' own block got in a pass of the whole network, so that one wrong block fails alone.
"""

import dataclasses
import math

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("diffusers", reason="diffusers is not installed: `make parity` compares with it")

import torch
from comparison import (
    BFLOAT16,
    FLOAT64,
    GRADIENT,
    check,
    check_gradients,
    first_frame,
    images,
    load,
    normal,
    randomized,
    record,
    submodule,
    to_numpy,
    videos,
)
from diffusers import UNetSpatioTemporalConditionModel

from vpp_jax.functional import PureModule
from vpp_jax.models.video_unet import SpatioTemporalUNet, VideoUNetConfig
from vpp_jax.ops import silu

CONFIG = VideoUNetConfig(
    block_out_channels=(64, 64, 128),
    attention_levels=(True, True, False),
    attention_heads=(1, 2, 4),
    cross_attention_dim=48,
    addition_time_embed_dim=16,
)
BATCH, FRAMES, HEIGHT, WIDTH, TOKENS = 2, 3, 8, 12, 20


def diffusers_unet(config: VideoUNetConfig) -> UNetSpatioTemporalConditionModel:
    attends = config.attention_levels
    return UNetSpatioTemporalConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple("CrossAttnDownBlockSpatioTemporal" if a else "DownBlockSpatioTemporal" for a in attends),
        up_block_types=tuple("CrossAttnUpBlockSpatioTemporal" if a else "UpBlockSpatioTemporal" for a in attends[::-1]),
        layers_per_block=config.layers_per_block,
        num_attention_heads=config.attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        addition_time_embed_dim=config.addition_time_embed_dim,
        projection_class_embeddings_input_dim=3 * config.addition_time_embed_dim,
    )


def inputs(batch=BATCH, frames=FRAMES, height=HEIGHT, width=WIDTH, seed=1) -> tuple[torch.Tensor, ...]:
    """sample [b t c h w], c_noise [b], text [b l d], time ids [b 3]: different in every row."""
    ids = torch.tensor([[7.0, 127.0, 0.0], [4.0, 127.0, 0.02], [6.0, 100.0, 0.1]])[:batch]
    noise_level = torch.tensor([1.6377700567, -0.8, 0.3])[:batch]
    return normal(seed, batch, frames, 8, height, width), noise_level, normal(seed + 1, batch, TOKENS, CONFIG.cross_attention_dim), ids


def ours(sample: torch.Tensor, *rest: torch.Tensor) -> tuple[np.ndarray, ...]:
    return np.moveaxis(sample.numpy(), 2, -1), *(value.numpy() for value in rest)


@pytest.fixture(scope="module")
def theirs():
    return randomized(diffusers_unet(CONFIG))


@pytest.fixture(scope="module")
def pure():
    return PureModule.of(lambda rngs: SpatioTemporalUNet(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def params(pure, theirs):
    return load(pure, theirs)


# --- block by block -------------------------------------------------------------------------------------------------------------------


def _video_block(module, call):
    a = call.arguments
    time = silu(first_frame(a["temb"], FRAMES))
    text = () if "encoder_hidden_states" not in a else (first_frame(a["encoder_hidden_states"], FRAMES),)
    return module(videos(a["hidden_states"], FRAMES), time, *text)


def _down_block(module, call):
    a = call.arguments
    text = first_frame(a["encoder_hidden_states"], FRAMES) if "encoder_hidden_states" in a else None
    x, skips = module(videos(a["hidden_states"], FRAMES), silu(first_frame(a["temb"], FRAMES)), text)
    return [x, *skips]


def _up_block(module, call):
    a = call.arguments
    text = first_frame(a["encoder_hidden_states"], FRAMES) if "encoder_hidden_states" in a else None
    skips = [videos(skip, FRAMES) for skip in reversed(a["res_hidden_states_tuple"])]
    return module(videos(a["hidden_states"], FRAMES), skips, silu(first_frame(a["temb"], FRAMES)), text)


def _tokens(module, call):
    """A transformer block: [b·t s c] is [b t s c] here."""
    a = call.arguments
    x = to_numpy(a["hidden_states"])
    text = to_numpy(a["encoder_hidden_states"])
    text = text.reshape(BATCH, -1, *text.shape[1:])[:, 0]  # repeated per frame there, per position in the temporal block
    return module(x.reshape(BATCH, FRAMES, *x.shape[1:]), text).reshape(x.shape)


def _attention(module, call):
    context = call.arguments.get("encoder_hidden_states")
    return module(to_numpy(call.arguments["hidden_states"]), None if context is None else to_numpy(context))


def _images(module, call):
    return module(images(next(iter(call.arguments.values()))))


def _arrays(module, call):
    return module(to_numpy(next(iter(call.arguments.values()))))


# diffusers' class -> (how ours is called on the recorded inputs, layout of the recorded output)
KINDS = {
    "Conv2d": (_images, images),
    "GroupNorm": (_images, images),
    "TimestepEmbedding": (_arrays, to_numpy),
    "FeedForward": (_arrays, to_numpy),
    "LayerNorm": (_arrays, to_numpy),
    "Attention": (_attention, to_numpy),
    "BasicTransformerBlock": (_tokens, to_numpy),
    "TemporalBasicTransformerBlock": (_tokens, to_numpy),
    "ResnetBlock2D": (lambda m, c: m(images(c.arguments["input_tensor"]), silu(to_numpy(c.arguments["temb"]))), images),
    "TemporalResnetBlock": (lambda m, c: m(images(c.arguments["input_tensor"]), silu(to_numpy(c.arguments["temb"])[:, 0])), images),
    "SpatioTemporalResBlock": (_video_block, lambda x: videos(x, FRAMES)),
    "TransformerSpatioTemporalModel": (
        lambda m, c: m(videos(c.arguments["hidden_states"], FRAMES), first_frame(c.arguments["encoder_hidden_states"], FRAMES)),
        lambda x: videos(x[0], FRAMES),
    ),
    "Downsample2D": (_images, images),
    "Upsample2D": (_images, images),
    "CrossAttnDownBlockSpatioTemporal": (_down_block, lambda x: [videos(y, FRAMES) for y in (x[0], *x[1])]),
    "DownBlockSpatioTemporal": (_down_block, lambda x: [videos(y, FRAMES) for y in (x[0], *x[1])]),
    "UNetMidBlockSpatioTemporal": (_video_block, lambda x: videos(x, FRAMES)),
    "UpBlockSpatioTemporal": (_up_block, lambda x: videos(x, FRAMES)),
    "CrossAttnUpBlockSpatioTemporal": (_up_block, lambda x: videos(x, FRAMES)),
}
SPATIAL, TEMPORAL = "down_blocks.1.attentions.0.transformer_blocks.0", "down_blocks.1.attentions.0.temporal_transformer_blocks.0"
BLOCKS = (
    "conv_in",
    "time_embedding",
    "add_embedding",
    "conv_norm_out",
    "conv_out",
    "down_blocks.0.resnets.0.spatial_res_block",
    "down_blocks.0.resnets.0.temporal_res_block",
    "down_blocks.0.resnets.0",
    "down_blocks.2.resnets.0.spatial_res_block",
    "down_blocks.2.resnets.0.temporal_res_block",
    "down_blocks.2.resnets.0",
    "mid_block.resnets.1",
    "up_blocks.0.resnets.0.spatial_res_block",
    "up_blocks.2.resnets.2",
    SPATIAL,
    f"{SPATIAL}.norm1",
    f"{SPATIAL}.attn1",
    f"{SPATIAL}.attn2",
    f"{SPATIAL}.ff",
    TEMPORAL,
    f"{TEMPORAL}.norm_in",
    f"{TEMPORAL}.ff_in",
    f"{TEMPORAL}.attn1",
    f"{TEMPORAL}.attn2",
    "down_blocks.0.attentions.0",
    "down_blocks.1.attentions.1",
    "mid_block.attentions.0",
    "up_blocks.2.attentions.2",
    "down_blocks.1.attentions.0.time_pos_embed",
    "down_blocks.0.downsamplers.0",
    "up_blocks.1.upsamplers.0",
    "down_blocks.0",
    "down_blocks.1",
    "down_blocks.2",
    "mid_block",
    "up_blocks.0",
    "up_blocks.1",
    "up_blocks.2",
)


@pytest.fixture(scope="module")
def calls(theirs):
    return record(theirs, BLOCKS, lambda: theirs(*inputs()))


@pytest.mark.parametrize("path", BLOCKS)
def test_block(path, calls, theirs, pure, params):
    run, layout = KINDS[type(theirs.get_submodule(path)).__name__]
    got = jax.jit(lambda params: run(submodule(pure.bind(params), path), calls[path]))(params)
    want = layout(calls[path].output)
    for ours, reference in zip(got, want, strict=True) if isinstance(want, list) else [(got, want)]:
        check(ours, reference, what=path)


# --- the full model -------------------------------------------------------------------------------------------------------------------

TAPS = (0, 1, 2)


@pytest.mark.parametrize(("batch", "frames", "height", "width"), [(2, 3, 8, 12), (3, 5, 12, 4)])
def test_whole_network_and_every_tap(batch, frames, height, width, theirs, pure, params):
    arguments = inputs(batch, frames, height, width)
    calls = record(theirs, ["", *(f"up_blocks.{i}" for i in TAPS)], lambda: theirs(*arguments))
    output = jax.jit(lambda params, *x: pure.bind(params)(*x, taps=TAPS))(params, *ours(*arguments))
    check(output.sample, np.moveaxis(to_numpy(calls[""].output.sample), 2, -1), what="sample")
    for tap in TAPS:
        check(output.taps[tap], videos(calls[f"up_blocks.{tap}"].output, frames), what=f"tap {tap}")


SHALLOW = dataclasses.replace(CONFIG, layers_per_block=1)  # compiles in half the time


@pytest.fixture(scope="module")
def shallow():
    return randomized(diffusers_unet(SHALLOW))


def shallow_run(theirs, *, taps=(), **changes):
    """Our output of the shallow U-Net with some options changed."""
    pure = PureModule.of(lambda rngs: SpatioTemporalUNet(dataclasses.replace(SHALLOW, **changes), rngs=rngs))
    return jax.jit(lambda params, *x: pure.bind(params)(*x, taps=taps))(load(pure, theirs), *ours(*inputs()))


def test_early_stop_gives_the_same_tap(shallow):
    calls = record(shallow, ["up_blocks.1"], lambda: shallow(*inputs()))
    check(shallow_run(shallow, taps=(1,), last_tap=1).taps[1], videos(calls["up_blocks.1"].output, FRAMES), what="tap 1")


def test_bfloat16_stays_close(shallow):
    with torch.no_grad():
        want = shallow(*inputs()).sample
    check(shallow_run(shallow, dtype="bfloat16").sample, np.moveaxis(to_numpy(want), 2, -1), BFLOAT16, "sample")


def test_gradients_of_all_weights_and_of_the_inputs(shallow):
    sample, level, text, ids = inputs()
    sample.requires_grad_()
    text.requires_grad_()
    direction = normal(9, BATCH, FRAMES, 4, HEIGHT, WIDTH)
    shallow.zero_grad()
    (shallow(sample, level, text, ids).sample * direction).sum().backward()
    pure = PureModule.of(lambda rngs: SpatioTemporalUNet(SHALLOW, rngs=rngs))

    def objective(params, sample, text):
        return (pure.bind(params)(sample, level.numpy(), text, ids.numpy()).sample * np.moveaxis(direction.numpy(), 2, -1)).sum()

    arguments = ours(sample.detach(), level, text.detach(), ids)
    gradients = jax.jit(jax.grad(objective, (0, 1, 2)))(load(pure, shallow), arguments[0], arguments[2])
    check_gradients(gradients[0], shallow)
    check(gradients[1], np.moveaxis(sample.grad.numpy(), 2, -1), GRADIENT, "gradient of the sample")
    check(gradients[2], text.grad, GRADIENT, "gradient of the text")


def sinusoids(timesteps, embedding_dim, *, flip_sin_to_cos, downscale_freq_shift, scale):
    """In float64 if the timesteps are; diffusers computes them in float32 whatever the model. Cosines, then sines, of 10000^(-k / half)."""
    assert (flip_sin_to_cos, downscale_freq_shift, scale) == (True, 0, 1)
    half = embedding_dim // 2
    angles = timesteps.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


def test_the_same_function_in_float64_down_to_one_pixel(float64, monkeypatch):
    """Four levels from 8x8 images, two channels per group: at the bottom GroupNorm divides by the spread of two numbers."""
    monkeypatch.setattr("diffusers.models.embeddings.get_timestep_embedding", sinusoids)
    config = VideoUNetConfig(
        block_out_channels=(32, 64, 64, 64),
        attention_heads=(2, 4, 4, 4),
        layers_per_block=1,
        addition_time_embed_dim=16,
        cross_attention_dim=CONFIG.cross_attention_dim,
        dtype="float64",
    )
    theirs = randomized(diffusers_unet(config))
    arguments = [value.double() for value in inputs(height=8, width=8)]
    direction = normal(9, BATCH, FRAMES, 4, 8, 8).double()
    output = theirs(*arguments).sample
    (output * direction).sum().backward()
    pure = PureModule.of(lambda rngs: SpatioTemporalUNet(config, rngs=rngs))

    def objective(params):
        output = pure.bind(params)(*ours(*arguments)).sample
        return (output * np.moveaxis(direction.numpy(), 2, -1)).sum(), output

    gradients, got = jax.jit(jax.grad(objective, has_aux=True))(load(pure, theirs))
    check(got, np.moveaxis(to_numpy(output), 2, -1), FLOAT64, "sample")
    check_gradients(gradients, theirs, tolerance=FLOAT64)
