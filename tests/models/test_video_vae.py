"""The temporal VAE: the published parameter list, shapes, paddings, gradients, recorded reference outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from vpp_jax.functional import PureModule, parameter_count
from vpp_jax.models.video_vae import Posterior, TemporalVAE, VAEDownsample, VideoVAEConfig

CONFIG = VideoVAEConfig(block_out_channels=(4, 8), layers_per_block=2, latent_channels=3, norm_groups=2)


def build(config: VideoVAEConfig) -> PureModule:
    return PureModule.of(lambda rngs: TemporalVAE(config, rngs=rngs))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    abstract = build(CONFIG).abstract
    return {name: jnp.float32(name.endswith("scale") + 0.2 * rng.standard_normal(spec.shape)) for name, spec in abstract.items()}


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (4, 8, 6, 3)), jnp.float32)


@pytest.fixture(scope="module")
def coder(params):
    """(encode, decode), compiled once."""
    pure = build(CONFIG)
    encode = jax.jit(lambda params, x: pure.bind(params).encode(x))
    decode = jax.jit(lambda params, z: pure.bind(params).decode(z))
    return lambda x: encode(params, x), lambda z, p=None: decode(p or params, z)


def test_published_architecture_has_the_published_parameters():
    abstract = build(VideoVAEConfig()).abstract
    assert (len(abstract), parameter_count(abstract)) == (374, 97_742_847)
    decoder = sum(spec.size for name, spec in abstract.items() if name.startswith("decoder."))
    assert decoder == 63_579_183
    assert sum(name.endswith("mix_factor") for name in abstract) == 14
    expected = {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.kernel": (1, 1, 128, 256),
        "encoder.mid_block.attentions.0.to_q.bias": (512,),
        "encoder.mid_block.attentions.0.group_norm.scale": (512,),
        "decoder.mid_block.attentions.0.to_out.0.kernel": (512, 512),
        "decoder.up_blocks.3.resnets.0.spatial_res_block.conv1.kernel": (3, 3, 256, 128),
        "decoder.up_blocks.0.resnets.2.temporal_res_block.conv2.kernel": (3, 1, 1, 512, 512),
        "decoder.time_conv_out.kernel": (3, 1, 1, 3, 3),
        "quant_conv.kernel": (1, 1, 8, 8),
    }
    assert {name: abstract[name].shape for name in expected} == expected


def test_shapes_and_images_are_encoded_independently(coder, images):
    encode, decode = coder
    posterior = encode(images)
    assert posterior.mean.shape == posterior.logvar.shape == (4, 4, 3, 3)
    assert float(posterior.logvar.min()) >= -30
    assert float(posterior.logvar.max()) <= 20
    np.testing.assert_allclose(encode(images[::-1]).mean, posterior.mean[::-1], atol=1e-4)
    assert decode(posterior.mean.reshape(2, 2, 4, 3, 3)).shape == (2, 2, 8, 6, 3)


def test_downsampling_pads_right_and_bottom():
    module = VAEDownsample(2, dtype="float32", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(2).standard_normal((1, 4, 6, 2)), jnp.float32)
    padded = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    plain = lax.conv_general_dilated(padded, module.conv.kernel[...], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(module(x), plain, atol=1e-5)


def test_gates_of_the_decoder_switch_time_on_with_a_large_factor(coder, params):
    _, decode = coder
    latents = jnp.asarray(np.random.default_rng(3).standard_normal((1, 2, 4, 3, 3)), jnp.float32)
    moved = latents.at[:, 1].add(1.0)
    for factor, connected in ((-30.0, False), (30.0, True)):
        gated = {name: jnp.full_like(p, factor) if name.endswith("mix_factor") else p for name, p in params.items()}
        kernel = gated["decoder.time_conv_out.kernel"]
        gated["decoder.time_conv_out.kernel"] = kernel.at[0].set(0.0).at[2].set(0.0)  # the last convolution alone looks at one frame
        change = float(jnp.abs(decode(latents, gated)[:, 0] - decode(moved, gated)[:, 0]).max())
        assert (change > 1e-3) == connected


@pytest.mark.medium
def test_every_parameter_has_a_gradient(params, images):
    pure = build(CONFIG)

    def loss(p):
        vae = pure.bind(p)
        posterior = vae.encode(images)
        decoded = vae.decode(posterior.sample(jax.random.key(0)).reshape(2, 2, 4, 3, 3))
        return jnp.mean(jnp.square(decoded.reshape(images.shape) - images)) + 1e-2 * posterior.kl().mean()

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients.values())
    assert [name for name, g in gradients.items() if not jnp.abs(g).max() > 0] == []


def test_posterior_samples_and_divergence():
    posterior = Posterior(jnp.full((200, 200), 0.7), jnp.full((200, 200), np.log(0.25)))
    sample = np.asarray(posterior.sample(jax.random.key(0)))
    assert abs(sample.mean() - 0.7) < 0.01
    assert abs(sample.std() - 0.5) < 0.01
    np.testing.assert_allclose(posterior.kl(), 0.5 * (0.49 + 0.25 - 1 - np.log(0.25)), rtol=1e-5)


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="norm_groups"):
        dataclasses.replace(CONFIG, norm_groups=3)
    module = build(CONFIG).build(nnx.Rngs(0))
    with pytest.raises(ValueError, match="divisible by 2"):
        module.encode(jnp.zeros((1, 7, 6, 3)))
    with pytest.raises(ValueError, match="latents"):
        module.decode(jnp.zeros((1, 2, 4, 3, 4)))
