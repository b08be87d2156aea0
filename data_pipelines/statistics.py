"""Mean, spread and quantiles of actions and robot states, from those columns alone: no picture is decoded.

Always of the training split. Kept as one JSON file whose hash travels with checkpoints, so that a model is never used with the
numbers of another dataset.
"""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.files import write_atomically
from data_pipelines.openx.registry import DatasetSpec
from data_pipelines.openx.standardise import Composition
from data_pipelines.rlds.dataset import Episode, RLDSDataset
from data_pipelines.rlds.index import index_path
from data_pipelines.transforms import Normalizer

SCHEMA_VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ColumnStatistics:
    """Per dimension of one column over `count` steps."""

    key: str
    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]

    @classmethod
    def of(cls, key: str, values: np.ndarray) -> "ColumnStatistics":
        """`values`: [steps, width]."""
        x = np.asarray(values, np.float64)
        low, high = np.quantile(x, (0.01, 0.99), axis=0)
        rows = {"mean": x.mean(0), "std": x.std(0), "min": x.min(0), "max": x.max(0), "q01": low, "q99": high}
        return cls(key, len(x), **{name: tuple(map(float, row)) for name, row in rows.items()})


@dataclass(frozen=True)
class DatasetStatistics:
    """Statistics of one dataset. `columns` has 'action' and, where the dataset has a state, 'proprio'.

    Attributes:
      fingerprint: of the record index they were computed from; another one means that the shards changed.
      first_step: steps before it were left out.
      skipped: records left out because they could not be used.
    """

    dataset: str
    version: str
    split: str
    episodes: int
    steps: int
    first_step: int
    fingerprint: str
    columns: dict[str, ColumnStatistics]
    skipped: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """SHA-256 of everything a model depends on (not of where the numbers were found)."""
        tree = asdict(self)
        del tree["fingerprint"], tree["skipped"]
        return hashlib.sha256(json.dumps({"schema_version": SCHEMA_VERSION, **tree}, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict:
        return json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self), "hash": self.hash}))

    @classmethod
    def from_json(cls, tree: dict) -> "DatasetStatistics":
        """KeyError or TypeError where `tree` is something else; DataError where its hash does not fit its numbers."""
        values = {name: tree[name] for name in ("dataset", "version", "split", "episodes", "steps", "first_step", "fingerprint")}
        columns = {name: ColumnStatistics(**{key: tuple(value) if isinstance(value, list) else value for key, value in column.items()})
                   for name, column in tree["columns"].items()}
        made = cls(**values, columns=columns, skipped=tuple(tree["skipped"]))
        if tree["hash"] != made.hash:
            raise DataError(f"statistics of {made.dataset}: hash {tree['hash'][:12]} does not fit the numbers ({made.hash[:12]}), "
                            "so the file was edited")
        return made

    def action_normalizer(self, spec: DatasetSpec) -> Normalizer:
        """How `spec` says its actions are scaled, with these numbers."""
        return _normalizer(spec.normalization, self.columns["action"], spec.normalized or None)

    def proprio_normalizer(self) -> Normalizer:
        """Mean and standard deviation; of width 0 where there is no state."""
        return _normalizer("mean_std", self.columns["proprio"], None) if "proprio" in self.columns else Normalizer.identity(0)


def _normalizer(kind: str, column: ColumnStatistics, mask: tuple[bool, ...] | None) -> Normalizer:
    if kind == "mean_std":
        return Normalizer.mean_std(column.mean, column.std, mask)
    return Normalizer.quantile(column.q01, column.q99, mask) if kind == "quantile" else Normalizer.identity(len(column.mean))


def compute(dataset: RLDSDataset, spec: DatasetSpec, on_bad_record: str = "fail") -> DatasetStatistics:
    """One pass over the action and state columns of every episode."""
    keys = {"action": spec.action_key} | ({"proprio": spec.proprio_key} if spec.proprio_key else {})
    parts: dict[str, list[np.ndarray]] = {name: [] for name in keys}
    skipped, episodes = [], 0
    for index in range(len(dataset)):
        try:
            episode = dataset[index]
            rows = {"action": actions(episode, spec)[spec.first_step:]}
            if spec.proprio_key:
                rows["proprio"] = states(episode, spec)[spec.first_step:]
        except BadRecordError as error:
            if on_bad_record == "fail":
                raise
            skipped.append(f"{Path(error.where).name}: {error.field}: {error.problem}")
            continue
        episodes += 1
        for name, values in rows.items():
            parts[name].append(values)
    if not sum(map(len, parts["action"])):
        raise DataError(f"{dataset.directory} split {dataset.split}: no usable step, so there are no statistics")
    columns = {name: ColumnStatistics.of(keys[name], np.concatenate(values)) for name, values in parts.items()}
    return DatasetStatistics(dataset.name, dataset.version, dataset.split, episodes, columns["action"].count, spec.first_step,
                             dataset.fingerprint, columns, tuple(skipped))


def actions(episode: Episode, spec: DatasetSpec) -> np.ndarray:
    """The actions of an episode as `spec` says, [steps, action_width]; a composition may have none for the last step."""
    return finite(episode, spec.action_key) if spec.action_parts is None else _composed(episode, "action", spec.action_parts)


def states(episode: Episode, spec: DatasetSpec) -> np.ndarray:
    """The robot states of an episode as `spec` says, [steps, proprio_width]."""
    return finite(episode, spec.proprio_key) if spec.proprio_parts is None else _composed(episode, "proprio", spec.proprio_parts)


def _composed(episode: Episode, name: str, composition: Composition) -> np.ndarray:
    try:
        return composition.of(lambda key: finite(episode, key), len(episode))
    except BadRecordError:
        raise
    except ValueError as error:
        raise episode.bad(name, str(error)) from error


def finite(episode: Episode, key: str) -> np.ndarray:
    """Numeric column `key` [steps, width]; BadRecordError where a number is NaN or infinite."""
    values = np.asarray(episode.column(key))
    good = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not good.all():
        raise episode.bad(key, f"NaN or infinite values at step {int(np.argmin(good))}")
    return values


def statistics_path(dataset: RLDSDataset, index_dir: str | Path | None = None) -> Path:
    """Beside the record index of the split."""
    store = index_path(dataset.directory, dataset.split, index_dir)
    return store.with_name(store.name.replace("record_index", "statistics")).with_suffix(".json")


def load_or_compute(dataset: RLDSDataset, spec: DatasetSpec, *, index_dir: str | Path | None = None,
                    on_bad_record: str = "fail") -> DatasetStatistics:
    """The stored statistics where they belong to these very shards, else computed and stored."""
    path = statistics_path(dataset, index_dir)
    if path.is_file():
        try:
            stored = DatasetStatistics.from_json(json.loads(path.read_text()))
            keys, wanted = {column.key for column in stored.columns.values()}, {spec.action_key, spec.proprio_key} - {""}
            if stored.fingerprint == dataset.fingerprint and stored.first_step == spec.first_step and keys == wanted:
                return stored
        except (KeyError, TypeError, ValueError) as error:
            log.warning("%s cannot be used (%s); computing the statistics again", path, error)
    made = compute(dataset, spec, on_bad_record)
    try:
        write_atomically(path, json.dumps(made.to_json(), indent=1).encode())
    except OSError as error:
        log.info("statistics of %s not kept (%s); give an index directory to keep them", dataset.directory, error)
    return made
