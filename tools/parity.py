"""Parity: recomputes every array of a folder of reference vectors and prints its error.

    python -m tests.parity DIR [--seed 0]

DIR has `config.json` (sizes), `keys.json` (tensors per module, whose values are a function of name, shape and seed), and `vectors.npz`:
inputs and outputs of the published modules, recorded in float32 on a CPU. One line per array: name, shape, largest error relative to the
largest magnitude of the array, verdict. The exit code is 1 if one differs or is not recomputed.

Float32 does not determine some arrays to the tolerance, neither in the recording nor here: where an image has shrunk to one pixel,
GroupNorm divides by the spread of two numbers. An array that misses its tolerance is therefore recomputed in float32 and in float64, with
these weights and with up to `DRAWS` perturbed sets of weights, for which rounding differs and a mistake does not. It passes if

- the recording is no farther from float64 than float32 is with one of these: if the function is correct, the recording is one more such
  rounding, and the farthest of all with a probability of one in `DRAWS` + 2;
- float32 here differs from float64 by no more than the tolerance on average, entry by entry: rounding errors average out.

An array that misses its tolerance tenfold fails in any case.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vpp_jax.config import ModelConfig, OptimizerConfig, VideoDiffusionConfig
from vpp_jax.diffusion import edm
from vpp_jax.diffusion.densities import SigmaDensityConfig, truncated_loglogistic_quantile
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas
from vpp_jax.diffusion.samplers import sample_trajectory
from vpp_jax.functional import PureModule, with_prefix
from vpp_jax.interop.tensors import import_tensors, published_name, to_published
from vpp_jax.models.action_transformer import ActionTransformer, ActionTransformerConfig
from vpp_jax.models.text_encoder import TextEncoderConfig
from vpp_jax.models.video_former import VideoFormer, VideoFormerConfig
from vpp_jax.models.video_unet import VideoUNetConfig
from vpp_jax.models.video_vae import VideoVAEConfig
from vpp_jax.training.schedules import make_schedule
from vpp_jax.video_predictor import SCALING_FACTOR, VideoPredictor

PUBLISHED = VideoDiffusionConfig()
FORWARD, GRADIENT, SAMPLED = 2e-5, 1e-4, 1e-4  # of the largest magnitude of the array
DRAWS, NEARBY = 18, 2.0**-17  # the weights of a draw are all moved by this share, up or down: every rounding is another
INPUTS = (
    "rgb_static",
    "rgb_gripper",
    "input_ids",
    "attention_mask",
    "extract_noise",
    "unet_t",
    "goal",
    "actions",
    "act_noise",
    "act_sigma",
    "proprio",
    "ddim_x_T",
    "loglogistic_u",
    "tvp_latents",
    "tvp_noise",
    "tvp_sigma",
    "tvp_time_ids",
    "unet_time_ids",
    "gen_time_ids",
    "gen_noise",
    "vae_dec_in",
)


@dataclass(frozen=True)
class Folder:
    """The files of one folder, and the models built at its sizes."""

    path: Path
    seed: int
    precision: str = "float32"  # of the computation
    draw: int = 0  # 0: weights as they are; n: the n-th set of weights nearby
    programs: dict[str, Callable] = field(default_factory=dict)
    predictors: dict[tuple, VideoPredictor] = field(default_factory=dict)

    def compile(self, name: str, function: Callable) -> Callable:
        """`function`, jitted once for this folder and its draws: it must get the weights as arguments."""
        options = {"xla_backend_optimization_level": 0} if self.precision == "float64" else None  # exact either way, and compiled sooner
        return self.programs.setdefault(name, jax.jit(function, compiler_options=options))

    @cached_property
    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_text())

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        with np.load(self.path / "vectors.npz", allow_pickle=False) as archive:
            recorded = {name: archive[name] for name in archive.files}
        return {name: array.astype(self.precision) if array.dtype == np.float32 else array for name, array in recorded.items()}

    @cached_property
    def weights(self) -> dict[str, dict[str, np.ndarray]]:
        modules = json.loads((self.path / "keys.json").read_text())
        return {module: {key: self.tensor(key, tuple(shape)) for key, shape in keys.items()} for module, keys in modules.items()}

    def tensor(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Matrices and kernels ~ N(0, 1/fan-in), vectors called weight ~ 1 + 0.1 N, other vectors ~ 0.1 N."""
        noise = np.random.default_rng([self.seed, zlib.crc32(key.encode())]).standard_normal(shape, np.float32)
        if len(shape) >= 2:
            value = noise / np.float32(np.sqrt(np.prod(shape[1:])))
        else:
            value = (1 + 0.1 * noise if key.endswith("weight") else 0.1 * noise).astype(np.float32)
        if not self.draw:
            return value
        direction = np.random.default_rng([self.draw, zlib.crc32(key.encode())]).choice([-NEARBY, NEARBY], shape)
        return (value * (1 + direction)).astype(np.float32)

    def load(self, pure: PureModule, module: str, prefix: str = "") -> dict[str, jax.Array]:
        tensors = import_tensors(pure.abstract, self.weights[module], prefix)
        return {name: jnp.asarray(value, self.precision) for name, value in tensors.items()}

    # --- configurations -----------------------------------------------------------------------------------------------------------

    @property
    def text(self) -> TextEncoderConfig:
        clip = self.config["clip"]
        return TextEncoderConfig(
            vocab_size=clip["vocab_size"],
            width=clip["hidden_size"],
            layers=clip["num_hidden_layers"],
            heads=clip["num_attention_heads"],
            mlp_width=clip["intermediate_size"],
            max_positions=clip["max_position_embeddings"],
            projection_dim=clip["projection_dim"],
            end_of_text=clip["eos_token_id"],
            dtype=self.precision,
        )

    @property
    def unet(self) -> VideoUNetConfig:
        unet = self.config["unet"]
        return VideoUNetConfig(
            in_channels=unet["in_channels"],
            out_channels=unet["out_channels"],
            block_out_channels=tuple(unet["block_out_channels"]),
            attention_heads=tuple(unet["num_attention_heads"]),
            layers_per_block=unet["layers_per_block"],
            cross_attention_dim=unet["cross_attention_dim"],
            addition_time_embed_dim=unet["addition_time_embed_dim"],
            dtype=self.precision,
        )

    @property
    def vae(self) -> VideoVAEConfig:
        vae = self.config["vae"]
        widths = tuple(vae["block_out_channels"])
        return VideoVAEConfig(widths, vae["layers_per_block"], vae["latent_channels"], dtype=self.precision)

    def former(self, variant: str) -> VideoFormerConfig:
        module = "video_former" if variant == "3d" else "video_former_2d"
        sizes, keys = self.config["video_former"], self.weights[module]
        depth = 1 + max(int(name.split(".")[1]) for name in keys if name.startswith("layers."))
        return VideoFormerConfig(
            variant,
            dim=sizes["dim"],
            depth=depth,
            heads=sizes["heads"],
            dim_head=sizes["dim_head"],
            frames=sizes["num_frame"],
            tokens_per_frame=keys["latents"].shape[1],
            condition_dim=sizes["condition_dim"],
            dtype=self.precision,
        )

    def action(self, proprio: bool) -> ActionTransformerConfig:
        sizes = self.config["policy"]
        return ActionTransformerConfig(
            action_dim=sizes["action_dim"],
            action_horizon=sizes["act_seq_len"],
            goal_dim=sizes["goal_dim"],
            token_dim=sizes["obs_dim"],
            proprio_dim=sizes["proprio_dim"] if proprio else 0,
            dtype=self.precision,
        )

    def model(self, **changes) -> ModelConfig:
        vectors = self.vectors
        model = ModelConfig(
            image_size=vectors["rgb_static"].shape[-1],
            frames=vectors["extract_noise"].shape[1],
            text_length=vectors["input_ids"].shape[1],
            text=self.text,
            unet=self.unet,
            vae=self.vae,
        )
        return replace(model, **changes)

    @property
    def images(self) -> np.ndarray:
        """Both views, static then gripper, in [-1, 1], NHWC."""
        return last(np.concatenate([self.vectors["rgb_static"], self.vectors["rgb_gripper"]])[:, 0])

    def predictor(self, diffusion: VideoDiffusionConfig = PUBLISHED, **changes) -> tuple[VideoPredictor, dict[str, jax.Array]]:
        """Stage 1 as the project uses it, and its parameters."""
        key = (diffusion, *sorted(changes.items()))
        if key not in self.predictors:  # cached: building a U-Net abstractly takes seconds
            self.predictors[key] = VideoPredictor(self.model(**changes), diffusion)
        predictor = self.predictors[key]
        params = with_prefix("text", self.load(predictor.text, "clip_text")) | with_prefix("vae", self.load(predictor.vae, "vae"))
        params |= with_prefix("unet", self.load(predictor.unet, "unet"))
        return predictor, params | {SCALING_FACTOR: jnp.asarray(self.config["vae"]["scaling_factor"], self.precision)}


