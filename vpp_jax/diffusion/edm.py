"""EDM preconditioning (Karras et al. 2022, section 5 and table 1) of both stages.

A clean sample x is noised to x_σ = x + σ·ε. The network F sees c_in·x_σ and c_noise, and the denoiser is
D(x_σ, σ) = c_skip·x_σ + c_out·F. Coefficients have one value per sample, `[b]`; arrays of samples are `[b, ...]`.

Both stages train F by mean squared error against the output that would make D exact. For the video model this equals the
denoising error weighted with (σ² + 1)/σ² = 1/c_out².
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


def per_sample(values: Float[Array, "b"], samples: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """`values` with as many trailing axes of length one as broadcasting against `samples` takes."""
    return values.reshape(values.shape + (1,) * (samples.ndim - values.ndim))


def _levels(sigma: Float[Array, "b"]) -> Float[Array, "b"]:
    """In float32; in float64 if they are."""
    return jnp.asarray(sigma, jnp.promote_types(jnp.asarray(sigma).dtype, jnp.float32))


def add_noise(clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """x_σ = x + σ·ε."""
    return clean + per_sample(sigma, clean) * noise


class Preconditioning(NamedTuple):
    """The four EDM coefficients at noise levels σ, each float32 (float64 if σ is) `[b]`."""

    c_skip: Float[Array, "b"]
    c_out: Float[Array, "b"]
    c_in: Float[Array, "b"]
    c_noise: Float[Array, "b"]

    def network_input(self, noisy: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """c_in·x_σ."""
        return per_sample(self.c_in, noisy) * noisy

    def denoised(self, noisy: Float[Array, "b ..."], output: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        """D = c_skip·x_σ + c_out·F for the network output F."""
        return per_sample(self.c_skip, noisy) * noisy + per_sample(self.c_out, output) * output

    @property
    def loss_weight(self) -> Float[Array, "b"]:
        """λ = 1/c_out²: with it the weighted squared error of D is the squared error of F."""
        return 1.0 / self.c_out**2


def video_preconditioning(sigma: Float[Array, "b"]) -> Preconditioning:
    """Stage 1: σ_data = 1 with a negative c_out, which makes F a v-prediction (Stable Video Diffusion's convention)."""
    sigma = _levels(sigma)
    total = jnp.sqrt(sigma**2 + 1.0)
    return Preconditioning(1.0 / total**2, -sigma / total, 1.0 / total, 0.25 * jnp.log(sigma))


def video_target(clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """The exact output (x − c_skip·x_σ)/c_out = (ε − σ·x)/√(σ²+1).

    Written in ε: the quotient cancels catastrophically in float32 at small σ, where x ≈ c_skip·x_σ.
    """
    sigma = per_sample(_levels(sigma), clean)
    return (noise - sigma * clean) / jnp.sqrt(sigma**2 + 1.0)


def policy_preconditioning(sigma: Float[Array, "b"], sigma_data: float = 0.5) -> Preconditioning:
    """Stage 2: EDM as published, for actions of standard deviation `sigma_data`."""
    sigma = _levels(sigma)
    total = jnp.sqrt(sigma**2 + sigma_data**2)
    return Preconditioning(sigma_data**2 / total**2, sigma * sigma_data / total, 1.0 / total, 0.25 * jnp.log(sigma))


def policy_target(
    clean: Float[Array, "b ..."], noise: Float[Array, "b ..."], sigma: Float[Array, "b"], sigma_data: float = 0.5
) -> Float[Array, "b ..."]:
    """The exact output (a − c_skip·a_σ)/c_out = (σ·a − σ_data²·ε)/(σ_data·√(σ²+σ_data²)); see `video_target` for why."""
    sigma = per_sample(_levels(sigma), clean)
    return (sigma * clean - sigma_data**2 * noise) / (sigma_data * jnp.sqrt(sigma**2 + sigma_data**2))
