"""JPEG and PNG decoding, JPEG encoding. The format is detected from the first bytes, since features.json does not always name it.

Every image becomes 8-bit RGB as a viewer shows it: EXIF orientation is applied, transparency is laid over white, CMYK is converted. 16-bit
grey is scaled from its range, floating-point grey from [0, 1]; what has no such range is refused.
"""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from vpp_jax.common.text_files import lfs_hint

FORMATS = ("JPEG", "PNG")  # of the others that Pillow knows, some start programs (EPS: Ghostscript)
STILL_FORMATS = (*FORMATS, "WEBP", "BMP", "TIFF")  # of images that people name one by one
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
EXIF, ORIENTATION = b"Exif\0\0", 0x0112
MARGIN = 1.25  # headroom for the antialiasing resize that follows: closer to 1, the result differs more from a full decode
MAX_PIXELS = 1 << 26  # a larger image is a damaged header, which must not allocate gigabytes
WHITE = (255, 255, 255, 255)


def decode(data: bytes, formats: tuple[str, ...] = FORMATS) -> UInt8[np.ndarray, "h w 3"]:
    """RGB image from the bytes of a file of one of `formats`. ValueError if it is none, damaged, or has values of unknown range."""
    if data.startswith((JPEG_MAGIC, PNG_MAGIC)):
        return decode_scaled(data, None)[0]
    if hint := lfs_hint(data):
        raise ValueError(hint)
    return _decoded(lambda: _pillow(data, formats))[0]


def decode_scaled(data: bytes, min_size: int | None) -> tuple[UInt8[np.ndarray, "h2 w2 3"], tuple[int, int]]:
    """RGB image from JPEG or PNG bytes, and the (height, width) of the stored image, before its orientation is applied.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if no side becomes shorter than MARGIN * `min_size`: the decoder skips the DCT
    frequencies that the smaller image cannot represent. None: at full size.
    """
    if data.startswith(JPEG_MAGIC):
        return _decoded(lambda: _jpeg(data, min_size))
    if data.startswith(PNG_MAGIC):
        return _decoded(lambda: _pillow(data, FORMATS))
    raise ValueError(lfs_hint(data) or f"neither JPEG nor PNG (first bytes {bytes(data[:8])!r})")


def _decoded(decode: Callable[[], tuple[np.ndarray, tuple[int, int]]]) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        return decode()
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error, EOFError and more for damaged files
        raise ValueError(f"image cannot be decoded ({error})") from error


def _jpeg(data: bytes, min_size: int | None) -> tuple[np.ndarray, tuple[int, int]]:
    *size, space = simplejpeg.decode_jpeg_header(data)[:3]
    height, width = map(int, size)
    _check_size(height, width)
    if space in ("CMYK", "YCCK") or (EXIF in data[: 1 << 16] and _is_turned(data)):  # which libjpeg-turbo leaves to others
        return _pillow(data, ("JPEG",))
    parts = next((parts for parts in (8, 4, 2) if min_size and min(height, width) >= parts * MARGIN * min_size), 1)
    min_height, min_width = (-(-height // parts), -(-width // parts)) if parts > 1 else (0, 0)  # 0: full size
    return simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=min_height, min_width=min_width), (height, width)


def _is_turned(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return image.getexif().get(ORIENTATION, 1) != 1


def _pillow(data: bytes, formats: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        raise ValueError(f"of none of the types {', '.join(formats)}; first bytes {bytes(data[:8])!r}") from None
    with image:
        _check_size(image.height, image.width)
        stored = image.height, image.width
        upright = ImageOps.exif_transpose(image)
    return _to_rgb(upright), stored


def _to_rgb(image: Image.Image) -> np.ndarray:
    """8-bit RGB of an image of any mode that Pillow opens."""
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.float32) / 65535)
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"floating-point values from {np.min(values):g} to {np.max(values):g}, expected 0 to 1: save it with 8 bits")
        return _grey(values)
    if image.mode == "I":
        raise ValueError("32-bit values, whose range is unknown: save it with 8 or 16 bits")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colours.size, WHITE), colours)
    return np.asarray(image.convert("RGB"))


def _grey(values: np.ndarray) -> np.ndarray:
    """Grey RGB from values in [0, 1]."""
    return np.repeat(np.round(values * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels according to its header, more than {MAX_PIXELS}: scale it down, or it is damaged")


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 95) -> bytes:
    """JPEG at full chroma resolution, so that thin coloured parts (handles, LEDs) keep their colour."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def size(data: bytes) -> tuple[int, int]:
    """(height, width) without decoding."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not an image ({error})") from error
