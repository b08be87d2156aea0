"""Self-attention of many tokens on TPU, in blocks that remain in on-chip memory: JAX's splash kernel (Dao et al. 2022's method).

The default form writes heads x n x n scores to memory and reads them back several times in both passes; at 1024 tokens and 320 channels
that is a third of the memory traffic of a transformer block (`docs/measurements/tpu_compile.md`).
"""

import math
from typing import cast

import jax
from jaxtyping import Array, Float

from vpp_jax.parallel.batch_shard_map import shard_map_over_batch

BLOCK = 512  # tokens per block of queries or keys, at most
LANES = 128  # the number of tokens must be a multiple


def flash_fits(n: int, m: int, head_dim: int) -> bool:
    """Whether the kernel supports n queries, m keys and this head width."""
    return n == m and n % LANES == 0 and n % min(n, BLOCK) == 0 and head_dim <= LANES


def flash_attention(
    heads: int, q: Float[Array, "*b n c"], k: Float[Array, "*b n c"], v: Float[Array, "*b n d"], interpret: bool = False
) -> Float[Array, "*b n d"]:
    """softmax(q kᵀ/√(c/heads)) v per head. `interpret` runs the kernel without a TPU, slowly."""
    # imported here: Pallas takes a second to import
    from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes, FullMask, MultiHeadMask, make_splash_mha_single_device

    n = q.shape[-2]
    block = min(n, BLOCK)
    sizes = BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def shard(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = MultiHeadMask([FullMask((n, n))] * q.shape[1])
        return cast("jax.Array", jax.vmap(make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret))(q, k, v))

    scaled = q / math.sqrt(q.shape[-1] // heads)
    out = shard_map_over_batch(shard, *(x.reshape(-1, n, heads, x.shape[-1] // heads).swapaxes(1, 2) for x in (scaled, k, v)))
    return out.swapaxes(1, 2).reshape(*q.shape[:-1], -1)
