"""CALVIN's 34 tasks as a table: a predicate on the state at the task's start and the state now, and the instruction used for evaluation.

The predicates are CALVIN's, with their oddities. A task compares two `TaskState` snapshots, so tasks can follow each other without a reset.
Row order is the order of the original's table; its index is the task's id.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import euler_from_matrix
from eval.calvin.task_names import EVALUATION_INSTRUCTIONS

BLOCKS = ("red", "blue", "pink")
Touch = tuple[str, str]  # (body, link)


class BlockState(NamedTuple):
    """One block.

    Attributes:
      position: centre [m].
      rotation: matrix, block to world.
      linear_velocity, angular_velocity: world frame [m/s, rad/s].
      touches: (body, link) of everything in contact with it.
    """

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    linear_velocity: Float[np.ndarray, "3"]
    angular_velocity: Float[np.ndarray, "3"]
    touches: frozenset[Touch]

    @property
    def bodies(self) -> frozenset[str]:
        """Bodies in contact with it."""
        return frozenset(body for body, _ in self.touches)


class TaskState(NamedTuple):
    """What predicates read.

    Attributes:
      slide, drawer, button, switch: joint positions [m].
      bulb, led: logical states of the lights.
      blocks: colour -> block; empty in a scene without blocks.
      robot_touches: (body, link) of everything in contact with the robot.
    """

    slide: float
    drawer: float
    button: float
    switch: float
    bulb: bool
    led: bool
    blocks: Mapping[str, BlockState] = MappingProxyType({})
    robot_touches: frozenset[Touch] = frozenset()


Predicate = Callable[[TaskState, TaskState], bool]


def joint_moved(joint: str, change: float) -> Predicate:
    """The joint has moved by more than `change` [m] since the start, in the direction of its sign."""

    def predicate(start: TaskState, now: TaskState) -> bool:
        moved = getattr(now, joint) - getattr(start, joint)
        return bool(moved > change if change > 0 else moved < change)

    return predicate


def light_switched(light: str, on: bool) -> Predicate:
    """The light was in the opposite state at the start and is `on` (or off) now."""

    def predicate(start: TaskState, now: TaskState) -> bool:
        return getattr(start, light) == (not on) and getattr(now, light) == on

    return predicate


def rotated(colour: str, degrees: float) -> Predicate:
    """The block has turned about the vertical by more than `degrees` (in the direction of its sign), by less than 30 about the other axes,
    has moved by at most 0.1 m, and touches something other than the robot.
    """

    def predicate(start: TaskState, now: TaskState) -> bool:
        before, after = start.blocks[colour], now.blocks[colour]
        x, y, z = np.degrees(euler_from_matrix(after.rotation @ before.rotation.T))
        turned = degrees < z < 180 if degrees > 0 else -180 < z < degrees
        upright = abs(x) < 30 and abs(y) < 30
        near = bool(np.linalg.norm(after.position - before.position) <= 0.1)
        return bool(turned and upright) and near and bool(after.bodies - {"robot"})

    return predicate


def pushed(colour: str, change: float) -> Predicate:
    """The block has moved along x by more than `change` [m] and what it touched at the start (robot aside) it touches still."""

    def predicate(start: TaskState, now: TaskState) -> bool:
        before, after = start.blocks[colour], now.blocks[colour]
        moved = after.position[0] - before.position[0]
        if not (moved > change if change > 0 else moved < change):
            return False
        supports_before = {touch for touch in before.touches if touch[0] != "robot"}
        supports_after = {touch for touch in after.touches if touch[0] != "robot"}
        return bool(supports_before) and supports_before <= supports_after

    return predicate


def lifted(colour: str, height: float, link: str) -> Predicate:
    """The block lay on the table's `link` at the start, is higher by more than `height` [m] and touches nothing but the robot."""

    def predicate(start: TaskState, now: TaskState) -> bool:
        before, after = start.blocks[colour], now.blocks[colour]
        raised = bool(after.position[2] - before.position[2] > height)
        return raised and after.bodies == {"robot"} and ("table", link) in before.touches

    return predicate


def placed(link: str) -> Predicate:
    """At the start the robot touched exactly one body, a block that touched only the robot; now that block touches the table's `link` and
    not the robot.
    """

    def predicate(start: TaskState, now: TaskState) -> bool:
        touched = {body for body, _ in start.robot_touches}
        if len(touched) != 1:
            return False
        (colour,) = touched
        if colour not in start.blocks or start.blocks[colour].bodies != {"robot"}:
            return False
        after = now.blocks[colour]
        return "robot" not in after.bodies and ("table", link) in after.touches

    return predicate


