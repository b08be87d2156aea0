"""A checkpoint of stage `policy` as a host-side policy: camera images and instructions in, robot actions out."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt32

from data_pipelines.transforms import resize
from eval.policies import Observations, PolicyMetadata
from vpp_jax.common.errors import VppError
from vpp_jax.config import ExperimentConfig, from_config_dict
from vpp_jax.functional import Params, params_hash
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.parallel.mesh import compiler_options
from vpp_jax.policy import Embodiment, InstructionEmbedding
from vpp_jax.training.checkpoints import load_params, read_metadata
from vpp_jax.training.robots import TrainedRobot, choose_robot
from vpp_jax.training.stages.policy import PolicyStage

INSTRUCTION_CACHE_SIZE = 1024  # embeddings; 82 KB each at the published size


class ObservationError(VppError):
    """An observation that is not what the checkpoint was trained on."""


class PolicyRunner:
    """Resizes, normalises and tokenises as in training, runs one jitted function, and gives actions back in the units of `robot`.

    The function is compiled once per batch size; row i of the result depends on row i of the observations and on seed i alone.
    The text encoders run once per instruction; its embedding is cached and used for every action chunk.
    """

    def __init__(self, config: ExperimentConfig, params: Params, robot: TrainedRobot, metadata: PolicyMetadata):
        self.config, self.params, self.robot, self.metadata = config, params, robot, metadata
        stage = PolicyStage(config)
        self._signed = list(robot.spec.signed_dimensions)
        tokenizer, encode = CLIPTokenizer(config.model.goal_length), jax.jit(stage.policy.encode_instruction)

        @lru_cache(maxsize=INSTRUCTION_CACHE_SIZE)
        def encode_instruction(text: str) -> InstructionEmbedding:
            return jax.device_get(encode(params, *tokenizer([text])))

        self._encode_instruction = encode_instruction

        def act(params, images, instruction, proprio, seeds):
            keys = jax.vmap(jax.random.key)(seeds)
            return stage.policy.act(params, images, instruction, proprio, keys, self._embodiment(len(seeds)))

        self._act = jax.jit(act, compiler_options=compiler_options())

    def inputs(self, observations: Observations) -> tuple[dict[str, np.ndarray], InstructionEmbedding, np.ndarray]:
        """What the jitted function takes: (images uint8 [b s s 3] per view, instruction embeddings, normalised proprio)."""
        views, size, antialias = self.robot.views, self.config.model.image_size, self.config.data.antialias
        absent = [view for view in views if view not in observations.images]
        if absent:
            raise ObservationError(f"the observation has views {', '.join(observations.images)}, the policy also needs {', '.join(absent)}")
        width, room = observations.proprio.shape[-1], self.config.model.action.proprio_dim
        if room and width != self.robot.proprio.width:
            raise ObservationError(f"the observation's proprio has width {width}, the policy was trained on {self.robot.proprio.width}")
        images = {view: np.stack([resize(image, size, antialias) for image in observations.images[view]]) for view in views}
        black = np.zeros((len(observations), size, size, 3), np.uint8)
        images = {view: images.get(view, black) for view in self.config.model.views}
        embeddings = [self._encode_instruction(text) for text in observations.text]
        instruction: InstructionEmbedding = jax.tree.map(lambda *parts: np.concatenate(parts), *embeddings)
        proprio = self.robot.proprio.forward(observations.proprio)
        return images, instruction, np.pad(proprio, ((0, 0), (0, max(room - width, 0))))

    def _embodiment(self, batch: int) -> Embodiment | None:
        if not self.config.several_robots:
            return None
        seen = np.array([view in self.robot.views for view in self.config.model.views])
        own = np.arange(self.config.model.action.action_dim) < self.robot.action.width
        rows = (np.int32(self.robot.number), np.float32(self.robot.spec.control_hz or 0), seen, own)
        return Embodiment(*(jnp.broadcast_to(row, (batch, *np.shape(row))) for row in rows))

    def act(self, observations: Observations, seeds: UInt32[np.ndarray, "b"]) -> Float[np.ndarray, "b k a"]:
        normalised = self._act(self.params, *self.inputs(observations), np.asarray(seeds, np.uint32))
        actions = self.robot.action.inverse(np.asarray(normalised)[:, : self.robot.action_steps, : self.robot.action.width])
        if not np.isfinite(actions).all():
            raise VppError("the policy's actions have NaN or infinite values: the observation's proprio, or the checkpoint's parameters do")
        actions[..., self._signed] = np.where(actions[..., self._signed] > 0, 1.0, -1.0)
        return actions


def recorded_in(checkpoint: str | Path, *, robot: str = "", step: int | str = "latest", **options: Any) -> dict[str, Any]:
    """The simulator and its settings that the data of a policy's robot was recorded with; {} where the checkpoint does not tell.

    Args:
      options: the other keyword arguments of `load_policy`.
    """
    del options
    return dict(choose_robot(read_metadata(checkpoint, step), robot, str(checkpoint)).recorded_in)


def load_policy(
    checkpoint: str | Path, *, robot: str = "", item: str = "ema", step: int | str = "latest", n_action_steps: int | None = None
) -> PolicyRunner:
    """The policy of a work directory of stage `policy` (or of one of its checkpoints).

    Args:
      robot: the robot that acts, one of those the policy was trained on; may be left out where there is one only.
      item: 'ema' (moving average of the parameters) or 'params'.
      n_action_steps: actions executed per chunk; None: as configured.
    """
    metadata = read_metadata(checkpoint, step)
    if metadata["stage"] != "policy":
        raise VppError(f"{checkpoint} holds stage {metadata['stage']}; a policy needs a checkpoint of stage policy")
    config, chosen = from_config_dict(metadata["config"]), choose_robot(metadata, robot, str(checkpoint))
    stage = PolicyStage(config)
    params = load_params(checkpoint, stage.abstract_trainable() | stage.abstract_frozen(), item=item, step=step, stage="policy")
    about = PolicyMetadata(
        views={view: config.model.image_size for view in config.model.views if view in chosen.views},
        action_dim=chosen.action.width,
        action_horizon=chosen.action_steps,
        n_action_steps=n_action_steps or min(config.model.n_action_steps, chosen.action_steps),
        proprio_dim=chosen.proprio.width if config.model.action.proprio_dim else 0,
        name="vpp",
        checkpoint=str(checkpoint),
        checkpoint_step=metadata["step"],
        config_hash=metadata["config_hash"],
        statistics_hash=chosen.statistics_hash,
        weights_hash=params_hash(params),
        recorded_in=dict(chosen.recorded_in),
        action_mode=chosen.spec.action_mode,
        robot=chosen.name,
        options={"item": item, "denoising_steps": config.policy_diffusion.noise_schedule.num_sampling_steps},
    )
    return PolicyRunner(config, params, chosen, about)
