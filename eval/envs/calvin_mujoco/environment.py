"""CALVIN's table as a dm_env environment."""

import dataclasses
import math
from typing import Any

import dm_env
import mujoco
import numpy as np
from dm_env import specs

from eval.calvin.rotations import euler_angles, euler_from_matrix
from eval.calvin.situation import FINGER_MAX, Hand, Situation
from eval.calvin.task_names import FIXTURE_TASKS
from eval.calvin.tasks import TASKS, BlockState, TaskState, get_task
from eval.envs.base import LanguageEnvironment, Outcome
from eval.envs.calvin_mujoco.blocks import STANDARD_ORDER, free_joint_values, has_escaped
from eval.envs.calvin_mujoco.contacts import Touches
from eval.envs.calvin_mujoco.controller import Controller
from eval.envs.calvin_mujoco.initial_states import SCENE_OBS_SIZE, InitialState, sample_initial_state
from eval.envs.calvin_mujoco.lights import Lights
from eval.envs.calvin_mujoco.limits import VERSION
from eval.envs.calvin_mujoco.model import compile_scene
from eval.envs.calvin_mujoco.panda import ARM_JOINTS, NEUTRAL_JOINTS
from eval.envs.calvin_mujoco.rendering import renderer_name, scene_renderer

ROBOT_OBS_SIZE = 15
ACTION_SIZE = 7
VELOCITY_BOUND = 100.0  # rad/s or m/s; far beyond anything the motors command
GRASP_SUBSTEPS = 24  # physics steps of a reset that closes the gripper around a block


