"""The mapping of our tensors to those of a published checkpoint: name, layout, and tensors that are fused there."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from vpp_jax.interop.tensors import from_published, published_name, published_shape, to_published

_LAYER = r"text_model\.encoder\.layers\.(\d+)\."
# OpenAI's names of CLIP's text model (ours are Hugging Face's); the first full match counts. There query, key and value are one tensor.
OPENAI_CLIP: tuple[tuple[str, str], ...] = (
    (r"text_model\.embeddings\.token_embedding\.embedding", r"token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.embedding", r"positional_embedding"),
    (r"text_model\.final_layer_norm\.(weight|bias)", r"ln_final.\1"),
    (r"text_projection\.weight", r"text_projection"),
    (_LAYER + r"layer_norm([12])\.(weight|bias)", r"transformer.resblocks.\1.ln_\2.\3"),
    (_LAYER + r"self_attn\.[qkv]_proj\.(weight|bias)", r"transformer.resblocks.\1.attn.in_proj_\2"),
    (_LAYER + r"self_attn\.out_proj\.(weight|bias)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (_LAYER + r"mlp\.fc1\.(weight|bias)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (_LAYER + r"mlp\.fc2\.(weight|bias)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
)


@dataclass(frozen=True)
class TensorMapping:
    """The published tensor of one of ours.

    name, shape: of the published tensor.
    qkv_index: 0, 1 or 2 if ours is that third of its first axis (fused query, key and value), None if ours is all of it.
    transpose: it is a kernel, [out, in, ...] there and [..., in, out] here.
    """

    name: str
    shape: tuple[int, ...]
    qkv_index: int | None
    transpose: bool

    def ours(self, published: np.ndarray) -> np.ndarray:
        """Our tensor, a view of the published one."""
        part = published if self.qkv_index is None else np.split(published, 3)[self.qkv_index]
        return from_published("kernel", part) if self.transpose else part

    def theirs(self, ours: np.ndarray) -> np.ndarray:
        """The published tensor (or its query, key or value part) as a view of ours."""
        return to_published("kernel", ours) if self.transpose else ours


def tensor_mappings(abstract: Mapping[str, jax.ShapeDtypeStruct], prefix: str = "", openai: bool = False) -> dict[str, TensorMapping]:
    """Our name -> mapping for one module, whose published names start with `prefix`. `openai`: a CLIP with OpenAI's names."""
    make = _openai_mapping_of if openai else _mapping_of
    return {name: make(name, spec.shape, prefix) for name, spec in abstract.items()}


def _mapping_of(name: str, shape: tuple[int, ...], prefix: str) -> TensorMapping:
    return TensorMapping(prefix + published_name(name), published_shape(name, shape), None, name.rpartition(".")[2] == "kernel")


def _openai_mapping_of(name: str, shape: tuple[int, ...], prefix: str) -> TensorMapping:
    plain = _mapping_of(name, shape, "")
    # embedding tables are matched by our name, since two of the published names have no last part
    known = name if name.endswith(".embedding") else plain.name
    theirs = next(match.expand(target) for pattern, target in OPENAI_CLIP if (match := re.fullmatch(pattern, known)))
    fused = re.search(r"self_attn\.([qkv])_proj", name)
    if fused:
        return TensorMapping(prefix + theirs, (3 * plain.shape[0], *plain.shape[1:]), "qkv".index(fused.group(1)), plain.transpose)
    if name == "text_projection.kernel":  # a matrix applied from the right there as here
        return TensorMapping(prefix + theirs, tuple(shape), None, False)
    return TensorMapping(prefix + theirs, plain.shape, None, plain.transpose)
