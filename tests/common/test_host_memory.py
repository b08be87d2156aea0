"""Huge pages where models run on CPU; freed memory goes back to the system while a checkpoint is restored."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpp_jax.cli import main as command
from vpp_jax.common.host_memory import computes_on_cpu, with_huge_pages

# A block below glibc's adjusted threshold comes from the heap; freed, it stays with the process while anything above it is in use.
RESIDENT = """
import contextlib, sys
import numpy as np
from vpp_jax.common.host_memory import freed_at_once

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

del_me = np.ones(30 << 20, np.uint8)
del del_me  # from here on blocks of up to 30 MiB come from the heap
before = resident()
with freed_at_once() if "inside" in sys.argv else contextlib.nullcontext():
    blocks = [np.ones(1 << 20, np.uint8) for _ in range(128)]
    last = blocks.pop()
    del blocks
    print((resident() - before) >> 20)
"""
# A program with temporaries of 128 MiB or more: 32768 pages of 4 KiB.
PAGES = """
import resource, sys
from vpp_jax.common.host_memory import restart_with_huge_pages

if "huge" in sys.argv:
    restart_with_huge_pages()
import jax, jax.numpy as jnp

program = jax.jit(lambda x: jnp.sin(jnp.sin(x @ x.T) @ jnp.cos(x @ x.T)) @ x)
x = jnp.ones((4096, 16))
assert program.lower(x).compile().memory_analysis().temp_size_in_bytes >= 128 << 20
pages = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(pages))
"""
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def printed(program: str, *arguments: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | variables
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("variables", [{}, with_huge_pages({})])
def test_blocks_freed_while_restoring_are_given_back(variables):
    """MiB that stay with a process which freed 127 blocks of 1 MiB below one that it keeps."""
    assert printed(RESIDENT, "inside", **variables) < 16 < 64 < printed(RESIDENT, **variables)


@pytest.mark.medium
def test_temporaries_lie_in_huge_pages():
    asked, not_asked = printed(PAGES, "huge", JAX_PLATFORMS="cpu"), printed(PAGES, JAX_PLATFORMS="cpu")
    if SETTING.is_file() and "[madvise]" in SETTING.read_text():
        assert asked < 5000 < 30000 < not_asked
    else:  # this kernel gives huge pages to everybody or to nobody: asking changes nothing
        assert asked == pytest.approx(not_asked, rel=0.2, abs=500)


def test_what_the_environment_says_already_is_kept():
    assert with_huge_pages({"A": "b"}) == {"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    other = "glibc.malloc.check=1"
    assert with_huge_pages({"GLIBC_TUNABLES": other})["GLIBC_TUNABLES"] == f"{other}:glibc.malloc.hugetlb=1"
    chosen = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert with_huge_pages(chosen) == chosen


@pytest.mark.parametrize(
    ("arguments", "platforms", "tunables", "expected"),
    [
        (["--debug", "train", "--workdir=x"], "cpu", "", True),
        (["report", "train"], "cpu", "", False),  # runs no model
        (["eval", "calvin"], "tpu", "", False),
        (["eval", "calvin"], "cpu", "glibc.malloc.hugetlb=1", False),  # the process that was started anew
    ],
)
def test_commands_that_run_models_on_cpu_start_anew(monkeypatch, arguments, platforms, tunables, expected):
    started = []
    monkeypatch.setattr("sys.argv", ["vpp", *arguments])
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "vpp_jax", *arguments])
    monkeypatch.setattr("sys.platform", "linux")  # huge pages are a matter of glibc
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setattr("os.execve", lambda *how: started.append(how))
    monkeypatch.setattr(command, "main", lambda arguments: 0)
    with pytest.raises(SystemExit):
        command.run()
    assert bool(started) is expected
    for program, line, environment in started:
        assert (program, line) == (sys.executable, [sys.executable, "-m", "vpp_jax", *arguments])
        assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("platforms", "installed", "expected"),
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
    assert computes_on_cpu() is expected
