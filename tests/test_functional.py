"""The flat view of NNX modules: what goes in comes out, and what does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vpp_jax.functional import PureModule, parameter_count, select, with_prefix


class Inner(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Stack(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Inner(rngs=rngs) for _ in range(12)])
        self.gate = nnx.Param(jnp.ones((3,)))

    def __call__(self, x):
        for block in self.blocks:
            x = x + self.gate * block(x)
        return x


@pytest.fixture(scope="module")
def pure() -> PureModule:
    return PureModule.of(lambda rngs: Stack(rngs=rngs))


def test_names_are_attribute_paths_with_numbers_of_lists(pure):
    expected = {f"blocks.{i}.linear.{leaf}" for i in range(12) for leaf in ("kernel", "bias")} | {"gate"}
    assert set(pure.abstract) == expected
    assert parameter_count(pure.abstract) == 12 * 12 + 3


def test_bound_module_computes_what_the_module_itself_computes(pure):
    module = Stack(rngs=nnx.Rngs(7))
    x = jnp.arange(6.0).reshape(2, 3) / 6
    params = {".".join(map(str, path)): value.get_value() for path, value in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    ours = jax.jit(lambda p, x: pure.bind(p)(x))(params, x)
    # twelve residual float32 blocks, jitted against eager: rounding only
    np.testing.assert_allclose(ours, module(x), rtol=1e-5)


def test_init_is_a_function_of_the_key(pure):
    first, again, other = (jax.jit(pure.init)(jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.keys() == pure.abstract.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)
    assert not np.array_equal(first["blocks.0.linear.kernel"], first["blocks.1.linear.kernel"])


def test_gradients_are_flat_dicts_of_the_same_names(pure):
    params = pure.init(jax.random.key(0))
    grads = jax.grad(lambda p: jnp.sum(pure.bind(p)(jnp.ones((1, 3))) ** 2))(params)
    assert grads.keys() == params.keys()
    assert all(np.isfinite(value).all() and np.any(np.asarray(value)) for value in grads.values())


def test_prefixes_round_trip_and_do_not_mix():
    params = {"a.b": 1, "c": 2}
    joined = with_prefix("unet", params) | with_prefix("unet_text", {"a.b": 3})
    assert joined == {"unet/a.b": 1, "unet/c": 2, "unet_text/a.b": 3}
    assert select("unet", joined) == params


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {k: v for k, v in p.items() if k != "gate"}, "missing.*gate"),
        (lambda p: p | {"extra": jnp.zeros(1)}, "unexpected.*extra"),
        (lambda p: p | {"gate": jnp.zeros(4)}, r"gate: \(4,\), expected \(3,\)"),
    ],
)
def test_parameters_that_do_not_fit_are_named(pure, change, message):
    with pytest.raises(ValueError, match=message):
        pure.bind(change(pure.init(jax.random.key(0))))
