"""Writing the checkpoints of a run, resuming from them, and deleting them; a facade over Orbax.

Orbax's CheckpointManager writes steps, under a temporary name until they are complete, and moves old ones to `removed/` (a rename, which
no kill interrupts) before their files go. In a bucket, where nothing is renamed, the mark of a complete directory is written last and
deleted first. What a killed process left is removed at the next start. `vpp_jax/training/checkpoints.py` describes the directories.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Sharding
from orbax.checkpoint.checkpoint_managers import PreservationContext

from vpp_jax.functional import AbstractParams, Params
from vpp_jax.training.checkpoints import (
    COMMITTED,
    FROZEN,
    CheckpointError,
    absolute,
    compare,
    complete_steps,
    in_bucket,
    on_device,
    place,
    read_document,
    read_index,
    read_tensors,
)
from vpp_jax.training.packing import PACK_UP_TO, flatten, index_of, pack, unflatten
from vpp_jax.training.state import TrainState

SCHEMA_VERSION = 1
ITEMS = ("params", "ema", "opt_state")
_REMOVED = "removed"


class Checkpoints:
    """The checkpoints of one run. Saving is asynchronous: it returns once the state is copied (`wait` and `close` block on the files).

    Args:
      max_to_keep: checkpoints that are kept, the newest ones.
      keep_period: those of multiples of this step are also kept; 0: none.
      best: the best of the given steps, which is also kept; None if that is not known. Orbax's own metrics would have to be given when a
        checkpoint is written, which is before it is evaluated. In a bucket only process 0 calls it.
    """

    def __init__(self, directory: str | Path, max_to_keep: int, keep_period: int = 0, best: "BestStep" = lambda steps: None):
        self._folder = absolute(directory)
        self._keep = _KeepComplete(self._folder, max_to_keep, keep_period, best)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if in_bucket(self._folder) else self._keep,  # None keeps all
                todelete_subdir=_REMOVED,
                save_root_metadata=False,
                lightweight_initialize=True,
            ),
        )
        self._frozen_writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())  # what is no step is not the manager's
        if jax.process_index() == 0:
            # the manager's own clean-up runs in the background, and would take the directory in which `save_frozen` is writing
            for unfinished in ocp.path.step.all_temporary_paths(self._folder):
                unfinished.get().rmtree()
        self._finish_deleting()

    def latest(self) -> int | None:
        return max(complete_steps(self._folder), default=None)

    def metadata(self, step: int) -> dict[str, Any]:
        return read_document(self._folder / str(step), "metadata")

    def data_state(self, step: int) -> Any:
        return read_document(self._folder / str(step), "data")["state"]

    def save(self, step: int, state: TrainState[jax.Array], metadata: Mapping[str, Any], data_state: Any) -> None:
        """Writes checkpoint `step`, after the previous one is complete."""
        self.wait()
        trees = {name: flatten(getattr(state, name)) for name in ITEMS}
        document = {"schema_version": SCHEMA_VERSION, "step": step, **metadata}
        documents = {"metadata": document, "data": {"state": data_state}, "index": _index_of(trees)}
        self._manager.save(step, args=_save_arguments(trees, documents), force=True)

    def restore(self, step: int, abstract: TrainState[jax.ShapeDtypeStruct], shardings: TrainState[Any]) -> TrainState[jax.Array]:
        """The state of `step`. CheckpointError with all three lists if anything is missing, unexpected or of another shape."""
        path = self._folder / str(step)
        index, items = read_index(path), {}
        for name in ITEMS:
            wanted = flatten(getattr(abstract, name))
            report = compare(index.get(name, {}), wanted)
            if report:
                raise CheckpointError(f"{path} ({name}) does not fit the configured model. {report}")
            placed = on_device(wanted, flatten(getattr(shardings, name)))
            items[name] = unflatten(getattr(abstract, name), read_tensors(path, name, index[name], placed) if wanted else {})
        return TrainState(step=place({"step": np.array(step, np.int32)}, {"step": shardings.step})["step"], **items)

    def save_frozen(self, params: Params) -> None:
        """Replaces the frozen parameters."""
        self.wait()
        if (self._folder / FROZEN).exists() and jax.process_index() == 0:
            if in_bucket(self._folder):
                _delete_from_bucket(self._folder / FROZEN)
            else:
                (self._folder / _REMOVED).mkdir(exist_ok=True)
                (self._folder / FROZEN).rename(self._folder / _REMOVED / FROZEN)
            self._finish_deleting()
        if params:
            trees = {FROZEN: params}
            self._frozen_writer.save(self._folder / FROZEN, args=_save_arguments(trees, {"index": _index_of(trees)}))

    def restore_frozen(self, abstract: AbstractParams, shardings: Mapping[str, Sharding]) -> Params | None:
        """What `save_frozen` wrote; None if nothing, or parameters of other names or shapes, was written."""
        path = self._folder / FROZEN
        if not (path / COMMITTED).exists():
            return None
        index = read_index(path).get(FROZEN, {})
        return None if compare(index, abstract) else read_tensors(path, FROZEN, index, on_device(abstract, shardings))

    def wait(self) -> None:
        """Blocks until every save is complete on disk, then deletes the checkpoints that are no longer kept."""
        self._frozen_writer.wait_until_finished()
        self._manager.wait_until_finished()
        self._finish_deleting()

    def close(self) -> None:
        self.wait()
        self._frozen_writer.close()
        self._manager.close()

    def _finish_deleting(self) -> None:
        if jax.process_index() != 0:
            return
        if in_bucket(self._folder):
            for step in self._keep.superseded():
                _delete_from_bucket(self._folder / str(step))
        elif (self._folder / _REMOVED).exists():
            (self._folder / _REMOVED).rmtree()


def _delete_from_bucket(path: epath.Path) -> None:
    """Deletes a directory object by object, and first what marks it as complete."""
    (path / COMMITTED).unlink(missing_ok=True)
    path.rmtree()


BestStep = Callable[[Sequence[int]], int | None]


@dataclass(frozen=True)
class _KeepComplete:
    """Which checkpoints are kept, as Orbax asks for it; see `Checkpoints`.

    Over complete ones: on a mounted bucket a directory has its name before it is complete.
    """

    folder: epath.Path
    newest: int
    period: int
    best: BestStep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: PreservationContext) -> Sequence[bool]:
        """`checkpoints`: Orbax's PolicyCheckpointInfo of those before, and last of the one that is being written."""
        complete = sorted({*complete_steps(self.folder), checkpoints[-1].step})
        kept = self._kept(complete)
        return [info.step in kept or info.step not in complete for info in checkpoints]

    def superseded(self) -> list[int]:
        """Complete checkpoints that are not kept."""
        complete = complete_steps(self.folder)
        kept = self._kept(complete)
        return [step for step in complete if step not in kept]

    def _kept(self, complete: Sequence[int]) -> set[int | None]:
        return {*complete[-self.newest :], self.best(complete), *(step for step in complete if self.period and step % self.period == 0)}


