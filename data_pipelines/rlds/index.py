"""The offset index of one split: built shard by shard, kept in one small `.npz`, rebuilt where a shard changed."""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipelines.files import write_atomically
from data_pipelines.rlds.tfrecord import Defect, ShardIndex, scan

INDEX_VERSION = 1
log = logging.getLogger(__name__)


def index_path(directory: Path, split: str, index_dir: str | Path | None) -> Path:
    """Beside the shards, or in `index_dir` under a name that tells datasets apart."""
    if not index_dir:
        return directory / f"record_index-{split}.npz"
    tag = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:8]
    return Path(index_dir) / f"{directory.parent.name}-{directory.name}-{tag}-record_index-{split}.npz"


def load_or_build(paths: Sequence[Path], store: Path, count: Callable[[bytes], int],
                  progress: Callable[[int, int], None] | None = None) -> list[ShardIndex]:
    """Index of every shard in `paths`, taken from `store` where size and modification time still agree, scanned otherwise.

    The result is written back to `store` when something was scanned; where that place is not writable the index lives in memory
    and a log line says how to keep it.
    """
    known = {shard.name: shard for shard in _load(store)}
    shards, changed = [], False
    for number, path in enumerate(paths):
        shard = known.get(path.name)
        if shard is None or not shard.is_current(path):
            shard, changed = scan(path, count), True
        shards.append(shard)
        if progress is not None:
            progress(number + 1, len(paths))
    if changed or len(known) != len(shards):
        try:
            _save(store, shards)
        except OSError as error:
            log.info("record index of %s kept in memory only (%s); give an index directory to keep it", store.parent, error)
    return shards


def fingerprint(shards: Sequence[ShardIndex]) -> str:
    """SHA-256 of what the shards hold (names, sizes, record and step counts); modification times do not count, copies agree."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(f"{shard.name}:{shard.size}:{len(shard.offsets)}".encode())
        digest.update(shard.counts.astype("<i4").tobytes())
    return digest.hexdigest()


def _save(store: Path, shards: Sequence[ShardIndex]) -> None:
    header = {"version": INDEX_VERSION, "defects": [asdict(defect) for shard in shards for defect in shard.defects]}
    buffer = io.BytesIO()
    np.savez(
        buffer,
        header=np.array(json.dumps(header)),
        names=np.array([shard.name for shard in shards]),
        sizes=np.array([shard.size for shard in shards], np.int64),
        mtimes=np.array([shard.mtime_ns for shard in shards], np.int64),
        records=np.array([len(shard.offsets) for shard in shards], np.int64),
        **{name: _join([getattr(shard, name) for shard in shards]) for name in ("offsets", "lengths", "counts")},
    )
    write_atomically(store, buffer.getvalue())


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _load(store: Path) -> list[ShardIndex]:
    """Shards of a stored index; [] where there is none or it cannot be used, since it can always be rebuilt."""
    if not store.is_file():
        return []
    try:
        with np.load(store, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            if header["version"] != INDEX_VERSION:
                return []
            defects = [Defect(**defect) for defect in header["defects"]]
            stops = np.cumsum(data["records"])
            columns = {name: np.split(data[name], stops[:-1]) for name in ("offsets", "lengths", "counts")}
            return [
                ShardIndex(str(name), int(size), int(mtime), columns["offsets"][k], columns["lengths"][k], columns["counts"][k],
                           tuple(defect for defect in defects if defect.file == str(name)))
                for k, (name, size, mtime) in enumerate(zip(data["names"], data["sizes"], data["mtimes"], strict=True))
            ]
    except Exception as error:  # whatever a damaged file raises, the answer is to rebuild
        log.warning("%s is not a usable record index (%s: %s); rebuilding it", store, type(error).__name__, error)
        return []
