"""Random access to the episodes of an RLDS/TFDS directory, read where it lies."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_pipelines.cache import ByteLRU
from data_pipelines.errors import BadRecordError, DataError, DatasetNotFoundError
from data_pipelines.rlds import examples, images
from data_pipelines.rlds import index as record_index
from data_pipelines.rlds.schema import STEPS, Schema
from data_pipelines.rlds.tfrecord import Defect, read_payload

DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitInfo:
    """A split as dataset_info.json lists it, and which of its files are there."""

    name: str
    files: tuple[str, ...]
    shard_lengths: tuple[int, ...]
    present: tuple[str, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        return tuple(file for file in self.files if file not in self.present)


@dataclass(frozen=True)
class DatasetInfo:
    """dataset_info.json: name, version, splits."""

    directory: Path
    name: str
    version: str
    splits: dict[str, SplitInfo]

    @classmethod
    def read(cls, path: str | Path) -> "DatasetInfo":
        """`path`: the directory with dataset_info.json, or its parent with one folder per version (the newest is taken)."""
        directory = resolve(path)
        try:
            tree = json.loads((directory / "dataset_info.json").read_text())
            name, extension = tree["name"], tree.get("fileFormat", "tfrecord")
            splits = {}
            for entry in tree["splits"]:
                lengths = tuple(int(length) for length in entry.get("shardLengths", []))
                template, split = entry.get("filepathTemplate") or DEFAULT_TEMPLATE, entry["name"]
                files = tuple(_file_name(template, name, split, extension, shard, len(lengths)) for shard in range(len(lengths)))
                present = tuple(file for file in files if (directory / file).is_file())
                splits[split] = SplitInfo(split, files, lengths, present)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{directory / 'dataset_info.json'}: not a TFDS dataset description ({reason})") from error
        if extension != "tfrecord":
            raise DataError(f"{directory}: shards are in format '{extension}'; only tfrecord shards are read")
        return cls(directory, name, tree.get("version", ""), splits)

    def split(self, name: str, allow_absent: bool = False) -> SplitInfo:
        """The split `name`. Errors name the files that are listed but absent, and the splits that could be used instead."""
        usable = [split.name for split in self.splits.values() if split.files and not split.absent]
        advice = f"complete splits here: {', '.join(usable) or 'none'}"
        if name not in self.splits:
            listed = ", ".join(self.splits) or "none"
            raise DatasetNotFoundError(f"{self.directory}: no split '{name}' in dataset_info.json (has {listed}); {advice}")
        split = self.splits[name]
        if not split.present or (split.absent and not allow_absent):
            shown = ", ".join(split.absent[:3]) + (", ..." if len(split.absent) > 3 else "")
            raise DatasetNotFoundError(
                f"{self.directory}: split '{name}' lists {len(split.files)} shard(s), {len(split.absent)} of them absent ({shown}); "
                f"{advice}. Copy the missing files or choose another split" + (", or set on_bad_record=skip" if split.present else "")
            )
        return split


class Episode:
    """One episode, its columns parsed when asked for and its pictures decoded when asked for.

    Attributes:
      where: "FILE record N", for messages.
      length: number of steps.
    """

    def __init__(self, example: examples.Example, schema: Schema, where: str, length: int):
        self._example, self._schema, self.where, self.length = example, schema, where, length

    def __len__(self) -> int:
        return self.length

    def column(self, name: str) -> np.ndarray | list[bytes] | list[str]:
        """Step column: numeric [length, *shape], texts as list[str], pictures as list of encoded bytes."""
        feature = self._schema.step(name, self.where)
        return self._guard(name, lambda: self._example.column(f"{STEPS}/{name}", feature, self.length))

    def text(self, name: str, step: int = 0) -> str:
        """The string `name` of one step, or of the episode where only the episode has it."""
        full = f"{STEPS}/{name}" if name in self._schema.steps else name
        return self._guard(name, lambda: self._example.blobs(full)[step if name in self._schema.steps else 0].decode("utf-8", "replace"))

    def encoded(self, camera: str, step: int) -> bytes:
        """The stored picture of `camera` at `step`."""
        return self._guard(camera, lambda: self._example.blobs(f"{STEPS}/{camera}")[step])

    def frame(self, camera: str, step: int) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded picture of `camera` at `step`."""
        return self._guard(camera, lambda: images.decode(self.encoded(camera, step)))

    def metadata(self, name: str) -> np.ndarray | str | bytes:
        """A feature of the whole episode, e.g. `episode_metadata/scene`."""
        if name not in self._schema.episode:
            raise DataError(f"{self.where}: no episode field '{name}' in features.json (has {', '.join(self._schema.episode) or 'none'})")
        value = self._guard(name, lambda: self._example.column(name, self._schema.episode[name], None))
        return value[0] if isinstance(value, list) else value

    def bad(self, field: str, problem: str) -> BadRecordError:
        """An error to raise about this episode."""
        return BadRecordError(self.where, field, problem)

    def _guard(self, field: str, read: Callable):
        try:
            return read()
        except BadRecordError:
            raise
        except (ValueError, IndexError) as error:
            raise self.bad(field, str(error)) from error


