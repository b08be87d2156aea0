"""Datasets that a file describes: read like those of the registry, without an edit of the package."""

import json

import numpy as np
import pytest

from data_pipelines.builders import writer
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.errors import DataError
from data_pipelines.openx.registry import REGISTRY, dataset_spec
from data_pipelines.openx.robot_spec import RobotSpec
from data_pipelines.openx.robots import find_robot, robot_of
from data_pipelines.rlds import images
from data_pipelines.rlds.schema import Feature, Schema
from data_pipelines.rlds.tfrecord import write_records
from vpp_jax.cli import data as command

# What a person writes next to each dataset, and the columns of its features.json: name -> shape (() is text, None an image).
LIBERO = """
control_hz = 20
action = "action[0:6] + signed_closed(action[6:7])"
proprio = "observation/state[0:8]"
rotation = "axis_angle"
[cameras]
primary = "observation/image"
wrist = "observation/wrist_image"
"""
DROID_100 = """
control_hz = 15
action = "action_dict/cartesian_velocity[0:6] + closed(action_dict/gripper_position[0:1])"
proprio = "observation/cartesian_position[0:6] + observation/gripper_position[0:1]"
instruction_keys = ["language_instruction", "language_instruction_2"]
[cameras]
primary = "observation/exterior_image_1_left"
secondary = "observation/exterior_image_2_left"
wrist = "observation/wrist_image_left"
[episode_filter]
removes = "failures"
key = "episode_metadata/file_path"
contains = "success"
"""
BRIDGE_OLD = """
control_hz = 5
action = "action/world_vector[0:3] + action/rotation_delta[0:3] + open(action/open_gripper[0:1])"
proprio = "observation/state[0:7]"
instruction_keys = ["observation/natural_language_instruction"]
clip_sampling = "whole"
cameras = {primary = "observation/image"}
"""
QUT = """
control_hz = 30
action = "action[0:3] + euler(action[3:7]) + open(action[7:8])"
proprio = "observation/state[0:8]"
cameras = {primary = "observation/image", wrist = "observation/wrist_image"}
"""
HAND = """
control_hz = 20
action = "action"
action_width = 18
action_mode = "absolute"
normalization = "quantile"
cameras = {primary = "front"}
clip_views = {primary = 1.0}
"""
COLUMNS = {
    "libero_spatial": (LIBERO, {"observation/image": None, "observation/wrist_image": None, "action": 7, "observation/state": 8}, 7, 8),
    "droid_100": (
        DROID_100,
        {
            "observation/exterior_image_1_left": None,
            "observation/exterior_image_2_left": None,
            "observation/wrist_image_left": None,
            "action_dict/cartesian_velocity": 6,
            "action_dict/gripper_position": 1,
            "observation/cartesian_position": 6,
            "observation/gripper_position": 1,
        },
        7,
        7,
    ),
    "bridge": (
        BRIDGE_OLD,
        {
            "observation/image": None,
            "action/world_vector": 3,
            "action/rotation_delta": 3,
            "action/open_gripper": 1,
            "observation/state": 7,
        },
        7,
        7,
    ),
    "qut_dexterous_manpulation": (
        QUT,
        {"observation/image": None, "observation/wrist_image": None, "action": 8, "observation/state": 8},
        7,
        8,
    ),
    "our_hand": (HAND, {"front": None, "action": 18}, 18, 0),
}


def write(directory, name, columns, instruction="language_instruction", lengths=(5, 4)):
    directory.mkdir(parents=True)
    episode = {"episode_metadata/file_path": Feature("text")} if name == "droid_100" else {}
    kinds = {
        key: Feature("image", "uint8", (8, 8, 3), "jpeg") if width is None else Feature("tensor", "float32", (width,))
        for key, width in columns.items()
    }
    schema = Schema(steps={**kinds, instruction: Feature("text"), "is_first": Feature("tensor", "bool")}, episode=episode)
    rng, payloads = np.random.default_rng(0), []
    for number, length in enumerate(lengths):
        image = [images.encode_jpeg(np.full((8, 8, 3), 40 * number + 20, np.uint8))] * length
        steps = {key: image if width is None else rng.normal(size=(length, width)).astype("f") for key, width in columns.items()}
        steps |= {instruction: [b"push it"] * length, "is_first": np.arange(length) == 0}
        whole = {key: [b"/failure/" if number == 1 else b"/success/"] for key in episode}
        payloads.append(writer.examples.encode({**whole, **{f"steps/{key}": values for key, values in steps.items()}}))
    file = directory / writer.shard_name(name, "train", 0, 1)
    writer.write_metadata(
        directory, schema, name, directory.name, {"train": writer.WrittenSplit((len(lengths),), write_records(file, payloads))}, "test"
    )
    return directory


