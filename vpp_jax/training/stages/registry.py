"""The training stages by name."""

from vpp_jax.common.errors import VppError
from vpp_jax.config import ExperimentConfig
from vpp_jax.training.stage import Stage


class StageError(VppError):
    """A stage that does not exist."""


def make_stage(config: ExperimentConfig) -> Stage:
    """The stage that `config.stage` names. Imported on demand: a stage pulls in its models and data code."""
    match config.stage:
        case "vae":
            from vpp_jax.training.stages.vae import VAEStage

            return VAEStage(config)
        case "video":
            from vpp_jax.training.stages.video import VideoStage

            return VideoStage(config)
        case "policy":
            from vpp_jax.training.stages.policy import PolicyStage

            return PolicyStage(config)
    raise StageError(f"stage '{config.stage}' does not exist; one of vae, video, policy")
