"""A small deterministic simulator for the evaluator's tests: a counter that has to reach a goal. No physics, no JAX.

`trouble` names what goes wrong: {"kill" | "hang" | "raise": seed} happens at the third step of the episode with that seed, as long as the
file `once` does not exist (it is made first, so that the retry succeeds); without `once` it happens every time.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Outcome(NamedTuple):
    success: bool
    done: bool
    steps: int


class Counter:
    """The state moves by the mean of each action; the task is solved once it passes `goal`."""

    renderer = "none"
    tasks = ("count_up", "count_down")
    scenes = ("A", "D")

    def __init__(
        self,
        trouble: dict | None = None,
        once: str = "",
        delay: float = 0.0,
        render_log: str = "",
        goal: float = 1.0,
        size: int = 200,
        limit: int = 10**9,
        action_mode: str = "relative",
    ) -> None:
        print("the simulator greets on stdout, which must not reach the protocol")
        self.trouble, self.once, self.delay, self.render_log, self.goal = trouble or {}, once, delay, render_log, goal
        self.size, self.limit, self.action_mode = size, limit, action_mode
        self.version = os.environ.get("FAKE_VERSION", "fake-1")
        self.seed = self.steps = 0

    def reset(self, *, task=None, scene=None, seed=None, render=True, **initial_state):
        del render
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}")
        self.rng = np.random.default_rng(seed)
        self.seed, self.scene, self.state = seed, scene, float(initial_state.get("state", self.rng.normal() * 0.1))
        self.begin_task(task)

    def begin_task(self, task):
        self.task, self.steps, self.start = task, 0, self.state
        self.instruction = task.replace("_", " ")

    def advance(self, action):
        self.steps += 1
        time.sleep(self.delay)
        if self.steps == 3:
            self._trouble()
        self.state += float(np.mean(action))
        moved = self.state - self.start
        return Outcome(moved > self.goal if self.task == "count_up" else -moved > self.goal, self.steps >= self.limit, self.steps)

    def observation(self, render=True):
        observation = {"robot_obs": np.full(15, self.state, np.float32), "scene_obs": np.arange(24, dtype=np.float32)}
        if render:
            if self.render_log:
                with Path(self.render_log).open("a") as log:
                    log.write(f"{self.seed} {self.steps}\n")
            level = np.uint8(np.clip(128 + 40 * self.state, 0, 255))
            observation |= {"rgb_static": np.full((self.size, self.size, 3), level), "rgb_gripper": np.full((84, 84, 3), level)}
        return observation

    def random_action(self, rng):
        return rng.uniform(-1, 1, 7).astype(np.float32)

    def _trouble(self) -> None:
        kinds = [kind for kind, seed in self.trouble.items() if seed == self.seed]
        if not kinds or (self.once and Path(self.once).exists()):
            return
        if self.once:
            Path(self.once).touch()
        print("trouble ahead", file=sys.stderr, flush=True)
        if kinds[0] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kinds[0] == "hang":
            time.sleep(600)
        raise FloatingPointError("the simulation diverged")


def expert(simulator, rng):
    del rng
    return np.full(7, 0.1 if simulator.task == "count_up" else -0.1, np.float32)
