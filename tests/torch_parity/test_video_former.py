"""The Video Former's variants against a plain PyTorch module, which itself is held to vectors recorded from the published one."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")

import reference_vectors
import torch
from comparison import BFLOAT16, FLOAT64, FORWARD, GRADIENT, check, check_gradients, load, normal, randomized, record, submodule, to_numpy
from pytorch.video_former import LinearFormer
from pytorch.video_former import VideoFormer as TheirFormer

from vpp_jax.functional import PureModule
from vpp_jax.models.video_former import VideoFormer, VideoFormerConfig

CONFIG = VideoFormerConfig(dim=32, depth=2, heads=4, dim_head=16, frames=3, tokens_per_frame=5, condition_dim=24)
FEATURES = normal(1, 2, CONFIG.frames, 14, CONFIG.condition_dim)


def twin(config: VideoFormerConfig) -> torch.nn.Module:
    if config.variant == "linear":
        return LinearFormer(dim=config.dim, condition_dim=config.condition_dim)
    return TheirFormer(
        dim=config.dim,
        depth=config.depth,
        heads=config.heads,
        dim_head=config.dim_head,
        frames=config.frames,
        tokens_per_frame=config.tokens_per_frame,
        condition_dim=config.condition_dim,
        temporal=config.variant == "3d",
    )


def build(config: VideoFormerConfig) -> PureModule:
    return PureModule.of(lambda rngs: VideoFormer(config, rngs=rngs))


@pytest.mark.parametrize(("variant", "module", "output"), [("3d", "video_former", "vf_out"), ("2d", "video_former_2d", "vf2d_out")])
def test_the_twin_is_the_published_module(variant, module, output, reference_data):
    vectors, state = reference_vectors.vectors(reference_data / "parity"), reference_vectors.weights(reference_data / "parity")[module]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    frames, tokens, _ = state["latents"].shape
    config = VideoFormerConfig(variant, depth=depth, frames=frames, tokens_per_frame=tokens, condition_dim=vectors["vf_in"].shape[-1])
    with torch.no_grad():
        check(reference_vectors.with_weights(twin(config), state)(vectors["vf_in"]), vectors[output], what=output)


def check_tokens_and_gradients(config: VideoFormerConfig, features: torch.Tensor, forward: float, gradient: float):
    theirs, pure = randomized(twin(config)), build(config)
    params, features = load(pure, theirs), features.clone().requires_grad_()
    tokens = theirs(features)
    direction = normal(2, *tokens.shape).to(features.dtype)
    (tokens * direction).sum().backward()

    def objective(params, x):
        tokens = pure.bind(params)(x)
        return (tokens * direction.numpy()).sum(), tokens

    gradients, got = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(params, features.detach().numpy())
    check(got, tokens, forward, "tokens")
    check_gradients(gradients[0], theirs, tolerance=gradient)
    check(gradients[1], features.grad, gradient, "gradient of the features")


@pytest.mark.parametrize("variant", ["3d", "2d", "linear"])
def test_tokens_and_gradients(variant):
    check_tokens_and_gradients(dataclasses.replace(CONFIG, variant=variant), FEATURES, FORWARD, GRADIENT)


@pytest.mark.parametrize("variant", ["3d", "2d", "linear"])
def test_the_same_function_in_float64(variant, float64):
    config = dataclasses.replace(CONFIG, variant=variant, dtype="float64")
    check_tokens_and_gradients(config, FEATURES.double(), FLOAT64, FLOAT64)


def _feed_forward(layers, x):
    """The published feed-forward is a Sequential; ours are its entries."""
    return layers[3](jax.nn.gelu(layers[1](layers[0](x)), approximate=False))


def _call(layer, *inputs):
    return layer(*inputs)


def test_layers():
    """Spatial attention, temporal attention and feed-forward on the inputs they get inside a pass."""
    theirs, pure = randomized(twin(CONFIG)), build(CONFIG)
    params = load(pure, theirs)
    calls = record(theirs, ["goal_emb", "layers.1.0", "layers.1.1", "layers.1.2"], lambda: theirs(FEATURES))
    for path, call in calls.items():
        inputs = [to_numpy(value) for value in call.arguments.values()]
        if path == "layers.1.0":
            inputs.reverse()  # latents first here
        run = _feed_forward if path == "layers.1.2" else _call
        got = jax.jit(lambda p, *x, path=path, run=run: run(submodule(pure.bind(p), path), *x))(params, *inputs)
        check(got, call.output, what=path)


def test_bfloat16_stays_close():
    theirs, pure = randomized(twin(CONFIG)), build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    with torch.no_grad():
        want = theirs(FEATURES)
    check(jax.jit(lambda p, x: pure.bind(p)(x))(load(pure, theirs), np.asarray(FEATURES)), want, BFLOAT16, "tokens")
