"""Linear multistep samplers as tables of coefficients.

One step is x' = keep·x + Σ_k weights[k]·seen_k + spread·ε. seen_0 belongs to this step, seen_1 to the previous one, and so on; "seen"
is the denoised sample D, or the slope (x − D)/σ of the probability-flow ODE. The coefficients depend only on the noise levels and are
computed in double precision on the host. In the first steps, missing history has weight 0.

Sources: Song et al. 2021 (ancestral), Lu et al. 2022 (DPM-Solver++), Karras et al. 2022 section 3; names as in k-diffusion.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

Levels = Float[np.ndarray, "levels"]

LMS_ORDER = 4


class LinearSteps(NamedTuple):
    """Coefficients of every step: float64 as they are computed, then in the type of the state."""

    keep: Float[Array | np.ndarray, "steps"]
    weights: Float[Array | np.ndarray, "steps history"]
    spread: Float[Array | np.ndarray, "steps"]


class LinearMethod(NamedTuple):
    """coefficients: (noise levels, eta) -> LinearSteps; slopes: whether slopes are combined instead of denoised samples;
    stochastic: whether eta > 0 adds noise."""

    coefficients: Callable[[Levels, float], LinearSteps]
    slopes: bool = False
    stochastic: bool = False


def euler_ancestral(sigmas: Levels, eta: float) -> LinearSteps:
    """Euler's step past σ' down to σ_down, then noise up to σ': σ_up = eta·σ'·√(1 − σ'²/σ²), σ_down² = σ'² − σ_up²."""
    ratio = sigmas[1:] / sigmas[:-1]
    up = eta * np.sqrt(1.0 - ratio**2)  # in units of σ', as `down`
    down = np.sqrt(1.0 - up**2)
    return LinearSteps(ratio * down, (1.0 - ratio * down)[:, None], sigmas[1:] * up)


def dpmpp_2m(sigmas: Levels, eta: float) -> LinearSteps:
    """DPM-Solver++(2M) for the SDE with noise `eta` in its midpoint form; the ODE at eta = 0.

    In λ = −ln σ with step lengths h = λ' − λ, D is extrapolated linearly to the middle of the step. A step into σ = 0 is infinitely
    long in λ: like the first one it is of first order, and it ends on the denoised sample.
    """
    now, following = sigmas[:-1], sigmas[1:]
    ratio = following / now
    with np.errstate(divide="ignore", invalid="ignore"):
        length = -np.log(ratio)
        before = np.append(np.inf, length[:-1])
        extrapolation = np.where(following > 0, 0.5 * length / before, 0.0)
    gain = 1.0 - ratio ** (1.0 + eta)
    weights = gain[:, None] * np.stack([1.0 + extrapolation, -extrapolation], axis=1)
    return LinearSteps(1.0 - gain, weights, following * np.sqrt(1.0 - ratio ** (2.0 * eta)))


def lms(sigmas: Levels, eta: float) -> LinearSteps:
    """Adams-Bashforth of order 4 on uneven steps: the polynomial in σ through the last slopes, integrated exactly.

    The first steps are of order 1, 2 and 3. A step into σ = 0 is Euler's, which ends on the denoised sample.
    """
    steps = len(sigmas) - 1
    weights = np.zeros((steps, LMS_ORDER))
    for step in range(steps):
        order = min(step + 1, LMS_ORDER) if sigmas[step + 1] > 0 else 1
        length = sigmas[step + 1] - sigmas[step]
        # in u = (σ − σ_step)/length the weights must integrate 1, u, u², … from 0 to 1 exactly
        places = (sigmas[step - np.arange(order)] - sigmas[step]) / length
        powers = np.vander(places, increasing=True).T
        weights[step, :order] = length * np.linalg.solve(powers, 1.0 / np.arange(1, order + 1))
    return LinearSteps(np.ones(steps), weights, np.zeros(steps))
