"""The original CALVIN simulator (mees/calvin_env, PyBullet) from a checkout, behind the evaluator's interface.

Nothing of calvin_env is contained here: its own configuration files, scenes, robot, cameras and tasks are read from the checkout.
Blocks of `scene_obs` are in the order of the scene, as in recordings. Episodes start from given states, as CALVIN's protocol does.

Unlike in the original, an episode does not depend on those that its process has run before: pairs of touching bodies are solved in a fixed
order, and a reset also sets the last gripper command (to that of robot_obs) and the memory of a pressed button.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CAMERAS = ("static", "gripper")
ROBOT_LINKS = {8: "hand", 9: "finger1", 10: "finger1", 11: "finger2", 12: "finger2"}  # of panda_longer_finger.urdf


class Outcome(NamedTuple):
    """The outcome of one control step, see eval.envs.base."""

    success: bool
    done: bool
    steps: int
    failure: str = ""


class CalvinPyBullet:
    """One process runs one of these; PyBullet keeps global state.

    Args:
      checkout: directory of calvin_env.
      renderer: 'egl' (the original's images) or 'tiny' (PyBullet's software renderer, whose images differ).
      reset_version: what a reset does to the button that switches the LED, whatever the checkout's commit does: 'original' (calvin_env
        1431a46, which a recursive clone of CALVIN contains) sets it to off, 'fixed' (797142c) to the LED's state.
      max_steps: control steps until a task ends unsolved.
    """

    scenes = ("A", "B", "C", "D")
    action_mode = "relative"

    def __init__(self, checkout: str, renderer: str = "egl", reset_version: str = "original", max_steps: int = 360) -> None:
        if renderer not in ("egl", "tiny"):
            raise ValueError(f"renderer must be 'egl' or 'tiny', not {renderer!r}")
        if reset_version not in ("fixed", "original"):
            raise ValueError(f"reset_version must be 'fixed' or 'original', not {reset_version!r}")
        self._conf = Path(checkout) / "conf"
        if not (self._conf / "tasks" / "new_playtable_tasks.yaml").is_file():
            raise ValueError(f"{checkout} is no checkout of calvin_env: it has no conf/tasks/new_playtable_tasks.yaml")
        self._renderer, self._reset_version, self._max_steps = renderer, reset_version, max_steps
        self.version = f"calvin_env {_commit(checkout)}"
        self.renderer = f"PyBullet, {renderer}"
        sys.path.insert(0, str(checkout))
        import hydra

        self._instantiate = hydra.utils.instantiate
        self._oracle = self._instantiate(self._load("tasks/new_playtable_tasks"))
        self.tasks = tuple(self._oracle.tasks)
        self.scene = ""
        self._env: Any = None
        self._lit = False  # whether the environment has rendered
        self.task, self._steps, self.instruction = "", 0, ""

    def reset(
        self,
        *,
        task: str,
        scene: str | None = None,
        seed: int | None = None,
        render: bool = True,
        robot_obs: Any = None,
        scene_obs: Any = None,
    ) -> None:
        """Starts from a state of CALVIN's protocol: robot_obs [15] and scene_obs [24]."""
        del seed, render
        if robot_obs is None or scene_obs is None:
            raise ValueError("calvin_pybullet starts episodes from given states: run chains (--sequences) or recorded states (--states)")
        self._enter(scene or "D")
        self._env.scene.reset(np.asarray(scene_obs, np.float64))
        for button in self._env.scene.buttons:
            states = type(button.state)
            lit = button.light is not None and button.light.get_state() == states.ON.value
            button.state = states.ON if lit and self._reset_version == "fixed" else states.OFF
            button.prev_is_pressed = False
        self._env.robot.reset(np.asarray(robot_obs, np.float64))
        self._env.robot.gripper_action = 1 if robot_obs[14] > 0 else -1
        self._env.p.stepSimulation(physicsClientId=self._env.cid)
        self.begin_task(task)

    def begin_task(self, task: str) -> None:
        if task not in self.tasks:
            raise ValueError(f"unknown task {task!r}; calvin_env has {', '.join(self.tasks)}")
        self.task, self._steps = task, 0
        self._start, self._start_obs = self._env.get_info(), self._env.get_state_obs()

    def advance(self, action: np.ndarray) -> Outcome:
        """As the original's `step`, without the images that it renders in every step."""
        env = self._env
        env.robot.apply_action(np.asarray(action, np.float64))
        for _ in range(env.action_repeat):
            env.p.stepSimulation(physicsClientId=env.cid)
        env.scene.step()
        self._steps += 1
        success = bool(self._oracle.get_task_info_for_set(self._start, env.get_info(), {self.task}))
        return Outcome(success, success or self._steps >= self._max_steps, self._steps)

    def observation(self, render: bool = True) -> dict[str, np.ndarray]:
        """robot_obs float32 [15], scene_obs float32 [24], and images uint8: rgb_static [200 200 3], rgb_gripper [84 84 3]."""
        found = {name: np.asarray(value, np.float32) for name, value in self._env.get_state_obs().items()}
        if render:
            if not self._lit:  # the first images of an environment are lit differently from all later ones
                self._env.get_camera_obs()
                self._lit = True
            images, _ = self._env.get_camera_obs()
            found.update({name: np.asarray(image, np.uint8) for name, image in images.items()})
        return found

    def privileged_state(self) -> dict[str, Any]:
        """What scripted experts see: the state when the task began and now, and the robot's stored target pose [m, rad]."""
        robot = self._env.robot
        return {
            "scene": self.scene,
            "start": _observed(self._start, self._start_obs),
            "now": _observed(self._env.get_info(), self._env.get_state_obs()),
            "target_position": np.array(robot.target_pos, np.float64),
            "target_euler": np.array(robot.target_orn, np.float64),
            "button_pressed": bool(self._env.scene.buttons[0].prev_is_pressed),
        }

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        action = rng.uniform(-1.0, 1.0, 7)
        action[-1] = 1.0 if action[-1] > 0 else -1.0
        return action

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env.cid = -1  # it closes itself again when it is deleted: then the number may be the next one's
        self.scene, self._env = "", None

    def _load(self, name: str) -> Any:
        from omegaconf import OmegaConf

        return OmegaConf.load(self._conf / f"{name}.yaml")

    def _enter(self, scene: str) -> None:
        """Makes the original environment of a scene from the checkout's own files, unless it is the present one.

        There is one at a time: calvin_env loads PyBullet's EGL renderer for the first connection of a process only, and a second one
        would silently be drawn by another renderer.
        """
        if scene not in self.scenes:
            raise ValueError(f"unknown scene {scene!r}; there are {', '.join(self.scenes)}")
        if scene != self.scene:
            self.close()
            from omegaconf import OmegaConf

            tree = OmegaConf.create(
                {
                    "seed": 0,
                    "use_vr": False,
                    "data_path": "data",
                    "cameras": {name: self._load(f"cameras/cameras/{name}") for name in CAMERAS},
                    "scene": self._load(f"scene/calvin_scene_{scene}"),
                    "robot": OmegaConf.merge(self._load("robot/panda"), self._load("robot/panda_longer_finger")),
                    "env": self._load("env/play_table_env"),
                }
            )
            options = {"show_gui": False, "use_vr": False, "use_scene_info": True, "use_egl": self._renderer == "egl"}
            self._env = self._instantiate(tree.env, **options)
            self.scene, self._lit = scene, False
            # The original asks for this, too, but loses it when it loads the scene.
            self._env.p.setPhysicsEngineParameter(deterministicOverlappingPairs=1, physicsClientId=self._env.cid)


