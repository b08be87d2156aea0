"""Procedural textures: wood with a given mean colour, and the checked floor."""

import numpy as np
from jaxtyping import UInt8

from eval.calvin.scenes import Wood


def wood_texture(wood: Wood, size: int = 256, seed: int = 0) -> UInt8[np.ndarray, "size size 3"]:
    """Tileable wood: noise filtered to long streaks along the rows, plus wider bands; mean and standard deviation are those of `wood`."""
    rng = np.random.default_rng(seed)
    v, u = np.meshgrid(np.fft.fftfreq(size) * size, np.fft.fftfreq(size) * size, indexing="ij")
    grey = np.zeros((size, size))
    for scale, weight in ((10.0, 1.0), (28.0, 1.0), (60.0, 0.6)):  # cycles per image across the grain
        spectrum = np.exp(-((u * wood.grain / scale) ** 2) - (v / scale) ** 2)
        streaks = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) * spectrum).real
        grey += weight * streaks / streaks.std()
    grey = (grey - grey.mean()) / grey.std()
    colour = np.asarray(wood.rgb, np.float64)
    image = colour + wood.std * np.clip(grey, -2.5, 2.5)[..., None] * (colour / colour.mean()) ** 0.5
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(image.transpose(1, 0, 2)) if wood.across else image


def checker_texture(bright: int = 255, dark: int = 222, size: int = 64) -> UInt8[np.ndarray, "size size 3"]:
    """Two by two squares of two greys."""
    half = np.arange(size) < size // 2
    return np.where(half[:, None] ^ half[None, :], bright, dark).astype(np.uint8)[..., None].repeat(3, axis=-1)
