"""Texts that other programs wrote: their encoding is found from their first bytes, and what cannot be read is named.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one. Single-byte encodings (Latin-1, Windows-1252, ...) cannot be told
from one another, so they are refused rather than guessed.
"""

import codecs
import json
from pathlib import Path
from typing import Any

from vpp_jax.common.errors import FileFormatError

# UTF-32's little-endian mark begins with UTF-16's
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def decode_text(data: bytes, where: str) -> str:
    """The text of a file. FileFormatError names `where`, the place of the fault, and the likely encoding."""
    if data.startswith(LFS_POINTER):
        raise FileFormatError(f"{where} is {lfs_hint(data)}")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise FileFormatError(f"{where} begins as {encoding.upper()} but is damaged at byte {error.start}") from None
        line = data[: error.start].count(b"\n") + 1
        raise FileFormatError(
            f"{where}: byte {error.start} (0x{data[error.start]:02x}, line {line}) is not UTF-8; it looks like {_likely(data)}. Convert "
            "the file: iconv -f ENCODING -t UTF-8"
        ) from None
    if "\0" in text:
        raise FileFormatError(f"{where} holds NUL characters: it is not a text, or {_likely(data)}. Convert it to UTF-8")
    return text


def read_text(path: Path) -> str:
    """`decode_text` of a file. OSError where it cannot be opened."""
    return decode_text(path.read_bytes(), str(path))


def read_json(path: Path) -> Any:
    """The JSON value in a file. OSError where it cannot be opened, FileFormatError where it is something else."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not JSON: {error}") from None


def lfs_hint(data: bytes) -> str:
    """For errors about a file that begins with `data`: what it is and what to do if it is a Git LFS pointer, else ''."""
    if not data.startswith(LFS_POINTER):
        return ""
    return "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file"


def lfs_hint_of(path: Path) -> str:
    """`lfs_hint` of the beginning of a file."""
    with open(path, "rb") as file:
        return lfs_hint(file.read(len(LFS_POINTER)))


def _likely(data: bytes) -> str:
    even, odd = data[0:2000:2].count(0), data[1:2000:2].count(0)
    if max(even, odd) > len(data[:2000]) / 8:
        return "UTF-16 without a byte order mark"
    if any(0x80 <= byte < 0xA0 for byte in data):
        return "Windows-1252 (CP1252) or another code page"
    return "Latin-1 (ISO-8859-1) or another single-byte encoding"
