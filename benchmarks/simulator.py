"""Speed of the CALVIN simulator: control steps per second with and without cameras, and how it grows with the number of processes.

    python benchmarks/simulator.py [--scene D] [--seconds 5] [--sizes 200,84] [--processes 1,2] [--empty] [--json FILE]

Wall-clock rates depend on what else the machine does; the processor time per step is the steadier figure. For comparison: what the
original (PyBullet 3.2.7, its faster renderer for the machine, scene D, 200 and 84 pixels) reached on the same kind of machine, two busy
AMD EPYC cores without GPU.
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np

from eval.envs.calvin_mujoco.environment import VERSION, CalvinEnvironment
from eval.envs.calvin_mujoco.rendering import renderer_name

PHYSICS, CAMERAS = "physics and state", "both cameras, {}"
PYBULLET = {PHYSICS: 780.0, CAMERAS.format("fast"): 15.0, CAMERAS.format("faithful"): 15.0}  # control steps per second


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(step: Callable[[], None], seconds: float) -> dict[str, float]:
    """Runs `step` for about `seconds` (after a warm-up) and returns rates per call."""
    for _ in range(20):
        step()
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds:
        for _ in range(10):
            step()
        calls += 10
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"calls": calls, "per_second": calls / wall, "cpu_ms": 1e3 * cpu / calls}


def benchmark(scene: str, seconds: float, sizes: tuple[int, int], blocks: bool) -> dict[str, dict[str, float]]:
    """Physics and state alone, expert, resets, and rendering in both qualities."""
    results = {}
    rng = np.random.default_rng(0)
    for quality in ("fast", "faithful"):
        env = CalvinEnvironment(scene, quality=quality, static_size=sizes[0], gripper_size=sizes[1], blocks=blocks)
        env.reset(task="open_drawer", seed=0)

        def act(action: np.ndarray, env: CalvinEnvironment = env) -> None:
            if env.advance(action).done:
                env.reset(seed=int(rng.integers(1 << 30)), render=False)

        def physics(env: CalvinEnvironment = env) -> None:
            act(env.random_action(rng), env)
            env.observation(render=False)

        def with_cameras(env: CalvinEnvironment = env) -> None:
            act(env.random_action(rng), env)
            env.observation()

        def demonstration(env: CalvinEnvironment = env) -> None:
            env.observation()
            act(env.expert_action(rng), env)

        if quality == "fast":
            results[PHYSICS] = measure(physics, seconds)
            results["reset"] = measure(lambda env=env: env.reset(seed=0, render=False), seconds / 2)
            results["expert demonstration, both cameras, fast"] = measure(demonstration, seconds)
        results[CAMERAS.format(quality)] = measure(with_cameras, seconds)
        env.close()
    return results


def scaling(arguments: tuple[str, float, tuple[int, int], bool]) -> dict[str, float]:
    """Rates of one of several processes that run at the same time: physics, and both cameras in *fast*."""
    scene, seconds, sizes, blocks = arguments
    env, rng = CalvinEnvironment(scene, static_size=sizes[0], gripper_size=sizes[1], blocks=blocks), np.random.default_rng(0)
    env.reset(task="open_drawer", seed=0)

    def act(render: bool) -> None:
        if env.advance(env.random_action(rng)).done:
            env.reset(seed=int(rng.integers(1 << 30)), render=False)
        env.observation(render)

    rates = {PHYSICS: measure(lambda: act(False), seconds), CAMERAS.format("fast"): measure(lambda: act(True), seconds)}
    return {name: rate["per_second"] for name, rate in rates.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scene", default="D")
    parser.add_argument("--seconds", type=float, default=5.0, help="time per measurement")
    parser.add_argument("--sizes", default="200,84", help="static and gripper image size")
    parser.add_argument("--processes", default="1,2", help="numbers of processes to run at the same time")
    parser.add_argument("--empty", action="store_true", help="without blocks")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    static, gripper = (int(size) for size in arguments.sizes.split(","))
    sizes = (static, gripper)
    results = benchmark(arguments.scene, arguments.seconds, sizes, not arguments.empty)
    about = {
        "device": processor(),
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
    for count in map(int, arguments.processes.split(",")):
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            job = (arguments.scene, arguments.seconds, sizes, not arguments.empty)
            parts = pool.map(scaling, [job] * count, chunksize=1)
        processes[count] = {name: sum(part[name] for part in parts) for name in parts[0]}
        print(f"{count} process(es): " + ", ".join(f"{name} {rate:.0f} steps/s" for name, rate in processes[count].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "results": results, "processes": processes}, indent=1) + "\n")


if __name__ == "__main__":
    main()
