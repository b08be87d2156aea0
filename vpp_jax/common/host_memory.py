"""Settings of glibc's allocator: huge pages while models run on CPU, and immediate release of freed memory while a checkpoint is restored.

Other C libraries ignore them.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# mallopt(3): options, and the values that glibc's dynamic adjustment reaches after large blocks were freed
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_USUAL, _AT_ONCE = {_TRIM_THRESHOLD: 1 << 26, _MMAP_THRESHOLD: 1 << 25}, {_TRIM_THRESHOLD: 1 << 17, _MMAP_THRESHOLD: 1 << 17}
_TUNABLES, _HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"  # read when a process starts; no call sets it later


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with huge pages enabled for large blocks, unless it already sets that option.

    A program on CPU allocates its temporaries again in every call, and the kernel clears each page of 4 KiB on first access: a fifth of the
    CPU time of a training step of the video model at size `base`. With pages of 2 MiB there are 512 times fewer pages and TLB entries.
    """
    tunables = environment.get(_TUNABLES, "")
    if _HUGE_PAGES in tunables:
        return dict(environment)
    return {**environment, _TUNABLES: ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))}


def restart_with_huge_pages() -> None:
    """Re-executes this process (same ID, same arguments) with huge pages, if JAX will compute on CPU and they are not enabled yet."""
    environment = with_huge_pages(os.environ)
    if sys.platform == "linux" and computes_on_cpu() and environment != dict(os.environ):
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def computes_on_cpu() -> bool:
    """Whether JAX will use the CPU: JAX_PLATFORMS selects it, or no other platform is installed. Does not start JAX."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("libtpu", "jax_plugins"))


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Inside, freed blocks above 128 KiB are returned to the system at once.

    By default glibc retains freed blocks of up to 32 MiB in every thread's heap: restoring a checkpoint then takes 1.5 times the memory of
    the restored arrays.
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
