"""Samplers of the probability-flow ODE dx/dσ = (x − D(x, σ))/σ and of stochastic variants, under `lax.scan`.

    kind             order  calls per step  remarks
    ddim             1      1               DPM-Solver-1 in this parametrisation; what the policy was published with
    euler            1      1               Stable Video Diffusion's scheduler; DDIM in exact arithmetic, rounded differently
    heun             2      2               Karras et al. 2022, algorithm 1 without churn
    dpm_2            2      2               midpoint rule with the midpoint in ln σ (DPM-Solver-2)
    dpmpp_2m         2      1               DPM-Solver++(2M): extrapolates the last two denoised samples
    lms              4      1               Adams-Bashforth on the last four slopes, which starts with order 1
    euler_ancestral  -      1               stochastic: steps past the next level and adds noise; Euler at eta = 0
    dpmpp_2m_sde     -      1               stochastic: 2M for the SDE; dpmpp_2m at eta = 0

Every kind makes the step to σ = 0 as an Euler step without noise: it ends at the denoised sample, and D is never evaluated at 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from vpp_jax.diffusion.linear_multistep import LinearMethod, LinearSteps, dpmpp_2m, euler_ancestral, lms

# (x [b ...], sigma [b], and what `prepare` made of sigma if there is one) -> the denoised sample D(x, sigma) [b ...]
Denoiser = Callable[..., Float[Array, "b ..."]]
# sigmas [n] -> what a denoiser computes from noise levels alone, [n ...]
Prepare = Callable[[Float[Array, "n"]], Float[Array, "n ..."]]


class SingleStep(NamedTuple):
    """A single-step method.

    step:   (D at the second level, x, D(x, sigma), sigma, sigma_next) -> x at sigma_next
    second: (sigma, sigma_next) -> the level of its second call; None if there is none
    """

    step: Callable[[Callable, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    second: Callable[[jax.Array, jax.Array], jax.Array] | None = None


class Trajectory(NamedTuple):
    """The intermediates of a sampler: the state before each step and the denoised sample predicted from it."""

    states: Float[Array, "steps b ..."]
    denoised: Float[Array, "steps b ..."]


def sample(
    denoise: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Float[Array | np.ndarray, "levels"],
    kind: str = "ddim",
    key: jax.Array | None = None,
    eta: float = 1.0,
    prepare: Prepare | None = None,
) -> Float[Array, "b ..."]:
    """Integrates from σ = sigmas[0] down to sigmas[-1].

    denoise: called with σ broadcast to one value per sample.
    x:       the sample at sigmas[0], i.e. unit normal noise times the noise schedule's `initial_scale`. The state is carried in float32 (in
             float64 if x is).
    sigmas:  descending, as from `get_sigmas`; only the last may be 0. They may be traced for ddim, euler, heun and dpm_2; the other
             kinds compute their coefficients from them on the host.
    kind:    a key of `SAMPLERS`.
    key:     for the stochastic kinds: one PRNG key, or one per example [b], which makes an example's result independent of the batch.
    eta:     for the stochastic kinds, in [0, 1]: how much noise they add. 0 is the ODE and needs no key.
    prepare: called once, outside the loop, with all noise levels at which `denoise` is evaluated; the result for its level is passed to
             `denoise` as a third argument [1 ...]. For what a network computes from the noise level alone.
    """
    return _integrate(denoise, x, sigmas, kind, key, eta, prepare, collect=False)[0]


def sample_trajectory(
    denoise: Denoiser,
    x: Float[Array, "b ..."],
    sigmas: Float[Array | np.ndarray, "levels"],
    kind: str = "ddim",
    key: jax.Array | None = None,
    eta: float = 1.0,
) -> tuple[Float[Array, "b ..."], Trajectory]:
    """`sample` together with every intermediate."""
    result, trajectory = _integrate(denoise, x, sigmas, kind, key, eta, None, collect=True)
    assert trajectory is not None
    return result, trajectory


def _integrate(
    denoise: Callable,
    x: jax.Array,
    sigmas: jax.Array | np.ndarray,
    kind: str,
    key: jax.Array | None,
    eta: float,
    prepare: Prepare | None,
    collect: bool,
) -> tuple[jax.Array, Trajectory | None]:
    if kind not in SAMPLERS:
        raise ValueError(f"sampler kind {kind!r} is unknown; one of {sorted(SAMPLERS)}")
    if jnp.ndim(sigmas) != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas must be a vector of at least two noise levels, got shape {jnp.shape(sigmas)}")
    method, dtype = SAMPLERS[kind], jnp.promote_types(x.dtype, jnp.float32)
    x = x.astype(dtype)
    coefficients, recent, keys = None, None, None
    if isinstance(method, LinearMethod):
        coefficients = _coefficients(method, kind, sigmas, eta, dtype)
        recent = jnp.zeros((coefficients.weights.shape[1], *x.shape), dtype)
        keys = _example_keys(kind, key, x.shape[0]) if method.stochastic and eta > 0 else None
    sigmas = jnp.asarray(sigmas, dtype)
    first, following = sigmas[:-1], sigmas[1:]
    second = method.second(first, following) if isinstance(method, SingleStep) and method.second else None
    prepared = prepare(first) if prepare else None
    # never evaluated at σ = 0, where the logarithm is undefined
    prepared_second = prepare(jnp.where(second > 0, second, first)) if prepare and second is not None else None

    def ask(state: jax.Array, sigma: jax.Array, prepared: jax.Array | None) -> jax.Array:
        given = () if prepared is None else (prepared[None],)
        return denoise(state, jnp.full(state.shape[:1], sigma), *given).astype(dtype)

    def body(carry: tuple, level: tuple):
        (state, recent), (sigma, sigma_next, sigma_second, prepared, prepared_second, linear, index) = carry, level
        denoised = ask(state, sigma, prepared)
        if isinstance(method, SingleStep):
            following = method.step(lambda x: ask(x, sigma_second, prepared_second), state, denoised, sigma, sigma_next)
        else:
            seen = (state - denoised) / sigma if method.slopes else denoised
            recent = jnp.concatenate([seen[None], recent[:-1]])
            following = linear.keep * state + sum(linear.weights[age] * recent[age] for age in range(len(recent)))
            if keys is not None:
                following += linear.spread * _example_noise(keys, index, state)
        return (following, recent), (Trajectory(state, denoised) if collect else None)

    levels = (first, following, second, prepared, prepared_second, coefficients, jnp.arange(len(first)))
    (result, _), seen = jax.lax.scan(body, (x, recent), levels)
    return result, seen


# --- single steps -----------------------------------------------------------------------------------------------------------------


def _ddim(again: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    ratio = sigma_next / sigma
    return ratio * x + (1.0 - ratio) * denoised


def _euler(again: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    return x + (x - denoised) / sigma * (sigma_next - sigma)


def _heun(again: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    slope = (x - denoised) / sigma
    predicted = x + slope * (sigma_next - sigma)

    def correct(predicted: jax.Array) -> jax.Array:
        slope_next = (predicted - again(predicted)) / sigma_next
        return x + 0.5 * (slope + slope_next) * (sigma_next - sigma)

    # the slope is undefined at σ = 0, where the Euler step already lands on the denoised sample
    return jax.lax.cond(sigma_next > 0, correct, lambda predicted: predicted, predicted)


def _dpm_2(again: Callable, x: jax.Array, denoised: jax.Array, sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    slope = (x - denoised) / sigma

    def midpoint(slope: jax.Array) -> jax.Array:
        middle = _geometric_mean(sigma, sigma_next)
        halfway = x + slope * (middle - sigma)
        return x + (halfway - again(halfway)) / middle * (sigma_next - sigma)

    # ln σ has no middle between σ and 0
    return jax.lax.cond(sigma_next > 0, midpoint, lambda slope: x + slope * (sigma_next - sigma), slope)


def _geometric_mean(sigma: jax.Array, sigma_next: jax.Array) -> jax.Array:
    return jnp.sqrt(sigma * sigma_next)


# --- linear multistep methods -----------------------------------------------------------------------------------------------------


def _coefficients(method: LinearMethod, kind: str, sigmas: jax.Array | np.ndarray, eta: float, dtype: jnp.dtype) -> LinearSteps:
    if isinstance(sigmas, Tracer):
        raise ValueError(f"sampler {kind} computes its coefficients on the host: pass sigmas as a constant, not as a traced array")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}, expected at least 0 and at most 1")
    steps = method.coefficients(np.asarray(sigmas, np.float64), eta if method.stochastic else 0.0)
    return LinearSteps(jnp.asarray(steps.keep, dtype), jnp.asarray(steps.weights, dtype), jnp.asarray(steps.spread, dtype))


def _example_keys(kind: str, key: jax.Array | None, batch: int) -> jax.Array:
    """One key per example: as given, or split from one key."""
    if key is None:
        raise ValueError(f"sampler {kind} draws noise: pass key, one PRNG key or one per example (or eta=0 for none)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape not in ((), (batch,)):
        raise ValueError(f"key must be one key of jax.random.key or {batch}, one per example; got {key.dtype} of shape {key.shape}")
    return key if key.ndim else jax.random.split(key, batch)


def _example_noise(keys: jax.Array, index: jax.Array, state: jax.Array) -> jax.Array:
    """Unit normal noise of step `index` in the shape of `state`, each example from its own key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), state.shape[1:], state.dtype))(keys)


SAMPLERS: dict[str, SingleStep | LinearMethod] = {
    "ddim": SingleStep(_ddim),
    "euler": SingleStep(_euler),
    "heun": SingleStep(_heun, second=lambda sigma, sigma_next: sigma_next),
    "dpm_2": SingleStep(_dpm_2, second=_geometric_mean),
    "dpmpp_2m": LinearMethod(dpmpp_2m),
    "lms": LinearMethod(lms, slopes=True),
    "euler_ancestral": LinearMethod(euler_ancestral, stochastic=True),
    "dpmpp_2m_sde": LinearMethod(dpmpp_2m, stochastic=True),
}
