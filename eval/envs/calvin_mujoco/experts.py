"""Scripted experts: small programs that act only through the 7-dim relative actions, with privileged knowledge of the joints.

A policy is to imitate them, so each is a function of the current state, without hidden phases: every task is one *stroke* - come to a
contact point along an approach axis, then push along a direction. How far the hand stays back along the approach axis depends on how well
it is aligned across it; how much it pushes depends on how close it is to the contact point, which moves with the part. An expert thrown off
its path therefore retreats, realigns and tries again.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from eval.envs.calvin_mujoco.controller import POSITION_SCALE, ROTATION_SCALE
from eval.envs.calvin_mujoco.rotations import wrap

if TYPE_CHECKING:
    from eval.envs.calvin_mujoco.environment import CalvinEnvironment

SERVO_GAIN = 0.35  # share of the distance to the goal commanded per control step
TOOL_EULER = np.array([math.pi, 0.0, math.pi / 2])  # fingers straight down, opening along world x
TIP = 0.0148  # the fingertips' distance beyond the TCP
X, Y, Z = np.eye(3)
# The switch is at the end of the arm's reach for a vertical hand: there the fingers point at the cabinet's inclined face.
SWITCH_EULER = np.array([math.pi, -math.radians(45.0), math.pi / 2])
SLOPE_UP = np.array([0.0, 0.5, math.sqrt(0.75)])
SLOPE_OUT = np.array([0.0, -math.sqrt(0.75), 0.5])


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


def _drawer(direction: float) -> Callable[["CalvinEnvironment"], Stroke]:
    def program(env: "CalvinEnvironment") -> Stroke:
        slot = np.array([env.compiled.scene.drawer_x, -0.211 - env.task_state().drawer, 0.364])  # between handle bar and front plate
        return Stroke(slot, Z, 0.11, direction * Y, 0.7, 0.020, 0.012)

    return program


def _slider(direction: float) -> Callable[["CalvinEnvironment"], Stroke]:
    def program(env: "CalvinEnvironment") -> Stroke:
        handle_x = env.compiled.scene.slide_x + 0.14 - env.task_state().slide
        return Stroke(np.array([handle_x - direction * 0.045, -0.002, 0.556]), -Y, 0.085, direction * X, 0.7, 0.018, 0.008)

    return program


def _switch(direction: float) -> Callable[["CalvinEnvironment"], Stroke]:
    def program(env: "CalvinEnvironment") -> Stroke:
        bar = np.array([env.compiled.scene.switch_x, 0.0182, 0.5288]) + env.task_state().switch * SLOPE_UP
        return Stroke(
            bar - direction * 0.033 * SLOPE_UP - 0.008 * SLOPE_OUT, SLOPE_OUT, 0.07, direction * SLOPE_UP, 0.7, 0.010, 0.014, SWITCH_EULER
        )

    return program


def _button(env: "CalvinEnvironment") -> Stroke:
    top = np.array([env.compiled.scene.button_x, -0.12, 0.484 + TIP + 0.004])
    if env.lights.button_pressed:  # pressed without effect, or held from before: let it come up first
        return Stroke(top + 0.03 * Z, Z, 0.05, Z, 0.5, 0.030, 0.020)
    return Stroke(top, Z, 0.07, -Z, 0.5, 0.030, 0.020)


PROGRAMS: dict[str, Callable[["CalvinEnvironment"], Stroke]] = {
    "open_drawer": _drawer(-1.0),
    "close_drawer": _drawer(+1.0),
    "move_slider_left": _slider(-1.0),
    "move_slider_right": _slider(+1.0),
    "turn_on_lightbulb": _switch(+1.0),
    "turn_off_lightbulb": _switch(-1.0),
    "turn_on_led": _button,
    "turn_off_led": _button,
}


def expert_action(task: str, env: "CalvinEnvironment") -> Float[np.ndarray, "7"]:
    """The expert's action for `task` in the environment's current state."""
    stroke = PROGRAMS[task](env)
    controller = env.controller
    measured, commanded = controller.tcp_position(), controller.target_position
    offset = stroke.contact - measured
    ahead = max(-float(offset @ stroke.push), 0.0)  # in contact the hand is ahead of the contact point by the free play
    overshoot = max(ahead - stroke.free_play, 0.0)  # more than that: it is in front of the part, or on its other side
    offset = offset + (ahead - overshoot) * stroke.push
    across = offset - (offset @ stroke.approach) * stroke.approach
    turn_left = wrap(stroke.euler - controller.target_euler)
    misaligned = float(np.linalg.norm(across)) + 2.0 * overshoot + 0.1 * max(float(np.linalg.norm(turn_left)) - 0.1, 0.0)
    back = stroke.clearance * _smoothstep(misaligned, stroke.tolerance, stroke.tolerance + 0.045)
    servo = SERVO_GAIN * (stroke.contact + back * stroke.approach - commanded) / POSITION_SCALE
    # too deep for where it is: out first, then across, or the hand drags the part along
    too_deep = back + float(offset @ stroke.approach)
    outward = (servo @ stroke.approach) * stroke.approach
    servo = outward + (1.0 - _smoothstep(too_deep, 0.015, 0.045)) * (servo - outward)
    hold = SERVO_GAIN * (stroke.contact - commanded) / POSITION_SCALE
    push = stroke.speed * stroke.push + hold - (hold @ stroke.push) * stroke.push
    engaged = 1.0 - _smoothstep(float(np.linalg.norm(offset)), stroke.tolerance + 0.006, stroke.tolerance + 0.028)
    move = (1.0 - engaged) * _limit(servo) + engaged * _limit(push)
    turn = _limit(SERVO_GAIN * turn_left / ROTATION_SCALE)
    return np.concatenate([move, turn, [-1.0]]).astype(np.float32)


def _smoothstep(value: float, low: float, high: float) -> float:
    x = min(max((value - low) / (high - low), 0.0), 1.0)
    return x * x * (3.0 - 2.0 * x)


def _limit(vector: Float[np.ndarray, "3"], size: float = 1.0) -> Float[np.ndarray, "3"]:
    return vector * min(1.0, size / max(float(np.linalg.norm(vector)), 1e-9))
