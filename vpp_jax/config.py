"""The configuration of an experiment: frozen dataclasses, built once at start from an ml_collections file, a JSON file or a dict.

Configuration files start from `default_config()` and override fields; the command line overrides fields of that; `from_config_dict`
turns the result into an `ExperimentConfig` and refuses unknown names, wrong types, values out of range and fields that contradict one
another. Code below the command line sees the dataclasses only. `vpp_jax.common.config_fields` is how a field is declared.
"""

import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from data_pipelines.config import DataConfig
from vpp_jax.common.config_fields import ANNOUNCED, FREE, OnResume, check_ranges, element_group, group, setting, settings
from vpp_jax.common.config_tree import build, to_tree
from vpp_jax.common.errors import ConfigError
from vpp_jax.common.json_values import config_hash, to_jsonable
from vpp_jax.config_checks import check_experiment, check_inputs
from vpp_jax.diffusion.densities import SigmaDensityConfig
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig
from vpp_jax.diffusion.samplers import SAMPLERS as SAMPLER_TABLE
from vpp_jax.models.action_transformer import ActionTransformerConfig
from vpp_jax.models.text_encoder import TextEncoderConfig
from vpp_jax.models.video_former import VideoFormerConfig
from vpp_jax.models.video_unet import VideoUNetConfig
from vpp_jax.models.video_vae import VideoVAEConfig
from vpp_jax.parallel.mesh import MeshConfig

__all__ = [
    "ConfigError",
    "DataConfig",
    "EvaluatorConfig",
    "ExperimentConfig",
    "InitConfig",
    "LoRAConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PolicyDiffusionConfig",
    "TrainConfig",
    "VAETrainingConfig",
    "VideoDiffusionConfig",
    "check_inputs",
    "config_diff",
    "config_hash",
    "default_config",
    "from_config_dict",
    "from_json",
    "on_resume",
    "to_config_dict",
    "to_dict",
    "to_json",
]

STAGES = ("vae", "video", "policy")
SCHEDULES = ("constant", "cosine", "tri_stage", "wsd")
SAMPLERS = tuple(SAMPLER_TABLE)
EVALUATORS = ("loss", "preview", "action_mse")


@dataclass(frozen=True)
class ModelConfig:
    """What is built, for all stages: a policy needs the parts of the video model that its features come from."""

    image_size: int = setting(256, "side of the square images that every view is resized to, pixels", at_least=1)
    frames: int = setting(16, "frames of a clip, including the first one, which is given", at_least=2)
    views: tuple[str, ...] = setting(("primary", "wrist"), "cameras of the policy, in the order in which their tokens are concatenated")
    vae: VideoVAEConfig = group(VideoVAEConfig)
    unet: VideoUNetConfig = group(VideoUNetConfig)
    text: TextEncoderConfig = group(TextEncoderConfig)
    former: VideoFormerConfig = group(VideoFormerConfig)
    action: ActionTransformerConfig = group(ActionTransformerConfig)
    text_length: int = setting(20, "tokens per instruction that the U-Net attends to, padding included", at_least=1)
    goal_length: int = setting(77, "tokens per instruction of the policy's goal encoder, padding included", at_least=1)
    position_encode: bool = setting(False, "sinusoidal positions are added to the CLIP states (published: svd-robot yes, CALVIN no)")
    fps_id_train: int = setting(7, "micro-conditioning: frame rate in training and its previews", at_least=0)
    fps_id_generate: int = setting(7, "micro-conditioning: frame rate when a video is sampled", at_least=0)
    fps_id_features: int = setting(4, "micro-conditioning: frame rate when features are computed", at_least=0)
    motion_bucket: int = setting(127, "micro-conditioning: amount of motion", at_least=0)
    noise_aug_id_generate: float = setting(
        0.02, "micro-conditioning: noise augmentation when a video is sampled; in training and for features it is 0", at_least=0
    )
    tap_blocks: tuple[int, ...] = setting((0, 1), "up blocks whose outputs are the predictive features, ascending", at_least=0)
    feature_sigma: float = setting(700.0, "noise level from which the features are computed", more_than=0.002)
    feature_steps: int = setting(1, "denoising steps of which the last one gives the features (published: 1, from pure noise)", at_least=1)
    feature_schedule_steps: int = setting(
        20, "length of the noise schedule from feature_sigma to 0.002; without effect while feature_steps is 1", at_least=1
    )
    fixed_feature_noise: bool = setting(False, "the same noise for every observation: features are a function of image and text")
    text_trainable: bool = setting(
        False, "stage video trains the text encoder of the U-Net, stage policy the goal encoder; off, both are loaded"
    )
    n_action_steps: int = setting(10, "actions that are executed before the next chunk is predicted", at_least=1)

    def __post_init__(self):
        check_ranges(self)
        if self.goal_length < self.text_length:
            raise ConfigError(f"goal_length is {self.goal_length}, expected at least text_length = {self.text_length}")
        if self.feature_steps > self.feature_schedule_steps:
            raise ConfigError(f"feature_steps {self.feature_steps} is more than feature_schedule_steps {self.feature_schedule_steps}")
        if not self.tap_blocks or list(self.tap_blocks) != sorted(set(self.tap_blocks)):
            raise ConfigError(f"tap_blocks is {self.tap_blocks}, expected at least one up block, ascending and each once")
        levels = len(self.unet.block_out_channels)
        if self.tap_blocks[-1] >= levels:
            raise ConfigError(f"tap_blocks is {self.tap_blocks}, but the U-Net has up blocks 0 to {levels - 1}")
        for name, part in resolve(self).items():
            object.__setattr__(self, name, part)

    def unet_up_to(self, last_tap: int | None) -> VideoUNetConfig:
        """The U-Net's configuration, built only up to up block `last_tap`; None builds all of it."""
        return self.unet if last_tap is None else replace(self.unet, last_tap=last_tap)