def last(array: np.ndarray) -> np.ndarray:
    """Channels of a published image or video array to the end."""
    return np.moveaxis(array, -3, -1)


def first(array: jax.Array) -> np.ndarray:
    """And back."""
    return np.moveaxis(np.asarray(array), -1, -3)


Results = Iterator[tuple[str, np.ndarray, float]]  # name, value, tolerance
Group = Callable[[Folder], Results]
FEATURES = {"pe0": {}, "single_layer": {"tap_blocks": (1,)}, "step2": {"feature_steps": 2}, "pe1": {"position_encode": True}}


def text_and_vae(folder: Folder) -> Results:
    vectors, (predictor, _) = folder.vectors, folder.predictor()
    text, vae = folder.load(predictor.text, "clip_text"), folder.load(predictor.vae, "vae")
    ids, mask = vectors["input_ids"].astype(np.int32), vectors["attention_mask"].astype(bool)
    output = folder.compile("text", lambda p: predictor.text.bind(p)(ids, mask))(text)
    yield "text_hidden", output.hidden, FORWARD
    yield "text_embeds_projected", output.pooled, FORWARD
    posterior = folder.compile("encode", lambda p, x: predictor.vae.bind(p).encode(x))(vae, folder.images)
    yield "vae_moments", first(jnp.concatenate(posterior, axis=-1)), FORWARD
    decoded = folder.compile("decode", lambda p, z: predictor.vae.bind(p).decode(z))(vae, last(vectors["vae_dec_in"])[None])
    yield "vae_dec_out", first(decoded[0]), FORWARD


