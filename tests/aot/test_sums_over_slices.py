"""Each sum over slices is a transfer with semaphores of its own, of which a chip has 512: they must not be under way all at once."""

import json
import os
import subprocess
import sys

import pytest

from vpp_jax.aot.environment import VARIABLES, MissingCompilerError, require_compiler

LAYERS = 12
PROGRAM = f"""
import json, re
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from vpp_jax.parallel.mesh import MeshConfig, compiler_options, make_mesh

jax.config.update("jax_optimization_level", "O0")
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
mesh = make_mesh(MeshConfig(data=2, fsdp=4), devices)
shards = NamedSharding(mesh, P("fsdp"))

def loss(kernels, x):
    for kernel in kernels:
        x = jnp.tanh(x @ kernel)
    return jnp.mean(x**2)

def step(kernels, x):
    gradients = jax.grad(loss)(kernels, x)
    norm = jnp.sqrt(sum(jnp.sum(gradient**2) for gradient in gradients))
    return [kernel - gradient / norm for kernel, gradient in zip(kernels, gradients)]

kernels = [jax.ShapeDtypeStruct((128, 128), jnp.float32, sharding=shards)] * {LAYERS}
x = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, P(("data", "fsdp"))))
lowered = jax.jit(step, out_shardings=[shards] * {LAYERS}).lower(kernels, x)

def most_under_way(options):
    now = most = 0
    for kind in re.findall(r"^ *%?(recv|recv-done)[.0-9]* = ", lowered.compile(options).as_text(), re.MULTILINE):
        now += 1 if kind == "recv" else -1
        most = max(most, now)
    return most

ours = compiler_options(list(devices))
one_slice = compiler_options([device for device in devices if device.slice_index == devices[0].slice_index])
print(json.dumps(dict(
    ours=most_under_way(ours),
    list=most_under_way(ours | {{"xla_memory_scheduler": "list"}}),
    only_here=sorted(ours.keys() - one_slice.keys()),
)))
"""


@pytest.mark.medium
def test_one_sum_over_slices_at_a_time(project):
    """The scheduler that the compiler takes for large programs by itself opens all of them first."""
    try:
        require_compiler()
    except MissingCompilerError:
        pytest.skip("libtpu is not installed (requirements/tpu.txt)")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | VARIABLES | {"XLA_FLAGS": "", "PYTHONPATH": f"{project}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"ours": 1, "list": LAYERS, "only_here": ["xla_memory_scheduler"]}
