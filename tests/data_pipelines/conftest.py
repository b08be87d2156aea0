"""Fixtures: small datasets, written by the project's builder from a fake simulator, or with given columns."""

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

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import the fake simulator by name
import fake_table

SETTINGS = {
    "scenes": ("A", "B"),
    "tasks": ("go_left", "go_right"),
    "episodes": 3,
    "val_episodes": 1,
    "static_size": 24,
    "gripper_size": 16,
    "episodes_per_shard": 4,
    "max_attempts": 8,
}


class WordTokenizer:
    """Token ids are the lengths of the words, padded with zeros; picklable."""

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
    """Settings -> recipe with the fake simulator."""
    parts = (fake_table.make, fake_table.expert, fake_table.instructions, fake_table.origin)
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
    """`write(lengths, change=...)`: a calvin_mujoco-like dataset of one shard; `change(episode, steps)` may damage its columns."""

    def write(lengths, change=None, name="dataset", action_width=7, cameras=("rgb_static", "rgb_gripper"), size=8) -> Path:
        directory = tmp_path / name
        directory.mkdir()

        def vector(width):
            return Feature("tensor", "float32", (width,))

        schema = Schema(
            steps={
                **{f"observation/{camera}": Feature("image", "uint8", (size, size, 3), "jpeg") for camera in cameras},
                "observation/robot_obs": vector(15),
                "action": vector(action_width),
                "is_first": Feature("tensor", "bool"),
                "language_instruction": Feature("text"),
            },
            episode={"episode_metadata/number": Feature("tensor", "int64")},
        )
        rng, payloads = np.random.default_rng(0), []
        for episode, length in enumerate(lengths):
            steps = {
                f"observation/{camera}": [
                    images.encode_jpeg(np.full((size, size, 3), (10 * episode + step) % 256, np.uint8)) for step in range(length)
                ]
                for camera in cameras
            }
            steps |= {
                "observation/robot_obs": rng.normal(2, 3, (length, 15)).astype("f"),
                "action": (100 * episode + np.arange(length, dtype="f"))[:, None] + np.zeros(action_width, "f"),
                "is_first": np.arange(length) == 0,
                "language_instruction": [f"episode {episode}"] * length,
            }
            if change is not None:
                change(episode, steps)
            full = {
                f"steps/{key}": [value.encode() for value in values] if schema.steps[key].kind == "text" else values
                for key, values in steps.items()
            }
            payloads.append(writer.examples.encode({**full, "episode_metadata/number": np.array([episode])}))
        file = directory / writer.shard_name("calvin_mujoco", "train", 0, 1)
        splits = {"train": writer.WrittenSplit((len(lengths),), write_records(file, payloads))}
        writer.write_metadata(directory, schema, "calvin_mujoco", "1.0.0", splits, "test")
        return directory

    return write


@pytest.fixture
def write_openx(tmp_path):
    """`write(row, lengths, ...)`: a tiny dataset with the columns that a row of the Open-X table reads, below `tmp_path / root`.

    Args:
      metadata: episode feature -> one column per episode; by default what keeps every episode.
    """

    def write(row, lengths=(4, 3), root="openx", version="", folder="", leave_out=(), val=False, metadata=None) -> Path:
        kept = {"kuka": ("success", np.array([True])), "droid": ("episode_metadata/file_path", [b"/success/1"])}
        if metadata is None:
            metadata = {key: [value] * len(lengths) for name, (key, value) in kept.items() if name == row.name}
        directory = tmp_path / root / (folder or row.folder or row.name) / (version or row.versions[0])
        directory.mkdir(parents=True)
        compositions = [composition for composition in (row.composition, row.proprio_composition) if composition is not None]
        used = [part for composition in compositions for part in composition.parts if part.key]
        widths = {key: max(part.needs for part in used if part.key == key) + 1 for key in {part.key for part in used}}
        features = {
            **{f"observation/{key}": Feature("image", "uint8", (8, 8, 3), "jpeg") for key in row.cameras.values()},
            row.instruction: Feature("text"),
            **{key: Feature("tensor", "float32", (width,)) for key, width in widths.items()},
            "is_first": Feature("tensor", "bool"),
        }
        if row.name == "language_table":
            features[row.instruction] = Feature("tensor", "int32", (6,))
        whole = {key: Feature("text" if isinstance(values[0], list) else "tensor", "bool") for key, values in metadata.items()}
        schema = Schema(steps={key: feature for key, feature in features.items() if key not in leave_out}, episode=whole)
        rng, payloads = np.random.default_rng(0), []
        for episode, length in enumerate(lengths):
            colour = np.zeros((8, 8, 3), np.uint8) + np.uint8([200, 100, 20])
            kinds = {"image": [images.encode_jpeg(colour)] * length, "text": [b"push it"] * length}
            columns = {
                key: kinds.get(feature.kind) or rng.normal(size=(length, *feature.shape)).astype("f")
                for key, feature in schema.steps.items()
            }
            columns |= {"is_first": np.arange(length) == 0}
            if row.name == "language_table":
                columns[row.instruction] = np.tile(np.array([*map(ord, "go"), 0, 0, 0, 0]), (length, 1))
            whole = {key: values[episode] for key, values in metadata.items()}
            payloads.append(writer.examples.encode({**whole, **{f"steps/{key}": values for key, values in columns.items()}}))
        splits = {}
        for split in ("train", "val") if val else ("train",):
            file = directory / writer.shard_name(row.name, split, 0, 1)
            splits[split] = writer.WrittenSplit((len(lengths),), write_records(file, payloads))
        writer.write_metadata(directory, schema, row.name, version or row.versions[0], splits, "test")
        return directory

    return write
