"""The gated feed-forward of transformer blocks."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vpp_jax.ops.dense import Affine, linear
from vpp_jax.ops.elementwise import gelu

# On CPU, if the hidden layer has more than BLOCKWISE_MIN_SIZE entries, the feed-forward is computed for BLOCK_ROWS rows at a time, which
# remain in the caches (`benchmarks/cpu_forms.py`).
BLOCK_ROWS, BLOCKWISE_MIN_SIZE = 512, 2**22


def geglu(x: Float[Array, "*b two_h"]) -> Float[Array, "*b h"]:
    """value · GELU(gate), where (value, gate) are the halves of x (Shazeer 2020)."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * gelu(gate)


def feed_forward(x: Float[Array, "*b c"], up: Affine, down: Affine) -> Float[Array, "*b o"]:
    """down(geglu(up(x))) at every position: `up` maps c to twice the hidden width, `down` the hidden width to o."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) % BLOCK_ROWS == 0 and len(rows) * up.kernel.shape[-1] >= BLOCKWISE_MIN_SIZE:
        y = lax.platform_dependent(rows, up, down, cpu=_blockwise, default=_whole)
    else:
        y = _whole(rows, up, down)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _whole(rows: jax.Array, up: Affine, down: Affine) -> jax.Array:
    return linear(geglu(linear(rows, up)), down)


def _blockwise(rows: jax.Array, up: Affine, down: Affine) -> jax.Array:
    blocks = rows.reshape(-1, BLOCK_ROWS, rows.shape[-1])
    return lax.map(lambda block: _whole(block, up, down), blocks).reshape(len(rows), -1)
