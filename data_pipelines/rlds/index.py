"""The record index of one split: offset and number of steps of every record, shard by shard, in one small `.npz`.

Shards that have changed are read again. Partial results are saved every second while an index is built, so that an interrupted build
resumes, and several hosts can each build a part.
"""

import hashlib
import io
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines import storage
from data_pipelines.rlds.shards import Defect, ShardIndex
from data_pipelines.storage import FileInfo, Location

INDEX_VERSION = 3
PART_EVERY_S = 1.0
LARGE = 10 << 30  # bytes; reading more than this logs a warning
Scan = Callable[[str, FileInfo], ShardIndex]
Progress = Callable[[int, int], None]
log = logging.getLogger(__name__)


def index_path(directory: Location, split: str, index_dir: Location | None, stem: str = "record_index", suffix: str = ".npz") -> Location:
    """Next to the shards, or in `index_dir` under a name that is unique to the dataset."""
    if not index_dir:
        return storage.join(directory, f"{stem}-{split}{suffix}")
    full = directory.resolve() if isinstance(directory, Path) else directory
    tag = hashlib.sha256(str(full).encode()).hexdigest()[:8]
    name = f"{storage.name_of(storage.parent(directory))}-{storage.name_of(directory)}-{tag}-{stem}-{split}{suffix}"
    return storage.join(storage.location(index_dir), name)


def load_or_build(
    files: Mapping[str, FileInfo],
    store: Location,
    scan: Scan,
    *,
    counted: bool = True,
    rule: str = "",
    workers: int = 8,
    shard_index: int = 0,
    num_shards: int = 1,
    progress: Progress | None = None,
) -> list[ShardIndex]:
    """The index of `files`, in their order: from `store` for unchanged files, from `scan` for the others.

    The result is written to `store` if something was scanned; if that is not writable, the index is in memory only and a log line says
    how to store it.

    Args:
      files: name -> FileInfo, as just listed.
      scan: reads one file; called from threads.
      counted: steps must be known; stored shards without step counts are scanned.
      rule: what `scan` filters, in words; an index stored under another rule is not used.
      shard_index, num_shards: scans only every `num_shards`-th file, from number `shard_index` on, and returns what is known: the part of
        one of `num_shards` hosts.
      progress: called with (files known, files).
    """
    parts = _part_files(store)
    known: dict[str, ShardIndex] = {}
    for shard in (shard for path in (store, *parts) for shard in _load(path, rule)):
        if files.get(shard.name) == shard.file_info and (shard.counted or not (counted or shard.name in known)):
            known[shard.name] = shard
    mine = [name for number, name in enumerate(files) if name not in known and number % num_shards == shard_index]
    if progress is not None:
        progress(len(known), len(files))
    if mine:
        size = sum(files[name].size for name in mine)
        log.info("record index: reading %d of %d file(s), %.2f GB", len(mine), len(files), size / 1e9)
        if size > LARGE and progress is None:
            log.warning(
                "%s: reading %.0f GB for the record index; run `vpp data index` once instead, before many hosts need it",
                storage.parent(store),
                size / 1e9,
            )
        rest = _scan_all(mine, files, scan, workers, known, lambda shards: _save_partial(store, shards, rule), progress)
        if num_shards > 1 and rest:
            _save_partial(store, rest, rule)
    shards = [known[name] for name in files if name in known]
    if num_shards == 1 and (mine or parts):
        _finalize(store, shards, rule)
    return shards


