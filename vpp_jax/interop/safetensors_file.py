"""Safetensors: single files and sharded sets, read one tensor at a time, and written one tensor at a time.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}, "__metadata__": {...}} padded with
spaces, then the tensors back to back. Reads copy from the file instead of mapping it: mapped pages would count as memory of this process.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np

from vpp_jax.common.errors import FileFormatError

# The format's types, in the order by which its own serializer sorts tensors (last first, then by name), so that each is aligned.
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in (
        ("BOOL", np.bool_),
        ("U8", np.uint8),
        ("I8", np.int8),
        ("I16", np.int16),
        ("U16", np.uint16),
        ("F16", np.float16),
        ("BF16", ml_dtypes.bfloat16),
        ("I32", np.int32),
        ("U32", np.uint32),
        ("F32", np.float32),
        ("F64", np.float64),
        ("I64", np.int64),
        ("U64", np.uint64),
    )
}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
METADATA = "__metadata__"


class TensorSource(Protocol):
    """Named tensors, read one at a time. `tensors` are shapes and types by published name; `where` is for messages."""

    where: str
    tensors: Mapping[str, jax.ShapeDtypeStruct]

    def read(self, name: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Entry:
    """One tensor of a file; `start` and `stop` count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


# --- reading ------------------------------------------------------------------------------------------------------------------------


class SafetensorsFile:
    """One file. FileFormatError where the header and the file do not fit each other."""

    def __init__(self, path: Path):
        self.path, self.where = path, str(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else None
            if length is None or length > MAX_HEADER or 8 + length > size:
                promised = "no header" if length is None else f"a header of {length:,} bytes"
                raise FileFormatError(f"{path} is not a safetensors file, or it is cut off: {size:,} bytes with {promised}")
            self.header = file.read(length)
        self.entries = parse_header(self.header, self.where)
        self._start = 8 + length
        expected = self._start + max((entry.stop for entry in self.entries.values()), default=0)
        if size != expected:
            raise FileFormatError(f"{path} has {size:,} bytes, its header describes {expected:,}: the file is cut off or damaged")

    @cached_property
    def tensors(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(entry.shape, DTYPES[entry.dtype]) for name, entry in self.entries.items()}

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        raw = np.fromfile(self.path, np.uint8, entry.stop - entry.start, offset=self._start + entry.start)
        return raw.view(DTYPES[entry.dtype]).reshape(entry.shape)


class SafetensorsShards:
    """Several files and the index that says which tensor lies in which."""

    def __init__(self, index: Path):
        self.where = str(index)
        weight_map = _weight_map(index)
        self.files = {name: SafetensorsFile(_beside(index, name)) for name in sorted(set(weight_map.values()))}
        for name, file in weight_map.items():
            if name not in self.files[file].entries:
                raise FileFormatError(f"{index} says that {name} is in {file}, but it is not")
        unlisted = [name for file in self.files.values() for name in file.entries if name not in weight_map]
        if unlisted:
            raise FileFormatError(f"{index} does not list {len(unlisted)} tensors of its files, first {unlisted[0]}")
        self._map = weight_map

    @cached_property
    def tensors(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: self.files[file].tensors[name] for name, file in self._map.items()}

    def read(self, name: str) -> np.ndarray:
        return self.files[self._map[name]].read(name)


def parse_header(header: bytes, where: str) -> dict[str, Entry]:
    """Name -> entry, in the order of the file. Every byte of the data must belong to exactly one tensor."""
    try:
        tree = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
        entries = {name: _entry(fields) for name, fields in tree.items() if name != METADATA}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{where}: the safetensors header is damaged ({type(error).__name__}: {error})") from None
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        wanted = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        if entry.start != position or entry.stop - entry.start != wanted:
            raise FileFormatError(
                f"{where}: tensor {name} {entry.dtype} {list(entry.shape)} lies at bytes {entry.start:,} to {entry.stop:,}, expected "
                f"{position:,} to {position + wanted:,}: the header is damaged"
            )
        position = entry.stop
    return entries


def _entry(fields: dict[str, Any]) -> Entry:
    start, stop = fields["data_offsets"]
    numbers = (*fields["shape"], start, stop)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"shape {fields['shape']} or data_offsets {fields['data_offsets']}")
    if fields["dtype"] not in DTYPES:
        raise ValueError(f"type {fields['dtype']} is not one of {', '.join(DTYPES)}")
    return Entry(fields["dtype"], tuple(fields["shape"]), start, stop)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a name stands there twice")
    return tree


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        if weight_map and all(isinstance(file, str) for file in weight_map.values()):
            return weight_map
        problem = "weight_map is empty or does not name files"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise FileFormatError(f"{index} is not an index of weight files ({problem})")


def _beside(index: Path, name: str) -> Path:
    """A shard lies in the folder of its index, nowhere else."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise FileFormatError(f"{index} names the file '{name}': only names of files in the same folder are allowed")
    path = index.parent / name
    if not path.is_file():
        raise FileFormatError(f"{index} names {name}, which is not there")
    return path


# --- writing ------------------------------------------------------------------------------------------------------------------------


def make_header(tensors: Mapping[str, jax.ShapeDtypeStruct], metadata: Mapping[str, str] | None = None) -> bytes:
    """The header that the format's own serializer writes: widest types first, then by name; padded to a multiple of 8."""
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    rank = {name: index for index, name in enumerate(DTYPES)}
    rows = sorted(((kinds[np.dtype(spec.dtype)], name, spec.shape) for name, spec in tensors.items()), key=lambda r: (-rank[r[0]], r[1]))
    tree: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    position = 0
    for kind, name, shape in rows:
        stop = position + math.prod(shape) * DTYPES[kind].itemsize
        tree[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def names_in_order(header: bytes, where: str) -> list[str]:
    """Tensor names in the order in which their data follows the header."""
    return [name for name, _ in sorted(parse_header(header, where).items(), key=lambda item: (item[1].start, item[1].stop))]


def write_file(path: Path, header: bytes, tensors: Iterable[tuple[str, np.ndarray]]) -> int:
    """Writes `tensors`, which come in the header's order, as they come. The file gets its name when it is complete. -> bytes."""
    entries, partial = parse_header(header, str(path)), path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, value in tensors:
            entry = entries[name]
            if (value.shape, value.dtype) != (entry.shape, DTYPES[entry.dtype]) or file.tell() != 8 + len(header) + entry.start:
                raise ValueError(f"{name} {value.shape} {value.dtype} does not fit {entry}")
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    partial.replace(path)
    return size
