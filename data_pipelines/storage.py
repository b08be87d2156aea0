"""Local files, and objects in buckets through fsspec (`gs://`, `s3://`, `memory://`, ...).

A location is a `pathlib.Path` (local) or a `str` with a scheme (everything else). A read of a range downloads that range only. Reads that
fail with a transient error are retried with exponential backoff.
"""

import contextlib
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from data_pipelines.errors import DataError, ReadFailedError, WriteFailedError
from vpp_jax.common.files import write_atomically

Location = Path | str
T = TypeVar("T")
log = logging.getLogger(__name__)

# Errors that a retry would only repeat.
NON_RETRYABLE = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    NotImplementedError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    MemoryError,
    RecursionError,
)
# HTTP status codes in the 4xx range that are transient: request timeout, too many requests.
RETRYABLE_HTTP = (408, 429)
# Keys under which fsspec's file systems report the version of an object; the first one present is used.
VERSION_KEYS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")

# Schemes of object stores, which have no directories.
BUCKETS = ("gs", "gcs", "s3", "s3a", "az", "abfs")


@dataclass(frozen=True)
class Retry:
    """Attempts per read, and the pause between them: `wait_s`, doubled each time up to `max_wait_s`, times a random factor in [0.5, 1]."""

    attempts: int = 5
    wait_s: float = 0.5
    max_wait_s: float = 16.0

    def __post_init__(self):
        if self.attempts < 1:
            raise DataError(f"read attempts is {self.attempts}, expected at least 1")

    def pause(self, failed: int) -> float:
        """Seconds to wait after `failed` failures; random, so that many readers do not retry at the same moment."""
        return min(self.wait_s * 2 ** (failed - 1), self.max_wait_s) * random.uniform(0.5, 1.0)


RETRY = Retry()


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes, and a version that changes when the file is rewritten: modification time, or the object's etag or generation.

    modified_s: when it was last written, by the clock of the file system, in seconds since 1970; 0 where that is unknown.
    """

    size: int
    version: str
    modified_s: float = field(default=0.0, compare=False)


def location(path: Location) -> Location:
    """`path` as a location: text without a scheme, or with `file://`, is a local path."""
    text = str(path)
    if isinstance(path, str) and "://" in text:
        return Path(text.removeprefix("file://")) if text.startswith("file://") else text.rstrip("/")
    return Path(path)


def join(directory: Location, *names: str) -> Location:
    return directory.joinpath(*names) if isinstance(directory, Path) else "/".join((directory, *names))


def name_of(path: Location) -> str:
    return path.name if isinstance(path, Path) else path.rsplit("/", 1)[-1]


def parent(path: Location) -> Location:
    return path.parent if isinstance(path, Path) else path.rsplit("/", 1)[0]


def read(path: Location, retry: Retry = RETRY) -> bytes:
    """The content of a (small) file. FileNotFoundError, PermissionError, or ReadFailedError when every attempt failed."""
    if isinstance(path, Path):
        return _attempt(path, retry, path.read_bytes)
    return _attempt(path, retry, lambda: _bucket(path, lambda system, name: system.cat_file(name)))


def read_range(path: Location, offset: int, length: int, retry: Retry = RETRY) -> bytes:
    """`length` bytes from `offset` on; fewer if the file ends earlier. Errors as for `read`."""
    if isinstance(path, Path):
        return _attempt(path, retry, lambda: _read_local(path, offset, length))
    return _attempt(path, retry, lambda: _bucket(path, lambda system, name: system.cat_file(name, start=offset, end=offset + length)))


def list_files(directory: Location, retry: Retry = RETRY) -> dict[str, FileInfo]:
    """Name -> FileInfo of the files directly in `directory`, from one listing. FileNotFoundError if it does not exist."""
    if isinstance(directory, Path):
        return _attempt(directory, retry, lambda: _list_local(directory))
    entries = _attempt(directory, retry, lambda: _bucket(directory, _list_bucket))
    return {name_of(entry["name"]): _bucket_file_info(entry) for entry in entries if entry["type"] == "file"}


def list_dirs(directory: Location, retry: Retry = RETRY) -> list[str]:
    """Names of the directories directly in `directory`."""
    if isinstance(directory, Path):
        return _attempt(directory, retry, lambda: sorted(child.name for child in directory.iterdir() if child.is_dir()))
    entries = _attempt(directory, retry, lambda: _bucket(directory, _list_bucket))
    return sorted(name_of(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory")


def file_info(path: Location, retry: Retry = RETRY) -> FileInfo:
    """FileInfo of one file. Errors as for `read`."""
    if isinstance(path, Path):
        found = _attempt(path, retry, path.stat)
        return FileInfo(found.st_size, str(found.st_mtime_ns), found.st_mtime)
    try:
        # from the listing: in some file systems the metadata of a single object reports another version
        return list_files(parent(path), retry)[name_of(path)]
    except KeyError:
        raise FileNotFoundError(path) from None


def write(path: Location, data: bytes, retry: Retry = RETRY) -> None:
    """Writes a file at once: a reader sees all of it or nothing. OSError (of a bucket WriteFailedError) if that is not allowed or fails."""
    if isinstance(path, Path):
        write_atomically(path, data)
        return

    def put(system, name: str) -> None:
        try:
            system.pipe_file(name, data)
        except FileNotFoundError:
            if path.split("://", 1)[0] in BUCKETS:  # no directories: it is the bucket that does not exist
                raise
            system.makedirs(parent(name), exist_ok=True)
            system.pipe_file(name, data)

    try:
        _attempt(path, retry, lambda: _bucket(path, put))
    except DataError as error:  # no package opens such URLs, or every attempt failed
        if not isinstance(error, ReadFailedError):
            raise
        raise WriteFailedError(f"{path} cannot be written ({error.__cause__})") from error
    except Exception as error:  # bucket libraries raise their own error classes
        raise WriteFailedError(f"{path} cannot be written ({type(error).__name__}: {error})") from error


def remove(path: Location) -> None:
    """Removes a file if it exists."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        _bucket(path, lambda system, name: system.rm_file(name))