def fingerprint(shards: Sequence[ShardIndex]) -> str:
    """SHA-256 of the shards' names, sizes, record and step counts; file versions are not included, so that copies are equal."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.name}:{shard.file_info.size}:{len(shard.offsets)}".encode())
        digest.update(shard.counts.astype("<i4").tobytes())
    return digest.hexdigest()


def _scan_all(
    names: Sequence[str],
    files: Mapping[str, FileInfo],
    scan: Scan,
    workers: int,
    known: dict[str, ShardIndex],
    save_partial: Callable[[list[ShardIndex]], None],
    progress: Progress | None,
) -> list[ShardIndex]:
    """Adds the index of each of `names` to `known`; saves finished ones every second and on interruption; returns those not saved yet."""
    fresh, last = [], time.monotonic()
    pool = ThreadPoolExecutor(max(1, min(workers, len(names))), thread_name_prefix="record-index")
    try:
        for future in as_completed([pool.submit(scan, name, files[name]) for name in names]):
            shard = future.result()
            known[shard.name] = shard
            fresh.append(shard)
            if time.monotonic() - last > PART_EVERY_S:
                save_partial(fresh)
                fresh, last = [], time.monotonic()
            if progress is not None:
                progress(len(known), len(files))
    except BaseException:
        if fresh:
            save_partial(fresh)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return fresh


def _parts(store: Location) -> Location:
    name = storage.name_of(store)
    return storage.join(storage.parent(store), f"{name.removesuffix('.npz')}.parts")


def _save_partial(store: Location, shards: Sequence[ShardIndex], rule: str) -> None:
    tag = hashlib.sha256(" ".join(f"{shard.name} {shard.file_info.version}" for shard in shards).encode()).hexdigest()[:16]
    try:
        storage.write(storage.join(_parts(store), f"{tag}.npz"), _encode(shards, rule))
    except OSError as error:
        log.debug("partial result of %s not saved (%s)", store, error)


def _finalize(store: Location, shards: Sequence[ShardIndex], rule: str) -> None:
    """Writes the complete index and removes the partial results."""
    try:
        storage.write(store, _encode(shards, rule))
    except OSError as error:
        log.info("record index of %s is in memory only (%s); set data.index_dir or --index_dir to store it", storage.parent(store), error)
        return
    storage.remove_dir(_parts(store))


def _part_files(store: Location) -> list[Location]:
    try:
        return [storage.join(_parts(store), name) for name in storage.list_files(_parts(store)) if name.endswith(".npz")]
    except FileNotFoundError:
        return []


def _encode(shards: Sequence[ShardIndex], rule: str) -> bytes:
    header = {
        "version": INDEX_VERSION,
        "rule": rule,
        "names": [shard.name for shard in shards],
        "sizes": [shard.file_info.size for shard in shards],
        "versions": [shard.file_info.version for shard in shards],
        "records": [len(shard.offsets) for shard in shards],
        "defects": [asdict(defect) for shard in shards for defect in shard.defects],
    }
    columns: dict[str, Any] = {
        name: np.concatenate([np.zeros(0, dtype), *(getattr(shard, name) for shard in shards)])
        for name, dtype in (("offsets", np.int64), ("lengths", np.int64), ("counts", np.int32))
    }
    buffer = io.BytesIO()
    # text as bytes: NumPy strings take four bytes per character
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **columns)
    return buffer.getvalue()


def _load(path: Location, rule: str) -> list[ShardIndex]:
    """Shards of a stored index; [] if there is none under this rule or it is damaged, since it can be rebuilt."""
    try:
        data = storage.read(path)
    except FileNotFoundError:
        return []
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as tree:
            header = json.loads(tree["header"].tobytes())
            if header["version"] != INDEX_VERSION or header.get("rule", "") != rule:
                return []
            columns = [tree[name] for name in ("offsets", "lengths", "counts")]
        defects: dict[str, list[Defect]] = {}
        for entry in header["defects"]:
            defects.setdefault(entry["file"], []).append(Defect(**entry))
        shards, start = [], 0
        for name, size, version, records in zip(header["names"], header["sizes"], header["versions"], header["records"], strict=True):
            rows = slice(start, start + records)
            offsets, lengths, counts = (column[rows] for column in columns)
            shards.append(ShardIndex(name, FileInfo(size, version), offsets, lengths, counts, tuple(defects.get(name, ()))))
            start += records
        if any(len(column) != start for column in columns):
            raise ValueError(f"its header lists {start} records, its columns have {', '.join(str(len(column)) for column in columns)}")
        return shards
    except Exception as error:  # a damaged file may raise anything; the index is rebuilt
        log.warning("%s is not a usable record index (%s: %s); rebuilding it", path, type(error).__name__, error)
        return []
