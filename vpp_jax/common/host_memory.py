"""The C library's allocator: huge pages while models run on CPU, and what is freed given back while a checkpoint is restored.

Both are options of glibc; other C libraries do not read them.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# mallopt(3): options, and the values that glibc's own adjustment arrives at after large blocks were freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL, _AT_ONCE = {_TRIM_THRESHOLD: 1 << 26, _MMAP_THRESHOLD: 1 << 25}, {_TRIM_THRESHOLD: 1 << 17, _MMAP_THRESHOLD: 1 << 17}
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"  # read when a process starts; no call sets it later


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process whose large blocks are to lie in huge pages; one that says something about them is left as it is.

    A program on CPU allocates its temporaries anew in every call, and the system clears each of their pages of 4 KiB as it is touched: a
    fifth of the processor time of a training step of the video model at size `base`. Pages of 2 MiB are 512 times fewer, and so are the
    addresses to translate.
    """
    tunables = environment.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables:
        return dict(environment)
    return {**environment, _TUNABLES: ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))}


def restart_with_huge_pages() -> None:
    """Starts this process anew (same ID, same arguments) where JAX will compute on CPU and huge pages are not asked for yet."""
    environment = with_huge_pages(os.environ)
    if sys.platform == "linux" and computes_on_cpu() and environment != dict(os.environ):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def computes_on_cpu() -> bool:
    """Whether JAX, which this does not start, will take the CPU: it is told to, or no other platform is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Blocks above 128 KiB that are allocated inside go back to the system when they are freed.

    By default glibc keeps freed blocks of up to 32 MiB in every thread's heap: restoring a checkpoint then takes half as much again as the
    arrays that it restores.
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
