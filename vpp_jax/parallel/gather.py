"""Weights made whole where they are read, on a mesh that keeps them in shards.

Left alone, the partitioner may keep a kernel's shards where they are and gather the activations instead, which are far larger (q, k and v
of 16 thousand tokens beside a kernel of a megabyte). So every kernel passes through a function that says what is meant: forwards, all of
it except the part that `tensor` splits is gathered, in the type of the computation; backwards, the gradient is summed straight into the
shards it belongs to. Inside a rematerialised block the whole kernel lives no longer than the block.

The mesh is the one in force (`on_mesh`); without one, or on a single device, nothing happens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from vpp_jax.config import MeshConfig
from vpp_jax.parallel.partition import decide

Gather = Callable[[jax.Array], jax.Array]
_min_size_to_shard: ContextVar[int] = ContextVar("min_size_to_shard", default=MeshConfig.min_size_to_shard)


@contextmanager
def on_mesh(mesh: Mesh, min_size_to_shard: int) -> Iterator[None]:
    """`mesh` in force, as `jax.set_mesh`, and with it the size up to which its parameters are whole (`MeshConfig.min_size_to_shard`)."""
    token = _min_size_to_shard.set(min_size_to_shard)
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _min_size_to_shard.reset(token)


def gathers(abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Gather]:
    """name -> what its value passes through when it is read, for the parameters that the mesh in force splits."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return {}
    specs = {name: decision.spec for name, decision in decide(abstract, mesh.shape, _min_size_to_shard.get()).items()}
    return {name: partial(gather, _without_fsdp(spec), spec) for name, spec in specs.items() if "fsdp" in spec}


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gather(whole: P, shards: P, value: jax.Array) -> jax.Array:
    """`value` laid out as `whole`; its gradient as `shards`.

    The barrier keeps the cast to the type of the computation in front: the TPU compiler would gather float32 and cast afterwards.
    """
    return jax.lax.with_sharding_constraint(jax.lax.optimization_barrier(value), whole)


def _forward(whole: P, shards: P, value: jax.Array) -> tuple[jax.Array, None]:
    return gather(whole, shards, value), None


def _backward(whole: P, shards: P, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.with_sharding_constraint(gradient, shards),)


gather.defvjp(_forward, _backward)


def _without_fsdp(spec: P) -> P:
    return P(*(None if axis == "fsdp" else axis for axis in spec))
