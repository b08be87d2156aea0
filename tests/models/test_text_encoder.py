"""CLIP text transformer: size, causality, padding, pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.functional import PureModule, parameter_count
from vpp_jax.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from vpp_jax.models.tokenizer import CLIPTokenizer

CONFIG = TextEncoderConfig(width=32, layers=2, heads=4, mlp_width=64, projection_dim=24)
INSTRUCTIONS = ["push the red block", "open the drawer and lift the blue block", "a"]


def build(config: TextEncoderConfig) -> PureModule:
    return PureModule.of(lambda rngs: CLIPTextEncoder(config, rngs=rngs))


@pytest.fixture(scope="module")
def pure():
    return build(CONFIG)


@pytest.fixture(scope="module")
def params(pure):
    return pure.init(jax.random.key(0))


@pytest.fixture(scope="module")
def encode(pure):
    return jax.jit(lambda params, ids, mask: pure.bind(params)(ids, mask))


def test_published_size_and_names():
    abstract = build(TextEncoderConfig()).abstract
    assert parameter_count(abstract) == 63_428_096
    assert len(abstract) == 197
    assert abstract["text_model.embeddings.token_embedding.embedding"].shape == (49408, 512)
    assert abstract["text_model.encoder.layers.11.self_attn.q_proj.bias"].shape == (512,)
    assert abstract["text_model.encoder.layers.0.mlp.fc2.kernel"].shape == (2048, 512)
    assert abstract["text_model.final_layer_norm.scale"].shape == (512,)
    assert "text_projection.bias" not in abstract


def test_padding_changes_nothing(params, encode):
    outputs = {length: encode(params, *CLIPTokenizer(length)(INSTRUCTIONS)) for length in (12, 30)}
    assert outputs[12].hidden.shape == (3, 12, 32)
    assert outputs[12].pooled.shape == (3, 24)
    np.testing.assert_allclose(outputs[12].pooled, outputs[30].pooled, atol=1e-5)
    np.testing.assert_allclose(outputs[12].hidden, outputs[30].hidden[:, :12], atol=1e-5)


def test_padding_never_serves_as_key(params, encode):
    """Hidden states at padding depend on real tokens and on their own position, not on what other padding holds."""
    ids, mask = CLIPTokenizer(12)(["a"])
    changed = ids.copy()
    changed[0, 5] = 1234
    before, after = encode(params, ids, mask).hidden, encode(params, changed, mask).hidden
    others = np.arange(12) != 5
    np.testing.assert_array_equal(before[:, others], after[:, others])
    assert not np.allclose(before[:, 5], after[:, 5], atol=1e-4)
    unmasked = encode(params, ids, np.ones_like(mask)).hidden
    assert not np.allclose(unmasked[:, 8], before[:, 8], atol=1e-6)


def test_attention_is_causal(params, encode):
    ids, mask = CLIPTokenizer(12)([INSTRUCTIONS[1]])
    changed = ids.copy()
    changed[0, 4] = 1234
    before, after = encode(params, ids, mask).hidden, encode(params, changed, mask).hidden
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(np.abs(before - after)[:, 4:10] > 1e-6, axis=-1))


def test_pooled_is_the_projected_state_at_the_first_end_token(params, encode):
    ids, mask = CLIPTokenizer(12)(INSTRUCTIONS)
    output = encode(params, ids, mask)
    for row, count in enumerate(mask.sum(1)):
        expected = output.hidden[row, count - 1] @ params["text_projection.kernel"]
        np.testing.assert_allclose(output.pooled[row], expected, atol=1e-5)


def test_every_parameter_learns(pure, params):
    ids, mask = CLIPTokenizer(12)(INSTRUCTIONS)

    def loss(params):
        output = pure.bind(params)(jnp.asarray(ids), jnp.asarray(mask))
        return jnp.mean(jnp.sin(3 * output.hidden)) + jnp.mean(jnp.sin(3 * output.pooled))

    for name, gradient in jax.jit(jax.grad(loss))(params).items():
        assert np.all(np.isfinite(gradient)), name
        largest = np.max(np.abs(gradient))
        # a bias on all keys shifts every score of a query alike, which softmax cannot see
        assert (largest < 1e-6) if name.endswith("k_proj.bias") else (largest > 1e-6), (name, largest)


def test_initial_spread_is_clips(params):
    def std(name):
        return float(np.std(params[f"text_model.encoder.layers.0.{name}.kernel"]))

    assert std("self_attn.q_proj") == pytest.approx(32**-0.5 * 4**-0.5, rel=0.1)
    assert std("self_attn.out_proj") == pytest.approx(32**-0.5, rel=0.1)
    assert std("mlp.fc1") == pytest.approx(64**-0.5, rel=0.1)
    assert std("mlp.fc2") == pytest.approx(32**-0.5 * 4**-0.5, rel=0.1)
    assert float(np.std(params["text_model.embeddings.token_embedding.embedding"])) == pytest.approx(0.02, rel=0.05)


def test_bfloat16_keeps_float32_parameters(params):
    pure = build(TextEncoderConfig(width=32, layers=2, heads=4, mlp_width=64, projection_dim=24, dtype="bfloat16"))
    assert {spec.dtype for spec in pure.abstract.values()} == {jnp.dtype("float32")}
    output = pure.bind(params)(*map(jnp.asarray, CLIPTokenizer(8)(["a"])))
    assert output.hidden.dtype == output.pooled.dtype == jnp.bfloat16


def test_too_long_text_is_refused(pure, params):
    with pytest.raises(ValueError, match="77 positions"):
        pure.bind(params)(jnp.zeros((1, 78), jnp.int32), jnp.ones((1, 78), bool))


@pytest.mark.parametrize("fields", [{"width": 33}, {"layers": 0}, {"end_of_text": 49408}, {"heads": 0}])
def test_bad_configs_are_refused(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} is "):
        TextEncoderConfig(**fields)
