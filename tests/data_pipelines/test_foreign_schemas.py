"""Columns in the forms that other people's builders give them: scalars, extra dimensions, ragged ones, pixels, several instructions."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import inspection, statistics
from data_pipelines.builders import writer
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.contact_sheet import draw
from data_pipelines.errors import BadRecordError, DataError, DatasetNotFoundError
from data_pipelines.openx.registry import dataset_spec
from data_pipelines.rlds import images
from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records
from vpp_jax.cli.main import main

STEPS = 5
TEXTS = [b"lift it", b"raise it", b"pick it up"]
VECTOR = Feature("tensor", "float32", (7,))
JPEG = images.encode_jpeg(np.full((8, 8, 3), 99, np.uint8))


@pytest.fixture
def write(tmp_path):
    """`write(action=(feature, columns), ...)`: two episodes of five steps; what is not given is as in calvin_mujoco."""

    def make(cameras=None, **changed):
        rng = np.random.default_rng(0)
        camera = cameras or (Feature("image", "uint8", (8, 8, 3), "jpeg"), {"": [JPEG] * STEPS})
        columns = {
            "observation/rgb_static": camera,
            "observation/rgb_gripper": camera,
            "observation/robot_obs": (Feature("tensor", "float32", (15,)), {"": rng.normal(size=(STEPS, 15)).astype("f")}),
            "action": (VECTOR, {"": np.arange(STEPS * 7, dtype="f").reshape(STEPS, 7)}),
            "language_instruction": (Feature("text"), {"": [TEXTS[0]] * STEPS}),
            "is_first": (Feature("tensor", "bool"), {"": np.arange(STEPS) == 0}),
            "is_last": (Feature("tensor", "bool"), {"": np.arange(STEPS) == STEPS - 1}),
        } | {name.replace("__", "/"): value for name, value in changed.items()}
        columns = {name: value for name, value in columns.items() if value}
        episode = {name: value for name, value in columns.items() if name.startswith("episode_metadata/")}
        steps = {name: value for name, value in columns.items() if name not in episode}
        record = {f"steps/{name}{end}": part for name, (_, parts) in steps.items() for end, part in parts.items()}
        record |= {name: part for name, (_, parts) in episode.items() for part in parts.values()}
        schema = Schema({name: feature for name, (feature, _) in steps.items()}, {name: feature for name, (feature, _) in episode.items()})
        directory = tmp_path / "dataset"
        directory.mkdir()
        payloads = [writer.examples.encode(record)] * 2
        size = write_records(directory / writer.shard_name("calvin_mujoco", "train", 0, 1), payloads)
        writer.write_metadata(directory, schema, "calvin_mujoco", "1.0.0", {"train": writer.WrittenSplit((2,), size)}, "test")
        return directory

    return make


def config(path, **entry) -> DataConfig:
    return DataConfig(datasets=(DatasetConfig(path=str(path), val_split="train", **entry),), threads=0)


# --- instructions ---------------------------------------------

SEQUENCE = Feature("text", sequence=(None,)), {"/ragged_flat_values": TEXTS * STEPS, "/ragged_row_lengths_0": np.full(STEPS, 3)}
FORMS = {
    "a Sequence of texts per step": {"language_instruction": SEQUENCE},
    "a tensor of strings [3]": {"language_instruction": (Feature("text", shape=(3,)), {"": TEXTS * STEPS})},
    "a Sequence of texts per episode": {
        "language_instruction": None,
        "episode_metadata__language_instruction": (Feature("text", sequence=(None,)), {"": TEXTS}),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_several_instructions_are_one_choice_per_epoch(write, tokenizer, form, tmp_path, capsys):
    directory = write(**FORMS[form])
    key = "language_instruction" if FORMS[form]["language_instruction"] else "episode_metadata/language_instruction"
    assert RLDSDataset(directory)[0].texts(key, 2) == ("lift it", "raise it", "pick it up")
    if key == "language_instruction":
        source = policy_source(config(directory), 8, tokenizer, 6, "train")
        drawn = {tuple(source.in_epoch(3, epoch)["text_ids"]) for epoch in range(40)}
        assert len(drawn) == 3
        np.testing.assert_array_equal(source[3]["text_ids"], source.in_epoch(3, 0)["text_ids"])
        clips = clip_source(config(directory), 8, tokenizer, 6, "train")
        assert len({tuple(clips.in_epoch(0, epoch)["text_ids"]) for epoch in range(40)}) == 3
        draw(RLDSDataset(directory), tmp_path / "sheet.png", spec=dataset_spec("calvin_mujoco"))
    assert main(["data", "inspect", str(directory)]) == 0
    assert f"{key}: 3 distinct: 'lift it'" in capsys.readouterr().out


def test_one_instruction_in_a_tensor_of_one_string(write, tokenizer):
    directory = write(language_instruction=(Feature("text", shape=(1,)), {"": [TEXTS[0]] * STEPS}))
    source = policy_source(config(directory), 8, tokenizer, 6, "train")
    assert tuple(source[0]["text_ids"][:2]) == (4, 2)


def test_a_step_without_any_instruction_is_named(write, tokenizer):
    lengths = np.array([3, 0, 3, 3, 3])
    directory = write(language_instruction=(SEQUENCE[0], {"/ragged_flat_values": (TEXTS * STEPS)[:12], "/ragged_row_lengths_0": lengths}))
    source = policy_source(config(directory), 8, tokenizer, 6, "train")
    with pytest.raises(BadRecordError, match="record 0, field 'language_instruction': empty instruction"):
        source[1]
    report = inspection.inspect_dataset(directory)
    assert any("empty instruction at step 1" in defect for defect in report["splits"]["train"]["defects"])


# --- actions and states ---------------------------------------------


def test_scalars_and_extra_dimensions_are_vectors(write, capsys):
    spec = replace(dataset_spec("calvin_mujoco"), action_width=7, proprio_width=1)
    values = np.arange(STEPS * 7, dtype="f")
    directory = write(
        action=(Feature("tensor", "float32", (1, 7)), {"": values}),
        observation__robot_obs=(Feature("tensor", "float32"), {"": np.arange(STEPS, dtype="f")}),
    )
    made = statistics.compute(RLDSDataset(directory), spec)
    np.testing.assert_allclose(made.columns["action"].mean, values.reshape(STEPS, 7).mean(0))
    np.testing.assert_allclose(made.columns["proprio"].mean, [2.0])
    report = inspection.inspect_dataset(directory)["splits"]["train"]
    assert report["numbers"]["action"]["width"] == 7
    assert report["numbers"]["observation/robot_obs"]["width"] == 1
    assert report["defects"] == [
        "features.json: field 'observation/robot_obs' has shape [] in features.json, but the description of 'calvin_mujoco' says [15]"
    ]
    assert main(["data", "stats", str(directory)]) == 1
    assert "has shape []" in " ".join(capsys.readouterr().err.split())


RAGGED = (
    Feature("tensor", "float32", sequence=(None,)),
    {
        "/ragged_flat_values": np.arange(10, dtype="f"),
        "/ragged_row_lengths_0": np.array([1, 2, 3, 4, 0]),
    },
)


@pytest.mark.parametrize(
    ("feature", "problem"),
    [
        (RAGGED, r"has a varying number of values per step (?), expected the same at every step"),
        ((Feature("text"), {"": [b"left"] * STEPS}), "is text, expected numbers"),
        ((Feature("tensor", "float32", (3,)), {"": np.zeros(3 * STEPS, "f")}), "has shape [3] in features.json"),
    ],
)
def test_one_check_for_inspection_statistics_and_training(write, tokenizer, feature, problem, capsys):
    directory = write(action=feature)
    with pytest.raises(DataError, match="field 'action'") as caught:
        statistics.compute(RLDSDataset(directory), dataset_spec("calvin_mujoco"))
    assert problem in str(caught.value)
    with pytest.raises(DataError, match="field 'action'") as caught:
        policy_source(config(directory), 8, tokenizer, 6, "train")
    assert problem in str(caught.value)
    assert main(["data", "inspect", str(directory)]) == 1
    assert f"field 'action' {problem}" in capsys.readouterr().out


def test_a_ragged_observation_is_listed(write):
    report = inspection.inspect_dataset(write(observation__points=RAGGED))["splits"]["train"]
    assert any("field 'observation/points' has a varying number" in warning["problem"] for warning in report["warnings"])
    assert not report["defects"]


# --- cameras ---------------------------------------------


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
def test_a_camera_may_be_stored_as_pixels(write, tokenizer, encoding, capsys):
    import zlib

    pixels = np.random.default_rng(0).integers(0, 255, (STEPS, 8, 6, 3), np.uint8)
    blobs = [image.tobytes() for image in pixels]
    stored = {"none": pixels.astype(np.int64), "bytes": blobs, "zlib": list(map(zlib.compress, blobs))}[encoding]
    directory = write(cameras=(Feature("tensor", "uint8", (8, 6, 3), encoding), {"": stored}))
    dataset = RLDSDataset(directory)
    assert dataset.schema.cameras == ("observation/rgb_static", "observation/rgb_gripper")
    np.testing.assert_array_equal(dataset[0].frame("observation/rgb_static", 3), pixels[3])
    source = policy_source(config(directory), 8, tokenizer, 6, "train")
    assert source[0]["images/primary"].shape == (8, 8, 3)
    assert main(["data", "inspect", str(directory)]) == 0
    assert "camera observation/rgb_static: 8x6 pixels" in capsys.readouterr().out


# --- the last action ---------------------------------------------


def test_the_last_action_is_a_choice(write, tokenizer):
    """By the specification of RLDS it is invalid; Octo trains on it."""
    directory = write()
    used, dropped = (policy_source(config(directory, last_action=choice), 8, tokenizer, 6, "train") for choice in ("", "dropped"))
    assert (len(used), len(dropped)) == (10, 8)
    assert used[4]["action"][0, 0] == 28
    assert dropped[3]["action"][:, 0].tolist() == [21] * len(dropped[3]["action"])
    assert dropped[3]["action_mask"].sum() == 1
    kept, left = (source.sources[0].statistics.columns["action"] for source in (used, dropped))
    assert (kept.count, left.count) == (10, 8)
    assert (kept.max[0], left.max[0]) == (28, 21)
    assert left.key == "action (without the last step)"
    assert used.sources[0].statistics.hash != dropped.sources[0].statistics.hash


# --- layouts of TFDS ---------------------------------------------


def test_layouts_of_tfds_are_supported_or_named(write, tmp_path):
    directory = write()
    for version in ("0.1.0", "1.2.0", "1.10.0"):
        shutil.copytree(directory, tmp_path / "builder" / "low_res" / version)
    assert DatasetInfo.read(tmp_path / "builder" / "low_res").directory.name == "1.10.0"
    with pytest.raises(DatasetNotFoundError, match=r"has no dataset_info\.json itself, but low_res below it has: name that"):
        DatasetInfo.read(tmp_path / "builder")
    for split in ("train[:90%]", "train+val", "train[10:]"):
        with pytest.raises(DatasetNotFoundError, match=r"TFDS's syntax for parts and sums of splits, .* name one split \(train\)"):
            RLDSDataset(directory, split)
    info = directory / "dataset_info.json"
    good = info.read_text()
    info.write_text(good.replace('"{DATASET}', '"shards/{DATASET}'))
    with pytest.raises(DataError, match="split 'train' has its shards in a folder"):
        DatasetInfo.read(directory)
    info.write_text(good)
    (shard,) = directory.glob("*.tfrecord*")
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    for index in directory.glob("record_index*"):
        index.unlink()
    with pytest.raises(DataError, match="a Git LFS pointer, not the file itself"):
        RLDSDataset(directory)
