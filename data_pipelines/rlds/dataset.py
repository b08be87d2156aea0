"""Random access to the episodes of an RLDS/TFDS directory, without conversion or download."""

import functools
import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipelines import storage
from data_pipelines.cache import ByteLRU
from data_pipelines.errors import BadRecordError, DataError, DatasetNotFoundError
from data_pipelines.instructions import flat_list, instructions_of
from data_pipelines.rlds import array_record, examples, images, tfrecord
from data_pipelines.rlds import index as record_index
from data_pipelines.rlds.filters import EpisodeFilter
from data_pipelines.rlds.schema import STEPS, Schema
from data_pipelines.rlds.shards import FILTERED, Defect, ShardIndex
from data_pipelines.rlds.sparse import Blobs, SparseExample
from data_pipelines.storage import RETRY, FileInfo, Location, Retry

MAX_CONFIGS = 20
DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
METADATA_FILE = "metadata.json"  # where TFDS stores custom metadata of a dataset
RECORDED_IN = "recorded_in"  # its entry about the simulator
# fileFormat of dataset_info.json -> module with `scan` and `read_payload`
FORMATS = {module.EXTENSION: module for module in (tfrecord, array_record)}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitInfo:
    """A split as listed in dataset_info.json, and which of its files exist."""

    name: str
    files: tuple[str, ...]
    shard_lengths: tuple[int, ...]
    present: tuple[str, ...]

    @property
    def absent(self) -> tuple[str, ...]:
        present = set(self.present)
        return tuple(file for file in self.files if file not in present)


@dataclass(frozen=True)
class DatasetInfo:
    """dataset_info.json: name, version, splits; and the files in its directory, from one listing.

    Attributes:
      file_format: 'tfrecord' or 'array_record'.
    """

    directory: Location
    name: str
    version: str
    file_format: str
    splits: dict[str, SplitInfo]
    files: dict[str, FileInfo]

    @classmethod
    def read(cls, path: Location, retry: Retry = RETRY) -> "DatasetInfo":
        """`path`: the directory with dataset_info.json, or its parent with one directory per version (the newest is used)."""
        directory, files = resolve(path, retry)
        source = storage.join(directory, "dataset_info.json")
        try:
            tree = json.loads(storage.read(source, retry))
            name, extension = tree["name"], tree.get("fileFormat", tfrecord.EXTENSION)
            splits = {}
            for entry in tree["splits"]:
                lengths = tuple(int(length) for length in entry.get("shardLengths", []))
                template, split = entry.get("filepathTemplate") or DEFAULT_TEMPLATE, entry["name"]
                if "/" in template:
                    raise DataError(
                        f"{source}: split '{split}' has its shards in a folder (filepathTemplate '{template}'); move them next to "
                        "dataset_info.json, and the folder out of the template"
                    )
                listed = tuple(_file_name(template, name, split, extension, shard, len(lengths)) for shard in range(len(lengths)))
                splits[split] = SplitInfo(split, listed, lengths, tuple(file for file in listed if file in files))
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{source}: not a TFDS dataset description ({reason})") from error
        if extension not in FORMATS:
            raise DataError(f"{directory}: shards are in format '{extension}'; supported are {' and '.join(FORMATS)}")
        return cls(directory, name, tree.get("version", ""), extension, splits, files)

    def split(self, name: str, allow_absent: bool = False) -> SplitInfo:
        """The split `name`. Errors name the missing files and the splits that could be used instead."""
        usable = [split.name for split in self.splits.values() if split.files and not split.absent]
        advice = f"complete splits: {', '.join(usable) or 'none'}"
        if name not in self.splits:
            listed = ", ".join(self.splits) or "none"
            if any(sign in name for sign in "[]+"):
                raise DatasetNotFoundError(
                    f"{self.directory}: '{name}' is TFDS's syntax for parts and sums of splits, which is not supported: name one split "
                    f"({listed}). Several are several members of data.datasets; a part is a dataset of its own, written by TFDS"
                )
            raise DatasetNotFoundError(f"{self.directory}: no split '{name}' in dataset_info.json (has {listed}); {advice}")
        split = self.splits[name]
        if not split.present or (split.absent and not allow_absent):
            shown = ", ".join(split.absent[:3]) + (", ..." if len(split.absent) > 3 else "")
            raise DatasetNotFoundError(
                f"{self.directory}: split '{name}' lists {len(split.files)} shard(s), {len(split.absent)} of them missing ({shown}); "
                f"{advice}. Copy the missing files or choose another split" + (", or set on_bad_record=skip" if split.present else "")
            )
        return split


