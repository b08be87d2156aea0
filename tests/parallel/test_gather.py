"""Weights gathered where they are read: eight simulated devices give the gradients of one, and only parameters are gathered."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, jax, jax.numpy as jnp, numpy as np
from vpp_jax.aot.collectives import collectives
from vpp_jax.aot.roofline import foreign_gathers
from vpp_jax.config import MeshConfig
from vpp_jax.functional import PureModule
from vpp_jax.models.unet_blocks import BlockShape, TransformerBlock, remat
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import batch_sharding, make_mesh
from vpp_jax.parallel.partition import partition

block = PureModule.of(lambda rngs: TransformerBlock(192, 2, BlockShape(16, 24, 8, "float32"), temporal=False, rngs=rngs))
params = jax.jit(block.init)(jax.random.key(0))
inputs = [jax.random.normal(jax.random.key(1), (8, 2, 16, 192)), jax.random.normal(jax.random.key(2), (8, 3, 24))]

def loss(params, x, text):
    return jnp.mean(remat(block.bind(params), x, text) ** 2)

expected = jax.jit(jax.grad(loss))(params, *inputs)
answers = {}
for name, sizes in (("fsdp", (2, 4, 1)), ("tensor", (2, 2, 2))):
    mesh = make_mesh(MeshConfig(*sizes))
    with on_mesh(mesh, 10_000):
        shardings = partition(params, mesh, 10_000)
        placed = jax.device_put(params, shardings), *jax.device_put(inputs, batch_sharding(mesh))
        step = jax.jit(jax.grad(loss), out_shardings=shardings).lower(*placed).compile()
        grads = step(*placed)
    split = [key for key, value in shardings.items() if "fsdp" in value.spec]
    found = collectives(step.as_text(), 8)
    answers[name] = {
        "split": len(split),
        "gathers": sum(entry.kind == "all-gather" for entry in found),
        "foreign": foreign_gathers(found, frozenset(value.shape for value in params.values())),
        "error": max(float(jnp.abs(grads[key] - value).max() / (jnp.abs(value).max() + 1e-9)) for key, value in expected.items()),
        "kept": all(grads[key].sharding.spec == shardings[key].spec for key in split),
    }
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.medium
@pytest.mark.parametrize("mesh", ["fsdp", "tensor"])
def test_gradients_are_those_of_one_device(answers, mesh):
    assert answers[mesh]["split"] >= 2
    assert answers[mesh]["error"] < 1e-5  # the sum over the batch in another order
    assert answers[mesh]["kept"]


@pytest.mark.medium
def test_only_parameters_are_gathered(answers):
    assert answers["fsdp"]["gathers"] >= answers["fsdp"]["split"]
    assert answers["fsdp"]["foreign"] == []
