"""The C library's allocator, told to keep what is freed while models run on processors, and to give it back while a checkpoint is restored.

Both are calls of mallopt(3), which other C libraries than glibc do not have: there they do nothing.
"""

import ctypes
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # options of mallopt(3)
_ADJUSTED = {_TRIM_THRESHOLD: 1 << 26, _MMAP_THRESHOLD: 1 << 25, _MMAP_MAX: 1 << 16}  # where glibc arrives after large blocks were freed
_AT_ONCE = {_TRIM_THRESHOLD: 1 << 17, _MMAP_THRESHOLD: 1 << 17, _MMAP_MAX: 1 << 16}
_KEPT = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}  # never; no block has a mapping of its own
_resting = _ADJUSTED  # the options outside `freed_at_once`


def keep_freed() -> None:
    """From now on freed blocks stay with the process and serve again, where JAX computes on processors. Call it before JAX starts.

    A program on CPU allocates its temporaries anew in every call. By default glibc maps and unmaps them each time, and the system clears
    every page before it hands it out: a fifth of a training step of the video model at size `base`. The peak stays the same. All threads
    share one heap, since the other heaps of glibc cannot keep blocks above 32 MiB.
    """
    global _resting
    if computes_on_processors():
        _resting = _KEPT
        _set({_ARENA_MAX: 1} | _KEPT)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Blocks above 128 KiB that are allocated inside go back to the system when they are freed.

    By default glibc keeps freed blocks of up to 32 MiB in every thread's heap: restoring a checkpoint then takes half as much again as the
    arrays that it restores.
    """
    _set(_AT_ONCE)
    try:
        yield
    finally:
        _set(_resting)


def computes_on_processors() -> bool:
    """Whether JAX, which this does not start, will take the CPU: it is told to, or no other platform is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))


def _set(options: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
