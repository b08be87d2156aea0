"""Scripted experts: small programs that act only through the 7-dim relative actions, with privileged knowledge of the state.

A policy is to imitate them, so each is a function of the current state (and of the state in which the task began). Tasks on the table's
parts are one stroke each; tasks on blocks are in `block_experts`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from eval.envs.calvin_mujoco import block_experts
from eval.envs.calvin_mujoco.servo import TIP, Stroke, X, Y, Z, keep_clear, stroke_motion

if TYPE_CHECKING:
    from eval.envs.calvin_mujoco.environment import CalvinEnvironment

# The switch is at the end of the arm's reach for a vertical hand: there the fingers point at the cabinet's inclined face.
SWITCH_EULER = np.array([math.pi, -math.radians(45.0), math.pi / 2])
SLOPE_UP = np.array([0.0, 0.5, math.sqrt(0.75)])
SLOPE_OUT = np.array([0.0, -math.sqrt(0.75), 0.5])


def _drawer(direction: float) -> Callable[["CalvinEnvironment"], Stroke]:
    def program(env: "CalvinEnvironment") -> Stroke:
        slot = np.array([env.compiled.scene.drawer_x, -0.211 - env.joint("drawer"), 0.364])  # between handle bar and front plate
        return Stroke(slot, Z, 0.11, direction * Y, 0.7, 0.020, 0.012)

    return program


def _slider(direction: float) -> Callable[["CalvinEnvironment"], Stroke]:
    def program(env: "CalvinEnvironment") -> Stroke:
        handle_x = env.compiled.scene.slide_x + 0.14 - env.joint("slide")
        return Stroke(np.array([handle_x - direction * 0.045, -0.002, 0.556]), -Y, 0.085, direction * X, 0.7, 0.018, 0.008)

    return program


def _switch(direction: float) -> Callable[["CalvinEnvironment"], Stroke]:
    def program(env: "CalvinEnvironment") -> Stroke:
        bar = np.array([env.compiled.scene.switch_x, 0.0182, 0.5288]) + env.joint("switch") * SLOPE_UP
        return Stroke(
            bar - direction * 0.033 * SLOPE_UP - 0.008 * SLOPE_OUT, SLOPE_OUT, 0.07, direction * SLOPE_UP, 0.7, 0.010, 0.014, SWITCH_EULER
        )

    return program


def _button(env: "CalvinEnvironment") -> Stroke:
    top = np.array([env.compiled.scene.button_x, -0.12, 0.484 + TIP + 0.004])
    if env.lights.button_pressed:  # pressed without effect, or held from before: let it come up first
        return Stroke(top + 0.03 * Z, Z, 0.05, Z, 0.5, 0.030, 0.020)
    return Stroke(top, Z, 0.07, -Z, 0.5, 0.030, 0.020)


FIXTURE_PROGRAMS: dict[str, Callable[["CalvinEnvironment"], Stroke]] = {
    "open_drawer": _drawer(-1.0),
    "close_drawer": _drawer(+1.0),
    "move_slider_left": _slider(-1.0),
    "move_slider_right": _slider(+1.0),
    "turn_on_lightbulb": _switch(+1.0),
    "turn_off_lightbulb": _switch(-1.0),
    "turn_on_led": _button,
    "turn_off_led": _button,
}


def fixture_action(task: str, env: "CalvinEnvironment") -> Float[np.ndarray, "7"]:
    """The stroke of a task on the table's parts, with closed fingers."""
    stroke = FIXTURE_PROGRAMS[task](env)
    return np.append(keep_clear(env, stroke_motion(env.controller, stroke), stroke.contact), -1.0)


def expert_action(task: str, env: "CalvinEnvironment") -> Float[np.ndarray, "7"]:
    """The expert's action for `task` in the environment's current state, float32."""
    if task in FIXTURE_PROGRAMS:
        action = block_experts.free_hand(env, wanted=None) if env.compiled.blocks else None
        action = fixture_action(task, env) if action is None else action
    else:
        action = block_experts.block_action(task, env, fixture_action)
    return action.astype(np.float32)
