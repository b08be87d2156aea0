"""How far the MuJoCo CALVIN is from the original: replays what was recorded from the original simulator (calvin_env, PyBullet).

    python benchmarks/calvin_original.py --recordings DIR [--what free,low,strokes,pairs] [--workers 1] [--json FILE]

The directory has, all of scene D with blocks in its order, any of these:

- `random_free.npz`, `random_low.npz`: sequences of random relative actions, in free space and low over the table. Measured: errors of the
  tool centre point and of the joints in every step (in `random_free`: before the robot touched anything).
- `displaced_strokes.npz`: strokes from displaced starts, replayed open loop until the task is solved or the actions end. Measured: whether
  both simulators agree on the success; the original ran every stroke twice, which says how far it agrees with itself.
- `recorded_pairs.json`: task -> states of the real dataset before and after the task. Measured: whether the predicates call it solved.

Arrays: initial_robot_obs [n 15], initial_scene_obs [n 24], actions [n t 7]; of sequences robot_obs [n t+1 15], scene_obs [n t+1 24] and
robot_contact [n t+1]; of strokes task, length, success and success_again [n]. Nothing is rendered.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from eval.benchmarks.calvin_sequences import TASK_NAMES
from eval.calvin.rotations import wrap
from eval.calvin.task_names import FIXTURE_TASKS
from eval.calvin.tasks import TASKS
from eval.envs.calvin_mujoco.environment import VERSION, CalvinEnvironment
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically

SCENE = "D"
PERCENTILES = (50, 90, 99)
PORT = {"scene": SCENE, "block_order": "original"}


def group(task: str) -> str:
    """The group that a task is counted in."""
    if task in FIXTURE_TASKS:
        return "table parts"
    if task in ("place_in_slider", "place_in_drawer", "stack_block", "unstack_block"):
        return "place, stack, unstack"
    words = task.split("_")
    return f"lift {words[-1]}" if words[0] == "lift" else words[0]  # 'push' has push_into_drawer


GROUPS = tuple(dict.fromkeys(group(task) for task in sorted(TASK_NAMES, key=lambda name: (name not in FIXTURE_TASKS, name))))


def run_sequence(sequence: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Errors per step of one replayed sequence: tool centre point [m], largest joint [rad], largest block displacement [m]."""
    environment = CalvinEnvironment(**PORT, max_steps=len(sequence["actions"]) + 1)
    environment.reset(task="open_drawer", robot_obs=sequence["initial_robot_obs"], scene_obs=sequence["initial_scene_obs"], render=False)
    robot, scene = [environment.robot_obs()], [environment.scene_obs()]
    for action in sequence["actions"]:
        environment.begin_task("open_drawer")  # whatever the actions do, the sequence continues
        environment.advance(action)
        robot.append(environment.robot_obs())
        scene.append(environment.scene_obs())
    robot_error, scene_error = np.stack(robot) - sequence["robot_obs"], np.stack(scene) - sequence["scene_obs"]
    touched = np.logical_or.accumulate(sequence["robot_contact"])
    return {
        "tcp": np.linalg.norm(robot_error[:, :3], axis=1),
        "joints": np.abs(wrap(robot_error[:, 7:14])).max(axis=1),
        "blocks": np.linalg.norm(scene_error[:, 6:].reshape(-1, 3, 6)[:, :, :3], axis=2).max(axis=1),
        "free": ~touched,
    }


def run_stroke(stroke: Mapping[str, Any]) -> bool:
    """Whether a replayed stroke solves its task."""
    environment = CalvinEnvironment(**PORT)
    environment.reset(task=str(stroke["task"]), robot_obs=stroke["initial_robot_obs"], scene_obs=stroke["initial_scene_obs"], render=False)
    outcome = None
    for action in stroke["actions"][: int(stroke["length"])]:
        outcome = environment.advance(action)
        if outcome.done:
            break
    return outcome is not None and outcome.success


