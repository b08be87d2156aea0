"""EDM preconditioning: defining properties in double precision, and the identities between loss, weight and target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion import edm

SIGMAS = np.array([1e-3, 0.02, 0.5, 1.0, 7.0, 80.0, 700.0])
STAGES = {
    "video": (edm.video_preconditioning, edm.video_target, 1.0, -1.0),
    "policy": (edm.policy_preconditioning, edm.policy_target, 0.5, 1.0),
}


@pytest.fixture(scope="module", params=sorted(STAGES))
def stage(request):
    return STAGES[request.param]


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    return rng.standard_normal((len(SIGMAS), 3, 4)), rng.standard_normal((len(SIGMAS), 3, 4))


def test_coefficients_are_the_minimisers_of_table_1(stage):
    precondition, _, data, sign = stage
    got = precondition(jnp.asarray(SIGMAS))
    total = np.sqrt(SIGMAS**2 + data**2)
    np.testing.assert_allclose(got.c_skip, data**2 / total**2, rtol=1e-5)
    np.testing.assert_allclose(got.c_out, sign * SIGMAS * data / total, rtol=1e-5)
    np.testing.assert_allclose(got.c_in, 1 / total, rtol=1e-5)
    np.testing.assert_allclose(got.c_noise, np.log(SIGMAS) / 4, rtol=1e-5)
    # c_in makes the network's input, c_out its target, of unit variance
    np.testing.assert_allclose(got.c_in**2 * (data**2 + SIGMAS**2), 1.0, rtol=1e-5)


def test_target_makes_the_denoiser_exact(stage, draws):
    precondition, target, data, sign = stage
    clean, noise = data * draws[0], draws[1]
    sigma = SIGMAS[:, None, None]
    noisy = clean + sigma * noise
    # the definition (x - c_skip x_sigma) / c_out in double precision
    total = np.sqrt(sigma**2 + data**2)
    expected = (clean - data**2 / total**2 * noisy) / (sign * sigma * data / total)
    got = target(jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(SIGMAS))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    pre = precondition(jnp.asarray(SIGMAS))
    denoised = pre.denoised(edm.add_noise(jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(SIGMAS)), got)
    # at sigma 700 the noisy sample itself carries an absolute rounding error of 700 * 2^-24, times c_out
    np.testing.assert_allclose(denoised, clean, atol=5e-4)


def test_weighted_denoising_error_equals_network_error(stage, draws):
    precondition, target, data, _ = stage
    keep = slice(2, 5)  # at extreme sigma the left side is limited by float32, which is why losses use the right side
    clean, noise, sigma = (jnp.asarray(v[keep]) for v in (data * draws[0], draws[1], SIGMAS))
    output = jnp.asarray(np.random.default_rng(1).standard_normal(clean.shape))
    pre = precondition(sigma)
    error = pre.denoised(edm.add_noise(clean, noise, sigma), output) - clean
    left = edm.per_sample(pre.loss_weight, clean) * error**2
    right = (output - target(clean, noise, sigma)) ** 2
    np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)


def test_video_weight_is_the_published_one():
    pre = edm.video_preconditioning(jnp.asarray(SIGMAS))
    np.testing.assert_allclose(pre.loss_weight, (SIGMAS**2 + 1) / SIGMAS**2, rtol=1e-5)


def test_policy_target_has_unit_variance_at_every_sigma():
    key_x, key_e = jax.random.split(jax.random.key(0))
    shape = (len(SIGMAS), 20000)
    target = edm.policy_target(0.5 * jax.random.normal(key_x, shape), jax.random.normal(key_e, shape), jnp.asarray(SIGMAS))
    np.testing.assert_allclose(jnp.std(target, axis=1), 1.0, atol=0.03)


def test_per_sample_broadcasts_over_the_leading_axis_only():
    scaled = edm.add_noise(jnp.zeros((2, 2, 2)), jnp.ones((2, 2, 2)), jnp.array([1.0, 3.0]))
    np.testing.assert_array_equal(scaled[0], 1.0)
    np.testing.assert_array_equal(scaled[1], 3.0)


def test_recorded_policy_vectors(reference_data):
    """Denoised actions and loss of the published policy from its recorded network output."""
    vectors = np.load(reference_data / "parity" / "vectors.npz")
    actions, noise, sigma, output = (jnp.asarray(vectors[name]) for name in ("actions", "act_noise", "act_sigma", "policy_model_output"))
    pre = edm.policy_preconditioning(sigma)
    np.testing.assert_allclose(pre.denoised(edm.add_noise(actions, noise, sigma), output), vectors["policy_denoised"], atol=1e-6)
    loss = np.mean((output - edm.policy_target(actions, noise, sigma)) ** 2)
    np.testing.assert_allclose(loss, vectors["policy_loss"], rtol=1e-5)


def test_recorded_video_vectors(reference_data):
    """`tvp_out` and `tvp_loss` of the published training code."""
    vectors = np.load(reference_data / "parity" / "vectors.npz")
    latents, noise, sigma, output = (jnp.asarray(vectors[f"tvp_{name}"]) for name in ("latents", "noise", "sigma", "out"))
    target = edm.video_target(latents, noise, sigma.reshape(-1))
    np.testing.assert_allclose(np.mean((output - target) ** 2), vectors["tvp_loss"], rtol=1e-4)
