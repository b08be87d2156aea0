"""Files written so that a reader sees the old one or the new one, never half of one."""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vpp_jax.common.errors import VppError


class ReadOnlyError(VppError, PermissionError):
    """A directory that cannot be written to."""


WRITE_BITS = 0o222
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(flag: str, value: str) -> Path:
    """`value` of `flag`, where a command writes to. VppError where it is a URL: as a path, `gs://bucket` would be a local folder `gs:`."""
    if URL.match(value):
        raise VppError(
            f"{flag}={value} is a URL, but this command writes to a file system: name a local path, or mount the bucket (e.g. "
            "with Cloud Storage FUSE), and otherwise copy the result afterwards"
        )
    return Path(value)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes `path`, a text as UTF-8. OSError where its directory is read-only."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def require_writable(path: Path) -> None:
    """Makes the directory of a file that a command writes at its end. OSError, e.g. a `ReadOnlyError`, where it could not be written."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.stat().st_mode & WRITE_BITS or not os.access(path.parent, os.W_OK):
        advice = "change its permissions, or name another place"
        raise ReadOnlyError(f"{path.parent} is read-only, so {path.name} cannot be written there: {advice}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` to be written inside the block; it takes the place of `path` when the block ends.

    After an exception `path` is what it was, and the temporary file is gone. The directory is created where it does not exist. One
    without any write bit is left alone even when the user is root and could write: somebody protected it on purpose.
    """
    require_writable(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")  # hosts that share a disk may share process numbers
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:  # of a write: it does not say of which file
        raise _of(error, path) from None
    finally:
        temporary.unlink(missing_ok=True)


class AppendedFile:
    """A file that grows by whole pieces: where one cannot be written, the file ends as before. OSError names the file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as this object

    def append(self, data: bytes, sync: bool = False) -> None:
        """`sync`: returns when the disk has it."""
        size, rest = os.fstat(self._file.fileno()).st_size, memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file.fileno(), size)
            raise _of(error, self.path) from None

    def close(self) -> None:
        self._file.close()


def _of(error: OSError, path: Path) -> OSError:
    if error.filename is None and error.errno is not None:
        error.filename = str(path)
    return error
