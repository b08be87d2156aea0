"""Shared by both sides of `benchmarks/against_pytorch.py`: sizes, random inputs, and weights derived from their published names.

Widths are multiples of 32, the number of groups that diffusers' GroupNorms have. `svd` is the published model; its training step of
stage `video` is measured at size `base`, which fits a small machine with gradients and optimizer.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vpp_jax.config import ExperimentConfig, default_config, from_config_dict
from vpp_jax.models.tokenizer import CLIPTokenizer

SIZES = ("tiny", "base", "svd")
SCALING_FACTOR = 0.18215
INSTRUCTION = "push the sliding door to the left side"
POLICY_TRAINING = ("batch_features", "actions", "action_noise", "action_sigma", "goal_ids", "goal_mask")
VIDEO_TRAINING = ("latents", "latent_noise", "latent_sigma", "states")
POLICY_BATCH = {"tiny": 8, "base": 8, "svd": 4}  # observations per training step


@dataclass
class Prepared:
    """A case ready to be timed.

    variants: name -> a call that ends when its result is there. outputs: of the first call, in PyTorch's layouts, to be compared.
    shared: random numbers that the other side needs. notes: figures to report.
    """

    variants: dict[str, Callable[[], Any]]
    outputs: dict[str, np.ndarray]
    shared: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)


def experiment(size: str) -> ExperimentConfig:
    """Stage `policy` at one of SIZES, float32, acting as published; nothing is read from its data and initial weights."""
    config = default_config()
    config.stage = "policy"
    config.data.datasets = ({"path": "unused", "name": "calvin_mujoco"},)
    config.optimizer.update(learning_rate=1e-4, betas=(0.9, 0.9), weight_decay=0.05, grad_clip=0.0)
    config.train.ema_decay = 0.0
    config.data.batch_size = POLICY_BATCH[size]
    model = config.model
    if size == "base":
        model.image_size = 128
        model.vae.update(block_out_channels=(64, 128, 256, 256))
        model.text.update(width=256, layers=6, heads=4, mlp_width=1024, projection_dim=256)
        model.unet.update(block_out_channels=(128, 256, 384, 384), attention_heads=(2, 4, 6, 6))
        model.former.update(dim=256, depth=4)
        model.action.width = 256
    if size == "tiny":
        model.update(image_size=64, frames=8)
        model.vae.update(block_out_channels=(32, 32, 64, 64), layers_per_block=1)
        model.text.update(width=64, layers=2, heads=2, mlp_width=128, projection_dim=64)
        model.unet.update(
            block_out_channels=(32, 64, 64),
            attention_levels=(True, True, False),
            attention_heads=(1, 2, 2),
            layers_per_block=1,
            addition_time_embed_dim=32,
        )
        model.former.update(dim=48, depth=2, heads=2, dim_head=24, tokens_per_frame=4)
        model.action.update(width=96, heads=4, encoder_layers=2, decoder_layers=2)
    return from_config_dict(config)


def video_experiment(size: str) -> ExperimentConfig:
    """Stage `video`: the full U-Net, with the published optimizer."""
    config = experiment("base" if size == "svd" else size)
    optimizer = replace(config.optimizer, learning_rate=5e-6, betas=(0.9, 0.999), weight_decay=0.0, grad_clip=1.0)
    return replace(config, optimizer=optimizer)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of a published name, float32: matrices ~ N(0, 1/fan-in), scales ~ 1 + 0.1 N, the rest ~ 0.1 N."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        noise /= np.float32(math.sqrt(math.prod(shape[1:])))
        return noise
    return 0.1 * noise + np.float32(name.endswith("weight"))


def inputs(config: ExperimentConfig, *names: str) -> dict[str, np.ndarray]:
    """Random inputs in PyTorch's layouts; float32 normal unless stated otherwise. Only the named ones are created."""
    model, rows = config.model, config.data.batch_size
    size, channels = model.image_size // model.vae.downscale, model.vae.latent_channels
    features = (model.frames, len(model.views) * tap_size(config) ** 2, model.former.condition_dim)
    actions = (rows, model.action.action_horizon, model.action.action_dim)
    normal_shapes = {
        "sample": (1, model.frames, 2 * channels, size, size),
        "states": (1, model.text_length, model.unet.cross_attention_dim),
        "latents": (1, model.frames, channels, size, size),
        "latent_noise": (1, model.frames, channels, size, size),
        "features": (1, *features),
        "batch_features": (rows, *features),
        "actions": actions,
        "action_noise": actions,
    }

    def make(name: str) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name in normal_shapes:
            return rng.standard_normal(normal_shapes[name], dtype=np.float32)
        if name == "images":  # uint8 [views 3 s s]
            return rng.integers(0, 256, (len(model.views), 3, model.image_size, model.image_size), np.uint8)
        if name in ("latent_sigma", "action_sigma"):
            return np.exp(rng.uniform(math.log(0.05), math.log(20.0), 1 if name == "latent_sigma" else rows)).astype(np.float32)
        consumer, part = name.split("_")  # ids and masks [1 l] of the U-Net's text and of the goal
        tokens = CLIPTokenizer({"video": model.text_length, "goal": model.goal_length}[consumer])([INSTRUCTION])
        return tokens[("ids", "mask").index(part)]

    return {name: make(name) for name in names}


def tap_size(config: ExperimentConfig) -> int:
    """Side of the feature maps that the Video Former reads: that of the last tapped block."""
    side = config.model.image_size // config.model.vae.downscale
    return config.model.unet.tap_shape(max(config.model.tap_blocks), side, side)[0]
