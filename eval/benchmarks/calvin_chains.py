"""CALVIN's own protocol: chains of five tasks in scene D, 360 steps per task, no reset in between.

Complete means 1000 chains and 360 steps, as in every published number; anything else is called partial. Published numbers come from the
original simulator: complete chains in another one are not a published number, and say so. Each task is started with its one
evaluation instruction and a freshly reset policy; the first failure ends the chain.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from eval.benchmarks.base import Plan
from eval.benchmarks.calvin_sequences import CHAIN_LENGTH, INITIAL_ROBOT_OBS, digest, generate_sequences, initial_scene_obs
from eval.benchmarks.single_tasks import episode_seed, rate_text
from eval.conditions import conditions_text
from eval.errors import EvaluationError
from eval.host_loop import Episode
from eval.results import write_json
from eval.statistics import success_rate

SCENE = "D"
COMPLETE_SEQUENCES, COMPLETE_STEPS = 1000, 360
ORIGINAL = "calvin_pybullet"  # the simulator of published numbers


@dataclass(frozen=True)
class Chains:
    """An evaluation over `sequences` chains; `seed` decides the policy's random numbers, never the chains."""

    sequences: int = COMPLETE_SEQUENCES
    max_steps: int = COMPLETE_STEPS  # control steps per task
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise EvaluationError(f"sequences={self.sequences}: at least one chain is needed")

    @property
    def complete(self) -> bool:
        """Whether chains and steps are those of published numbers."""
        return self.sequences == COMPLETE_SEQUENCES and self.max_steps == COMPLETE_STEPS

    def published(self, simulator: str, renderer: str) -> bool:
        """Whether the result may stand beside published ones: all chains and steps, in the original simulator with its images."""
        return self.complete and simulator == ORIGINAL and renderer == "egl"

    def note(self, simulator: str, renderer: str = "") -> str:
        """What kind of number this is, in words."""
        elsewhere = f"Simulated in {simulator}, not in the original: its images and physics differ, so this is not a published number."
        if simulator == ORIGINAL:
            images = "its EGL renderer" if renderer == "egl" else f"renderer {renderer}, whose images are not those of published numbers"
            elsewhere = f"Simulated in the original CALVIN environment, {images}."
        if self.complete:
            chains = f"{self.sequences} chains of {CHAIN_LENGTH} tasks, {self.max_steps} steps per task, as in published numbers."
            return f"{chains} {elsewhere}"
        return (
            f"Partial protocol: {self.sequences} chains of {CHAIN_LENGTH} tasks, {self.max_steps} steps per task. Published CALVIN numbers "
            f"use {COMPLETE_SEQUENCES} chains (these are not the first ones of them) and {COMPLETE_STEPS} steps. {elsewhere}"
        )

    def all_episodes(self) -> list[Episode]:
        """One episode per chain, in the original's order."""
        return [
            Episode(
                number,
                sequence.tasks,
                SCENE,
                episode_seed(self.seed, SCENE, "chain", number),
                {"robot_obs": INITIAL_ROBOT_OBS, "scene_obs": initial_scene_obs(sequence.state)},
            )
            for number, sequence in enumerate(generate_sequences(self.sequences))
        ]

    def describe(self, simulator: str, renderer: str = "") -> dict[str, Any]:
        """The protocol, as recorded in the results."""
        return {
            "benchmark": "calvin",
            "kind": "chains",
            "simulator": simulator,
            "partial": not self.complete,
            "note": self.note(simulator, renderer),
            "scenes": (SCENE,),
            "sequences": self.sequences,
            "sequences_sha256": digest(generate_sequences(self.sequences)),
            "steps_per_task": self.max_steps,
            "seed": self.seed,
        }


def summarize_chains(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """CALVIN's metrics from journal lines.

    `in_a_row` is the share of chains with at least 1...5 tasks solved in a row, with Wilson 95 % intervals; `average_length` the mean
    number of tasks solved in a row (the sum of the five shares) and `average_length_error` its standard error; per task successes over
    attempts. `failures` counts subtasks that ended because the simulation left its bounds, by how. `scenes` has the same per task as
    evaluations of single tasks have it.
    """
    records = list(records)
    lengths = [record["solved"] for record in records]
    attempts = [task for record in records for task in record["tasks"]]
    names = sorted({task["task"] for task in attempts})
    failures: dict[str, int] = {}
    for task in attempts:
        if task.get("failure"):
            failures[task["failure"]] = failures.get(task["failure"], 0) + 1
    tasks = {name: _task_rate([task for task in attempts if task["task"] == name]) for name in names}
    return {
        "chains": len(lengths),
        "average_length": mean(lengths) if lengths else None,
        "average_length_error": stdev(lengths) / len(lengths) ** 0.5 if len(lengths) > 1 else None,
        "in_a_row": {
            str(count): success_rate(sum(length >= count for length in lengths), len(lengths)).as_dict()
            for count in range(1, CHAIN_LENGTH + 1)
        },
        "tasks": tasks,
        "scenes": {SCENE: {"overall": _task_rate(attempts), "tasks": tasks}},
        "failures": failures,
    }


def plan_chains(chains: Chains, simulator: str, *, of_policy: bool, **more: Any) -> Plan:
    """`of_policy`: not of the scripted expert or of random actions. `more`: further entries of the description."""

    def write_more(directory: Path, results: Mapping[str, Any]) -> list[Path]:
        return [write_json(directory / "calvin_results.json", as_calvin_results(results))]

    renderer = more.get("renderer", "")
    return Plan(
        chains.all_episodes(),
        chains.max_steps,
        chains.describe(simulator, renderer) | more,
        summarize_chains,
        table,
        published=of_policy and chains.published(simulator, renderer),
        write_more=write_more,
    )


def as_calvin_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """results.json in the shape of the one that CALVIN's own evaluation writes, for tools that read it: by epoch, here the step."""
    metrics, policy = results["metrics"], results["config"]["policy"]
    step = policy["checkpoint_step"] if isinstance(policy, Mapping) else None
    return {
        str(step or 0): {
            "avg_seq_len": metrics["average_length"],
            "chain_sr": {count: cell["rate"] for count, cell in metrics["in_a_row"].items()},
            "conditions": conditions_text(results),
            "task_info": {name: {"success": cell["successes"], "total": cell["trials"]} for name, cell in metrics["tasks"].items()},
        }
    }


def table(results: Mapping[str, Any]) -> str:
    """CALVIN's metrics as text."""
    metrics = results["metrics"]
    lines = [f"{'task':23}  solved       rate   95% interval"]
    lines += [f"{name:23}  {rate_text(cell)}" for name, cell in metrics["tasks"].items()]
    lines += [f"{count + ' in a row':23}  {rate_text(cell)}" for count, cell in metrics["in_a_row"].items()]
    error = metrics["average_length_error"]
    spread = "" if error is None else f" (standard error {error:.3f})"
    average = "-" if metrics["average_length"] is None else f"{metrics['average_length']:.3f}"
    lines.append(f"average length {average}{spread} over {metrics['chains']} chains")
    if metrics["failures"]:
        lines.append("ended by the simulation: " + ", ".join(f"{name} {count}" for name, count in metrics["failures"].items()))
    return "\n".join(lines)


def _task_rate(attempts: list[Mapping[str, Any]]) -> dict[str, Any]:
    solved = [task["steps"] for task in attempts if task["success"]]
    return {**success_rate(len(solved), len(attempts)).as_dict(), "mean_steps": mean(solved) if solved else None}
