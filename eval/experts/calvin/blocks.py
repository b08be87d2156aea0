"""Scripted experts for tasks on blocks; each a function of the state now and at the task's start."""

import math

import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import euler_from_matrix, wrap
from eval.calvin.scenes import DOOR_WIDTH, DRAWER_FLOOR, EDGE, SHELF_TOP, TABLE_TOP, block_length, open_shelf
from eval.calvin.situation import ROTATION_SCALE, Situation
from eval.calvin.tasks import BLOCKS
from eval.experts.calvin.block_scene import BlockScene, door_handle
from eval.experts.calvin.grips import level_pitch
from eval.experts.calvin.motions import (
    CLOSED,
    REST,
    SHELF_AXIS,
    SHELF_TILT,
    carry,
    draw_back,
    free_fingers,
    free_place,
    grasp,
    pull_stroke,
    push_stroke,
    put_down,
    way_is_free,
)
from eval.experts.calvin.servo import SERVO_GAIN, X, Y, Z, length, smoothstep
from eval.experts.calvin.strokes import fixture_action

SHELF_Y = 0.085
TURN = math.radians(75.0)  # target; the predicate requires 60 degrees
PUSH = 0.125  # m, target; the predicate requires 0.1


def block_action(task: str, situation: Situation) -> Float[np.ndarray, "7"]:
    """The expert's action for a task on blocks."""
    scene = BlockScene(situation)
    words = task.split("_")
    colour = next((c for c in BLOCKS if c in words), "")
    if words[0] == "rotate":
        return _rotate(scene, colour, 1.0 if words[-1] == "left" else -1.0)
    if words[0] == "push" and colour:
        return _push(scene, colour, 1.0 if words[-1] == "right" else -1.0)
    if words[0] == "lift":
        return _lift(scene, colour)
    programs = {
        "place_in_slider": _place_in_slider,
        "place_in_drawer": _place_in_drawer,
        "stack_block": _stack,
        "unstack_block": _unstack,
        "push_into_drawer": _push_into_drawer,
    }
    return programs[task](scene)


def free_hand(situation: Situation, wanted: str | None) -> Float[np.ndarray, "7"] | None:
    """While a block that is not `wanted` is in the hand: the action that puts it down, or retracts the open fingers; else None."""
    return free_fingers(BlockScene(situation), wanted)


def _take(scene: BlockScene, colour: str, preferred_yaw: float = math.pi / 2) -> Float[np.ndarray, "7"] | None:
    """Steps until the block is held; None once it is."""
    if scene.held == colour:
        return None
    action = free_fingers(scene, colour)
    if action is None and scene.enclosed() != colour:
        action = _make_reachable(scene, colour)
    return grasp(scene, colour, preferred_yaw) if action is None else action


def _make_reachable(scene: BlockScene, colour: str) -> Float[np.ndarray, "7"] | None:
    """Moves the door away from a block behind it, or the drawer further out; None if the hand can go there."""
    position = scene.block(colour).position
    if scene.in_shelf(colour):
        door_low = scene.table.slide_x - scene.state.slide
        if door_low - 0.055 < position[0] < door_low + DOOR_WIDTH + 0.055:
            free_if_left = position[0] > scene.table.slide_x - scene.table.slide_max + DOOR_WIDTH + 0.045
            free_if_right = position[0] < scene.table.slide_x - 0.045
            if free_if_left and scene.state.slide < scene.table.slide_max - 0.01:
                return fixture_action("move_slider_left", scene.situation)
            if free_if_right and scene.state.slide > 0.01:
                return fixture_action("move_slider_right", scene.situation)
    if scene.in_drawer(colour) and position[1] > -0.195 and scene.state.drawer < 0.205:
        return fixture_action("open_drawer", scene.situation)
    return None


def _lift(scene: BlockScene, colour: str) -> Float[np.ndarray, "7"]:
    action = _take(scene, colour)
    if action is not None:
        return action
    goal = scene.start.blocks[colour].position[2] + 0.10
    rise = min(0.7, SERVO_GAIN * max(goal - scene.block(colour).position[2], 0.0) / 0.02)
    return np.array([0.0, 0.0, rise, 0.0, 0.0, 0.0, CLOSED])


