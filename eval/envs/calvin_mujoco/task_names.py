"""Names of CALVIN's tasks for protocols and builders, which load no simulator."""

# Their predicate looks at one joint or light. They need no block and no grasp, and are the only ones in a scene without blocks.
FIXTURE_TASKS = (
    "open_drawer",
    "close_drawer",
    "move_slider_left",
    "move_slider_right",
    "turn_on_lightbulb",
    "turn_off_lightbulb",
    "turn_on_led",
    "turn_off_led",
)
