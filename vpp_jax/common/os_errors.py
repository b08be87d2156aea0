"""What the machine refused (disk full, no permission, out of memory) as one paragraph: such errors are no bugs, but most do not say where.

Libraries wrap them: the cause may be several exceptions away, or only in the text of one that was raised in another language.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_TEXT = re.compile(r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written|ENOSPC")
MEMORY_TEXT = re.compile(r"RESOURCE_EXHAUSTED|[Oo]ut of memory|std::bad_alloc")
ADVICE = {
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EROFS: "its file system is mounted read-only: name another place",
    errno.EISDIR: "a directory stands where a file is expected",
    errno.ENOTDIR: "a file stands where a directory is expected",
    errno.EEXIST: "a file stands where a directory is expected",
    errno.ENAMETOOLONG: "shorten it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def explain(error: BaseException) -> str:
    """One paragraph about an error of the machine; '' for any other error."""
    for one in _chain(error):
        if is_full(one):
            return _full(one)
    if isinstance(error, MemoryError) or (type(error).__name__ == "JaxRuntimeError" and MEMORY_TEXT.search(str(error))):
        return f"out of memory: {' '.join(str(error).split())[:300] or 'Python could not allocate more'}. Use smaller sizes or batches"
    if isinstance(error, OSError) and error.errno is not None:
        place = f"{_shown(error.filename)}: " if error.filename is not None else ""
        advice = f"; {ADVICE[error.errno]}" if error.errno in ADVICE else ""
        return f"{place}{error.strerror or error}{advice}"
    return ""


def is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a limit on file sizes ended a write."""
    return getattr(error, "errno", None) in FULL or FULL_TEXT.search(str(error)) is not None


def _full(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    if name is None:
        found = re.search(r"/[\w./+=@%~-]+", str(error))
        name = found[0] if found else None
    place, free = (f" while {_shown(name)} was written", _free(name)) if name is not None else ("", "")
    reason = getattr(error, "strerror", None) or "no space left on device"
    return (
        f"{reason}{place}{free}. What was complete before is unharmed: free some space, and the same command continues from the last "
        "complete state"
    )


def _free(name: str | bytes) -> str:
    folder = Path(os.fsdecode(name))
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return f" ({shutil.disk_usage(folder).free / 1e9:.3f} GB free in {folder})"
    except OSError:
        return ""


def _shown(name: str | bytes | int) -> str:
    return str(name) if isinstance(name, int) else os.fsdecode(name)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it and what groups of errors hold, each once."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
        waiting += getattr(one, "exceptions", ())
