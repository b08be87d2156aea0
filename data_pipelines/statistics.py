"""Mean, standard deviation and quantiles of actions and proprio, computed from those columns only: no image is decoded.

Always of the training split. Stored as one JSON file; checkpoints contain its hash, so that a model is never used with the statistics of
another dataset.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from data_pipelines import storage
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.standardise import Composition
from data_pipelines.partial_stats import PartialStats
from data_pipelines.rlds.dataset import Episode, RLDSDataset
from data_pipelines.rlds.index import LARGE, index_path
from data_pipelines.rlds.schema import Schema
from data_pipelines.running_stats import RunningStats
from data_pipelines.storage import Location
from data_pipelines.transforms import Normalizer

SCHEMA_VERSION = 2
T = TypeVar("T")
Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColumnStatistics:
    """Statistics per dimension of one column over `count` steps. `quantiles`: one row for each of `quantile_levels`."""

    key: str
    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, key: str, stats: RunningStats, levels: Sequence[float]) -> "ColumnStatistics":
        rows = {name: tuple(map(float, row)) for name, row in stats.summary().items()}
        return cls(key, stats.count, **rows, quantiles=tuple(tuple(map(float, row)) for row in stats.quantiles(levels)))

    @classmethod
    def from_json(cls, tree: dict) -> "ColumnStatistics":
        rows = {name: tuple(tree[name]) for name in ("mean", "std", "min", "max")}
        return cls(tree["key"], tree["count"], **rows, quantiles=tuple(map(tuple, tree["quantiles"])))


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of one dataset. `columns` has 'action' and, if the dataset has a robot state, 'proprio'.

    Attributes:
      fingerprint: of the record index; a different one means that the shards have changed.
      first_step: earlier steps are not included.
      quantile_levels: the two quantiles that normalisation 'quantile' maps to -1 and 1.
      skipped: bad records that were skipped.
    """

    dataset: str
    version: str
    split: str
    episodes: int
    steps: int
    first_step: int
    quantile_levels: tuple[float, float]
    fingerprint: str
    columns: dict[str, ColumnStatistics]
    skipped: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of everything a model depends on (not of the fingerprint and the skipped records)."""
        tree = asdict(self)
        del tree["fingerprint"], tree["skipped"]
        return hashlib.sha256(json.dumps({"schema_version": SCHEMA_VERSION, **tree}, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict:
        return json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self), "hash": self.hash}))

    @classmethod
    def from_json(cls, tree: dict) -> "DatasetStatistics":
        """KeyError or TypeError if `tree` is something else; DataError if its hash does not match its numbers."""
        values = {name: tree[name] for name in ("dataset", "version", "split", "episodes", "steps", "first_step", "fingerprint")}
        columns = {name: ColumnStatistics.from_json(column) for name, column in tree["columns"].items()}
        made = cls(**values, quantile_levels=tuple(tree["quantile_levels"]), columns=columns, skipped=tuple(tree["skipped"]))
        if tree["hash"] != made.hash:
            raise DataError(
                f"statistics of {made.dataset}: hash {tree['hash'][:12]} does not match the numbers ({made.hash[:12]}), "
                "so the file was edited"
            )
        return made

    def action_normalizer(self, spec: RobotSpec) -> Normalizer:
        """Normalises actions as `spec` says."""
        return _normalizer(spec.normalization, self.columns["action"], spec.normalized or None)

    def proprio_normalizer(self) -> Normalizer:
        """Mean and standard deviation; of width 0 if the dataset has no robot state."""
        return _normalizer("mean_std", self.columns["proprio"], None) if "proprio" in self.columns else Normalizer.identity(0)


def _normalizer(kind: str, column: ColumnStatistics, mask: tuple[bool, ...] | None) -> Normalizer:
    if kind == "mean_std":
        return Normalizer.mean_std(column.mean, column.std, mask)
    if kind == "quantile":
        low, high = column.quantiles
        return Normalizer.quantile(low, high, mask)
    return Normalizer.identity(len(column.mean))


def compute(dataset: RLDSDataset, spec: RobotSpec, on_bad_record: str = "fail", progress: Progress | None = None) -> DatasetStatistics:
    """One pass over the action and proprio columns of every episode, in the memory of `RunningStats`."""
    return _finished(dataset, spec, partial_statistics(dataset, spec, range(len(dataset)), on_bad_record, progress))


def partial_statistics(
    dataset: RLDSDataset,
    spec: RobotSpec,
    episodes: range,
    on_bad_record: str = "fail",
    progress: Progress | None = None,
    workers: int = 8,
) -> PartialStats:
    """Statistics of the action and proprio columns of `episodes`.

    Args:
      progress: called with (episodes done, episodes).
      workers: reader threads; the result does not depend on their number.
    """
    if not spec.action:
        raise DataError(
            f"{dataset.directory}: the description of '{spec.name}' has no actions, so it has no statistics; stages vae and video need none"
        )
    if problems := column_problems(dataset.schema, spec):
        raise DataError(f"{dataset.directory}: {'; '.join(problems)}. Choose a matching dataset or description")
    made = PartialStats()
    if progress is not None:
        progress(0, len(episodes))
    for done, rows in enumerate(_in_order(lambda index: _rows(dataset, index, spec), episodes, workers), start=1):
        if progress is not None:
            progress(done, len(episodes))
        if not isinstance(rows, BadRecordError):
            made.add(rows)
        elif on_bad_record == "fail":
            raise rows
        else:
            made.skipped.append(f"{storage.name_of(rows.where)}: {rows.field}: {rows.problem}")
    return made


def column_problems(schema: Schema, spec: RobotSpec) -> list[str]:
    """What is wrong with the action and proprio columns of features.json: the check that inspection, statistics and training share."""
    found = []
    for key, parts, width in (
        (spec.action, spec.action_parts, spec.action_width),
        (spec.proprio, spec.proprio_parts, spec.proprio_width),
    ):
        if parts is not None:
            lacks = parts.problems(schema)
            found += [f"the description of '{spec.name}' reads columns that features.json lacks: {', '.join(lacks)}"] if lacks else []
        elif key and key not in schema.steps:
            found.append(f"no step field '{key}' in features.json (has {', '.join(sorted(schema.steps)) or 'none'})")
        elif key and (problem := schema.steps[key].why_no_vector()):
            found.append(f"field '{key}' {problem}")
        elif key and schema.steps[key].width != width:
            shape = list(schema.steps[key].shape)
            found.append(f"field '{key}' has shape {shape} in features.json, but the description of '{spec.name}' says [{width}]")
    return found


def _finished(dataset: RLDSDataset, spec: RobotSpec, partial: PartialStats) -> DatasetStatistics:
    if not partial.columns or not partial.columns["action"].count:
        raise DataError(f"{dataset.directory} split {dataset.split}: no usable step, so there are no statistics")
    columns = {name: ColumnStatistics.of(key, partial.columns[name], spec.quantiles) for name, key in _keys(spec).items()}
    return DatasetStatistics(
        dataset.name,
        dataset.version,
        dataset.split,
        partial.episodes,
        columns["action"].count,
        spec.first_step,
        spec.quantiles,
        dataset.fingerprint,
        columns,
        tuple(partial.skipped),
    )


def _keys(spec: RobotSpec) -> dict[str, str]:
    dropped = " (without the last step)" if spec.last_action == "dropped" else ""
    return {"action": spec.action + dropped} | ({"proprio": spec.proprio} if spec.proprio else {})


def _rows(dataset: RLDSDataset, index: int, spec: RobotSpec) -> dict[str, np.ndarray] | BadRecordError:
    """Actions and proprio of an episode, [steps, width] each, or the error of a bad record."""
    try:
        episode = dataset[index]
        rows = {"action": actions(episode, spec)[spec.first_step :]}
        if spec.proprio:
            rows["proprio"] = states(episode, spec)[spec.first_step :]
    except BadRecordError as error:
        return error
    return rows


def _in_order(read: Callable[[int], T], indices: range, workers: int) -> Iterator[T]:
    """`read` of each of `indices`, in order, prefetched by threads."""
    ahead: deque[Future] = deque()
    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="statistics") as pool:
        for index in indices:
            ahead.append(pool.submit(read, index))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def actions(episode: Episode, spec: RobotSpec) -> np.ndarray:
    """The actions of an episode as `spec` defines them, [steps, action_width]; a composed action may lack the last step."""
    made = finite(episode, spec.action) if spec.action_parts is None else _composed(episode, "action", spec.action_parts)
    return made[: max(len(episode) - spec.lost_steps, 0)]


def states(episode: Episode, spec: RobotSpec) -> np.ndarray:
    """The proprio of an episode as `spec` defines it, [steps, proprio_width]."""
    return finite(episode, spec.proprio) if spec.proprio_parts is None else _composed(episode, "proprio", spec.proprio_parts)


def _composed(episode: Episode, name: str, composition: Composition) -> np.ndarray:
    try:
        return composition.of(lambda key: finite(episode, key), len(episode))
    except BadRecordError:
        raise
    except ValueError as error:
        raise episode.bad(name, str(error)) from error


def finite(episode: Episode, key: str) -> np.ndarray:
    """Numeric column `key` [steps, width], the values of a step one after the other; BadRecordError if one is NaN or infinite."""
    if problem := episode.schema.step(key, episode.where).why_no_vector():
        raise episode.bad(key, problem)
    values = np.asarray(episode.column(key)).reshape(len(episode), -1)
    good = np.isfinite(values).all(1)
    if not good.all():
        raise episode.bad(key, f"NaN or infinite values at step {int(np.argmin(good))}")
    return values


def statistics_path(dataset: RLDSDataset, index_dir: Location | None = None) -> Location:
    """Path of the JSON file, next to the record index of the split."""
    return index_path(dataset.directory, dataset.split, index_dir, "statistics", ".json")


def save_partial(
    dataset: RLDSDataset,
    spec: RobotSpec,
    shard_index: int,
    num_shards: int,
    *,
    index_dir: Location | None = None,
    on_bad_record: str = "fail",
    progress: Progress | None = None,
) -> PartialStats:
    """Part `shard_index` of `num_shards` of the statistics, stored where `load_or_compute` merges all parts. OSError if that
    directory is not writable.
    """
    episodes = range(len(dataset) * shard_index // num_shards, len(dataset) * (shard_index + 1) // num_shards)
    made = partial_statistics(dataset, spec, episodes, on_bad_record, progress)
    storage.write(storage.join(_parts(dataset, index_dir), f"{shard_index:05d}-of-{num_shards:05d}.npz"), made.pack(_about(dataset, spec)))
    return made


def _parts(dataset: RLDSDataset, index_dir: Location | None) -> Location:
    return index_path(dataset.directory, dataset.split, index_dir, "statistics", ".parts")


def _about(dataset: RLDSDataset, spec: RobotSpec) -> dict:
    """What identifies the data: all parts must agree in it. The quantile levels are not included, since a histogram has all quantiles."""
    return {"fingerprint": dataset.fingerprint, "first_step": spec.first_step, "keys": _keys(spec)}


def _merged(dataset: RLDSDataset, spec: RobotSpec, directory: Location) -> PartialStats | None:
    """The merged parts in `directory`, if the parts of all hosts exist."""
    try:
        names = sorted(name for name in storage.list_files(directory) if name.endswith(".npz"))
    except FileNotFoundError:
        return None
    for hosts in {name.rpartition("-of-")[2] for name in names}:
        mine = [name for name in names if name.endswith(f"-of-{hosts}")]
        if len(mine) != int(hosts.removesuffix(".npz")):
            continue
        merged = PartialStats()
        for name in mine:
            part, about = PartialStats.unpack(storage.read(storage.join(directory, name)))
            if about != _about(dataset, spec):
                log.warning("%s belongs to other shards or columns; ignored", storage.join(directory, name))
                break
            merged.merge(part)
        else:
            return merged
    return None


def load_or_compute(
    dataset: RLDSDataset,
    spec: RobotSpec,
    *,
    index_dir: Location | None = None,
    on_bad_record: str = "fail",
    progress: Progress | None = None,
) -> DatasetStatistics:
    """The stored statistics if they match these shards; otherwise merged from the parts of several hosts or computed, and then stored."""
    path = statistics_path(dataset, index_dir)
    try:
        stored = DatasetStatistics.from_json(json.loads(storage.read(path)))
        keys = {name: column.key for name, column in stored.columns.items()}
        about = {"fingerprint": stored.fingerprint, "first_step": stored.first_step, "keys": keys}
        if about == _about(dataset, spec) and stored.quantile_levels == spec.quantiles:
            return stored
    except FileNotFoundError:
        pass
    except (KeyError, TypeError, ValueError) as error:
        log.warning("%s cannot be used (%s); recomputing the statistics", path, error)
    merged = _merged(dataset, spec, _parts(dataset, index_dir))
    if merged is not None:
        made = _finished(dataset, spec, merged)
    else:
        if dataset.num_bytes > LARGE and progress is None:
            log.warning(
                "%s: reading %.0f GB for the statistics; run `vpp data stats` once instead, before many hosts need them",
                dataset.directory,
                dataset.num_bytes / 1e9,
            )
        made = compute(dataset, spec, on_bad_record, progress)
    try:
        storage.write(path, json.dumps(made.to_json(), indent=1).encode())
        if merged is not None:
            storage.remove_dir(_parts(dataset, index_dir))
    except OSError as error:
        log.info("statistics of %s not stored (%s); set data.index_dir or --index_dir to store them", dataset.directory, error)
    return made
