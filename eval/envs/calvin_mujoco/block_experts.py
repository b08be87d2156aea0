"""Scripted experts for tasks on blocks: grasp, carry, put down, push, turn; each a function of the state now and at the task's start.

A block that slips out of the fingers is simply one that is not held: the program grasps it again from wherever it lies.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from eval.envs.calvin_mujoco.blocks import EDGE, block_length
from eval.envs.calvin_mujoco.controller import ROTATION_SCALE
from eval.envs.calvin_mujoco.initial_states import TABLE_X, open_shelf
from eval.envs.calvin_mujoco.panda import ARM_JOINTS
from eval.envs.calvin_mujoco.rotations import euler_from_matrix, wrap
from eval.envs.calvin_mujoco.scenes import DOOR_WIDTH
from eval.envs.calvin_mujoco.servo import (
    SERVO_GAIN,
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
from eval.envs.calvin_mujoco.table import DRAWER_FLOOR, SHELF_TOP, TABLE_TOP
from eval.envs.calvin_mujoco.tasks import BLOCKS, BlockState, TaskState

if TYPE_CHECKING:
    from eval.envs.calvin_mujoco.environment import CalvinEnvironment

OPEN, CLOSED = 1.0, -1.0
NOTHING = 0.035  # gripper width [m] at which there is no block between closed fingers
OPENED = 0.072  # width from which fingers fit around a block
SHELF_TILT = math.radians(40.0)  # of the hand when it reaches under the cabinet's roof
SHELF_AXIS = np.array([0.0, -math.sin(SHELF_TILT), math.cos(SHELF_TILT)])  # the way into the shelf, from outside
SHELF_TURN = math.radians(8.0)  # of the hand at most, in the shelf
SHELF_Y = 0.085
REST = EDGE / 2  # height of a resting block's centre
TURN = math.radians(75.0)  # aimed at when 60 degrees are asked for
PUSH = 0.125  # m aimed at when 0.1 is asked for
FINGER, FINGER_DEPTH = 0.0095, 0.0105  # half sizes of closed fingers [m] at the height of the TCP, along and across their axis

FixtureAction = Callable[[str, "CalvinEnvironment"], Float[np.ndarray, "7"]]


class Scene:
    """What block programs look at: the state now and the hand."""

    def __init__(self, env: "CalvinEnvironment") -> None:
        self.env, self.controller = env, env.controller
        self.table = env.compiled.scene
        self.state: TaskState = env.task_state()
        self.tcp = self.controller.tcp_position()
        self.tool = self.controller.tcp_matrix()
        self.width = float(env.data.qpos[ARM_JOINTS] + env.data.qpos[ARM_JOINTS + 1])
        self.closing = self.controller.gripper_command < 0
        self.held = next((c for c in BLOCKS if self._is_held(c)), None)

    def _is_held(self, colour: str) -> bool:
        fingers = {("robot", "finger1"), ("robot", "finger2")}
        return self.closing and self.width > NOTHING and fingers <= self.state.blocks[colour].touches

    def block(self, colour: str) -> BlockState:
        """The block's state now."""
        return self.state.blocks[colour]

    def dimensions(self, colour: str) -> Float[np.ndarray, "3"]:
        """Edges along the block's own axes [m]."""
        return np.array([block_length(self.table, colour), EDGE, EDGE])

    def half_extent(self, colour: str, direction: Float[np.ndarray, "3"]) -> float:
        """Half of the block's size along a world direction [m]."""
        return float(np.abs(direction @ self.block(colour).rotation) @ self.dimensions(colour) / 2)

    def enclosed(self) -> str | None:
        """A block between the fingers, held or not."""
        nearest, distance = None, math.inf
        for colour in BLOCKS if self.width > NOTHING else ():
            local = self.tool.T @ (self.block(colour).position - self.tcp)
            if abs(local[0]) < 0.055 and abs(local[1]) < 0.042 and -0.05 < local[2] < 0.036 and length(local) < distance:
                nearest, distance = colour, length(local)
        return nearest

    def in_shelf(self, colour: str) -> bool:
        """Whether the block lies in the cabinet."""
        x, y, z = self.block(colour).position
        return bool(y > 0.02 and z > TABLE_TOP and self.table.cavity[0] < x < self.table.cavity[1])

    def in_drawer(self, colour: str) -> bool:
        """Whether the block lies in the drawer."""
        return bool(self.block(colour).position[2] < 0.42)


