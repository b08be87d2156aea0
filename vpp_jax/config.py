"""The configuration of an experiment: frozen dataclasses, built once at start from an ml_collections file, a JSON file or a dict.

Configuration files start from `default_config()` and override fields; the command line overrides fields of that; `from_config_dict`
turns the result into an `ExperimentConfig` and refuses unknown names, wrong types, values out of range and fields that contradict one
another. Code below the command line sees the dataclasses only.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from data_pipelines.config import DataConfig
from vpp_jax.config_checks import ConfigError, at_least, build, check_experiment, check_inputs, one_of, optional_fields, within
from vpp_jax.diffusion.densities import SigmaDensityConfig
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig
from vpp_jax.diffusion.samplers import SAMPLERS as SAMPLER_TABLE
from vpp_jax.models.action_transformer import ActionTransformerConfig
from vpp_jax.models.text_encoder import TextEncoderConfig
from vpp_jax.models.video_former import VideoFormerConfig
from vpp_jax.models.video_unet import VideoUNetConfig
from vpp_jax.models.video_vae import VideoVAEConfig

__all__ = [
    "ConfigError",
    "DataConfig",
    "ExperimentConfig",
    "InitConfig",
    "LoRAConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PolicyDiffusionConfig",
    "TrainConfig",
    "VAELossConfig",
    "VideoDiffusionConfig",
    "check_inputs",
    "config_diff",
    "config_hash",
    "default_config",
    "flatten_dict",
    "from_config_dict",
    "from_json",
    "to_config_dict",
    "to_dict",
    "to_json",
]

STAGES = ("vae", "video", "policy")
SCHEDULES = ("constant", "cosine", "tri_stage")
SAMPLERS = tuple(SAMPLER_TABLE)
# Fields that may change between a run and its continuation: they do not enter the parameters at a given step.
RESUMABLE_OVERRIDES = (
    "train.steps",
    "train.log_every",
    "train.eval_every",
    "train.eval_batches",
    "train.save_every",
    "train.max_to_keep",
    "train.wandb",
    "train.progress",
    "train.grad_accum_steps",
    "train.profile_steps",
    "train.heartbeat_s",
    "train.peer_timeout_s",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.min_size_to_shard",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.index_dir",
    "data.cache_mb",
    "data.frame_cache_mb",
)


@dataclass(frozen=True)
class ModelConfig:
    """What is built, for all stages: a policy needs the parts of the video model that its features come from.

    image_size:        side of the square images every view is resized to, pixels
    frames:            frames of a clip, the first of which is given
    views:             cameras of the policy, in the order in which their tokens stand side by side
    text_length:       tokens per sentence that the U-Net attends to, padding included
    goal_length:       tokens per sentence of the policy's goal, padding included (published: 77, all that CLIP has positions for)
    position_encode:   sinusoidal positions added to the CLIP states before the U-Net (published: general models yes, CALVIN no)
    fps_id_train, fps_id_generate, fps_id_features, motion_bucket, noise_aug_id_generate: SVD's micro-conditioning (published: 7 in
                       training and its previews, 4 for features; 127; 0.02 when a video is sampled, 0 in training and for features)
    tap_blocks:        up blocks whose outputs are the predictive features
    feature_sigma:     noise level that the pass which gives them starts from
    feature_steps:     passes down the noise schedule of noise levels; features come from the last one (published: 1, one pass from pure noise)
    feature_schedule_steps: length of the noise schedule from feature_sigma down to 0.002 (published: 20; without effect while feature_steps is 1)
    fixed_feature_noise: the same noise for every observation instead of fresh noise; features are then a function of image and text
    text_trainable:    stage video trains the text encoder of the U-Net, stage policy the goal encoder; off, both are loaded
    n_action_steps:           actions carried out before the next chunk is predicted, at most `action.action_horizon`
    """

    image_size: int = 256
    frames: int = 16
    views: tuple[str, ...] = ("primary", "wrist")
    vae: VideoVAEConfig = field(default_factory=VideoVAEConfig)
    unet: VideoUNetConfig = field(default_factory=VideoUNetConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    former: VideoFormerConfig = field(default_factory=VideoFormerConfig)
    action: ActionTransformerConfig = field(default_factory=ActionTransformerConfig)
    text_length: int = 20
    goal_length: int = 77
    position_encode: bool = False
    fps_id_train: int = 7
    fps_id_generate: int = 7
    fps_id_features: int = 4
    motion_bucket: int = 127
    noise_aug_id_generate: float = 0.02
    tap_blocks: tuple[int, ...] = (0, 1)
    feature_sigma: float = 700.0
    feature_steps: int = 1
    feature_schedule_steps: int = 20
    fixed_feature_noise: bool = False
    text_trainable: bool = False
    n_action_steps: int = 10

    def __post_init__(self):
        at_least(self, 1, "image_size", "frames", "text_length", "n_action_steps")
        at_least(self, self.text_length, "goal_length")
        at_least(self, 0, "fps_id_train", "fps_id_generate", "fps_id_features", "motion_bucket", "noise_aug_id_generate")
        within(self, "feature_sigma", 0.002, math.inf, open_low=True)
        at_least(self, 1, "feature_steps", "feature_schedule_steps")
        if self.feature_steps > self.feature_schedule_steps:
            raise ConfigError(f"feature_steps {self.feature_steps} is more than feature_schedule_steps {self.feature_schedule_steps}")
        if not self.tap_blocks or list(self.tap_blocks) != sorted(set(self.tap_blocks)):
            raise ConfigError(f"tap_blocks is {self.tap_blocks}, expected at least one up block, ascending and each once")

    def unet_up_to(self, last_tap: int | None) -> VideoUNetConfig:
        """The U-Net's configuration, built only up to up block `last_tap`; None builds it as configured."""
        return self.unet if last_tap is None else dataclasses.replace(self.unet, last_tap=last_tap)


