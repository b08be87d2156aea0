"""Blocks of the U-Net at sizes where ours compute otherwise on CPU: Winograd's convolutions with many channels, long self-attention."""

import math

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("diffusers", reason="diffusers is not installed: `make parity` compares with it")

import torch
from comparison import GRADIENT, check, check_gradients, load, normal, randomized, videos
from diffusers.models.resnet import SpatioTemporalResBlock as TheirResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

from vpp_jax.functional import PureModule
from vpp_jax.models.unet_blocks import BlockShape, SpatioTemporalResBlock, SpatioTemporalTransformer
from vpp_jax.ops import silu
from vpp_jax.ops.convolution import TEMPORAL_MATMUL_BELOW, WINOGRAD_MIN_CHANNELS
from vpp_jax.ops.dot_product_attention import MAPPED_MIN_SCORES

FRAMES = 4


def compare(theirs, pure: PureModule, x: torch.Tensor, call_theirs, call_ours) -> None:
    """Output, gradients of all weights and gradient of the input x [b·t c h w]."""
    x.requires_grad_()
    output = call_theirs(x)
    direction = normal(9, *output.shape)
    (output * direction).sum().backward()

    def objective(params, x):
        output = call_ours(pure.bind(params), x)
        return (output * videos(direction, FRAMES)).sum(), output

    run = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))
    (_, ours), gradients = run(load(pure, theirs), videos(x, FRAMES))
    check(ours, videos(output, FRAMES), what="output")
    check_gradients(gradients[0], theirs)
    check(gradients[1], videos(x.grad, FRAMES), GRADIENT, "gradient of the input")


@pytest.mark.parametrize("channels", [WINOGRAD_MIN_CHANNELS, TEMPORAL_MATMUL_BELOW])
def test_residual_block(channels):
    """From the second width on, the temporal convolutions are Winograd's, too."""
    theirs = randomized(TheirResBlock(channels, channels, temb_channels=24, eps=1e-6))
    pure = PureModule.of(lambda rngs: SpatioTemporalResBlock(channels, channels, groups=32, eps=1e-6, time_dim=24, rngs=rngs))
    time = normal(2, 2, 24)
    indicator = torch.zeros(2, FRAMES)
    compare(
        theirs,
        pure,
        normal(1, 2 * FRAMES, channels, 8, 4),
        lambda x: theirs(x, time.repeat_interleave(FRAMES, 0), indicator),
        lambda module, x: module(x, silu(time.numpy())),
    )


def test_transformer_over_many_positions():
    height, width = 16, math.isqrt(MAPPED_MIN_SCORES) // 16
    assert (height * width) ** 2 >= MAPPED_MIN_SCORES
    theirs = randomized(TransformerSpatioTemporalModel(2, 32, in_channels=64, cross_attention_dim=48))
    pure = PureModule.of(lambda rngs: SpatioTemporalTransformer(64, 2, BlockShape(24, 48, 32, "float32"), rngs=rngs))
    text, indicator = normal(2, 2, 20, 48), torch.zeros(2, FRAMES)
    compare(
        theirs,
        pure,
        normal(1, 2 * FRAMES, 64, height, width),
        lambda x: theirs(x, text.repeat_interleave(FRAMES, 0), indicator, return_dict=False)[0],
        lambda module, x: module(x, np.asarray(text)),
    )
