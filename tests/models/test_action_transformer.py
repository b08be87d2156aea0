"""Action transformer: the decoder against an independent double-precision version, causality, missing positions, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.functional import PureModule, parameter_count
from vpp_jax.models.action_transformer import ActionTransformer, ActionTransformerConfig

CONFIG = ActionTransformerConfig(
    action_dim=3, action_horizon=5, width=24, heads=3, encoder_layers=1, decoder_layers=2, goal_dim=6, token_dim=8
)
OPEN = dataclasses.replace(CONFIG, causal_cross_attention=False)


def build(config: ActionTransformerConfig) -> PureModule:
    return PureModule.of(lambda rngs: ActionTransformer(config, rngs=rngs))


def random_params(pure: PureModule) -> dict[str, jax.Array]:
    """Random everywhere, so that no bias or scale hides behind 0 or 1; drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    return {name: jnp.float32(name.endswith("scale") + 0.2 * rng.standard_normal(spec.shape)) for name, spec in pure.abstract.items()}


@pytest.fixture(scope="module")
def params():
    return random_params(build(CONFIG))


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(2), 4)
    tokens, goal = jax.random.normal(keys[0], (2, 9, 8)), jax.random.normal(keys[1], (2, 6))
    return tokens, goal, jax.random.normal(keys[2], (2, 5, 3)), jnp.array([0.05, 3.0])


@pytest.fixture(scope="module")
def encode():
    pure = build(CONFIG)
    return jax.jit(lambda params, tokens, goal: pure.bind(params).encode(tokens, goal))


@pytest.fixture(scope="module")
def decode():
    """{causal cross-attention?: jitted decode}"""
    pure = {True: build(CONFIG), False: build(OPEN)}
    return {
        causal: jax.jit(lambda params, x, sigma, context, m=module: m.bind(params).decode(x, sigma, context))
        for causal, module in pure.items()
    }


@pytest.fixture(scope="module")
def context(params, inputs, encode):
    return encode(params, *inputs[:2])


def test_published_size_and_names():
    abstract = build(ActionTransformerConfig()).abstract
    # all of the published 22,602,631 except pos_emb, goal_emb and proprio_emb, which no forward pass reads
    assert parameter_count(abstract) == 22_602_631 - 1_081_728
    assert len(abstract) == 157 - 9
    shapes = {
        "lang_emb.0.kernel": (512, 768),
        "sigma_emb.3.kernel": (768, 384),
        "encoder.blocks.3.attn.query.bias": (384,),
        "encoder.ln.scale": (384,),
        "decoder.blocks.0.cross_att.c_proj.kernel": (384, 384),
        "decoder.blocks.0.ln3.bias": (384,),
        "decoder.blocks.0.adaLN_zero.modulation.1.kernel": (384, 2304),
        "decoder.blocks.0.mlp.c_fc.kernel": (384, 1536),
        "action_pred.bias": (7,),
    }
    assert {name: abstract[name].shape for name in shapes} == shapes
    for absent in ("encoder.ln.bias", "decoder.blocks.0.ln_1.bias", "decoder.blocks.0.attn.c_proj.bias", "encoder.blocks.0.mlp.c_fc.bias"):
        assert absent not in abstract
    with_proprio = build(ActionTransformerConfig(proprio_dim=8)).abstract
    assert parameter_count(with_proprio) - parameter_count(abstract) == 302_208