class Episode:
    """One episode; columns are parsed and images decoded on access.

    Attributes:
      where: "FILE record N", for messages.
      length: number of steps.
    """

    def __init__(self, example: examples.Example, schema: Schema, where: str, length: int):
        self._example, self._schema, self.where, self.length = example, schema, where, length
        self._raw: tuple[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.length

    @property
    def schema(self) -> Schema:
        return self._schema

    def column(self, name: str) -> np.ndarray | list:
        """Step column: numeric [length, *shape], texts as list[str], images as list of encoded bytes; sequences as one list per step."""
        feature = self._schema.step(name, self.where)
        return self._guard(name, lambda: self._example.column(f"{STEPS}/{name}", feature, self.length))

    def text(self, name: str, step: int = 0) -> str:
        """The string `name` of one step, or of the episode if it is an episode feature."""
        if name not in self._schema.steps:
            return self._guard(name, lambda: self._example.blobs(name)[0].decode())
        if self._schema.steps[name].kind == "tensor":  # language_table stores code points, padded with zeros
            return self._guard(name, lambda: "".join(map(chr, self.column(name)[step])).split("\0", 1)[0])
        return self._guard(name, lambda: self._blobs(name)[step].decode())

    def texts(self, name: str, step: int = 0) -> tuple[str, ...]:
        """The instructions `name` of one step, or of the episode: one text, or several (a Sequence of texts, a tensor of strings).

        Each is there once; empty ones are left out.
        """
        feature = self._schema.steps.get(name) or self._schema.episode[name]
        if feature.kind == "text" and (feature.shape or feature.sequence):
            found = self.column(name)[step] if name in self._schema.steps else self.metadata(name)
            return self._guard(name, lambda: instructions_of(flat_list(found), self.where))
        text = " ".join(self.text(name, step).split())
        return (text,) if text else ()

    def encoded(self, camera: str, step: int) -> bytes:
        """The encoded image of `camera` at `step`."""
        return self._guard(camera, lambda: self._blobs(camera)[step])

    def frame(self, camera: str, step: int, min_size: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The decoded image of `camera` at `step`; `min_size` as in `images.decode_scaled`."""
        return self._guard(camera, lambda: self._decode(camera, step, min_size))

    def rows(self, name: str, steps: Sequence[int]) -> np.ndarray:
        """Some steps [n, *shape] of a column of encoded tensors of fixed shape."""
        feature = self._schema.step(name, self.where)
        return self._guard(name, lambda: examples.unpack_rows(_taken(self._blobs(name), steps), feature))

    def replaced(self, drop: Collection[str], add: Mapping[str, Sequence[bytes]]) -> bytes:
        """The record without the step columns `drop` and with the encoded columns `add`."""
        return self._example.replaced([f"{STEPS}/{name}" for name in drop], {f"{STEPS}/{name}": values for name, values in add.items()})

    def metadata(self, name: str) -> np.ndarray | np.generic | str | bytes | list:
        """A feature of the whole episode, e.g. `episode_metadata/scene`."""
        if name not in self._schema.episode:
            raise DataError(f"{self.where}: no episode field '{name}' in features.json (has {', '.join(self._schema.episode) or 'none'})")
        return self._guard(name, lambda: self._example.column(name, self._schema.episode[name], None))

    def bad(self, field: str, problem: str) -> BadRecordError:
        """A BadRecordError for this episode."""
        return BadRecordError(self.where, field, problem)

    def _decode(self, camera: str, step: int, min_size: int | None) -> UInt8[np.ndarray, "h w 3"]:
        if self._schema.steps[camera].is_raw_image:
            return self._pixels(camera)[step]
        image, stored = images.decode_scaled(self.encoded(camera, step), min_size)
        shape = self._schema.steps[camera].shape
        if any(size not in (None, found) for size, found in zip(shape[:2], stored, strict=False)):
            raise ValueError(f"an image of {stored[0]} x {stored[1]} pixels, features.json says {shape[0]} x {shape[1]}")
        return image

    def _pixels(self, camera: str) -> UInt8[np.ndarray, "t h w 3"]:
        """All images of a camera that is stored as pixels; only the last such camera is held."""
        if self._raw is None or self._raw[0] != camera:
            self._raw = camera, np.asarray(self.column(camera), np.uint8)
        return self._raw[1]

    def _blobs(self, name: str):
        values = self._example.blobs(f"{STEPS}/{name}")
        if len(values) != self.length:
            raise ValueError(f"{len(values)} values for {self.length} steps")
        return values

    def _guard(self, field: str, read: Callable):
        try:
            return read()
        except BadRecordError:
            raise
        except (ValueError, IndexError, OverflowError) as error:
            raise self.bad(field, str(error)) from error


class RLDSDataset:
    """The episodes of one split: `len(dataset)`, `dataset[i] -> Episode`, in the order of the shards.

    Args:
      path: directory with features.json and dataset_info.json (or its parent, see `DatasetInfo.read`), local or in a bucket.
      split: e.g. 'train'.
      index_dir: directory of the record index; default: next to the shards.
      on_bad_record: 'fail' raises on the first defect in the index; 'skip' skips such records and lists them in `defects`.
      cache_bytes: memory for parsed episodes.
      episode_filter: which episodes are used; None: all. The description of a robot names the one of its dataset.
      retry: attempts and pauses of reads.
      workers: threads that build the index if there is none.
    Attributes:
      lengths: int32[len], steps of each episode, from the index.
      defects: what is wrong with the shards.
      num_filtered: number of episodes that the filter removes.
    """

    def __init__(
        self,
        path: Location,
        split: str = "train",
        *,
        index_dir: Location | None = None,
        on_bad_record: str = "fail",
        cache_bytes: int = 256 << 20,
        episode_filter: EpisodeFilter | None = None,
        retry: Retry = RETRY,
        workers: int = 8,
        progress: Callable[[int, int], None] | None = None,
    ):
        if on_bad_record not in ("fail", "skip"):
            raise DataError(f"on_bad_record is '{on_bad_record}', expected 'fail' or 'skip'")
        self.info = DatasetInfo.read(path, retry)
        self.directory, self.split, self.schema = self.info.directory, split, Schema.read(self.info.directory, retry)
        listed = self.info.split(split, allow_absent=on_bad_record == "skip")
        shards = build_index(
            self.info,
            self.schema,
            split,
            index_dir=index_dir,
            episode_filter=episode_filter,
            retry=retry,
            workers=workers,
            progress=progress,
        )
        self.fingerprint = record_index.fingerprint(shards)
        self.defects = find_defects(listed, shards)
        if self.defects:
            first = self.defects[0]
            if on_bad_record == "fail":
                more = f" (and {len(self.defects) - 1} more defects; `vpp data inspect` lists them)" if len(self.defects) > 1 else ""
                where = f"{storage.join(self.directory, first.file)} record {first.record}"
                raise BadRecordError(where, "", first.problem + more)
            log.warning("%s: %d defect(s) skipped, first: %s: %s", self.directory, len(self.defects), first.where, first.problem)
        self.num_filtered = sum(int((shard.counts == FILTERED).sum()) for shard in shards)
        good = [np.flatnonzero(shard.counts > 0) for shard in shards]
        self._files = tuple(shard.name for shard in shards)
        self._file_infos = tuple(shard.file_info for shard in shards)
        self._shard = np.repeat(np.arange(len(shards), dtype=np.int32), [len(rows) for rows in good])
        self._record = _concatenate(good, np.int32)
        self._offset = _concatenate([shard.offsets[rows] for shard, rows in zip(shards, good, strict=True)], np.int64)
        self._bytes = _concatenate([shard.lengths[rows] for shard, rows in zip(shards, good, strict=True)], np.int64)
        self.lengths = _concatenate([shard.counts[rows] for shard, rows in zip(shards, good, strict=True)], np.int32)
        self._retry = retry
        # columns of which single steps are read from the file: images, and encoded tensors such as latents
        large = {f"{STEPS}/{name}" for name, feature in self.schema.steps.items() if feature.kind == "image" or feature.encoding == "bytes"}
        self._in_place = frozenset(large if self.info.file_format == tfrecord.EXTENSION else ())
        self._cache: ByteLRU[Episode] = ByteLRU(cache_bytes)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def version(self) -> str:
        return self.info.version

    @property
    def parts(self) -> list[range]:
        """The episodes of each existing file, in file order."""
        stops = np.searchsorted(self._shard, np.arange(len(self._files)), side="right").tolist()
        return [range(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]

    @functools.cached_property
    def metadata(self) -> dict:
        """metadata.json; {} if there is none."""
        if METADATA_FILE not in self.info.files:
            return {}
        path = storage.join(self.directory, METADATA_FILE)
        try:
            return json.loads(storage.read(path, self._retry))
        except ValueError as error:
            raise DataError(f"{path}: not JSON ({error})") from error

    @property
    def recorded_in(self) -> dict[str, Any]:
        """What metadata.json tells about the simulator that the episodes were recorded in: simulator, version, quality, ..."""
        found = self.metadata.get(RECORDED_IN) if isinstance(self.metadata, dict) else None  # TFDS writes lists, too
        return found if isinstance(found, dict) else {}

    @property
    def num_bytes(self) -> int:
        return int(self._bytes.sum(dtype=np.int64))

    @property
    def num_steps(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self._offset)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`; BadRecordError naming file and record if it cannot be read."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        return self._cache.get(index, lambda: self._read(index))

    def where(self, index: int) -> str:
        return f"{self._path(index)} record {self._record[index]}"

    def _path(self, index: int) -> Location:
        return storage.join(self.directory, self._files[self._shard[index]])

    def _read(self, index: int) -> tuple[Episode, int]:
        path, offset = self._path(index), int(self._offset[index])
        try:
            payload = FORMATS[self.info.file_format].read_payload(path, offset, int(self._bytes[index]), self._retry)
            if self._in_place and isinstance(path, Path):  # in a bucket, one more request takes longer than reading the whole record
                read_part = functools.partial(self._read_part, path, self._file_infos[self._shard[index]], offset)
                example = SparseExample(payload, self._in_place, read_part)
            else:
                example = examples.Example(payload)
        except FileNotFoundError as error:
            raise BadRecordError(self.where(index), "", "the file no longer exists") from error
        except (ValueError, OSError) as error:
            raise BadRecordError(self.where(index), "", f"{error}{self._changed(index)}") from error
        return Episode(example, self.schema, self.where(index), int(self.lengths[index])), example.nbytes

    def _read_part(self, path: Path, indexed: FileInfo, record: int, offset: int, length: int) -> bytes:
        """`length` bytes at `offset` of the record that starts at `record`. Parts have no checksum, so the file must be unchanged."""
        try:
            if storage.file_info(path, self._retry) != indexed:
                raise ValueError("the file was rewritten after it was indexed: restart the process")
            data = storage.read_range(path, record + offset, length, self._retry)
        except FileNotFoundError as error:
            raise ValueError("the file no longer exists") from error
        if len(data) < length:
            raise ValueError(f"truncated: {len(data)} of {length} bytes at offset {record + offset}")
        return data

    def _changed(self, index: int) -> str:
        """Addition to the error of an unreadable record if its file has changed since it was indexed."""
        try:
            now, then = storage.file_info(self._path(index), self._retry), self._file_infos[self._shard[index]]
        except (OSError, DataError):
            return ""
        if now == then:
            return ""
        return f"; the file was rewritten after it was indexed ({then.size} bytes then, {now.size} now): restart the process"


def _taken(values: Blobs | Sequence[bytes], steps: Sequence[int]) -> list[bytes | memoryview]:
    return values.take(steps) if isinstance(values, Blobs) else [values[int(step)] for step in steps]


def build_index(
    info: DatasetInfo,
    schema: Schema,
    split: str,
    *,
    index_dir: Location | None = None,
    episode_filter: EpisodeFilter | None = None,
    counted: bool = True,
    retry: Retry = RETRY,
    workers: int = 8,
    shard_index: int = 0,
    num_shards: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[ShardIndex]:
    """The index of the existing files of `split`; see `index.load_or_build`.

    Args:
      counted: also count the steps of each episode, for which every record is read once; False reads record headers only.
    """
    scan = FORMATS[info.file_format].scan
    count = (lambda payload: _count(payload, schema, episode_filter)) if counted else None
    files = {file: info.files[file] for file in info.splits[split].present}
    return record_index.load_or_build(
        files,
        record_index.index_path(info.directory, split, index_dir),
        lambda name, file_info: scan(storage.join(info.directory, name), file_info, count, retry),
        counted=counted,
        rule=episode_filter.removes if episode_filter else "",
        workers=workers,
        shard_index=shard_index,
        num_shards=num_shards,
        progress=progress,
    )


def _count(payload: bytes | memoryview, schema: Schema, episode_filter: EpisodeFilter | None) -> int:
    steps = examples.count_steps(payload, schema)
    if episode_filter is None:
        return steps
    try:
        return steps if episode_filter.keep(examples.Example(payload), steps) else FILTERED
    except IndexError as error:
        raise ValueError(
            f"nothing in the record says whether it is one of the '{episode_filter.removes}' that its description filters"
        ) from error


def resolve(path: Location, retry: Retry = RETRY) -> tuple[Location, dict[str, FileInfo]]:
    """The directory with dataset_info.json (`path` itself, or its newest version directory) and its files."""
    path = storage.location(path)
    try:
        files = storage.list_files(path, retry)
        if "dataset_info.json" in files:
            return path, files
        versions = [name for name in storage.list_dirs(path, retry) if re.fullmatch(r"\d+\.\d+\.\d+", name)]
        for name in sorted(versions, key=lambda name: tuple(map(int, name.split("."))), reverse=True):
            files = storage.list_files(storage.join(path, name), retry)
            if "dataset_info.json" in files:
                return storage.join(path, name), files
        below = _datasets_in(path, retry)
        state = f"has no dataset_info.json itself, but {', '.join(below)} below it has: name that" if below else "has no dataset_info.json"
    except (FileNotFoundError, NotADirectoryError):
        state = "does not exist"
    raise DatasetNotFoundError(
        f"dataset directory {path} {state}; expected a TFDS/RLDS directory (features.json, dataset_info.json, shards)"
    )


def _datasets_in(path: Location, retry: Retry) -> list[str]:
    """Datasets below `path`, as TFDS lays out builders with configurations: CONFIG/VERSION. The first few are looked for."""
    found = []
    for name in storage.list_dirs(path, retry)[:MAX_CONFIGS]:
        folder = storage.join(path, name)
        versions = [child for child in storage.list_dirs(folder, retry) if re.fullmatch(r"\d+\.\d+\.\d+", child)]
        inside = [folder, *(storage.join(folder, child) for child in versions)]
        if any("dataset_info.json" in storage.list_files(child, retry) for child in inside):
            found.append(name)
    return found


def find_defects(listed: SplitInfo, shards: list[ShardIndex]) -> tuple[Defect, ...]:
    """All defects of the shards: those in their indexes, missing files, and files with another number of records than listed."""
    expected = dict(zip(listed.files, listed.shard_lengths, strict=True))
    return (
        *(Defect(file, 0, "listed in dataset_info.json but missing", fatal=True) for file in listed.absent),
        *(defect for shard in shards for defect in shard.defects),
        *(
            Defect(shard.name, len(shard.offsets), f"{len(shard.offsets)} records instead of {expected[shard.name]}", fatal=True)
            for shard in shards
            if len(shard.offsets) != expected[shard.name] and not any(defect.fatal for defect in shard.defects)
        ),
    )


def _file_name(template: str, dataset: str, split: str, extension: str, shard: int, shards: int) -> str:
    return template.format(
        DATASET=dataset,
        SPLIT=split,
        FILEFORMAT=extension,
        SHARD_INDEX=f"{shard:05d}",
        NUM_SHARDS=f"{shards:05d}",
        SHARD_X_OF_Y=f"{shard:05d}-of-{shards:05d}",
    )


def _concatenate(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