def remove_dir(directory: Location) -> None:
    """Removes the files directly in `directory`, and the directory itself if it is then empty."""
    with contextlib.suppress(FileNotFoundError):
        for name in list_files(directory):
            remove(join(directory, name))
    if isinstance(directory, Path):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _read_local(path: Path, offset: int, length: int) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, length, offset)
    finally:
        os.close(file)


def _list_local(directory: Path) -> dict[str, FileInfo]:
    found = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file():
                state = entry.stat()
                found[entry.name] = FileInfo(state.st_size, str(state.st_mtime_ns), state.st_mtime)
    return found


def _list_bucket(system, name: str) -> list[dict]:
    system.invalidate_cache(name)  # fsspec caches listings
    return system.ls(name, detail=True)


def _bucket_file_info(entry: dict) -> FileInfo:
    version = next((str(entry[key]) for key in VERSION_KEYS if entry.get(key)), "")
    written = entry.get("mtime")
    return FileInfo(int(entry["size"]), version, written.timestamp() if isinstance(written, datetime) else float(written or 0.0))


def _bucket(url: str, act: Callable[..., T]) -> T:
    """`act(file system, path of url in it)`. DataError if no installed package opens such URLs."""
    import fsspec

    scheme = url.split("://", 1)[0]
    try:
        system, name = fsspec.core.url_to_fs(url)
    except ImportError as error:
        needed = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}.get(scheme, "")
        package = f"the package {needed}" if needed else f"another package ({error})"
        raise DataError(
            f"{url}: reading {scheme}:// needs {package}, which is not installed; `pip install 'fsspec[{scheme}]'` installs the "
            f"version that fits fsspec {fsspec.__version__}"
        ) from error
    except ValueError as error:
        raise DataError(f"{url}: fsspec does not know the scheme {scheme}:// ({error})") from error
    return act(system, name)


def _attempt(path: Location, retry: Retry, action: Callable[[], T]) -> T:
    """`action()`, retried while it fails with a transient error."""
    started = time.monotonic()
    failed = 0
    while True:
        try:
            return action()
        except Exception as error:  # bucket libraries raise their own error classes
            if _is_permanent(error):
                if isinstance(path, str) and isinstance(error, ValueError) and not isinstance(error, DataError):
                    raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error  # no URL, say
                raise
            failed += 1
            if failed == retry.attempts:
                seconds = time.monotonic() - started
                raise ReadFailedError(
                    f"{path}: reading failed {failed} time(s) within {seconds:.1f} s, last with {type(error).__name__}: {error}"
                ) from error
            pause = retry.pause(failed)
            log.warning("%s: %s: %s; attempt %d of %d in %.1f s", path, type(error).__name__, error, failed + 1, retry.attempts, pause)
            time.sleep(pause)


def _is_permanent(error: Exception) -> bool:
    if isinstance(error, NON_RETRYABLE):
        return True
    code = str(getattr(error, "code", None) or getattr(error, "status", None))
    return code.isdigit() and 400 <= int(code) < 500 and int(code) not in RETRYABLE_HTTP
