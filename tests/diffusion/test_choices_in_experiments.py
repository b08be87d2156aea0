"""Every sampler, noise schedule and density can be chosen in an experiment's configuration, and both stages draw with it.

The networks are replaced by the exact denoiser of Gaussian data, so that only the drawing is compiled.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.config import SAMPLERS, ConfigError, from_config_dict, from_json, to_dict, to_json
from vpp_jax.diffusion.densities import sample_sigma
from vpp_jax.diffusion.edm import policy_preconditioning
from vpp_jax.diffusion.noise_schedules import get_sigmas
from vpp_jax.policy import VideoPredictionPolicy
from vpp_jax.video_predictor import VideoPredictor

STOCHASTIC = ("euler_ancestral", "dpmpp_2m_sde")
SPREAD = 0.5


def pull(noisy, sigma, mean):
    """D(x, σ) for data N(mean, SPREAD²)."""
    sigma = sigma.reshape(-1, *[1] * (noisy.ndim - 1))
    return (SPREAD**2 * noisy + sigma**2 * mean) / (SPREAD**2 + sigma**2)


@pytest.fixture(scope="module")
def experiment(micro_config):
    """(stage, fields of its diffusion group) -> ExperimentConfig, by way of plain values."""

    def make(stage, **fields):
        tree = to_dict(micro_config(stage))
        tree[f"{stage}_diffusion"] |= fields
        return from_config_dict(tree)

    return make


@pytest.mark.parametrize("kind", SAMPLERS)
def test_actions(experiment, kind):
    config = experiment("policy", sampler=kind)
    policy, calls = VideoPredictionPolicy(config.model, config.policy_diffusion, config.video_diffusion), []

    def decode(network_input, sigma, context):
        calls.append(1)
        scale = policy_preconditioning(sigma, config.policy_diffusion.sigma_data)
        c_skip, c_out, c_in = (value[:, None, None] for value in (scale.c_skip, scale.c_out, scale.c_in))
        noisy = network_input / c_in
        return (pull(noisy, sigma, context[:, :1, :1]) - c_skip * noisy) / c_out

    # in place of the cached network; what it makes of a level is here the level itself
    network = SimpleNamespace(decode_modulated=decode, modulations=lambda sigma: sigma)
    policy.__dict__["action_transformer"] = SimpleNamespace(bind=lambda params: network)
    draw = jax.jit(lambda context, keys: policy.sample_actions({}, context, keys))
    context = jnp.linspace(-0.5, 0.5, 4)[:, None, None] * jnp.ones((4, 3, 2))
    keys = jax.random.split(jax.random.key(0), 4)
    actions, traced = np.asarray(draw(context, keys)), len(calls)
    assert actions.shape == (4, config.model.action.action_horizon, config.model.action.action_dim)
    assert np.all(np.isfinite(actions))
    assert traced <= 2
    order = np.array([3, 1, 0, 2])
    np.testing.assert_allclose(draw(context[order], keys[order]), actions[order], rtol=1e-5, atol=1e-6)
    assert np.abs(draw(context, keys[order]) - actions).max() > 1e-3
    assert len(calls) == traced  # compiled once


@pytest.mark.parametrize("kind", SAMPLERS)
def test_videos(experiment, kind, monkeypatch):
    config = experiment("video", sampler=kind)
    predictor = VideoPredictor(config.model, config.video_diffusion)
    stand_ins = {
        "denoise": lambda self, params, noisy, sigma, condition, states, **ids: pull(noisy, sigma, condition[:, None]),
        "encode_images": lambda self, params, images: images.astype(jnp.float32) / 255.0 - 0.5,
        "encode_text": lambda self, params, ids, mask: jnp.zeros((*ids.shape, 8)),
        "decode_latents": lambda self, params, latents: latents,
    }
    for name, method in stand_ins.items():
        monkeypatch.setattr(VideoPredictor, name, method)
    image, ids = jnp.full((2, 4, 4, 3), 191, jnp.uint8), jnp.zeros((2, 5), jnp.int32)
    generate = jax.jit(lambda key: predictor.generate({}, image, ids, ids > 0, key))
    video = np.asarray(generate(jax.random.key(0)))
    assert video.shape == (2, config.model.frames, 4, 4, 3)
    assert (video != np.asarray(generate(jax.random.key(1)))).any()


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_eta_reaches_the_sampler(experiment, kind):
    results = {}
    for eta in (0.0, 1.0):
        config = experiment("video", sampler=kind, eta=eta)
        predictor = VideoPredictor(config.model, config.video_diffusion)
        object.__setattr__(predictor, "denoise", lambda params, noisy, sigma, *rest, **ids: pull(noisy, sigma, 0.0))
        noise, condition = jax.random.normal(jax.random.key(2), (1, 4, 2, 2, 4)), jnp.zeros((1, 2, 2, 4))
        results[eta] = [predictor.sample_latents({}, condition, jnp.zeros((1, 5, 8)), noise, jax.random.key(seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(*results[0.0])
    assert np.abs(results[1.0][0] - results[1.0][1]).min() > 0
    with pytest.raises(ConfigError, match=r"eta is 1\.5, expected at least 0 and at most 1"):
        experiment("policy", sampler=kind, eta=1.5)


def test_an_unknown_sampler_is_refused_with_all_that_exist(experiment):
    with pytest.raises(ConfigError, match=r"sampler is 'heunn', expected one of ddim, .*dpmpp_2m_sde"):
        experiment("policy", sampler="heunn")


@pytest.mark.parametrize("kind", ["exponential", "karras", "linear", "svd_euler", "ve", "vp", "cosine", "iddpm"])
def test_noise_schedules(experiment, kind):
    config = experiment("policy", noise_schedule={"kind": kind, "num_sampling_steps": 5, "sigma_min": 0.1})
    assert from_json(to_json(config)) == config
    assert get_sigmas(config.policy_diffusion.noise_schedule).shape == (6,)


@pytest.mark.parametrize(
    "kind", ["lognormal", "truncated_loglogistic", "loguniform", "uniform", "v_diffusion", "discrete", "split_lognormal"]
)
def test_densities(experiment, kind):
    config = experiment("policy", density={"kind": kind, "noise_schedule": {"kind": "vp", "num_sampling_steps": 6}})
    assert from_json(to_json(config)) == config
    sigma = sample_sigma(jax.random.key(0), (100,), config.policy_diffusion.density)
    assert (len(np.unique(sigma)) == 6) == (kind == "discrete")
