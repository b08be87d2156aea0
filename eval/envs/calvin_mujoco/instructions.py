"""Sentences people might say for each task: our own, for training data only.

None of them is an evaluation sentence (those stand in the task table), and no two tasks share one.
"""

TRAINING_SENTENCES: dict[str, tuple[str, ...]] = {
    "open_drawer": (
        "open the drawer", "pull the drawer open", "slide the drawer out", "pull out the drawer", "grab the drawer handle and pull it open",
        "open up the drawer under the table", "pull the drawer towards you", "could you open the drawer", "the drawer should be open",
        "hook the handle of the drawer and pull", "drag the drawer out of the table", "open the wooden drawer",
    ),
    "close_drawer": (
        "close the drawer", "push the drawer closed", "slide the drawer in", "push the drawer back in", "shut the drawer",
        "push the drawer handle until the drawer is shut", "push the drawer into the table", "could you close the drawer",
        "the drawer should be closed", "move the drawer back under the table", "shut the drawer under the table", "close the wooden drawer",
    ),
    "move_slider_left": (
        "slide the door to the left", "move the sliding door left", "push the door to the left", "slide the cabinet door left",
        "move the door handle to the left", "shift the sliding door over to the left", "open the right side of the cabinet by moving its door left",
        "push the slider left", "drag the door of the cabinet leftwards", "the sliding door should be on the left",
        "move the slider to the left side", "take the sliding door to the left",
    ),
    "move_slider_right": (
        "slide the door to the right", "move the sliding door right", "push the door to the right", "slide the cabinet door right",
        "move the door handle to the right", "shift the sliding door over to the right", "open the left side of the cabinet by moving its door right",
        "push the slider right", "drag the door of the cabinet rightwards", "the sliding door should be on the right",
        "move the slider to the right side", "take the sliding door to the right",
    ),
    "turn_on_lightbulb": (
        "turn on the light bulb", "switch on the yellow light", "push the switch up", "move the light switch upwards", "turn the bulb on",
        "flip the switch up to light the bulb", "slide the switch up", "make the light bulb shine", "light up the yellow bulb",
        "switch the light bulb on", "push the lever up so that the bulb lights up", "the yellow lamp should be on",
    ),
    "turn_off_lightbulb": (
        "turn off the light bulb", "switch off the yellow light", "push the switch down", "move the light switch downwards", "turn the bulb off",
        "flip the switch down to darken the bulb", "slide the switch down", "make the light bulb go dark", "put out the yellow bulb",
        "switch the light bulb off", "push the lever down so that the bulb goes out", "the yellow lamp should be off",
    ),
    "turn_on_led": (
        "turn on the led", "press the button to switch the led on", "switch on the green light", "push the button so that the green light comes on",
        "turn the green led on", "light up the led", "press down on the button and turn on the green lamp", "make the green light shine",
        "hit the button to light the led", "the green led should be on", "switch the led light on", "push down the button until the green light is on",
    ),
    "turn_off_led": (
        "turn off the led", "press the button to switch the led off", "switch off the green light", "push the button so that the green light goes out",
        "turn the green led off", "put out the led", "press down on the button and turn off the green lamp", "make the green light go dark",
        "hit the button to darken the led", "the green led should be off", "switch the led light off", "push down the button until the green light is off",
    ),
}


def training_sentences(task: str) -> tuple[str, ...]:
    """Our training sentences for a task."""
    if task not in TRAINING_SENTENCES:
        raise ValueError(f"no training sentences for task {task!r}: there are some for {', '.join(TRAINING_SENTENCES)}")
    return TRAINING_SENTENCES[task]
