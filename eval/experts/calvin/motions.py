"""Motions of the experts for tasks on blocks, one step at a time: grasp, carry, put down, push.

A block that slips out of the fingers is no longer held, and is grasped again.
"""

import math

import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import wrap
from eval.calvin.scenes import EDGE, TABLE_TOP, TABLE_X, block_length
from eval.calvin.tasks import BLOCKS
from eval.experts.calvin.block_scene import NOTHING, BlockScene, door_handle
from eval.experts.calvin.grips import grip_shift, grip_slack, grip_yaw, level_pitch, reach_tilt
from eval.experts.calvin.servo import (
    TIP,
    Approach,
    Stroke,
    X,
    Y,
    Z,
    approach_motion,
    keep_clear,
    length,
    limited,
    smoothstep,
    stroke_motion,
)

OPEN, CLOSED = 1.0, -1.0
OPENED = 0.072  # gripper width [m] from which fingers fit around a block
SHELF_TILT = math.radians(40.0)  # of the hand when it reaches under the cabinet's roof
SHELF_AXIS = np.array([0.0, -math.sin(SHELF_TILT), math.cos(SHELF_TILT)])  # the way into the shelf, from outside
SHELF_TURN = math.radians(8.0)  # of the hand at most, in the shelf
REST = EDGE / 2  # height of a resting block's centre
FINGER, FINGER_DEPTH = 0.0095, 0.0105  # half sizes of closed fingers [m] at the height of the TCP, along and across their axis


def free_fingers(scene: BlockScene, wanted: str | None) -> Float[np.ndarray, "7"] | None:
    if scene.held is not None and scene.held != wanted:
        return put_down(scene, scene.held)
    enclosed = scene.enclosed()
    if enclosed is not None and enclosed != wanted:
        return draw_back(scene)
    return None


def draw_back(scene: BlockScene) -> Float[np.ndarray, "7"]:
    """Opens, and once open retreats along the tool's axis."""
    share = smoothstep(scene.width, 0.045, 0.06)
    return np.concatenate([-share * scene.tool[:, 2], np.zeros(3), [OPEN]])


def grasp(scene: BlockScene, colour: str, preferred_yaw: float) -> Float[np.ndarray, "7"]:
    """One step towards holding the block: come from above (into the shelf: from the front), open; close around it."""
    position = scene.block(colour).position
    shelf = scene.in_shelf(colour)
    yaw, in_the_way = grip_yaw(scene, colour, preferred_yaw)
    if in_the_way > 1.2 and scene.enclosed() != colour and not shelf and not scene.in_drawer(colour):
        return _move_into_the_open(scene, colour)
    if shelf:  # a hand turned further would meet door or wall; the closing fingers turn the block instead
        yaw = math.pi / 2 + float(np.clip(yaw - math.pi / 2, -SHELF_TURN, SHELF_TURN))
    tilt = SHELF_TILT if shelf else reach_tilt(position, yaw)
    euler = np.array([math.pi, -tilt, yaw])
    axis = SHELF_AXIS if shelf else Z
    point = position + (0.003 + 0.006 * math.sin(tilt)) * Z
    if scene.in_drawer(colour):
        point = point + 0.004 * Z
    if not scene.closing:
        shift = grip_shift(scene, colour, yaw)
        point = point + shift * np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    to = Approach(point, axis, 0.16 if shelf else 0.09, 0.008, euler)
    motion = approach_motion(scene.hand, to)
    # at the end of its reach the hand stops short, along its heading: the pads still hold the block
    off = point - scene.tcp
    ahead, aside = off[0] * math.cos(yaw) + off[1] * math.sin(yaw), off[0] * math.sin(yaw) - off[1] * math.cos(yaw)
    turned = abs(float(wrap(yaw - scene.hand.target_euler[2]))) < 0.12
    tolerance = 0.022 if scene.closing else max(0.6 * grip_slack(scene, colour, yaw), 0.006)
    near = abs(ahead) < 0.013 and abs(aside) < tolerance and abs(off[2]) < 0.010 and turned
    if scene.closing:
        close = near and scene.width > NOTHING
    else:
        close = near and scene.width > OPENED
    if scene.closing and scene.width < NOTHING and _beside_a_block(scene):  # opening here would shove it away
        return np.concatenate([[0.0, 0.0, 0.8], motion[3:], [CLOSED]])
    if close:
        motion[:6] *= 0.3
    elif scene.width < OPENED and scene.enclosed() != colour and length(point - scene.tcp) < 0.07:
        motion = np.concatenate([0.5 * axis, motion[3:]])  # open first
    motion = keep_clear(scene.situation, motion, point, ignored=(colour,))
    return np.append(motion, CLOSED if close else OPEN)


