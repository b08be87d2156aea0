"""Stage 2 as one object: features of several views, masked loss, actions that do not depend on their neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.functional import with_prefix
from vpp_jax.models.tokenizer import CLIPTokenizer
from vpp_jax.policy import VideoPredictionPolicy
from vpp_jax.video_predictor import SCALING_FACTOR

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def policy(micro_config):
    config = micro_config("policy")
    return VideoPredictionPolicy(config.model, config.policy_diffusion, config.video_diffusion)


@pytest.fixture(scope="module")
def params(policy):
    video = policy.predictor
    modules = {"vae": video.vae, "unet": video.unet, "text": video.text}
    modules |= {
        "video_former": policy.video_former,
        "action_transformer": policy.action_transformer,
        "goal_text_encoder": policy.goal_text_encoder,
    }
    found = {SCALING_FACTOR: jnp.float32(1.0)}
    for index, (prefix, module) in enumerate(modules.items()):
        found |= with_prefix(prefix, jax.jit(module.init)(jax.random.key(index)))
    keys = jax.random.split(jax.random.key(9), len(found))
    return {name: value + 0.05 * jax.random.normal(key, value.shape) for key, (name, value) in zip(keys, found.items(), strict=True)}


@pytest.fixture(scope="module")
def observation(policy):
    rng, length = np.random.default_rng(0), policy.config.goal_length
    images = {view: rng.integers(0, 256, (3, 32, 32, 3), np.uint8) for view in policy.config.views}
    ids = rng.integers(1, 1000, (3, length)).astype(np.int32)
    ids[:, 5:] = 49407
    return jax.tree.map(jnp.asarray, (images, ids, np.arange(length)[None].repeat(3, 0) <= 5, rng.normal(size=(3, 15)).astype(np.float32)))


@pytest.fixture(scope="module")
def act(policy):
    def read_and_act(params, images, ids, mask, proprio, keys):
        return policy.act(params, images, policy.encode_instruction(params, ids, mask), proprio, keys)

    return jax.jit(read_and_act)


def features_of(policy):
    """Of images and tokens, compiled."""
    return jax.jit(lambda params, images, ids, mask, keys: policy.features(params, images, policy.video_states(params, ids, mask), keys))


def test_the_video_model_truncates_instructions_to_its_text_length(policy, params):
    lengths = policy.config.text_length, policy.config.goal_length
    instructions = ["open the drawer", "push the red block that lies left of the drawer to the right until it falls down"]
    short, long = (tuple(map(jnp.asarray, CLIPTokenizer(length)(instructions))) for length in lengths)
    assert lengths[0] < lengths[1] < long[1].sum(1).max() + 1
    np.testing.assert_allclose(policy.video_states(params, *long), policy.video_states(params, *short), rtol=1e-6, atol=1e-6)
    assert policy.encode_instruction(params, *long).goal.shape == (2, policy.config.action.goal_dim)


def test_views_stand_side_by_side_and_each_is_seen(policy, params, observation):
    images, ids, mask, _ = observation
    keys = jax.random.split(jax.random.key(0), 3)
    compute = features_of(policy)
    features = np.asarray(compute(params, images, ids, mask, keys))
    frames, positions, channels = policy.predictor.feature_shape
    assert features.shape == (3, frames, 2 * positions, channels)
    other = dict(images, wrist=255 - images["wrist"])
    changed = np.asarray(compute(params, other, ids, mask, keys))
    np.testing.assert_allclose(changed[:, :, :positions], features[:, :, :positions], rtol=1e-5, atol=1e-5)
    assert np.abs(changed[:, :, positions:] - features[:, :, positions:]).max() > 1e-3


def test_actions_do_not_depend_on_the_rest_of_the_batch(params, observation, act):
    images, ids, mask, proprio = observation
    keys = jax.random.split(jax.random.key(0), 3)
    together = np.asarray(act(params, images, ids, mask, proprio, keys))
    order = np.array([2, 0, 1])
    shuffled = act(params, {view: image[order] for view, image in images.items()}, ids[order], mask[order], proprio[order], keys[order])
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(act(params, images, ids, mask, proprio, keys), together)


@pytest.mark.parametrize("changed", ["primary", "text", "proprio", "key"])
def test_everything_that_is_given_matters(params, observation, act, changed):
    images, ids, mask, proprio = observation
    keys = jax.random.split(jax.random.key(0), 3)
    before = np.asarray(act(params, images, ids, mask, proprio, keys))
    if changed == "primary":
        images = dict(images, primary=255 - images["primary"])
    elif changed == "text":
        ids = np.where(np.arange(ids.shape[1]) == 2, ids + 1, ids)
    elif changed == "proprio":
        proprio = proprio + 1.0
    else:
        keys = jax.random.split(jax.random.key(1), 3)
    assert np.abs(np.asarray(act(params, images, ids, mask, proprio, keys)) - before).max() > 1e-5


def test_steps_behind_the_mask_do_not_count(policy, params, observation):
    _, ids, mask, proprio = observation
    features = jax.random.normal(jax.random.key(0), (3, 4, 128, 32))
    actions = jax.random.uniform(jax.random.key(1), (3, 6, 7), minval=-1, maxval=1)
    valid = np.array([[True] * 6, [True] * 3 + [False] * 3, [True] + [False] * 5])
    loss = jax.jit(policy.loss)
    one, metrics = loss(params, features, ids, mask, proprio, actions, valid, jax.random.key(2))
    assert float(metrics["valid_steps"]) == pytest.approx(10 / 18)

    # self-attention over the chunk is causal, so padding behind a valid step cannot reach it
    garbage = np.where(valid[..., None], actions, 7.0).astype(np.float32)
    other, _ = loss(params, features, ids, mask, proprio, garbage, valid, jax.random.key(2))
    assert float(one) == pytest.approx(float(other), rel=1e-5)


def test_there_is_no_dropout_outside_training(policy, params, observation):
    _, ids, mask, proprio = observation
    action = dataclasses.replace(policy.config.action, attention_dropout=0.3, residual_dropout=0.2, mlp_dropout=0.2)
    dropping = dataclasses.replace(policy, config=dataclasses.replace(policy.config, action=action))
    batch = jax.random.normal(jax.random.key(0), (3, 4, 128, 32)), ids, mask, proprio, jnp.zeros((3, 6, 7)), jnp.ones((3, 6), bool)
    losses = [
        jax.jit(one.loss, static_argnums=8)(params, *batch, jax.random.key(2), training)[0]
        for one, training in ((policy, True), (dropping, False), (dropping, True))
    ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)
    assert float(losses[0]) != pytest.approx(float(losses[2]), rel=1e-3)


def test_loss_has_gradients_for_every_trained_parameter(policy, params, observation):
    _, ids, mask, proprio = observation
    features = jax.random.normal(jax.random.key(0), (3, 4, 128, 32))
    actions = jax.random.uniform(jax.random.key(1), (3, 6, 7), minval=-1, maxval=1)
    trained = {
        name: value for name, value in params.items() if name.split("/")[0] in ("video_former", "action_transformer", "goal_text_encoder")
    }

    def loss(trained):
        return policy.loss(params | trained, features, ids, mask, proprio, actions, jnp.ones((3, 6), bool), jax.random.key(2))[0]

    gradients = jax.jit(jax.grad(loss))(trained)
    silent = [name for name, value in gradients.items() if not np.isfinite(value).all() or float(jnp.abs(value).max()) == 0.0]
    # a key bias shifts all logits of a query alike, which softmax does not see
    assert [name for name in silent if "k_proj.bias" not in name and "key.bias" not in name] == []


def test_sampler_returns_the_action_of_a_perfect_denoiser(policy, params, monkeypatch):
    """With a network whose denoised estimate is always `target`, ten DDIM steps must end there."""
    from vpp_jax.diffusion.edm import policy_preconditioning

    target = np.random.default_rng(0).uniform(-1, 1, (3, 6, 7)).astype(np.float32)

    def decode(self, network_input, sigma, context, key=None):
        scale = policy_preconditioning(sigma, policy.diffusion.sigma_data)
        c_skip, c_out, c_in = (value[:, None, None] for value in (scale.c_skip, scale.c_out, scale.c_in))
        return (target - c_skip * network_input / c_in) / c_out

    # the sampler hands each level's `modulations` to the decoder: here they are the level itself
    monkeypatch.setattr("vpp_jax.models.action_transformer.ActionTransformer.modulations", lambda self, sigma: sigma)
    monkeypatch.setattr("vpp_jax.models.action_transformer.ActionTransformer.decode_modulated", decode)
    sampled = policy.sample_actions(params, jnp.zeros((3, 5, 32)), jax.random.split(jax.random.key(0), 3))
    np.testing.assert_allclose(sampled, target, atol=1e-4)


def test_fixed_feature_noise_makes_features_a_function_of_the_observation(policy, params, observation):
    images, ids, mask, _ = observation
    fixed = dataclasses.replace(policy, config=dataclasses.replace(policy.config, fixed_feature_noise=True))
    rows = jnp.array([0, 0, 1])
    twice = {view: image[rows] for view, image in images.items()}
    features = np.asarray(features_of(fixed)(params, twice, ids[rows], mask[rows], jax.random.split(jax.random.key(4), 3)))
    np.testing.assert_allclose(features[0], features[1], rtol=1e-5, atol=1e-5)
    assert np.abs(features[0] - features[2]).max() > 1e-3
    fresh = np.asarray(features_of(policy)(params, twice, ids[rows], mask[rows], jax.random.split(jax.random.key(4), 3)))
    assert np.abs(fresh[0] - fresh[1]).max() > 1e-3
