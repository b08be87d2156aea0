"""What programs are compiled with: on CPU, memory for one layer's transformed kernels, not for those of all layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vpp_jax.ops.winograd import winograd_convolution
from vpp_jax.parallel.mesh import compiler_options

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
    plain, ours = lowered.compile(), lowered.compile(compiler_options("cpu"))

    transformed = 4 * 16 * CHANNELS**2  # bytes of one layer's 16 kernels
    assert ours.memory_analysis().temp_size_in_bytes < 3 * transformed
    assert plain.memory_analysis().temp_size_in_bytes > LAYERS / 2 * transformed, "the option has become unnecessary"
    np.testing.assert_array_equal(ours(x, kernels), plain(x, kernels))


def test_options_belong_to_a_platform():
    assert compiler_options() == compiler_options("cpu")  # the tests' device
    platforms = [set(compiler_options(name)) for name in ("cpu", "gpu", "tpu")]
    assert all(platforms)
    assert sum(map(len, platforms)) == len(set.union(*platforms))


def test_options_of_gpus_exist():
    """The compiler knows the options of all platforms by name: one that it has dropped is refused on CPU, too."""
    lowered = jax.jit(jnp.tanh).lower(1.0)
    lowered.compile(compiler_options("gpu"))
    with pytest.raises(Exception, match="No such compile option"):
        lowered.compile({"xla_gpu_no_such_option": True})
