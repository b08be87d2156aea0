"""Speed of the CALVIN simulator: control steps per second with and without cameras, and its scaling with the number of processes.

    python benchmarks/simulator.py [--scene D] [--seconds 5] [--sizes 200,84] [--processes 1,2] [--empty] [--json FILE]

Wall-clock rates depend on the load of the machine; the CPU time per step varies less. For comparison: what the
original (PyBullet 3.2.7, its faster renderer for the machine, scene D, 200 and 84 pixels) reached on the same kind of machine, two busy
AMD EPYC cores without GPU.
"""

import itertools
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from functools import partial

import mujoco
import numpy as np

from eval.envs.calvin_mujoco.environment import VERSION, CalvinEnvironment
from eval.envs.calvin_mujoco.limits import MAX_IMAGE, MIN_IMAGE, SCENES
from eval.envs.calvin_mujoco.rendering import renderer_name
from eval.experts.registry import get_expert
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.provenance import cpu_model

PHYSICS, CAMERAS = "physics and state", "both cameras, {}"
PYBULLET = {PHYSICS: 780.0, CAMERAS.format("no_shadows"): 15.0, CAMERAS.format("faithful"): 15.0}  # control steps per second


def measure(step: Callable[[], None], seconds: float) -> dict[str, float]:
    """Runs `step` for about `seconds` (after a warm-up) and returns rates per call."""
    for _ in range(5):
        step()
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        step()
        calls += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"calls": calls, "per_second": calls / wall, "cpu_ms": 1e3 * cpu / calls}


def expert_episodes(env: CalvinEnvironment) -> list[tuple[str, int, list[np.ndarray]]]:
    """Task, seed and actions of one solved episode per task: what is replayed is what data and evaluations consist of."""
    expert, rng, episodes = get_expert("calvin_mujoco"), np.random.default_rng(0), []
    for task in env.tasks:
        env.reset(task=task, seed=0, render=False)
        actions = [expert(env, rng)]
        while not env.advance(actions[-1]).done:
            actions.append(expert(env, rng))
        episodes.append((task, 0, actions))
    return episodes


def replay(env: CalvinEnvironment, episodes: list[tuple[str, int, list[np.ndarray]]], seconds: float, render: bool) -> dict[str, float]:
    """Rates of control steps with observation while episodes are replayed, for about `seconds`; resets are not counted."""
    calls, wall, cpu = 0, 0.0, 0.0
    for task, seed, actions in itertools.cycle(episodes):
        env.reset(task=task, seed=seed, render=render)
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        for action in actions:
            env.advance(action)
            env.observation(render)
        wall, cpu = wall + time.perf_counter() - wall_start, cpu + time.process_time() - cpu_start
        calls += len(actions)
        if wall > seconds:
            return {"calls": calls, "per_second": calls / wall, "cpu_ms": 1e3 * cpu / calls}
    raise AssertionError


def benchmark(scene: str, seconds: float, sizes: tuple[int, int], blocks: bool) -> dict[str, dict[str, float]]:
    """Physics and state alone, resets, experts, and rendering in both qualities."""
    results = {}
    for quality in ("no_shadows", "faithful"):
        env = CalvinEnvironment(scene, quality=quality, static_size=sizes[0], gripper_size=sizes[1], blocks=blocks)
        episodes = expert_episodes(env)
        if quality == "no_shadows":
            results[PHYSICS] = replay(env, episodes, seconds, render=False)
            results["reset"] = measure(lambda env=env: env.reset(seed=0, render=False), seconds / 2)
            env.reset(task="open_drawer", seed=0, render=False)
            results["choosing the expert's action"] = measure(
                partial(get_expert("calvin_mujoco"), env, np.random.default_rng(0)), seconds / 2
            )
        results[CAMERAS.format(quality)] = replay(env, episodes, seconds, render=True)
        env.close()
    return results


def scaling(arguments: tuple[str, float, tuple[int, int], bool]) -> dict[str, float]:
    """Rates of one of several processes that run at the same time: physics, and both cameras in *no_shadows*."""
    scene, seconds, sizes, blocks = arguments
    env = CalvinEnvironment(scene, static_size=sizes[0], gripper_size=sizes[1], blocks=blocks)
    episodes = expert_episodes(env)
    rates = {
        PHYSICS: replay(env, episodes, seconds, render=False),
        CAMERAS.format("no_shadows"): replay(env, episodes, seconds, render=True),
    }
    return {name: rate["per_second"] for name, rate in rates.items()}


def main() -> None:
    """Command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("--scene", default="D", choices=SCENES, help="scene of the table")
    parser.add_number("--seconds", float, 5.0, "time per measurement", more_than=0, at_most=86_400)
    parser.add_numbers("--sizes", int, "200,84", "static and gripper image size", at_least=MIN_IMAGE, at_most=MAX_IMAGE)
    parser.add_numbers("--processes", int, "1,2", "numbers of processes to run at the same time", at_least=1, at_most=1024)
    parser.add_argument("--empty", action="store_true", help="without blocks")
    parser.add_output("--json", help="also write the figures there")
    arguments = parser.parse_args()
    if len(arguments.sizes) != 2:
        parser.error(f"--sizes: expected two sizes, STATIC,GRIPPER, got {len(arguments.sizes)}")
    static, gripper = arguments.sizes
    sizes = (static, gripper)
    results = benchmark(arguments.scene, arguments.seconds, sizes, not arguments.empty)
    about = {
        "device": cpu_model(),
        "renderer": renderer_name(),
        "mujoco": mujoco.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "environment_version": VERSION,
        "scene": arguments.scene,
        "blocks": not arguments.empty,
        "sizes": [static, gripper],
    }
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    for name, figures in results.items():
        reference = PYBULLET.get(name)
        ratio = f"   {figures['per_second'] / reference:5.1f} x PyBullet" if reference else ""
        print(f"{name:45s} {figures['per_second']:9.1f} steps/s   {figures['cpu_ms']:7.3f} cpu-ms/step{ratio}")
    processes = {}
    for count in arguments.processes:
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            job = (arguments.scene, arguments.seconds, sizes, not arguments.empty)
            parts = pool.map(scaling, [job] * count, chunksize=1)
        processes[count] = {name: sum(part[name] for part in parts) for name in parts[0]}
        print(f"{count} process(es): " + ", ".join(f"{name} {rate:.0f} steps/s" for name, rate in processes[count].items()))
    if arguments.json:
        write_atomically(arguments.json, json.dumps({**about, "results": results, "processes": processes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
