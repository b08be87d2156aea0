"""Video Former: sizes, the absorbed attention against the explicit one, what may depend on what."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax import ops
from vpp_jax.functional import PureModule, parameter_count
from vpp_jax.models.video_former import PerceiverAttention, VideoFormer, VideoFormerConfig

CONFIG = VideoFormerConfig("3d", dim=16, depth=2, heads=2, dim_head=12, frames=3, tokens_per_frame=4, condition_dim=10)


def build(config: VideoFormerConfig) -> PureModule:
    return PureModule.of(lambda rngs: VideoFormer(config, rngs=rngs))


def variant(name: str) -> VideoFormerConfig:
    return dataclasses.replace(CONFIG, variant=name)


def random_params(pure: PureModule) -> dict[str, jax.Array]:
    """Drawn by numpy, which compiles nothing; scales around 1."""
    rng = np.random.default_rng(0)
    return {name: jnp.float32(name.endswith("scale") + 0.3 * rng.standard_normal(spec.shape)) for name, spec in pure.abstract.items()}


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(1), (2, 3, 7, 10))


@pytest.fixture(scope="module")
def models():
    """{variant: (jitted forward, params)}"""
    pure = {name: build(variant(name)) for name in ("3d", "2d", "linear")}
    return {name: (jax.jit(lambda params, x, m=module: m.bind(params)(x)), random_params(module)) for name, module in pure.items()}


def test_published_sizes_and_names():
    abstract = build(VideoFormerConfig()).abstract
    assert (parameter_count(abstract), len(abstract)) == (17_713_536, 104)
    shapes = {
        "latents": (16, 14, 384),
        "time_pos_emb": (16, 1, 384),
        "goal_emb.0.kernel": (2560, 768),
        "goal_emb.2.bias": (384,),
        "layers.5.0.to_out.kernel": (512, 384),
        "layers.0.0.norm_media.bias": (384,),
        "layers.0.1.qkv.bias": (1152,),
        "layers.0.2.0.scale": (384,),
        "layers.0.2.3.kernel": (1536, 384),
        "norm.scale": (384,),
    }
    assert {name: abstract[name].shape for name in shapes} == shapes
    assert parameter_count(build(VideoFormerConfig(condition_dim=1280)).abstract) == 16_730_496
    flat = build(VideoFormerConfig("2d")).abstract
    assert len(flat) == 2 + 4 + 6 * 12 + 2
    assert flat["layers.5.1.3.kernel"].shape == (1536, 384)


def test_absorbed_attention_equals_explicit_keys_and_values():
    pure = PureModule.of(lambda rngs: PerceiverAttention(16, heads=3, dim_head=5, rngs=rngs))
    params = random_params(pure)
    latents, media = jax.random.normal(jax.random.key(50), (2, 3, 4, 16)), jax.random.normal(jax.random.key(51), (2, 3, 9, 16))

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * params[f"{name}.scale"] + params[f"{name}.bias"]

    def explicit(latents, media):
        queries = norm(latents, "norm_latents")
        context = jnp.concatenate([norm(media, "norm_media"), queries], axis=-2)
        q, k, v = queries @ params["to_q.kernel"], context @ params["to_k.kernel"], context @ params["to_v.kernel"]
        return ops.attention(q, k, v, heads=3) @ params["to_out.kernel"]

    absorbed = jax.jit(lambda latents, media: pure.bind(params)(latents, media))(latents, media)
    np.testing.assert_allclose(absorbed, jax.jit(explicit)(latents, media), rtol=1e-4, atol=1e-5)


def test_shapes(models, features):
    for name, count in (("3d", 12), ("2d", 12), ("linear", 21)):
        forward, params = models[name]
        assert forward(params, features).shape == (2, count, 16)


def test_flat_variant_is_the_3d_one_without_temporal_attention(models, features):
    (forward_3d, params_3d), (forward_2d, _) = models["3d"], models["2d"]
    silenced = {name: jnp.zeros_like(value) if ".1.proj." in name else value for name, value in params_3d.items()}
    kept = {name: value for name, value in params_3d.items() if not name.startswith(("layers.0.1.", "layers.1.1."))}
    renamed = {name.replace("layers.0.2.", "layers.0.1.").replace("layers.1.2.", "layers.1.1."): v for name, v in kept.items()}
    np.testing.assert_allclose(forward_3d(silenced, features), forward_2d(renamed, features), atol=1e-5)
    assert not np.allclose(forward_3d(params_3d, features), forward_2d(renamed, features), atol=1e-3)


def test_only_temporal_attention_mixes_frames(models, features):
    changed = features.at[:, 2].add(1.0)
    for name in ("2d", "3d"):
        forward, params = models[name]
        change = np.abs(forward(params, changed) - forward(params, features)).reshape(2, 3, 4, 16).max((0, 2, 3))
        assert change[2] > 1e-3
        if name == "2d":
            np.testing.assert_array_equal(change[:2], 0.0)  # tokens are frame-major
        else:
            assert np.all(change[:2] > 1e-5)  # backwards in time too: it is not causal


def test_order_of_a_frames_features_does_not_matter(models, features):
    """Views are concatenated on the token axis; without positions only the set counts."""
    for name in ("2d", "3d"):
        forward, params = models[name]
        np.testing.assert_allclose(forward(params, features[:, :, ::-1]), forward(params, features), atol=5e-5)


def test_order_of_frames_matters(models, features):
    forward, params = models["3d"]
    flipped = forward(params, features[:, ::-1]).reshape(2, 3, 4, 16)[:, ::-1]
    assert not np.allclose(flipped, forward(params, features).reshape(2, 3, 4, 16), atol=1e-2)


def test_linear_variant_projects_every_token(models, features):
    forward, params = models["linear"]
    expected = features.reshape(2, 21, 10) @ params["proj.kernel"] + params["proj.bias"]
    np.testing.assert_allclose(forward(params, features), expected, atol=1e-5)


def test_every_parameter_learns(models, features):
    forward, params = models["3d"]
    gradients = jax.jit(jax.grad(lambda params: jnp.mean(jnp.sin(2 * forward(params, features)))))(params)
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), name
        assert np.max(np.abs(gradient)) > 1e-6, name


def test_initial_weights_are_uniform_over_pytorchs_range():
    params = build(dataclasses.replace(CONFIG, condition_dim=64, dim=64, depth=1)).init(jax.random.key(0))
    for name, inputs in (("goal_emb.0.kernel", 64), ("layers.0.0.to_out.kernel", 24), ("layers.0.1.qkv.bias", 64)):
        values, bound = np.abs(params[name]), 1 / math.sqrt(inputs)
        assert values.max() <= bound
        assert values.max() > 0.95 * bound
        assert values.mean() == pytest.approx(bound / 2, rel=0.15)
    assert float(np.std(params["latents"])) == pytest.approx(1.0, rel=0.1)


def test_bfloat16_stays_close(models, features):
    forward, params = models["3d"]
    half = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert {spec.dtype for spec in half.abstract.values()} == {jnp.dtype("float32")}
    output = jax.jit(lambda params, x: half.bind(params)(x))(params, features)
    assert output.dtype == jnp.bfloat16
    # outputs have unit variance; single entries may move more where a softmax is close to a tie
    assert np.sqrt(np.mean((output.astype(jnp.float32) - forward(params, features)) ** 2)) < 0.15


@pytest.mark.parametrize("shape", [(2, 4, 7, 10), (2, 3, 7, 11)])
def test_wrong_features_are_refused(shape):
    pure = build(CONFIG)
    with pytest.raises(ValueError, match="3 frames and 10 channels"):
        jax.eval_shape(lambda params, x: pure.bind(params)(x), pure.abstract, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("fields", [{"variant": "4d"}, {"depth": 0}, {"dim": 20, "heads": 8}])
def test_bad_configs_are_refused(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} is "):
        VideoFormerConfig(**fields)
