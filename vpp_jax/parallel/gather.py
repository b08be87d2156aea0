"""FSDP gathering: sharded weights are all-gathered where they are read.

By default the partitioner may leave a kernel sharded and gather the activations instead, which are far larger (q, k and v of 16 thousand
tokens compared with a kernel of a megabyte). So every kernel is read through a function that fixes the layout: in the forward pass it is
gathered along `fsdp`, in the compute type, and remains split along `tensor`; in the backward pass its gradient is reduce-scattered into
the parameter's shards. Inside a rematerialised block the gathered kernel lives no longer than the block.

The mesh is the current one (`on_mesh`); without a mesh, or on a single device, nothing happens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vpp_jax.parallel.mesh import MeshConfig
from vpp_jax.parallel.partition import decide

Gather = Callable[[jax.Array], jax.Array]
_min_size_to_shard: ContextVar[int] = ContextVar("min_size_to_shard", default=MeshConfig.min_size_to_shard)


@contextmanager
def on_mesh(mesh: Mesh, min_size_to_shard: int) -> Iterator[None]:
    """Sets the current mesh, as `jax.set_mesh`, and the size below which parameters are replicated (`MeshConfig.min_size_to_shard`)."""
    token = _min_size_to_shard.set(min_size_to_shard)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _min_size_to_shard.reset(token)


def gathers(abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Gather]:
    """name -> the function that gathers its value, for the parameters that the current mesh shards along `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return {}
    specs = {name: decision.spec for name, decision in decide(abstract, mesh.shape, _min_size_to_shard.get()).items()}
    return {name: partial(gather, _without_fsdp(spec), spec) for name, spec in specs.items() if "fsdp" in spec}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gather(gathered: P, shards: P, value: jax.Array) -> jax.Array:
    """`value` laid out as `gathered`; its gradient as `shards`.

    The barrier keeps the cast to the compute type before the gather: the TPU compiler would gather float32 and cast afterwards.
    """
    return jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(value), gathered)


def _forward(gathered: P, shards: P, value: jax.Array) -> tuple[jax.Array, None]:
    return gather(gathered, shards, value), None


def _backward(gathered: P, shards: P, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, shards),)


gather.defvjp(_forward, _backward)


def _without_fsdp(spec: P) -> P:
    return P(*(None if axis == "fsdp" else axis for axis in spec))