def features(folder: Folder) -> Results:
    """The extractor: with and without positions, from one block, after a denoising step; and the tokens that the Video Former gets."""
    vectors = folder.vectors
    ids, mask = vectors["input_ids"].astype(np.int32), vectors["attention_mask"].astype(bool)
    for name, changes in FEATURES.items():
        predictor, params = folder.predictor(**changes)
        states = folder.compile(f"text {predictor.config.position_encode}", predictor.encode_text)(params, ids, mask)
        built = (predictor.config.tap_blocks, predictor.config.feature_steps)  # the rest of the changes does not concern the U-Net
        extract = folder.compile(f"features {built}", predictor.predictive_features)
        values = extract(params, folder.images, states, last(vectors["extract_noise"]))
        side = round(values.shape[2] ** 0.5)
        yield f"features_{name}", first(values.reshape(*values.shape[:2], side, side, -1)), FORWARD
        if f"cond_{name}" in vectors:
            yield f"cond_{name}", states, FORWARD
        if name == "pe0":
            yield "vf_in", np.concatenate(np.split(np.asarray(values), 2), axis=2), FORWARD


def unet(folder: Folder) -> Results:
    """The U-Net at the noise level of the extractor, and as stage 1 trains it."""
    vectors, (predictor, _) = folder.vectors, folder.predictor()
    posterior = folder.compile("encode", lambda p, x: predictor.vae.bind(p).encode(x))(folder.load(predictor.vae, "vae"), folder.images)
    noise = last(vectors["extract_noise"])
    yield "unet_in", first(jnp.concatenate([noise, np.broadcast_to(posterior.mean[:, None], noise.shape)], -1)), FORWARD
    level = np.full(len(noise), vectors["unet_t"], noise.dtype)
    run = folder.compile("unet", lambda p, *inputs: predictor.unet.bind(p)(*inputs, taps=(0, 1)))
    params = folder.load(predictor.unet, "unet")
    output = run(params, last(vectors["unet_in"]), level, vectors["cond_pe0"], vectors["unet_time_ids"])
    yield "unet_out", first(output.sample), FORWARD
    for tap in (0, 1):
        values = first(output.taps[tap])
        yield f"unet_up{tap}", values.reshape(-1, *values.shape[2:]), FORWARD  # recorded with frames in the batch

    latents, noise, sigma, condition, states = stage_one_inputs(folder)
    scale, noisy = edm.video_preconditioning(sigma), edm.add_noise(latents, noise, sigma)
    image = jnp.broadcast_to(condition[:, None], latents.shape)
    inputs = (jnp.concatenate([scale.network_input(noisy), image], -1), scale.c_noise, states, vectors["tvp_time_ids"])
    doubled = [jnp.concatenate([value, value]) for value in inputs]  # the batch that is compiled already
    yield "tvp_out", first(run(params, *doubled).sample[: len(latents)]), FORWARD


