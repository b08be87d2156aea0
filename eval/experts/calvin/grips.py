"""How to hold a block: the hand's yaw, shift and tilt without obstacles for fingers and hand."""

import math

import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import wrap
from eval.calvin.scenes import DOOR_WIDTH, TABLE_TOP
from eval.calvin.situation import FINGER_MAX
from eval.calvin.tasks import BLOCKS
from eval.experts.calvin.block_scene import BlockScene, door_handle
from eval.experts.calvin.servo import length, smoothstep

HAND_HALF = 0.105  # m, half of the hand's width


def grip_yaw(scene: BlockScene, colour: str, preferred: float) -> tuple[float, float]:
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
            obstacles = _finger_obstacles(scene, colour, yaw, grip_shift(scene, colour, yaw))
            if not scene.in_shelf(colour):  # the hand is wide along the fingers' axis, and the cabinet's handles stand out
                y = block.position[1] + 0.10 * abs(math.cos(yaw))
                obstacles += 2.0 * smoothstep(y, -0.04, 0.03) + _out_of_reach(block.position, yaw)
            if abs(deviation) + obstacles < cost:
                best, cost, in_the_way = preferred + deviation, abs(deviation) + obstacles, obstacles
    return best, in_the_way


def grip_shift(scene: BlockScene, colour: str, yaw: float) -> float:
    """How far [m] the open hand is shifted along the fingers' axis, so that neither of them comes down on something."""
    most = max(grip_slack(scene, colour, yaw) - 0.008, 0.0)  # the hand does not come down more exactly
    shifts = (0.0, most / 2, -most / 2, most, -most)

    def cost(shift: float) -> float:
        obstacles = _finger_obstacles(scene, colour, yaw, shift) + 20.0 * _behind_the_door(scene, colour, yaw, shift)
        return obstacles + 2.0 * abs(shift)

    return min(shifts, key=cost)


def _behind_the_door(scene: BlockScene, colour: str, yaw: float, shift: float) -> float:
    """How far [m] the hand, which is wider than the opened fingers, would stand over the edge of the door beside a block in the shelf."""
    if not scene.in_shelf(colour):
        return 0.0
    door = scene.table.slide_x - scene.state.slide
    x = scene.block(colour).position[0]
    hand = x + shift * math.sin(yaw)
    return max(0.0, door + DOOR_WIDTH - hand + HAND_HALF if x > door + DOOR_WIDTH / 2 else hand + HAND_HALF - door)


def grip_slack(scene: BlockScene, colour: str, yaw: float) -> float:
    """Room [m] between the block and each of the open fingers."""
    return FINGER_MAX - scene.half_extent(colour, np.array([math.sin(yaw), -math.cos(yaw), 0.0]))


def _finger_obstacles(scene: BlockScene, colour: str, yaw: float, shift: float) -> float:
    """Cost [rad] of what stands where the two fingers have to go down beside the block."""
    axis = np.array([math.sin(yaw), -math.cos(yaw)])
    return sum(_finger_obstacle(scene, colour, side * axis, 0.049 + side * shift) for side in (1.0, -1.0))


def _finger_obstacle(scene: BlockScene, colour: str, direction: Float[np.ndarray, "2"], reach: float) -> float:
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
        for x, half in ((door_handle(scene), 0.02), (scene.table.switch_x, 0.06)):  # they overhang the table
            cost += 2.0 * smoothstep(finger[1], -0.055, -0.035) * (1.0 - smoothstep(abs(finger[0] - x) - half, 0.01, 0.025))
    return cost


def reach_tilt(position: Float[np.ndarray, "3"], yaw: float = math.pi / 2) -> float:
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


def level_pitch(scene: BlockScene, colour: str) -> float:
    """Pitch [rad] of the tool at which a held block lies level: it may have been grasped with a tilted hand."""
    rotation, yaw = scene.block(colour).rotation, scene.hand.target_euler[2]
    axis = int(np.argmax(np.abs(rotation[2])))
    up = rotation[:, axis] * np.sign(rotation[2, axis])
    lean = math.atan2(up[0] * math.cos(yaw) + up[1] * math.sin(yaw), up[2])
    measured = math.asin(np.clip(-scene.tool[2, 0], -1.0, 1.0))
    return float(np.clip(measured - lean, -0.9, 0.4))
