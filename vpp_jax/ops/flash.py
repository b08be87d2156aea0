"""Self-attention of many tokens on TPU, in blocks that never leave the chip's fast memory: JAX's splash kernel (Dao et al. 2022's method).

The plain form writes heads x n x n scores to memory and reads them back several times, forwards and backwards; at 1024 tokens and 320
channels that is a third of what a transformer block moves (`docs/measurements/tpu_compile.md`).
"""

import math

import jax
from jaxtyping import Array, Float

from vpp_jax.parallel.batch_shard_map import shard_map_over_batch

BLOCK = 512  # tokens of a block of queries or keys, fewer where there are fewer
LANES = 128  # tokens come in multiples of it


def flash_fits(n: int, m: int, head_dim: int) -> bool:
    """Whether the kernel takes n queries, m keys and heads of this width."""
    return n == m and n % LANES == 0 and n % min(n, BLOCK) == 0 and head_dim <= LANES


def flash_attention(
    heads: int, q: Float[Array, "*b n c"], k: Float[Array, "*b n c"], v: Float[Array, "*b n d"], interpret: bool = False
) -> Float[Array, "*b n d"]:
    """softmax(q kᵀ/√(c/heads)) v per head. `interpret` runs the kernel without a TPU, slowly."""
    # only where it is used: Pallas takes a second to import
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

    def rows(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mask = MultiHeadMask([FullMask((n, n))] * q.shape[1])
        return jax.vmap(make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret))(q, k, v)

    split = lambda x: x.reshape(-1, n, heads, x.shape[-1] // heads).swapaxes(1, 2)  # noqa: E731
    out = shard_map_over_batch(rows, split(q / math.sqrt(q.shape[-1] // heads)), split(k), split(v))
    return out.swapaxes(1, 2).reshape(*q.shape[:-1], -1)
