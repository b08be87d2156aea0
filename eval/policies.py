"""The policy interface of the host loop and the policy server: a batch of observations in, a batch of action chunks out."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8, UInt32

from eval.errors import EvaluationError


@dataclass(frozen=True)
class Observations:
    """A batch of raw observations: the policy resizes images and normalises proprioception itself."""

    images: dict[str, UInt8[np.ndarray, "b h w 3"]]
    proprio: Float[np.ndarray, "b p"]
    text: list[str]

    def __len__(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class PolicyMetadata:
    """The description of a policy. It predicts `action_horizon` actions; the first `n_action_steps` are executed."""

    views: dict[str, int]  # name of the view, e.g. primary -> image size in pixels the model works at
    action_dim: int
    action_horizon: int
    n_action_steps: int
    proprio_dim: int = 0  # 0: proprioception is not used
    name: str = "policy"
    checkpoint: str = ""
    checkpoint_step: int | None = None
    config_hash: str = ""
    statistics_hash: str = ""
    weights_hash: str = ""  # of all parameters; '' where they have none
    recorded_in: dict[str, str | int] = field(default_factory=dict)  # simulator, version, ... of its data, where known; see `conditions`
    robot: str = ""  # of those it was trained on, the one that acts
    action_mode: str = ""  # 'relative' or 'absolute', where that is known
    options: dict[str, str | int | float | bool] = field(default_factory=dict)  # e.g. denoising steps

    def __post_init__(self) -> None:
        if not 1 <= self.n_action_steps <= self.action_horizon:
            raise EvaluationError(f"n_action_steps={self.n_action_steps} must be between 1 and action_horizon={self.action_horizon}")


@runtime_checkable
class Policy(Protocol):
    """A stateless policy. Row i of the result depends on row i of the arguments only."""

    @property
    def metadata(self) -> PolicyMetadata: ...

    def act(self, observations: Observations, seeds: UInt32[np.ndarray, "b"]) -> Float[np.ndarray, "b k a"]:
        """One chunk of unnormalised actions per row; `seeds` seed the random numbers of each row."""
        ...


class RandomPolicy:
    """Uniform actions in [-1, 1], the last one (the gripper) -1 or +1, from each row's seed. For tests and latency floors."""

    def __init__(
        self, action_dim: int = 7, action_horizon: int = 10, n_action_steps: int = 10, views: dict[str, int] | None = None
    ) -> None:
        self.metadata = PolicyMetadata(
            views=views or {}, action_dim=action_dim, action_horizon=action_horizon, n_action_steps=n_action_steps, name="random"
        )

    def act(self, observations: Observations, seeds: UInt32[np.ndarray, "b"]) -> Float[np.ndarray, "b k a"]:
        shape = (self.metadata.action_horizon, self.metadata.action_dim)
        actions = np.stack([np.random.default_rng(int(seed)).uniform(-1.0, 1.0, shape) for seed in seeds]).astype(np.float32)
        actions[..., -1] = np.where(actions[..., -1] > 0, 1.0, -1.0)
        return actions


def chunk_seed(episode_seed: int, subtask: int, chunk: int) -> int:
    """32-bit seed of the policy's random numbers for one chunk: a function of these three numbers only."""
    return int(np.random.SeedSequence((episode_seed, subtask, chunk)).generate_state(1)[0])
