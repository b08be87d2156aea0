"""Safetensors: single files and sharded sets, read one tensor at a time, and written one tensor at a time.

A file is an 8-byte little-endian header length, a JSON header {name: {dtype, shape, data_offsets}, "__metadata__": {...}} padded with
spaces, then the tensors back to back. The `safetensors` package reads them; it can only write tensors that are all in
memory, so exports are written here.
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.files import atomic_path
from vpp_jax.common.text_files import lfs_hint_of, read_text

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
UNMAP_AFTER = 32 << 20  # bytes; opening a file of 1600 tensors takes 7 ms
METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors, read one at a time. `tensors` are shapes and types by published name; `where` is for messages."""

    where: str

    @property
    def tensors(self) -> Mapping[str, jax.ShapeDtypeStruct]: ...

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
    """One file, read by the format's own library, which maps it. FileFormatError if the file is damaged, or has types that NumPy and
    ml_dtypes do not (8-bit floats and smaller ones).

    Attributes:
      header: the file's own header, with which an export writes the same bytes again.
      tensors: in the order of their data.
    """

    def __init__(self, path: Path):
        self.path, self.where = path, str(path)
        self._file, self._mapped = _open(path), 0
        self.header = _read_header(path)
        self.tensors: dict[str, jax.ShapeDtypeStruct] = {}
        for name in self._file.offset_keys():
            tensor = self._file.get_slice(name)
            if tensor.get_dtype() not in DTYPES:
                raise FileFormatError(f"{path}: tensor {name} has type {tensor.get_dtype()}, supported are {', '.join(DTYPES)}")
            self.tensors[name] = jax.ShapeDtypeStruct(tuple(tensor.get_shape()), DTYPES[tensor.get_dtype()])

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor."""
        spec = self.tensors[name]
        if self._mapped > UNMAP_AFTER:  # the pages that were read count as memory of this process until the mapping ends
            self._file, self._mapped = _open(self.path), 0
        self._mapped += spec.size * spec.dtype.itemsize
        return self._file.get_tensor(name)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, "numpy")
    except SafetensorError as error:
        pointer = lfs_hint_of(path)
        raise FileFormatError(
            f"{path} is {pointer}" if pointer else f"{path} is not a safetensors file, or it is truncated or damaged ({error})"
        ) from None


def _read_header(path: Path) -> bytes:
    with open(path, "rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        return file.read(length)


class SafetensorsShards:
    """Several files and the index that maps each tensor to its file."""

    def __init__(self, index: Path):
        self.where = str(index)
        weight_map = _weight_map(index)
        self.files = {name: SafetensorsFile(_neighbour(index, name)) for name in sorted(set(weight_map.values()))}
        for name, file in weight_map.items():
            if name not in self.files[file].tensors:
                raise FileFormatError(f"{index} maps {name} to {file}, which does not contain it")
        unlisted = [name for file in self.files.values() for name in file.tensors if name not in weight_map]
        if unlisted:
            raise FileFormatError(f"{index} does not list {len(unlisted)} tensors of its files, first {unlisted[0]}")
        self._map = weight_map
        self.tensors = {name: self.files[file].tensors[name] for name, file in weight_map.items()}

    def read(self, name: str) -> np.ndarray:
        return self.files[self._map[name]].read(name)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(read_text(index))["weight_map"]
        if weight_map and all(isinstance(file, str) for file in weight_map.values()):
            return weight_map
        problem = "weight_map is empty or does not name files"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise FileFormatError(f"{index} is not an index of weight files ({problem})")


def _neighbour(index: Path, name: str) -> Path:
    """The path of a shard, which must be in the folder of its index."""
    if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
        raise FileFormatError(f"{index} names the file '{name}': only names of files in the same folder are allowed")
    path = index.parent / name
    if not path.is_file():
        raise FileFormatError(f"{index} lists {name}, which does not exist")
    return path


# --- writing ------------------------------------------------------------------------------------------------------------------------


def make_header(tensors: Mapping[str, jax.ShapeDtypeStruct | np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
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


def parse_header(header: bytes) -> dict[str, Entry]:
    """Name -> entry of a header that `make_header` made or that was read from a valid file, in the order of their data."""
    tree = json.loads(header)
    entries = {
        name: Entry(fields["dtype"], tuple(fields["shape"]), *fields["data_offsets"]) for name, fields in tree.items() if name != METADATA
    }
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))


def write_file(path: Path, header: bytes, tensors: Iterable[tuple[str, np.ndarray]]) -> int:
    """Writes `tensors`, an iterable in the header's order, one by one; the file is renamed into place when complete. -> bytes."""
    entries = parse_header(header)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(_LENGTH.pack(len(header)) + header)
        for name, value in tensors:
            entry = entries[name]
            if (value.shape, value.dtype) != (entry.shape, DTYPES[entry.dtype]) or file.tell() != 8 + len(header) + entry.start:
                raise ValueError(f"{name} {value.shape} {value.dtype} does not fit {entry}")
            file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return file.tell()
