"""Files where they lie: local paths, and buckets through fsspec (`gs://`, `s3://`, `memory://`, ...).

A location is a `pathlib.Path` (local) or a `str` with a scheme (everything else). Nothing is downloaded as a whole that is asked for
in part. Reads that fail for a passing reason are repeated with growing pauses.
"""

import contextlib
import itertools
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data_pipelines.errors import DataError, ReadFailedError
from vpp_jax.common.files import write_atomically

Location = Path | str
T = TypeVar("T")
log = logging.getLogger(__name__)

# Errors that another attempt would only repeat.
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
# HTTP answers in the 4xx range that do pass: request timeout, too many requests.
RETRYABLE_HTTP = (408, 429)
# What tells two versions of an object apart, by the names that fsspec's file systems use; the first one present counts.
VERSION_KEYS = ("etag", "ETag", "generation", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True)
class Retry:
    """How often a read is tried, and the pauses between: `wait_s`, doubled each time up to `max_wait_s`, times 0.5 to 1 by chance."""

    attempts: int = 5
    wait_s: float = 0.5
    max_wait_s: float = 16.0

    def __post_init__(self):
        if self.attempts < 1:
            raise DataError(f"read attempts is {self.attempts}, expected at least 1")

    def pause(self, failed: int) -> float:
        """Seconds to wait after `failed` failures. By chance, so that a thousand readers do not come back at the same moment."""
        return min(self.wait_s * 2 ** (failed - 1), self.max_wait_s) * random.uniform(0.5, 1.0)


RETRY = Retry()


@dataclass(frozen=True)
class FileInfo:
    """Size in bytes, and a version that changes when the file is written anew: modification time, or the bucket's etag or generation."""

    size: int
    version: str


def location(path: Location) -> Location:
    """`path` as a location: text without a scheme, and `file://`, is a local path."""
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
    """A whole (small) file. FileNotFoundError, PermissionError, or ReadFailedError when every attempt failed."""
    if isinstance(path, Path):
        return _attempt(path, retry, path.read_bytes)
    return _attempt(path, retry, lambda: _bucket(path, lambda system, name: system.cat_file(name)))


def read_range(path: Location, offset: int, length: int, retry: Retry = RETRY) -> bytes:
    """`length` bytes from `offset` on; fewer where the file ends earlier. Errors as `read`."""
    if isinstance(path, Path):
        return _attempt(path, retry, lambda: _read_local(path, offset, length))
    return _attempt(path, retry, lambda: _bucket(path, lambda system, name: system.cat_file(name, start=offset, end=offset + length)))


def list_files(directory: Location, retry: Retry = RETRY) -> dict[str, FileInfo]:
    """Name -> status of the files directly in `directory`: one listing, however many files. FileNotFoundError where it is not there."""
    if isinstance(directory, Path):
        return _attempt(directory, retry, lambda: _list_local(directory))
    entries = _attempt(directory, retry, lambda: _bucket(directory, _list_bucket))
    return {name_of(entry["name"]): _bucket_file_info(entry) for entry in entries if entry["type"] == "file"}


def list_dirs(directory: Location, retry: Retry = RETRY) -> list[str]:
    """Names of the folders directly in `directory`."""
    if isinstance(directory, Path):
        return _attempt(directory, retry, lambda: sorted(child.name for child in directory.iterdir() if child.is_dir()))
    entries = _attempt(directory, retry, lambda: _bucket(directory, _list_bucket))
    return sorted(name_of(entry["name"].rstrip("/")) for entry in entries if entry["type"] == "directory")


def file_info(path: Location, retry: Retry = RETRY) -> FileInfo:
    """Of one file; errors as `read`."""
    if isinstance(path, Path):
        found = _attempt(path, retry, path.stat)
        return FileInfo(found.st_size, str(found.st_mtime_ns))
    try:
        # not asked of the file alone, which gives other versions in some file systems
        return list_files(parent(path), retry)[name_of(path)]
    except KeyError:
        raise FileNotFoundError(path) from None


def write(path: Location, data: bytes) -> None:
    """Writes a small file so that a reader sees the old one or the new one. OSError where that is not allowed or fails."""
    if isinstance(path, Path):
        write_atomically(path, data)
        return

    def put(system, name: str) -> None:
        try:
            system.pipe_file(name, data)
        except FileNotFoundError:  # buckets have no folders, other file systems behind fsspec do
            system.makedirs(parent(name), exist_ok=True)
            system.pipe_file(name, data)

    try:
        _bucket(path, put)
    except (OSError, DataError):
        raise
    except Exception as error:  # bucket libraries have error classes of their own
        raise OSError(f"{path} cannot be written ({type(error).__name__}: {error})") from error


def remove(path: Location) -> None:
    """Removes a file if it is there."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        _bucket(path, lambda system, name: system.rm_file(name))


def remove_folder(folder: Location) -> None:
    """Removes the files directly in `folder`, and the folder unless something else is in it."""
    with contextlib.suppress(FileNotFoundError):
        for name in list_files(folder):
            remove(join(folder, name))
    if isinstance(folder, Path):
        with contextlib.suppress(OSError):
            folder.rmdir()


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
                found[entry.name] = FileInfo(state.st_size, str(state.st_mtime_ns))
    return found


def _list_bucket(system, name: str) -> list[dict]:
    system.invalidate_cache(name)  # fsspec remembers listings, also of what has changed since
    return system.ls(name, detail=True)


def _bucket_file_info(entry: dict) -> FileInfo:
    return FileInfo(int(entry["size"]), next((str(entry[key]) for key in VERSION_KEYS if entry.get(key)), ""))


def _bucket(url: str, act: Callable[..., T]) -> T:
    """`act(file system, its name for url)`. DataError where no installed package opens such URLs."""
    import fsspec

    scheme = url.split("://", 1)[0]
    try:
        system, name = fsspec.core.url_to_fs(url)
    except ImportError as error:
        needed = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}.get(scheme, "")
        package = f"the package {needed}" if needed else f"another package ({error})"
        raise DataError(
            f"{url}: reading {scheme}:// needs {package}, which is not installed; `pip install 'fsspec[{scheme}]'` brings the "
            f"version that fits fsspec {fsspec.__version__}"
        ) from error
    except ValueError as error:
        raise DataError(f"{url}: fsspec knows no scheme {scheme}:// ({error})") from error
    return act(system, name)


def _attempt(path: Location, retry: Retry, action: Callable[[], T]) -> T:
    """`action()`, repeated while it fails for a reason that may pass."""
    started = time.monotonic()
    for failed in itertools.count(1):
        try:
            return action()
        except Exception as error:  # bucket libraries have error classes of their own
            if _is_permanent(error):
                raise
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
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return str(code).isdigit() and 400 <= int(code) < 500 and int(code) not in RETRYABLE_HTTP
