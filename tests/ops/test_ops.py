"""Operations without a file of their own, and the border between models and kernels."""

import ast

import jax
import jax.numpy as jnp
import numpy as np

from vpp_jax import ops
from vpp_jax.ops import gated_feed_forward

KERNELS = {"platform_dependent", "conv_general_dilated", "dot_product_attention", "pallas"}


def test_models_name_operations_and_know_no_kernel(project):
    """Which kernel runs on which platform is decided in `vpp_jax.ops` alone; models see what the package exports."""
    called = set()
    for path in sorted((project / "vpp_jax" / "models").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [f"{getattr(node, 'module', '')}.{alias.name}".lstrip(".") for alias in node.names]
                assert not any(name.startswith("vpp_jax.ops.") for name in names), f"{path.name}:{node.lineno}: import ops, not its parts"
                assert not any(set(name.split(".")) & KERNELS for name in names), f"{path.name}:{node.lineno}: {names}"
            if isinstance(node, ast.Attribute):
                assert node.attr not in KERNELS, f"{path.name}:{node.lineno}: {node.attr}"
                if isinstance(node.value, ast.Name) and node.value.id == "ops":
                    called.add(node.attr)
    assert called <= set(ops.__all__)
    assert {"attention", "multi_head_attention", "conv2d", "upsample_conv2d", "temporal_conv", "feed_forward", "group_norm"} <= called


def test_feed_forward_in_blocks_of_rows_is_the_same(monkeypatch):
    """The form for CPU against the one for accelerators, values and gradients."""
    rng = np.random.default_rng(0)
    x, up, down = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 8, 4), (4, 16), (8, 4)))
    up, down = ops.Affine(up, jnp.arange(16.0)), ops.Affine(down, jnp.arange(4.0))
    hidden = x @ up.kernel + up.bias
    expected = hidden[..., :8] * jax.nn.gelu(hidden[..., 8:], approximate=False) @ down.kernel + down.bias

    def value_and_gradients(smallest):
        monkeypatch.setattr(gated_feed_forward, "BLOCKWISE_MIN_SIZE", smallest)
        loss = jax.jit(jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(ops.feed_forward(*args))), (0, 1, 2)))
        assert ("while" in loss.lower(x, up, down).as_text()) == (smallest == 256)
        return jax.tree.leaves(loss(x, up, down))

    np.testing.assert_allclose(ops.feed_forward(x, up, down), expected, rtol=1e-5)
    monkeypatch.setattr(gated_feed_forward, "BLOCK_ROWS", 4)
    for blocks, whole in zip(value_and_gradients(256), value_and_gradients(257), strict=True):
        np.testing.assert_allclose(blocks, whole, atol=1e-4 * float(jnp.abs(whole).max()))
