"""Tasks as a table: a predicate on the state at the task's start and the state now, and the sentence used for evaluation.

The predicates are CALVIN's. A task compares two `TaskState` snapshots, so tasks can follow each other without a reset.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TaskState:
    """What predicates may look at.

    Attributes:
      slide, drawer, button, switch: joint positions [m].
      bulb, led: logical states of the lights.
    """

    slide: float
    drawer: float
    button: float
    switch: float
    bulb: bool
    led: bool


Predicate = Callable[[TaskState, TaskState], bool]


def joint_moved(joint: str, change: float) -> Predicate:
    """The joint has moved by more than `change` [m] since the start, in the direction of its sign."""

    def predicate(start: TaskState, now: TaskState) -> bool:
        moved = getattr(now, joint) - getattr(start, joint)
        return moved > change if change > 0 else moved < change

    return predicate


def light_switched(light: str, on: bool) -> Predicate:
    """The light was in the opposite state at the start and is `on` (or off) now."""

    def predicate(start: TaskState, now: TaskState) -> bool:
        return getattr(start, light) == (not on) and getattr(now, light) == on

    return predicate


@dataclass(frozen=True)
class Task:
    """One task: its predicate and CALVIN's evaluation sentence for it."""

    name: str
    predicate: Predicate
    evaluation_sentence: str


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("move_slider_left", joint_moved("slide", 0.15), "push the sliding door to the left side"),
        Task("move_slider_right", joint_moved("slide", -0.15), "push the sliding door to the right side"),
        Task("open_drawer", joint_moved("drawer", 0.12), "pull the handle to open the drawer"),
        Task("close_drawer", joint_moved("drawer", -0.12), "push the handle to close the drawer"),
        Task("turn_on_lightbulb", light_switched("bulb", True), "use the switch to turn on the light bulb"),
        Task("turn_off_lightbulb", light_switched("bulb", False), "use the switch to turn off the light bulb"),
        Task("turn_on_led", light_switched("led", True), "press the button to turn on the led light"),
        Task("turn_off_led", light_switched("led", False), "press the button to turn off the led light"),
    )
}


def get_task(name: str) -> Task:
    """The task called `name`."""
    if name not in TASKS:
        raise ValueError(f"unknown CALVIN task {name!r}: expected one of {', '.join(TASKS)}")
    return TASKS[name]
