"""cuDNN's attention kernel, without a GPU: what is lowered for one, and that the arrays around the kernel are laid out right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax import ops
from vpp_jax.ops import cudnn

CUDNN = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"  # the one place where JAX looks for the library


def program(platform: str, tokens: int, head_dim: int, dtype: str) -> str:
    """The gradient of attention with two heads, lowered for a platform."""
    x = jax.ShapeDtypeStruct((3, 2, tokens, 2 * head_dim), dtype)
    gradient = jax.grad(lambda q, k, v: jnp.sum(ops.attention(q, k, v, heads=2).astype(jnp.float32)), (0, 1, 2))
    return jax.jit(gradient).trace(x, x, x).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("platform", "tokens", "head_dim", "dtype", "fused"),
    [
        ("cuda", 256, 64, "bfloat16", True),
        ("cuda", 200, 64, "bfloat16", False),  # few tokens
        ("cuda", 256, 60, "bfloat16", False),  # a width that cuDNN does not take
        ("cuda", 256, 512, "bfloat16", False),
        ("cuda", 256, 64, "float32", False),
        ("cpu", 256, 64, "bfloat16", False),
    ],
)
def test_gpus_run_the_fused_kernel_where_it_fits(monkeypatch, platform, tokens, head_dim, dtype, fused):
    monkeypatch.setattr(CUDNN, lambda: 91000)
    text = program(platform, tokens, head_dim, dtype)
    assert ("__cudnn$fmhaSoftmax(" in text) == ("__cudnn$fmhaSoftmaxBackward(" in text) == fused


def test_without_cudnn_gpus_run_the_plain_form():
    assert "__cudnn" not in program("cuda", 256, 64, "bfloat16")


def test_heads_and_tokens_are_where_the_kernel_expects_them(monkeypatch):
    q, k, v = (jax.random.normal(key, (2, 3, 8, 12)) for key in jax.random.split(jax.random.key(0), 3))
    monkeypatch.setattr(cudnn, "_fused", jax.nn.dot_product_attention)  # the same function of the same layout, without cuDNN
    np.testing.assert_allclose(cudnn.cudnn_attention(2, q, k, v), ops.attention(q, k, v, heads=2), atol=1e-5)
