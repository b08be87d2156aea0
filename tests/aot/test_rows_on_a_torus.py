"""The rows that each host of a real slice holds: every row on exactly one of them, whatever the order of the chips."""

import json
import os
import subprocess
import sys

import pytest

from vpp_jax.aot.environment import VARIABLES, MissingCompilerError, require_compiler

PROGRAM = """
import json
from jax.experimental import topologies
from vpp_jax.parallel.mesh import MeshConfig, make_mesh, process_rows
devices = topologies.get_topology_desc("v5e:4x4", "tpu").devices
mesh = make_mesh(MeshConfig(data=-1, fsdp=16), devices)
print(json.dumps([process_rows(mesh, 32, process).tolist() for process in sorted({device.process_index for device in devices})]))
"""


@pytest.mark.medium
def test_rows_of_the_hosts_of_v5e_16(project):
    try:
        require_compiler()
    except MissingCompilerError:
        pytest.skip("libtpu is not installed (requirements/tpu.txt)")
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | VARIABLES | {"PYTHONPATH": f"{project}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(found.stdout.splitlines()[-1])
    assert [len(held) for held in rows] == [8, 8, 8, 8]
    assert sorted(row for held in rows for row in held) == list(range(32))
    assert rows[0] == [0, 1, 2, 3, 12, 13, 30, 31]  # the blocks 0, 1, 6 and 15: not consecutive
