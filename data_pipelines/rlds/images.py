"""JPEG and PNG decoding, JPEG encoding. The format is detected from the first bytes, since features.json does not always name it."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

FORMATS = ("JPEG", "PNG")  # of the others that Pillow knows, some start programs (EPS: Ghostscript)
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
MARGIN = 1.25  # headroom for the antialiasing resize that follows: closer to 1, the result differs more from a full decode
MAX_PIXELS = 1 << 26  # a larger image is a damaged header, which must not allocate gigabytes


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB image from JPEG or PNG bytes. ValueError if they are neither, or damaged."""
    return decode_scaled(data, None)[0]


def decode_scaled(data: bytes, min_size: int | None) -> tuple[UInt8[np.ndarray, "h2 w2 3"], tuple[int, int]]:
    """RGB image, and the (height, width) of the stored image.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if no side becomes shorter than MARGIN * `min_size`: the decoder skips the DCT
    frequencies that the smaller image cannot represent. None: at full size.
    """
    try:
        if data.startswith(JPEG_MAGIC):
            height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
            _check_size(height, width)
            parts = next((parts for parts in (8, 4, 2) if min_size and min(height, width) >= parts * MARGIN * min_size), 1)
            min_height, min_width = (-(-height // parts), -(-width // parts)) if parts > 1 else (0, 0)  # 0: full size
            return simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=min_height, min_width=min_width), (height, width)
        if data.startswith(PNG_MAGIC):
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.height, image.width)
                return np.asarray(image.convert("RGB")), (image.height, image.width)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error, EOFError and more for damaged files
        raise ValueError(f"image cannot be decoded ({error})") from error
    raise ValueError(f"neither JPEG nor PNG (first bytes {bytes(data[:8])!r})")


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels according to its header, more than {MAX_PIXELS}")


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
