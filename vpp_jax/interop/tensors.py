"""Names and layouts of tensors: ours (Flax) and the published ones (PyTorch). Both directions are exact: nothing is computed.

Module paths are the same on both sides. The last part of a name is not: kernels, scales and embedding tables are all called `weight`
there. PyTorch stores kernels as [out, in, ...spatial], Flax as [...spatial, in, out].
"""

from collections.abc import Iterable, Mapping

import numpy as np

from vpp_jax.common.errors import VppError

WEIGHTS = ("kernel", "scale", "embedding")


class InteropError(VppError):
    """Tensors that do not match the model."""


def published_name(name: str) -> str:
    """`conv_in.kernel` -> `conv_in.weight`."""
    module, dot, leaf = name.rpartition(".")
    return f"{module}{dot}weight" if leaf in WEIGHTS else name


def published_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the tensor called `name` here has in a published checkpoint."""
    return (shape[-1], shape[-2], *shape[:-2]) if _is_kernel(name) else tuple(shape)


def to_published(name: str, value: np.ndarray) -> np.ndarray:
    """Our tensor in the published layout; a view of `value` where possible."""
    return np.moveaxis(value, (-1, -2), (0, 1)) if _is_kernel(name) else value


def from_published(name: str, value: np.ndarray) -> np.ndarray:
    """A published tensor in our layout; a view of `value` where possible."""
    return np.moveaxis(value, (0, 1), (-1, -2)) if _is_kernel(name) else value


def import_tensors(names: Iterable[str], published: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """The tensors of one module by our names, from a published state dict in which the module's names start with `prefix`.

    Tensors of `published` that `names` does not list are ignored. Raises InteropError naming those that are missing.
    """
    wanted = {name: prefix + published_name(name) for name in names}
    missing = [theirs for theirs in wanted.values() if theirs not in published]
    if missing:
        raise InteropError(f"{len(missing)} of {len(wanted)} tensors are not in the checkpoint, first {', '.join(missing[:5])}")
    return {name: from_published(name, published[theirs]) for name, theirs in wanted.items()}


def _is_kernel(name: str) -> bool:
    return name.rpartition(".")[2] == "kernel"
