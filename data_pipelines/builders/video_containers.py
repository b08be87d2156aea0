"""How many frames a Matroska, WebM or AVI file holds, by walking over its elements: FFmpeg does not say where such a file is damaged."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

EBML_MAGIC, RIFF_MAGIC = b"\x1a\x45\xdf\xa3", b"RIFF"
SEGMENT, CLUSTER, BLOCK_GROUP, TRACKS, TRACK = 0x18538067, 0x1F43B675, 0xA0, 0x1654AE6B, 0xAE
BLOCKS, TRACK_NUMBER, TRACK_TYPE, VIDEO = (0xA3, 0xA1), 0xD7, 0x83, 1


def count_frames(path: Path) -> int | None:
    """Frames of the first video stream; None where it is cut off, damaged, of another format, or of unknown length."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        try:
            return _matroska(file, size) if magic == EBML_MAGIC else _avi(file, size) if magic == RIFF_MAGIC else None
        except (ValueError, RecursionError):
            return None


def _matroska(file: BinaryIO, size: int) -> int:
    """Blocks of the first video track. ValueError if an element is damaged, of unknown length, or reaches beyond the element around it."""
    number, video, count = 0, None, 0
    for element, length in _elements(file, size):
        if element == TRACK_NUMBER:
            number = int.from_bytes(file.read(length), "big")
        elif element == TRACK_TYPE and video is None and int.from_bytes(file.read(length), "big") == VIDEO:
            video = number
        elif element in BLOCKS:
            count += _variable(file, keep_marker=False) == video
    return count


def _elements(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """(id, length) of the elements up to `end` and of those inside; the file then stands at the element's content."""
    while file.tell() < end:
        element, length = _variable(file, keep_marker=True), _variable(file, keep_marker=False)
        start = file.tell()
        if start + length > end:
            raise ValueError("longer than what is around it")
        yield element, length
        file.seek(start)
        if element in (SEGMENT, CLUSTER, BLOCK_GROUP, TRACKS, TRACK):
            yield from _elements(file, start + length)
        file.seek(start + length)


def _variable(file: BinaryIO, keep_marker: bool) -> int:
    """EBML's numbers: as many bytes as the first one has leading zeros, and one; the bit after the zeros is a marker."""
    first = file.read(1)
    if not first or not first[0]:
        raise ValueError("no number")
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    number = int.from_bytes(first + rest, "big")
    value = number - (1 << 7 * length)
    if len(rest) < length - 1 or (not keep_marker and value == (1 << 7 * length) - 1):
        raise ValueError("cut off, or an unknown length")
    return number if keep_marker else value


def _avi(file: BinaryIO, size: int) -> int:
    """Video chunks with content: those without one repeat the frame before them. ValueError as above."""
    count, place, ends = 0, 0, size
    while place + 8 <= ends:
        file.seek(place)
        name, length = file.read(4), int.from_bytes(file.read(4), "little")
        if place + 8 + length > size or not name.isascii() or not name.strip(b"\0"):
            raise ValueError("longer than the file, or damaged")
        count += name[2:] in (b"dc", b"db") and length > 0
        place += 12 if name in (b"RIFF", b"LIST") else 8 + length + length % 2
    return count