def stage_one_inputs(folder: Folder) -> tuple[jax.Array, ...]:
    """Latents, noise, noise levels, conditions and text states of the recorded training example."""
    vectors = folder.vectors
    latents, noise = last(vectors["tvp_latents"]), last(vectors["tvp_noise"])
    condition = latents[:, 0] / latents.dtype.type(folder.config["vae"]["scaling_factor"])
    sigma, states = vectors["tvp_sigma"].reshape(-1), vectors["cond_pe0"][: len(latents)]
    return tuple(map(jnp.asarray, (latents, noise, sigma, condition, states)))


def stage_one(folder: Folder) -> Results:
    """Training loss of the video model with two of its gradients, and guided sampling of latents."""
    diffusion = replace(
        PUBLISHED,
        noise_schedule=replace(PUBLISHED.noise_schedule, num_sampling_steps=SAMPLED_VIDEO_STEPS),
        guidance_max=SAMPLED_VIDEO_GUIDANCE,
    )
    predictor, params = folder.predictor(diffusion)
    latents, noise, sigma, condition, states = stage_one_inputs(folder)

    def loss(chosen, params):
        return predictor.denoising_loss(params | chosen, latents, condition, states, sigma, noise)

    chosen = {name: params[name] for name in TVP_GRADIENTS.values()}
    value, gradients = folder.compile("stage one", jax.value_and_grad(loss))(chosen, params)
    yield "tvp_loss", value, FORWARD
    for theirs, name in TVP_GRADIENTS.items():
        yield theirs, to_published(name, np.asarray(gradients[name])), GRADIENT
    drawn = folder.compile("sample", predictor.sample_latents)(params, condition, states, last(folder.vectors["gen_noise"]))
    yield "gen_latents", first(drawn), SAMPLED


def former(folder: Folder) -> Results:
    for variant, module, output in (("3d", "video_former", "vf_out"), ("2d", "video_former_2d", "vf2d_out")):
        pure = PureModule.of(lambda rngs, variant=variant: VideoFormer(folder.former(variant), rngs=rngs))
        run = folder.compile(f"former {variant}", lambda params, features, pure=pure: pure.bind(params)(features))
        yield output, run(folder.load(pure, module), folder.vectors["vf_in"]), FORWARD


