"""Normalizations. Statistics and results are in float32 at least: the caller casts to its compute type."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vpp_jax.ops.elementwise import at_least_float32


def group_norm(
    x: Float[Array, "b *s c"], scale: Float[Array, "c"], bias: Float[Array, "c"], *, groups: int, eps: float
) -> Float[Array, "b *s c"]:
    """Group normalization (Wu & He 2018) over all axes between the first and the last, and over equal slices of the last.

    Statistics are per-channel sums of y and y², averaged within groups of channels; the result is one affine map per (example, channel).
    The array is never reshaped to groups, which makes this several times faster than `nnx.GroupNorm` on CPU. y is x minus the group's
    mean at the first position: the variance does not depend on such a shift, and without it the difference of two large sums loses all
    precision in groups that are nearly constant (small images have many of those).
    """
    batch, channels = x.shape[0], x.shape[-1]
    axes = tuple(range(1, x.ndim - 1))

    def group_mean(per_channel: jax.Array) -> jax.Array:
        return jnp.repeat(per_channel.reshape(batch, groups, -1).mean(-1), channels // groups, axis=-1)

    def spread(per_channel: jax.Array) -> jax.Array:
        return jnp.expand_dims(per_channel, axes)

    x = at_least_float32(x)
    y = x - spread(group_mean(lax.stop_gradient(x[(slice(None), *(0,) * len(axes))])))
    mean = group_mean(jnp.mean(y, axes))
    variance = jnp.maximum(group_mean(jnp.mean(lax.square(y), axes)) - lax.square(mean), 0.0)
    gain = scale * lax.rsqrt(variance + eps)
    return y * spread(gain) + spread(bias - mean * gain)


def layer_norm(
    x: Float[Array, "*b c"], scale: Float[Array, "c"], bias: Float[Array, "c"] | None = None, *, eps: float
) -> Float[Array, "*b c"]:
    """Layer normalization (Ba et al. 2016) of the last axis."""
    wide = at_least_float32(x)
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    y = centred * lax.rsqrt(jnp.mean(lax.square(centred), -1, keepdims=True) + eps) * scale
    return y if bias is None else y + bias
