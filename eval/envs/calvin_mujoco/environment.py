"""CALVIN's table as a dm_env environment."""

from typing import Any

import dm_env
import mujoco
import numpy as np
from dm_env import specs

from eval.envs.base import LanguageEnvironment, Outcome
from eval.envs.calvin_mujoco.controller import Controller
from eval.envs.calvin_mujoco.experts import expert_action
from eval.envs.calvin_mujoco.initial_states import SCENE_OBS_SIZE, TCP_EULER_NEUTRAL, sample_initial_state
from eval.envs.calvin_mujoco.lights import Lights, ResetVersion
from eval.envs.calvin_mujoco.model import Quality, compile_scene
from eval.envs.calvin_mujoco.panda import ARM_JOINTS, FINGER_MAX, NEUTRAL_JOINTS
from eval.envs.calvin_mujoco.rendering import renderer_name, scene_renderer
from eval.envs.calvin_mujoco.rotations import euler_from_matrix, matrix_from_euler
from eval.envs.calvin_mujoco.tasks import TASKS, TaskState, get_task

VERSION = "1"  # of dynamics, looks and observations: raised when recorded episodes would no longer be what the environment does
ROBOT_OBS_SIZE = 15
ACTION_SIZE = 7
VELOCITY_BOUND = 100.0  # rad/s or m/s; far beyond anything the motors command


