"""Export: checkpoints -> safetensors with the published names, in the folder layout of diffusers and transformers.

    stage vae     OUT/vae/
    stage video   OUT/unet/  OUT/vae/  OUT/text_encoder/
    stage policy  OUT/policy.safetensors, OUT/config.json: Video Former, diffusion policy, text and goal encoder by the names of the
                  published `model`, and the arguments of its class; of a trained one OUT/robot.json: description and normalisation

An imported checkpoint is exported byte for byte as it was: the same files, headers and config.json, without the tensors that the import
dropped. Any other checkpoint is written as one file per module, in the layout of the format's own serializer.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vpp_jax.common.files import write_atomically
from vpp_jax.common.json_values import to_jsonable
from vpp_jax.config import ExperimentConfig, from_config_dict
from vpp_jax.functional import AbstractParams, Params, PureModule, with_prefix
from vpp_jax.interop.importing import GOAL, PUBLISHED, TEXT
from vpp_jax.interop.policy_config import ACTION, FORMER, policy_arguments
from vpp_jax.interop.published_configs import published_text, published_unet, published_vae
from vpp_jax.interop.report import ConversionError
from vpp_jax.interop.safetensors_file import DTYPES, make_header, parse_header, write_file
from vpp_jax.interop.sources import COMPONENTS
from vpp_jax.interop.tensor_mapping import TensorMapping, tensor_mappings
from vpp_jax.policy import VideoPredictionPolicy
from vpp_jax.training.checkpoints import list_tensors, load_params, locate, read_metadata
from vpp_jax.training.robots import choose_robot
from vpp_jax.video_predictor import VideoPredictor

METADATA = {"format": "pt"}
GROUP_BYTES = 512 << 20  # tensors that are read from the checkpoint together


@dataclass(frozen=True)
class Part:
    """One published module.

    mappings: our name -> published tensor. config: its config.json; a policy's has the arguments of the published class.
    """

    kind: str
    folder: str
    mappings: dict[str, TensorMapping]
    config: dict[str, Any]


def export_published(
    checkpoint: str | Path,
    out: Path,
    *,
    item: str = "ema",
    step: int | str = "latest",
    robot: str = "",
    log: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Writes the modules of a checkpoint below `out`, a new directory -> the weight files. `robot`: see `choose_robot`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConversionError(f"--out={out} exists and is not empty: give a new directory")
    metadata = read_metadata(checkpoint, step)
    stored = list_tensors(checkpoint, item=item, step=step)
    layouts = _layouts(checkpoint, step)
    chosen = choose_robot(metadata, robot, str(checkpoint)) if metadata["stage"] == "policy" and "imported" not in metadata else None
    written = []
    for part in _parts(from_config_dict(metadata["config"]), metadata.get("latent_scaling_factor")):
        if not any(name in stored for name in part.mappings):
            continue  # e.g. the work directory of a trained VAE has no text encoder
        reader = _Reader(checkpoint, item, step, part.mappings, stored)
        folder = out / part.folder
        folder.mkdir(parents=True, exist_ok=True)
        files, texts = _files(part, reader.tensors, layouts.get(part.kind, {}))
        for name, header in files.items():
            size = write_file(folder / name, header, reader.read(list(parse_header(header))))
            log(f"wrote {folder / name}: {len(parse_header(header))} tensors, {size / 1e9:.3f} GB")
            written.append(folder / name)
        for name, text in texts.items():
            write_atomically(folder / name, text)
    if chosen is not None:
        write_atomically(out / "robot.json", json.dumps(to_jsonable(chosen), indent=2) + "\n")
    return written


class _Reader:
    """The published tensors of one module, assembled from ours."""

    def __init__(self, checkpoint: str | Path, item: str, step: int | str, mappings: Mapping[str, TensorMapping], stored: AbstractParams):
        missing = [name for name in mappings if name not in stored]
        if missing:
            raise ConversionError(f"{checkpoint} lacks {len(missing)} tensors of the module, first {missing[0]}")
        self._load = partial(load_params, checkpoint, item=item, step=step)
        self._stored = stored
        self._mappings, self._sources = mappings, {}
        for name, mapping in mappings.items():
            self._sources.setdefault(mapping.name, []).append(name)
        self.tensors = {
            theirs: jax.ShapeDtypeStruct(mappings[ours[0]].shape, stored[ours[0]].dtype) for theirs, ours in self._sources.items()
        }

    def read(self, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """In the given order; a few hundred megabytes are in memory at a time."""
        waiting: list[str] = []
        for index, name in enumerate(names):
            waiting.append(name)
            size = sum(self.tensors[theirs].size * self.tensors[theirs].dtype.itemsize for theirs in waiting)
            if size < GROUP_BYTES and index + 1 < len(names):
                continue
            params = self._load({ours: self._stored[ours] for theirs in waiting for ours in self._sources[theirs]})
            for theirs in waiting:
                yield theirs, self._assemble(theirs, params)
            waiting = []

    def _assemble(self, name: str, params: Params) -> np.ndarray:
        parts = sorted(self._sources[name], key=lambda ours: self._mappings[ours].qkv_index or 0)
        arrays = [self._mappings[ours].theirs(np.asarray(params[ours])) for ours in parts]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _parts(config: ExperimentConfig, scaling_factor: float | None) -> list[Part]:
    model = config.model
    if config.stage == "policy":
        policy = VideoPredictionPolicy(model, config.policy_diffusion, config.video_diffusion)
        modules: list[tuple[str, PureModule, str, bool]] = [
            ("video_former", policy.video_former, FORMER, False),
            ("action_transformer", policy.action_transformer, ACTION, False),
            ("text", policy.predictor.text, TEXT, False),
            ("goal_text_encoder", policy.goal_text_encoder, GOAL, True),
        ]
        wanted = {}
        for group, module, prefix, openai in modules:
            wanted |= with_prefix(group, tensor_mappings(module.abstract, prefix, openai))
        return [Part("policy", "", wanted, policy_arguments(model))]
    predictor = VideoPredictor(model, config.video_diffusion)
    latent_size = model.image_size // model.vae.downscale
    entries = {
        "vae": (predictor.vae, published_vae(model.vae, scaling_factor or 1.0, model.image_size)),
        "unet": (predictor.unet, published_unet(model.unet, model.frames, latent_size)),
        "text": (predictor.text, published_text(model.text)),
    }
    kinds = ("vae",) if config.stage == "vae" else ("unet", "vae", "text")
    return [
        Part(kind, COMPONENTS[kind][0], with_prefix(kind, tensor_mappings(entries[kind][0].abstract)), entries[kind][1]) for kind in kinds
    ]


# --- files --------------------------------------------------------------------------------------------------------------------------


def _layouts(checkpoint: str | Path, step: int | str) -> dict[str, Any]:
    """The layout of the files that this checkpoint was imported from; {} for a trained one."""
    path = locate(checkpoint, step).parent.parent / PUBLISHED
    return json.loads(path.read_text()) if path.is_file() else {}


def _files(part: Part, tensors: Mapping[str, jax.ShapeDtypeStruct], layout: dict[str, Any]) -> tuple[dict[str, bytes], dict[str, str]]:
    """File name -> header, and name -> text of the other files: the imported layout if there is one, else one file in canonical order."""
    headers = {file["name"]: file["header"].encode() for file in layout.get("files", ())}
    present = {name: _present(header, tensors) for name, header in headers.items()}
    if not headers or set().union(*present.values()) != tensors.keys() or any(Path(name).name != name for name in headers):
        texts = {"config.json": json.dumps(part.config, indent=2, sort_keys=True) + "\n"}
        return {f"{COMPONENTS[part.kind][1]}.safetensors": make_header(tensors, METADATA)}, texts
    files = {}
    for name, header in headers.items():
        complete = len(present[name]) == len(parse_header(header))
        if present[name]:
            files[name] = header if complete else make_header({tensor: tensors[tensor] for tensor in present[name]}, METADATA)
    texts = {"config.json": layout["config"]} if "config" in layout else {}
    if "index" in layout:
        texts[layout["index"]["name"]] = _index_text(layout["index"]["text"], tensors)
    return files, texts


def _present(header: bytes, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> set[str]:
    """Tensors of a file that the checkpoint still has in the same shape and type."""
    entries = parse_header(header)
    return {
        name
        for name, entry in entries.items()
        if name in tensors and (tensors[name].shape, tensors[name].dtype) == (entry.shape, DTYPES[entry.dtype])
    }


def _index_text(text: str, tensors: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    tree = json.loads(text)
    present = {name: file for name, file in tree["weight_map"].items() if name in tensors}
    if len(present) == len(tree["weight_map"]):
        return text
    size = sum(tensors[name].size * tensors[name].dtype.itemsize for name in present)
    return json.dumps(tree | {"metadata": {"total_size": size}, "weight_map": present}, indent=2, sort_keys=True) + "\n"
