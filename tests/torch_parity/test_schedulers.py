"""Noise levels and complete sampling runs against diffusers' schedulers, with an analytic function in place of the U-Net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("diffusers", reason="diffusers is not installed: `make parity` compares with it")

import diffusers
import torch
from comparison import check, normal
from diffusers import EulerDiscreteScheduler

from vpp_jax.diffusion import samplers
from vpp_jax.diffusion.edm import policy_preconditioning, video_preconditioning
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas, initial_scale
from vpp_jax.diffusion.samplers import sample_trajectory

# scheduler/scheduler_config.json of Stable Video Diffusion
SVD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}


def noise_schedule(steps: int) -> NoiseScheduleConfig:
    return NoiseScheduleConfig("svd_euler", steps, SVD["sigma_min"], SVD["sigma_max"], rho=7.0)


def scheduler(steps: int) -> EulerDiscreteScheduler:
    made = EulerDiscreteScheduler(**SVD)
    made.set_timesteps(steps)
    return made


@pytest.mark.parametrize("steps", [2, 10, 20, 30])
def test_noise_levels_and_network_times(steps):
    theirs, ours = scheduler(steps), get_sigmas(noise_schedule(steps))
    check(ours, theirs.sigmas, what="sigmas")
    np.testing.assert_allclose(ours[:-1], theirs.sigmas[:-1].numpy(), rtol=1e-4)  # the small ones too
    check(video_preconditioning(ours[:-1]).c_noise, theirs.timesteps, what="timesteps")
    np.testing.assert_allclose(initial_scale(noise_schedule(steps)), float(theirs.init_noise_sigma), rtol=1e-6)


@pytest.mark.parametrize("steps", [5, 20])
def test_a_whole_run_of_the_euler_scheduler(steps):
    """The network is F(x, t) = tanh(x A + t): smooth, of the input's size, and different at every noise level."""
    mixing, noise = normal(1, 6, 6) / 2, normal(2, 2, 3, 6)
    theirs = scheduler(steps)
    x, states = noise * theirs.init_noise_sigma, []
    for t in theirs.timesteps:
        states.append(x.numpy())
        output = torch.tanh(theirs.scale_model_input(x, t) @ mixing + t)
        x = theirs.step(output, t, x).prev_sample

    def denoise(noisy, sigma):
        scale = video_preconditioning(sigma)
        output = jnp.tanh(scale.network_input(noisy) @ mixing.numpy() + scale.c_noise[:, None, None])
        return scale.denoised(noisy, output)

    run = jax.jit(lambda x: sample_trajectory(denoise, x, get_sigmas(noise_schedule(steps)), "euler"))
    result, seen = run(noise.numpy() * np.float32(initial_scale(noise_schedule(steps))))
    for step, state in enumerate(states):
        check(seen.states[step], state, what=f"state before step {step}")
    check(result, x, 1e-4, "result")


# --- the other samplers, on whatever noise levels diffusers' scheduler has ------------------------------------------------------------

MIXING, NOISE = normal(3, 6, 6) / 2, normal(4, 2, 3, 6)


def denoised_by_torch(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A made-up denoiser D(x, σ): bounded, smooth, and different at every noise level."""
    return torch.tanh(x @ MIXING / torch.sqrt(sigma**2 + 1) + torch.log(sigma) / 4)


def denoised_by_jax(x: jax.Array, sigma: jax.Array) -> jax.Array:
    sigma = sigma[:, None, None]
    return jnp.tanh(x @ MIXING.numpy() / jnp.sqrt(sigma**2 + 1) + jnp.log(sigma) / 4)


def run_theirs(scheduler, levels_of) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """(noise levels, state before each first-order call, result); the scheduler turns the predicted noise into D itself."""
    x, states = NOISE * scheduler.sigmas[0], []
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)  # sets the index of the step
        if getattr(scheduler, "state_in_first_order", True):
            states.append(x.numpy())
        sigma = levels_of(scheduler)
        x = scheduler.step((x - denoised_by_torch(x, sigma)) / sigma, t, x).prev_sample
    return scheduler.sigmas.numpy(), states, x.numpy()


def current(scheduler) -> torch.Tensor:
    return scheduler.sigmas[scheduler.step_index]


def current_or_middle(scheduler) -> torch.Tensor:
    return current(scheduler) if scheduler.state_in_first_order else scheduler.sigmas_interpol[scheduler.step_index]


@pytest.mark.parametrize(
    ("kind", "name", "levels_of"),
    [
        ("euler", "EulerDiscreteScheduler", current),
        ("ddim", "EulerDiscreteScheduler", current),
        ("heun", "HeunDiscreteScheduler", current),
        ("dpm_2", "KDPM2DiscreteScheduler", current_or_middle),
        ("lms", "LMSDiscreteScheduler", current),
    ],
)
def test_deterministic_samplers(kind, name, levels_of):
    scheduler = getattr(diffusers, name)(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(8)
    levels, states, result = run_theirs(scheduler, levels_of)
    levels = np.array(list(dict.fromkeys(levels.tolist())), np.float32)  # a level per call there, and some steps take two
    ours, seen = jax.jit(lambda x: sample_trajectory(denoised_by_jax, x, levels, kind))(NOISE.numpy() * levels[0])
    assert len(states) == len(levels) - 1
    for step, state in enumerate(states):
        check(seen.states[step], state, 1e-4, f"{kind}: state before step {step}")
    if kind == "lms":  # diffusers extrapolates into sigma 0 as well; here every sampler ends on the denoised sample
        result = denoised_by_torch(torch.from_numpy(states[-1]), torch.tensor(levels[-2]))
    check(ours, result, 1e-4, f"{kind}: result")


def test_dpmpp_2m_with_edm_preconditioning():
    """diffusers' EDM scheduler takes the network's output F, scaled with σ_data, as the policy does."""
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(sigma_min=0.02, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(8)
    x, states = NOISE * 80, []
    for t in scheduler.timesteps:
        states.append(x.numpy())
        output = torch.tanh(scheduler.scale_model_input(x, t) @ MIXING + t)
        x = scheduler.step(output, t, x).prev_sample

    def denoise(noisy, sigma):
        scale = policy_preconditioning(sigma, 0.5)
        return scale.denoised(noisy, jnp.tanh(scale.network_input(noisy) @ MIXING.numpy() + scale.c_noise[:, None, None]))

    karras = get_sigmas(NoiseScheduleConfig("karras", 8, 0.02, 80.0, rho=7.0))
    check(karras, scheduler.sigmas, what="noise levels")
    ours, seen = jax.jit(lambda x: sample_trajectory(denoise, x, karras, "dpmpp_2m"))(NOISE.numpy() * np.float32(80))
    for step, state in enumerate(states):
        check(seen.states[step], state, 1e-4, f"state before step {step}")
    check(ours, x, 1e-4, "result")


def test_euler_ancestral_on_the_same_noise(monkeypatch):
    """diffusers' steps get the random numbers that ours draw."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(8)
    levels, keys = scheduler.sigmas.numpy(), jax.random.split(jax.random.key(5), len(NOISE))
    drawn = iter([np.array(samplers._example_noise(keys, step, NOISE.numpy())) for step in range(8)])
    module = diffusers.schedulers.scheduling_euler_ancestral_discrete
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(drawn)))
    _, states, result = run_theirs(scheduler, current)
    ours, seen = jax.jit(lambda x: sample_trajectory(denoised_by_jax, x, levels, "euler_ancestral", keys))(NOISE.numpy() * levels[0])
    for step, state in enumerate(states):
        check(seen.states[step], state, 1e-4, f"state before step {step}")
    check(ours, result, 1e-4, "result")
