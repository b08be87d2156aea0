"""What the CALVIN table can be asked for; loads no simulator."""

SCENES = ("A", "B", "C", "D")
QUALITIES = ("fast", "faithful")  # without and with shadows
MIN_IMAGE, MAX_IMAGE = 8, 512  # edge of a camera's image, pixels
