"""The video U-Net: the published parameter list, taps and early stop, gradients, equivariances, recorded reference outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.functional import PureModule, parameter_count
from vpp_jax.models.video_unet import SpatioTemporalUNet, VideoUNetConfig

CONFIG = VideoUNetConfig(
    block_out_channels=(8, 16),
    attention_levels=(True, False),
    layers_per_block=1,
    attention_heads=(1, 2),
    cross_attention_dim=12,
    addition_time_embed_dim=4,
    norm_groups=4,
)


def build(config: VideoUNetConfig) -> PureModule:
    return PureModule.of(lambda rngs: SpatioTemporalUNet(config, rngs=rngs))


def jitted(config: VideoUNetConfig, taps: tuple[int, ...] = ()):
    pure = build(config)
    return jax.jit(lambda params, *inputs: pure.bind(params)(*inputs, taps=taps))


@pytest.fixture(scope="module")
def params():
    """Random everywhere, so that no zero-initialised kernel hides a path; drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    abstract = build(CONFIG).abstract
    return {name: jnp.float32(name.endswith("scale") + 0.2 * rng.standard_normal(spec.shape)) for name, spec in abstract.items()}


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return normal(3, 2, 4, 4, 8), normal(3), normal(3, 5, 12), jnp.array([[7.0, 127, 0], [4, 127, 0], [7, 100, 0.02]])


@pytest.fixture(scope="module")
def run(params):
    """Whole network with both taps, compiled once."""
    function = jitted(CONFIG, (0, 1))
    return lambda *inputs: function(params, *inputs)


@pytest.mark.medium
def test_published_architecture_has_the_published_parameters():
    abstract = build(VideoUNetConfig()).abstract
    assert (len(abstract), parameter_count(abstract)) == (1428, 1_524_623_082)
    assert sum(name.endswith("mix_factor") for name in abstract) == 38
    block = "up_blocks.2.attentions.1."
    expected = {
        "conv_in.kernel": (3, 3, 8, 320),
        "add_embedding.linear_1.kernel": (768, 1280),
        "down_blocks.1.downsamplers.0.conv.bias": (640,),
        "down_blocks.3.resnets.1.temporal_res_block.conv2.kernel": (3, 1, 1, 1280, 1280),
        "up_blocks.1.resnets.2.spatial_res_block.conv_shortcut.kernel": (1, 1, 1920, 1280),
        "up_blocks.3.resnets.0.spatial_res_block.norm1.scale": (960,),
        f"{block}transformer_blocks.0.attn2.to_k.kernel": (1024, 640),
        f"{block}temporal_transformer_blocks.0.ff_in.net.0.proj.kernel": (640, 5120),
        f"{block}temporal_transformer_blocks.0.attn1.to_out.0.bias": (640,),
        f"{block}time_pos_embed.linear_2.kernel": (2560, 640),
        "conv_out.kernel": (3, 3, 320, 4),
    }
    assert {name: abstract[name].shape for name in expected} == expected


@pytest.mark.medium
def test_stop_after_a_tap_is_structural():
    abstract = build(VideoUNetConfig(last_tap=1)).abstract
    assert parameter_count(abstract) == 1_355_628_826
    assert not [name for name in abstract if name.startswith(("up_blocks.2", "up_blocks.3", "conv_norm_out", "conv_out"))]
    assert abstract.keys() < build(VideoUNetConfig()).abstract.keys()


def test_shapes_and_taps_of_the_stopped_network_equal_the_whole(run, params, inputs):
    whole = run(*inputs)
    assert whole.sample.shape == (3, 2, 4, 4, 4)
    assert {i: tap.shape[2:] for i, tap in whole.taps.items()} == {i: CONFIG.tap_shape(i, 4, 4) for i in (0, 1)}
    config = dataclasses.replace(CONFIG, last_tap=0)
    stopped = jitted(config, (0,))({name: params[name] for name in build(config).abstract}, *inputs)
    assert stopped.sample is None
    np.testing.assert_allclose(stopped.taps[0], whole.taps[0], atol=1e-4)


def test_batch_permutation_and_dependence_on_every_input(run, inputs):
    whole = run(*inputs).sample
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(run(*(x[order] for x in inputs)).sample, whole[order], atol=1e-4)
    for i in range(4):
        changed = list(inputs)
        changed[i] = changed[i].at[0].multiply(1.5)
        moved = jnp.abs(run(*changed).sample - whole).max(axis=(1, 2, 3, 4))
        assert moved[0] > 1e-3
        assert moved[1:].max() < 1e-4  # examples do not see each other


def test_frames_see_each_other_and_their_order(run, inputs):
    sample, *rest = inputs
    whole = run(sample, *rest).sample
    changed = run(sample.at[:, 1].add(1.0), *rest).sample
    assert float(jnp.abs(changed[:, 0] - whole[:, 0]).max()) > 1e-3
    flipped = run(sample[:, ::-1], *rest).sample[:, ::-1]
    assert float(jnp.abs(flipped - whole).max()) > 1e-3


def gradient(config, params, inputs):
    pure = build(config)
    return jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(pure.bind(p)(*inputs).sample - 1.0))))(params)


@pytest.fixture(scope="module")
def plain(params, inputs):
    """Gradient of a loss with respect to every parameter."""
    return gradient(CONFIG, params, inputs)


@pytest.mark.medium
def test_every_parameter_has_a_gradient(plain):
    assert all(bool(jnp.isfinite(g).all()) for g in plain.values())
    assert [name for name, g in plain.items() if not jnp.abs(g).max() > 0] == []


@pytest.mark.medium
def test_remat_does_not_change_the_gradient(plain, params, inputs):
    remat = gradient(dataclasses.replace(CONFIG, remat="everything"), params, inputs)
    for name, value in plain.items():
        np.testing.assert_allclose(remat[name], value, atol=2e-4 * float(jnp.abs(value).max()) + 1e-6, err_msg=name)


def test_new_network_predicts_zero_and_bfloat16_is_close(run, params, inputs):
    fresh = jax.jit(build(CONFIG).init)(jax.random.key(0))
    assert not fresh["conv_out.kernel"].any()
    assert not fresh["conv_out.bias"].any()
    half = jitted(dataclasses.replace(CONFIG, dtype="bfloat16"))(params, *inputs).sample
    full = run(*inputs).sample
    assert half.dtype == jnp.bfloat16
    assert float(jnp.abs(half.astype(jnp.float32) - full).mean() / jnp.abs(full).mean()) < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_groups": 3}, "norm_groups"),
        ({"attention_heads": (1,)}, "attention_heads"),
        ({"attention_heads": (3, 2)}, "divide"),
        ({"last_tap": 2}, "last_tap"),
        ({"dtype": "float16"}, "dtype"),
        ({"layers_per_block": 0}, "layers_per_block is 0, expected at least 1"),
    ],
)
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_wrong_inputs_are_named(params, inputs):
    module = build(CONFIG).bind(params)
    sample, *rest = inputs
    with pytest.raises(ValueError, match="sample"):
        module(sample[..., :7], *rest)
    with pytest.raises(ValueError, match="taps"):
        module(sample, *rest, taps=(2,))
