"""The privileged state: everything that a scripted expert may read, as plain data; and the units of what it answers."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from eval.calvin.scenes import Scene
from eval.calvin.tasks import TaskState

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
