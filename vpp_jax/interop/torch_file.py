"""PyTorch weight files: a dict of tensors, in some files together with a configuration."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.inert_pickle import Call, Global
from vpp_jax.common.torch_archive import TorchArchive, kind_of

STATE_DICTS = ("model", "state_dict", "model_state_dict", "module")  # where trainers put the tensors
MAX_NODES = 100_000  # values of a configuration


class TorchFile:
    """The tensors of one file: those of its dict `model` (or another of `STATE_DICTS`) if there is one, else of the file's own dict.

    Attributes:
      arguments: the dict's `args` as JSON values, None if there are none.
    """

    def __init__(self, path: Path):
        self.where = str(path)
        self._archive = TorchArchive(path)
        tree = self._archive.tree
        root = _mapping(tree)
        if root is None:
            raise FileFormatError(f"{path} holds {kind_of(tree)}, expected a dict of tensors, or a dict with one as 'model'")
        key = next((key for key in STATE_DICTS if key in root), None)
        model = root if key is None else _mapping(root[key])
        if not model:
            raise FileFormatError(f"{path}: {key or 'the dict'} is empty or not a dict of tensors")
        self.arguments = to_jsonable(root["args"], self.where) if "args" in root else None
        self._parts = {str(name): self._archive.tensor(str(name), value) for name, value in model.items()}
        self.tensors = {name: jax.ShapeDtypeStruct(part.shape, part.dtype) for name, part in self._parts.items()}

    def read(self, name: str) -> np.ndarray:
        """A view of the tensor's storage, all of which is read (and its checksum verified)."""
        return self._archive.read(name, self._parts[name])


def to_jsonable(value: Any, where: str) -> Any:
    """An OmegaConf configuration, or nested dicts and lists, as JSON values. Interpolations remain strings."""
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
        return value if value is None or isinstance(value, bool | int | float | str) else kind_of(value)

    return convert(value, 0)


def _mapping(value: Any) -> dict | None:
    """A dict, or the items of an ordered one; None for anything else."""
    if isinstance(value, Call) and value.function in (Global("collections", "OrderedDict"), Global("collections", "defaultdict")):
        return value.items
    return value if isinstance(value, dict) else None
