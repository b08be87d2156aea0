"""Synthetic RLDS shards for the loader's benchmark: photograph-like images of any size, or latents."""

import json
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

from data_pipelines.builders import writer
from data_pipelines.rlds.latents import LATENTS, LatentsInfo, logvar_of, mean_of
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records

NAME = "calvin_mujoco"
CAMERAS = ("observation/rgb_static", "observation/rgb_gripper")
SHARDS, QUALITY, IMAGES = 4, 95, 64
CELLS, NOISE = 24, 1.0


def write_images(directory: Path, episodes: int, steps: int, height: int, width: int) -> int:
    """Episodes of two cameras as TFDS encodes them (JPEG 95, chroma halved). Returns the mean bytes per image."""
    rng = np.random.default_rng(0)
    images = [simplejpeg.encode_jpeg(photograph(rng, height, width), QUALITY, colorsubsampling="420") for _ in range(IMAGES)]
    camera = Feature("image", "uint8", (height, width, 3), "jpeg")

    def columns() -> dict:
        return {name: [images[int(k)] for k in rng.integers(IMAGES, size=steps)] for name in CAMERAS}

    _write(directory, rng, {name: camera for name in CAMERAS}, columns, episodes, steps)
    return int(np.mean([len(image) for image in images]))


def write_latents(directory: Path, episodes: int, steps: int, image_size: int) -> None:
    """Episodes with the latents of the first camera instead of images, as `vpp data latents` writes them."""
    rng, shape = np.random.default_rng(0), (image_size // 8, image_size // 8, 4)
    packed = Feature("tensor", "float16", shape, "bytes")
    values = rng.normal(size=(IMAGES, *shape)).astype(np.float16)
    names = mean_of(CAMERAS[0]), logvar_of(CAMERAS[0])

    def columns() -> dict:
        return {name: values[rng.integers(IMAGES, size=steps)] for name in names}

    _write(directory, rng, {name: packed for name in names}, columns, episodes, steps)
    info = LatentsInfo(vae="synthetic", image_size=image_size, cameras=CAMERAS[:1])
    (directory / "metadata.json").write_text(json.dumps({LATENTS: info.to_json()}))


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8[height, width, 3]: smooth areas and a little noise, about as many bytes per pixel as a camera image."""
    coarse = Image.fromarray(rng.integers(0, 256, (CELLS, CELLS * width // height, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
    return np.clip(smooth + rng.normal(0, NOISE, (height, width, 1)), 0, 255).astype(np.uint8)


def _write(directory: Path, rng: np.random.Generator, frames: dict[str, Feature], columns, episodes: int, steps: int) -> None:
    """`frames`: the features that `columns()` makes for every episode; actions, states and instructions are added."""
    schema = Schema(
        steps={
            **frames,
            "observation/robot_obs": Feature("tensor", "float32", (15,)),
            "action": Feature("tensor", "float32", (7,)),
            "is_first": Feature("tensor", "bool"),
            "language_instruction": Feature("text"),
        }
    )
    directory.mkdir(parents=True)
    lengths, size = [], 0
    for shard in range(SHARDS):
        payloads = []
        for _ in range(episodes // SHARDS):
            numbers = {name: rng.normal(size=(steps, width)).astype("f") for name, width in (("observation/robot_obs", 15), ("action", 7))}
            texts = {"is_first": np.arange(steps) == 0, "language_instruction": ["push the sliding door to the left"] * steps}
            payloads.append(writer.encode_episode(schema, {**columns(), **numbers, **texts}, {}))
        size += write_records(directory / writer.shard_name(NAME, "train", shard, SHARDS), payloads)
        lengths.append(len(payloads))
    splits = {"train": writer.WrittenSplit(tuple(lengths), size)}
    writer.write_metadata(directory, schema, NAME, "1.0.0", splits, "Synthetic data for benchmarks.")
