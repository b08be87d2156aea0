"""Stage 1 as one object: text states, preconditioning, loss, sampling, features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.functional import with_prefix
from vpp_jax.training.stages.video import VideoStage
from vpp_jax.video_predictor import SCALING_FACTOR, VideoPredictor, to_float_image, to_uint8_image

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def predictor(micro_config):
    config = micro_config("video")
    return VideoPredictor(config.model, config.video_diffusion)


@pytest.fixture(scope="module")
def params(predictor):
    modules = (("vae", predictor.vae), ("unet", predictor.unet), ("text", predictor.text))
    found = {SCALING_FACTOR: jnp.float32(0.7)}
    for index, (prefix, module) in enumerate(modules):
        found |= with_prefix(prefix, jax.jit(module.init)(jax.random.key(index)))
    # residual branches may start at zero: without noise on the parameters most of the network would not be seen
    keys = jax.random.split(jax.random.key(9), len(found))
    return {name: value + 0.02 * jax.random.normal(key, value.shape) for key, (name, value) in zip(keys, found.items(), strict=True)}


@pytest.fixture(scope="module")
def batch(predictor):
    rng, length = np.random.default_rng(0), predictor.config.text_length
    video = rng.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    ids = rng.integers(1, 1000, (2, length)).astype(np.int32)
    ids[:, 6:] = 49407
    return jnp.asarray(video), jnp.asarray(ids), jnp.arange(length)[None].repeat(2, 0) <= 6


def test_image_conversion_round_trip():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    floats = to_float_image(jnp.asarray(every))
    assert floats.min() == -1.0
    assert floats.max() == 1.0
    np.testing.assert_array_equal(to_uint8_image(floats), every)


def test_text_states_are_doubled_and_positions_are_sinusoids(predictor, params, batch):
    _, ids, mask = batch
    plain = predictor.encode_text(params, ids, mask)
    width = predictor.config.text.width
    np.testing.assert_array_equal(plain[..., :width], plain[..., width:])
    encoded = VideoPredictor(dataclasses.replace(predictor.config, position_encode=True), predictor.diffusion)
    added = np.asarray(encoded.encode_text(params, ids, mask) - plain)[0, :, :width]
    position, half = 3, width // 2
    angles = [position / 10000 ** (k / half) for k in range(half)]
    np.testing.assert_allclose(added[position], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-5)


def test_denoiser_keeps_a_nearly_clean_sample(predictor, params, batch):
    """c_skip -> 1 and c_out -> 0 as sigma -> 0, whatever the network says."""
    _, ids, mask = batch
    latents = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 4))
    states = predictor.encode_text(params, ids, mask)
    denoised = jax.jit(predictor.denoise)(params, latents, jnp.full((2,), 1e-4), latents[:, 0], states, fps_id=7)
    np.testing.assert_allclose(denoised, latents, atol=2e-3)


def test_loss_has_gradients_everywhere_it_should(predictor, params, batch):
    trained = {name: value for name, value in params.items() if name.startswith(("unet/", "text/"))}

    @jax.jit
    def gradient(trained, key):
        return jax.grad(lambda t: predictor.loss(params | t, *batch, key)[0])(trained)

    # an instruction is dropped with probability 0.05: several keys, so that the text always counts
    total = {name: 0.0 for name in trained}
    for seed in range(3):
        for name, value in gradient(trained, jax.random.key(seed)).items():
            assert np.isfinite(value).all(), name
            total[name] += float(jnp.abs(value).max())
    # the pooled projection belongs to the goal of stage 2; keys of an attention over one token or frame would not matter either
    silent = [name for name, size in total.items() if size == 0.0 and "text_projection" not in name]
    assert silent == []


def test_loss_equals_weighted_error_of_the_denoised_sample(predictor, params, batch):
    """The published form: (x_hat - x)^2 (sigma^2 + 1) / sigma^2, with the same random numbers."""
    video, ids, mask = batch
    key = jax.random.key(3)
    no_dropout = VideoPredictor(predictor.config, dataclasses.replace(predictor.diffusion, conditioning_dropout=0.0))
    ours = float(no_dropout.loss(params, video, ids, mask, key)[0])

    rows = [jax.random.split(jax.random.fold_in(key, row), 4) for row in range(2)]
    posterior_keys, sigma_keys, noise_keys, _ = zip(*rows, strict=True)
    frame_keys = jnp.concatenate([jax.random.split(row, 4) for row in posterior_keys])
    unscaled = predictor.encode_images(params, video.reshape(-1, 32, 32, 3), frame_keys).reshape(2, 4, 8, 8, 4)
    latents = unscaled * params[SCALING_FACTOR]
    density = predictor.diffusion.density
    sigma = jnp.exp(density.mean + density.std * jnp.stack([jax.random.normal(row) for row in sigma_keys]))
    noise = jnp.stack([jax.random.normal(row, latents.shape[1:]) for row in noise_keys])
    noisy = latents + sigma[:, None, None, None, None] * noise
    states = predictor.encode_text(params, ids, mask)
    denoised = predictor.denoise(params, noisy, sigma, unscaled[:, 0], states, fps_id=predictor.config.fps_id_train)
    error = jnp.mean((denoised - latents) ** 2, axis=(1, 2, 3, 4))
    published = float(jnp.mean(error * (sigma**2 + 1) / sigma**2))
    assert ours == pytest.approx(published, rel=2e-3)


class Recording(VideoPredictor):
    """Remembers what the denoiser would be trained on, and what the VAE encoded last."""

    def denoising_loss(self, params, latents, condition, text_states, sigma, noise):
        self.__dict__.update(latents=latents, condition=condition)
        return jnp.float32(0)

    def encode_images(self, params, images, keys=None):
        self.__dict__["encoded"] = images
        return super().encode_images(params, images, keys)


def recorded(predictor, params, batch, training=True, **fields):
    found = Recording(predictor.config, dataclasses.replace(predictor.diffusion, **fields))
    found.loss(params, *batch, jax.random.key(4), training)
    return found


def test_the_mean_of_the_posterior_can_be_trained_on(predictor, params, batch):
    mean = np.asarray(predictor.encode_images(params, batch[0].reshape(-1, 32, 32, 3))).reshape(2, 4, 8, 8, 4)
    expected = mean * params[SCALING_FACTOR]
    np.testing.assert_allclose(recorded(predictor, params, batch, sample_posterior=False).latents, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(recorded(predictor, params, batch).latents - expected).max() > 0.1


def test_noise_on_the_given_frame_has_the_configured_strength(predictor, params, batch):
    clean = to_float_image(batch[0][:, 0])
    noisy = recorded(predictor, params, batch, condition_noise=(-3.0, 0.0))
    added = np.asarray(noisy.encoded - clean)
    assert added.std(axis=(1, 2, 3)) == pytest.approx(np.exp(-3.0), rel=0.05)
    assert abs(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1]) < 0.1, "each example has its own"
    np.testing.assert_array_equal(noisy.condition, predictor.encode_images(params, noisy.encoded))
    varied = recorded(predictor, params, batch, condition_noise=(-3.0, 0.5))
    assert np.ptp(np.asarray(varied.encoded - clean).std(axis=(1, 2, 3))) > 0.005
    without = recorded(predictor, params, batch)
    np.testing.assert_array_equal(noisy.latents, without.latents)
    held_out = recorded(predictor, params, batch, training=False, condition_noise=(-3.0, 0.5))
    np.testing.assert_array_equal(held_out.condition, without.condition)


def test_previews_may_have_their_own_guidance(micro_config):
    config = micro_config("video")
    stage = VideoStage(config)
    assert stage._previewer is stage.predictor
    diffusion = dataclasses.replace(config.video_diffusion, preview_guidance_max=7.5)
    stage = VideoStage(dataclasses.replace(config, video_diffusion=diffusion))
    assert (stage._previewer.diffusion.guidance_max, stage.predictor.diffusion.guidance_max) == (7.5, config.video_diffusion.guidance_max)


def test_generate_gives_frames_and_depends_on_the_key_alone(predictor, params, batch):
    video, ids, mask = batch
    generate = jax.jit(predictor.generate)
    first = np.asarray(generate(params, video[:, 0], ids, mask, jax.random.key(1)))
    assert first.shape == (2, 4, 32, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, generate(params, video[:, 0], ids, mask, jax.random.key(1)))
    assert (first != np.asarray(generate(params, video[:, 0], ids, mask, jax.random.key(2)))).any()


def test_features_of_the_cut_network_equal_those_of_the_whole(predictor, params, batch):
    video, ids, mask = batch
    cut = VideoPredictor(predictor.config, predictor.diffusion, last_tap=max(predictor.config.tap_blocks))
    fewer = {name: value for name, value in params.items() if not name.startswith("unet/") or name[5:] in cut.unet.abstract}
    assert len(fewer) < len(params)
    states = predictor.encode_text(params, ids, mask)
    whole = jax.jit(predictor.predictive_features)(params, video[:, 0], states, jax.random.key(0))
    short = jax.jit(cut.predictive_features)(fewer, video[:, 0], states, jax.random.key(0))
    assert whole.shape[1:] == cut.feature_shape == (4, 64, 32)
    np.testing.assert_allclose(whole, short, rtol=1e-5, atol=1e-5)


def test_taps_are_upsampled_to_the_largest_and_joined_in_order(predictor, params, batch):
    video, ids, mask = batch
    both = VideoPredictor(dataclasses.replace(predictor.config, tap_blocks=(0, 1)), predictor.diffusion)
    states = predictor.encode_text(params, ids, mask)
    noise = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 4))
    joined = jax.jit(both.predictive_features)(params, video[:, 0], states, noise)
    alone = jax.jit(predictor.predictive_features)(params, video[:, 0], states, noise)
    np.testing.assert_allclose(joined[..., : alone.shape[-1]], alone, rtol=1e-5, atol=1e-5)
    assert joined.shape[-1] > alone.shape[-1]


def test_features_after_a_denoising_step_are_those_of_the_published_scheduler(predictor, params, batch):
    """Two steps written out: Karras levels 700 and 700's successor on a schedule of 20, one Euler step between, no guidance."""
    video, ids, mask = batch
    config = dataclasses.replace(predictor.config, feature_steps=2)
    states = predictor.encode_text(params, ids, mask)
    noise = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 4))
    features = jax.jit(VideoPredictor(config, predictor.diffusion).predictive_features)(params, video[:, 0], states, noise)

    root, low = 700 ** (1 / 7), 0.002 ** (1 / 7)
    high, following = 700.0, (root + (low - root) / 19) ** 7
    start = noise * np.sqrt(high**2 + 1)
    condition = predictor.encode_images(params, video[:, 0])
    clean = predictor.denoise(params, start, jnp.full(2, high), condition, states, fps_id=config.fps_id_features)
    moved = start + (start - clean) / high * (following - high)
    single = dataclasses.replace(predictor.config, feature_sigma=following)
    expected = jax.jit(VideoPredictor(single, predictor.diffusion).predictive_features)(
        params, video[:, 0], states, moved / np.sqrt(following**2 + 1)
    )
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-4)
