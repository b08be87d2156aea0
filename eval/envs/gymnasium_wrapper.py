"""Any simulator as a gymnasium environment. Optional: `pip install gymnasium`.

import gymnasium  # must be installed
from eval.envs.gymnasium_wrapper import GymnasiumEnvironment

env = GymnasiumEnvironment("calvin_mujoco", scene="D")
observation, info = env.reset(seed=0, options={"task": "open_drawer"})
"""

from typing import Any

import numpy as np
from dm_env import specs

from eval.envs.registry import make_environment

try:
    import gymnasium
except ImportError as error:  # optional
    raise ImportError("eval.envs.gymnasium_wrapper needs gymnasium: pip install gymnasium") from error


def space_of(spec: specs.Array) -> gymnasium.spaces.Box:
    """A dm_env spec as a gymnasium space."""
    low = spec.minimum if isinstance(spec, specs.BoundedArray) else -np.inf
    high = spec.maximum if isinstance(spec, specs.BoundedArray) else np.inf
    return gymnasium.spaces.Box(
        np.broadcast_to(low, spec.shape).astype(spec.dtype), np.broadcast_to(high, spec.shape).astype(spec.dtype), spec.shape, spec.dtype
    )


class GymnasiumEnvironment(gymnasium.Env):
    """Wraps `make_environment(name, **kwargs)`. Options of `reset` are those of the environment (task, scene, initial state).

    `info` holds the instruction. A failed simulation terminates the episode; running out of steps truncates it.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's own convention

    def __init__(self, name: str, **kwargs: Any) -> None:
        self.environment = make_environment(name, **kwargs)
        self.render_mode = "rgb_array"
        self.observation_space = gymnasium.spaces.Dict({key: space_of(spec) for key, spec in self.environment.observation_spec().items()})
        self.action_space = space_of(self.environment.action_spec())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        step = self.environment.reset(seed=seed, **(options or {}))
        return step.observation, {"instruction": self.environment.instruction}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        outcome = self.environment.advance(action)
        terminated = outcome.success or bool(outcome.failure)
        info = {"instruction": self.environment.instruction, "success": outcome.success, "failure": outcome.failure}
        return self.environment.observation(), float(outcome.success), terminated, outcome.done and not terminated, info

    def render(self) -> np.ndarray:
        """The first camera's image."""
        return next(value for value in self.environment.observation().values() if value.ndim == 3)

    def close(self) -> None:
        self.environment.close()
