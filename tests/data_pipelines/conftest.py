"""Small datasets written by the project's own builder from a stand-in simulator, and a writer of free-form ones."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.builders import sharded, writer
from data_pipelines.builders.calvin_mujoco import CalvinMujocoRecipe, Settings
from data_pipelines.rlds import images
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import the stand-in by name
import fake_table

SETTINGS = {"scenes": ("A", "B"), "tasks": ("go_left", "go_right"), "episodes": 3, "val_episodes": 1, "static_size": 24, "gripper_size": 16,
            "episodes_per_shard": 4, "max_attempts": 8}


class WordTokenizer:
    """Lengths of the words, padded with zeros; pickles."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, texts):
        rows = [[len(word) for word in text.split()][: self.length] for text in texts]
        ids = np.array([row + [0] * (self.length - len(row)) for row in rows], np.int32)
        return ids, ids > 0


@pytest.fixture(scope="session")
def tokenizer() -> WordTokenizer:
    return WordTokenizer(6)


@pytest.fixture(scope="session")
def recipe():
    """Settings -> recipe over the stand-in simulator."""
    parts = (fake_table.make, fake_table.sentences, fake_table.origin)
    return lambda **changes: CalvinMujocoRecipe(Settings(**{**SETTINGS, **changes}), *parts)


@pytest.fixture(scope="session")
def built(recipe, tmp_path_factory) -> Path:
    """A finished dataset (do not change it: see `dataset_copy`)."""
    directory = tmp_path_factory.mktemp("data") / "calvin_mujoco"
    sharded.build(recipe(), directory, workers=0)
    return directory


@pytest.fixture
def dataset_copy(built, tmp_path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "copy", ignore=shutil.ignore_patterns("record_index*", "statistics*")))


@pytest.fixture
def write_dataset(tmp_path):
    """`write(lengths, change=...)`: a calvin_mujoco-like dataset of one shard; `change(episode, steps)` may spoil its columns."""
    def write(lengths, change=None, name="dataset", action_width=7, cameras=("rgb_static", "rgb_gripper"), size=8) -> Path:
        directory = tmp_path / name
        directory.mkdir()

        def vector(width):
            return Feature("tensor", "float32", (width,))

        schema = Schema(
            steps={**{f"observation/{camera}": Feature("image", "uint8", (size, size, 3), "jpeg") for camera in cameras},
                   "observation/robot_obs": vector(15), "action": vector(action_width), "is_first": Feature("tensor", "bool"),
                   "language_instruction": Feature("text")},
            episode={"episode_metadata/number": Feature("tensor", "int64")})
        rng, payloads = np.random.default_rng(0), []
        for episode, length in enumerate(lengths):
            steps = {f"observation/{camera}": [images.encode_jpeg(np.full((size, size, 3), (10 * episode + step) % 256, np.uint8))
                                               for step in range(length)] for camera in cameras}
            steps |= {"observation/robot_obs": rng.normal(2, 3, (length, 15)).astype("f"),
                      "action": (100 * episode + np.arange(length, dtype="f"))[:, None] + np.zeros(action_width, "f"),
                      "is_first": np.arange(length) == 0, "language_instruction": [f"episode {episode}"] * length}
            if change is not None:
                change(episode, steps)
            full = {f"steps/{key}": [value.encode() for value in values] if schema.steps[key].kind == "text" else values
                    for key, values in steps.items()}
            payloads.append(writer.examples.encode({**full, "episode_metadata/number": np.array([episode])}))
        file = directory / writer.shard_name("calvin_mujoco", "train", 0, 1)
        splits = {"train": writer.WrittenSplit((len(lengths),), write_records(file, payloads))}
        writer.write_metadata(directory, schema, "calvin_mujoco", "1.0.0", splits, "test")
        return directory

    return write
