"""Single tasks: scenes x tasks x episodes, each from its own initial state. Also a complete benchmark for a simulator of one's own."""

import argparse
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.benchmarks.base import Plan
from eval.errors import EvaluationError
from eval.host_loop import Episode, Interface
from eval.statistics import success_rate
from vpp_jax.common.errors import nearest


@dataclass(frozen=True)
class SingleTasks:
    """The episodes of an evaluation. The initial state of (scene, task, number) is a function of these three and `seed`."""

    scenes: tuple[str, ...]
    tasks: tuple[str, ...]
    episodes: int = 10  # per scene and task
    seed: int = 0

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise EvaluationError(f"episodes={self.episodes}: at least one per scene and task is needed")

    def all_episodes(self) -> list[Episode]:
        """All episodes, cycling through scenes and tasks: an interrupted evaluation is balanced."""
        cells = [(scene, task, number) for number in range(self.episodes) for task in self.tasks for scene in self.scenes]
        return [Episode(index, (cell[1],), cell[0], episode_seed(self.seed, *cell)) for index, cell in enumerate(cells)]


@dataclass(frozen=True)
class SingleTaskBenchmark:
    """Success of single tasks in any simulator.

    Attributes:
      name: in results.
      environment: module:Class of the simulator, importable in its interpreter.
      interface: how its observations are named, and its control rate.
      max_steps: control steps per task, unless --max_steps says otherwise.
    """

    name: str
    environment: str
    scenes: tuple[str, ...]
    tasks: tuple[str, ...]
    interface: Interface
    max_steps: int = 300
    help: str = "success of single tasks"

    def add_flags(self, parser: Any) -> None:
        add_flags(parser, self.scenes, self.scenes, ",".join(self.tasks), "comma-separated")

    def plan(self, arguments: argparse.Namespace) -> Plan:
        chosen = SingleTasks(
            chosen_names("scene", arguments.scenes, self.scenes),
            chosen_names("task", tuple(arguments.tasks.split(",")), self.tasks),
            arguments.episodes,
            arguments.seed,
        )
        return plan(chosen, self.name, arguments.max_steps or self.max_steps, f"{self.name}: success of single tasks.", partial=False)


def add_flags(parser: Any, scenes: Sequence[str], known: Sequence[str], tasks: str, tasks_help: str) -> None:
    parser.add_argument(
        "--scenes", type=lambda text: tuple(text.split(",")), default=tuple(scenes), help=f"comma-separated, of {','.join(known)}"
    )
    parser.add_argument("--tasks", default=tasks, help=f"tasks: {tasks_help}")
    parser.add_number("--episodes", int, 10, "episodes per scene and task", at_least=1, at_most=100_000)


def chosen_names(kind: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """`names`, or EvaluationError where one is unknown, given twice, or none is given."""
    if not names or not all(names):
        raise EvaluationError(f"no {kind} given; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise EvaluationError(f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    if len(set(names)) < len(names):
        raise EvaluationError(f"duplicate {kind} in {', '.join(names)}")
    return tuple(names)


def plan(chosen: SingleTasks, benchmark: str, max_steps: int, note: str, *, partial: bool, **more: Any) -> Plan:
    """`more`: further entries of the description."""
    description = {
        "benchmark": benchmark,
        "kind": "single tasks",
        "partial": partial,
        "note": note,
        "scenes": chosen.scenes,
        "tasks": chosen.tasks,
        "episodes_per_scene_and_task": chosen.episodes,
        "steps_per_task": max_steps,
        "seed": chosen.seed,
        **more,
    }
    return Plan(chosen.all_episodes(), max_steps, description, lambda records: summarize(records, chosen.scenes, chosen.tasks), table)


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


def table(results: Mapping[str, Any]) -> str:
    """Success per scene and task as text."""
    metrics = results["metrics"]
    lines = [f"{'scene':5}  {'task':23}  solved       rate   95% interval"]
    for scene, cells in metrics["scenes"].items():
        for name, cell in [*cells["tasks"].items(), ("all", cells["overall"])]:
            lines.append(f"{scene:5}  {name:23}  {rate_text(cell)}")
    return "\n".join(lines)


def rate_text(cell: Mapping[str, Any]) -> str:
    """One cell: successes over trials, rate and interval."""
    rate = "     -" if cell["rate"] is None else f"{cell['rate']:6.1%}"
    return f"{cell['successes']:4d}/{cell['trials']:<4d}  {rate}   {cell['low']:.1%} to {cell['high']:.1%}"
