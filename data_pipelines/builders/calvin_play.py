"""Play on the CALVIN table in MuJoCo: long runs of random feasible tasks, chained without resets, written as RLDS.

A run starts from a random state. Tasks are then sampled one after the other among those that are feasible, the expert acts with the noise
of `calvin_mujoco`, and every solved task becomes one episode with its own instruction. The episodes of a run are consecutive in time
(`run`, `segment`, `start_step` in the metadata). A run depends on (seed, split, scene, number) only.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.builders import calvin_mujoco
from data_pipelines.builders.calvin_mujoco import ACTION_WIDTH, ActionNoise, Settings, append_observation, append_step, episode_schema
from data_pipelines.builders.sharded import Recorded
from data_pipelines.rlds.dataset import RECORDED_IN
from data_pipelines.rlds.schema import Feature, Schema

CONTROL_HZ = 30
RUN_STEPS = 3600  # control steps of one run: two minutes


class Run(NamedTuple):
    """One run to record."""

    split: str
    scene: str
    number: int


def real_feasible_tasks(environment: Any) -> dict[str, list[str]]:
    """Task family -> its tasks that are feasible in the current state of the environment."""
    from eval.envs.calvin_mujoco.feasibility import feasible_tasks

    return feasible_tasks(environment)


@dataclass(frozen=True)
class CalvinPlayRecipe:
    """The recipe `data_pipelines.builders.sharded.build` follows; the callables are as in `CalvinMujocoRecipe`.

    `plan.hours` counts simulated time over all scenes, `plan.val_episodes` is the number of further runs per scene for the val split.
    """

    plan: Settings
    make_environment: Callable[[Settings], Any] = calvin_mujoco.real_environment
    expert: Callable[[Any, np.random.Generator], np.ndarray | None] = calvin_mujoco.scripted_expert
    instructions: Callable[[str], Sequence[str]] = calvin_mujoco.training_instructions_for
    origin: Callable[[], dict[str, str]] = calvin_mujoco.real_origin
    feasible: Callable[[Any], dict[str, list[str]]] = real_feasible_tasks
    run_steps: int = RUN_STEPS
    name: str = "calvin_mujoco"
    version: str = "1.0.0"
    description: str = (
        "Scripted play on the CALVIN table simulated in MuJoCo.\nOne episode per solved task, tasks chained without resets; noise on xyz."
    )

    @property
    def episodes_per_shard(self) -> int:
        return max(1, self.plan.episodes_per_shard // 16)  # in runs, each of which has dozens of episodes

    def settings(self) -> dict[str, Any]:
        return {**calvin_mujoco.written_settings(self.plan), "run_steps": self.run_steps}

    def metadata(self) -> dict[str, Any]:
        return {RECORDED_IN: calvin_mujoco.recorded_in(self.plan)}

    def schema(self) -> Schema:
        schema = episode_schema(self.plan)
        number = Feature("tensor", "int64")
        extra = {"run": Feature("text"), "segment": number, "start_step": number}
        return replace(schema, episode={**schema.episode, **{f"episode_metadata/{name}": feature for name, feature in extra.items()}})

    def jobs(self) -> dict[str, list[Run]]:
        scenes = self.plan.scenes
        runs = max(1, round(self.plan.hours * 3600 * CONTROL_HZ / (self.run_steps * len(scenes))))
        counts = {"train": runs, "val": self.plan.val_episodes}
        return {
            split: [Run(split, scene, number) for number in range(count) for scene in scenes] for split, count in counts.items() if count
        }

    def group(self, job: Run) -> str:
        return job.scene

    def open(self) -> Any:
        return self.make_environment(replace(self.plan, blocks=True))

    def record(self, resource: Any, job: Run) -> Recorded:
        """All solved tasks of a run."""
        schema, origin, name = self.schema(), self.origin(), "/".join(map(str, job))
        seed = run_seed(self.plan.seed, job)
        payloads, tasks = [], 0
        for segment in record_run(resource, self.expert, self.plan, job.scene, seed, self.instructions, self.feasible, self.run_steps):
            tasks += 1
            if segment.columns is None:
                continue
            place = {"run": name, "segment": tasks - 1, "start_step": segment.start_step}
            metadata = {"scene": job.scene, "task": segment.task, "seed": seed, "episode_id": f"{name}/{tasks - 1}", **place, **origin}
            payloads.append(calvin_mujoco.encode(schema, segment.columns, metadata))
        return Recorded(tuple(payloads), tasks)


class Segment(NamedTuple):
    """One task of a run; `columns` is None if it was not solved."""

    task: str
    start_step: int
    columns: dict[str, list] | None


def run_seed(seed: int, run: Run) -> int:
    """31-bit seed of one run."""
    words = [seed, *(zlib.crc32(text.encode()) for text in ("play", run.split, run.scene)), run.number]
    return int(np.random.SeedSequence(words).generate_state(1)[0] >> 1)


def record_run(
    environment: Any,
    expert: Callable[[Any, np.random.Generator], np.ndarray | None],
    plan: Settings,
    scene: str,
    seed: int,
    instructions: Callable[[str], Sequence[str]],
    feasible: Callable[[Any], dict[str, list[str]]],
    run_steps: int,
):
    """Yields the segments of a run until `run_steps` control steps have passed; a simulation out of bounds starts again."""
    choice, noise_rng, expert_rng = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(3))
    names = list(episode_schema(plan).steps)
    fresh, step = True, 0
    while step < run_steps:
        if fresh:
            environment.reset(task="open_drawer", scene=scene, seed=int(choice.integers(2**31)), render=False)
            fresh = False
        families = feasible(environment)
        if not families:
            fresh = True
            step += 1
            continue
        family = families[sorted(families)[int(choice.integers(len(families)))]]
        task = family[int(choice.integers(len(family)))]
        texts = instructions(task)
        instruction = texts[int(choice.integers(len(texts)))]
        environment.begin_task(task)
        columns: dict[str, list] = {name: [] for name in names}
        start, noise = step, ActionNoise(plan, noise_rng)
        while True:
            action = np.asarray(expert(environment, expert_rng), np.float32)
            executed = noise.disturb(action)
            append_observation(columns, environment.observation(), plan)
            outcome = environment.advance(executed)
            append_step(columns, action, executed, float(outcome.success))
            step += 1
            if outcome.done or step - start >= plan.max_steps:
                break
        if not outcome.success:
            fresh = bool(outcome.failure) or step - start >= plan.max_steps
            yield Segment(task, start, None)
            continue
        append_observation(columns, environment.observation(), plan)  # the result of the last motion
        hold = np.concatenate([np.zeros(ACTION_WIDTH - 1), action[-1:]]).astype(np.float32)
        append_step(columns, hold, hold, 0.0)
        calvin_mujoco.finish_columns(columns, instruction)
        yield Segment(task, start, columns)
