"""One function per operation. It selects the kernel for CPU, TPU or GPU: callers name the operation, not the implementation.

    linear, conv2d, upsample_conv2d, temporal_conv     maps along channels, images and frames
    multi_head_attention, attention                    with projections of a query and a context; of projected arrays
    feed_forward                                       the gated feed-forward of transformer blocks
    group_norm, layer_norm                             statistics and results in float32 at least
    silu, gelu, geglu, dropout, at_least_float32       elementwise

Arrays are channels-last; their type is the compute type, which the caller chooses. `Affine` and `Projections` are the weights of a linear
map and of an attention. Equal inputs give equal results up to rounding on every platform: float32 is multiplied as float32
(`vpp_jax.ops.precision`).
"""

from vpp_jax.ops.convolution import conv2d, temporal_conv, upsample_conv2d
from vpp_jax.ops.dense import Affine, linear
from vpp_jax.ops.dot_product_attention import Projections, attention, multi_head_attention
from vpp_jax.ops.elementwise import at_least_float32, dropout, gelu, silu
from vpp_jax.ops.gated_feed_forward import feed_forward, geglu
from vpp_jax.ops.normalization import group_norm, layer_norm

__all__ = [
    "Affine",
    "Projections",
    "at_least_float32",
    "attention",
    "conv2d",
    "dropout",
    "feed_forward",
    "geglu",
    "gelu",
    "group_norm",
    "layer_norm",
    "linear",
    "multi_head_attention",
    "silu",
    "temporal_conv",
    "upsample_conv2d",
]