@dataclass(frozen=True)
class InitConfig:
    """Work directories (or checkpoint directories) of earlier stages, trained here or imported.

    vae:   for stage video
    video: for stage policy; in stage video the U-Net to go on from (fine-tuning), empty for a fresh one
    """

    vae: str = ""
    video: str = ""


@dataclass(frozen=True)
class VAELossConfig:
    """kl_weight: weight of the KL divergence per latent value beside the mean absolute error per pixel value."""

    kl_weight: float = 1e-6

    def __post_init__(self):
        within(self, "kl_weight", 0.0, math.inf)


@dataclass(frozen=True)
class VideoDiffusionConfig:
    """EDM training and sampling of stage 1 (paper section 3.1; the defaults are the published values).

    conditioning_dropout: share of samples whose text states are replaced by zeros
    sampler:              one of `SAMPLERS`; vpp_jax/diffusion/samplers.py says what they are
    eta:                  noise that the stochastic samplers add, from 0 (the ODE) to 1; the others do not read it
    guidance_min, guidance_max: classifier-free guidance of the first and of the last frame, linear between; 1 and 1 switch it off
    """

    density: SigmaDensityConfig = field(default_factory=lambda: SigmaDensityConfig("lognormal", mean=0.7, std=1.6))
    conditioning_dropout: float = 0.05
    sampler: str = "euler"
    eta: float = 1.0
    noise_schedule: NoiseScheduleConfig = field(
        default_factory=lambda: NoiseScheduleConfig("svd_euler", num_sampling_steps=30, sigma_min=0.002, sigma_max=700.0, rho=7.0)
    )
    guidance_min: float = 1.0
    guidance_max: float = 3.0

    def __post_init__(self):
        within(self, "conditioning_dropout", 0.0, 1.0)
        within(self, "guidance_min", 0.0, self.guidance_max)
        one_of(self, "sampler", SAMPLERS)
        within(self, "eta", 0.0, 1.0)


