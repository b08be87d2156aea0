"""What the CALVIN table can be asked for; loads no simulator."""

SCENES = ("A", "B", "C", "D")
QUALITIES = ("no_shadows", "faithful")
MIN_IMAGE, MAX_IMAGE = 8, 512  # edge of a camera's image, pixels
