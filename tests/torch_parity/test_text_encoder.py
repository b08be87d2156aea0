"""The CLIP text encoder against transformers' CLIPTextModelWithProjection, with padding masked and not."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: `make parity` compares with it")
pytest.importorskip("transformers", reason="transformers is not installed: `make parity` compares with it")

import torch
from comparison import BFLOAT16, FLOAT64, FORWARD, GRADIENT, check, check_gradients, load, normal, randomized, record, submodule
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from vpp_jax.functional import PureModule
from vpp_jax.models.text_encoder import CLIPTextEncoder, TextEncoderConfig

CONFIG = TextEncoderConfig(vocab_size=300, width=64, layers=3, heads=4, mlp_width=256, max_positions=20, projection_dim=48, end_of_text=299)
LENGTH = 20


def transformers_encoder() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.width,
        intermediate_size=CONFIG.mlp_width,
        projection_dim=CONFIG.projection_dim,
        num_hidden_layers=CONFIG.layers,
        num_attention_heads=CONFIG.heads,
        max_position_embeddings=CONFIG.max_positions,
        hidden_act="quick_gelu",
        bos_token_id=298,
        eos_token_id=CONFIG.end_of_text,
        pad_token_id=CONFIG.end_of_text,
    )
    return randomized(CLIPTextModelWithProjection(config))


@pytest.fixture(scope="module")
def theirs():
    return transformers_encoder()


@pytest.fixture(scope="module")
def pure():
    return PureModule.of(lambda rngs: CLIPTextEncoder(CONFIG, rngs=rngs))


@pytest.fixture(scope="module")
def params(pure, theirs):
    return load(pure, theirs)


@pytest.fixture(scope="module")
def instructions():
    """Three instructions of 3, 9 and 18 words between start and end, padded with the end-of-text token."""
    ids, mask = np.full((3, LENGTH), CONFIG.end_of_text, np.int32), np.zeros((3, LENGTH), bool)
    for row, words in enumerate((3, 9, 18)):
        ids[row, : words + 1] = [298, *np.random.default_rng(row).integers(0, 298, words)]
        mask[row, : words + 2] = True
    return ids, mask


@pytest.fixture(scope="module")
def run(pure):
    return jax.jit(lambda params, ids, mask: pure.bind(params)(ids, mask))


def ask(theirs, ids, mask):
    with torch.no_grad():
        return theirs(input_ids=torch.from_numpy(ids).long(), attention_mask=None if mask is None else torch.from_numpy(mask).long())


@pytest.mark.parametrize("masked", [True, False])
def test_states_and_pooled_vector(masked, theirs, run, params, instructions):
    ids, mask = instructions
    want = ask(theirs, ids, mask if masked else None)
    got = run(params, ids, mask if masked else np.ones_like(mask))
    check(got.hidden, want.last_hidden_state, what="states")
    check(got.pooled, want.text_embeds, what="pooled")


def test_a_layer_and_the_embeddings(theirs, pure, params, instructions):
    ids, mask = instructions
    paths = ("text_model.embeddings", "text_model.encoder.layers.1", "text_model.encoder.layers.1.mlp", "text_model.final_layer_norm")
    calls = record(theirs, paths, lambda: ask(theirs, ids, mask))
    check(jax.jit(lambda p: pure.bind(p).text_model.embeddings(ids))(params), calls[paths[0]].output, what=paths[0])
    for path in paths[1:]:
        arguments = (mask,) if path.endswith("layers.1") else ()
        x = next(iter(calls[path].arguments.values())).numpy()
        got = jax.jit(lambda p, x, path=path, more=arguments: submodule(pure.bind(p), path)(x, *more))(params, x)
        output = calls[path].output
        check(got, output[0] if isinstance(output, tuple) else output, what=path)


def check_gradients_of_all_weights(config, ids, mask, forward, gradient):
    theirs, pure = transformers_encoder(), PureModule.of(lambda rngs: CLIPTextEncoder(config, rngs=rngs))
    states, pooled = (normal(*shape).to(theirs.dtype) for shape in ((1, 3, LENGTH, CONFIG.width), (2, 3, CONFIG.projection_dim)))
    output = theirs(input_ids=torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask).long())
    ((output.last_hidden_state * states).sum() + (output.text_embeds * pooled).sum()).backward()

    def objective(params):
        output = pure.bind(params)(ids, mask)
        return (output.hidden * states.numpy()).sum() + (output.pooled * pooled.numpy()).sum(), output

    gradients, got = jax.jit(jax.grad(objective, has_aux=True))(load(pure, theirs))
    check(got.hidden, output.last_hidden_state, forward, "states")
    check(got.pooled, output.text_embeds, forward, "pooled")
    check_gradients(gradients, theirs, tolerance=gradient)


def test_gradients_of_all_weights(instructions):
    check_gradients_of_all_weights(CONFIG, *instructions, FORWARD, GRADIENT)


def test_the_same_function_in_float64(float64, instructions):
    check_gradients_of_all_weights(dataclasses.replace(CONFIG, dtype="float64"), *instructions, FLOAT64, FLOAT64)


def test_bfloat16_stays_close(theirs, params, instructions):
    pure = PureModule.of(lambda rngs: CLIPTextEncoder(dataclasses.replace(CONFIG, dtype="bfloat16"), rngs=rngs))
    want = ask(theirs, *instructions)
    got = jax.jit(lambda params: pure.bind(params)(*instructions))(params)
    check(got.hidden, want.last_hidden_state, BFLOAT16, "states")
    check(got.pooled, want.text_embeds, BFLOAT16, "pooled")