@dataclass(frozen=True)
class PolicyDiffusionConfig:
    """EDM training and sampling of stage 2 (paper section 3.3).

    sampler, eta:          as in `VideoDiffusionConfig`
    feature_draws:         0 computes features in the training step, as published; n caches n noise draws per observation beforehand
    feature_batch:         observations per batch while that cache is filled
    """

    density: SigmaDensityConfig = field(
        default_factory=lambda: SigmaDensityConfig("truncated_loglogistic", loc=math.log(0.5), scale=0.5, sigma_min=0.001, sigma_max=80.0)
    )
    sigma_data: float = 0.5
    sampler: str = "ddim"
    eta: float = 1.0
    noise_schedule: NoiseScheduleConfig = field(
        default_factory=lambda: NoiseScheduleConfig("exponential", num_sampling_steps=10, sigma_min=1.0, sigma_max=80.0)
    )
    feature_draws: int = 0
    feature_batch: int = 64

    def __post_init__(self):
        within(self, "sigma_data", 0.0, math.inf, open_low=True)
        at_least(self, 1, "feature_batch")
        at_least(self, 0, "feature_draws")
        one_of(self, "sampler", SAMPLERS)
        within(self, "eta", 0.0, 1.0)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    schedule:      'constant' (after the warm-up); 'cosine' (warm-up, cosine to the end); 'tri_stage' (warm-up, hold, cosine to the end)
    warmup_ratio, hold_ratio: shares of `train.steps`
    initial_scale, final_scale: learning rate before the warm-up and at the end, relative to `learning_rate`
    weight_decay:  decoupled, on every trained parameter, as published
    grad_clip:     largest global gradient norm; 0 is off
    trainable:     a parameter is trained if one of these regular expressions matches its whole name, e.g. 'unet/.*temporal.*',
    frozen:        and none of these
    """

    learning_rate: float = 1e-4
    schedule: str = "constant"
    warmup_ratio: float = 0.0
    hold_ratio: float = 0.0
    initial_scale: float = 0.1
    final_scale: float = 1e-6
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    trainable: tuple[str, ...] = (".*",)
    frozen: tuple[str, ...] = ()

    def __post_init__(self):
        one_of(self, "schedule", SCHEDULES)
        within(self, "learning_rate", 0.0, math.inf)
        within(self, "eps", 0.0, math.inf, open_low=True)
        for name in ("weight_decay", "grad_clip"):
            within(self, name, 0.0, math.inf)
        for name in ("warmup_ratio", "hold_ratio", "initial_scale", "final_scale"):
            within(self, name, 0.0, 1.0)
        if self.warmup_ratio + self.hold_ratio > 1.0:
            raise ConfigError(f"warmup_ratio {self.warmup_ratio} and hold_ratio {self.hold_ratio} add up to more than the whole run")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"betas is {self.betas}, expected two numbers in [0, 1)")
        if not self.trainable:
            raise ConfigError("trainable is empty, so nothing would be trained; ('.*',) trains everything")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on the U-Net of stage video, trained instead of the model of `init.video` (vpp_jax/training/lora.py).

    rank:   0 trains the model itself
    alpha:  the product of the adapters counts alpha / rank times
    target: adapters are on the kernels whose whole name one of these regular expressions matches; linear layers only
    """

    rank: int = 0
    alpha: float = 16.0
    target: tuple[str, ...] = (r"unet/.*\.(to_q|to_k|to_v|to_out\.0)\.kernel",)

    def __post_init__(self):
        at_least(self, 0, "rank")
        within(self, "alpha", 0.0, math.inf, open_low=True)
        if self.rank and not self.target:
            raise ConfigError("target is empty, so there would be no adapters; set rank to 0 to train the model itself")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class TrainConfig:
    """Length and cadence. Steps are optimizer updates; `*_every` are steps.

    eval_every:   0 switches evaluation off; otherwise it also runs at the end
    eval_batches: batches of the split 'val' per evaluation
    grad_accum_steps:   passes per update, each over batch_size / grad_accum_steps examples: the same update but for rounding (and dropout masks)
    max_to_keep:         checkpoints kept, the newest ones
    ema_decay:    0 keeps no average; ema_warmup: the decay grows as (1 + n) / (10 + n) until it reaches `ema_decay`
    profile_steps: so many early steps are traced into WORKDIR/profile, after each start; 0 traces none
    heartbeat_s:  each process says so often in WORKDIR/heartbeats what it does
    peer_timeout_s: how long a process waits for one of the others that is silent before it gives up and says for whom it waited
    """

    steps: int = 100_000
    log_every: int = 50
    eval_every: int = 2_000
    eval_batches: int = 8
    save_every: int = 2_000
    grad_accum_steps: int = 1
    max_to_keep: int = 2
    ema_decay: float = 0.999
    ema_warmup: bool = True
    wandb: bool = False
    progress: bool = True
    profile_steps: int = 0
    heartbeat_s: float = 10.0
    peer_timeout_s: float = 300.0

    def __post_init__(self):
        at_least(self, 1, "steps", "log_every", "save_every", "grad_accum_steps", "max_to_keep", "eval_batches")
        at_least(self, 0, "eval_every", "profile_steps")
        within(self, "heartbeat_s", 0.0, math.inf, open_low=True)
        at_least(self, 4 * self.heartbeat_s, "peer_timeout_s")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ConfigError(f"ema_decay is {self.ema_decay}, expected a number in [0, 1)")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1 and takes what is left.

    The batch is split over data x fsdp, parameters and optimizer over fsdp and tensor. Parameters of fewer than `min_size_to_shard` elements
    stay whole on every device.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    min_size_to_shard: int = 65_536

    def __post_init__(self):
        axes = (self.data, self.fsdp, self.tensor)
        if any(size < 1 and size != -1 for size in axes) or axes.count(-1) > 1:
            raise ConfigError(f"mesh is data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}; expected positive sizes, at most one -1")
        at_least(self, 0, "min_size_to_shard")


