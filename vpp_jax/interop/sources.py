"""Opens the weight files given on the command line: pipeline folders, their components, single files, policy folders."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.text_files import read_text
from vpp_jax.interop.renaming import Renamed
from vpp_jax.interop.report import ConversionError
from vpp_jax.interop.safetensors_file import SafetensorsFile, SafetensorsShards, TensorSource
from vpp_jax.interop.torch_file import TorchFile

# component -> (its folder in a pipeline, stem of its weight files)
COMPONENTS = {
    "unet": ("unet", "diffusion_pytorch_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "text": ("text_encoder", "model"),
    "policy": ("saved_models", "policy"),
}


@dataclass(frozen=True)
class Component:
    """One opened published module. `config`: its config.json, None if there is none. `layout`: what an export needs to reproduce the
    same bytes, JSON: headers of the files, text of the index and of config.json; {} where its names or types are not the published ones.
    `notes`: what was renamed."""

    source: TensorSource
    config: dict[str, Any] | None = None
    layout: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        return self.source.where


def open_component(kind: str, path: Path, variant: str = "") -> Component:
    """A `.safetensors` file, a component's folder, or a pipeline folder with it. `variant`: e.g. 'fp16' for the files of that name."""
    subfolder, stem = COMPONENTS[kind]
    if path.is_file():
        folder, weights = path.parent, path
    elif path.is_dir():
        folder = path / subfolder if (path / subfolder).is_dir() else path
        weights = _weights(folder, stem, variant)
    else:
        raise ConversionError(f"--{kind}={path} does not exist")
    source: TensorSource
    if weights.suffix == ".json":
        source = shards = SafetensorsShards(weights)
        files = [{"name": name, "header": file.header.decode()} for name, file in shards.files.items()]
        layout = {"files": files, "index": {"name": weights.name, "text": weights.read_text()}}
    elif weights.suffix == ".safetensors":
        source = single = SafetensorsFile(weights)
        layout = {"files": [{"name": weights.name, "header": single.header.decode()}]}
    else:
        source, layout = TorchFile(weights), {}
    config = folder / "config.json"
    tree, text = _config(config) if config.is_file() else (None, None)
    return _component(kind, source, tree, layout | ({"config": text} if layout and text is not None else {}))


def _component(kind: str, source: TensorSource, config: dict[str, Any] | None, layout: dict[str, Any]) -> Component:
    renamed = Renamed(source, kind)
    converted = any(tensor.dtype == np.float64 for tensor in source.tensors.values())
    return Component(renamed if renamed.notes else source, config, {} if renamed.notes or converted else layout, tuple(renamed.notes))


def open_policy(path: Path) -> Component:
    """A `.pt` or `.safetensors` file, or a folder that has one of them, at most one level down (`saved_models/`).

    `config` is its training configuration: the `args` of a `.pt` file, the config.json next to a `.safetensors` file.
    """
    if path.is_dir():
        found = sorted(
            file
            for pattern in ("*", f"{COMPONENTS['policy'][0]}/*")
            for file in path.glob(pattern)
            if file.suffix in (".pt", ".pth", ".ckpt", ".safetensors")
        )
        if len(found) != 1:
            raise ConversionError(f"--policy={path} holds {len(found)} weight files, give one: {', '.join(map(str, found)) or '*.pt'}")
        path = found[0]
    if not path.is_file():
        raise ConversionError(f"--policy={path} does not exist")
    if path.suffix != ".safetensors":
        source = TorchFile(path)
        return _component("policy", source, source.arguments if isinstance(source.arguments, dict) else None, {})
    return open_component("policy", path)


def _weights(folder: Path, stem: str, variant: str) -> Path:
    """The weight file of a folder, or the index of its shards; full precision unless only a variant exists or is requested."""
    dotted = f".{variant}" if variant else ""
    exact = (f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json")
    found = [folder / name for name in dict.fromkeys(exact) if (folder / name).is_file()]
    if len(found) > 1:
        raise ConversionError(
            f"{folder} has {' and '.join(path.name for path in found)}, which may differ: remove the stale one, or name one of them"
        )
    if found:
        return found[0]
    candidates = {*folder.glob(f"{stem}.*.safetensors"), *folder.glob(f"{stem}*.index*.json")}
    others = sorted(path for path in candidates if not re.search(r"-\d+-of-\d+", path.name))  # shards are found through their index
    if not variant and len(others) == 1:
        return others[0]
    pickled = next((folder / name for name in (f"{stem}.bin", "pytorch_model.bin") if (folder / name).is_file()), None)
    if pickled and not variant and not others:
        return pickled
    present = ", ".join(sorted(file.name for file in folder.iterdir() if file.is_file())) or "no file"
    raise ConversionError(f"{folder} has none of {', '.join(exact)} (it has {present}){'; --variant=NAME picks one' if others else ''}")


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _config(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = read_text(path)
        tree = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise FileFormatError(f"{path} is not a JSON object")
    return tree, text