class CalvinEnvironment(LanguageEnvironment):
    """The CALVIN table in scenes A-D: relative Cartesian actions at 30 Hz, two cameras, tasks given by sentences.

    Actions are float [7]: position change in units of 0.02 m, change of the fixed-axis Euler angles in units of 0.05 rad, gripper (> 0
    opens). They move a stored target pose, which a reset puts to the measured pose. They are not clipped.

    Args:
      scene: 'A', 'B', 'C' or 'D'.
      quality: 'fast' (no shadows) or 'faithful' (shadows).
      static_size, gripper_size: edge of the square images [pixels].
      reset_version: what a reset does to the button, see `lights`.
      max_steps: control steps until an episode ends unsolved.
    """

    def __init__(
        self,
        scene: str = "D",
        *,
        quality: Quality = "fast",
        static_size: int = 200,
        gripper_size: int = 84,
        reset_version: ResetVersion = "fixed",
        max_steps: int = 360,
    ) -> None:
        self.quality: Quality = quality
        self.static_size, self.gripper_size, self.max_steps = static_size, gripper_size, max_steps
        self.lights = Lights(reset_version)
        self._rng = np.random.default_rng()
        self._task = ""
        self.instruction = ""
        self._data: dict[str, mujoco.MjData] = {}
        self._load(scene)
        self._begin("open_drawer")
        self._needs_reset = True

    # --- what is going on

    @property
    def scene(self) -> str:
        """Name of the current scene."""
        return self.compiled.scene.name

    @property
    def task(self) -> str:
        """Name of the current task."""
        return self._task

    def task_state(self) -> TaskState:
        """What task predicates look at, now."""
        q, c = self.data.qpos, self.compiled
        return TaskState(float(q[c.slide]), float(q[c.drawer]), float(q[c.button]), float(q[c.switch]), self.lights.bulb, self.lights.led)

    def robot_obs(self) -> np.ndarray:
        """float32 [15]: TCP position 3 [m], TCP Euler angles 3, gripper width, arm joints 7, last gripper command."""
        q = self.data.qpos
        return np.concatenate(
            [
                self.controller.tcp_position(),
                euler_from_matrix(self.controller.tcp_matrix()),
                [q[ARM_JOINTS] + q[ARM_JOINTS + 1]],
                q[:ARM_JOINTS],
                [self.controller.gripper_command],
            ]
        ).astype(np.float32)

    def scene_obs(self) -> np.ndarray:
        """float32 [24]: slide, drawer, button, switch [m], bulb, LED, then the three blocks' poses (0 as long as there are none)."""
        state, out = self.task_state(), np.zeros(SCENE_OBS_SIZE, np.float32)
        out[:6] = state.slide, state.drawer, state.button, state.switch, state.bulb, state.led
        return out

    # --- dm_env

    @property
    def version(self) -> str:
        """Changes when the same actions would lead elsewhere."""
        return VERSION

    @property
    def renderer(self) -> str:
        """The graphics library and its driver; makes the context if there is none yet."""
        return renderer_name()

    def reset(
        self,
        *,
        task: str | None = None,
        scene: str | None = None,
        seed: int | None = None,
        robot_obs: np.ndarray | None = None,
        scene_obs: np.ndarray | None = None,
        render: bool = True,
        **unknown: Any,
    ) -> dm_env.TimeStep:
        """Starts an episode.

        Args:
          task: task name; by default the current one, or a random one at the first reset.
          scene: scene name; by default the current one.
          seed: decides the random initial state; by default the environment's own random numbers go on.
          robot_obs: [15]; joints, gripper width and gripper command are taken from it.
          scene_obs: [24]; table joints and lights are taken from it.
          render: whether the returned observation has images.
        """
        if unknown:
            raise TypeError(f"reset: unknown options {sorted(unknown)} (known: task, scene, seed, robot_obs, scene_obs, render)")
        rng = self._rng if seed is None else np.random.default_rng(seed)
        if scene is not None and scene != self.scene:
            self._load(scene)
        name = task or self._task or str(rng.choice(list(TASKS)))
        get_task(name)
        initial = sample_initial_state(self.compiled.scene, name, rng)
        self._place(
            initial.scene_obs if scene_obs is None else _vector("scene_obs", scene_obs, SCENE_OBS_SIZE),
            None if robot_obs is None else _vector("robot_obs", robot_obs, ROBOT_OBS_SIZE),
            initial.tcp_position,
        )
        self._begin(name)
        self._needs_reset = False
        return dm_env.restart(self.observation(render))

    def begin_task(self, task: str, instruction: str | None = None) -> None:
        """Starts the next task from the state reached, as in chains of tasks: no reset, steps are counted anew."""
        self._begin(task)
        if instruction is not None:
            self.instruction = instruction
        self._needs_reset = False

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """One control step; reward 1 when the task is solved. After the last step of an episode it starts a new one, as dm_env asks."""
        if self._needs_reset:
            return self.reset()
        outcome = self.advance(action)
        observation = self.observation()
        if outcome.success or self.failed:
            return dm_env.termination(reward=float(outcome.success), observation=observation)
        if outcome.done:
            return dm_env.truncation(reward=0.0, observation=observation)
        return dm_env.transition(reward=0.0, observation=observation)

    def advance(self, action: np.ndarray) -> Outcome:
        """One control step without rendering. `failed` tells whether the simulation left its bounds."""
        action = _vector("action", action, ACTION_SIZE)
        if self._needs_reset:
            raise RuntimeError("the episode is over: call reset or begin_task first")
        self.controller.apply(action)
        q = self.data.qpos
        self.failed = not (np.isfinite(q).all() and np.abs(self.data.qvel).max() < VELOCITY_BOUND)
        self._steps += 1
        success = False
        if not self.failed:
            self.lights.update(float(q[self.compiled.button]), float(q[self.compiled.switch]))
            success = get_task(self._task).predicate(self._start, self.task_state())
        done = success or self.failed or self._steps >= self.max_steps
        self._needs_reset = done
        return Outcome(success, done, self._steps)

    def observation(self, render: bool = True) -> dict[str, np.ndarray]:
        """State vectors and, if `render`, both images."""
        images = {}
        if render:
            renderer = scene_renderer(self.compiled)
            renderer.prepare(self.data, self.lights.bulb, self.lights.led)
            images = {
                "rgb_static": renderer.draw(self.data, "rgb_static", self.static_size),
                "rgb_gripper": renderer.draw(self.data, "rgb_gripper", self.gripper_size),
            }
        return {**images, "robot_obs": self.robot_obs(), "scene_obs": self.scene_obs()}

    def expert_action(self, rng: np.random.Generator) -> np.ndarray:
        """The scripted expert's action for the current task and state, float32 [7]."""
        del rng  # the experts are deterministic: a policy that imitates them has one answer per state to learn
        return expert_action(self._task, self)

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """Uniform in [-1, 1] in six dimensions, gripper open or closed with equal chance; float32 [7]."""
        return np.append(rng.uniform(-1.0, 1.0, 6), rng.choice([-1.0, 1.0])).astype(np.float32)

    def observation_spec(self) -> dict[str, specs.Array]:
        """Shapes and dtypes of `observation`."""

        def image(size: int, name: str) -> specs.Array:
            return specs.BoundedArray((size, size, 3), np.uint8, 0, 255, name)

        return {
            "rgb_static": image(self.static_size, "rgb_static"),
            "rgb_gripper": image(self.gripper_size, "rgb_gripper"),
            "robot_obs": specs.Array((ROBOT_OBS_SIZE,), np.float32, "robot_obs"),
            "scene_obs": specs.Array((SCENE_OBS_SIZE,), np.float32, "scene_obs"),
        }

    def action_spec(self) -> specs.BoundedArray:
        """The usual range of actions; larger ones are taken as they are."""
        return specs.BoundedArray((ACTION_SIZE,), np.float32, -1.0, 1.0, "action")

    def dm_control_physics(self) -> Any:
        """A `dm_control.mujoco.Physics` of the current scene and state: a copy, for named indexing, dm_control's tools and its viewer."""
        from dm_control.mujoco import Physics, wrapper  # slow to import and not needed otherwise

        physics = Physics.from_model(wrapper.MjModel(self.compiled.model))
        with physics.reset_context():
            physics.data.qpos[:], physics.data.qvel[:] = self.data.qpos, self.data.qvel
        return physics

    def close(self) -> None:
        """Forgets the simulations. Compiled scenes and the OpenGL context stay with the process."""
        self._data.clear()
        self._needs_reset = True

    # --- inside

    def _load(self, scene: str) -> None:
        self.compiled = compile_scene(scene, self.quality)
        if scene not in self._data:
            self._data[scene] = mujoco.MjData(self.compiled.model)
        self.data = self._data[scene]
        mujoco.mj_resetData(self.compiled.model, self.data)
        mujoco.mj_step1(self.compiled.model, self.data)
        command = self.controller.gripper_command if hasattr(self, "controller") else 1.0
        self.controller = Controller(self.compiled, self.data)
        self.controller.gripper_command = command

    def _begin(self, task: str) -> None:
        self.instruction = get_task(task).evaluation_sentence
        self._task = task
        self._start = self.task_state()
        self._steps = 0
        self.failed = False

    def _place(self, scene_obs: np.ndarray, robot_obs: np.ndarray | None, tcp_position: np.ndarray) -> None:
        """Writes joints and lights, then the robot, then lets one physics step pass."""
        model, data, c = self.compiled.model, self.data, self.compiled
        mujoco.mj_resetData(model, data)
        data.qpos[[c.slide, c.drawer, c.button, c.switch]] = scene_obs[:4]
        self.lights.reset(bulb=scene_obs[4] > 0.5, led=scene_obs[5] > 0.5, button_q=float(scene_obs[2]))
        fingers = slice(ARM_JOINTS, ARM_JOINTS + 2)
        if robot_obs is None:
            data.qpos[:ARM_JOINTS], data.qpos[fingers] = NEUTRAL_JOINTS, FINGER_MAX
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            self.controller.place(tcp_position, matrix_from_euler(TCP_EULER_NEUTRAL))
            self.controller.gripper_command = 1.0
        else:
            data.qpos[:ARM_JOINTS], data.qpos[fingers] = robot_obs[7:14], robot_obs[6] / 2
            self.controller.gripper_command = 1.0 if robot_obs[14] > 0 else -1.0
        mujoco.mj_step1(model, data)
        self.controller.synchronise()
        self.controller.physics(1)
        self.controller.synchronise()


def _vector(name: str, value: np.ndarray, size: int) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if value.shape != (size,) or not np.isfinite(value).all():
        raise ValueError(
            f"{name}: expected {size} finite numbers, got shape {value.shape} {np.array2string(value, precision=3, threshold=10)}"
        )
    return value
