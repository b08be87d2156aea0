"""A small dataset with the columns of `calvin_mujoco`, for tests of training that need data but no simulator."""

from pathlib import Path

import numpy as np

from data_pipelines.builders import writer
from data_pipelines.rlds import images
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records


def write_episodes(directory: Path, episodes: int = 4, steps: int = 24, size: int = 16) -> None:
    """`episodes` of random images [size size 3], states and actions in one shard of split 'train'."""
    rng = np.random.default_rng(0)
    camera = Feature("image", "uint8", (size, size, 3), "jpeg")
    schema = Schema(
        steps={
            "observation/rgb_static": camera,
            "observation/rgb_gripper": camera,
            "observation/robot_obs": Feature("tensor", "float32", (15,)),
            "action": Feature("tensor", "float32", (7,)),
            "is_first": Feature("tensor", "bool"),
            "language_instruction": Feature("text"),
        }
    )
    payloads = []
    for _ in range(episodes):
        columns = {
            "observation/robot_obs": rng.normal(size=(steps, 15)).astype("f"),
            "action": rng.normal(size=(steps, 7)).astype("f"),
            "is_first": np.arange(steps) == 0,
            "language_instruction": ["do something"] * steps,
        }
        for name in ("observation/rgb_static", "observation/rgb_gripper"):
            frames = rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8)
            columns[name] = [images.encode_jpeg(frame, 90) for frame in frames]
        payloads.append(writer.encode_episode(schema, columns, {}))
    directory.mkdir(parents=True, exist_ok=True)
    written = write_records(directory / writer.shard_name("calvin_mujoco", "train", 0, 1), payloads)
    splits = {"train": writer.WrittenSplit((episodes,), written)}
    writer.write_metadata(directory, schema, "calvin_mujoco", "1.0.0", splits, "Synthetic images for tests.")
