"""Float32 is multiplied as float32 on every platform; bfloat16 needs no other precision."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

from vpp_jax import ops
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.stages.specs import example_spec

HIGHEST = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


def products(jaxpr) -> list[tuple[str, tuple | None]]:
    """(type, precision) of every product of matrices and convolution that TPUs and GPUs run."""
    found = []
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append((str(eqn.invars[0].aval.dtype), eqn.params["precision"]))
        inner = [value for value in eqn.params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
        if eqn.primitive.name == "cond":  # the default branch of `platform_dependent` is the last; the others are for CPU
            inner = [eqn.params["branches"][-1]]
        found += [product for each in inner for product in products(each)]
    return found


@pytest.mark.parametrize("name", ["vae", "video", "policy"])
def test_every_product_of_a_training_step(micro_config, name):
    config = micro_config(name)
    stage = make_stage(config)
    batch = {key: jax.ShapeDtypeStruct((2, *spec.shape), spec.dtype) for key, spec in example_spec(config).items()}

    def loss(trainable, frozen, batch):
        return stage.loss(trainable, frozen, batch, jax.random.key(0))[0]

    found = products(jax.make_jaxpr(jax.grad(loss))(stage.abstract_trainable(), stage.abstract_frozen(), batch))
    assert len(found) > 20
    assert {precision for kind, precision in found if kind == "float32"} == {HIGHEST}


def test_bfloat16_keeps_the_default():
    def network(x, kernel):
        return ops.conv2d(ops.linear(x, ops.Affine(kernel)), jnp.ones((3, 3, 8, 8), x.dtype), jnp.ones(8, x.dtype), padding=1)

    x, kernel = jnp.ones((1, 8, 8, 8), jnp.bfloat16), jnp.ones((8, 8), jnp.bfloat16)
    assert products(jax.make_jaxpr(network)(x, kernel)) == [("bfloat16", None)] * 2
