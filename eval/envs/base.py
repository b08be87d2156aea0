"""The interface of simulators: a dm_env environment whose goal is a language instruction.

`step` is the dm_env call and always renders. Evaluation and data generation need few images; they call `advance` (physics and task check)
and `observation` (rendering) separately: rendering costs about ten times as much as physics.
"""

import abc
from typing import Any, NamedTuple

import dm_env
import numpy as np


class Outcome(NamedTuple):
    """The outcome of one control step.

    Attributes:
      success: the task of the episode is solved in the state reached.
      done: the episode has ended: solved, out of steps, or the simulation left its bounds.
      steps: control steps since the task began.
      failure: why the simulation was stopped, e.g. 'diverged'; '' otherwise.
    """

    success: bool
    done: bool
    steps: int
    failure: str = ""


class LanguageEnvironment(dm_env.Environment):
    """A dm_env environment with an instruction and optional rendering. Scripted experts are in `eval.experts`."""

    instruction: str = ""

    @property
    @abc.abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that `reset` and `begin_task` accept."""

    @abc.abstractmethod
    def reset(
        self, *, task: str | None = None, scene: str | None = None, seed: int | None = None, render: bool = True, **initial_state: Any
    ) -> dm_env.TimeStep:
        """Starts an episode of `task` in `scene`; the initial state is drawn with `seed`, or given as `initial_state`.

        With `render=False` the first observation has no images.
        """

    @abc.abstractmethod
    def begin_task(self, task: str, instruction: str | None = None) -> None:
        """Starts the next task of a chain from the current state: no reset; steps are counted from 0."""

    @abc.abstractmethod
    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """`advance` and `observation` in one call."""

    @abc.abstractmethod
    def advance(self, action: np.ndarray) -> Outcome:
        """Physics and task check of one control step, without rendering."""

    @abc.abstractmethod
    def observation(self, render: bool = True) -> dict[str, np.ndarray]:
        """The current observation: state vectors float32 and, if `render`, one uint8 image [h w 3] per camera."""

    @abc.abstractmethod
    def observation_spec(self) -> Any:
        """name -> `dm_env.specs.Array` of every entry of `observation`."""

    @abc.abstractmethod
    def action_spec(self) -> Any:
        """`dm_env.specs.Array` of an action."""

    @abc.abstractmethod
    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """An action drawn uniformly from the action range: the baseline."""