def _move_into_the_open(scene: BlockScene, colour: str) -> Float[np.ndarray, "7"]:
    """Pushes a block that cannot be grasped at its position: out from under a handle, along the cabinet, or towards the robot."""
    position = scene.block(colour).position
    low, high = TABLE_X[scene.table.name]
    under_handle = abs(position[0] - door_handle(scene)) < 0.035
    no_room_behind = position[1] + scene.half_extent(colour, Y) > -0.012
    aside = 1.0 if position[0] > door_handle(scene) else -1.0
    for direction in (aside, -aside) if under_handle or no_room_behind else ():
        if low < position[0] + 0.05 * direction < high and way_is_free(scene, colour, direction, 0.05):
            return push_stroke(scene, colour, direction)
    return pull_stroke(scene, colour, 0.007)


def _beside_a_block(scene: BlockScene) -> bool:
    """Whether closed fingers are so low beside a block that opening them would touch it."""
    away = [scene.block(c).position - scene.tcp for c in BLOCKS]
    return any(math.hypot(x, y) < 0.085 and z + 0.05 + TIP > 0 for x, y, z in away)


def carry(
    scene: BlockScene,
    colour: str,
    goal: Float[np.ndarray, "3"],
    axis: Float[np.ndarray, "3"] = Z,
    clearance: float = 0.10,
    euler: Float[np.ndarray, "3"] | None = None,
    release_height: float = 0.003,
) -> Float[np.ndarray, "7"]:
    """One step of moving the held block's centre to `goal`, where it is released."""
    position = scene.block(colour).position
    if euler is None:
        euler = np.array([math.pi, level_pitch(scene, colour), scene.hand.target_euler[2]])
    leaving = position[1] > 0.015 and position[2] < 0.60 and length(goal[:2] - position[:2]) > 0.03 and axis is Z
    if leaving:  # the same way out of the shelf as in
        return np.concatenate([limited(0.8 * SHELF_AXIS), np.zeros(3), [CLOSED]])
    off = goal - position
    across = off - (off @ axis) * axis
    touching = bool(scene.block(colour).bodies - {"robot"}) and float(off @ axis) > -0.03
    far = smoothstep(math.hypot(goal[0] + 0.34, goal[1] + 0.46), 0.70, 0.77)  # at the end of its reach the hand stops short
    if length(across) < (0.012 if touching else 0.008) + 0.010 * far and (touching or float(off @ axis) > -release_height - 0.002):
        return np.array([0.0] * 6 + [OPEN])
    to = Approach(scene.tcp + off, axis, clearance, 0.005 + 0.014 * far, euler)
    motion = approach_motion(scene.hand, to)
    near = smoothstep(length(off), 0.02, 0.05)
    motion[:3] = limited(motion[:3], 0.4 + 0.6 * near)
    motion = keep_clear(scene.situation, motion, scene.tcp + off, ignored=(colour,), hanging=0.02)
    return np.append(motion, CLOSED)


