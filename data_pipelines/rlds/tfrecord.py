"""TFRecord files with random access: record offsets are found once by a scan, then single records are read.

A record is `length uint64 | masked CRC32C of those 8 bytes uint32 | payload | masked CRC32C of the payload uint32`, little endian.
"""

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import crc32c

from data_pipelines import storage
from data_pipelines.rlds.shards import DEFECTIVE, UNCOUNTED, Defect, ShardIndex
from data_pipelines.storage import RETRY, FileInfo, Location, Retry
from vpp_jax.common.files import atomic_path
from vpp_jax.common.text_files import lfs_hint

Buffer = bytes | memoryview
BufferT = TypeVar("BufferT", bytes, memoryview)
EXTENSION = "tfrecord"
# Bytes per read when files are read completely, and when only record headers are read: a request to a bucket takes as long as
# transferring a few hundred kilobytes, a read of a local file almost no time.
LOCAL_BLOCK, BUCKET_BLOCK, BUCKET_HEADER_BLOCK = 4 << 20, 16 << 20, 16 << 10
HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
MASK_DELTA = 0xA282EAD8


def masked_crc(data: Buffer) -> int:
    """CRC32C, rotated and shifted as in TFRecord, so that checksums of data that contains checksums remain useful."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One record as stored in a file."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", masked_crc(payload))))


def write_records(path: Location, payloads: Iterable[bytes]) -> int:
    """Writes a TFRecord file under a temporary name and renames it, or uploads it at once; returns its size in bytes.

    A reader never sees half a file.
    """
    if not isinstance(path, Path):
        data = b"".join(map(frame, payloads))
        storage.write(path, data)
        return len(data)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        for payload in payloads:
            file.write(frame(payload))
    return path.stat().st_size


def scan(path: Location, file_info: FileInfo, count: Callable[[Buffer], int] | None, retry: Retry = RETRY) -> ShardIndex:
    """Scans a file once from front to back and returns the offset of each record; verifies the checksum of every length.

    Args:
      file_info: of the file, as just listed.
      count: returns the number of steps of a payload; on ValueError the record is marked as defective and the scan continues. The
        payload's checksum is verified, too. None: read record headers only (payloads are never fetched from a bucket).
    """
    name, size = storage.name_of(path), file_info.size
    block = LOCAL_BLOCK if isinstance(path, Path) else BUCKET_BLOCK
    if count is None:
        block = HEADER.size if isinstance(path, Path) else BUCKET_HEADER_BLOCK
    file = _Ahead(path, size, block, retry)
    offsets, lengths, counts, defects = [], [], [], []
    position = 0
    while position < size:
        number, length, problem = len(offsets), 0, ""
        header = file.at(position, HEADER.size)
        if len(header) < HEADER.size:
            problem = f"truncated: {len(header)} bytes of a {HEADER.size}-byte record header at offset {position}"
        else:
            length, crc = HEADER.unpack(header)
            if masked_crc(header[:8]) != crc:
                problem = f"corrupt record header at offset {position} (CRC32C differs); the records after it cannot be located"
                if position == 0:
                    problem = lfs_hint(bytes(file.at(0, min(size, 64)))) or problem
            elif position + HEADER.size + length + FOOTER.size > size:
                problem = f"truncated: the record at offset {position} has {length} bytes, but the file ends at {size}"
        if problem:
            defects.append(Defect(name, number, problem, fatal=True))
            break
        offsets.append(position + HEADER.size)
        lengths.append(length)
        if count is None:
            counts.append(UNCOUNTED)
        else:
            try:
                counts.append(count(_checked(file.at(position + HEADER.size, length + FOOTER.size), position + HEADER.size, length)))
            except ValueError as error:
                if isinstance(error, OSError):  # the file could not be read: not a defect of the record
                    raise
                counts.append(DEFECTIVE)
                defects.append(Defect(name, number, str(error)))
        position += HEADER.size + length + FOOTER.size
    return ShardIndex.of(name, file_info, offsets, lengths, counts, defects)


def read_payload(path: Location, offset: int, length: int, retry: Retry = RETRY) -> bytes:
    """One payload, located by the index; ValueError if it is truncated or its checksum differs; other errors as `storage.read_range`."""
    return _checked(storage.read_range(path, offset, length + FOOTER.size, retry), offset, length)


def _checked(data: BufferT, offset: int, length: int) -> BufferT:
    """The payload at the start of `data`; verifies the checksum that follows it."""
    if len(data) < length + FOOTER.size:
        raise ValueError(f"truncated record: {len(data)} of {length + FOOTER.size} bytes at offset {offset}")
    payload = data[:length]
    (crc,) = FOOTER.unpack(data[length:])
    if masked_crc(payload) != crc:
        raise ValueError("corrupt record (CRC32C of the payload differs)")
    return payload


class _Ahead:
    """Reads a file at increasing positions in blocks of at least `block` bytes; skipped bytes are not fetched."""

    def __init__(self, path: Location, size: int, block: int, retry: Retry):
        self._path, self._size, self._block, self._retry = path, size, block, retry
        self._start, self._data = 0, memoryview(b"")

    def at(self, position: int, length: int) -> memoryview:
        """`length` bytes from `position` on, without copying; fewer at the end of the file."""
        stop = min(position + length, self._size)
        if position < self._start or stop > self._start + len(self._data):
            kept = self._data[position - self._start :] if self._start <= position < self._start + len(self._data) else b""
            begin = position + len(kept)
            wanted = min(max(stop - begin, self._block), self._size - begin)
            fresh = storage.read_range(self._path, begin, wanted, self._retry)
            self._data, self._start = memoryview(b"".join((kept, fresh)) if len(kept) else fresh), position
        return self._data[position - self._start : stop - self._start]
