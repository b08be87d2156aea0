"""shard_map over the batch, for functions that the partitioner cannot split, such as Pallas kernels."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")  # mesh axes that split a batch


def shard_map_over_batch(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """function(*arrays), all [n h ...] with independent examples and heads: n over data x fsdp, h over tensor of the current mesh.

    An axis that does not divide is not split; without a mesh the function is called directly.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    spec = P(
        BATCH_AXES if all(x.shape[0] % ways == 0 for x in arrays) else None,
        "tensor" if all(x.shape[1] % mesh.shape["tensor"] == 0 for x in arrays) else None,
    )
    return jax.shard_map(function, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)
