"""Reading checkpoints: tensors are restored straight onto given shardings.

    WORKDIR/checkpoints/STEP/    params, ema, opt_state   tensors, read one item at a time
                                 index                    names, shapes and types of all tensors
                                 metadata, data           JSON: configuration, statistics, versions, ...; position of the data iterator
    WORKDIR/checkpoints/frozen/  frozen, index            the stage's frozen parameters, written once; an imported checkpoint stores
                                                          them as several items, whose files are shared with other work directories

One that is not complete is never read. `vpp_jax/training/checkpoint_writing.py` writes them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from vpp_jax.common.config_tree import build
from vpp_jax.common.errors import VppError
from vpp_jax.common.host_memory import freed_at_once
from vpp_jax.config import LoRAConfig
from vpp_jax.functional import AbstractParams, Params
from vpp_jax.training.lora import adapters_of, merge
from vpp_jax.training.packing import PACK_UP_TO, packed_lengths, unpack

FROZEN = "frozen"
COMMITTED = "commit_success.txt"  # Orbax writes it last; on buckets, which cannot rename, its presence marks a complete directory
BROADCAST_BYTES = 1 << 30  # per device and broadcast, where one replica reads for all


class CheckpointError(VppError):
    """A checkpoint that does not exist, or does not contain the requested parameters."""


def load_params(
    directory: str | Path,
    abstract: AbstractParams,
    shardings: Mapping[str, Sharding] | None = None,
    *,
    item: str = "ema",
    step: int | str = "latest",
    stage: str | None = None,
) -> Params:
    """Parameters of a trained stage, placed on `shardings` (default: the first device) with the types of `abstract`.

    Opens only `item` ('ema' or 'params'; 'ema' means 'params' if the run stored no EMA) and, for names it does not contain, the stage's
    frozen parameters. Tensors that `abstract` does not name are not read, except low-rank adapters of kernels that it names: those are
    merged.

    Args:
      directory: a work directory, its `checkpoints`, or one checkpoint.
      abstract: names, shapes and types to load.
      stage: the stage that must have written it.
    """
    path = locate(directory, step)
    if stage is not None:
        check_stage(directory, read_metadata(directory, step), stage)
    index = read_index(path)
    item = "params" if item == "ema" and "ema" not in index else item
    if item not in index:
        raise CheckpointError(f"{path} has no item '{item}' (has {', '.join(index)})")
    frozen_path, frozen = path.parent / FROZEN, _frozen_index(path)
    own = {name for name in abstract if name in index[item]}
    rest = abstract.keys() - own
    found = {name: entry for entries in frozen.values() for name, entry in entries.items() if name in rest}
    report = compare(found | index[item], abstract)
    if report.missing or report.wrong_shape:
        raise CheckpointError(f"{path} ({item}) does not contain the requested parameters. {report}")
    placed = on_device(abstract, shardings)
    params = read_tensors(path, item, index[item], {name: placed[name] for name in own})
    for frozen_item, entries in frozen.items():
        params |= read_tensors(frozen_path, frozen_item, entries, {name: placed[name] for name in rest if name in entries})
    pairs = {kernel: names for kernel, names in adapters_of(index[item]).items() if kernel in abstract}
    if pairs:
        unsharded = {name: _unsharded(index[item][name], placed[kernel].sharding) for kernel, names in pairs.items() for name in names}
        scale = build(LoRAConfig, read_document(path, "metadata")["config"]["lora"]).scale
        kernels = {kernel: params[kernel] for kernel in pairs}
        merging = jax.jit(merge, static_argnums=1, out_shardings={kernel: placed[kernel].sharding for kernel in pairs})
        params |= merging(kernels | read_tensors(path, item, index[item], unsharded), scale)
    return {name: params[name] for name in abstract}


def _unsharded(entry: list, like: Sharding) -> jax.ShapeDtypeStruct:
    """A tensor of an index, replicated on the devices of `like`."""
    sharding = NamedSharding(like.mesh, PartitionSpec()) if isinstance(like, NamedSharding) else like
    return jax.ShapeDtypeStruct(tuple(entry[0]), entry[1], sharding=sharding)


def list_tensors(directory: str | Path, *, item: str = "ema", step: int | str = "latest") -> AbstractParams:
    """Everything that `load_params` can load with this `item`, in the types of the files."""
    path = locate(directory, step)
    index = read_index(path)
    parts = [*_frozen_index(path).values(), index[item if item in index else "params"]]
    return {name: jax.ShapeDtypeStruct(tuple(shape), kind) for entries in parts for name, (shape, kind) in entries.items()}


def read_metadata(directory: str | Path, step: int | str = "latest") -> dict[str, Any]:
    """The metadata of a checkpoint: stage, step, config, config_hash, data, statistics_hash, versions, ..., and what the stage added."""
    return read_document(locate(directory, step), "metadata")


def check_stage(directory: str | Path, metadata: Mapping[str, Any], stage: str) -> None:
    if metadata["stage"] != stage:
        hint = f"; set --config.init.{stage} to a work directory of stage {stage}" if stage in ("vae", "video", "policy") else ""
        raise CheckpointError(f"{directory} holds stage {metadata['stage']}, expected {stage}{hint}")


def locate(directory: str | Path, step: int | str = "latest") -> epath.Path:
    """The directory of one complete checkpoint."""
    root = absolute(directory)
    if not root.exists():
        raise CheckpointError(f"checkpoint directory {directory} does not exist")
    if (root / "metadata").exists() and (root / COMMITTED).exists():
        return root
    folder = root / "checkpoints" if (root / "checkpoints").exists() else root
    steps = complete_steps(folder)
    if not steps:
        raise CheckpointError(
            f"{directory} is not a checkpoint: expected a work directory with a complete checkpoints/STEP, or such a directory itself"
        )
    if step == "latest":
        return folder / str(steps[-1])
    if step not in steps:
        raise CheckpointError(f"{directory} has no checkpoint of step {step} (has {', '.join(map(str, steps))})")
    return folder / str(step)


def absolute(directory: str | Path | epath.Path) -> epath.Path:
    """A local directory as an absolute path; a URL stays one (`epath` would put it below the working directory)."""
    try:
        path = epath.Path(directory)
        return path if in_bucket(path) else path.expanduser().absolute()
    except (KeyError, ValueError, RuntimeError) as error:  # a scheme or a user that there is not
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{directory} is no place of checkpoints ({reason}): name a local path, or a folder in a gs:// bucket"
        ) from None


def in_bucket(path: epath.Path) -> bool:
    return "://" in str(path)


def complete_steps(folder: Path | epath.Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    if not folder.exists():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit() and (entry / COMMITTED).exists())


# --- names and shapes against the model ---------------------------------------------------------------------------------------------


class TensorReport:
    """Three lists: names missing from a checkpoint, names the model does not have, and shapes that differ."""

    def __init__(self, missing: list[str], unexpected: list[str], wrong_shape: list[str]):
        self.missing, self.unexpected, self.wrong_shape = missing, unexpected, wrong_shape

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lists = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.wrong_shape))
        return "; ".join(f"{len(names)} {title}{': ' if names else ''}{_some(names)}" for title, names in lists)


def compare(index: Mapping[str, list], wanted: Mapping[str, Any]) -> TensorReport:
    """A checkpoint's index against name -> array or ShapeDtypeStruct."""
    shapes = {name: tuple(entry[0]) for name, entry in index.items()}
    differ = {name: value.shape for name, value in wanted.items() if shapes.get(name, value.shape) != value.shape}
    wrong = [f"{name} {shapes[name]}, expected {shape}" for name, shape in differ.items()]
    return TensorReport(sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys()), sorted(wrong))


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


