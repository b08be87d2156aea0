"""Records whose images are read from the file on access.

A record is read completely once, and its checksum is verified. Only its numbers and texts stay in memory, with the file offsets of its
images: kilobytes instead of megabytes, so that all episodes of a large dataset fit into memory and a window reads only its own frames.
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from data_pipelines.rlds.examples import Example

# Protobuf wire format: a field's number and type, then its length. All fields on the path to an image are of type 2 (length-delimited):
# Example.features 1 > Features.feature 1 (map entry) > key 1, value 2 > Feature.bytes_list 1 > BytesList.value 1.
FIRST, SECOND = 0x0A, 0x12
OVERHEAD = 2048  # bytes of Python objects per record
MAX_SURPLUS = (
    4  # read one span if it is at most this many times the wanted bytes: copying from the file cache is cheaper than many system calls
)

Ranges = Int[np.ndarray, "n 2"]


class SparseExample(Example):
    """A record without the bytes columns `columns`; `read(offset, length)` fetches their values. Offsets are relative to the payload."""

    def __init__(self, payload: bytes, columns: Container[str], read: Callable[[int, int], bytes]):
        """ValueError when `payload` is not a tf.train.Example."""
        rest, self._ranges = split(payload, columns)
        super().__init__(rest)
        self._read = read

    def __contains__(self, name: str) -> bool:
        return name in self._ranges or super().__contains__(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted((*super().names, *self._ranges)))

    @property
    def nbytes(self) -> int:
        return super().nbytes + sum(ranges.nbytes for ranges in self._ranges.values()) + OVERHEAD

    def replaced(self, drop: Collection[str], add: Mapping[str, Sequence[bytes]]) -> bytes:
        kept = {name: list(self.blobs(name)) for name in self._ranges if name not in drop}
        return super().replaced([name for name in drop if name not in self._ranges], {**kept, **add})

    def blobs(self, name: str):
        return Blobs(self._ranges[name], self._read) if name in self._ranges else super().blobs(name)


class Blobs:
    """The values of a bytes column, read on access."""

    def __init__(self, ranges: Ranges, read: Callable[[int, int], bytes]):
        self._ranges, self._read = ranges, read

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[bytes]:
        return (self[step] for step in range(len(self)))

    def __getitem__(self, step: int) -> bytes:
        offset, length = self._ranges[step].tolist()
        return self._read(offset, length)

    def take(self, steps: Sequence[int]) -> list[bytes | memoryview]:
        """The values of some steps, read as one span if it is not much larger than the values."""
        ranges = self._ranges[np.asarray(steps)].tolist()
        begin, end = min(offset for offset, _ in ranges), max(offset + length for offset, length in ranges)
        if end - begin > MAX_SURPLUS * sum(length for _, length in ranges):
            return [self._read(offset, length) for offset, length in ranges]
        span = memoryview(self._read(begin, end - begin))
        return [span[offset - begin : offset - begin + length] for offset, length in ranges]


def split(payload: bytes, columns: Container[str]) -> tuple[bytes, dict[str, Ranges]]:
    """`payload` without the bytes columns `columns`, and (offset, length) of each of their values in `payload`.

    Columns with an unusual encoding (several parts, unknown fields) stay in the record. A payload that is no tf.train.Example is returned
    as it is, and the parser reports what is wrong.
    """
    kept, ranges = [], {}
    try:
        begin, end = _enter(payload, 0, len(payload), FIRST)
        if end != len(payload):
            return payload, {}
        position = begin
        while position < end:
            start, stop = _enter(payload, position, end, FIRST)
            name, values = _bytes_column(payload, start, stop, columns)
            if values is None or name in ranges:
                kept.append(payload[position:stop])
            else:
                ranges[name] = values
            position = stop
    except ValueError:
        return payload, {}
    body = b"".join(kept)
    return bytes([FIRST]) + _varint(len(body)) + body, ranges


def _bytes_column(payload: bytes, start: int, stop: int, columns: Container[str]) -> tuple[str, Ranges | None]:
    """Key of a map entry, and the ranges of its values; None if the entry is left to the parser."""
    key_start, key_stop = _enter(payload, start, stop, FIRST)
    name = payload[key_start:key_stop].decode("utf-8", "replace")
    if name not in columns:
        return name, None
    try:
        position, feature_stop = _enter(payload, key_stop, stop, SECOND)
        position, list_stop = _enter(payload, position, feature_stop, FIRST)
        if not stop == feature_stop == list_stop:
            return name, None
        found = []
        while position < stop:
            begin, position = _enter(payload, position, stop, FIRST)
            found.append((begin, position - begin))
    except ValueError:
        return name, None
    return name, np.array(found, np.int64).reshape(-1, 2)


def _enter(payload: bytes, position: int, end: int, tag: int) -> tuple[int, int]:
    """Begin and end of the content of the field at `position`; ValueError if its tag is not `tag` or it extends beyond `end`."""
    if position >= end or payload[position] != tag:
        raise ValueError("another field")
    length = 0
    for digit, byte in enumerate(payload[position + 1 : min(position + 11, end)]):
        length |= (byte & 0x7F) << 7 * digit
        if byte < 0x80:
            begin = position + 2 + digit
            if begin + length > end:
                break
            return begin, begin + length
    raise ValueError("truncated")


def _varint(number: int) -> bytes:
    digits = []
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])
