"""How the scripted experts move the hand: functions of the current state alone, without hidden phases.

Every motion comes to a point along an approach axis: how far the hand stays back along the axis depends on how well it is aligned across
it, so that a hand thrown off its path retreats, realigns and tries again. A *stroke* then pushes along a direction, the more the closer
the hand is to the contact point, which moves with the part.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from eval.calvin.rotations import wrap
from eval.calvin.situation import POSITION_SCALE, ROTATION_SCALE, Hand, Situation

SERVO_GAIN = 0.35  # share of the distance to the goal commanded per control step
TOOL_EULER = np.array([math.pi, 0.0, math.pi / 2])  # fingers straight down, opening along world x
TIP = 0.0148  # the fingertips' distance beyond the TCP
HALF_BLOCK = 0.021  # m, from a block's centre to its top
X, Y, Z = np.eye(3)


class Approach(NamedTuple):
    """Where the TCP should come to [m], the unit vector it comes from, the distance kept along it while misaligned [m], the misalignment
    that does not matter [m], and the tool's orientation [rad].
    """

    point: Float[np.ndarray, "3"]
    axis: Float[np.ndarray, "3"]
    clearance: float
    tolerance: float
    euler: Float[np.ndarray, "3"] = TOOL_EULER


class Stroke(NamedTuple):
    """What a task's program asks for, in the current state.

    Attributes:
      contact: where the TCP should be when the push begins [m].
      approach: unit vector the hand comes from.
      clearance: distance kept along `approach` while misaligned [m].
      push: unit vector of the push; speed: its size in action units.
      free_play: distance along `push` from the contact point to touching the part [m].
      tolerance: misalignment that does not matter [m]; beyond it the hand stays back and the push fades.
      euler: the tool's orientation [rad].
    """

    contact: Float[np.ndarray, "3"]
    approach: Float[np.ndarray, "3"]
    clearance: float
    push: Float[np.ndarray, "3"]
    speed: float
    free_play: float
    tolerance: float
    euler: Float[np.ndarray, "3"] = TOOL_EULER


def approach_motion(hand: Hand, to: Approach, extra: float = 0.0, ahead: Float[np.ndarray, "3"] | float = 0.0) -> np.ndarray:
    """Action entries 0-5 (xyz, Euler) of the way to a point.

    Args:
      extra: misalignment [m] on top of what is measured.
      ahead: part of the offset that does not count (m).
    """
    offset = to.point - hand.position + ahead
    commanded = hand.target_position
    across = offset - (offset @ to.axis) * to.axis
    turn_left = wrap(to.euler - hand.target_euler)
    misaligned = length(across) + extra + 0.1 * max(length(turn_left) - 0.1, 0.0)
    back = to.clearance * smoothstep(misaligned, to.tolerance, to.tolerance + 0.045)
    servo = SERVO_GAIN * (to.point + back * to.axis - commanded) / POSITION_SCALE
    # too deep for where it is: out first, then across, or the hand drags the part along
    too_deep = back + float(offset @ to.axis)
    outward = (servo @ to.axis) * to.axis
    servo = outward + (1.0 - smoothstep(too_deep, 0.015, 0.045)) * (servo - outward)
    return np.concatenate([limited(servo), limited(SERVO_GAIN * turn_left / ROTATION_SCALE)])


def stroke_motion(hand: Hand, stroke: Stroke) -> np.ndarray:
    """Action entries 0-5 of a stroke."""
    offset = stroke.contact - hand.position
    ahead = max(-float(offset @ stroke.push), 0.0)  # in contact the hand is ahead of the contact point by the free play
    overshoot = max(ahead - stroke.free_play, 0.0)  # more than that: it is in front of the part, or on its other side
    forgiven = (ahead - overshoot) * stroke.push
    to = Approach(stroke.contact, stroke.approach, stroke.clearance, stroke.tolerance, stroke.euler)
    motion = approach_motion(hand, to, 2.0 * overshoot, forgiven)
    hold = SERVO_GAIN * (stroke.contact - hand.target_position) / POSITION_SCALE
    push = stroke.speed * stroke.push + hold - (hold @ stroke.push) * stroke.push
    engaged = 1.0 - smoothstep(length(offset + forgiven), stroke.tolerance + 0.006, stroke.tolerance + 0.028)
    motion[:3] = (1.0 - engaged) * motion[:3] + engaged * limited(push)
    return motion


def keep_clear(
    situation: Situation, motion: np.ndarray, goal: Float[np.ndarray, "3"], ignored: tuple[str, ...] = (), hanging: float = TIP
) -> np.ndarray:
    """`motion` with reflexes: up and out of the drawer before going sideways, and over blocks that stand in the way.

    Args:
      goal: where the motion leads [m].
      ignored: blocks that may be touched.
      hanging: how far the hand, or what it holds, reaches below the TCP [m].
    """
    tcp = situation.hand.position
    sideways, lowest = motion[:2], tcp[2] - hanging
    way = length(goal[:2] - tcp[:2])
    if tcp[1] < -0.165 and lowest < 0.42 and way > 0.06:
        return np.concatenate([0.1 * sideways, [0.8], motion[3:]])
    for colour, state in situation.state.blocks.items() if way > 0.03 else ():
        block = state.position
        away = block[:2] - tcp[:2]
        distance, over = length(away), lowest - block[2] - HALF_BLOCK
        if colour in ignored or block[2] > tcp[2] + 0.05 or over > 0.03 or distance > 0.085:
            continue
        if distance < 0.055 or sideways @ away > 0.002:
            if over < 0.008:
                return np.concatenate([0.1 * sideways, [0.8], motion[3:]])
            motion = np.concatenate([sideways, [max(motion[2], 0.0)], motion[3:]])
    return motion


def length(vector: np.ndarray) -> float:
    """Euclidean norm."""
    return math.sqrt(float(vector @ vector))


def smoothstep(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, smooth between."""
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


def limited(vector: np.ndarray, size: float = 1.0) -> np.ndarray:
    """`vector`, shortened to `size` if it is longer."""
    return vector * min(1.0, size / max(length(vector), 1e-9))