def resolve(model: ModelConfig) -> dict[str, Any]:
    """The parts of `model` that have derived fields, with the values that follow from its other fields."""
    latent, widths = model.vae.latent_channels, model.unet.block_out_channels
    return {
        "unet": replace(model.unet, in_channels=2 * latent, out_channels=latent, cross_attention_dim=2 * model.text.width, last_tap=None),
        "former": replace(model.former, frames=model.frames, condition_dim=sum(widths[::-1][block] for block in model.tap_blocks)),
        "action": replace(model.action, goal_dim=model.text.projection_dim, token_dim=model.former.dim),
    }


@dataclass(frozen=True)
class InitConfig:
    """Work directories (or checkpoint directories) of earlier stages, trained here or imported."""

    vae: str = setting("", "stage video: the VAE", on_resume=ANNOUNCED)
    video: str = setting(
        "",
        "stage policy: the video model, empty for that of init.policy; stage video: the U-Net to fine-tune, empty for a fresh one",
        on_resume=ANNOUNCED,
    )
    policy: str = setting("", "stage policy: the policy to fine-tune or to adapt to other robots; empty: a fresh one")


@dataclass(frozen=True)
class VAETrainingConfig:
    """Training of stage vae: mean absolute error per pixel value, and a KL divergence."""

    clip_frames: int = setting(
        16, "frames of a clip; the decoder mixes neighbouring frames, so it may differ from model.frames", at_least=2
    )
    kl_weight: float = setting(1e-6, "weight of the KL divergence per latent value", at_least=0)

    def __post_init__(self):
        check_ranges(self)


@dataclass(frozen=True)
class VideoDiffusionConfig:
    """EDM training and sampling of stage 1 (paper section 3.1; the defaults are the published values)."""

    density: SigmaDensityConfig = group(lambda: SigmaDensityConfig("lognormal", mean=0.7, std=1.6))
    conditioning_dropout: float = setting(0.05, "share of the examples whose text states are replaced by zeros", at_least=0, at_most=1)
    sampler: str = setting("euler", "how videos are sampled", choices=SAMPLERS)
    eta: float = setting(1.0, "noise that stochastic samplers add, from 0 (the ODE) to 1; other samplers ignore it", at_least=0, at_most=1)
    noise_schedule: NoiseScheduleConfig = group(
        lambda: NoiseScheduleConfig("svd_euler", num_sampling_steps=30, sigma_min=0.002, sigma_max=700.0, rho=7.0)
    )
    guidance_min: float = setting(1.0, "classifier-free guidance of the first frame, linear to the last; 1 and 1 switch it off", at_least=0)
    guidance_max: float = setting(3.0, "classifier-free guidance of the last frame", at_least=0)
    preview_guidance_max: float = setting(
        0.0, "guidance_max of the previews while a run trains (published: 7.5); 0: guidance_max", at_least=0, on_resume=ANNOUNCED
    )
    sample_posterior: bool = setting(
        True, "train on samples of the VAE's posterior, drawn anew in every step; off: on its mean (published, where clips are images)"
    )
    condition_noise: tuple[float, ...] = setting(
        (),
        "mean and standard deviation of ln s; noise s x N(0, 1) is added to the given frame before the VAE encodes it; empty: no noise, as "
        "published for latents; (-3, 0.5) is published for images; needs clips as images",
    )

    def __post_init__(self):
        check_ranges(self)
        for name, value in (("guidance_max", self.guidance_max), ("preview_guidance_max", self.preview_guidance_max or self.guidance_max)):
            if self.guidance_min > value:
                raise ConfigError(f"guidance_min is {self.guidance_min}, expected at most {name} = {value}")
        if self.condition_noise and (len(self.condition_noise) != 2 or self.condition_noise[1] < 0):
            raise ConfigError(f"condition_noise is {self.condition_noise}, expected the mean and standard deviation of ln s, or nothing")


