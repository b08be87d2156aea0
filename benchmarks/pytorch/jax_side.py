"""Our side of `benchmarks/against_pytorch.py`: each case compiled ahead of time, as the evaluator and the training loop compile it.

A case is a function of a size. It is prepared before the other side's, which receives the random numbers drawn here (`shared`).
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from pytorch.sizes import (
    POLICY_TRAINING,
    SCALING_FACTOR,
    VIDEO_TRAINING,
    Prepared,
    experiment,
    inputs,
    tensor,
    video_experiment,
)

from vpp_jax.diffusion import edm
from vpp_jax.diffusion.noise_schedules import get_sigmas
from vpp_jax.functional import Params, parameter_count, select, with_prefix
from vpp_jax.interop.tensors import from_published, published_name, published_shape, to_published
from vpp_jax.parallel.mesh import compiler_options
from vpp_jax.training.optimizers import clip_by_norm, group_norms, make_optimizer, squared_norms
from vpp_jax.training.stages.policy import PolicyStage
from vpp_jax.training.state import Trainer
from vpp_jax.video_predictor import VideoPredictor


def unet(size: str) -> Prepared:
    """One view's pass through the U-Net up to the last tap."""
    config = experiment(size)
    predictor, given = PolicyStage(config).policy.predictor, inputs(config, "sample", "states")
    ids = np.float32([[config.model.fps_id_features, config.model.motion_bucket, 0.0]])

    def run(params, *x):
        return predictor.unet.bind(params)(*x, taps=config.model.tap_blocks).taps

    arguments = (np.moveaxis(given["sample"], 2, -1), np.float32([1.6377701]), given["states"], ids)
    call, compile_s = compiled(run, weights("unet", predictor.unet.abstract), *arguments)
    outputs = {f"tap {i}": np.moveaxis(np.asarray(tap), -1, 2) for i, tap in call().items()}
    notes = {"compile_s": compile_s, "parameters": parameter_count(predictor.unet.abstract)}
    return Prepared({"": call}, outputs, notes=notes)


def vae(size: str) -> Prepared:
    """Both views' images to latents."""
    config = experiment(size)
    predictor, given = PolicyStage(config).policy.predictor, inputs(config, "images")
    params = with_prefix("vae", weights("vae", predictor.vae.abstract))
    call, compile_s = compiled(predictor.encode_images, params, np.moveaxis(given["images"], 1, -1))
    encoder = {name: spec for name, spec in predictor.vae.abstract.items() if not name.startswith("decoder.")}
    notes = {"compile_s": compile_s, "parameters": parameter_count(encoder)}
    return Prepared({"": call}, {"latents": np.moveaxis(np.asarray(call()), -1, 1)}, notes=notes)


def former(size: str) -> Prepared:
    """Features of both views to tokens."""
    config = experiment(size)
    module = PolicyStage(config).policy.video_former

    def run(params, x):
        return module.bind(params)(x)

    call, compile_s = compiled(run, weights("video_former", module.abstract), inputs(config, "features")["features"])
    notes = {"compile_s": compile_s, "parameters": parameter_count(module.abstract)}
    return Prepared({"": call}, {"tokens": np.asarray(call())}, notes=notes)


def act(size: str) -> Prepared:
    """Images and an encoded instruction -> action chunk: the program that the evaluator runs."""
    config = experiment(size)
    stage, given = PolicyStage(config), inputs(config, "images", "goal_ids", "goal_mask")
    policy = stage.policy
    abstract = stage.abstract_trainable() | stage.abstract_frozen()
    groups = sorted({name.split("/")[0] for name in abstract} - {"latents"})
    params = {"latents/scaling_factor": jnp.float32(SCALING_FACTOR)}
    for group in groups:
        params |= with_prefix(group, weights(group, select(group, abstract)))
    images = {view: np.moveaxis(given["images"][i : i + 1], 1, -1) for i, view in enumerate(config.model.views)}

    read, _ = compiled(policy.encode_instruction, params, given["goal_ids"], given["goal_mask"])
    instruction = jax.device_get(read())
    begin = time.perf_counter()
    read()
    read_s = time.perf_counter() - begin

    def program(params, images, instruction, proprio, seeds):
        return policy.act(params, images, instruction, proprio, jax.vmap(jax.random.key)(seeds))

    seeds = np.zeros(1, np.uint32)
    call, compile_s = compiled(program, params, images, instruction, np.zeros((1, 0), np.float32), seeds)
    shared = {name: np.asarray(value) for name, value in noise_of(policy, seeds).items()}
    notes = {"compile_s": compile_s, "parameters": parameter_count(params), "encode_instruction_s": read_s}
    return Prepared({"": call}, {"actions": np.asarray(call())}, shared, notes)


def noise_of(policy, seeds: np.ndarray) -> dict[str, jax.Array]:
    """The random numbers that `policy.act` draws from these seeds, for a side that has another generator."""
    feature_keys, action_keys = jax.vmap(jax.random.split, out_axes=1)(jax.vmap(jax.random.key)(seeds))
    action, sigmas = policy.config.action, get_sigmas(policy.diffusion.noise_schedule)
    start = jax.vmap(lambda key: jax.random.normal(key, (action.action_horizon, action.action_dim)))(action_keys) * sigmas[0]
    noise = policy._noise_per_example(feature_keys, policy.config.image_size)
    return {"feature_noise": jnp.moveaxis(noise, -1, 2), "start": start, "sigmas": sigmas}


