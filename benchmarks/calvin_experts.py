"""Success rates of the scripted experts of the CALVIN table, and undetected failures of the simulator.

    python benchmarks/calvin_experts.py tasks  [--scenes A,B,C,D] [--tasks all] [--episodes 50] [--seed 0] [--workers N]
    python benchmarks/calvin_experts.py chains [--sequences 100] [--workers N]
    python benchmarks/calvin_experts.py random [--scenes A,B,C,D] [--steps 10000]

`tasks`: random feasible starts, seeds seed...seed + episodes - 1. `chains`: the official chains in scene D. `random`: random actions; every
state must be finite and every block in the scene, or the episode must have been ended because of it. Nothing is rendered.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from multiprocessing.pool import Pool

import numpy as np

from eval.benchmarks.calvin_sequences import INITIAL_ROBOT_OBS, Sequence, generate_sequences, initial_scene_obs
from eval.calvin.scenes import SCENES
from eval.calvin.tasks import TASKS
from eval.envs.calvin_mujoco.blocks import has_escaped
from eval.envs.calvin_mujoco.environment import VERSION, CalvinEnvironment
from eval.experts.registry import get_expert
from eval.statistics import wilson_interval
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically

EXPERT, RNG = get_expert("calvin_mujoco"), np.random.default_rng(0)  # the expert draws nothing from it


def solve(env: CalvinEnvironment) -> tuple[bool, int, str]:
    """Lets the expert finish the current task: success, steps, how the simulation left its bounds."""
    while not (outcome := env.advance(EXPERT(env, RNG))).done:
        pass
    return outcome.success, outcome.steps, outcome.failure


def run_cell(cell: tuple[str, str, int, int]) -> tuple[str, str, list[tuple[int, bool, int, str]]]:
    """All episodes of one task in one scene."""
    scene, task, seed, episodes = cell
    env = CalvinEnvironment(scene)
    results = []
    for number in range(seed, seed + episodes):
        env.reset(task=task, seed=number, render=False)
        results.append((number, *solve(env)))
    return scene, task, results


def run_chain(sequence: Sequence) -> tuple[int, str, str]:
    """Tasks solved in a row, the task that failed and how."""
    env = CalvinEnvironment("D")
    scene_obs = initial_scene_obs(sequence.state)
    env.reset(task=sequence.tasks[0], robot_obs=INITIAL_ROBOT_OBS, scene_obs=scene_obs, render=False)
    for number, task in enumerate(sequence.tasks):
        if number:
            env.begin_task(task)
        success, _, failure = solve(env)
        if not success:
            return number, task, failure
    return len(sequence.tasks), "", ""


def run_random(cell: tuple[str, int, int]) -> tuple[str, Counter]:
    """Random actions; counts what ended episodes. Raises if something went wrong without being noticed."""
    scene, seed, steps = cell
    env, rng, seen = CalvinEnvironment(scene), np.random.default_rng(seed), Counter()
    env.reset(task="open_drawer", seed=seed, render=False)
    for _ in range(steps):
        outcome = env.advance(env.random_action(rng))
        observed = np.concatenate([env.robot_obs(), env.scene_obs()])
        lost = has_escaped(np.stack([block.position for block in env.task_state().blocks.values()]))
        if (lost or not np.isfinite(observed).all()) and not outcome.failure:
            raise RuntimeError(f"scene {scene}: a broken state went unnoticed")
        if outcome.done:
            seen[outcome.failure or ("solved" if outcome.success else "out of steps")] += 1
            env.reset(task=str(rng.choice(list(TASKS))), render=False)
    return scene, seen


def report_tasks(arguments: argparse.Namespace, pool: Pool) -> dict:
    tasks = list(TASKS) if arguments.tasks == "all" else arguments.tasks.split(",")
    cells = [(scene, task, arguments.seed, arguments.episodes) for scene in arguments.scenes for task in tasks]
    rates, solved, total = {}, 0, 0
    for scene, task, results in pool.imap(run_cell, cells):
        successes = [steps for _, success, steps, _ in results if success]
        low, high = wilson_interval(len(successes), len(results))
        failed = [f"{number}{' ' + failure if failure else ''}" for number, success, _, failure in results if not success]
        steps = f"{np.mean(successes):5.1f} steps" if successes else ""
        rate = f"{len(successes):3d}/{len(results)} ({low:.0%} to {high:.0%})"
        print(f"{scene} {task:24s} {rate} {steps}  failed seeds: {', '.join(failed) or '-'}", flush=True)
        rates[f"{scene}/{task}"] = {"solved": len(successes), "episodes": len(results), "failed_seeds": failed}
        solved, total = solved + len(successes), total + len(results)
    worst = min(rates, key=lambda name: rates[name]["solved"] / rates[name]["episodes"])
    print(f"all: {solved}/{total} = {solved / total:.2%}; worst: {worst} {rates[worst]['solved']}/{rates[worst]['episodes']}")
    return rates


def report_chains(arguments: argparse.Namespace, pool: Pool) -> dict:
    results = pool.map(run_chain, generate_sequences(arguments.sequences), chunksize=4)
    lengths = np.array([solved for solved, _, _ in results])
    failed = [(index, task, failure) for index, (_, task, failure) in enumerate(results) if task]
    for index, task, failure in failed:
        print(f"chain {index}: {task} {failure}")
    shares = [float((lengths >= count).mean()) for count in range(1, 6)]
    print(f"average length {lengths.mean():.3f} over {len(lengths)} chains; in a row: {' '.join(f'{share:.1%}' for share in shares)}")
    return {"average_length": float(lengths.mean()), "in_a_row": shares, "failed": failed}


def report_random(arguments: argparse.Namespace, pool: Pool) -> dict:
    cells = [(scene, arguments.seed, arguments.steps) for scene in arguments.scenes]
    results = {scene: dict(seen) for scene, seen in pool.imap(run_random, cells)}
    for scene, seen in results.items():
        print(f"{scene}: {arguments.steps} random steps; episodes ended: {seen}")
    return results


def main() -> None:
    """Command line."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "what", choices=("tasks", "chains", "random"), help="tasks: success per task; chains: chains of five; random: random actions"
    )
    parser.add_names("--scenes", tuple(SCENES), SCENES, "scenes, comma-separated")
    parser.add_argument("--tasks", default="all", help="'all' or tasks, comma-separated")
    parser.add_number("--episodes", int, 50, "per scene and task", at_least=1, at_most=1_000_000)
    parser.add_number("--sequences", int, 100, "chains of five tasks", at_least=1, at_most=100_000)
    parser.add_number("--steps", int, 10_000, "random actions per scene", at_least=1, at_most=1_000_000)
    parser.add_number("--seed", int, 0, "seed of the initial states", at_least=0)
    parser.add_number("--workers", int, os.cpu_count() or 1, "processes", at_least=1, at_most=1024)
    parser.add_output("--json", help="also write the figures there")
    arguments = parser.parse_args()
    started = time.perf_counter()
    report = {"tasks": report_tasks, "chains": report_chains, "random": report_random}[arguments.what]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        results = report(arguments, pool)
    print(f"environment version {VERSION}, seed {arguments.seed}, {time.perf_counter() - started:.0f} s")
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"environment_version": VERSION, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
