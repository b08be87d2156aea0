"""Small published checkpoints: pipeline and CLIP folders, and PyTorch archives written opcode by opcode (PyTorch is not installed)."""

import json
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vpp_jax.functional import PureModule
from vpp_jax.interop.tensor_mapping import tensor_mappings

UNET = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "_diffusers_version": "0.24.0",
    "addition_time_embed_dim": 32,
    "block_out_channels": [32],
    "cross_attention_dim": 64,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"],
    "in_channels": 8,
    "layers_per_block": 1,
    "num_attention_heads": [1],
    "num_frames": 14,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 96,
    "sample_size": 96,
    "transformer_layers_per_block": 1,
    "up_block_types": ["CrossAttnUpBlockSpatioTemporal"],
}
VAE = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.25,
}
CLIP = {
    "architectures": ["CLIPTextModelWithProjection"],
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 20,
    "model_type": "clip_text_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": 24,
    "vocab_size": 49408,
}
Arrays = dict[str, np.ndarray]


def tensors(module: PureModule, seed: int, prefix: str = "", openai: bool = False, dtype=np.float32) -> Arrays:
    """Random tensors of one module by their published names."""
    rng, shapes = np.random.default_rng(seed), {}
    for mapping in tensor_mappings(module.abstract, prefix, openai).values():
        shapes[mapping.name] = mapping.shape
    return {name: (0.1 * rng.standard_normal(shape)).astype(dtype) for name, shape in shapes.items()}


def write_component(folder: Path, stem: str, arrays: Arrays, config: Mapping[str, Any], shards: int = 1, variant: str = "") -> None:
    """A component's folder as `save_pretrained` leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stem = f"{stem}.{variant}" if variant else stem
    if shards == 1:
        save_file(arrays, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    names = list(arrays)
    files = {f"{stem}-{k + 1:05d}-of-{shards:05d}.safetensors": names[k::shards] for k in range(shards)}
    for file, some in files.items():
        save_file({name: arrays[name] for name in some}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, some in files.items() for name in some}
    index = {"metadata": {"total_size": sum(value.nbytes for value in arrays.values())}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


# --- torch.save without PyTorch -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Name:
    """GLOBAL."""

    module: str
    name: str


@dataclass(frozen=True)
class Reduce:
    """REDUCE, or NEWOBJ, and then SETITEMS and BUILD where given."""

    function: Any
    arguments: tuple = ()
    items: Any = None
    state: Any = None
    new: bool = False


@dataclass(frozen=True)
class Reference:
    """BINPERSID."""

    identity: tuple


def pickled(value: Any) -> bytes:
    """A pickle of protocol 2."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_opcodes, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_opcodes, value)) + b"e"
        case dict():
            return b"}" + _setitems(value)
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Reference():
            return _opcodes(value.identity) + b"Q"
        case Reduce():
            made = _opcodes(value.function) + _opcodes(value.arguments) + (b"\x81" if value.new else b"R")
            made += b"" if value.items is None else _setitems(value.items)
            return made + (b"" if value.state is None else _opcodes(value.state) + b"b")
    raise TypeError(type(value))


def _setitems(items: Mapping) -> bytes:
    return b"(" + b"".join(_opcodes(part) for item in items.items() for part in item) + b"u"


STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage", "bfloat16": "BFloat16Storage"}


class Archive:
    """Collects storages, then writes the zip file."""

    def __init__(self):
        self.storages: list[bytes] = []

    def storage(self, values: np.ndarray) -> Reference:
        self.storages.append(values.tobytes())
        key = str(len(self.storages) - 1)
        return Reference(("storage", Name("torch", STORAGES[str(values.dtype)]), key, "cpu", values.size))

    def tensor(self, values: np.ndarray) -> Reduce:
        strides = tuple(stride // values.itemsize for stride in np.ascontiguousarray(values).strides) if values.ndim else ()
        return view(self.storage(values), 0, values.shape, strides)

    def state_dict(self, arrays: Arrays) -> Reduce:
        """An OrderedDict with the `_metadata` attribute that modules give it."""
        items = {name: self.tensor(value) for name, value in arrays.items()}
        return Reduce(Name("collections", "OrderedDict"), (), items, {"_metadata": Reduce(Name("collections", "OrderedDict"), (), {})})

    def write(self, path: Path, tree: Any, data: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled(tree) if data is None else data)
            archive.writestr("archive/byteorder", b"little")
            for key, values in enumerate(self.storages):
                archive.writestr(f"archive/data/{key}", values)
            archive.writestr("archive/version", b"3\n")
        return path


def view(storage: Reference, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Reduce:
    hooks = Reduce(Name("collections", "OrderedDict"))
    return Reduce(Name("torch._utils", "_rebuild_tensor_v2"), (storage, offset, tuple(shape), tuple(strides), False, hooks))


def omegaconf(value: Any) -> Any:
    """What OmegaConf's pickles hold: containers with `_content`, leaves with `_val`, each with metadata that names types."""
    metadata = Reduce(
        Name("omegaconf.base", "ContainerMetadata"),
        (),
        None,
        {"object_type": Name("__builtin__", "dict"), "key_type": Name("typing", "Any"), "element_type": Name("typing", "Any")},
        new=True,
    )
    if isinstance(value, dict):
        content = {name: omegaconf(entry) for name, entry in value.items()}
        return Reduce(Name("omegaconf.dictconfig", "DictConfig"), (), None, {"_metadata": metadata, "_content": content}, new=True)
    if isinstance(value, list):
        content = [omegaconf(entry) for entry in value]
        return Reduce(Name("omegaconf.listconfig", "ListConfig"), (), None, {"_metadata": metadata, "_content": content}, new=True)
    return Reduce(Name("omegaconf.nodes", "AnyNode"), (), None, {"_metadata": None, "_val": value}, new=True)
