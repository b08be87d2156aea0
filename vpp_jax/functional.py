"""NNX modules split once into a static graph and a flat dict of arrays.

Everything outside `vpp_jax.models` (losses, optimizers, EMA, partition rules, checkpoints, conversion) uses `Params`: a flat
dict from a parameter's dotted path, e.g. `down_blocks.0.resnets.0.spatial_res_block.norm1.scale`, to its array. `AbstractParams`
has the same names with shapes and types only. `jax.jit` works on functions of such dicts; `nnx.jit` is never used, since it walks
the module graph on every call.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx

from vpp_jax.models.initialization import InitRngs
from vpp_jax.parallel.gather import gathers

Params = dict[str, jax.Array]
AbstractParams = dict[str, jax.ShapeDtypeStruct]
Leaf = TypeVar("Leaf")
ModuleT = TypeVar("ModuleT", bound=nnx.Module)


def flatten(tree: nnx.State) -> dict[str, Any]:
    """Nested NNX state -> {dotted path: array (or ShapeDtypeStruct)}, sorted by path."""
    pairs = ((".".join(map(str, path)), variable.get_value()) for path, variable in nnx.to_flat_state(tree))
    return dict(sorted(pairs))


def with_prefix(prefix: str, params: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Adds `prefix/` in front of every name: several modules share one dict."""
    return {f"{prefix}/{name}": value for name, value in params.items()}


def select(prefix: str, params: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """The parameters under `prefix/`, with the prefix removed; the inverse of `with_prefix`."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}


def params_hash(params: Params) -> str:
    """16 hexadecimal digits of names, types, shapes and values: the identity of a set of weights, wherever it was loaded from."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(params.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
    return digest.hexdigest()


def parameter_count(params: Params | AbstractParams) -> int:
    return sum(value.size for value in params.values())


@dataclass(frozen=True)
class PureModule(Generic[ModuleT]):
    """An NNX module as a pair (static graph definition, abstract parameters).

    `init(key)` makes concrete parameters, `bind(params)` rebuilds the module around them; both are meant to run inside `jax.jit`.
    """

    build: Callable[[nnx.Rngs], ModuleT]
    graphdef: nnx.GraphDef
    variables: tuple[tuple[tuple, nnx.Param], ...]  # (path, abstract variable), in NNX's order
    abstract: AbstractParams

    @classmethod
    def of(cls, build: Callable[[nnx.Rngs], ModuleT]) -> "PureModule[ModuleT]":
        """`build` makes the module from its random streams, e.g. `lambda rngs: SpatioTemporalUNet(config, rngs=rngs)`."""
        abstract_module = nnx.eval_shape(lambda: build(InitRngs(0)))
        graphdef, state = nnx.split(abstract_module, nnx.Param)
        return cls(build, graphdef, tuple(nnx.to_flat_state(state)), flatten(state))

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters from one PRNG key."""
        return flatten(nnx.state(self.build(InitRngs(key)), nnx.Param))

    def bind(self, params: Params) -> ModuleT:
        """The module with `params`, which it gathers on read if the current mesh shards them (`vpp_jax.parallel.gather`).

        Raises ValueError when names or shapes are not this module's.
        """
        if params.keys() != self.abstract.keys():
            missing, unexpected = sorted(self.abstract.keys() - params.keys()), sorted(params.keys() - self.abstract.keys())
            raise ValueError(f"parameters do not fit the module: missing {missing[:5]}, unexpected {unexpected[:5]}")
        wrong = {name: (params[name].shape, spec.shape) for name, spec in self.abstract.items() if params[name].shape != spec.shape}
        if wrong:
            name, (got, want) = next(iter(wrong.items()))
            raise ValueError(f"{len(wrong)} parameters have another shape, first {name}: {got}, expected {want}")
        through, leaves = gathers(self.abstract), []
        for path, variable in self.variables:
            name = ".".join(map(str, path))
            leaves.append((path, variable.replace(params[name])))
            if name in through:
                leaves[-1][1].set_metadata("gather", through[name])
        return nnx.merge(self.graphdef, nnx.from_flat_state(leaves))