@dataclass(frozen=True)
class PolicyDiffusionConfig:
    """EDM training and sampling of stage 2 (paper section 3.3)."""

    density: SigmaDensityConfig = group(
        lambda: SigmaDensityConfig("truncated_loglogistic", loc=math.log(0.5), scale=0.5, sigma_min=0.001, sigma_max=80.0)
    )
    sigma_data: float = setting(0.5, "standard deviation of normalised actions, in the preconditioning", more_than=0)
    sampler: str = setting("ddim", "how actions are sampled", choices=SAMPLERS)
    eta: float = setting(1.0, "noise that stochastic samplers add, from 0 (the ODE) to 1; other samplers ignore it", at_least=0, at_most=1)
    noise_schedule: NoiseScheduleConfig = group(
        lambda: NoiseScheduleConfig("exponential", num_sampling_steps=10, sigma_min=1.0, sigma_max=80.0)
    )
    validation_noise_schedule: NoiseScheduleConfig = group(
        lambda: NoiseScheduleConfig("exponential", num_sampling_steps=10, sigma_min=0.001, sigma_max=80.0)
    )
    feature_draws: int = setting(
        0, "0 computes features in the training step, as published; n caches features of n noise draws per observation", at_least=0
    )
    feature_batch: int = setting(64, "observations per process and batch while that cache is filled, and rows of its files", at_least=1)
    feature_cache_gb: float = setting(
        500.0, "largest cache of a split, GB (1e9 bytes); a larger one is refused before it is computed", more_than=0, on_resume=FREE
    )

    def __post_init__(self):
        check_ranges(self)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    A run may resume with another learning rate or schedule as long as the learning rates of the updates already made stay as they were.
    """

    learning_rate: float = setting(1e-4, "peak learning rate", at_least=0, on_resume=ANNOUNCED)
    schedule: str = setting(
        "constant",
        "after the warm-up: constant; cosine to the end; tri_stage: hold, then cosine to the end; wsd: constant, then linear over the last "
        "decay_steps",
        choices=SCHEDULES,
        on_resume=ANNOUNCED,
    )
    schedule_steps: int = setting(0, "length of the schedule; 0: train.steps", at_least=0, on_resume=ANNOUNCED)
    warmup_ratio: float = setting(0.0, "share of the schedule", at_least=0, at_most=1, on_resume=ANNOUNCED)
    warmup_steps: int = setting(0, "the same in updates; 0: warmup_ratio", at_least=0, on_resume=ANNOUNCED)
    hold_ratio: float = setting(0.0, "share of the schedule, tri_stage only", at_least=0, at_most=1, on_resume=ANNOUNCED)
    decay_steps: int = setting(0, "updates at the end of the schedule, wsd only", at_least=0, on_resume=ANNOUNCED)
    initial_scale: float = setting(
        0.1, "learning rate before the warm-up, relative to learning_rate", at_least=0, at_most=1, on_resume=ANNOUNCED
    )
    final_scale: float = setting(1e-6, "learning rate at the end, relative to learning_rate", at_least=0, at_most=1, on_resume=ANNOUNCED)
    betas: tuple[float, ...] = setting((0.9, 0.999), "decay of the two moments", at_least=0, less_than=1)
    eps: float = setting(1e-8, "added to the square root of the second moment", more_than=0)
    weight_decay: float = setting(0.0, "decoupled, on every trained parameter, as published", at_least=0)
    grad_clip: float = setting(1.0, "largest global gradient norm; 0 is off", at_least=0)
    trainable: tuple[str, ...] = setting(
        (".*",), "a parameter is trained if one of these regular expressions matches its whole name, e.g. 'unet/.*temporal.*', ..."
    )
    frozen: tuple[str, ...] = setting((), "... and none of these does")

    def __post_init__(self):
        check_ranges(self)
        if self.warmup_ratio + self.hold_ratio > 1.0:
            raise ConfigError(f"warmup_ratio {self.warmup_ratio} and hold_ratio {self.hold_ratio} add up to more than the whole run")
        if self.schedule == "wsd" and not self.decay_steps:
            raise ConfigError("schedule wsd needs decay_steps: the learning rate falls over that many updates at the end")
        if len(self.betas) != 2:
            raise ConfigError(f"betas is {self.betas}, expected two numbers")
        if not self.trainable:
            raise ConfigError("trainable is empty, so nothing would be trained; ('.*',) trains everything")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on the U-Net of stage video, trained instead of the model of `init.video` (vpp_jax/training/lora.py)."""

    rank: int = setting(0, "rank of the adapters; 0 trains the model itself", at_least=0)
    alpha: float = setting(16.0, "the product of the adapters counts alpha / rank times", more_than=0)
    target: tuple[str, ...] = setting(
        (r"unet/.*\.(to_q|to_k|to_v|to_out\.0)\.kernel",),
        "kernels that get adapters: those whose whole name one of these regular expressions matches; linear layers only",
    )

    def __post_init__(self):
        check_ranges(self)
        if self.rank and not self.target:
            raise ConfigError("target is empty, so there would be no adapters; set rank to 0 to train the model itself")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class EvaluatorConfig:
    """What is measured while a run trains (vpp_jax/training/evaluation.py)."""

    kind: str = setting(
        "loss",
        "loss: the training loss; preview: a PNG of predictions; action_mse: error of sampled actions, stage policy",
        choices=EVALUATORS,
        on_resume=ANNOUNCED,
    )
    every: int = setting(0, "steps between two runs; 0: train.eval_every. All run at the end of training, too", at_least=0, on_resume=FREE)
    split: str = setting("val", "what it reads", choices=("train", "val"), on_resume=ANNOUNCED)
    dataset: str = setting("", "name of one of data.datasets; empty: all of them", on_resume=ANNOUNCED)
    batches: int = setting(0, "batches it reads; 0: train.eval_batches", at_least=0, on_resume=ANNOUNCED)

    def __post_init__(self):
        check_ranges(self)

    @property
    def where(self) -> tuple[str, ...]:
        """Dataset and split, () for the split 'val' of all datasets: prefix of its metrics and part of its file names."""
        return (*([self.dataset] if self.dataset else []), *([self.split] if self.split != "val" else []))


