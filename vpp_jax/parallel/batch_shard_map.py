"""Functions of rows that the partitioner cannot split by itself, such as kernels: every device runs them on its own rows."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

ROWS = ("data", "fsdp")  # mesh axes that split a batch


def shard_map_over_batch(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """function(*arrays), all [n h ...] with independent rows and heads: n over data x fsdp, h over tensor of the mesh in force.

    An axis that does not divide stays whole; without a mesh the function is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    spec = P(
        ROWS if all(x.shape[0] % ways == 0 for x in arrays) else None,
        "tensor" if all(x.shape[1] % mesh.shape["tensor"] == 0 for x in arrays) else None,
    )
    return jax.shard_map(function, in_specs=(spec,) * len(arrays), out_specs=spec, check_vma=False)(*arrays)
