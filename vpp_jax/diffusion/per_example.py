"""Random numbers that belong to a row of a batch: the same whether the batch is computed at once, in parts, or on many devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def example_keys(key: jax.Array, rows: int) -> jax.Array:
    """One PRNG key per row [rows]: `key` itself where it already is that, else folded with each row's number."""
    return key if key.ndim else jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def split_example_keys(keys: jax.Array, parts: int) -> jax.Array:
    """Keys [parts rows]: independent streams of every row."""
    return jax.vmap(lambda key: jax.random.split(key, parts), out_axes=1)(keys)


def normal_per_example(keys: jax.Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Unit-normal numbers [b, *shape], row by row."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
