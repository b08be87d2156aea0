"""Experts for the tasks on drawer, sliding door, switch and button: one stroke each."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from eval.calvin.situation import Situation
from eval.experts.calvin.servo import TIP, Stroke, X, Y, Z, keep_clear, stroke_motion

# The switch is at the end of the arm's reach for a vertical hand: there the fingers point at the cabinet's inclined face.
SWITCH_EULER = np.array([math.pi, -math.radians(45.0), math.pi / 2])
SLOPE_UP = np.array([0.0, 0.5, math.sqrt(0.75)])
SLOPE_OUT = np.array([0.0, -math.sqrt(0.75), 0.5])


def _drawer(direction: float) -> Callable[[Situation], Stroke]:
    def program(situation: Situation) -> Stroke:
        slot = np.array([situation.table.drawer_x, -0.211 - situation.state.drawer, 0.364])  # between handle bar and front plate
        return Stroke(slot, Z, 0.11, direction * Y, 0.7, 0.020, 0.012)

    return program


def _slider(direction: float) -> Callable[[Situation], Stroke]:
    def program(situation: Situation) -> Stroke:
        handle_x = situation.table.slide_x + 0.14 - situation.state.slide
        return Stroke(np.array([handle_x - direction * 0.045, -0.002, 0.556]), -Y, 0.085, direction * X, 0.7, 0.018, 0.008)

    return program


def _switch(direction: float) -> Callable[[Situation], Stroke]:
    def program(situation: Situation) -> Stroke:
        bar = np.array([situation.table.switch_x, 0.0182, 0.5288]) + situation.state.switch * SLOPE_UP
        return Stroke(
            bar - direction * 0.033 * SLOPE_UP - 0.008 * SLOPE_OUT, SLOPE_OUT, 0.07, direction * SLOPE_UP, 0.7, 0.010, 0.014, SWITCH_EULER
        )

    return program


def _button(situation: Situation) -> Stroke:
    top = np.array([situation.table.button_x, -0.12, 0.484 + TIP + 0.004])
    if situation.button_pressed:  # pressed without effect, or held from before: let it come up first
        return Stroke(top + 0.03 * Z, Z, 0.05, Z, 0.5, 0.030, 0.020)
    return Stroke(top, Z, 0.07, -Z, 0.5, 0.030, 0.020)


FIXTURE_PROGRAMS: dict[str, Callable[[Situation], Stroke]] = {
    "open_drawer": _drawer(-1.0),
    "close_drawer": _drawer(+1.0),
    "move_slider_left": _slider(-1.0),
    "move_slider_right": _slider(+1.0),
    "turn_on_lightbulb": _switch(+1.0),
    "turn_off_lightbulb": _switch(-1.0),
    "turn_on_led": _button,
    "turn_off_led": _button,
}


def fixture_action(task: str, situation: Situation) -> Float[np.ndarray, "7"]:
    """The stroke of a task on the table's parts, with closed fingers."""
    stroke = FIXTURE_PROGRAMS[task](situation)
    return np.append(keep_clear(situation, stroke_motion(situation.hand, stroke), stroke.contact), -1.0)
