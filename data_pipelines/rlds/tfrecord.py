"""TFRecord files with random access: an offset index built once, records read in place.

A record is `length uint64 | masked CRC32C of those 8 bytes uint32 | payload | masked CRC32C of the payload uint32`, little endian.
"""

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import crc32c
import numpy as np

HEADER, FOOTER = struct.Struct("<QI"), struct.Struct("<I")
MASK_DELTA = 0xA282EAD8


def masked_crc(data: bytes) -> int:
    """CRC32C rotated and shifted as TFRecord stores it, so that a checksum of data holding checksums stays useful."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One record as it stands in a file."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, struct.pack("<I", masked_crc(length)), payload, struct.pack("<I", masked_crc(payload))))


def write_records(path: Path, payloads: Iterable[bytes]) -> int:
    """Writes a TFRecord file under a temporary name and renames it; returns its size in bytes. A reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for payload in payloads:
                file.write(frame(payload))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


@dataclass(frozen=True)
class Defect:
    """Something wrong in a shard. `record` is the record's number in its file; `fatal`: nothing after it can be found."""

    file: str
    record: int
    problem: str
    fatal: bool = False

    @property
    def where(self) -> str:
        return f"{self.file} record {self.record}"


@dataclass(frozen=True)
class ShardIndex:
    """Where the records of one file are.

    Attributes:
      offsets, lengths: int64[n], byte position and size of each payload.
      counts: int32[n], what `count` said of each payload (steps of the episode), -1 where the record is defective.
    """

    name: str
    size: int
    mtime_ns: int
    offsets: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    defects: tuple[Defect, ...] = field(default=())

    def is_current(self, path: Path) -> bool:
        status = path.stat()
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def scan(path: Path, count: Callable[[bytes], int]) -> ShardIndex:
    """Reads a file once from front to back, checks both checksums of every record, and notes where each lies.

    Args:
      path: the TFRecord file.
      count: number of steps of a payload; a ValueError marks that record as defective and goes on.
    """
    status = path.stat()
    offsets, lengths, counts, defects = [], [], [], []
    position = 0
    with open(path, "rb") as file:
        while position < status.st_size:
            number, problem = len(offsets), ""
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                problem = f"truncated: {len(header)} bytes of a {HEADER.size}-byte record header at offset {position}"
            else:
                length, crc = HEADER.unpack(header)
                if masked_crc(header[:8]) != crc:
                    problem = f"corrupt record header at offset {position} (CRC32C differs); the records after it cannot be located"
                elif position + HEADER.size + length + FOOTER.size > status.st_size:
                    problem = f"truncated: the record at offset {position} has {length} bytes, but the file ends at {status.st_size}"
            if problem:
                defects.append(Defect(path.name, number, problem, fatal=True))
                break
            payload = file.read(length)
            offsets.append(position + HEADER.size)
            lengths.append(length)
            try:
                check_payload(payload, file.read(FOOTER.size))
                counts.append(count(payload))
            except ValueError as error:
                counts.append(-1)
                defects.append(Defect(path.name, number, str(error)))
            position += HEADER.size + length + FOOTER.size
    return ShardIndex(path.name, status.st_size, status.st_mtime_ns, np.asarray(offsets, np.int64), np.asarray(lengths, np.int64),
                      np.asarray(counts, np.int32), tuple(defects))


def check_payload(payload: bytes, footer: bytes) -> None:
    """ValueError where the payload's stored checksum differs from its bytes."""
    (crc,) = FOOTER.unpack(footer)
    if masked_crc(payload) != crc:
        raise ValueError("corrupt record (CRC32C of the payload differs)")


def read_payload(path: Path, offset: int, length: int) -> bytes:
    """One payload by the index; ValueError where it is truncated or its checksum differs."""
    with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), length + FOOTER.size, offset)
    if len(data) < length + FOOTER.size:
        raise ValueError(f"truncated record: {len(data)} of {length + FOOTER.size} bytes at offset {offset}")
    payload = data[:length]
    check_payload(payload, data[length:])
    return payload