# --- tensors ------------------------------------------------------------------------------------------------------------------------


def read_document(path: epath.Path, name: str) -> Any:
    if not (path / name).exists():
        raise CheckpointError(f"{path} has no '{name}': it was not written by vpp_jax")
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        return reader.restore(path, args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]
    except ValueError as error:
        raise CheckpointError(f"{path}: '{name}' is damaged ({error})") from error


def read_index(path: epath.Path) -> dict[str, dict[str, list]]:
    return read_document(path, "index")


def _frozen_index(path: epath.Path) -> dict[str, dict[str, list]]:
    """Item -> its index, of the frozen parameters stored next to checkpoint `path`."""
    folder = path.parent / FROZEN
    return read_index(folder) if (folder / COMMITTED).exists() else {}


def on_device(abstract: Mapping[str, Any], shardings: Mapping[str, Sharding] | None) -> dict[str, jax.ShapeDtypeStruct]:
    if shardings is None:
        shardings = dict.fromkeys(abstract, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return {name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name]) for name, value in abstract.items()}


def read_tensors(path: epath.Path, item: str, index: Mapping[str, list], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """The tensors `wanted` of one item, each straight onto its sharding.

    Where the rows of the mesh hold the same tensors, the processes of the first row read them and the others get a sum in which they add
    zeros: bit for bit the same, but for the sign of a zero.
    """
    large = {name: spec for name, spec in wanted.items() if spec.size > PACK_UP_TO}
    kinds = {index[name][1] for name, spec in wanted.items() if spec.size <= PACK_UP_TO}
    vectors = {kind: np.empty(length, kind) for kind, length in packed_lengths(index).items() if kind in kinds}
    tree = {group: value for group, value in (("large", large), ("packed", vectors)) if value}
    if not tree:
        return {}
    restore_args = ocp.checkpoint_utils.construct_restore_args(tree)
    in_flight: Any = _in_flight(index, wanted) / 1e9  # Orbax says int, and takes fractions of a gigabyte
    options: dict[str, Any] = {"restore_concurrent_gb": in_flight}
    if one_replica_reads([spec.sharding for spec in large.values()]):
        restore_args["large"] = {
            name: ocp.type_handlers.SingleReplicaArrayRestoreArgs(sharding=spec.sharding, global_shape=spec.shape, dtype=spec.dtype)
            for name, spec in large.items()
        }
        broadcasting = ocp.type_handlers.SingleReplicaArrayHandler(replica_axis_index=0, broadcast_memory_limit_bytes=BROADCAST_BYTES)
        options["type_handler_registry"] = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, broadcasting), (np.ndarray, ocp.type_handlers.NumpyHandler())
        )
    arguments = ocp.args.PyTreeRestore(tree, restore_args=restore_args, partial_restore=True)
    handlers: dict[str, Any] = {item: ocp.PyTreeCheckpointHandler(**options)}
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))
    with freed_at_once():
        restored = reader.restore(path, args=ocp.args.Composite(**{item: arguments}))[item]
    packed = {kind: np.asarray(vector) for kind, vector in restored.get("packed", {}).items()}
    small = unpack({name: entry for name, entry in index.items() if entry[1] in kinds}, packed, wanted.keys() - large.keys())
    cast = {name: value.astype(wanted[name].dtype) for name, value in small.items()}
    params = restored.get("large", {}) | place(cast, {name: wanted[name].sharding for name in cast})
    return {name: params[name] for name in wanted}