def reference_decode(params, actions, sigma, context, heads, causal_cross):
    """The decoder written out from the equations, in double precision with numpy."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x, sigma, context = (np.asarray(v, np.float64) for v in (actions, sigma, context))

    def linear(x, name):
        return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0.0)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * p[f"{name}.scale"] + p.get(f"{name}.bias", 0.0)

    def attention(x, other, name, causal):
        q, k, v = linear(x, f"{name}.query"), linear(other, f"{name}.key"), linear(other, f"{name}.value")
        width, out = q.shape[-1] // heads, []
        for b in range(len(q)):
            parts = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                scores = q[b, :, part] @ k[b, :, part].T / np.sqrt(width)
                if causal:
                    scores[np.triu_indices(len(scores), 1, scores.shape[1])] = -np.inf
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                parts.append(weights / weights.sum(-1, keepdims=True) @ v[b, :, part])
            out.append(np.concatenate(parts, -1))
        return linear(np.stack(out), f"{name}.c_proj")

    def mlp(x, name):
        hidden = linear(x, f"{name}.c_fc")
        erf = np.asarray(jax.scipy.special.erf(jnp.asarray(hidden / np.sqrt(2))), np.float64)
        return linear(0.5 * hidden * (1 + erf), f"{name}.c_proj")

    width = p["action_emb.kernel"].shape[1]
    angles = np.log(sigma)[:, None] / 4 * np.exp(-np.arange(width // 2) * np.log(10000) / (width // 2 - 1))
    hidden = linear(np.concatenate([np.sin(angles), np.cos(angles)], -1), "sigma_emb.1")
    condition = linear(hidden * np.tanh(np.log1p(np.exp(hidden))), "sigma_emb.3")[:, None]
    x = linear(x, "action_emb")
    for i in range(2):
        block = f"decoder.blocks.{i}"
        beta1, gamma1, alpha1, beta2, gamma2, alpha2 = np.split(
            linear(condition / (1 + np.exp(-condition)), f"{block}.adaLN_zero.modulation.1"), 6, axis=-1
        )
        modulated = beta1 + gamma1 * norm(x, f"{block}.ln_1")
        x = x + alpha1 * attention(modulated, modulated, f"{block}.attn", True)
        x = x + attention(norm(x, f"{block}.ln3"), context, f"{block}.cross_att", causal_cross)
        x = x + alpha2 * mlp(beta2 + gamma2 * norm(x, f"{block}.ln_2"), f"{block}.mlp")
    return linear(norm(x, "decoder.ln"), "action_pred")


@pytest.mark.parametrize("causal", [True, False])
def test_decoder_follows_the_equations(causal, params, inputs, context, decode):
    _, _, actions, sigma = inputs
    expected = reference_decode(params, actions, sigma, context, CONFIG.heads, causal)
    np.testing.assert_allclose(decode[causal](params, actions, sigma, context), expected, rtol=1e-4, atol=2e-5)


def test_action_i_sees_context_up_to_i_only(params, inputs, context, decode):
    _, _, actions, sigma = inputs
    for token in (0, 2, 4, 5, 9):
        changed = context.at[:, token].add(1.0)
        change = {c: np.abs(f(params, actions, sigma, changed) - f(params, actions, sigma, context)).max((0, 2)) for c, f in decode.items()}
        np.testing.assert_array_equal(change[True][:token], 0.0)
        assert np.all(change[True][token:] > 1e-5)
        assert np.all(change[False] > 1e-5)


def test_action_i_sees_noisy_actions_up_to_i_only(params, inputs, context, decode):
    _, _, actions, sigma = inputs
    for f in decode.values():
        change = np.abs(f(params, actions.at[:, 3].add(1.0), sigma, context) - f(params, actions, sigma, context)).max((0, 2))
        np.testing.assert_array_equal(change[:3], 0.0)
        assert np.all(change[3:] > 1e-5)


def test_encoder_has_no_positions(params, inputs, encode):
    tokens, goal, _, _ = inputs
    order = jnp.array([4, 2, 8, 0, 1, 7, 3, 6, 5])
    context = encode(params, tokens, goal)
    assert context.shape == (2, 10, 24)
    shuffled = encode(params, tokens[:, order], goal)
    np.testing.assert_allclose(shuffled[:, 1:], context[:, 1:][:, order], atol=1e-5)
    np.testing.assert_allclose(shuffled[:, 0], context[:, 0], atol=1e-5)


def test_decoder_has_no_positions(params, inputs, context, decode):
    """Equal noisy actions that see equal things give equal outputs; only the causal mask on the context tells steps apart."""
    _, _, actions, sigma = inputs
    equal = jnp.broadcast_to(actions[:, :1], actions.shape)
    outputs = {causal: f(params, equal, sigma, context) for causal, f in decode.items()}
    np.testing.assert_allclose(outputs[False], jnp.broadcast_to(outputs[False][:, :1], actions.shape), atol=1e-5)
    assert np.ptp(outputs[True], axis=1).min() > 1e-3
    shuffled = decode[False](params, actions, sigma, context[:, ::-1])
    np.testing.assert_allclose(shuffled, decode[False](params, actions, sigma, context), atol=1e-5)


def test_several_denoising_samples_share_a_context(params, inputs, context, decode):
    _, _, actions, sigma = inputs
    many = jnp.concatenate([actions, 2 * actions]), jnp.concatenate([sigma, 5 * sigma])
    together = decode[True](params, *many, jnp.concatenate([context, context]))
    np.testing.assert_allclose(together[:2], decode[True](params, actions, sigma, context), atol=1e-6)
    np.testing.assert_allclose(together[2:], decode[True](params, 2 * actions, 5 * sigma, context), atol=1e-6)


def test_proprioception_is_one_more_token_and_every_parameter_learns(inputs):
    tokens, goal, actions, sigma = inputs
    pure = build(dataclasses.replace(OPEN, proprio_dim=4, decoder_layers=1))
    params, proprio = random_params(pure), jax.random.normal(jax.random.key(5), (2, 4))

    def loss(params, proprio):
        model = pure.bind(params)
        context = model.encode(tokens, goal, proprio)
        return jnp.mean((model.decode(actions, sigma, context) - 1.0) ** 2), context

    (_, context), (gradients, proprio_gradient) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, proprio)
    assert context.shape == (2, 11, 24)
    assert np.all(np.abs(proprio_gradient) > 1e-8)
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), name
        largest = np.max(np.abs(gradient))
        # a bias on all keys shifts every score of a query alike, which softmax cannot see
        assert (largest < 1e-6) if name.endswith("key.bias") else (largest > 1e-6), (name, largest)


def test_proprioception_must_fit_the_configuration(params, inputs):
    tokens, goal, _, _ = inputs
    with_proprio = build(dataclasses.replace(CONFIG, proprio_dim=4))
    with pytest.raises(ValueError, match="proprio_dim=4, proprio given: none"):
        with_proprio.bind(random_params(with_proprio)).encode(tokens, goal)
    with pytest.raises(ValueError, match="proprio_dim=0"):
        build(CONFIG).bind(params).encode(tokens, goal, jnp.ones((2, 4)))


def test_dropout_is_a_function_of_its_key(params, inputs, context):
    tokens, goal, actions, sigma = inputs
    model = build(CONFIG).bind(params)
    for run in (lambda key: model.encode(tokens, goal, key=key), lambda key: model.decode(actions, sigma, context, key=key)):
        first = run(jax.random.key(0))
        np.testing.assert_array_equal(first, run(jax.random.key(0)))
        assert not np.allclose(first, run(jax.random.key(1)), atol=1e-3)
        assert not np.allclose(first, run(None), atol=1e-3)


def test_each_dropout_rate_acts_alone(params, inputs):
    off = {"attention_dropout": 0.0, "residual_dropout": 0.0, "mlp_dropout": 0.0}
    tokens, goal, _, _ = inputs

    def encode(key, **rates):
        return build(dataclasses.replace(CONFIG, **{**off, **rates})).bind(params).encode(tokens, goal, key=key)

    plain = encode(None)
    np.testing.assert_array_equal(encode(jax.random.key(0)), plain)
    for rate in off:
        assert not np.allclose(encode(jax.random.key(0), **{rate: 0.5}), plain, atol=1e-3), rate


def test_initial_weights_are_the_published_ones():
    params = build(ActionTransformerConfig(width=64, encoder_layers=1, decoder_layers=1, token_dim=64)).init(jax.random.key(0))
    for name, value in params.items():
        if name.endswith("kernel"):
            assert float(np.std(value)) == pytest.approx(0.02, rel=0.12), name
        else:
            np.testing.assert_array_equal(value, 1.0 if name.endswith("scale") else 0.0)


def test_output_is_float32_in_bfloat16_compute(params, inputs, context, decode):
    _, _, actions, sigma = inputs
    half = build(dataclasses.replace(CONFIG, dtype="bfloat16")).bind(params)
    output = half.decode(actions, sigma, context.astype(jnp.bfloat16))
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, decode[True](params, actions, sigma, context), atol=0.15)


@pytest.mark.parametrize(
    "fields", [{"width": 100, "heads": 8}, {"action_horizon": 0}, {"mlp_dropout": 1.0}, {"proprio_dim": -1}, {"init_std": 0.0}]
)
def test_bad_configs_are_refused(fields):
    with pytest.raises(ValueError, match=f"^{next(iter(fields))} is "):
        ActionTransformerConfig(**fields)
