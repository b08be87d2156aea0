"""Classifier-free guidance with a scale that increases linearly over the frames, as in Stable Video Diffusion.

Frame 0 is the given image and needs no guidance; later frames drift and need more. Guidance may be applied to network outputs or to
denoised samples: both branches are related by the same affine map.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def frame_guidance(frames: int, minimum: float, maximum: float) -> Float[np.ndarray, "t"]:
    """Guidance scales, `minimum` at frame 0 to `maximum` at the last frame, float32. One frame gets `minimum`."""
    if frames < 1:
        raise ValueError(f"guidance needs at least one frame, got {frames}")
    if not (math.isfinite(minimum) and math.isfinite(maximum) and 0 <= minimum <= maximum):
        raise ValueError(f"guidance scales must satisfy 0 <= minimum <= maximum, got {minimum} and {maximum}")
    return np.linspace(minimum, maximum, frames, dtype=np.float32)


def guide(
    unconditional: Float[Array, "b t h w c"], conditional: Float[Array, "b t h w c"], scales: Float[Array | np.ndarray, "t"]
) -> Float[Array, "b t h w c"]:
    """F_u + w_t·(F_c − F_u): scale 1 is the conditional prediction, 0 the unconditional one."""
    scales = jnp.asarray(scales, conditional.dtype).reshape(1, -1, 1, 1, 1)
    return unconditional + scales * (conditional - unconditional)
