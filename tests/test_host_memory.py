"""Freed memory stays with a process that computes on processors, and goes back to the system while a checkpoint is restored."""

import os
import subprocess
import sys

import pytest

from vpp_jax.host_memory import computes_on_processors

# A block below glibc's adjusted threshold comes from the heap; freed, it stays with the process while anything above it is in use.
RESIDENT = """
import contextlib, sys
import numpy as np
from vpp_jax.host_memory import freed_at_once, keep_freed

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

if "kept" in sys.argv:
    keep_freed()
del_me = np.ones(30 << 20, np.uint8)
del del_me  # from here on blocks of up to 30 MiB come from the heap
before = resident()
with freed_at_once() if "inside" in sys.argv else contextlib.nullcontext():
    blocks = [np.ones(1 << 20, np.uint8) for _ in range(128)]
    last = blocks.pop()
    del blocks
    print((resident() - before) >> 20)
"""
# A program whose temporaries are two matrices of 64 MiB each, or more; the third call may find them as the second left them.
PAGES = """
import resource, sys
from vpp_jax.host_memory import freed_at_once, keep_freed

if "kept" in sys.argv:
    keep_freed()
import jax, jax.numpy as jnp

@jax.jit
def program(x):
    return jnp.sin(jnp.sin(x @ x.T) @ jnp.cos(x @ x.T)) @ x

x = jnp.ones((4096, 16))
assert program.lower(x).compile().memory_analysis().temp_size_in_bytes >= 128 << 20
for call in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
    if call == 0:
        with freed_at_once():  # as when a checkpoint is restored: what holds outside comes back
            pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(program: str, *arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("also", [(), ("kept",)])
def test_blocks_freed_while_restoring_are_given_back(also):
    """MiB that stay with a process which freed 127 blocks of 1 MiB below one that it keeps."""
    assert printed(RESIDENT, "inside", *also) < 16 < 64 < printed(RESIDENT, *also)


def test_temporaries_of_a_program_are_kept_for_its_next_call():
    """Pages that the system hands out during a call; a temporary of 128 MiB has 32768."""
    assert printed(PAGES, "kept") < 2000 < 30000 < printed(PAGES)


@pytest.mark.parametrize(
    "platforms, installed, expected",
    [
        ("cpu", ["libtpu"], True),
        ("cpu,tpu", [], True),
        ("tpu,cpu", [], False),
        ("", [], True),
        ("", ["libtpu"], False),
        ("", ["jax_plugins"], False),
    ],
)
def test_where_jax_will_compute(monkeypatch, platforms, installed, expected):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    assert computes_on_processors() is expected