def _observed(info: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """One time step: robot_obs [15], scene_obs [24], velocities of the blocks [n 6], and body -> the (body, link) that it touches.

    Bodies are 'robot', 'table', 'floor' and the colours of blocks. A finger and its tip are one link, as is a block.
    """
    robot, table = info["robot_info"], info["scene_info"]["fixed_objects"]["table"]
    blocks = {name.replace("block_", ""): block for name, block in info["scene_info"]["movable_objects"].items()}
    colours = {block["uid"]: colour for colour, block in blocks.items()}
    table_links = {number: name for name, number in table["links"].items()}

    def touch(point: Any) -> tuple[str, str]:
        body, link = point[2], point[4]
        if body == robot["uid"]:
            return "robot", ROBOT_LINKS.get(link, f"link{link}")
        if body == table["uid"]:
            return "table", table_links[link]
        return (colours[body], "block") if body in colours else ("floor", "")

    return {
        "robot_obs": np.asarray(state["robot_obs"], np.float64),
        "scene_obs": np.asarray(state["scene_obs"], np.float64),
        "velocities": np.array([(*block["current_lin_vel"], *block["current_ang_vel"]) for block in blocks.values()]),
        "touches": {name: {touch(point) for point in body["contacts"]} for name, body in {"robot": robot, **blocks}.items()},
    }


def _commit(checkout: str) -> str:
    command = ["git", "-c", f"safe.directory={os.path.abspath(checkout)}", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    found = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return found.stdout.decode().strip() or "of unknown commit"
