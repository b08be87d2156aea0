"""A fake simulator: a dot on a line, and images that show where it is. Same interface, no physics."""

import numpy as np

from eval.envs.base import Outcome

INSTRUCTIONS = {"go_left": ("go to the left", "move left please"), "go_right": ("go to the right", "head right"), "never": ("do it",)}


class FakeTable:
    """The dot starts near 0 and has to reach -1 or +1; for one seed in three the expert gives up."""

    def __init__(self, settings):
        self._sizes = {"rgb_static": settings.static_size, "rgb_gripper": settings.gripper_size}
        self.closed = False

    def reset(self, *, task, scene, seed, render):
        self._over = False
        self._goal = {"go_left": -1.0, "go_right": 1.0, "never": 1e9}[task]
        self._shade, self._steps, self._hopeless = ord(scene), 0, seed % 3 == 0
        self._place = float(np.random.default_rng(seed).uniform(-0.3, 0.3))

    def advance(self, action):
        assert not self._over
        assert action.shape == (7,)
        assert np.abs(action[:3]).max() <= 1
        self._place += 0.1 * float(action[0])
        self._steps += 1
        success = self._place * np.sign(self._goal) >= abs(self._goal)
        self._over = success or self._steps >= 40
        return Outcome(success, self._over, self._steps)

    def begin_task(self, task):
        self._over, self._steps = False, 0

    def observation(self):
        frames = {}
        for name, size in self._sizes.items():
            frame = np.full((size, size, 3), self._shade, np.uint8)
            column = int(np.clip((self._place + 1.5) / 3, 0, 0.99) * size)
            frame[:, column] = (255, 0, 0)
            frames[name] = frame
        state = np.zeros(15, np.float32)
        state[0], state[14] = self._place, -1
        return {**frames, "robot_obs": state, "scene_obs": np.arange(24, dtype=np.float32)}

    def close(self):
        self.closed = True


def expert(table, rng):
    if table._hopeless:
        return None
    return np.array([np.sign(table._goal - table._place), 0.1 * rng.standard_normal(), 0, 0, 0, 0, -1.0])


def make(settings):
    return FakeTable(settings)


def origin():
    return {"renderer": "numbers", "environment_version": "0.1"}


def instructions(task):
    return INSTRUCTIONS[task]
