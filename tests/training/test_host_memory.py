"""What is freed while a checkpoint is restored goes back to the system, also behind blocks that stay."""

import subprocess
import sys

# A block below glibc's adjusted threshold comes from the heap; freed, it stays with the process while anything above it is in use.
PROGRAM = """
import contextlib, sys
import numpy as np
from vpp_jax.training.host_memory import freed_at_once

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

del_me = np.ones(30 << 20, np.uint8)
del del_me  # from here on blocks of up to 30 MiB come from the heap
before = resident()
with freed_at_once() if sys.argv[1] == "inside" else contextlib.nullcontext():
    blocks = [np.ones(1 << 20, np.uint8) for _ in range(128)]
    last = blocks.pop()
    del blocks
    print(resident() - before)
"""


def kept(where: str) -> int:
    """MiB that stay with a process which freed 127 blocks of 1 MiB below one that it keeps."""
    return int(subprocess.run([sys.executable, "-c", PROGRAM, where], capture_output=True, text=True, check=True).stdout) >> 20


def test_freed_blocks_are_given_back():
    assert kept("inside") < 16 < 100 < kept("outside")
