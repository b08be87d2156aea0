"""One process at a time in a directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpp_jax.common.errors import VppError


class LockedError(VppError):
    """Another process is at work there."""


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Holds a lock on file `path` inside the block; LockedError, with the process that holds it, where another one does.

    The system releases the lock when its process ends, however it ends: what a killed process leaves behind locks nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LockedError(f"{what} is run by another process ({holder}): wait for it, end it, or choose another directory") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
