"""The four CALVIN scenes as one table of numbers (metres, world frame: +x right, +y away from the robot, z up).

The table's shape is the same in all four; what differs is where things sit on it, how far the door slides, and the wood.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wood:
    """Look of a wood.

    Attributes:
      rgb, std: mean colour (0..255) of its texture, and its standard deviation.
      grain: how stretched the streaks are; `across`: whether they run along y instead of x.
      top, sides, drawer, door: what part of the texture's colour these have; sides are all of the table but its work surface.
    """

    rgb: tuple[int, int, int]
    std: float
    grain: float
    across: bool = False
    top: float = 1.0
    sides: float = 1.0
    drawer: float = 1.0
    door: float = 1.0


WOODS: dict[str, Wood] = {
    "dark": Wood((127, 74, 49), 4.5, grain=3.0, top=0.95, drawer=0.95, door=0.9),
    "light": Wood((246, 196, 140), 3.6, grain=12.0, across=True),
    "medium": Wood((162, 109, 65), 6.0, grain=16.0, across=True, top=0.97),
    "brownish": Wood((163, 122, 81), 6.0, grain=6.0, sides=0.955, drawer=0.96),
}


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
      button_x, switch_x, led_x, bulb_x, drawer_x, plank_x: world x of the part [m].
      slide_x: world x of the sliding door's origin at q = 0; the door covers slide_x - q ... slide_x + 0.28 - q.
      slide_max: the door's travel [m].
      cavity: x range of the cabinet's opening.
      wood, panel_wood: keys of WOODS for the table, and for drawer and door.
      block_colours: colours of the small, middle and big block.
      block_order: order of the blocks in the original's scene_obs.
    """

    name: str
    button_x: float
    switch_x: float
    slide_x: float
    slide_max: float
    drawer_x: float
    led_x: float
    bulb_x: float
    plank_x: float
    cavity: tuple[float, float]
    wood: str
    panel_wood: str
    block_colours: tuple[str, str, str]
    block_order: tuple[str, str, str]


SCENES: dict[str, Scene] = {
    scene.name: scene
    for scene in (
        Scene(
            "A",
            -0.28,
            0.30,
            -0.10,
            0.28,
            0.10,
            -0.28,
            0.30,
            -0.10,
            (-0.36, 0.16),
            "dark",
            "dark",
            ("pink", "red", "blue"),
            ("pink", "blue", "red"),
        ),
        Scene(
            "B",
            0.28,
            -0.32,
            0.088,
            0.304,
            0.18,
            0.28,
            -0.32,
            0.08,
            (-0.18, 0.34),
            "light",
            "light",
            ("red", "pink", "blue"),
            ("red", "blue", "pink"),
        ),
        Scene(
            "C",
            -0.12,
            -0.32,
            0.06,
            0.24,
            0.10,
            -0.12,
            -0.32,
            0.08,
            (-0.18, 0.34),
            "medium",
            "dark",
            ("blue", "pink", "red"),
            ("blue", "red", "pink"),
        ),
        Scene(
            "D",
            -0.12,
            0.30,
            -0.10,
            0.28,
            0.18,
            -0.12,
            0.30,
            -0.10,
            (-0.36, 0.16),
            "brownish",
            "brownish",
            ("blue", "red", "pink"),
            ("red", "blue", "pink"),
        ),
    )
}

DOOR_WIDTH = 0.28
DRAWER_MAX = 0.22
BUTTON_MAX = 0.02
SWITCH_MAX = 0.088
TABLE_TOP, SHELF_TOP, DRAWER_FLOOR = 0.44, 0.441, 0.3423  # what blocks rest on [m]: collision hulls of shelf and drawer stand out
EDGE = 0.04  # of blocks, but for their long side
LENGTHS = (0.04, 0.056, 0.08)  # small, middle, big
TABLE_X = {"A": (-0.20, 0.35), "B": (-0.35, 0.15), "C": (0.00, 0.35), "D": (0.00, 0.35)}  # of blocks on the table in random resets [m]


def get_scene(name: str) -> Scene:
    """The scene called `name` ('A'...'D')."""
    if name not in SCENES:
        raise ValueError(f"unknown CALVIN scene {name!r}: expected one of {', '.join(SCENES)}")
    return SCENES[name]


def block_length(scene: Scene, colour: str) -> float:
    """Length [m] of the block's long side in this scene."""
    return LENGTHS[scene.block_colours.index(colour)]


def open_shelf(scene: Scene, slide: float) -> tuple[float, float]:
    """x range [m] of the shelf's opening that the door leaves free (the wider side)."""
    low, high = scene.cavity
    door_low, door_high = scene.slide_x - slide, scene.slide_x + DOOR_WIDTH - slide
    left, right = (low, min(max(door_low, low), high)), (max(min(door_high, high), low), high)
    return left if left[1] - left[0] >= right[1] - right[0] else right