# --- writing imported parameters ----------------------------------------------------------------------------------------------------


def write_imported(folder: str | Path, trees: Mapping[str, Params], linked: Mapping[str, str | Path], documents: Mapping[str, Any]) -> None:
    """Writes one directory, `checkpoints/0` or `checkpoints/frozen`, and returns when it is complete.

    Args:
      trees: item -> parameters. Orbax copies what it is writing: by default everything at once, here at most a sixteenth of an item.
      linked: item -> directory of an item of another checkpoint, whose files are shared (hard links, or copies if those fail).
      documents: name -> JSON.
    """
    target = absolute(folder)
    index = _index_of(trees)
    for name, other in linked.items():
        index[name] = read_index(epath.Path(other).parent)[epath.Path(other).name]
    documents = {**documents, "index": index}
    handlers: dict[str, Any] = {}
    for name, leaves in trees.items():
        sizes = [value.nbytes for value in leaves.values()]
        packed = sum(value.nbytes for value in leaves.values() if value.size <= PACK_UP_TO)
        in_flight: Any = (1 << 20) + max(sum(sizes) / 16, packed, *sizes)  # more than any single array; Orbax says int, and takes fractions
        handlers[name] = ocp.PyTreeCheckpointHandler(save_concurrent_gb=in_flight / 1e9)
    handlers |= {name: ocp.JsonCheckpointHandler() for name in documents}
    ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)).save(target, args=_save_arguments(trees, documents))
    for name, other in linked.items():
        shutil.copytree(other, target / name, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _index_of(trees: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list]]:
    return {name: index_of(leaves) for name, leaves in trees.items() if leaves}


def _save_arguments(trees: Mapping[str, Mapping[str, Any]], documents: Mapping[str, Any]) -> ocp.args.Composite:
    items = {name: ocp.args.PyTreeSave(pack(leaves)) for name, leaves in trees.items() if leaves}
    return ocp.args.Composite(**items, **{name: ocp.args.JsonSave(document) for name, document in documents.items()})
