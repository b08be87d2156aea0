"""Small tensors joined into one vector per type before they are saved.

A checkpoint pays a fixed price per array (about 2 ms of CPU time in Orbax 0.12), and models have hundreds of tensors of a few
kilobytes, four times over with EMA and optimizer state. What is packed depends only on sizes, so a checkpoint is the same on any mesh.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Elements; 1 MiB of float32. Larger tensors are saved one by one, from and to their shards.
PACK_UP_TO = 1 << 18

Flat = Mapping[str, Any]  # name -> jax.Array, np.ndarray or ShapeDtypeStruct


def flatten(tree: Any) -> dict[str, Any]:
    """{path: leaf} of any tree; the path of a flat dict's entry is its key."""
    return {jax.tree_util.keystr(path, simple=True, separator="|"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(tree: Any, leaves: Flat) -> Any:
    """`tree` with its leaves replaced by those of `leaves`; the inverse of `flatten`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[jax.tree_util.keystr(path, simple=True, separator="|")], tree)


def index_of(leaves: Flat) -> dict[str, list]:
    """JSON: name -> [shape, type], in the order in which small tensors are packed."""
    return {name: [list(leaves[name].shape), str(leaves[name].dtype)] for name in sorted(leaves)}


def pack(leaves: Flat) -> dict[str, dict[str, Any]]:
    """{'large': {name: array}, 'packed': {type: vector}}; empty groups are absent. Vectors are copies in host memory."""
    small = {name: leaves[name] for name in sorted(leaves) if leaves[name].size <= PACK_UP_TO}
    spread = {name: value for name, value in small.items() if isinstance(value, jax.Array) and not value.is_fully_replicated}
    if spread:
        sharding = next(iter(spread.values())).sharding
        assert isinstance(sharding, NamedSharding)
        small |= jax.jit(lambda values: values, out_shardings=NamedSharding(sharding.mesh, P()))(spread)
    parts: dict[str, list[np.ndarray]] = {}
    for value in jax.device_get(list(small.values())):
        parts.setdefault(str(value.dtype), []).append(np.ravel(value))
    packed = {kind: np.concatenate(values) for kind, values in parts.items()}
    large = {name: value for name, value in leaves.items() if name not in small}
    return {group: value for group, value in (("large", large), ("packed", packed)) if value}


def packed_lengths(index: Mapping[str, list]) -> dict[str, int]:
    """Type -> length of its vector."""
    lengths: dict[str, int] = {}
    for shape, kind in index.values():
        if np.prod(shape, dtype=np.int64) <= PACK_UP_TO:
            lengths[kind] = lengths.get(kind, 0) + int(np.prod(shape, dtype=np.int64))
    return lengths


def unpack(index: Mapping[str, list], packed: Mapping[str, np.ndarray], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The small tensors among `names`, cut out of their vectors."""
    wanted, found, position = set(names), {}, dict.fromkeys(packed, 0)
    for name, (shape, kind) in index.items():
        size = int(np.prod(shape, dtype=np.int64))
        if size > PACK_UP_TO:
            continue
        if name in wanted:
            start = position[kind]
            found[name] = packed[kind][start : start + size].reshape(shape)
        position[kind] += size
    return found