def block_action(task: str, env: "CalvinEnvironment", fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    """The expert's action for a task on blocks."""
    scene = Scene(env)
    words = task.split("_")
    colour = next((c for c in BLOCKS if c in words), None)
    if words[0] == "rotate":
        return _rotate(scene, colour, 1.0 if words[-1] == "left" else -1.0, fixture_action)
    if words[0] == "push" and colour is not None:
        return _push(scene, colour, 1.0 if words[-1] == "right" else -1.0, fixture_action)
    if words[0] == "lift":
        return _lift(scene, colour, fixture_action)
    programs = {
        "place_in_slider": _place_in_slider,
        "place_in_drawer": _place_in_drawer,
        "stack_block": _stack,
        "unstack_block": _unstack,
        "push_into_drawer": _push_into_drawer,
    }
    return programs[task](scene, fixture_action)


def free_hand(env: "CalvinEnvironment", wanted: str | None) -> Float[np.ndarray, "7"] | None:
    """What to do first while a block that is not `wanted` is in the hand: put it down, or draw the open fingers away; else None."""
    return _free_hand(Scene(env), wanted)


def _free_hand(scene: Scene, wanted: str | None) -> Float[np.ndarray, "7"] | None:
    if scene.held is not None and scene.held != wanted:
        return _put_down(scene, scene.held)
    enclosed = scene.enclosed()
    if enclosed is not None and enclosed != wanted:
        return _draw_back(scene)
    return None


# --- motions


def _draw_back(scene: Scene) -> Float[np.ndarray, "7"]:
    """Opens, and once open retreats along the tool's axis."""
    share = smoothstep(scene.width, 0.045, 0.06)
    return np.concatenate([-share * scene.tool[:, 2], np.zeros(3), [OPEN]])


def _grip_yaw(scene: Scene, colour: str, preferred: float) -> tuple[float, float]:
    """Tool yaw [rad] for which the fingers close across a block: the nearest to `preferred` for which it is narrow enough and nothing
    stands in the way of fingers and hand. Second: the cost [rad] of what stands in the way nevertheless.
    """
    block, dimensions = scene.block(colour), scene.dimensions(colour)
    vertical = int(np.argmax(np.abs(block.rotation[2])))
    best, cost, in_the_way = preferred, math.inf, 0.0
    for axis in range(3):
        if axis == vertical or dimensions[axis] > 0.06:
            continue
        across = block.rotation[:, axis]
        for sign in (1.0, -1.0):
            yaw = math.atan2(sign * across[0], -sign * across[1])
            deviation = float(wrap(np.array(yaw - preferred)))
            obstacles = _finger_obstacles(scene, colour, yaw, _grip_shift(scene, colour, yaw))
            if not scene.in_shelf(colour):  # the hand is wide along the fingers' axis, and the cabinet's handles stand out
                y = block.position[1] + 0.10 * abs(math.cos(yaw))
                obstacles += 2.0 * smoothstep(y, -0.04, 0.03) + _out_of_reach(block.position, yaw)
            if abs(deviation) + obstacles < cost:
                best, cost, in_the_way = preferred + deviation, abs(deviation) + obstacles, obstacles
    return best, in_the_way


def _grip_shift(scene: Scene, colour: str, yaw: float) -> float:
    """How far [m] the open hand is shifted along the fingers' axis, so that neither of them comes down on something."""
    shifts = (0.0, 0.007, -0.007, 0.014, -0.014)
    return min(shifts, key=lambda shift: _finger_obstacles(scene, colour, yaw, shift) + 2.0 * abs(shift))


def _finger_obstacles(scene: Scene, colour: str, yaw: float, shift: float) -> float:
    """Cost [rad] of what stands where the two fingers have to go down beside the block."""
    axis = np.array([math.sin(yaw), -math.cos(yaw)])
    return sum(_finger_obstacle(scene, colour, side * axis, 0.049 + side * shift) for side in (1.0, -1.0))


def _finger_obstacle(scene: Scene, colour: str, direction: Float[np.ndarray, "2"], reach: float) -> float:
    """The same for one finger, `reach` [m] from the block's centre."""
    position = scene.block(colour).position
    finger = position[:2] + reach * direction
    cost = 0.0
    for other in BLOCKS:
        if other != colour and abs(scene.block(other).position[2] - position[2]) < 0.035:
            local = scene.block(other).rotation.T @ np.array([*(finger - scene.block(other).position[:2]), 0.0])
            gaps = np.abs(local) - scene.dimensions(other) / 2
            outside = length(np.maximum(gaps, 0.0)) if (gaps > 0).any() else float(gaps.max())
            cost += 2.0 * (1.0 - smoothstep(outside, 0.004, 0.016))
    if scene.in_drawer(colour):
        x, y = finger
        front, back = -0.16 - scene.state.drawer, -0.18
        walls = (x - scene.table.drawer_x + 0.18, scene.table.drawer_x + 0.18 - x, y - front, back - y)
        cost += 2.0 * (1.0 - smoothstep(min(walls), 0.0, 0.015))
    elif position[2] < 0.5 and not scene.in_shelf(colour):
        rim = length(finger - np.array([scene.table.button_x, -0.12]))
        cost += 2.0 * (1.0 - smoothstep(rim, 0.045, 0.06))
        cost += 2.0 * smoothstep(finger[1] - 0.57 * (position[2] + 0.03 - TABLE_TOP), 0.0, 0.03)  # the cabinet's front
        for x, half in ((_door_handle(scene), 0.02), (scene.table.switch_x, 0.06)):  # they overhang the table
            cost += 2.0 * smoothstep(finger[1], -0.055, -0.035) * (1.0 - smoothstep(abs(finger[0] - x) - half, 0.01, 0.025))
    return cost


def _door_handle(scene: Scene) -> float:
    """x [m] of the sliding door's handle."""
    return scene.table.slide_x + DOOR_WIDTH / 2 - scene.state.slide


def _grasp(scene: Scene, colour: str, preferred_yaw: float) -> Float[np.ndarray, "7"]:
    """One step towards holding the block: come from above (into the shelf: from the front), open; close around it."""
    position = scene.block(colour).position
    shelf = scene.in_shelf(colour)
    yaw, in_the_way = _grip_yaw(scene, colour, preferred_yaw)
    if in_the_way > 1.2 and scene.enclosed() != colour and not shelf and not scene.in_drawer(colour):
        if position[1] + scene.half_extent(colour, Y) < -0.012:
            return _pull_stroke(scene, colour, 0.007)
        aside = 1.0 if position[0] > _door_handle(scene) else -1.0
        for direction in (aside, -aside):
            if _way_is_free(scene, colour, direction, 0.05):
                return _push_stroke(scene, colour, direction)
    if shelf:  # a hand turned further would meet door or wall; the closing fingers turn the block instead
        yaw = math.pi / 2 + float(np.clip(yaw - math.pi / 2, -SHELF_TURN, SHELF_TURN))
    tilt = SHELF_TILT if shelf else _reach_tilt(position, yaw)
    euler = np.array([math.pi, -tilt, yaw])
    axis = SHELF_AXIS if shelf else Z
    point = position + (0.003 + 0.006 * math.sin(tilt)) * Z
    if scene.in_drawer(colour):
        point = point + 0.004 * Z
    if not scene.closing:
        shift = _grip_shift(scene, colour, yaw)
        point = point + shift * np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    to = Approach(point, axis, 0.16 if shelf else 0.09, 0.008, euler)
    motion = approach_motion(scene.controller, to)
    # at the end of its reach the hand stops short, along its heading: the pads still hold the block
    off = point - scene.tcp
    ahead, aside = off[0] * math.cos(yaw) + off[1] * math.sin(yaw), off[0] * math.sin(yaw) - off[1] * math.cos(yaw)
    turned = abs(float(wrap(yaw - scene.controller.target_euler[2]))) < 0.12
    near = abs(ahead) < 0.013 and abs(aside) < (0.022 if scene.closing else 0.008) and abs(off[2]) < 0.010 and turned
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
    motion = keep_clear(scene.env, motion, point, ignored=(colour,))
    return np.append(motion, CLOSED if close else OPEN)


def _beside_a_block(scene: Scene) -> bool:
    """Whether closed fingers are so low beside a block that opening them would touch it."""
    away = [scene.block(c).position - scene.tcp for c in BLOCKS]
    return any(math.hypot(x, y) < 0.085 and z + 0.05 + TIP > 0 for x, y, z in away)


def _reach_tilt(position: Float[np.ndarray, "3"], yaw: float = math.pi / 2) -> float:
    """Tilt [rad] of the hand that brings far places within reach and keeps it from the cabinet's handles."""
    x, y = position[0] + 0.34, position[1] + 0.46
    ahead = max(0.0, math.cos(yaw - math.atan2(y, x)))
    far = math.radians(35.0) * ahead * smoothstep(math.hypot(x, y), 0.62, 0.80)
    near_cabinet = math.radians(28.0) * max(0.0, math.sin(yaw)) * smoothstep(position[1], -0.11, -0.06)  # its handles stand out
    return max(far, near_cabinet)


def _out_of_reach(position: Float[np.ndarray, "3"], yaw: float) -> float:
    """Cost [rad] of a heading that keeps the hand from leaning towards a far place."""
    x, y = position[0] + 0.34, position[1] + 0.46
    return (1.0 - max(0.0, math.cos(yaw - math.atan2(y, x)))) * smoothstep(math.hypot(x, y), 0.66, 0.82)


def _level_pitch(scene: Scene, colour: str) -> float:
    """Pitch [rad] of the tool at which a held block lies level: it may have been grasped with a tilted hand."""
    rotation, yaw = scene.block(colour).rotation, scene.controller.target_euler[2]
    axis = int(np.argmax(np.abs(rotation[2])))
    up = rotation[:, axis] * np.sign(rotation[2, axis])
    lean = math.atan2(up[0] * math.cos(yaw) + up[1] * math.sin(yaw), up[2])
    measured = math.asin(np.clip(-scene.tool[2, 0], -1.0, 1.0))
    return float(np.clip(measured - lean, -0.9, 0.4))


def _carry(
    scene: Scene,
    colour: str,
    goal: Float[np.ndarray, "3"],
    axis: Float[np.ndarray, "3"] = Z,
    clearance: float = 0.10,
    euler: Float[np.ndarray, "3"] | None = None,
    release_height: float = 0.003,
) -> Float[np.ndarray, "7"]:
    """One step of bringing the held block's centre to `goal`, and letting it go there."""
    position = scene.block(colour).position
    if euler is None:
        euler = np.array([math.pi, _level_pitch(scene, colour), scene.controller.target_euler[2]])
    leaving = position[1] > 0.015 and position[2] < 0.60 and length(goal[:2] - position[:2]) > 0.03 and axis is Z
    if leaving:  # the same way out of the shelf as in
        return np.concatenate([limited(0.8 * SHELF_AXIS), np.zeros(3), [CLOSED]])
    off = goal - position
    across = off - (off @ axis) * axis
    touching = bool(scene.block(colour).bodies - {"robot"}) and float(off @ axis) > -0.03
    if length(across) < (0.012 if touching else 0.008) and (touching or float(off @ axis) > -release_height - 0.002):
        return np.array([0.0] * 6 + [OPEN])
    to = Approach(scene.tcp + off, axis, clearance, 0.005, euler)
    motion = approach_motion(scene.controller, to)
    near = smoothstep(length(off), 0.02, 0.05)
    motion[:3] = limited(motion[:3], 0.4 + 0.6 * near)
    motion = keep_clear(scene.env, motion, scene.tcp + off, ignored=(colour,), hanging=0.02)
    return np.append(motion, CLOSED)


def _put_down(scene: Scene, colour: str) -> Float[np.ndarray, "7"]:
    """Puts a held block on the nearest free place of the table."""
    goal = _free_place(scene, colour, scene.block(colour).position[:2])
    return _carry(scene, colour, np.array([*goal, TABLE_TOP + REST]))


def _free_place(
    scene: Scene, colour: str, near: Float[np.ndarray, "2"], x_range: tuple[float, float] | None = None
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


# --- tasks


def _make_reachable(scene: Scene, colour: str, fixture_action: FixtureAction) -> Float[np.ndarray, "7"] | None:
    """Moves the door away from a block behind it, or the drawer further out; None if the hand can go there."""
    position = scene.block(colour).position
    if scene.in_shelf(colour):
        door_low = scene.table.slide_x - scene.state.slide
        if door_low - 0.055 < position[0] < door_low + DOOR_WIDTH + 0.055:
            free_if_left = position[0] > scene.table.slide_x - scene.table.slide_max + DOOR_WIDTH + 0.045
            free_if_right = position[0] < scene.table.slide_x - 0.045
            if free_if_left and scene.state.slide < scene.table.slide_max - 0.01:
                return fixture_action("move_slider_left", scene.env)
            if free_if_right and scene.state.slide > 0.01:
                return fixture_action("move_slider_right", scene.env)
    if scene.in_drawer(colour) and position[1] > -0.195 and scene.state.drawer < 0.205:
        return fixture_action("open_drawer", scene.env)
    return None


def _take(scene: Scene, colour: str, fixture_action: FixtureAction, preferred_yaw: float = math.pi / 2) -> Float[np.ndarray, "7"] | None:
    """Steps until the block is held; None once it is."""
    if scene.held == colour:
        return None
    action = _free_hand(scene, colour)
    if action is None and scene.enclosed() != colour:
        action = _make_reachable(scene, colour, fixture_action)
    return _grasp(scene, colour, preferred_yaw) if action is None else action


def _lift(scene: Scene, colour: str, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    action = _take(scene, colour, fixture_action)
    if action is not None:
        return action
    goal = scene.env.start_state.blocks[colour].position[2] + 0.10
    rise = min(0.7, SERVO_GAIN * max(goal - scene.block(colour).position[2], 0.0) / 0.02)
    return np.array([0.0, 0.0, rise, 0.0, 0.0, 0.0, CLOSED])


def _rotate(scene: Scene, colour: str, direction: float, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    start = scene.env.start_state.blocks[colour].rotation
    turned = euler_from_matrix(scene.block(colour).rotation @ start.T)[2]
    left = float(wrap(np.array(direction * TURN - turned)))
    action = _take(scene, colour, fixture_action, math.pi / 2 - left / 2)
    if action is not None:
        return action
    turn = np.clip(SERVO_GAIN * left / ROTATION_SCALE, -1.0, 1.0)
    resting = scene.block(colour).bodies - {"robot"}
    y, start_y = scene.block(colour).position[1], scene.env.start_state.blocks[colour].position[1]
    back = min(0.0, max(-0.10, start_y - 0.06) - y)  # the hand is wide: away from the cabinet before it turns
    turn *= 1.0 - smoothstep(-back, 0.01, 0.04)
    lean = SERVO_GAIN * (_level_pitch(scene, colour) - scene.controller.target_euler[1]) / ROTATION_SCALE  # dragged along, it may tip
    return np.array([0.0, max(12.0 * back, -0.5), 0.0 if resting else -0.15, 0.0, float(np.clip(lean, -0.6, 0.6)), turn, CLOSED])


def _push(scene: Scene, colour: str, direction: float, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    start, position = scene.env.start_state.blocks[colour].position, scene.block(colour).position
    left = PUSH - direction * (position[0] - start[0])
    if scene.held == colour or not _way_is_free(scene, colour, direction, left):
        low, high = sorted((start[0] + direction * 0.115, start[0] + direction * 0.22))
        goal = _free_place(scene, colour, np.array([start[0] + direction * PUSH, start[1]]), (low, high))
        action = _take(scene, colour, fixture_action)
        return _carry(scene, colour, np.array([*goal, TABLE_TOP + REST])) if action is None else action
    action = _free_hand(scene, None)
    return _push_stroke(scene, colour, direction) if action is None else action


def _push_stroke(scene: Scene, colour: str, direction: float) -> Float[np.ndarray, "7"]:
    """Pushes a block along x with closed fingers."""
    position, half = scene.block(colour).position, scene.half_extent(colour, X)
    contact = position - direction * (half + FINGER + 0.012) * X
    contact[2] = TABLE_TOP + 0.017
    euler = np.array([math.pi, -_reach_tilt(contact), math.pi / 2])
    stroke = Stroke(contact, Z, 0.075, direction * X, 0.5, 0.022, 0.010, euler)
    motion = keep_clear(scene.env, stroke_motion(scene.controller, stroke), contact, ignored=(colour,))
    return np.append(motion, CLOSED)


def _way_is_free(scene: Scene, colour: str, direction: float, left: float) -> bool:
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


def _place_in_slider(scene: Scene, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    colour = _grasped_at_start(scene)
    if scene.in_shelf(colour) and scene.block(colour).bodies & {"table"} and scene.held != colour:
        return _draw_back(scene)
    low, high = open_shelf(scene.table, scene.state.slide)
    others = [scene.block(c).position[0] for c in BLOCKS if c != colour and scene.in_shelf(c)]
    margin = min(0.062, 0.45 * (high - low))
    places = np.linspace(low + margin, high - margin, 13)
    half = block_length(scene.table, colour) / 2
    crowded = [sum(max(0.0, 0.075 + half - abs(x - other)) for other in others) for x in places]
    best = int(np.argmin([abs(x - (low + high) / 2) + 20.0 * crowd for x, crowd in zip(places, crowded, strict=True)]))
    if crowded[best] > 0.03 and 0.01 < scene.state.slide < scene.table.slide_max - 0.01:  # the door first, as far as it goes
        if scene.held == colour:
            return _put_down(scene, colour)
        return fixture_action("move_slider_left" if low > scene.table.cavity[0] else "move_slider_right", scene.env)
    action = _take(scene, colour, fixture_action)
    if action is not None:
        return action
    x = places[best]
    euler = np.array([math.pi, min(_level_pitch(scene, colour), -SHELF_TILT), math.pi / 2])
    return _carry(scene, colour, np.array([x, SHELF_Y, SHELF_TOP + REST + 0.006]), SHELF_AXIS, 0.20, euler, 0.004)


def _place_in_drawer(scene: Scene, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    colour = _grasped_at_start(scene)
    if scene.in_drawer(colour) and scene.held != colour:
        return _draw_back(scene)
    action = _take(scene, colour, fixture_action)
    return _into_drawer(scene, colour) if action is None else action


def _into_drawer(scene: Scene, colour: str) -> Float[np.ndarray, "7"]:
    y = (-0.18 - 0.16 - scene.state.drawer) / 2 - 0.004
    others = [scene.block(c).position for c in BLOCKS if c != colour and scene.in_drawer(c)]
    places = scene.table.drawer_x + np.linspace(-0.10, 0.10, 9)
    crowded = [sum(max(0.0, 0.11 - abs(x - other[0])) for other in others) for x in places]
    x = places[int(np.argmin([abs(x - scene.table.drawer_x) + 20.0 * crowd for x, crowd in zip(places, crowded, strict=True)]))]
    goal = np.array([x, y, DRAWER_FLOOR + REST + 0.008])
    euler = np.array([math.pi, float(np.clip(_level_pitch(scene, colour), -0.5, 0.2)), math.pi / 2])
    return _carry(scene, colour, goal, Z, 0.20, euler, 0.004)


def _grasped_at_start(scene: Scene) -> str:
    """The block the gripper held when the task began; otherwise the nearest one."""
    start = scene.env.start_state
    touched = [c for c in BLOCKS if ("robot", "finger1") in start.blocks[c].touches or ("robot", "finger2") in start.blocks[c].touches]
    if touched:
        return touched[0]
    return min(BLOCKS, key=lambda c: length(scene.block(c).position - scene.tcp))


def _stack(scene: Scene, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    colour = _grasped_at_start(scene)
    bases = [c for c in BLOCKS if c != colour and not scene.in_shelf(c) and not scene.in_drawer(c)] or [c for c in BLOCKS if c != colour]
    base = min(bases, key=lambda c: length(scene.block(c).position[:2] - scene.block(colour).position[:2]))
    top = scene.block(base).position + EDGE * Z
    if length(scene.block(colour).position - top) < 0.02 and scene.held != colour and not scene.closing:
        return _draw_back(scene)
    action = _take(scene, colour, fixture_action)
    if action is not None:
        return action
    if scene.in_shelf(base):
        euler = np.array([math.pi, -SHELF_TILT, math.pi / 2])
        return _carry(scene, colour, top, SHELF_AXIS, 0.20, euler, 0.002)
    return _carry(scene, colour, top, Z, 0.08, None, 0.002)


def _unstack(scene: Scene, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    start = scene.env.start_state.blocks
    tops = [c for c in BLOCKS if start[c].bodies and start[c].bodies <= set(BLOCKS)]
    colour = tops[0] if tops else max(BLOCKS, key=lambda c: scene.block(c).position[2])
    action = _take(scene, colour, fixture_action)
    return np.array([0.0, 0.0, 0.6, 0.0, 0.0, 0.0, CLOSED]) if action is None else action


def _push_into_drawer(scene: Scene, fixture_action: FixtureAction) -> Float[np.ndarray, "7"]:
    start = scene.env.start_state.blocks
    lying = [c for c in BLOCKS if start[c].touches == {("table", "base_link")}]
    middle = scene.table.drawer_x
    colour = min(lying or BLOCKS, key=lambda c: abs(start[c].position[0] - middle) + (0.0 if lying else abs(start[c].position[2] - 0.46)))
    if scene.state.drawer < 0.10 and scene.held is None:
        return fixture_action("open_drawer", scene.env)
    position, wide = scene.block(colour).position, scene.half_extent(colour, X)
    aligned = abs(position[0] - middle) + wide < 0.175
    if scene.held == colour or not aligned or not _behind_is_free(scene, colour):
        action = _take(scene, colour, fixture_action)
        return _into_drawer(scene, colour) if action is None else action
    action = _free_hand(scene, None)
    if action is not None:
        return action
    return _pull_stroke(scene, colour, 0.012)


def _pull_stroke(scene: Scene, colour: str, distance: float) -> Float[np.ndarray, "7"]:
    """Pushes a block towards the robot with closed fingers, which come down `distance` [m] behind it."""
    position = scene.block(colour).position
    contact = position + (scene.half_extent(colour, Y) + FINGER_DEPTH + distance) * Y
    contact[2] = TABLE_TOP + 0.017
    euler = np.array([math.pi, -_reach_tilt(contact), math.pi / 2])
    stroke = Stroke(contact, Z, 0.075, -Y, 0.45, distance + 0.010, 0.010, euler)
    motion = keep_clear(scene.env, stroke_motion(scene.controller, stroke), contact, ignored=(colour,))
    return np.append(motion, CLOSED)


def _behind_is_free(scene: Scene, colour: str) -> bool:
    """Whether the hand fits between the block and the cabinet, and no other block or the button's rim is in the way to the drawer."""
    position = scene.block(colour).position
    if position[1] + scene.half_extent(colour, Y) > 0.0 or scene.in_shelf(colour):
        return False
    if position[1] > -0.09 and (abs(position[0] - _door_handle(scene)) < 0.09 or abs(position[0] - scene.table.switch_x) < 0.12):
        return False
    obstacles = [(scene.table.button_x, -0.12, 0.04)]
    obstacles += [(*scene.block(c).position[:2], scene.half_extent(c, X)) for c in BLOCKS if c != colour and not scene.in_shelf(c)]
    wide = scene.half_extent(colour, X)
    return all(abs(x - position[0]) > half + wide + 0.01 or y > position[1] + 0.09 for x, y, half in obstacles)
