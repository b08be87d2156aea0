"""The attention kernel for TPUs, interpreted, against the plain form: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax import ops
from vpp_jax.ops.flash import flash_attention, flash_fits


@pytest.mark.medium
def test_kernel_equals_plain_attention():
    q, k, v, weights = (jax.random.normal(key, (1, 2, 256, 32)) for key in jax.random.split(jax.random.key(0), 4))

    def gradients(form):
        return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(form(*qkv) * weights), argnums=(0, 1, 2)))(q, k, v)

    value, grads = gradients(lambda q, k, v: flash_attention(2, q, k, v, interpret=True))
    expected, plain = gradients(lambda q, k, v: ops.attention(q, k, v, heads=2))
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for got, want in zip(grads, plain, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))  # the same sums in another order


@pytest.mark.parametrize(
    ("n", "m", "head_dim", "fits"),
    [
        (1024, 1024, 64, True),
        (256, 256, 64, True),
        (1024, 20, 64, False),
        (200, 200, 64, False),
        (640, 640, 64, False),
        (1024, 1024, 512, False),
    ],
)
def test_what_the_kernel_takes(n, m, head_dim, fits):
    assert flash_fits(n, m, head_dim) is fits
