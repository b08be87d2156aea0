"""CALVIN, single tasks: scenes x tasks x episodes, each from its own random initial state.

This is a *partial* protocol. The published CALVIN numbers are average lengths over 1000 chains of five tasks out of 34 in scene D; success
rates of single tasks are a different quantity, and every result says so.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.benchmarks.calvin_sequences import TASK_NAMES
from eval.envs.calvin_mujoco.task_names import FIXTURE_TASKS
from eval.errors import EvaluationError
from eval.host_loop import Episode
from eval.statistics import success_rate

SCENES = ("A", "B", "C", "D")
TASKS = TASK_NAMES  # all 34
CAMERAS = {"primary": "rgb_static", "wrist": "rgb_gripper"}  # view of a policy -> camera of the simulator
PARTIAL_NOTE = (
    "Partial protocol: success of single tasks from random initial states. "
    "Not comparable with CALVIN's average length over 1000 chains of five tasks."
)


@dataclass(frozen=True)
class SingleTasks:
    """The episodes of an evaluation. The initial state of (scene, task, number) is a function of these three and `seed`."""

    scenes: tuple[str, ...] = ("A", "D")
    tasks: tuple[str, ...] = FIXTURE_TASKS
    episodes: int = 10  # per scene and task
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("scene", self.scenes, SCENES)
        _check_names("task", self.tasks, TASKS)
        if self.episodes < 1:
            raise EvaluationError(f"episodes={self.episodes}: at least one per scene and task is needed")

    def all_episodes(self) -> list[Episode]:
        """All episodes, cycling through scenes and tasks: an interrupted evaluation is balanced."""
        cells = [(scene, task, number) for number in range(self.episodes) for task in self.tasks for scene in self.scenes]
        return [Episode(index, (cell[1],), cell[0], episode_seed(self.seed, *cell)) for index, cell in enumerate(cells)]


def episode_seed(seed: int, scene: str, task: str, number: int) -> int:
    """31-bit seed of one episode, the same for every policy that is evaluated."""
    entropy = (seed, zlib.crc32(scene.encode()), zlib.crc32(task.encode()), number)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1)


def summarize(records: Iterable[Mapping[str, Any]], scenes: Sequence[str] = (), tasks: Sequence[str] = ()) -> dict[str, Any]:
    """Success with Wilson 95 % intervals from journal lines: overall, per scene, per scene and task.

    Every number is a count over a count; `mean_steps` is over solved tasks only.
    """
    attempts = [(record["scene"], task) for record in records for task in record["tasks"]]
    scenes = scenes or sorted({scene for scene, _ in attempts})
    tasks = tasks or sorted({task["task"] for _, task in attempts})
    return {
        "overall": _cell([task for _, task in attempts]),
        "scenes": {
            scene: {
                "overall": _cell([task for where, task in attempts if where == scene]),
                "tasks": {name: _cell([task for where, task in attempts if where == scene and task["task"] == name]) for name in tasks},
            }
            for scene in scenes
        },
        "tasks": {name: _cell([task for _, task in attempts if task["task"] == name]) for name in tasks},
    }


def _cell(attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    solved = [task["steps"] for task in attempts if task["success"]]
    return {**success_rate(len(solved), len(attempts)).as_dict(), "mean_steps": sum(solved) / len(solved) if solved else None}


def _check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    if not names:
        raise EvaluationError(f"no {kind} given; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise EvaluationError(f"unknown {kind} {name!r}; known: {', '.join(known)}")
    if len(set(names)) < len(names):
        raise EvaluationError(f"duplicate {kind} in {', '.join(names)}")
