"""The diffusion policy against plain PyTorch modules, which themselves are held to vectors recorded from the published ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")

import reference_vectors
import torch
from comparison import BFLOAT16, FLOAT64, FORWARD, GRADIENT, check, check_gradients, load, normal, randomized, record, submodule, to_numpy
from pytorch.policy import ActionTransformer as TheirTransformer
from pytorch.policy import Denoiser

from vpp_jax.diffusion import edm
from vpp_jax.diffusion.noise_schedules import NoiseScheduleConfig, get_sigmas
from vpp_jax.diffusion.samplers import sample
from vpp_jax.functional import PureModule
from vpp_jax.models.action_transformer import ActionTransformer, ActionTransformerConfig
from vpp_jax.models.layers import sinusoidal_embedding

CONFIG = ActionTransformerConfig(
    action_dim=5, action_horizon=6, width=48, heads=4, encoder_layers=2, decoder_layers=2, goal_dim=20, token_dim=32, proprio_dim=9
)
VARIANTS = {
    "published": {"proprio_dim": 0},
    "proprioception": {},
    "full cross-attention": {"causal_cross_attention": False, "proprio_dim": 0},
}
BATCH, TOKENS = 3, 11
ACTIONS, NOISE = normal(1, BATCH, CONFIG.action_horizon, CONFIG.action_dim), normal(2, BATCH, CONFIG.action_horizon, CONFIG.action_dim)
SIGMA = torch.tensor([0.02, 1.3, 60.0])


def twin(config: ActionTransformerConfig) -> Denoiser:
    names = ("action_dim", "width", "heads", "encoder_layers", "decoder_layers", "goal_dim", "token_dim", "proprio_dim")
    shapes = {name: getattr(config, name) for name in names}
    return Denoiser(TheirTransformer(**shapes, causal_cross_attention=config.causal_cross_attention))


def conditions(config: ActionTransformerConfig) -> tuple[torch.Tensor, ...]:
    """Tokens, goal and, where configured, proprioception."""
    more = (normal(5, BATCH, config.proprio_dim),) if config.proprio_dim else ()
    given = normal(3, BATCH, TOKENS, config.token_dim), normal(4, BATCH, config.goal_dim), *more
    return tuple(value.to(torch.get_default_dtype()) for value in given)


def build(config: ActionTransformerConfig) -> PureModule:
    return PureModule.of(lambda rngs: ActionTransformer(config, rngs=rngs))


def arrays(*tensors: torch.Tensor) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(tensor.detach().numpy()) for tensor in tensors)


# --- the twin -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(reference_data):
    return reference_vectors.vectors(reference_data / "parity")


@pytest.fixture(scope="module")
def published(reference_data):
    return lambda config: reference_vectors.with_weights(twin(config), reference_vectors.weights(reference_data / "parity")["policy"])


def test_the_twin_is_the_published_policy(vectors, published):
    model = published(ActionTransformerConfig())
    tokens, goal = vectors["vf_out"].clone().requires_grad_(), vectors["goal"][:, 0]
    check(model.inner_model.encode(tokens, goal), vectors["policy_context"], what="context")
    loss = model.loss(vectors["actions"], vectors["act_noise"], vectors["act_sigma"], tokens, goal)
    loss.backward()
    check(loss, vectors["policy_loss"], what="loss")
    check(tokens.grad, vectors["policy_grad_tokens"], GRADIENT, "gradient of the tokens")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    recorded = [name for name in vectors if name.startswith("policy_grad/")]
    assert recorded
    for name in recorded:
        check(gradients[name.removeprefix("policy_grad/")], vectors[name], GRADIENT, name)


def test_the_twin_samples_as_the_published_policy(vectors, published):
    model = published(ActionTransformerConfig())
    for low in ("0.001", "1.0"):
        with torch.no_grad():
            got = model.sample_actions(vectors["ddim_x_T"], vectors[f"ddim_sigmas_{low}"], vectors["vf_out"], vectors["goal"][:, 0])
        check(got, vectors[f"ddim_out_{low}"], 1e-4, f"down to {low}")


def test_the_twin_sees_proprioception_as_the_published_policy(vectors, published):
    model = published(ActionTransformerConfig(proprio_dim=8)).inner_model
    with torch.no_grad():
        context = model.encode(vectors["vf_out"], vectors["goal"][:, 0], vectors["proprio"][:, 0])
        output = model.decode(vectors["actions"], vectors["act_sigma"], context)
    check(output, vectors["policy_model_output_with_proprio"])


# --- ours against the twin ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    """(config, twin, ours, our parameters) of each variant."""
    config = dataclasses.replace(CONFIG, **VARIANTS[request.param])
    theirs, pure = randomized(twin(config)), build(config)
    return config, theirs, pure, load(pure, theirs, "inner_model.")


def check_loss_denoised_chunk_and_gradients(config, theirs, pure, params, forward, gradient):
    tokens, *rest = conditions(config)
    drawn = [value.to(tokens.dtype) for value in (ACTIONS, NOISE, SIGMA)]
    tokens.requires_grad_()
    theirs.zero_grad()
    loss = theirs.loss(*drawn, tokens, *rest)
    loss.backward()
    actions, noise, sigma = arrays(*drawn)
    goal_and_proprio = arrays(*rest)

    def objective(params, tokens):
        model, scale = pure.bind(params), edm.policy_preconditioning(sigma)
        noisy = edm.add_noise(actions, noise, sigma)
        output = model.decode(scale.network_input(noisy), sigma, model.encode(tokens, *goal_and_proprio))
        return jnp.mean((output - edm.policy_target(actions, noise, sigma)) ** 2), scale.denoised(noisy, output)

    (ours, denoised), gradients = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(params, *arrays(tokens))
    check(ours, loss, forward, "loss")
    with torch.no_grad():
        noisy = drawn[0] + drawn[2][:, None, None] * drawn[1]
        check(denoised, theirs(noisy, drawn[2], tokens, *rest), forward, "denoised chunk")
    check_gradients(gradients[0], theirs, "inner_model.", gradient)
    check(gradients[1], tokens.grad, gradient, "gradient of the tokens")


def test_loss_denoised_chunk_and_gradients(pair):
    check_loss_denoised_chunk_and_gradients(*pair, FORWARD, GRADIENT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_function_in_float64(variant, float64):
    config = dataclasses.replace(CONFIG, dtype="float64", **VARIANTS[variant])
    theirs, pure = randomized(twin(config)), build(config)
    params = load(pure, theirs, "inner_model.")
    check_loss_denoised_chunk_and_gradients(config, theirs, pure, params, FLOAT64, FLOAT64)


def test_sampling(pair):
    config, theirs, pure, params = pair
    sigmas = get_sigmas(NoiseScheduleConfig("exponential", 10, 1.0, 80.0))
    start = 80 * normal(7, BATCH, config.action_horizon, config.action_dim)
    given = conditions(config)
    with torch.no_grad():
        want = theirs.sample_actions(start, torch.from_numpy(sigmas), *given)
        check(theirs.sample_actions(start, torch.from_numpy(sigmas), *given, encode_once=True), want, what="encoding once")

    @jax.jit
    def draw(params, start):
        model = pure.bind(params)
        context = model.encode(*arrays(*given))

        def denoise(x, sigma):
            scale = edm.policy_preconditioning(sigma)
            return scale.denoised(x, model.decode(scale.network_input(x), sigma, context))

        return sample(denoise, start, sigmas, "ddim")

    check(draw(params, *arrays(start)), want, 1e-4, "action_horizon")


@pytest.fixture(scope="module")
def calls():
    config = dataclasses.replace(CONFIG, proprio_dim=0)
    theirs, pure = randomized(twin(config)), build(config)
    paths = ["encoder.blocks.1", "encoder", "decoder.blocks.1", "decoder.blocks.1.attn", "decoder.blocks.1.cross_att", "sigma_emb.0"]
    paths += ["decoder.blocks.1.adaLN_zero", "lang_emb", "decoder", "encoder.ln"]
    recorded = record(theirs, [f"inner_model.{path}" for path in paths], lambda: theirs(ACTIONS, SIGMA, *conditions(config)))
    return recorded, pure, load(pure, theirs, "inner_model.")


def test_noise_level_embedding(calls):
    call = calls[0]["inner_model.sigma_emb.0"]
    got = sinusoidal_embedding(jnp.asarray(to_numpy(call.arguments["values"])), CONFIG.width, sine_first=True, include_last=True)
    check(got, call.output)


@pytest.mark.parametrize("path", ["encoder.blocks.1", "encoder", "decoder.blocks.1", "decoder"])
def test_blocks(path, calls):
    recorded, pure, params = calls
    call = recorded[f"inner_model.{path}"]
    flat = [y for x in call.arguments.values() for y in (x if isinstance(x, tuple) else (x,))]

    def run(params, x, *conditions):
        model, own = pure.bind(params), {}
        if path.startswith("decoder"):  # published blocks make their modulation themselves
            condition, context = conditions
            modulations = jnp.stack([block.adaLN_zero(condition[:, 0]) for block in model.decoder.blocks], axis=1)
            conditions, own = ((context,), {"per_block": modulations}) if path == "decoder" else ((context, modulations[:, 1]), {})
        return submodule(model, path)(x, *conditions, **own, key=None)

    check(jax.jit(run)(params, *arrays(*flat)), call.output, what=path)


@pytest.mark.parametrize(
    "path", ["decoder.blocks.1.attn", "decoder.blocks.1.cross_att", "decoder.blocks.1.adaLN_zero", "lang_emb", "encoder.ln"]
)
def test_parts(path, calls):
    """Causal self-attention, causal cross-attention aligned at the top left, modulation, goal embedding, norm without bias."""
    recorded, pure, params = calls
    call = recorded[f"inner_model.{path}"]
    got = jax.jit(lambda p, *x: submodule(pure.bind(p), path)(*x))(params, *arrays(*call.arguments.values()))
    if isinstance(call.output, tuple):  # the six parts of a modulation stand side by side
        check(got, torch.cat(call.output, dim=-1), what=path)
    else:
        check(got, call.output, what=path)


def test_bfloat16_stays_close():
    config = dataclasses.replace(CONFIG, proprio_dim=0)
    theirs, pure = randomized(twin(config)).inner_model, build(dataclasses.replace(config, dtype="bfloat16"))
    given, noisy = conditions(config), ACTIONS
    with torch.no_grad():
        want = theirs.decode(noisy, SIGMA, theirs.encode(*given))

    def run(params, noisy, sigma, *given):
        model = pure.bind(params)
        return model.decode(noisy, sigma, model.encode(*given))

    got = jax.jit(run)(load(pure, theirs), *arrays(noisy, SIGMA, *given))
    check(got, want, BFLOAT16, "output")
