"""The privileged state: everything that a scripted expert may read, as plain data; and the units of what it answers."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import matrix_from_euler
from eval.calvin.scenes import Scene, get_scene
from eval.calvin.tasks import BlockState, TaskState, Touch

POSITION_SCALE, ROTATION_SCALE = 0.02, 0.05  # metres and radians per unit of a relative action
FINGER_MAX = 0.04  # m, of each finger


@dataclass(frozen=True)
class Hand:
    """The robot's hand.

    Attributes:
      position, rotation: measured pose of the tool centre point [m], world frame.
      target_position, target_euler: the stored target pose [m, rad], which relative actions move.
      width: distance between the fingers [m].
      closing: whether the last gripper command was to close.
    """

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    target_position: Float[np.ndarray, "3"]
    target_euler: Float[np.ndarray, "3"]
    width: float
    closing: bool


@dataclass(frozen=True)
class Situation:
    """The privileged state at one time step.

    Attributes:
      table: geometry of the scene.
      start: state in which the current task began.
      state: state now.
      hand: the robot's hand now.
      button_pressed: whether the button counts as pressed, see `lights`.
    """

    table: Scene
    start: TaskState
    state: TaskState
    hand: Hand
    button_pressed: bool


@dataclass(frozen=True)
class Observed:
    """The state at one time step, as CALVIN's simulators observe it.

    Attributes:
      robot_obs: TCP position 3 [m], TCP Euler angles 3, gripper width, arm joints 7, last gripper command.
      scene_obs: slide, drawer, button, switch [m], bulb, LED, then xyz [m] and Euler angles of the blocks, in the scene's own order.
      velocities: of the blocks, in the same order: linear [m/s] and angular [rad/s], world frame.
      touches: body -> the (body, link) in contact with it; of the robot and every block, by their names in `eval.calvin.tasks`.
    """

    robot_obs: Float[np.ndarray, "15"]
    scene_obs: Float[np.ndarray, "24"]
    velocities: Float[np.ndarray, "3 6"]
    touches: Mapping[str, Set[Touch]]

    def task_state(self, scene: Scene) -> TaskState:
        """The same, as predicates and experts read it."""
        slide, drawer, button, switch, bulb, led = self.scene_obs[:6].tolist()
        blocks = {
            colour: BlockState(pose[:3], matrix_from_euler(pose[3:]), speed[:3], speed[3:], frozenset(self.touches.get(colour, ())))
            for colour, pose, speed in zip(scene.block_order, self.scene_obs[6:].reshape(3, 6), self.velocities, strict=True)
        }
        return TaskState(slide, drawer, button, switch, bulb > 0.5, led > 0.5, blocks, frozenset(self.touches.get("robot", ())))


def observed_situation(
    scene: str,
    start: Observed,
    now: Observed,
    target_position: Float[np.ndarray, "3"],
    target_euler: Float[np.ndarray, "3"],
    button_pressed: bool,
) -> Situation:
    """A situation from what was observed when the task began and what is observed now, and the stored target pose [m, rad]."""
    table = get_scene(scene)
    position, euler = now.robot_obs[:3], now.robot_obs[3:6]
    hand = Hand(
        position,
        matrix_from_euler(euler),
        target_position,
        target_euler,
        width=float(now.robot_obs[6]),
        closing=bool(now.robot_obs[14] < 0),
    )
    return Situation(table, start.task_state(table), now.task_state(table), hand, button_pressed)
