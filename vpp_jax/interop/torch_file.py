"""PyTorch's own files (`torch.save`, zip archives), read without PyTorch and without running their pickle.

The pickle is read as data (`inert_pickle`) and may only name what `ALLOWED` lists. Tensors are then cut out of the archive's storages.
"""

import struct
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vpp_jax.interop.inert_pickle import Call, Global, Persistent, read_pickle
from vpp_jax.interop.safetensors_file import FileFormatError

STORAGES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in (
        ("FloatStorage", np.float32), ("HalfStorage", np.float16), ("BFloat16Storage", ml_dtypes.bfloat16), ("DoubleStorage", np.float64),
        ("LongStorage", np.int64), ("IntStorage", np.int32), ("ShortStorage", np.int16), ("CharStorage", np.int8),
        ("ByteStorage", np.uint8), ("BoolStorage", np.bool_),
    )
}  # fmt: skip
# module -> names that a weight file may mention. None of them is ever looked up: they stand for tensors, and for the containers and
# plain values of an OmegaConf configuration. (`__builtin__` is how pickles of protocol 2 spell `builtins`.)
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
MAX_NODES = 100_000  # values of a configuration


class TorchFile:
    """The tensors of one file; those of a dict below `model` where there is one, else of the file's own dict.

    Attributes:
      arguments: the dict's `args` as plain values, None where there are none.
    """

    def __init__(self, path: Path):
        self.where = str(path)
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise FileFormatError(
                f"{path} is not a zip archive as torch.save has written since PyTorch 1.6 ({error}): it is cut off, of the old format, or "
                "something else. Where PyTorch is installed, write it again: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)"
            ) from None
        tree = read_pickle(self._pickle(), lambda name: name.name in ALLOWED.get(name.module, ()), self.where)
        root = _mapping(tree)
        if root is None:
            raise FileFormatError(f"{path} holds {_kind(tree)}, expected a dict of tensors, or one that has it as 'model'")
        model = _mapping(root["model"]) if "model" in root else root
        if not model:
            raise FileFormatError(f"{path}: 'model' is empty or no dict of tensors")
        self.arguments = plain(root["args"], self.where) if "args" in root else None
        self._members = frozenset(self._archive.namelist())
        self._parts = {str(name): self._tensor(str(name), value) for name, value in model.items()}

    @cached_property
    def tensors(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(shape, STORAGES[storage]) for name, (storage, _, _, shape, _) in self._parts.items()}

    def read(self, name: str) -> np.ndarray:
        """A view of the tensor's storage, which is read (and its checksum verified) as a whole."""
        storage, member, offset, shape, strides = self._parts[name]
        dtype = STORAGES[storage]
        try:
            values = np.frombuffer(self._archive.read(member), dtype)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise FileFormatError(f"{self.where}: the storage of {name} is damaged ({error})") from None
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= len(values):
            raise FileFormatError(f"{self.where}: {name} {list(shape)} reaches beyond its storage of {len(values):,} values")
        return np.lib.stride_tricks.as_strided(values[offset:], shape, [stride * dtype.itemsize for stride in strides], writeable=False)

    # --- the archive --------------------------------------------------------------------------------------------------------------

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

    def _tensor(self, name: str, value: Any) -> tuple[str, str, int, tuple[int, ...], tuple[int, ...]]:
        """(storage type, archive member, offset, shape, strides), the last three in elements."""
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
        except (AttributeError, TypeError, ValueError):
            good = False
        if not good:
            raise FileFormatError(f"{self.where}: '{name}' is {_kind(value)}, expected a dense tensor with its storage in the archive")
        return storage_type.name, member, offset, tuple(shape), tuple(strides)


# --- the tree -----------------------------------------------------------------------------------------------------------------------


def plain(value: Any, where: str) -> Any:
    """An OmegaConf configuration, or nested dicts and lists, as plain values. Interpolations stay the texts they are."""
    budget = [MAX_NODES]

    def convert(value: Any, depth: int) -> Any:
        budget[0] -= 1
        if budget[0] < 0 or depth > 64:
            raise FileFormatError(f"{where}: the configuration 'args' is too large or refers to itself")
        if isinstance(value, Call) and isinstance(value.state, dict):
            for content in ("_content", "_val"):  # containers; leaves
                if content in value.state:
                    return convert(value.state[content], depth + 1)
        mapping = _mapping(value)
        if mapping is not None:
            return {str(name): convert(entry, depth + 1) for name, entry in mapping.items()}
        if isinstance(value, list | tuple):
            return [convert(entry, depth + 1) for entry in value]
        return value if value is None or isinstance(value, bool | int | float | str) else _kind(value)

    return convert(value, 0)


def _mapping(value: Any) -> dict | None:
    """A dict, or the items of an ordered one; None for anything else."""
    if isinstance(value, Call) and value.function in (Global("collections", "OrderedDict"), Global("collections", "defaultdict")):
        return value.items
    return value if isinstance(value, dict) else None


def _kind(value: Any) -> str:
    if isinstance(value, Call):
        return f"a record of {value.function}"
    return str(value) if isinstance(value, Global) else f"a {type(value).__name__}"
