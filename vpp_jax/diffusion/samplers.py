"""Deterministic samplers of the probability-flow ODE dx/dσ = (x − D(x, σ))/σ, under `lax.scan`.

`ddim` and `euler` are the same first-order step in exact arithmetic and differ in rounding: DDIM in this parametrisation
(DPM-Solver-1) is what the policy was published with, Euler's form is Stable Video Diffusion's scheduler. `heun` is second order at
two denoiser calls per step (Karras et al. 2022, algorithm 1), with an Euler step into σ = 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# (x [b ...], sigma [b]) -> the denoised sample D(x, sigma) [b ...]
Denoiser = Callable[[Float[Array, "b ..."], Float[Array, "b"]], Float[Array, "b ..."]]


class Trajectory(NamedTuple):
    """What a sampler saw: the state before each step and the denoised sample predicted from it."""

    states: Float[Array, "steps b ..."]
    denoised: Float[Array, "steps b ..."]


def sample(
    denoise: Denoiser, x: Float[Array, "b ..."], sigmas: Float[Array, "steps+1"], kind: str = "ddim"
) -> Float[Array, "b ..."]:
    """Integrates from σ = sigmas[0] down to sigmas[-1].

    denoise: called with σ broadcast to one value per sample.
    x:       the sample at sigmas[0], i.e. unit normal noise times the ladder's `initial_scale`. The state is carried in float32.
    sigmas:  descending, as `sigma_ladder` makes them; only the last may be 0.
    kind:    'ddim', 'euler' or 'heun'.
    """
    return _integrate(denoise, x, sigmas, kind, collect=False)[0]


def sample_trajectory(
    denoise: Denoiser, x: Float[Array, "b ..."], sigmas: Float[Array, "steps+1"], kind: str = "ddim"
) -> tuple[Float[Array, "b ..."], Trajectory]:
    """`sample` together with every intermediate."""
    return _integrate(denoise, x, sigmas, kind, collect=True)


def _integrate(denoise: Denoiser, x: jax.Array, sigmas: jax.Array, kind: str, collect: bool):
    if kind not in _STEPS:
        raise ValueError(f"sampler kind {kind!r} is unknown; one of {sorted(_STEPS)}")
    sigmas = jnp.asarray(sigmas, jnp.float32)
    if sigmas.ndim != 1 or sigmas.shape[0] < 2:
        raise ValueError(f"sigmas must be a vector of at least two noise levels, got shape {sigmas.shape}")

    def per_sample_denoise(state: jax.Array, sigma: jax.Array) -> jax.Array:
        return denoise(state, jnp.full(state.shape[:1], sigma)).astype(jnp.float32)

    def body(state: jax.Array, pair: tuple[jax.Array, jax.Array]):
        denoised = per_sample_denoise(state, pair[0])
        following = _STEPS[kind](per_sample_denoise, state, denoised, *pair)
        return following, (Trajectory(state, denoised) if collect else None)

    return jax.lax.scan(body, x.astype(jnp.float32), (sigmas[:-1], sigmas[1:]))


def _ddim(denoise: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    ratio = sigma_next / sigma
    return ratio * x + (1.0 - ratio) * denoised


def _euler(denoise: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    return x + (x - denoised) / sigma * (sigma_next - sigma)


def _heun(denoise: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    slope = (x - denoised) / sigma
    predicted = x + slope * (sigma_next - sigma)

    def correct(predicted: jax.Array) -> jax.Array:
        slope_next = (predicted - denoise(predicted, sigma_next)) / sigma_next
        return x + 0.5 * (slope + slope_next) * (sigma_next - sigma)

    # the slope is undefined at σ = 0, where the Euler step already lands on the denoised sample
    return jax.lax.cond(sigma_next > 0, correct, lambda predicted: predicted, predicted)


_STEPS: dict[str, Callable] = {"ddim": _ddim, "euler": _euler, "heun": _heun}