class RLDSDataset:
    """The episodes of one split: `len(dataset)`, `dataset[i] -> Episode`, in the order of the shards.

    Args:
      path: directory with features.json and dataset_info.json (or its parent, see `DatasetInfo.read`).
      split: e.g. 'train'.
      index_dir: where the record index is kept; default beside the shards.
      on_bad_record: 'fail' raises on the first defect the index found; 'skip' leaves those records out, and lists them in `defects`.
      cache_bytes: parsed episodes kept in memory.
    Attributes:
      lengths: int32[len], steps of each episode, known without reading it.
      defects: what is wrong with the shards.
    """

    def __init__(self, path: str | Path, split: str = "train", *, index_dir: str | Path | None = None, on_bad_record: str = "fail",
                 cache_bytes: int = 256 << 20, progress: Callable[[int, int], None] | None = None):
        if on_bad_record not in ("fail", "skip"):
            raise DataError(f"on_bad_record is '{on_bad_record}', expected 'fail' or 'skip'")
        self.info = DatasetInfo.read(path)
        self.directory, self.split, self.schema = self.info.directory, split, Schema.read(self.info.directory)
        listed = self.info.split(split, allow_absent=on_bad_record == "skip")
        shards = record_index.load_or_build(
            [self.directory / file for file in listed.present], record_index.index_path(self.directory, split, index_dir),
            lambda payload: examples.count_steps(payload, self.schema), progress,
        )
        expected = dict(zip(listed.files, listed.shard_lengths, strict=True))
        self.fingerprint = record_index.fingerprint(shards)
        self.defects: tuple[Defect, ...] = (
            *(Defect(file, 0, "listed in dataset_info.json but absent", fatal=True) for file in listed.absent),
            *(defect for shard in shards for defect in shard.defects),
            *(Defect(shard.name, len(shard.offsets), f"{len(shard.offsets)} records instead of {expected[shard.name]}", fatal=True)
              for shard in shards if len(shard.offsets) != expected[shard.name] and not any(defect.fatal for defect in shard.defects)),
        )
        if self.defects:
            first = self.defects[0]
            if on_bad_record == "fail":
                more = f" (and {len(self.defects) - 1} more defects; `vpp data inspect` lists them)" if len(self.defects) > 1 else ""
                raise BadRecordError(f"{self.directory / first.file} record {first.record}", "", first.problem + more)
            log.warning("%s: %d defect(s) skipped, first: %s: %s", self.directory, len(self.defects), first.where, first.problem)
        good = [np.flatnonzero(shard.counts > 0) for shard in shards]
        self._files = tuple(shard.name for shard in shards)
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(rows) for rows in good])
        self._record = _concatenate(good, np.int32)
        self._offset = _concatenate([shard.offsets[rows] for shard, rows in zip(shards, good, strict=True)], np.int64)
        self._bytes = _concatenate([shard.lengths[rows] for shard, rows in zip(shards, good, strict=True)], np.int64)
        self.lengths = _concatenate([shard.counts[rows] for shard, rows in zip(shards, good, strict=True)], np.int32)
        self._cache: ByteLRU[Episode] = ByteLRU(cache_bytes)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`; BadRecordError naming file and record where it cannot be read."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return self._cache.get(index, lambda: self._read(index))

    def where(self, index: int) -> str:
        return f"{self.directory / self._files[self._shard[index]]} record {self._record[index]}"

    def _read(self, index: int) -> tuple[Episode, int]:
        path = self.directory / self._files[self._shard[index]]
        try:
            example = examples.Example(read_payload(path, int(self._offset[index]), int(self._bytes[index])))
        except FileNotFoundError as error:
            raise BadRecordError(self.where(index), "", "the file has disappeared") from error
        except ValueError as error:
            raise BadRecordError(self.where(index), "", str(error)) from error
        return Episode(example, self.schema, self.where(index), int(self.lengths[index])), example.nbytes


def resolve(path: str | Path) -> Path:
    """The directory that holds dataset_info.json: `path` itself, or its newest version folder."""
    if "://" in str(path):
        raise DataError(f"{path}: shards are read from local paths only; mount the bucket (gcsfuse, s3fs) or copy the dataset, "
                        "and give that path")
    path = Path(path)
    if (path / "dataset_info.json").is_file():
        return path
    versions = [child for child in path.iterdir() if re.fullmatch(r"\d+\.\d+\.\d+", child.name)] if path.is_dir() else []
    versions = [child for child in versions if (child / "dataset_info.json").is_file()]
    if not versions:
        state = "has no dataset_info.json" if path.is_dir() else "does not exist"
        raise DatasetNotFoundError(f"dataset directory {path} {state}; expected a TFDS/RLDS directory "
                                   "(features.json, dataset_info.json, shards)")
    return max(versions, key=lambda child: tuple(map(int, child.name.split("."))))


def _file_name(template: str, dataset: str, split: str, extension: str, shard: int, shards: int) -> str:
    return template.format(DATASET=dataset, SPLIT=split, FILEFORMAT=extension, SHARD_INDEX=f"{shard:05d}", NUM_SHARDS=f"{shards:05d}",
                           SHARD_X_OF_Y=f"{shard:05d}-of-{shards:05d}")


def _concatenate(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