class CalvinEnvironment(LanguageEnvironment):
    """The CALVIN table in scenes A-D: Cartesian actions at 30 Hz, two cameras, tasks given by instructions.

    Relative actions are float [7]: position change in units of 0.02 m, change of the fixed-axis Euler angles in units of 0.05 rad, gripper
    (> 0 opens). They move a stored target pose, which a reset puts to the measured pose. They are not clipped. Absolute actions are the
    target pose itself [m, rad] and the gripper.

    Args:
      scene: 'A', 'B', 'C' or 'D'.
      quality: 'faithful' (as the original's renderer) or 'no_shadows' (several times as fast).
      static_size, gripper_size: edge of the square images [pixels].
      blocks: whether the scene has its three blocks; without them only `FIXTURE_TASKS` are possible.
      block_order: of scene_obs: 'standard' is red, blue, pink; 'original' is the scene's own, as in CALVIN's recordings.
      action_mode: 'relative' or 'absolute'.
      depth: whether observations also have depth_static and depth_gripper, float32 [m].
      reset_version: what a reset does to the button, see `lights`.
      max_steps: control steps until an episode ends unsolved.
    """

    def __init__(
        self,
        scene: str = "D",
        *,
        quality: str = "no_shadows",
        static_size: int = 200,
        gripper_size: int = 84,
        blocks: bool = True,
        block_order: str = "standard",
        action_mode: str = "relative",
        depth: bool = False,
        reset_version: str = "fixed",
        max_steps: int = 360,
    ) -> None:
        if block_order not in ("standard", "original"):
            raise ValueError(f"block_order must be 'standard' or 'original', not {block_order!r}")
        if action_mode not in ("relative", "absolute"):
            raise ValueError(f"action_mode must be 'relative' or 'absolute', not {action_mode!r}")
        self.quality = quality
        self.static_size, self.gripper_size, self.max_steps = static_size, gripper_size, max_steps
        self.blocks, self.block_order, self.action_mode, self.depth = blocks, block_order, action_mode, depth
        self.lights = Lights(reset_version)
        self._rng = np.random.default_rng()
        self._task = ""
        self.instruction = ""
        self._data: dict[str, mujoco.MjData] = {}
        self._load(scene)
        self._begin("open_drawer")
        self._needs_reset = True

    # --- state

    @property
    def scene(self) -> str:
        """Name of the current scene."""
        return self.compiled.scene.name

    @property
    def task(self) -> str:
        """Name of the current task."""
        return self._task

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that can be done here."""
        return tuple(TASKS) if self.blocks else FIXTURE_TASKS

    @property
    def start_state(self) -> TaskState:
        """The state in which the current task began."""
        return self._start

    def joint(self, name: str) -> float:
        """Position [m] of 'slide', 'drawer', 'button' or 'switch'."""
        return float(self.data.qpos[getattr(self.compiled, name)])

    def task_state(self) -> TaskState:
        """The current state, as task predicates read it."""
        touches = self._touches.now()
        positions, rotations, velocities = self._block_positions.copy(), self._block_rotations.copy(), self._block_velocities.copy()
        spins = (rotations @ velocities[:, 3:, None])[..., 0]
        blocks = {
            colour: BlockState(position, rotation, velocity, spin, touches.get(colour, frozenset()))
            for colour, position, rotation, velocity, spin in zip(
                self.compiled.blocks, positions, rotations, velocities[:, :3], spins, strict=True
            )
        }
        return self._fixture_state(blocks, touches.get("robot", frozenset()))

    def _fixture_state(self, *rest: Any) -> TaskState:
        """Joints and lights, which is all that predicates of FIXTURE_TASKS read, and the `rest` of a TaskState."""
        button, slide, drawer, switch = self._table_joints.tolist()
        return TaskState(slide, drawer, button, switch, self.lights.bulb, self.lights.led, *rest)

    def situation(self) -> Situation:
        """The privileged state, for scripted experts: a copy, which later steps do not change."""
        controller = self.controller
        hand = Hand(
            position=controller.tcp_position(),
            rotation=controller.tcp_matrix(),
            target_position=controller.target_position.copy(),
            target_euler=controller.target_euler.copy(),
            width=float(self._robot_joints[ARM_JOINTS] + self._robot_joints[ARM_JOINTS + 1]),
            closing=controller.gripper_command < 0,
        )
        return Situation(self.compiled.scene, self._start, self.task_state(), hand, self.lights.button_pressed)

    def robot_obs(self) -> np.ndarray:
        """float32 [15]: TCP position 3 [m], TCP Euler angles 3, gripper width, arm joints 7, last gripper command."""
        controller = self.controller
        *arm, left, right = self._robot_joints.tolist()
        tcp = (*controller.tcp_position().tolist(), *euler_angles(controller.tcp_matrix().tolist()))
        return np.array((*tcp, left + right, *arm, controller.gripper_command), np.float32)

    def scene_obs(self) -> np.ndarray:
        """float32 [24]: slide, drawer, button, switch [m], bulb, LED, then the blocks' xyz [m] and Euler angles (0 without blocks)."""
        button, slide, drawer, switch = self._table_joints.tolist()
        values = [slide, drawer, button, switch, self.lights.bulb, self.lights.led]
        positions, rotations = self._block_positions.tolist(), self._block_rotations.tolist()
        for row in self._block_rows:
            values += positions[row]
            values += euler_angles(rotations[row])
        return np.array(values if self.blocks else values + [0.0] * (SCENE_OBS_SIZE - 6), np.float32)

    def _block_names(self) -> tuple[str, str, str]:
        return self.compiled.scene.block_order if self.block_order == "original" else STANDARD_ORDER

    # --- dm_env

    @property
    def version(self) -> str:
        """Changes whenever the same actions lead to other states."""
        return VERSION

    @property
    def renderer(self) -> str:
        """The graphics library and its driver; creates the OpenGL context if there is none."""
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
          seed: decides the random initial state; by default drawn from the environment's own generator.
          robot_obs: [15]; joints, gripper width and gripper command are taken from it.
          scene_obs: [24]; table joints, lights and blocks (in `block_order`) are taken from it.
          render: whether the returned observation has images.
        """
        if unknown:
            raise TypeError(f"reset: unknown options {sorted(unknown)} (known: task, scene, seed, robot_obs, scene_obs, render)")
        rng = self._rng if seed is None else np.random.default_rng(seed)
        if scene is not None and scene != self.scene:
            self._load(scene)
        name = task or self._task or str(rng.choice(self.tasks))
        self._check_task(name)
        initial = sample_initial_state(self.compiled.scene, name, rng, self.blocks)
        if scene_obs is not None:
            initial = dataclasses.replace(initial, scene_obs=self._standard(_vector("scene_obs", scene_obs, SCENE_OBS_SIZE)), held=None)
        self._place(initial, None if robot_obs is None else _vector("robot_obs", robot_obs, ROBOT_OBS_SIZE))
        self._begin(name)
        self._needs_reset = False
        return dm_env.restart(self.observation(render))

    def _check_task(self, name: str) -> None:
        get_task(name)
        if name not in self.tasks:
            raise ValueError(f"task {name!r} needs blocks, and this environment was made with blocks=False")

    def _standard(self, scene_obs: np.ndarray) -> np.ndarray:
        """scene_obs with its blocks in standard order."""
        poses = dict(zip(self._block_names(), scene_obs[6:].reshape(3, 6), strict=True))
        return np.concatenate([scene_obs[:6], *(poses[colour] for colour in STANDARD_ORDER)])

    def begin_task(self, task: str, instruction: str | None = None) -> None:
        """Starts the next task of a chain from the current state: no reset; steps are counted from 0."""
        self._check_task(task)
        self._begin(task)
        if instruction is not None:
            self.instruction = instruction
        self._needs_reset = False

    def step(self, action: np.ndarray) -> dm_env.TimeStep:
        """One control step; reward 1 when the task is solved. After the last step of an episode it starts a new one, as dm_env requires."""
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
        """One control step without rendering. `failed` is whether the simulation left its bounds, `failure` how."""
        action = _vector("action", action, ACTION_SIZE)
        if self._needs_reset:
            raise RuntimeError("the episode has ended: call reset or begin_task first")
        self.controller.apply(action, absolute=self.action_mode == "absolute")
        self.failure = self._out_of_bounds()
        self._steps += 1
        success = False
        if not self.failed:
            button, _, _, switch = self._table_joints.tolist()
            self.lights.update(button, switch)
            now = self._fixture_state() if self._task in FIXTURE_TASKS else self.task_state()
            success = get_task(self._task).predicate(self._start, now)
        done = success or self.failed or self._steps >= self.max_steps
        self._needs_reset = done
        return Outcome(success, done, self._steps, self.failure)

    @property
    def failed(self) -> bool:
        """Whether the episode ended because the simulation left its bounds."""
        return bool(self.failure)

    def _out_of_bounds(self) -> str:
        """'diverged', 'block escaped' or ''."""
        q, v = self.data.qpos, self.data.qvel
        certainly_fine = v.dot(v) < VELOCITY_BOUND**2 and math.isfinite(q.dot(q))
        if not certainly_fine and not (np.isfinite(q).all() and np.abs(v).max() < VELOCITY_BOUND):
            return "diverged"
        return "block escaped" if self.blocks and has_escaped(self._block_positions) else ""

    def observation(self, render: bool = True) -> dict[str, np.ndarray]:
        """State vectors and, if `render`, both images (and depth images, if enabled)."""
        images = {}
        if render:
            renderer = scene_renderer(self.compiled)
            renderer.prepare(self.data, self.lights.bulb, self.lights.led)
            for view, size in (("static", self.static_size), ("gripper", self.gripper_size)):
                images[f"rgb_{view}"] = renderer.draw(self.data, f"rgb_{view}", size)
                if self.depth:
                    images[f"depth_{view}"] = renderer.depth(self.data, f"rgb_{view}", size)
        return {**images, "robot_obs": self.robot_obs(), "scene_obs": self.scene_obs()}

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """Uniform in [-1, 1] in six dimensions, gripper open or closed with equal chance; float32 [7]."""
        action = rng.uniform(-1.0, 1.0, ACTION_SIZE).astype(np.float32)
        action[-1] = 1.0 if action[-1] > 0 else -1.0
        return action

    def observation_spec(self) -> dict[str, specs.Array]:
        """Shapes and dtypes of `observation`."""

        def image(size: int, name: str) -> specs.Array:
            return specs.BoundedArray((size, size, 3), np.uint8, 0, 255, name)

        def depth(size: int, name: str) -> specs.Array:
            return specs.Array((size, size), np.float32, name)

        views = (("static", self.static_size), ("gripper", self.gripper_size))
        return {
            **{f"rgb_{view}": image(size, f"rgb_{view}") for view, size in views},
            **({f"depth_{view}": depth(size, f"depth_{view}") for view, size in views} if self.depth else {}),
            "robot_obs": specs.Array((ROBOT_OBS_SIZE,), np.float32, "robot_obs"),
            "scene_obs": specs.Array((SCENE_OBS_SIZE,), np.float32, "scene_obs"),
        }

    def action_spec(self) -> specs.BoundedArray:
        """The usual range of relative actions; larger ones are not clipped. Absolute poses have no bounds but the gripper's."""
        if self.action_mode == "absolute":
            bound = np.array([np.inf] * 6 + [1.0], np.float32)
            return specs.BoundedArray((ACTION_SIZE,), np.float32, -bound, bound, "action")
        return specs.BoundedArray((ACTION_SIZE,), np.float32, -1.0, 1.0, "action")

    def dm_control_physics(self) -> Any:
        """A `dm_control.mujoco.Physics` of the current scene and state: a copy, for named indexing, dm_control's tools and its viewer."""
        from dm_control.mujoco import Physics, wrapper  # slow to import and not needed otherwise

        physics = Physics.from_model(wrapper.MjModel(self.compiled.model))
        with physics.reset_context():
            physics.data.qpos[:], physics.data.qvel[:] = self.data.qpos, self.data.qvel
        return physics

    def close(self) -> None:
        """Frees the simulations. Compiled scenes and the OpenGL context remain until the process ends."""
        self._data.clear()
        self._needs_reset = True

    # --- internal

    def _load(self, scene: str) -> None:
        self.compiled = compile_scene(scene, self.quality, self.blocks)
        if scene not in self._data:
            self._data[scene] = mujoco.MjData(self.compiled.model)
        self.data = self._data[scene]
        self._view()
        mujoco.mj_resetData(self.compiled.model, self.data)
        mujoco.mj_step1(self.compiled.model, self.data)
        command = self.controller.gripper_command if hasattr(self, "controller") else 1.0
        self.controller = Controller(self.compiled, self.data)
        self.controller.gripper_command = command

    def _view(self) -> None:
        """Views of MuJoCo's arrays, which do not move: looking them up in every step costs more than using them."""
        c, data, model = self.compiled, self.data, self.compiled.model
        count = len(c.blocks)  # the last bodies
        self._touches = Touches(model, data)
        self._robot_joints = data.qpos[: ARM_JOINTS + 2]
        self._table_joints = data.qpos[c.button : c.switch + 1]  # button, slide, drawer, switch
        self._block_positions = data.xpos[model.nbody - count :]
        self._block_rotations = data.xmat[model.nbody - count :].reshape(count, 3, 3)
        self._block_velocities = data.qvel[model.nv - 6 * count :].reshape(count, 6)
        self._block_rows = [STANDARD_ORDER.index(colour) for colour in self._block_names()] if c.blocks else []

    def _begin(self, task: str) -> None:
        self.instruction = get_task(task).evaluation_instruction
        self._task = task
        self._start = self.task_state()
        self._steps = 0
        self.failure = ""

    def _place(self, initial: InitialState, robot_obs: np.ndarray | None) -> None:
        """Sets joints, lights and blocks, then the robot, then runs one physics step."""
        model, data, c = self.compiled.model, self.data, self.compiled
        mujoco.mj_resetData(model, data)
        scene_obs = initial.scene_obs
        data.qpos[[c.slide, c.drawer, c.button, c.switch]] = scene_obs[:4]
        self.lights.reset(bulb=bool(scene_obs[4] > 0.5), led=bool(scene_obs[5] > 0.5), button_q=float(scene_obs[2]))
        for pose, body in zip(scene_obs[6:].reshape(3, 6), c.blocks.values(), strict=False):
            self._put_block(body, pose)
        fingers = slice(ARM_JOINTS, ARM_JOINTS + 2)
        if robot_obs is None:
            data.qpos[:ARM_JOINTS], data.qpos[fingers] = NEUTRAL_JOINTS, FINGER_MAX
            self.controller.place(initial.tcp_position, initial.tcp_euler)
            self.controller.gripper_command = 1.0
        else:
            data.qpos[:ARM_JOINTS], data.qpos[fingers] = robot_obs[7:14], robot_obs[6] / 2
            self.controller.gripper_command = 1.0 if robot_obs[14] > 0 else -1.0
        mujoco.mj_step1(model, data)
        self.controller.synchronise()
        if initial.held is not None:
            self._hold(c.blocks[initial.held])
        self.controller.physics(1)
        self.controller.synchronise()

    def _put_block(self, body: int, pose: np.ndarray) -> None:
        """Pose: xyz [m] and Euler angles [rad]."""
        start = int(self.compiled.model.jnt_qposadr[self.compiled.model.body_jntadr[body]])
        self.data.qpos[start : start + 7] = free_joint_values(pose)

    def _hold(self, body: int) -> None:
        """Puts a block between the fingers, its width across them, and closes them."""
        yaw = euler_from_matrix(self.controller.tcp_matrix())[2]
        self._put_block(body, np.array([*self.controller.tcp_position(), 0.0, 0.0, yaw]))
        self.data.qpos[ARM_JOINTS : ARM_JOINTS + 2] = 0.0205
        mujoco.mj_step1(self.compiled.model, self.data)
        self.controller.synchronise()
        self.controller.command_gripper(-1.0)
        self.controller.physics(GRASP_SUBSTEPS)


def _vector(name: str, value: np.ndarray, size: int) -> np.ndarray:
    value = np.asarray(value, np.float64)
    if value.shape != (size,) or not (math.isfinite(value.dot(value)) or np.isfinite(value).all()):  # fast path first
        raise ValueError(
            f"{name}: expected {size} finite numbers, got shape {value.shape} {np.array2string(value, precision=3, threshold=10)}"
        )
    return value
