"""Overhead of the closed loop besides the policy: messages, simulation, rendering; and the gain of simulating while the policy computes.

    python benchmarks/host_loop.py [--episodes 16 --workers 4 --policy_ms 60]

The policy is simulated: one that occupies a core for a time proportional to the batch (a policy on CPU), and one that leaves the core
idle for a constant time (an accelerator). `batch = workers` waits for all simulators, `batch = workers / 2`
computes one half while the other half simulates.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from eval.benchmarks.calvin import FIXTURE_TASKS, INTERFACE
from eval.benchmarks.single_tasks import SingleTasks
from eval.host_loop import HostLoop, LoopOptions
from eval.policies import RandomPolicy
from eval.results import Journal, device_description
from eval.worker.vpp_worker.protocol import pack, unpack
from eval.worker_process import WorkerCommand, WorkerProcess, hello
from vpp_jax.cli.parser import Parser
from vpp_jax.common.provenance import library_versions

COMMAND = WorkerCommand("calvin_mujoco")


class TimedPolicy(RandomPolicy):
    """Random actions after a fixed time."""

    def __init__(self, seconds: float, busy: bool) -> None:
        super().__init__(views={"primary": 64, "wrist": 64})
        self.seconds, self.busy = seconds, busy

    def act(self, observations, seeds):
        end = time.perf_counter() + self.seconds
        if not self.busy:
            time.sleep(self.seconds)
        while time.perf_counter() < end:
            pass
        return super().act(observations, seeds)


def milliseconds(function, repeats: int) -> float:
    """Median of `repeats` calls."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times))


def messages_and_drawing(log: Path) -> None:
    images = {"rgb_static": np.zeros((200, 200, 3), np.uint8), "rgb_gripper": np.zeros((84, 84, 3), np.uint8)}
    print(f"pack and unpack one observation of two images   {milliseconds(lambda: unpack(pack(images)[4:]), 200):8.3f} ms")
    worker = WorkerProcess(COMMAND, log)
    worker.request(hello(render=True), 300)
    reset = {"command": "reset", "task": "open_drawer", "scene": "D", "seed": 0, "initial_state": {}, "render": True, "video_stride": 0}
    worker.request(reset, 60)

    def advance(steps: int, render: bool) -> float:
        request = {"command": "advance", "actions": np.zeros((steps, 7), np.float32), "render": render}
        return milliseconds(lambda: worker.request(request, 60), 20)

    empty, drawn, ten = advance(0, False), advance(0, True), advance(10, False)
    worker.close()
    print(f"request without work                             {empty:8.3f} ms")
    print(f"request for one observation                      {drawn:8.3f} ms")
    print(f"ten control steps, nothing drawn                 {ten:8.3f} ms")


def episodes_per_second(directory: Path, policy: TimedPolicy, workers: int, batch_size: int, episodes: int) -> float:
    chosen = SingleTasks(("D",), FIXTURE_TASKS, episodes=-(-episodes // 8)).all_episodes()[:episodes]
    options = LoopOptions(workers=workers, batch_size=batch_size, max_steps=60)
    with Journal(directory / "episodes.jsonl") as journal:
        loop = HostLoop(policy, COMMAND, journal, options, directory / "logs", INTERFACE)
        report = loop.run(chosen)
        return len(chosen) / (report.seconds - report.start_seconds)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_number("--episodes", int, 16, "episodes to run", at_least=1, at_most=1_000_000)
    parser.add_number("--workers", int, 4, "simulator processes", at_least=1, at_most=1024)
    parser.add_number("--policy_ms", float, 60.0, "milliseconds per call of the stand-in policy", at_least=0, at_most=1_000_000)
    options = parser.parse_args()
    print(device_description(), {name: version for name, version in library_versions().items() if name in ("python", "numpy")})
    with tempfile.TemporaryDirectory() as name:
        messages_and_drawing(Path(name) / "worker.log")
        for busy in (True, False):
            for batch_size in (options.workers, max(1, options.workers // 2)):
                share = batch_size / options.workers if busy else 1.0
                policy = TimedPolicy(share * options.policy_ms / 1e3, busy)
                directory = Path(name) / f"{busy}_{batch_size}"
                rate = episodes_per_second(directory, policy, options.workers, batch_size, options.episodes)
                kind = f"policy {share * options.policy_ms:.0f} ms, {'busy' if busy else 'free'} core"
                print(f"{kind}: {options.workers} workers, batch {batch_size}: {rate:6.2f} episodes/s")


if __name__ == "__main__":
    main()