@dataclass(frozen=True)
class TrainConfig:
    """Length and cadence. Steps are optimizer updates; `*_every` are steps."""

    steps: int = setting(100_000, "optimizer updates; the learning rate's schedule ends there", at_least=1, on_resume=ANNOUNCED)
    log_every: int = setting(50, "steps between lines of metrics", at_least=1, on_resume=FREE)
    eval_every: int = setting(
        2_000, "steps between evaluations; 0 switches them off, otherwise one also runs at the end", at_least=0, on_resume=FREE
    )
    eval_batches: int = setting(8, "batches per evaluation", at_least=1, on_resume=ANNOUNCED)
    evaluators: tuple[EvaluatorConfig, ...] = setting(
        (), "what is evaluated; empty: loss and preview, in stage policy also action_mse", on_resume=ANNOUNCED
    )
    save_every: int = setting(2_000, "steps between checkpoints", at_least=1, on_resume=FREE)
    grad_accum_steps: int = setting(
        1, "micro-batches per update; the update differs only in rounding and dropout masks", at_least=1, on_resume=ANNOUNCED
    )
    max_to_keep: int = setting(2, "checkpoints to keep: the newest ones", at_least=1, on_resume=FREE)
    keep_period: int = setting(0, "also keep the checkpoints of multiples of this step; 0: none", at_least=0, on_resume=FREE)
    keep_best: str = setting(
        "", "also keep the checkpoint with the lowest value of this metric of the evaluations, e.g. action_mse; empty: none", on_resume=FREE
    )
    max_skipped_updates: int = setting(
        0, "updates that may be left out because a loss or gradient is not finite; one more ends the run", at_least=0, on_resume=ANNOUNCED
    )
    ema_decay: float = setting(0.999, "decay of the EMA of the parameters; 0: no EMA", at_least=0, less_than=1)
    ema_warmup: bool = setting(True, "at update n the decay is (1 + n) / (10 + n) until that reaches ema_decay")
    wandb: bool = setting(False, "metrics also go to Weights & Biases", on_resume=FREE)
    progress: bool = setting(True, "a progress line on the terminal", on_resume=FREE)
    profile_steps: int = setting(0, "early steps that are traced into WORKDIR/profile, after each start", at_least=0, on_resume=FREE)
    heartbeat_s: float = setting(10.0, "seconds between two heartbeats of a process", more_than=0, on_resume=FREE)
    peer_timeout_s: float = setting(
        300.0, "seconds without a heartbeat after which a process stops waiting for another; at least 4 heartbeats", on_resume=FREE
    )

    def __post_init__(self):
        check_ranges(self)
        if self.peer_timeout_s < 4 * self.heartbeat_s:
            raise ConfigError(f"peer_timeout_s is {self.peer_timeout_s}, expected at least 4 x heartbeat_s = {4 * self.heartbeat_s}")


