"""Datasets of robots that differ: widths, scales, rates and cameras of one's choice, each with the file that describes it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipelines.builders import writer
from data_pipelines.rlds import images
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records


def write_robot(
    directory: Path,
    action_width: int = 7,
    state_width: int = 15,
    scale: float = 1.0,
    views: Sequence[str] = ("primary", "wrist"),
    lengths: Sequence[int] = (8, 6),
    texts: Sequence[str] = ("push it", "open the drawer"),
    splits: Sequence[str] = ("train", "val"),
    **description,
) -> Path:
    """A dataset whose actions have standard deviation `scale`; `description` adds attributes of the robot to robot.json."""
    directory.mkdir(parents=True)
    cameras = {view: f"observation/{view}" for view in views}
    state = {"observation/state": Feature("tensor", "float32", (state_width,))} if state_width else {}
    schema = Schema(
        steps={
            **{key: Feature("image", "uint8", (32, 32, 3), "jpeg") for key in cameras.values()},
            **state,
            "action": Feature("tensor", "float32", (action_width,)),
            "language_instruction": Feature("text"),
            "is_first": Feature("tensor", "bool"),
        },
        episode={},
    )
    written = {}
    for split in splits:
        rng, payloads = np.random.default_rng(len(split)), []
        for number, length in enumerate(lengths):
            steps = {
                key: [images.encode_jpeg(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(length)] for key in cameras.values()
            }
            steps |= {key: rng.normal(size=(length, state_width)).astype("f") for key in state}
            steps |= {
                "action": (scale * rng.normal(size=(length, action_width))).astype("f"),
                "language_instruction": [texts[number % len(texts)].encode()] * length,
                "is_first": np.arange(length) == 0,
            }
            payloads.append(writer.examples.encode({f"steps/{key}": values for key, values in steps.items()}))
        file = directory / writer.shard_name(directory.name, split, 0, 1)
        written[split] = writer.WrittenSplit((len(lengths),), write_records(file, payloads))
    writer.write_metadata(directory, schema, directory.name, "1.0.0", written, "test")
    robot = {
        "name": directory.name,
        "cameras": cameras,
        "control_hz": 10,
        "action": f"action[0:{action_width}]",
        "proprio": f"observation/state[0:{state_width}]" if state_width else "",
    }
    (directory / "robot.json").write_text(json.dumps(robot | description))
    return directory
