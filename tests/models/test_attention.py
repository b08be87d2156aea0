"""Attention modules: names, biases and widths of their parameters."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vpp_jax.functional import PureModule
from vpp_jax.models.attention import Attention, FusedAttention


def test_attention_names_biases_and_widths():
    pure = PureModule.of(lambda rngs: Attention(6, heads=2, head_dim=4, context_dim=3, rngs=rngs))
    shapes = {name: spec.shape for name, spec in pure.abstract.items()}
    assert shapes == {
        "to_q.kernel": (6, 8),
        "to_k.kernel": (3, 8),
        "to_v.kernel": (3, 8),
        "to_out.0.kernel": (8, 6),
        "to_out.0.bias": (6,),
    }
    names = ("query", "key", "value", "c_proj")
    pure = PureModule.of(lambda rngs: Attention(6, heads=2, qkv_bias=True, out_bias=False, names=names, rngs=rngs))
    assert {name for name in pure.abstract if name.endswith("bias")} == {"query.bias", "key.bias", "value.bias"}
    with pytest.raises(ValueError, match="heads"):
        Attention(6, heads=4, rngs=nnx.Rngs(0))


def test_fused_projection_equals_separate_ones():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)
    fused, separate = FusedAttention(6, heads=2, rngs=nnx.Rngs(0)), Attention(6, heads=2, qkv_bias=True, rngs=nnx.Rngs(1))
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        getattr(separate, name).kernel[...] = fused.qkv.kernel[...][:, 6 * i : 6 * i + 6]
    separate.to_out[0].kernel[...] = fused.proj.kernel[...]
    np.testing.assert_allclose(fused(x), separate(x), atol=1e-6)
