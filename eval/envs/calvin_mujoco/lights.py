"""Which light is on: the button toggles the LED, the switch's position sets the bulb.

The logic is looked at once per control step, button first. The two published versions of the environment differ in what a reset does to the
button: `original` (calvin_env 1431a46, what a recursive clone of CALVIN gives) always sets the button's own state to off, so the first
press after a reset with the LED on changes nothing one can see; `fixed` (797142c) copies the LED's state into the button.
"""

from dataclasses import dataclass, field

from eval.calvin.scenes import BUTTON_MAX, SWITCH_MAX

BUTTON_PRESSED = BUTTON_MAX / 2
SWITCH_ON = SWITCH_MAX / 2


@dataclass
class Lights:
    """State of button, switch and the two lights."""

    reset_version: str = "fixed"
    bulb: bool = False
    led: bool = False
    button_state: bool = field(default=False, init=False)
    button_pressed: bool = field(default=False, init=False)
    switch_state: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.reset_version not in ("fixed", "original"):
            raise ValueError(f"reset_version must be 'fixed' or 'original', not {self.reset_version!r}")

    def reset(self, bulb: bool, led: bool, button_q: float) -> None:
        """Sets the lights as a reset from scene_obs does. The memory of a pressed button survives resets in the original."""
        self.bulb, self.led = bulb, led
        self.switch_state = False
        if self.reset_version == "fixed":
            self.button_state = self.led
            self.button_pressed = button_q > BUTTON_PRESSED
        else:
            self.button_state = False

    def update(self, button_q: float, switch_q: float) -> None:
        """One control step: `button_q` and `switch_q` are joint positions [m] after the physics."""
        pressed = button_q > BUTTON_PRESSED
        if pressed and not self.button_pressed:
            self.button_state = not self.button_state
            self.led = self.button_state
        self.button_pressed = pressed
        switched = switch_q > SWITCH_ON
        if switched != self.switch_state:
            self.switch_state = switched
            self.bulb = switched