def policy(folder: Folder) -> Results:
    """Context, network output, loss with gradients, the denoiser, and both sampling noise schedules."""
    vectors, sigma_data = folder.vectors, folder.config["policy"]["sigma_data"]
    tokens, goal, actions, noise, sigma = (jnp.asarray(vectors[name]) for name in ("vf_out", "goal", "actions", "act_noise", "act_sigma"))
    pure = PureModule.of(lambda rngs: ActionTransformer(folder.action(proprio=False), rngs=rngs))
    params, scale = folder.load(pure, "policy", "inner_model."), edm.policy_preconditioning(sigma, sigma_data)

    def loss(params, tokens):
        model, noisy = pure.bind(params), edm.add_noise(actions, noise, sigma)
        context = model.encode(tokens, goal[:, 0])
        output = model.decode(scale.network_input(noisy), sigma, context)
        error = jnp.mean((output - edm.policy_target(actions, noise, sigma, sigma_data)) ** 2)
        return error, (context, output, scale.denoised(noisy, output))

    gradients_of = folder.compile("policy", jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (context, output, denoised)), gradients = gradients_of(params, tokens)
    yield "policy_context", context, FORWARD
    yield "policy_model_output", output, FORWARD
    yield "policy_loss", value, FORWARD
    yield "policy_denoised", denoised, FORWARD
    yield "policy_grad_tokens", gradients[1], GRADIENT
    for name, gradient in gradients[0].items():
        theirs = f"policy_grad/inner_model.{published_name(name)}"
        if theirs in vectors:
            yield theirs, to_published(name, np.asarray(gradient)), GRADIENT

    with_proprio = PureModule.of(lambda rngs: ActionTransformer(folder.action(proprio=True), rngs=rngs))

    def see_proprio(params):  # recorded with the clean actions as input, without c_in
        model = with_proprio.bind(params)
        return model.decode(actions, sigma, model.encode(tokens, goal[:, 0], jnp.asarray(vectors["proprio"])[:, 0]))

    see_proprio = folder.compile("policy with proprio", see_proprio)
    yield "policy_model_output_with_proprio", see_proprio(folder.load(with_proprio, "policy", "inner_model.")), FORWARD

    def draw(params, start, sigmas):
        model = pure.bind(params)
        context = model.encode(tokens, goal[:, 0])

        def denoise(x, sigma):
            scale = edm.policy_preconditioning(sigma, sigma_data)
            return scale.denoised(x, model.decode(scale.network_input(x), sigma, context))

        return sample_trajectory(denoise, start, sigmas, "ddim")

    draw = folder.compile("ddim", draw)
    for name in vectors:
        if name.startswith("ddim_sigmas_"):
            low = name.removeprefix("ddim_sigmas_")
            sigmas = get_sigmas(NoiseScheduleConfig("exponential", len(vectors[name]) - 1, float(low), 80.0))
            yield name, sigmas, FORWARD
            result, seen = draw(params, vectors["ddim_x_T"], sigmas)
            yield f"ddim_out_{low}", result, SAMPLED
            yield f"ddim_x_{low}", seen.states, SAMPLED
            yield f"ddim_denoised_{low}", seen.denoised, SAMPLED


def schedules(folder: Folder) -> Results:
    vectors, scheduler = folder.vectors, folder.config["scheduler"]
    steps = len(vectors["sched_timesteps20"])
    sigmas = get_sigmas(NoiseScheduleConfig("svd_euler", steps, scheduler["sigma_min"], scheduler["sigma_max"]))
    yield "sched_sigmas20", sigmas, FORWARD
    yield "sched_timesteps20", edm.video_preconditioning(jnp.asarray(sigmas[:-1])).c_noise, FORWARD
    yield "loglogistic_sigma", truncated_loglogistic_quantile(jnp.asarray(vectors["loglogistic_u"]), PUBLISHED_DENSITY), FORWARD
    published = OptimizerConfig(
        learning_rate=1e-4, schedule="tri_stage", warmup_ratio=0.02, hold_ratio=0.08, initial_scale=0.1, final_scale=1e-6
    )
    rates = jax.vmap(make_schedule(published, 50_000))(jnp.arange(len(vectors["tri_stage_lr"])))
    yield "tri_stage_lr", rates, FORWARD


