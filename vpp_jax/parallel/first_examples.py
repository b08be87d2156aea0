"""Predictions for the first examples of a batch, such as a preview's: at a cost that does not grow with the batch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from vpp_jax.parallel.batch_shard_map import BATCH_AXES


def map_first_examples(function: Callable[[Any], Any], examples: Any, count: int) -> Any:
    """function(examples) for the first `count` examples of a batch (all, if it has fewer); the results are on every device.

    A device of the current mesh (`on_mesh`) computes one example at a time: it needs the memory of one example, and its FLOPs are those
    of one example times the turns. On more devices than `count` some examples are computed several times, which takes no longer than once.

    Args:
      function: of independent examples [ways ...], one per device that splits the batch, to results [ways ...].
      examples: a tree of arrays [b ...], PRNG keys among them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    count = min(count, len(jax.tree.leaves(examples)[0]))
    turns = -(-count // ways)
    rows = np.arange(turns * ways) % count

    def place(value: jax.Array, spec: P) -> jax.Array:
        return value if mesh.empty else jax.lax.with_sharding_constraint(value, spec)

    def per_turn(value: jax.Array) -> jax.Array:
        first = place(value[:count], P())
        return place(first[rows].reshape(turns, ways, *value.shape[1:]), P(None, BATCH_AXES))

    def first(values: jax.Array) -> jax.Array:
        return place(values.reshape(turns * ways, *values.shape[2:])[:count], P())

    return jax.tree.map(first, jax.lax.map(function, jax.tree.map(per_turn, examples)))
