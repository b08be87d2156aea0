"""Which process holds which rows of a batch, where they are not consecutive: each example gets the noise of its row in the global batch."""

import os
import socket
import subprocess
import sys

import pytest

# Two processes with two devices each; the mesh takes them in turns, as a torus does: process 0 holds rows 0, 1, 4 and 5 of 8.
PROGRAM = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh
from vpp_jax.parallel.mesh import AXES, process_rows, put_batch

jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
devices = np.array(jax.devices())[[0, 2, 1, 3]].reshape(2, 2, 1)
mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)
whole = np.arange(24.0).reshape(8, 3)
rows = process_rows(mesh, 8)
print(rows.tolist())
placed = put_batch({"x": whole[rows]}, mesh, 8)["x"]
np.testing.assert_array_equal(multihost_utils.process_allgather(placed, tiled=True), whole)
"""


@pytest.mark.medium
def test_rows_of_two_processes_whose_devices_alternate(project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command, environment = [sys.executable, "-c", PROGRAM, address], os.environ | {"PYTHONPATH": str(project), "JAX_PLATFORMS": "cpu"}
    both = [
        subprocess.Popen([*command, str(index)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    ended = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert [output.splitlines()[0] for output, _ in ended] == ["[0, 1, 4, 5]", "[2, 3, 6, 7]"]
