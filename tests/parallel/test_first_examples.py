"""Previews: the first examples of a batch, one at a time on each device, at a cost that does not depend on the batch."""

import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.parallel.first_examples import map_first_examples

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from vpp_jax.config import MeshConfig
from vpp_jax.parallel.first_examples import map_first_examples
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import batch_sharding, make_mesh

weights = jax.random.normal(jax.random.key(0), (64, 2048))

def predict(examples):
    noise = jax.vmap(lambda key: jax.random.normal(key, (64,)))(examples["keys"])
    return jnp.tanh((examples["x"] + noise) @ weights)

answers = {}
for name, count, sizes in (("eight_of_eight", 8, (2, 4, 1)), ("three_of_eight", 3, (2, 4, 1)), ("five_of_four", 5, (4, 1, 2))):
    for rows in (8, 64):
        examples = {"x": jax.random.normal(jax.random.key(1), (64, 64))[:rows], "keys": jax.random.split(jax.random.key(2), 64)[:rows]}
        expected = predict(examples)[:count]
        mesh = make_mesh(MeshConfig(*sizes))
        with on_mesh(mesh, 0):
            run = jax.jit(lambda examples: map_first_examples(predict, examples, count))
            compiled = run.lower(jax.device_put(examples, batch_sharding(mesh))).compile()
            found = compiled(jax.device_put(examples, batch_sharding(mesh)))
        answers[f"{name}/{rows}"] = {
            "error": float(jnp.abs(found - expected).max()),
            "replicated": found.is_fully_replicated,
            "flops": compiled.cost_analysis()["flops"],
            "temporaries": compiled.memory_analysis().temp_size_in_bytes,
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
@pytest.mark.parametrize("name", ["eight_of_eight", "three_of_eight", "five_of_four"])
def test_cost_of_a_device_does_not_depend_on_the_batch(answers, name):
    small, large = answers[f"{name}/8"], answers[f"{name}/64"]
    one_example = 2 * 64 * 2048
    assert small["flops"] == pytest.approx(large["flops"], rel=0.02)
    assert one_example < large["flops"] < 2 * one_example  # the body of the loop over turns counts once
    assert large["temporaries"] < 2 * small["temporaries"]


@pytest.mark.medium
def test_results_are_those_of_one_device(answers):
    for answer in answers.values():
        assert answer["error"] < 1e-5  # sums in another order
        assert answer["replicated"]


def test_without_a_mesh_examples_are_computed_one_by_one():
    seen = []

    def predict(examples):
        seen.append(examples.shape)
        return {"twice": 2 * examples}

    found = map_first_examples(predict, jnp.arange(10.0).reshape(5, 2), 3)
    assert set(seen) == {(1, 2)}
    np.testing.assert_array_equal(found["twice"], 2 * np.arange(6.0).reshape(3, 2))
    assert map_first_examples(predict, jnp.ones((2, 2)), 3)["twice"].shape == (2, 2)