def pushed_into(link: str, source: str = "base_link") -> Predicate:
    """Some block touched exactly the table's `source` at the start and touches the table's `link` now.

    The original means to ask that the robot does not touch it, but looks for a body among (body, link) pairs: nothing is asked.
    """

    def predicate(start: TaskState, now: TaskState) -> bool:
        return any(
            block.touches == {("table", source)} and ("table", link) in now.blocks[colour].touches for colour, block in start.blocks.items()
        )

    return predicate


def _rests_on_blocks_only(block: BlockState) -> bool:
    return bool(block.bodies) and block.bodies <= set(BLOCKS)


def _slow(block: BlockState) -> bool:
    return bool((np.abs(block.linear_velocity) < 1.0).all() and (np.abs(block.angular_velocity) < 1.0).all())


def stacked(start: TaskState, now: TaskState) -> bool:
    """Some block touched no block at the start; now it touches blocks, nothing else, and is slow."""
    return any(
        not start.blocks[colour].bodies & set(BLOCKS) and _rests_on_blocks_only(block) and _slow(block)
        for colour, block in now.blocks.items()
    )


def unstacked(start: TaskState, now: TaskState) -> bool:
    """Some block touched blocks and nothing else at the start, and was slow then; now it touches no block."""
    return any(
        _rests_on_blocks_only(block) and _slow(block) and not now.blocks[colour].bodies & set(BLOCKS)
        for colour, block in start.blocks.items()
    )


@dataclass(frozen=True)
class Task:
    """One task: its predicate and CALVIN's evaluation instruction for it."""

    name: str
    predicate: Predicate
    evaluation_instruction: str


_PREDICATES: dict[str, Predicate] = {
    "rotate_red_block_right": rotated("red", -60),
    "rotate_red_block_left": rotated("red", 60),
    "rotate_blue_block_right": rotated("blue", -60),
    "rotate_blue_block_left": rotated("blue", 60),
    "rotate_pink_block_right": rotated("pink", -60),
    "rotate_pink_block_left": rotated("pink", 60),
    "push_red_block_right": pushed("red", 0.1),
    "push_red_block_left": pushed("red", -0.1),
    "push_blue_block_right": pushed("blue", 0.1),
    "push_blue_block_left": pushed("blue", -0.1),
    "push_pink_block_right": pushed("pink", 0.1),
    "push_pink_block_left": pushed("pink", -0.1),
    "move_slider_left": joint_moved("slide", 0.15),
    "move_slider_right": joint_moved("slide", -0.15),
    "open_drawer": joint_moved("drawer", 0.12),
    "close_drawer": joint_moved("drawer", -0.12),
    "lift_red_block_table": lifted("red", 0.05, "base_link"),
    "lift_red_block_slider": lifted("red", 0.03, "plank_link"),
    "lift_red_block_drawer": lifted("red", 0.05, "drawer_link"),
    "lift_blue_block_table": lifted("blue", 0.05, "base_link"),
    "lift_blue_block_slider": lifted("blue", 0.03, "plank_link"),
    "lift_blue_block_drawer": lifted("blue", 0.05, "drawer_link"),
    "lift_pink_block_table": lifted("pink", 0.05, "base_link"),
    "lift_pink_block_slider": lifted("pink", 0.03, "plank_link"),
    "lift_pink_block_drawer": lifted("pink", 0.05, "drawer_link"),
    "place_in_slider": placed("plank_link"),
    "place_in_drawer": placed("drawer_link"),
    "stack_block": stacked,
    "unstack_block": unstacked,
    "turn_on_lightbulb": light_switched("bulb", True),
    "turn_off_lightbulb": light_switched("bulb", False),
    "turn_on_led": light_switched("led", True),
    "turn_off_led": light_switched("led", False),
    "push_into_drawer": pushed_into("drawer_link"),
}
TASKS = {name: Task(name, predicate, EVALUATION_INSTRUCTIONS[name]) for name, predicate in _PREDICATES.items()}


def get_task(name: str) -> Task:
    """The task called `name`."""
    if name not in TASKS:
        raise ValueError(f"unknown CALVIN task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
