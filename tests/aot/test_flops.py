"""FLOPs counted on jaxprs against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from vpp_jax import ops
from vpp_jax.aot.flops import count_flops


def abstract(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_products_and_convolutions():
    assert count_flops(lambda a, b: a @ b, abstract(3, 5), abstract(5, 7)) == 2 * 3 * 5 * 7

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4)
    assert count_flops(convolve, abstract(2, 8, 8, 4), abstract(3, 3, 4, 6)) == forward


def test_products_on_a_matrix_unit():
    """Sums and outputs in multiples of its side, rows as they are."""
    assert count_flops(lambda a, b: a @ b, abstract(3, 5), abstract(5, 7), tile=4) == 2 * 3 * 8 * 8
    assert count_flops(lambda a, b: a @ b, abstract(3, 8), abstract(8, 4), tile=4) == 2 * 3 * 8 * 4

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, kernel = abstract(2, 8, 8, 5), abstract(3, 3, 5, 6)
    forward = 2 * (2 * 8 * 8) * (3 * 3 * 8) * 8
    assert count_flops(convolve, x, kernel, tile=4) == forward
    gradient = count_flops(jax.grad(lambda kernel, x: jnp.sum(convolve(x, kernel) ** 2)), kernel, x, tile=4) - forward
    assert gradient == 2 * (3 * 3 * 5) * (2 * 8 * 8) * 8  # a sum over 128 positions


def test_a_gradient_costs_twice_the_forward_pass_and_recomputation_once_more():
    def network(w, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ w[0]) @ w[1]))

    w, x = abstract(2, 8, 8), abstract(4, 8)
    forward = count_flops(network, w, x)
    # x is not trained: the first layer's input has no gradient, which saves one of six products
    assert count_flops(jax.grad(network), w, x) == 3 * forward - forward / 2
    recomputed = count_flops(jax.grad(lambda w, x: jax.checkpoint(network)(w, x)), w, x)
    assert recomputed == pytest.approx(4 * forward - forward / 2)


def test_loops_count_every_turn():
    assert count_flops(lambda a: lax.scan(lambda c, _: (c @ a, None), a, None, length=10)[0], abstract(4, 4)) == 10 * 2 * 4**3


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_forms_of_single_devices_do_not_count(dtype):
    """512 tokens: attention has a CPU form and, in bfloat16, a TPU kernel besides the default one."""
    q = abstract(2, 512, 64, dtype=dtype)
    assert count_flops(lambda q: ops.attention(q, q, q, heads=2), q) == 2 * 2 * (2 * 512 * 512 * 64)