def _rotate(scene: BlockScene, colour: str, direction: float) -> Float[np.ndarray, "7"]:
    start = scene.start.blocks[colour].rotation
    turned = euler_from_matrix(scene.block(colour).rotation @ start.T)[2]
    left = float(wrap(np.array(direction * TURN - turned)))
    action = _take(scene, colour, math.pi / 2 - left / 2)
    if action is not None:
        return action
    turn = np.clip(SERVO_GAIN * left / ROTATION_SCALE, -1.0, 1.0)
    resting = scene.block(colour).bodies - {"robot"}
    y, start_y = scene.block(colour).position[1], scene.start.blocks[colour].position[1]
    back = min(0.0, max(-0.10, start_y - 0.06) - y)  # the hand is wide: away from the cabinet before it turns
    turn *= 1.0 - smoothstep(-back, 0.01, 0.04)
    lean = SERVO_GAIN * (level_pitch(scene, colour) - scene.hand.target_euler[1]) / ROTATION_SCALE  # dragged along, it may tip
    return np.array([0.0, max(12.0 * back, -0.5), 0.0 if resting else -0.15, 0.0, float(np.clip(lean, -0.6, 0.6)), turn, CLOSED])


def _push(scene: BlockScene, colour: str, direction: float) -> Float[np.ndarray, "7"]:
    start, position = scene.start.blocks[colour].position, scene.block(colour).position
    left = PUSH - direction * (position[0] - start[0])
    if scene.held == colour or not way_is_free(scene, colour, direction, left):
        low, high = sorted((start[0] + direction * 0.115, start[0] + direction * 0.22))
        goal = free_place(scene, colour, np.array([start[0] + direction * PUSH, start[1]]), (low, high))
        action = _take(scene, colour)
        return carry(scene, colour, np.array([*goal, TABLE_TOP + REST])) if action is None else action
    action = free_fingers(scene, None)
    return push_stroke(scene, colour, direction) if action is None else action


def _place_in_slider(scene: BlockScene) -> Float[np.ndarray, "7"]:
    colour = _grasped_at_start(scene)
    if scene.in_shelf(colour) and scene.block(colour).bodies & {"table"} and scene.held != colour:
        return draw_back(scene)
    low, high = open_shelf(scene.table, scene.state.slide)
    others = [scene.block(c).position[0] for c in BLOCKS if c != colour and scene.in_shelf(c)]
    margin = min(0.062, 0.45 * (high - low))
    places = np.linspace(low + margin, high - margin, 13)
    half = block_length(scene.table, colour) / 2
    crowded = [sum(max(0.0, 0.075 + half - abs(x - other)) for other in others) for x in places]
    best = int(np.argmin([abs(x - (low + high) / 2) + 20.0 * crowd for x, crowd in zip(places, crowded, strict=True)]))
    if crowded[best] > 0.03 and 0.01 < scene.state.slide < scene.table.slide_max - 0.01:  # the door first, as far as it goes
        if scene.held == colour:
            return put_down(scene, colour)
        return fixture_action("move_slider_left" if low > scene.table.cavity[0] else "move_slider_right", scene.situation)
    action = _take(scene, colour)
    if action is not None:
        return action
    x = places[best]
    euler = np.array([math.pi, min(level_pitch(scene, colour), -SHELF_TILT), math.pi / 2])
    return carry(scene, colour, np.array([x, SHELF_Y, SHELF_TOP + REST + 0.006]), SHELF_AXIS, 0.20, euler, 0.004)


def _place_in_drawer(scene: BlockScene) -> Float[np.ndarray, "7"]:
    colour = _grasped_at_start(scene)
    if scene.in_drawer(colour) and scene.held != colour:
        return draw_back(scene)
    action = _take(scene, colour)
    return _into_drawer(scene, colour) if action is None else action