def train_policy(size: str) -> Prepared:
    """The training loop's step of stage `policy` on given features: forward, backward, AdamW."""
    config = experiment(size)
    stage, given = PolicyStage(config), inputs(config, *POLICY_TRAINING)
    trainer, policy, rows = Trainer(stage), stage.policy, config.data.batch_size
    params = with_prefix("video_former", weights("video_former", policy.video_former.abstract))
    params |= with_prefix("action_transformer", weights("action_transformer", policy.action_transformer.abstract))
    frozen = with_prefix("goal_text_encoder", weights("goal_text_encoder", policy.goal_text_encoder.abstract))
    batch = {
        "features": given["batch_features"],
        "action": given["actions"],
        "action_mask": np.ones(given["actions"].shape[:2], bool),
        "text_ids": np.repeat(given["goal_ids"], rows, 0),
        "text_mask": np.repeat(given["goal_mask"], rows, 0),
        "proprio": np.zeros((rows, 0), np.float32),
    }
    batch = jax.device_put(batch)

    def objective(params: Params) -> jax.Array:
        """Without dropout and with given noise, so that results are comparable."""
        sigma, noise, actions = given["action_sigma"], given["action_noise"], given["actions"]
        context = policy.context(params, batch["features"], policy.goal_vector(frozen, batch["text_ids"], batch["text_mask"]), None)
        scale, noisy = edm.policy_preconditioning(sigma), edm.add_noise(actions, noise, sigma)
        output = policy.action_transformer.bind(select("action_transformer", params)).decode(scale.network_input(noisy), sigma, context)
        return jnp.mean((output - edm.policy_target(actions, noise, sigma)) ** 2)

    loss, gradients = jax.jit(jax.value_and_grad(objective))(params)
    outputs = {"loss": np.asarray(loss)} | {published_name(name): to_published(name, np.asarray(g)) for name, g in gradients.items()}
    state = replace(jax.jit(trainer.init)(jax.random.key(0)), params=params)
    step = Repeated(lambda *x: trainer.step(*x)[:2], state, frozen, batch)
    notes = {"compile_s": step.compile_s, "parameters": parameter_count(params), "batch": rows}
    return Prepared({"": lambda: step(frozen, batch)}, outputs, notes=notes)


def train_video(size: str) -> Prepared:
    """Stage `video` on latents that are at hand, as published: forward, backward, clipping, AdamW, for all parameters of the U-Net."""
    config = video_experiment(size)
    predictor, given = VideoPredictor(config.model, config.video_diffusion), inputs(config, *VIDEO_TRAINING)
    params = with_prefix("unet", weights("unet", predictor.unet.abstract))
    latents, states = np.moveaxis(given["latents"], 2, -1), given["states"]
    condition = latents[:, 0] / np.float32(SCALING_FACTOR)
    noise, sigma = np.moveaxis(given["latent_noise"], 2, -1), given["latent_sigma"]

    def update(state, sigma: jax.Array, noise: jax.Array):
        """The training step, with its random numbers as arguments, so that one program can be both compared and timed."""
        params, opt_state = state
        loss, gradients = jax.value_and_grad(predictor.denoising_loss)(params, latents, condition, states, sigma, noise)
        squares = squared_norms(gradients)
        gradients = clip_by_norm(gradients, group_norms(squares)["grad_norm"], config.optimizer.grad_clip)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), (loss, squares)

    optimizer, rng = make_optimizer(config.optimizer, config.train.steps), np.random.default_rng(0)
    parameters = parameter_count(params)
    step = Repeated(update, (params, jax.jit(optimizer.init)(params)), sigma, noise)
    loss, squares = step(sigma, noise)
    outputs = {"loss": np.asarray(loss)} | {published_name(name): np.sqrt(value) for name, value in squares.items()}

    def timed() -> None:
        drawn = np.exp(0.7 + 1.6 * rng.standard_normal(1, dtype=np.float32))
        step(drawn, rng.standard_normal(noise.shape, dtype=np.float32))

    return Prepared({"": timed}, outputs, notes={"compile_s": step.compile_s, "parameters": parameters, "batch": 1})


class Repeated:
    """A training step that is called repeatedly with its state donated, as in the training loop. -> its other outputs."""

    def __init__(self, step: Callable, state: Any, *arguments: Any):
        begin = time.perf_counter()
        self._step = jax.jit(step, donate_argnums=0).lower(state, *arguments).compile(compiler_options())
        self.compile_s = time.perf_counter() - begin
        self._state = jax.device_put(state)

    def __call__(self, *arguments: Any) -> Any:
        self._state, more = jax.block_until_ready(self._step(self._state, *arguments))
        return more


def compiled(function: Callable, *arguments: Any) -> tuple[Callable[[], Any], float]:
    """(a call of the compiled function on these arguments, seconds that compiling took)."""
    arguments = jax.device_put(arguments)
    begin = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile(compiler_options())
    return lambda: jax.block_until_ready(program(*arguments)), time.perf_counter() - begin


def weights(group: str, abstract: Params) -> Params:
    """Parameters of one module; the same numbers as on the other side."""
    return {
        name: jnp.asarray(from_published(name, tensor(f"{group}/{published_name(name)}", published_shape(name, spec.shape))))
        for name, spec in abstract.items()
    }


CASES = {"unet": unet, "vae": vae, "former": former, "act": act, "train_policy": train_policy, "train_video": train_video}