def put_down(scene: BlockScene, colour: str) -> Float[np.ndarray, "7"]:
    """Puts a held block on the nearest free place of the table."""
    goal = free_place(scene, colour, scene.block(colour).position[:2])
    return carry(scene, colour, np.array([*goal, TABLE_TOP + REST]))


def free_place(
    scene: BlockScene, colour: str, near: Float[np.ndarray, "2"], x_range: tuple[float, float] | None = None
) -> Float[np.ndarray, "2"]:
    """The place on the table nearest to `near` that is far enough from the button and the other blocks."""
    low, high = x_range or TABLE_X[scene.table.name]
    half = block_length(scene.table, colour) / 2
    best, cost = np.array([(low + high) / 2, -0.09]), math.inf
    for x in np.linspace(low, high, 15):
        for y in (-0.075, -0.105, -0.135):
            place = np.array([x, y])
            crowded = sum(
                max(0.0, 0.065 + half + block_length(scene.table, other) / 2 - length(place - scene.block(other).position[:2]))
                for other in BLOCKS
                if other != colour and scene.block(other).position[2] > 0.42
            )
            crowded += max(0.0, 0.10 + half - length(place - np.array([scene.table.button_x, -0.12])))
            total = length(place - near) + 20.0 * crowded + 0.3 * abs(y + 0.105)
            if total < cost:
                best, cost = place, total
    return best


def push_stroke(scene: BlockScene, colour: str, direction: float) -> Float[np.ndarray, "7"]:
    """Pushes a block along x with closed fingers."""
    position, half = scene.block(colour).position, scene.half_extent(colour, X)
    contact = position - direction * (half + FINGER + 0.012) * X
    contact[2] = TABLE_TOP + 0.017
    euler = np.array([math.pi, -reach_tilt(contact), math.pi / 2])
    stroke = Stroke(contact, Z, 0.075, direction * X, 0.5, 0.022, 0.010, euler)
    motion = keep_clear(scene.situation, stroke_motion(scene.hand, stroke), contact, ignored=(colour,))
    return np.append(motion, CLOSED)


def pull_stroke(scene: BlockScene, colour: str, distance: float) -> Float[np.ndarray, "7"]:
    """Pushes a block towards the robot with closed fingers, which come down `distance` [m] behind it."""
    position = scene.block(colour).position
    contact = position + (scene.half_extent(colour, Y) + FINGER_DEPTH + distance) * Y
    contact[2] = TABLE_TOP + 0.017
    stroke = Stroke(contact, Z, 0.075, -Y, 0.45, distance + 0.010, 0.010, np.array([math.pi, -reach_tilt(contact), math.pi / 2]))
    motion = keep_clear(scene.situation, stroke_motion(scene.hand, stroke), contact, ignored=(colour,))
    return np.append(motion, CLOSED)


def way_is_free(scene: BlockScene, colour: str, direction: float, left: float) -> bool:
    """Whether a block can be pushed along x: hand behind it, nothing before it."""
    position, half = scene.block(colour).position, scene.half_extent(colour, X)
    wide = scene.half_extent(colour, Y)
    if scene.in_shelf(colour) or scene.in_drawer(colour) or position[2] > TABLE_TOP + 0.035:
        return False
    if not -0.40 < position[0] - direction * (half + 0.03) < 0.40 or abs(position[0] + direction * left) > 0.40:
        return False
    obstacles = [(np.array([scene.table.button_x, -0.12]), 0.04, 0.04)]
    obstacles += [
        (scene.block(c).position[:2], scene.half_extent(c, X), scene.half_extent(c, Y))
        for c in BLOCKS
        if c != colour and TABLE_TOP < scene.block(c).position[2] < 0.53 and not scene.in_shelf(c)
    ]
    for place, x, y in obstacles:
        ahead = direction * (place[0] - position[0])
        if -(half + 0.05 + x) < ahead < left + half + x and abs(place[1] - position[1]) < y + max(wide, 0.02) + 0.004:
            return False
    return True
