"""Encoded pictures to arrays and back. The format is told by the first bytes, since features.json does not always say it."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

FORMATS = ("JPEG", "PNG")  # of the others that Pillow knows, some start programs (EPS: Ghostscript)
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
MARGIN = 1.25  # leaves work to the antialiasing filter that follows: the nearer to 1, the more the result differs from a full decoding
MAX_PIXELS = 1 << 26  # more is a damaged header, which must not reserve gigabytes


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB picture from JPEG or PNG bytes. ValueError where they are neither, or damaged."""
    return decode_scaled(data, None)[0]


def decode_scaled(data: bytes, least: int | None) -> tuple[UInt8[np.ndarray, "h2 w2 3"], tuple[int, int]]:
    """RGB picture and the (height, width) it is stored with.

    A JPEG comes at 1/2, 1/4 or 1/8 of that size where no side gets shorter than MARGIN times `least`: the decoder then leaves out the
    frequencies that the smaller picture cannot show, and the work on them. None: at full size.
    """
    try:
        if data.startswith(JPEG_MAGIC):
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            _check_size(height, width)
            parts = next((parts for parts in (8, 4, 2) if least and min(height, width) >= parts * MARGIN * least), 1)
            smallest = {"min_height": -(-height // parts), "min_width": -(-width // parts)} if parts > 1 else {}
            return simplejpeg.decode_jpeg(data, colorspace="RGB", **smallest), (height, width)
        if data.startswith(PNG_MAGIC):
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.height, image.width)
                return np.asarray(image.convert("RGB")), (image.height, image.width)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error, EOFError and more for damaged files
        raise ValueError(f"picture cannot be decoded ({error})") from error
    raise ValueError(f"neither JPEG nor PNG (first bytes {bytes(data[:8])!r})")


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels by its header, more than {MAX_PIXELS}")


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 95) -> bytes:
    """JPEG at full chroma resolution: thin coloured parts (handles, LEDs) keep their colour."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def size(data: bytes) -> tuple[int, int]:
    """(height, width) without decoding."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a picture ({error})") from error