@pytest.mark.parametrize("name", COLUMNS)
def test_a_dataset_needs_a_file_alone(name, tmp_path, tokenizer, capsys):
    text, columns, width, state = COLUMNS[name]
    instruction = "observation/natural_language_instruction" if name == "bridge" else "language_instruction"
    directory = write(tmp_path / name / "0.1.0", name, columns, instruction)
    (tmp_path / name / "robot.toml").write_text(text)  # above the versions
    config = DataConfig(datasets=(DatasetConfig(str(directory), name),), clip_frames=2, action_horizon=3)
    assert clip_source(config, 8, tokenizer, 6)[0]["video"].shape == (2, 8, 8, 3)
    source = policy_source(config, 8, tokenizer, 6)
    example = source[0]
    assert (example["action"].shape, example["proprio"].shape) == ((3, width), (state,))
    assert len(source) == (5 if name == "droid_100" else 9)  # the failure is filtered
    metadata = source.metadata()["datasets"][0]
    assert RobotSpec.from_json(json.loads(json.dumps(metadata["robot"])), "checkpoint") == robot_of(config.datasets[0])
    for verb in ("index", "stats", "inspect"):
        assert command.main([verb, str(directory)]) == 0
    assert f"robot {name}: views primary=" in capsys.readouterr().out


def test_a_gripper_is_not_normalised_and_is_1_where_open(tmp_path, tokenizer):
    text, columns, *_ = COLUMNS["libero_spatial"]
    directory = write(tmp_path / "libero", "libero", columns)
    spec = find_robot(directory, "libero", json.dumps({"cameras": {"primary": "observation/image"}, "action": "closed(action[6:7])"}))
    assert (spec.action_width, spec.normalized, spec.name) == (1, (False,), "libero")
    (directory / "robot.json").write_text(json.dumps({"name": "arm", "cameras": {}, "action": "action[0:7]"}))
    assert find_robot(directory).name == "arm"
    (directory / "robot.toml").write_text(text)  # goes before JSON
    assert find_robot(directory, "mine").normalized == (True,) * 6 + (False,)
    assert find_robot(directory).name == "libero"


def test_every_row_survives_json():
    for spec in REGISTRY.values():
        assert RobotSpec.from_json(json.loads(json.dumps(spec.to_json())), "test") == spec


def test_a_row_under_another_name(tmp_path):
    spec = find_robot(tmp_path / "nowhere", "our_kuka", "kuka")
    assert (spec.name, spec.episode_filter) == ("our_kuka", dataset_spec("kuka").episode_filter)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"cameras": {}, "action": "action[0:7', "is not JSON"),
        ('{"cameras": {}, "acton": "action[0:7]"}', "unknown configuration key 'acton', did you mean 'action'"),
        ('{"cameras": {}, "action": "action"}', "say its width in action_width"),
        ('{"cameras": {}, "action": "shut(action[0:1])"}', "'shut.action.0:1..' is not one of KEY"),
        ('{"cameras": {}, "action": "action[0:7]", "action_width": 6}', "action_width is 6, but"),
        ('{"cameras": {}, "normalization": "minmax"}', "expected one of none, mean_std, quantile"),
        ('{"cameras": {"primary": 3}}', "cameras.primary is 3"),
        ('{"cameras": {}, "policy_views": ["wrist"]}', r"views \['wrist'\] are not in `cameras`"),
        ('{"control_hz": 3}', "cameras"),
        ("missing.toml", "missing.toml does not exist"),
        ("kukka", "did you mean 'kuka'"),
    ],
)
def test_what_is_wrong_in_a_description(text, problem, tmp_path):
    with pytest.raises(DataError, match=problem):
        find_robot(tmp_path, "mine", text)
