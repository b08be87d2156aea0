"""Text encoder, Video Former and policy against vectors recorded from the published PyTorch modules (float32, CPU)."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.diffusion import edm
from vpp_jax.diffusion.ladders import LadderConfig, sigma_ladder
from vpp_jax.diffusion.samplers import sample_trajectory
from vpp_jax.functional import PureModule
from vpp_jax.interop.tensors import import_tensors, published_name, to_published
from vpp_jax.models.action_transformer import ActionTransformer, ActionTransformerConfig
from vpp_jax.models.text_encoder import CLIPTextEncoder, TextEncoderConfig
from vpp_jax.models.video_former import VideoFormer, VideoFormerConfig

TOLERANCE = 2e-5  # float32 on values up to 4; measured 2e-6 to 6e-6


@pytest.fixture(scope="module")
def vectors(shared_data):
    return np.load(shared_data / "parity" / "vectors.npz")


@pytest.fixture(scope="module")
def weights(shared_data):
    folder = shared_data / "parity"
    spec = importlib.util.spec_from_file_location("reference_weights", folder / "reference_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reference_weights(folder / "keys.json", seed=0)


def load(pure: PureModule, tensors: dict[str, np.ndarray], prefix: str = "") -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in import_tensors(pure.abstract, tensors, prefix).items()}


@pytest.fixture(scope="module")
def policy(weights):
    pure = PureModule.of(lambda rngs: ActionTransformer(ActionTransformerConfig(), rngs=rngs))
    return pure, load(pure, weights["policy"], "inner_model.")


def test_text_encoder(vectors, weights):
    config = TextEncoderConfig(vocab_size=256, layers=2, mlp_width=1024, end_of_text=255)
    pure = PureModule.of(lambda rngs: CLIPTextEncoder(config, rngs=rngs))
    model = pure.bind(load(pure, weights["clip_text"]))
    output = model(vectors["input_ids"].astype(np.int32), vectors["attention_mask"].astype(bool))
    np.testing.assert_allclose(output.hidden, vectors["text_hidden"], atol=TOLERANCE)
    np.testing.assert_allclose(output.pooled, vectors["text_embeds_projected"], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("variant", "depth", "module", "output"), [("3d", 2, "video_former", "vf_out"), ("2d", 1, "video_former_2d", "vf2d_out")]
)
def test_video_former(variant, depth, module, output, vectors, weights):
    config = VideoFormerConfig(variant, depth=depth, condition_dim=128, tokens_per_frame=2)
    pure = PureModule.of(lambda rngs: VideoFormer(config, rngs=rngs))
    tokens = pure.bind(load(pure, weights[module]))(jnp.asarray(vectors["vf_in"]))
    np.testing.assert_allclose(tokens, vectors[output], atol=TOLERANCE)


def test_policy_context_loss_and_gradients(vectors, policy):
    pure, params = policy
    actions, noise, sigma = (jnp.asarray(vectors[name]) for name in ("actions", "act_noise", "act_sigma"))
    pre = edm.policy_preconditioning(sigma)

    def run(params, tokens):
        model = pure.bind(params)
        context = model.encode(tokens, jnp.asarray(vectors["goal"][:, 0]))
        output = model.decode(pre.network_input(edm.add_noise(actions, noise, sigma)), sigma, context)
        return jnp.mean((output - edm.policy_target(actions, noise, sigma)) ** 2), (output, context)

    (loss, (output, context)), (gradients, token_gradient) = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
        params, jnp.asarray(vectors["vf_out"])
    )
    np.testing.assert_allclose(context, vectors["policy_context"], atol=TOLERANCE)
    np.testing.assert_allclose(output, vectors["policy_model_output"], atol=TOLERANCE)
    np.testing.assert_allclose(loss, vectors["policy_loss"], rtol=1e-5)

    recorded = {published_name(name): to_published(name, np.asarray(gradient)) for name, gradient in gradients.items()}
    pairs = [(recorded[name.partition("inner_model.")[2]], vectors[name]) for name in vectors if name.startswith("policy_grad/")]
    assert len(pairs) == 5
    for got, expected in [*pairs, (token_gradient, vectors["policy_grad_tokens"])]:
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())


def test_policy_with_proprioception(vectors, weights):
    """Recorded by feeding the clean actions, without c_in."""
    pure = PureModule.of(lambda rngs: ActionTransformer(ActionTransformerConfig(proprio_dim=8), rngs=rngs))
    model = pure.bind(load(pure, weights["policy"], "inner_model."))
    tokens, goal, proprio, actions, sigma = (jnp.asarray(vectors[n]) for n in ("vf_out", "goal", "proprio", "actions", "act_sigma"))
    output = model.decode(actions, sigma, model.encode(tokens, goal[:, 0], proprio[:, 0]))
    np.testing.assert_allclose(output, vectors["policy_model_output_with_proprio"], atol=TOLERANCE)


@pytest.fixture(scope="module")
def sample_actions(policy):
    pure, params = policy

    def run(params, tokens, goal, start, sigmas):
        model = pure.bind(params)
        context = model.encode(tokens, goal)

        def denoise(x, sigma):
            pre = edm.policy_preconditioning(sigma)
            return pre.denoised(x, model.decode(pre.network_input(x), sigma, context))

        return sample_trajectory(denoise, start, sigmas, "ddim")

    return functools.partial(jax.jit(run), params)


@pytest.mark.parametrize("low", ["0.001", "1.0"])
def test_sampling_loop(low, vectors, sample_actions):
    sigmas = sigma_ladder(LadderConfig("exponential", 10, float(low), 80.0))
    result, seen = sample_actions(vectors["vf_out"], vectors["goal"][:, 0], vectors["ddim_x_T"], sigmas)
    np.testing.assert_allclose(result, vectors[f"ddim_out_{low}"], atol=1e-4)
    np.testing.assert_allclose(seen.denoised, vectors[f"ddim_denoised_{low}"], atol=5e-4)
    np.testing.assert_allclose(seen.states, vectors[f"ddim_x_{low}"], atol=5e-4)