SAMPLED_VIDEO_STEPS, SAMPLED_VIDEO_GUIDANCE = 4, 7.5
TVP_GRADIENTS = {
    "tvp_grad_conv_in": "unet/conv_in.kernel",
    "tvp_grad_mix": "unet/up_blocks.1.attentions.0.time_mixer.mix_factor",
}
FORMATTER = argparse.RawDescriptionHelpFormatter
PUBLISHED_DENSITY = SigmaDensityConfig("truncated_loglogistic")
GROUPS: tuple[Group, ...] = (text_and_vae, features, unet, stage_one, former, policy, schedules)


class Rounding(NamedTuple):
    """Differences from float64, relative to the largest magnitude of the array: the recording's, and the largest and mean of float32's."""

    record: float
    largest: float
    average: float

    def explains(self, tolerance: float) -> bool:
        return self.record <= self.largest and self.average <= tolerance


def compare(folder: Folder, groups: Sequence[Group] = GROUPS) -> bool:
    """Prints a line per array; whether all of them are within their limits."""
    fine, seen = True, set(INPUTS)
    for group in groups:
        results = [(name, np.asarray(value), tolerance) for name, value, tolerance in group(folder)]
        errors = {name: distance(value, folder.vectors[name]) for name, value, _ in results}
        doubtful = {name: tolerance for name, _, tolerance in results if tolerance < errors[name] <= 10 * tolerance}
        roundings = recompute(folder, group, doubtful) if doubtful else {}
        for name, value, tolerance in results:
            ok = errors[name] <= tolerance
            note = "" if ok else f" (limit {tolerance:g})"
            if name in roundings:
                record, largest, average = roundings[name]
                ok = roundings[name].explains(tolerance)
                note = f" (limit {tolerance:g}; from float64: record {record:.1e}, float32 up to {largest:.1e}, on average {average:.1e})"
            print(f"{name:56} {value.shape!s:24} {errors[name]:9.2e}  {'ok' if ok else 'FAIL'}{note}", flush=True)
            fine, seen = fine and ok, seen | {name}
    for name in sorted(folder.vectors.keys() - seen):
        fine = False
        print(f"{name:56} {folder.vectors[name].shape!s:24} not recomputed  FAIL")
    return fine


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference, relative to the largest magnitude of `want`; infinite if shapes differ or a value is not a number."""
    if got.shape != want.shape or not np.isfinite(got).all():
        return np.inf
    return float(np.abs(got - want).max() / np.abs(want).max())


def recompute(folder: Folder, group: Group, doubtful: dict[str, float]) -> dict[str, Rounding]:
    """Arrays (name -> tolerance) in float32 and float64, draw after draw until rounding explains them all, or there are no more draws."""

    def of(folder: Folder) -> dict[str, np.ndarray]:
        found, results = {}, group(folder)
        while found.keys() != doubtful.keys():  # what comes after the last of them is not even compiled
            name, value, _ = next(results)
            if name in doubtful:
                found[name] = np.asarray(value)
        return found

    in_float64 = replace(folder, precision="float64", programs={}, predictors={})
    record, errors, roundings = {}, {name: [] for name in doubtful}, {}
    for draw in range(DRAWS + 1):
        rounded = of(replace(folder, draw=draw))
        with jax.enable_x64(True):
            exact = of(replace(in_float64, draw=draw))
        record = record or {name: distance(folder.vectors[name], value) for name, value in exact.items()}
        for name, value in exact.items():
            errors[name].append((rounded[name] - value) / np.abs(value).max())
            largest, average = np.abs(errors[name]).max(), np.abs(np.mean(errors[name], axis=0)).max()
            roundings[name] = Rounding(record[name], float(largest), float(average))
        if all(roundings[name].explains(tolerance) for name, tolerance in doubtful.items()):
            break
    return roundings


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__, formatter_class=FORMATTER)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    options = parser.parse_args(argv)
    return 0 if compare(Folder(options.directory, options.seed)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
