"""The C library's allocator, told to give back what is freed while large arrays pass through host memory."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt(3): options, and the values that glibc's own adjustment arrives at after large blocks were freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL, _AT_ONCE = {_TRIM_THRESHOLD: 1 << 26, _MMAP_THRESHOLD: 1 << 25}, {_TRIM_THRESHOLD: 1 << 17, _MMAP_THRESHOLD: 1 << 17}


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Blocks above 128 KiB that are allocated inside go back to the system when they are freed.

    By default glibc keeps freed blocks of up to 32 MiB in every thread's heap: restoring a checkpoint then takes half as much again as the
    arrays that it restores. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    for option, value in _AT_ONCE.items():
        mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            mallopt(option, value)
