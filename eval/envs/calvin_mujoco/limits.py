"""What the CALVIN table can be asked for; loads no simulator."""

VERSION = "5"  # of dynamics, rendering and observations: incremented when recorded episodes no longer match
SCENES = ("A", "B", "C", "D")
QUALITIES = ("no_shadows", "faithful")
MIN_IMAGE, MAX_IMAGE = 8, 512  # edge of a camera's image, pixels