def one_replica_reads(shardings: Sequence[Sharding]) -> bool:
    """Whether the processes of the first row of the mesh can read for all: every row has all tensors, and no process is in two of them."""
    first = shardings[0] if shardings else None
    if jax.process_count() == 1 or not isinstance(first, NamedSharding) or not isinstance(first.mesh, Mesh):
        return False
    readers, *others = ({device.process_index for device in row.flat} for row in first.mesh.devices)
    split = {name for one in shardings if isinstance(one, NamedSharding) for part in one.spec for name in np.atleast_1d(part)}
    alike = all(isinstance(one, NamedSharding) and one.mesh == first.mesh for one in shardings)
    return alike and bool(others) and first.mesh.axis_names[0] not in split and readers.isdisjoint(set().union(*others))


def _in_flight(index: Mapping[str, list], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> float:
    """Bytes that may be read concurrently: a sixteenth of what this process restores, at least the largest array unsharded, since an array
    is read in the chunks in which it was written."""

    def bytes_of(name: str, shape: tuple[int, ...]) -> float:
        return np.dtype(index[name][1]).itemsize * float(np.prod(shape))

    local = sum(
        bytes_of(name, spec.sharding.shard_shape(spec.shape)) * len(spec.sharding.addressable_devices) for name, spec in wanted.items()
    )
    packed = sum(np.dtype(kind).itemsize * length for kind, length in packed_lengths(index).items())
    return (1 << 20) + max(local / 16, packed, *(bytes_of(name, spec.shape) for name, spec in wanted.items()))


def place(values: Mapping[str, np.ndarray], shardings: Mapping[str, Sharding]) -> Params:
    """Host arrays, equal on every process, onto their shardings; copied, since the training step donates its arguments."""
    names = list(values)
    if jax.process_count() == 1:
        return dict(zip(names, jax.device_put([values[n] for n in names], [shardings[n] for n in names], may_alias=False), strict=True))
    return {name: jax.make_array_from_callback(values[name].shape, shardings[name], lambda part, n=name: values[n][part]) for name in names}
