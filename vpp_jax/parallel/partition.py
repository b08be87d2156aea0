"""Partition rules: which mesh axis splits which dimension of which parameter, one ordered table for every stage and size.

A rule's axes stand for the *last* dimensions of the array; the first rule whose pattern matches the full name applies. A name that no
rule matches is an error. If an axis does not divide its dimension, `fsdp` moves to the largest dimension that it divides and `tensor` is
dropped; both are noted in the decision.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vpp_jax.common.errors import VppError

log = logging.getLogger(__name__)
Axes = tuple[str | None, ...]

RULES: tuple[tuple[str, Axes], ...] = (
    # small
    (r"latents/.*", ()),
    (r"robots/.*", ()),
    (r".*\.(bias|scale|mix_factor)", ()),
    (r"(video_former/)?(latents|time_pos_emb)", ()),
    (r".*position_embedding\.embedding", ()),
    # attention: heads over tensor
    (r".*\.(to_q|to_k|to_v|q_proj|k_proj|v_proj|query|key|value|qkv)\.kernel", ("fsdp", "tensor")),
    (r".*\.(to_out|to_out\.0|out_proj|attn\.c_proj|cross_att\.c_proj)\.kernel", ("tensor", "fsdp")),
    # feed-forward: hidden width over tensor
    (r".*\.(net\.0\.proj|mlp\.fc1|mlp\.c_fc)\.kernel", ("fsdp", "tensor")),
    (r".*\.(net\.2|mlp\.fc2|mlp\.c_proj)\.kernel", ("tensor", "fsdp")),
    (r".*token_embedding\.embedding", ("fsdp", "tensor")),
    # convolutions: output channels
    (r".*(conv\w*)\.kernel", (None, "fsdp")),
    # every other linear layer
    (r".*\.kernel", ("fsdp", None)),
)


class PartitionError(VppError):
    """A parameter without a rule."""


@dataclass(frozen=True)
class Decision:
    """How one parameter is split. `note` is the reason for a departure from the rule, '' if there is none."""

    spec: P
    note: str = ""


def decide(params: Mapping[str, jax.Array | jax.ShapeDtypeStruct], sizes: Mapping[str, int], min_size_to_shard: int) -> dict[str, Decision]:
    """Decisions for parameters, abstract or not, on a mesh of the given axis sizes; needs no devices."""
    compiled = [(re.compile(pattern), axes) for pattern, axes in RULES]
    decisions, unmatched = {}, []
    for name, value in params.items():
        axes = next((axes for pattern, axes in compiled if pattern.fullmatch(name)), None)
        if axes is None:
            unmatched.append(name)
        elif axes and value.size < min_size_to_shard:
            decisions[name] = Decision(P(), "small")
        else:
            decisions[name] = _fit(value.shape, axes, sizes)
    if unmatched:
        raise PartitionError(f"{len(unmatched)} parameter(s) match no rule of vpp_jax/parallel/partition.py, first {unmatched[:5]}")
    return decisions


def partition(params: Mapping[str, jax.Array | jax.ShapeDtypeStruct], mesh: Mesh, min_size_to_shard: int) -> dict[str, NamedSharding]:
    """Shardings of a flat parameter dict on `mesh`; every decision is logged."""
    decisions = decide(params, mesh.shape, min_size_to_shard)
    if mesh.size > 1:
        for name, decision in decisions.items():
            value = params[name]
            log.info("%s %s %s -> %s%s", name, value.shape, value.dtype, decision.spec, f" ({decision.note})" if decision.note else "")
    return {name: NamedSharding(mesh, decision.spec) for name, decision in decisions.items()}


def like_params(tree, shardings: Mapping[str, NamedSharding], mesh: Mesh):
    """Shardings for an optimizer state: leaves below a parameter's name are sharded like it, the others (counters) are replicated."""

    def sharding(path, leaf) -> NamedSharding:
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return shardings[names[-1]] if names and names[-1] in shardings else NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _fit(shape: tuple[int, ...], axes: Axes, sizes: Mapping[str, int]) -> Decision:
    spec: list[str | None] = [None] * (len(shape) - len(axes)) + list(axes)
    notes = []
    for axis in ("tensor", "fsdp"):
        if axis not in spec or sizes[axis] == 1:
            continue
        dimension = spec.index(axis)
        if shape[dimension] % sizes[axis] == 0:
            continue
        spec[dimension] = None
        free = [d for d in range(len(shape)) if spec[d] is None and shape[d] % sizes[axis] == 0] if axis == "fsdp" else []
        if free:
            spec[max(free, key=lambda d: shape[d])] = axis
        notes.append(f"{axis}={sizes[axis]} does not divide {shape[dimension]}, {'moved' if free else 'unsharded'}")
    while spec and spec[-1] is None:
        spec.pop()
    return Decision(P(*spec), "; ".join(notes))