@dataclass(frozen=True)
class ExperimentConfig:
    """One training run, and through its checkpoint everything that is done with the result."""

    stage: str = setting("vae", "what is trained", choices=STAGES)
    seed: int = setting(0, "decides initial parameters, data order and noise", at_least=0)
    model: ModelConfig = group(ModelConfig)
    init: InitConfig = group(InitConfig)
    data: DataConfig = group(DataConfig)
    vae_training: VAETrainingConfig = group(VAETrainingConfig)
    video_diffusion: VideoDiffusionConfig = group(VideoDiffusionConfig)
    policy_diffusion: PolicyDiffusionConfig = group(PolicyDiffusionConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    lora: LoRAConfig = group(LoRAConfig)
    train: TrainConfig = group(TrainConfig)
    mesh: MeshConfig = group(MeshConfig)

    def __post_init__(self):
        check_ranges(self)
        check_experiment(self)
        frames = self.vae_training.clip_frames if self.stage == "vae" else self.model.frames
        data = replace(self.data, clip_frames=frames, action_horizon=self.model.action.action_horizon)
        object.__setattr__(self, "data", data)
        action = replace(self.model.action, robots=max(len(data.datasets), 1))
        object.__setattr__(self, "model", replace(self.model, action=action))

    @property
    def several_robots(self) -> bool:
        """Whether a policy is told whose observations it sees: masks of its views and dimensions, its number and rate."""
        many = len(self.data.datasets) > 1 or bool(self.init.policy) or self.model.action.conditions_on_robot
        return self.stage == "policy" and many


# --- conversions ------------------------------------------------------------------------------------------------------------------


def default_config() -> ConfigDict:
    """Every field with its default (the published sizes), for configuration files to override."""
    return to_config_dict(ExperimentConfig())


def to_config_dict(config: Any) -> ConfigDict:
    """A configuration dataclass as configuration files and flags change it."""
    tree = ConfigDict(to_tree(config))
    for entry in settings(config):
        if entry.value is None and "[" not in entry.name:  # None alone would not tell the command line what type to expect
            above, _, name = entry.name.rpartition(".")
            group_of_it: Any = tree[above] if above else tree
            group_of_it[name] = placeholder(next(kind for kind in typing.get_args(entry.type) if kind is not type(None)))
    return tree


def from_config_dict(tree: ConfigDict | Mapping[str, Any] | Any) -> ExperimentConfig:
    """The checked dataclasses; fields that are absent take their defaults.

    ConfigError names the field and the nearest valid name, and refuses what is not a tree of fields.
    """
    return build(ExperimentConfig, tree.to_dict() if isinstance(tree, ConfigDict) else tree)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON values: tuples become lists."""
    return to_jsonable(to_tree(config))


def to_json(config: Any) -> str:
    return json.dumps(to_dict(config), indent=1)


def from_json(text: str, origin: str = "configuration") -> ExperimentConfig:
    """The inverse of `to_json`; `origin` names the file in errors."""
    try:
        return from_config_dict(json.loads(text))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{origin} is not JSON: {error}") from None


# --- resuming ---------------------------------------------------------------------------------------------------------------------


def config_diff(old: ExperimentConfig, new: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Fields whose values differ: dotted name -> (old, new)."""
    before, after = _values(old), _values(new)
    return {name: (before[name], after[name]) for name in before if name in after and before[name] != after[name]}


def _values(config: ExperimentConfig) -> dict[str, Any]:
    """Dotted name -> JSON value of every field that can be set; of a sequence of groups its length, and the fields of each."""
    return {entry.name: len(entry.value) if element_group(entry.type) else to_jsonable(entry.value) for entry in settings(config)}


def on_resume(name: str) -> OnResume:
    """What field `name` of an experiment may do when its run resumes."""
    declared = {entry.name: entry.declaration.on_resume for entry in settings(ExperimentConfig())}
    return declared[re.sub(r"\[\d+\]", "[i]", name)]