@dataclass(frozen=True)
class ExperimentConfig:
    """One training run, and through its checkpoint everything that is done with the result."""

    stage: str = "vae"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    init: InitConfig = field(default_factory=InitConfig)
    data: DataConfig = field(default_factory=DataConfig)
    vae_loss: VAELossConfig = field(default_factory=VAELossConfig)
    video_diffusion: VideoDiffusionConfig = field(default_factory=VideoDiffusionConfig)
    policy_diffusion: PolicyDiffusionConfig = field(default_factory=PolicyDiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self):
        one_of(self, "stage", STAGES)
        at_least(self, 0, "seed")
        check_experiment(self)


# --- conversions ------------------------------------------------------------------------------------------------------------------


def default_config() -> ConfigDict:
    """Every field with its default (the published sizes), for configuration files to override."""
    return to_config_dict(ExperimentConfig())


def to_config_dict(config: ExperimentConfig) -> ConfigDict:
    tree = ConfigDict(dataclasses.asdict(config))
    for path, kind in optional_fields(ExperimentConfig):  # None alone would not tell the command line what type to expect
        group, _, name = path.rpartition(".")
        place = tree[group] if group else tree
        if place[name] is None:
            place[name] = placeholder(kind)
    return tree


def from_config_dict(tree: ConfigDict | Mapping[str, Any]) -> ExperimentConfig:
    """The checked dataclasses; fields that are absent take their defaults. ConfigError names the field and the nearest valid name."""
    return build(ExperimentConfig, tree)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as JSON values: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_json(config: Any) -> str:
    return json.dumps(to_dict(config), indent=1)


def from_json(text: str, origin: str = "configuration") -> ExperimentConfig:
    """The inverse of `to_json`; `origin` names the file in errors."""
    try:
        return from_config_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{origin} is not JSON: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def config_hash(config: Any) -> str:
    """16 hexadecimal digits that change with any field of a configuration dataclass."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:16]


def config_diff(old: ExperimentConfig, new: ExperimentConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and would change the run: dotted name -> (old, new). Fields of `RESUMABLE_OVERRIDES` are left out."""
    before, after = flatten_dict(to_dict(old)), flatten_dict(to_dict(new))
    names = [name for name in before | after if before.get(name) != after.get(name) and name not in RESUMABLE_OVERRIDES]
    return {name: (before.get(name), after.get(name)) for name in names}


def flatten_dict(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups -> {dotted name: value}."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flatten_dict(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