def _into_drawer(scene: BlockScene, colour: str) -> Float[np.ndarray, "7"]:
    y = (-0.18 - 0.16 - scene.state.drawer) / 2 - 0.004
    others = [scene.block(c).position for c in BLOCKS if c != colour and scene.in_drawer(c)]
    places = scene.table.drawer_x + np.linspace(-0.10, 0.10, 9)
    crowded = [sum(max(0.0, 0.11 - abs(x - other[0])) for other in others) for x in places]
    x = places[int(np.argmin([abs(x - scene.table.drawer_x) + 20.0 * crowd for x, crowd in zip(places, crowded, strict=True)]))]
    goal = np.array([x, y, DRAWER_FLOOR + REST + 0.008])
    euler = np.array([math.pi, float(np.clip(level_pitch(scene, colour), -0.5, 0.2)), math.pi / 2])
    return carry(scene, colour, goal, Z, 0.20, euler, 0.004)


def _grasped_at_start(scene: BlockScene) -> str:
    """The block the gripper held when the task began; otherwise the nearest one."""
    start = scene.start
    touched = [c for c in BLOCKS if ("robot", "finger1") in start.blocks[c].touches or ("robot", "finger2") in start.blocks[c].touches]
    if touched:
        return touched[0]
    return min(BLOCKS, key=lambda c: length(scene.block(c).position - scene.tcp))


def _stack(scene: BlockScene) -> Float[np.ndarray, "7"]:
    colour = _grasped_at_start(scene)
    bases = [c for c in BLOCKS if c != colour and not scene.in_shelf(c) and not scene.in_drawer(c)] or [c for c in BLOCKS if c != colour]
    base = min(bases, key=lambda c: length(scene.block(c).position[:2] - scene.block(colour).position[:2]))
    top = scene.block(base).position + EDGE * Z
    if length(scene.block(colour).position - top) < 0.02 and scene.held != colour and not scene.closing:
        return draw_back(scene)
    action = _take(scene, colour)
    if action is not None:
        return action
    if scene.in_shelf(base):
        euler = np.array([math.pi, -SHELF_TILT, math.pi / 2])
        return carry(scene, colour, top, SHELF_AXIS, 0.20, euler, 0.002)
    return carry(scene, colour, top, Z, 0.08, None, 0.002)


def _unstack(scene: BlockScene) -> Float[np.ndarray, "7"]:
    start = scene.start.blocks
    tops = [c for c in BLOCKS if start[c].bodies and start[c].bodies <= set(BLOCKS)]
    colour = tops[0] if tops else max(BLOCKS, key=lambda c: scene.block(c).position[2])
    action = _take(scene, colour)
    return np.array([0.0, 0.0, 0.6, 0.0, 0.0, 0.0, CLOSED]) if action is None else action


def _push_into_drawer(scene: BlockScene) -> Float[np.ndarray, "7"]:
    start = scene.start.blocks
    lying = [c for c in BLOCKS if start[c].touches == {("table", "base_link")}]
    middle = scene.table.drawer_x
    colour = min(lying or BLOCKS, key=lambda c: abs(start[c].position[0] - middle) + (0.0 if lying else abs(start[c].position[2] - 0.46)))
    if scene.state.drawer < 0.10 and scene.held is None:
        return fixture_action("open_drawer", scene.situation)
    position, wide = scene.block(colour).position, scene.half_extent(colour, X)
    aligned = abs(position[0] - middle) + wide < 0.175
    if scene.held == colour or not aligned or not _behind_is_free(scene, colour):
        action = _take(scene, colour)
        return _into_drawer(scene, colour) if action is None else action
    action = free_fingers(scene, None)
    if action is not None:
        return action
    return pull_stroke(scene, colour, 0.012)


def _behind_is_free(scene: BlockScene, colour: str) -> bool:
    """Whether the hand fits between the block and the cabinet, and no other block or the button's rim is in the way to the drawer."""
    position = scene.block(colour).position
    if position[1] + scene.half_extent(colour, Y) > 0.0 or scene.in_shelf(colour):
        return False
    if position[1] > -0.09 and (abs(position[0] - door_handle(scene)) < 0.09 or abs(position[0] - scene.table.switch_x) < 0.12):
        return False
    obstacles = [(scene.table.button_x, -0.12, 0.04)]
    obstacles += [(*scene.block(c).position[:2], scene.half_extent(c, X)) for c in BLOCKS if c != colour and not scene.in_shelf(c)]
    wide = scene.half_extent(colour, X)
    return all(abs(x - position[0]) > half + wide + 0.01 or y > position[1] + 0.09 for x, y, half in obstacles)
