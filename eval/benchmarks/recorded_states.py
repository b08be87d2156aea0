"""CALVIN's single-step protocol: single tasks, each from an initial state that was recorded, e.g. in the dataset.

The states are read from one file:

- `.json`: task -> list of {"robot_obs": [15], "scene_obs": [24]}, each optionally with "scene" ('A' to 'D', default 'D'). Pairs of states,
  {"initial": {...}, "goal": {...}}, are read too: their initial state.
- `.npz`: arrays task [n], robot_obs [n 15], scene_obs [n 24] (or initial_robot_obs, initial_scene_obs) and optionally scene [n].

Blocks of scene_obs are in the scene's own order, as CALVIN records them.
"""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from eval.benchmarks import single_tasks
from eval.benchmarks.base import Plan
from eval.calvin.scenes import SCENES
from eval.calvin.task_names import EVALUATION_INSTRUCTIONS
from eval.errors import EvaluationError
from eval.host_loop import Episode

STEPS = 240  # control steps per task in CALVIN's own evaluation of single tasks
ROBOT_OBS, SCENE_OBS = 15, 24
NOTE = (
    "Partial protocol: success of single tasks from recorded initial states. "
    "Not comparable with CALVIN's average length over 1000 chains of five tasks."
)


class RecordedState(NamedTuple):
    """Where an episode of `task` starts."""

    task: str
    scene: str
    robot_obs: Float[np.ndarray, "15"]
    scene_obs: Float[np.ndarray, "24"]


def read_states(path: Path) -> list[RecordedState]:
    """All states of a file, in its order.

    Raises:
      EvaluationError: the file cannot be read as one of the two forms, or a state of it is not one.
    """
    readers = {".json": _from_json, ".npz": _from_npz}
    if path.suffix not in readers:
        raise EvaluationError(f"{path}: recorded states are in a .json or .npz file")
    try:
        states = [_checked(*state, where=f"{path}, state {number}") for number, state in enumerate(readers[path.suffix](path))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise EvaluationError(f"{path} cannot be read as recorded states ({type(error).__name__}: {error})") from error
    if not states:
        raise EvaluationError(f"{path} holds no state")
    return states


def plan_states(path: Path, tasks: Sequence[str], max_steps: int, seed: int, **more: Any) -> Plan:
    """One episode per state, of `tasks` (empty: all). `more`: further entries of the description."""
    states = [state for state in read_states(path) if not tasks or state.task in tasks]
    if not states:
        raise EvaluationError(f"{path} holds no state of {', '.join(tasks)}")
    scenes, chosen = (
        sorted({state.scene for state in states}),
        [task for task in EVALUATION_INSTRUCTIONS if task in {s.task for s in states}],
    )
    steps = max_steps or STEPS
    description = {
        "benchmark": "calvin",
        "kind": "single tasks from recorded states",
        "partial": True,
        "note": NOTE,
        "scenes": scenes,
        "tasks": chosen,
        "states": len(states),
        "states_sha256": digest(states),
        "steps_per_task": steps,
        "seed": seed,
        **more,
    }
    return Plan(
        list(_episodes(states, seed)),
        steps,
        description,
        lambda records: single_tasks.summarize(records, scenes, chosen),
        single_tasks.table,
    )


def digest(states: Sequence[RecordedState]) -> str:
    """SHA-256 of the states, whatever file they are in."""
    text = "".join(f"{task} {scene} " for task, scene, _, _ in states)
    numbers = b"".join(np.concatenate(state[2:]).astype("<f8").tobytes() for state in states)
    return hashlib.sha256(text.encode() + numbers).hexdigest()


def _episodes(states: Sequence[RecordedState], seed: int) -> Iterator[Episode]:
    """The number of a state among those of its scene and task decides the policy's random numbers."""
    seen: Counter[tuple[str, str]] = Counter()
    for index, (task, scene, robot_obs, scene_obs) in enumerate(states):
        start = single_tasks.episode_seed(seed, scene, task, seen[scene, task])
        seen[scene, task] += 1
        yield Episode(index, (task,), scene, start, {"robot_obs": robot_obs, "scene_obs": scene_obs})


State = tuple[str, str, Any, Any]


def _from_json(path: Path) -> Iterator[State]:
    for task, states in json.loads(path.read_text(encoding="utf-8")).items():
        for state in states:
            initial: Mapping[str, Any] = state.get("initial", state)
            yield task, state.get("scene", "D"), initial["robot_obs"], initial["scene_obs"]


def _from_npz(path: Path) -> Iterator[State]:
    with np.load(path, allow_pickle=False) as archive:
        robot, scene = (archive[name if name in archive.files else f"initial_{name}"] for name in ("robot_obs", "scene_obs"))
        tasks = archive["task"]
        scenes = archive["scene"] if "scene" in archive.files else np.full(len(tasks), "D")
    yield from zip(tasks.tolist(), scenes.tolist(), robot, scene, strict=True)


def _checked(task: str, scene: str, robot_obs: Any, scene_obs: Any, where: str) -> RecordedState:
    if task not in EVALUATION_INSTRUCTIONS:
        raise EvaluationError(f"{where}: unknown task {task!r}; known: {', '.join(EVALUATION_INSTRUCTIONS)}")
    if scene not in SCENES:
        raise EvaluationError(f"{where}: unknown scene {scene!r}; known: {', '.join(SCENES)}")
    vectors = []
    for name, value, size in (("robot_obs", robot_obs, ROBOT_OBS), ("scene_obs", scene_obs, SCENE_OBS)):
        vector = np.asarray(value, np.float64)
        if vector.shape != (size,) or not np.isfinite(vector).all():
            raise EvaluationError(f"{where}: {name} must be {size} finite numbers, is of shape {vector.shape}")
        vectors.append(vector)
    return RecordedState(task, scene, *vectors)
