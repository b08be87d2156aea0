"""What the numbers of an Open-X dataset mean: the words that the table of datasets is written in.

The common action is 7 numbers: change of the end effector's xyz position (3), change of its rotation (3), gripper (1), where 1 is open and
0 is closed. Units, frames and axes stay each contributor's own (no dataset documents them in one way), so statistics are per dataset.
"""

from enum import Enum

ACTION_WIDTH = 7
PROPRIO_WIDTH = 8


class ActionEncoding(Enum):
    """What a dataset's action is. Only `EEF_DELTA` has the common form."""

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
    JOINT_BIMANUAL = "2 x [6 joints, gripper]: 14 numbers, no common form"
    NAVIGATION = "xy, yaw, zeros"
    OTHER = "something else: no common form"
    UNKNOWN = "not documented"


class Gripper(Enum):
    """How the raw gripper number is to be read; `standardise.OPENNESS` has the equation that makes 1 open and 0 closed of it."""

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
