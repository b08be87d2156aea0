"""ArrayRecord files, which contain their own index and checksums, read through the `array_record` package.

Local paths only: the public build of the package does not read buckets.
"""

import functools
from collections.abc import Callable
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from data_pipelines import storage
from data_pipelines.errors import DataError
from data_pipelines.rlds.shards import DEFECTIVE, UNCOUNTED, Defect, ShardIndex
from data_pipelines.storage import RETRY, FileInfo, Location, Retry

EXTENSION = "array_record"
OPEN_FILES = 64  # readers to keep open; each holds a file descriptor and the index of its file
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


def scan(path: Location, file_info: FileInfo, count: Callable[[bytes], int] | None, retry: Retry = RETRY) -> ShardIndex:
    """Counts the steps of each record (see `tfrecord.scan`); with `count` None only the number of records is read and lengths are -1."""
    name = storage.name_of(path)
    try:
        records = _reader(path).num_records()
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        return ShardIndex.of(name, file_info, [], [], [], [Defect(name, 0, str(error), fatal=True)])
    lengths, counts, defects = [], [], []
    for number in range(records):
        length, steps = -1, UNCOUNTED
        if count is not None:
            try:
                payload = read_payload(path, number, length, retry)
                length, steps = len(payload), count(payload)
            except ValueError as error:
                steps = DEFECTIVE
                defects.append(Defect(name, number, str(error)))
        lengths.append(length)
        counts.append(steps)
    return ShardIndex.of(name, file_info, range(records), lengths, counts, defects)


def read_payload(path: Location, offset: int, length: int, retry: Retry = RETRY) -> bytes:
    """Record number `offset`; `length` is ignored. ValueError if it is damaged; FileNotFoundError."""
    try:
        return _reader(path).read([offset])[0]
    except RuntimeError as error:
        raise ValueError(f"corrupt record ({error})") from error


def _reader(path: Location) -> ArrayRecordReader:
    if not isinstance(path, Path):
        raise DataError(
            f"{path}: ArrayRecord shards are read from local paths only. Copy the dataset to a disk, mount the bucket "
            "(gcsfuse, mountpoint-s3), or store the shards as TFRecord, which is read from buckets directly"
        )
    state = path.stat()
    try:
        return _open(str(path), state.st_size, state.st_mtime_ns)
    except RuntimeError as error:
        raise ValueError(f"not an ArrayRecord file ({error})") from error


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: str, size: int, mtime_ns: int) -> ArrayRecordReader:
    """Size and time are part of the cache key, so that a rewritten file is opened again."""
    return ArrayRecordReader(path, RANDOM_ACCESS)
