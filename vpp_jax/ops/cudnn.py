"""Attention of many tokens on NVIDIA GPUs: cuDNN's fused kernel (flash attention), which does not write scores to memory."""

import jax
from jaxtyping import Array, Float

from vpp_jax.ops.dense import split_heads
from vpp_jax.parallel.batch_shard_map import shard_map_over_batch


def cudnn_fits(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> bool:
    """Whether cuDNN is installed and supports these types, head widths and lengths, by JAX's own checks; nothing is computed.

    They depend on the versions of cuDNN and of the GPU (heads of at most 128 numbers, 256 from Hopper on, multiples of 8, two bytes each).
    """
    try:
        jax.eval_shape(lambda *qkv: _fused(*(split_heads(x, heads) for x in qkv)), *(x.reshape(-1, *x.shape[-2:]) for x in (q, k, v)))
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True


def cudnn_attention(heads: int, q: Float[Array, "*b n c"], k: Float[Array, "*b m c"], v: Float[Array, "*b m c"]) -> Float[Array, "*b n c"]:
    """softmax(q kᵀ/√(c/heads)) v per head."""

    def shard(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return _fused(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)

    q_heads, k_heads, v_heads = (split_heads(x.reshape(-1, *x.shape[-2:]), heads).swapaxes(1, 2) for x in (q, k, v))
    return shard_map_over_batch(shard, q_heads, k_heads, v_heads).swapaxes(1, 2).reshape(q.shape)


def _fused(q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]) -> Float[Array, "b n h d"]:
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
