"""The import hook of `conftest.py` is at work: arguments of another shape or type are refused in each package, inside `jax.jit`, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from data_pipelines.openx.standardise import reached
from vpp_jax import ops
from vpp_jax.diffusion.edm import add_noise
from vpp_jax.functional import parameter_count


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.layer_norm(jnp.ones((2, 3)), jnp.ones(4), eps=1e-5),
        lambda: jax.jit(ops.conv2d)(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 3, 2)), jnp.ones(2)),
        lambda: jax.eval_shape(add_noise, jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(3)),
        lambda: ops.gelu(jnp.ones(3, jnp.int32)),
        lambda: parameter_count({"kernel": (3, 4)}),
        lambda: reached(np.ones(3)),
    ],
    ids=["widths differ", "inside jit", "batches differ", "integers", "no array", "another rank"],
)
def test_what_a_signature_excludes_is_refused(call):
    with pytest.raises(TypeCheckError):
        call()


def test_what_it_names_passes():
    assert ops.layer_norm(jnp.ones((2, 3)), jnp.ones(3), eps=1).shape == (2, 3)  # an int as a float
    assert parameter_count({"kernel": jax.ShapeDtypeStruct((3, 4), "float32")}) == 12