def pair_is_solved(environment: CalvinEnvironment, task: str, pair: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the predicate of `task` holds between two recorded states."""
    states = []
    for moment in ("initial", "goal"):
        environment.reset(task=task, render=False, **{name: np.asarray(value) for name, value in pair[moment].items()})
        states.append(environment.task_state())
    return TASKS[task].predicate(*states)


def measure_sequences(path: Path, pool: Pool) -> dict[str, Any]:
    """Percentiles of the errors of one file of sequences."""
    results = pool.map(run_sequence, rows(path))
    free = np.concatenate([result["free"][1:] for result in results])  # the first state is given
    chosen = free if path.stem == "random_free" else np.ones_like(free)
    figures: dict[str, Any] = {"sequences": len(results), "steps": int(chosen.sum())}
    for name, unit, scale in (("tcp", "mm", 1e3), ("joints", "rad", 1.0), ("blocks", "mm", 1e3)):
        errors = scale * np.concatenate([result[name][1:] for result in results])[chosen]
        figures[f"{name}_{unit}"] = {f"p{percent}": float(np.percentile(errors, percent)) for percent in PERCENTILES}
        print(f"{path.stem} {name:6s} [{unit:3s}] " + "  ".join(f"{k} {v:8.4f}" for k, v in figures[f"{name}_{unit}"].items()))
    return figures


def measure_strokes(path: Path, pool: Pool) -> dict[str, Any]:
    """Success there and here, and agreement, by group and by task."""
    strokes = rows(path)
    here = np.array(pool.map(run_stroke, strokes, chunksize=8))
    first = np.array([bool(stroke["success"]) for stroke in strokes])
    second = np.array([bool(stroke["success_again"]) for stroke in strokes])
    tasks = np.array([str(stroke["task"]) for stroke in strokes])
    groups = np.array([group(task) for task in tasks])
    lines = {name: stroke_figures(here, first, second, groups == name) for name in GROUPS if (groups == name).any()}
    figures = {
        "groups": lines,
        "all": stroke_figures(here, first, second, np.ones(len(here), bool)),
        "tasks": {name: stroke_figures(here, first, second, tasks == name) for name in sorted(set(tasks.tolist()))},
        "success_here": here.tolist(),
    }
    print(f"{'strokes':24s} {'n':>5s} {'there':>7s} {'here':>7s} {'points':>7s} {'agreement':>10s} {'there with itself':>18s}")
    for name, line in [*lines.items(), ("all", figures["all"])]:
        print(
            f"{name:24s} {line['n']:5d} {line['there']:7.1%} {line['here']:7.1%} {line['points']:+7.1f} {line['agreement']:10.1%} "
            f"{line['there_with_itself']:18.1%}"
        )
    return figures


def stroke_figures(here: np.ndarray, first: np.ndarray, second: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    """Of the `chosen` strokes. `there`: mean of the original's two runs; agreement: with its first run."""
    a, b, c = here[chosen], first[chosen], second[chosen]
    there = float((b.mean() + c.mean()) / 2)
    return {
        "n": len(a),
        "there": there,
        "here": float(a.mean()),
        "points": 100.0 * (float(a.mean()) - there),
        "agreement": float((a == b).mean()),
        "agreement_with_second": float((a == c).mean()),
        "there_with_itself": float((b == c).mean()),
    }


def measure_pairs(path: Path) -> dict[str, Any]:
    """How many recorded pairs the predicates call solved, and which not."""
    environment = CalvinEnvironment(**PORT)
    pairs = json.loads(path.read_text())
    missed = [
        f"{task}/{number}"
        for task, several in pairs.items()
        for number, pair in enumerate(several)
        if not pair_is_solved(environment, task, pair)
    ]
    total = sum(map(len, pairs.values()))
    print(f"recorded pairs: {total - len(missed)}/{total} solved; not: {', '.join(missed) or '-'}")
    return {"pairs": total, "solved": total - len(missed), "missed": missed}


def rows(path: Path) -> list[dict[str, Any]]:
    """One dictionary per row of the arrays of a file."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return [{name: array[number] for name, array in arrays.items()} for number in range(len(arrays["actions"]))]


FILES = {"free": "random_free.npz", "low": "random_low.npz", "strokes": "displaced_strokes.npz", "pairs": "recorded_pairs.json"}


def measure(directory: Path, what: list[str], pool: Pool) -> dict[str, Any]:
    """All that is asked for and there."""
    results: dict[str, Any] = {}
    for name in what:
        path = directory / FILES[name]
        if not path.is_file():
            print(f"{name}: {path} is not there")
        elif name == "pairs":
            results[name] = measure_pairs(path)
        else:
            results[name] = measure_strokes(path, pool) if name == "strokes" else measure_sequences(path, pool)
    return results


def measurements(text: str) -> list[str]:
    """The type of --what."""
    names = text.split(",")
    if unknown := [name for name in names if name not in FILES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(FILES)}")
    return names


def main() -> None:
    """Command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--recordings", type=Path, required=True, help="directory with the files above")
    parser.add_argument("--what", type=measurements, default=",".join(FILES), help="what is measured, comma-separated")
    parser.add_number("--workers", int, 1, "processes", at_least=1, at_most=1024)
    parser.add_output("--json", help="also write the figures there")
    arguments = parser.parse_args()
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        results = measure(arguments.recordings, arguments.what, pool)
    if not results:
        parser.error(f"--recordings: {arguments.recordings} has none of {', '.join(FILES[name] for name in arguments.what)}")
    print(f"environment version {VERSION}, MuJoCo {mujoco.__version__}, {time.perf_counter() - started:.0f} s")
    if arguments.json:
        write_atomically(
            arguments.json, json.dumps({"environment_version": VERSION, "mujoco": mujoco.__version__, **results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
