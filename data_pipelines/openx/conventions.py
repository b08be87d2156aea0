"""Conventions of the actions and states of Open-X datasets: the vocabulary of the dataset table.

The common action has 7 numbers: end-effector position delta (3), rotation delta (3), gripper (1; 1 open, 0 closed). Units, frames and
axes are those of each dataset (they are not documented uniformly), so statistics are per dataset.
"""

from enum import Enum

ACTION_WIDTH = 7
PROPRIO_WIDTH = 8


class ActionEncoding(Enum):
    """Kind of action of a dataset. Only `EEF_DELTA` maps to the common action."""

    EEF_DELTA = "end-effector delta or velocity: xyz, rotation, gripper"
    JOINT = "joint positions or their deltas, gripper"
    JOINT_BIMANUAL = "two arms of joints and grippers, base velocity"
    NAVIGATION = "planar waypoint"
    OTHER = "text, pick-and-place poses or discrete commands"
    UNKNOWN = "not documented"


class Proprio(Enum):
    """Layout of the robot state as 8 numbers."""

    NONE = "no usable state: zeros"
    POS_EULER = "xyz, roll-pitch-yaw, 0, gripper"
    POS_QUAT = "xyz, quaternion, gripper"
    JOINT = "7 joint angles (fewer: padded with zeros), gripper"
    JOINT_BIMANUAL = "2 x [6 joints, gripper]: 14 numbers, not in the common layout"
    NAVIGATION = "xy, yaw, zeros"
    OTHER = "something else: not in the common layout"
    UNKNOWN = "not documented"


class Gripper(Enum):
    """Meaning of the raw gripper number; `standardise.OPENNESS` has the equation that maps it to 1 open, 0 closed."""

    OPEN = "0 closed, 1 open (or bool, true = open)"
    CLOSED = "0 open, 1 closed"
    CLIPPED_OPEN = "-1 closed, 0 closed (padding), +1 open"
    CLIPPED_CLOSED = "-1 open, 0 open (padding), +1 closed"
    SIGNED_OPEN = "-1 closed .. +1 open, linear"
    SIGNED_CLOSED = "-1 open .. +1 closed, linear"
    RELATIVE = "command: +1 close, -1 open, 0 stay"
    CONTINUOUS_OPEN = "0 closed .. 1 open, in between while it moves"
    THRESHOLD_CLOSED = "below 0.5 open, above closed"
    ABSENT = "no gripper in the action: constant 0"
    ABSENT_OPEN = "no gripper in the action: constant 1"
    UNKNOWN = "not documented"
