"""Encoded pictures to arrays and back. The format is told by the first bytes, since features.json does not always say it."""

import io

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"


def decode(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """RGB picture from JPEG or PNG bytes. ValueError where they are neither, or damaged."""
    try:
        if data.startswith(JPEG_MAGIC):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        if data.startswith(PNG_MAGIC):
            with Image.open(io.BytesIO(data)) as image:
                return np.asarray(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise ValueError(f"picture cannot be decoded ({error})") from error
    raise ValueError(f"neither JPEG nor PNG (first bytes {bytes(data[:8])!r})")


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int = 95) -> bytes:
    """JPEG at full chroma resolution: thin coloured parts (handles, LEDs) keep their colour."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444")


def size(data: bytes) -> tuple[int, int]:
    """(height, width) without decoding."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, SyntaxError) as error:
        raise ValueError(f"not a picture ({error})") from error
