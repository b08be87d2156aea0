"""Images decoded at a fraction of their size."""

import io
import zlib

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


# --- what cameras, phones and other programs write ----------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


GREY16 = np.array([[0, 257, 32896, 65535]], np.uint16)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_from_its_range(form):
    found = images.decode(encoded(Image.fromarray(GREY16), form), images.STILL_FORMATS)
    np.testing.assert_array_equal(found[0], [[0] * 3, [1] * 3, [128] * 3, [255] * 3])


def test_floating_point_grey_is_scaled_from_zero_to_one_or_refused():
    def tiff(values):
        return encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")

    found = images.decode(tiff([0, 0.5, 1]), images.STILL_FORMATS)
    np.testing.assert_array_equal(found[0, :, 0], [0, 128, 255])
    for values in ([0, 255], [-1, 1], [np.nan, 1], [np.inf, 0]):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            images.decode(tiff(values), images.STILL_FORMATS)
    with pytest.raises(ValueError, match="32-bit values, whose range is unknown"):
        images.decode(encoded(Image.fromarray(np.array([[7]], np.int32)), "TIFF"), images.STILL_FORMATS)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form, orientation):
    """Orientations 1 to 8 of an image whose corner is red: where the corner is then, as the EXIF standard draws it."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    found = images.decode(encoded(Image.fromarray(stored), form, exif=exif, **options), images.STILL_FORMATS)
    assert found.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    assert found[corner][0] > 200, orientation
    assert found[(-1 if corner[0] == 0 else 0), (-1 if corner[1] == 0 else 0)][0] < 50


def test_a_turned_jpeg_of_a_dataset_is_turned_at_every_scale_and_reports_its_stored_size():
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    data = encoded(Image.fromarray(np.zeros((96, 128, 3), np.uint8)), "JPEG", exif=exif)
    for least in (None, 8):
        image, stored = images.decode_scaled(data, least)
        assert image.shape == (128, 96, 3)
        assert stored == (96, 128)


def test_transparency_is_laid_over_white():
    """Hidden colours do not show: RGBA, grey with alpha, a palette and a colour that count as transparent."""
    hidden, half = (255, 0, 0, 0), (0, 0, 0, 128)
    rgba = Image.new("RGBA", (2, 1), hidden)
    rgba.putpixel((1, 0), half)
    for form in ("PNG", "WEBP", "TIFF"):
        found = images.decode(encoded(rgba, form, **({"lossless": True, "exact": True} if form == "WEBP" else {})), images.STILL_FORMATS)
        np.testing.assert_allclose(found[0], [[255] * 3, [127] * 3], atol=1)  # one level: rounding of the blend
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([255, 0, 0])
    others = (encoded(Image.new("LA", (1, 1), (0, 0)), "PNG"), encoded(palette, "PNG", transparency=0))
    others += (encoded(Image.new("RGB", (1, 1), (255, 0, 0)), "PNG", transparency=(255, 0, 0)),)
    for data in others:
        assert images.decode(data).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB"])
def test_other_modes_show_the_same_grey(mode):
    form = "JPEG" if mode == "CMYK" else "PNG"
    found = images.decode(encoded(Image.new("L", (8, 8), 255).convert(mode), form))
    assert found.shape == (8, 8, 3)
    assert found.min() >= 254


@pytest.mark.parametrize("form", images.STILL_FORMATS)
def test_a_cut_image_is_refused(form):
    data = encoded(Image.fromarray(photograph(96, 96)), form)
    for length in (0, 1, 12, len(data) // 2, len(data) - 40):
        with pytest.raises(ValueError, match=r"cannot be decoded|neither JPEG"):
            images.decode(data[:length], images.STILL_FORMATS)


def test_an_enormous_image_is_refused_by_its_header():
    pixel = encoded(Image.new("L", (1, 1)), "PNG")
    for side in (30_000, 1 << 30):
        header = pixel[12:16] + side.to_bytes(4, "big") * 2 + pixel[24:29]
        data = pixel[:12] + header + zlib.crc32(header).to_bytes(4, "big") + pixel[33:]
        with pytest.raises(ValueError, match=r"cannot be decoded \("):
            images.decode(data)


def test_a_git_lfs_pointer_is_called_one():
    with pytest.raises(ValueError, match="a Git LFS pointer, not the file itself: run `git lfs pull`"):
        images.decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
