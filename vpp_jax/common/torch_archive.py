"""PyTorch's own files (`torch.save`, zip archives), read without PyTorch and without running their pickle.

The pickle is read as data (`inert_pickle`) and may only name what `ALLOWED` lists. Tensors are then views of the archive's storages.
Independent of JAX and models: weights (`vpp_jax.interop`) and recorded latents (`data_pipelines.builders`) are both read with it.
"""

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.inert_pickle import Call, Global, Persistent, read_pickle
from vpp_jax.common.text_files import lfs_hint_of

STORAGES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in (
        ("FloatStorage", np.float32),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", ml_dtypes.bfloat16),
        ("DoubleStorage", np.float64),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    )
}
# module -> names that such a file may mention. None of them is ever looked up: they denote tensors, and the containers and values
# of an OmegaConf configuration. (`__builtin__` is how pickles of protocol 2 spell `builtins`.)
ALLOWED: dict[str, frozenset[str]] = {
    module: frozenset(names.split())
    for module, names in {
        "torch": " ".join(STORAGES) + " Size device float32 float16 bfloat16 float64 int64 int32 int16 int8 uint8 bool",
        "torch._utils": "_rebuild_tensor_v2 _rebuild_parameter",
        "collections": "OrderedDict defaultdict",
        "builtins": "dict list tuple int float bool str bytes",
        "__builtin__": "dict list tuple int long float bool str unicode",
        "typing": "Any Dict List Optional Tuple Union",
        "omegaconf.dictconfig": "DictConfig",
        "omegaconf.listconfig": "ListConfig",
        "omegaconf.base": "ContainerMetadata Metadata",
        "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode BytesNode",
    }.items()
}
MAX_PICKLE = 256 << 20  # bytes; a thousand tensors take a few hundred kilobytes


@dataclass(frozen=True)
class StoredTensor:
    """Location of a tensor: `offset`, `shape` and `strides` in elements of type `dtype`, in the archive's file `member`."""

    dtype: np.dtype
    member: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchArchive:
    """One file. FileFormatError if it is damaged, has another format, or names anything outside `ALLOWED`.

    Attributes:
      tree: the saved object: plain values, and `Call` records for calls in the pickle (tensors among them).
    """

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            if pointer := lfs_hint_of(path):
                raise FileFormatError(f"{path} is {pointer}") from None
            raise FileFormatError(
                f"{path} is not a zip archive as torch.save has written since PyTorch 1.6 ({error}): it is cut off, of the old format, or "
                "something else. Where PyTorch is installed, write it again: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            ) from None
        self.tree = read_pickle(self._pickle(), lambda name: name.name in ALLOWED.get(name.module, ()), self.where)
        self._members = frozenset(self._archive.namelist())

    def tensor(self, name: str, value: Any) -> StoredTensor:
        """The tensor denoted by `value`, a part of the tree; `name` is for messages."""
        try:
            if str(value.function) == "torch._utils._rebuild_parameter":
                value = value.arguments[0]
            storage, offset, shape, strides = value.arguments[:4]
            kind, storage_type, key, _, _ = storage.identity
            member = f"{self._folder}/data/{key}"
            numbers = (offset, *shape, *strides)
            good = str(value.function) == "torch._utils._rebuild_tensor_v2" and kind == "storage" and type(storage) is Persistent
            good &= storage_type.module == "torch" and storage_type.name in STORAGES and len(shape) == len(strides)
            good &= all(type(number) is int and number >= 0 for number in numbers) and member in self._members
            if good:
                return StoredTensor(STORAGES[storage_type.name], member, offset, tuple(shape), tuple(strides))
        except (AttributeError, TypeError, ValueError):
            pass
        raise FileFormatError(f"{self.where}: '{name}' is {kind_of(value)}, expected a dense tensor with its storage in the archive")

    def read(self, name: str, tensor: StoredTensor) -> np.ndarray:
        """A view of the tensor's storage, all of which is read (and its checksum verified)."""
        dtype, shape, strides = tensor.dtype, tensor.shape, tensor.strides
        try:
            values = np.frombuffer(self._archive.read(tensor.member), dtype)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise FileFormatError(f"{self.where}: the storage of {name} is damaged ({error})") from None
        last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= len(values):
            raise FileFormatError(f"{self.where}: {name} {list(shape)} reaches beyond its storage of {len(values):,} values")
        start = values[tensor.offset :]
        return np.lib.stride_tricks.as_strided(start, shape, [stride * dtype.itemsize for stride in strides], writeable=False)

    def close(self) -> None:
        self._archive.close()

    def _pickle(self) -> bytes:
        members = [info for info in self._archive.infolist() if info.filename.split("/")[1:] == ["data.pkl"]]
        if len(members) != 1:
            raise FileFormatError(f"{self.where} is a zip archive without (one) data.pkl: torch.save did not write it")
        self._folder = members[0].filename.split("/")[0]
        packed = [info.filename for info in self._archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if packed or members[0].file_size > MAX_PICKLE:
            raise FileFormatError(f"{self.where} is refused: torch.save compresses nothing and writes small pickles ({packed[:3]})")
        try:
            order = f"{self._folder}/byteorder"
            if order in self._archive.namelist() and self._archive.read(order) != b"little":
                raise FileFormatError(f"{self.where} was written on a big-endian machine, which is not supported")
            return self._archive.read(members[0])
        except zipfile.BadZipFile as error:
            raise FileFormatError(f"{self.where} is damaged: {error}") from None


def read_tensor(path: Path) -> np.ndarray:
    """The one tensor that `torch.save(tensor, path)` wrote. OSError, or FileFormatError where the file holds something else."""
    archive = TorchArchive(path)
    try:
        return archive.read("the tensor", archive.tensor("the content", archive.tree))
    finally:
        archive.close()


def kind_of(value: Any) -> str:
    """What a part of a tree is, in words."""
    if isinstance(value, Call):
        return f"a record of {value.function}"
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"
