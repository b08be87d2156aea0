"""Images decoded at a fraction of their size."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from data_pipelines.rlds import images
from data_pipelines.transforms import resize


def photograph(height: int, width: int) -> np.ndarray:
    """Smooth areas, straight edges, a little noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    image[:, width // 3] = 255
    image[height // 2 :, 2 * width // 3 :] /= 2
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("stored", "least", "decoded"),
    [
        ((96, 128), None, (96, 128)),
        ((96, 128), 96, (96, 128)),
        ((96, 128), 48, (96, 128)),
        ((96, 128), 38, (48, 64)),
        ((97, 129), 38, (49, 65)),
        ((96, 128), 19, (24, 32)),
        ((96, 128), 4, (12, 16)),
        ((720, 1280), 256, (360, 640)),
        ((480, 640), 256, (480, 640)),
    ],
)
def test_scale_is_the_smallest_that_leaves_enough(stored, least, decoded):
    data = simplejpeg.encode_jpeg(np.zeros((*stored, 3), np.uint8))
    image, size = images.decode_scaled(data, least)
    assert image.shape == (*decoded, 3)
    assert size == stored


@pytest.mark.parametrize("subsampling", ["420", "444"])
@pytest.mark.parametrize("size", [192, 128, 96, 64])
def test_scaled_decoding_differs_little_from_full_decoding(subsampling, size):
    """Of 255 levels: less than 1 on average, up to 4 in 99 of 100 values; the worst are at a line one pixel wide."""
    data = simplejpeg.encode_jpeg(photograph(480, 640), quality=95, colorsubsampling=subsampling)
    full, scaled = (resize(images.decode_scaled(data, least)[0], size) for least in (None, size))
    difference = np.abs(full.astype(int) - scaled.astype(int))
    assert 0 < difference.mean() < 1
    assert np.percentile(difference, 99) <= 4


def test_png_is_never_scaled():
    image, file = photograph(96, 96), io.BytesIO()
    Image.fromarray(image).save(file, "png")
    decoded, size = images.decode_scaled(file.getvalue(), 8)
    np.testing.assert_array_equal(decoded, image)
    assert size == (96, 96)
