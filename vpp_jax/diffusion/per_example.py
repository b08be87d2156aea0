"""Per-example randomness: the same random numbers whether a batch is computed at once, in micro-batches, or on many devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def example_keys(key: jax.Array, batch: int) -> jax.Array:
    """One PRNG key per example [b]: `key` if it already has that shape, else `key` folded with the index of each example."""
    return key if key.ndim else jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(batch))


def split_example_keys(keys: jax.Array, parts: int) -> jax.Array:
    """Keys [parts b]: independent streams per example."""
    return jax.vmap(lambda key: jax.random.split(key, parts), out_axes=1)(keys)


def normal_per_example(keys: jax.Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Unit-normal numbers [b, *shape], from one key per example."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
