"""Small files written so that a reader sees the old one or the new one, never half of one."""

import os
import secrets
from pathlib import Path

WRITE_BITS = 0o222


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `path` through a temporary neighbour. OSError where the directory is read-only.

    A directory without any write bit is left alone even when the user is root and could write: somebody protected it on purpose.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.stat().st_mode & WRITE_BITS or not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} is read-only")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")  # hosts that share a disk may share process numbers
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
