"""What programs are compiled with: on CPU, memory for one layer's transformed kernels, not for those of all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.ops.winograd import winograd_convolution
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import OPTIONS, MeshConfig, _known_options, compiler_options, make_mesh

LAYERS, CHANNELS = 12, 128


def chain(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
    for kernel in kernels:
        x = jnp.tanh(winograd_convolution(x, kernel))
    return x


def test_cpu_programs_transform_kernels_when_they_are_used():
    keys = jax.random.split(jax.random.key(0), LAYERS)
    kernels = [jax.random.normal(key, (3, 3, CHANNELS, CHANNELS)) / 30 for key in keys]
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, CHANNELS))
    lowered = jax.jit(chain).lower(x, kernels)
    plain, ours = lowered.compile(), lowered.compile(compiler_options())

    transformed = 4 * 16 * CHANNELS**2  # bytes of one layer's 16 kernels
    assert ours.memory_analysis().temp_size_in_bytes < 3 * transformed
    assert plain.memory_analysis().temp_size_in_bytes > LAYERS / 2 * transformed, "the option has become unnecessary"
    np.testing.assert_array_equal(ours(x, kernels), plain(x, kernels))


def test_options_belong_to_a_platform():
    assert compiler_options() == OPTIONS["cpu"]  # the tests' device
    assert all(OPTIONS[name] for name in ("cpu", "gpu", "tpu"))
    assert sum(map(len, OPTIONS.values())) == len(set().union(*OPTIONS.values()))


def test_what_the_compiler_does_not_know_is_left_out(monkeypatch):
    """As of `pip install jax[tpu]`, which brings a libtpu older than some options; other errors of an option are raised."""
    monkeypatch.setitem(OPTIONS, "cpu", OPTIONS["cpu"] | {"xla_cpu_option_of_tomorrow": "false"})
    monkeypatch.setattr("vpp_jax.parallel.mesh._known_options", _known_options.__wrapped__)  # the table has changed since it was asked
    with on_mesh(make_mesh(MeshConfig()), 0):
        assert list(compiler_options()) == ["xla_cpu_scheduler_type"]
    monkeypatch.setitem(OPTIONS, "cpu", {"xla_cpu_scheduler_type": "no such scheduler"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such scheduler"):
        compiler_options()


def test_options_of_gpus_exist():
    """The compiler knows the options of all platforms by name: one that it has dropped is refused on CPU, too."""
    lowered = jax.jit(jnp.tanh).lower(1.0)
    lowered.compile(OPTIONS["gpu"])
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile({"xla_gpu_no_such_option": True})
