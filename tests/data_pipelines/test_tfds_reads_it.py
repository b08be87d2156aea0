"""TFDS and TensorFlow read what we write, we read what they write, and field names equal those of `rlds`.

One subprocess: TensorFlow is slow to import.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import write_every_feature

from data_pipelines.rlds import images
from data_pipelines.rlds.dataset import RLDSDataset

PROGRAM = """
import json, sys
from unittest.mock import MagicMock
import numpy as np
sys.modules.setdefault("reverb", MagicMock())  # imported by rlds for replay buffers only; has no wheel
import tensorflow as tf
import tensorflow_datasets as tfds
import rlds
from data_pipelines.rlds import schema
from data_pipelines.rlds.dataset import RLDSDataset

names = {"STEPS": schema.STEPS, "OBSERVATION": schema.OBSERVATION, "ACTION": schema.ACTION, "REWARD": schema.REWARD,
         "DISCOUNT": schema.DISCOUNT, "IS_FIRST": schema.IS_FIRST, "IS_LAST": schema.IS_LAST, "IS_TERMINAL": schema.IS_TERMINAL}
assert {name: getattr(rlds, name) for name in names} == names

builder = tfds.builder_from_directory(sys.argv[1])
builder.info.features.save_config(sys.argv[2])
found = {"name": builder.name, "version": str(builder.version), "splits": {}}
for split in builder.info.splits:
    ours = RLDSDataset(sys.argv[1], split)
    count = 0
    for theirs, episode in zip(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)), ours, strict=True):
        steps = list(theirs["steps"])
        assert len(steps) == len(episode)
        for name in ("action", "action_executed", "reward", "discount", "is_first", "is_last", "is_terminal"):
            np.testing.assert_array_equal(np.stack([step[name] for step in steps]), episode.column(name))
        for name in ("robot_obs", "scene_obs"):
            np.testing.assert_array_equal(np.stack([step["observation"][name] for step in steps]), episode.column(f"observation/{name}"))
        assert [step["language_instruction"].decode() for step in steps] == episode.column("language_instruction")
        for camera in ("rgb_static", "rgb_gripper"):
            theirs_image, our_image = steps[-1]["observation"][camera], episode.frame(f"observation/{camera}", len(steps) - 1)
            assert theirs_image.shape == our_image.shape
            assert np.abs(theirs_image.astype(int) - our_image).mean() <= 4  # TensorFlow decodes with its fast, rough transform ...
            exact = tf.io.decode_jpeg(episode.encoded(f"observation/{camera}", len(steps) - 1), dct_method="INTEGER_ACCURATE")
            np.testing.assert_array_equal(exact, our_image)  # ... unless told otherwise
        assert theirs["episode_metadata"]["scene"].decode() == episode.metadata("episode_metadata/scene")
        assert theirs["episode_metadata"]["seed"] == episode.metadata("episode_metadata/seed")
        count += 1
    found["splits"][split] = [count, builder.info.splits[split].num_examples]
print("RESULT" + json.dumps(found))

import pathlib
import write_every_feature
write_every_feature.main(pathlib.Path(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def tfds(built, project, tmp_path_factory):
    """Output of the program, and the directories of our features rewritten by TFDS and of an episode written by TFDS."""
    rewritten, every = tmp_path_factory.mktemp("features"), tmp_path_factory.mktemp("every") / "every"
    environment = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(project))),
    }
    command = [sys.executable, "-c", PROGRAM, str(built), str(rewritten), str(every)]
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout, rewritten, every


@pytest.mark.medium
def test_tfds_opens_our_directory(tfds, built):
    printed, rewritten, _ = tfds
    found = json.loads(printed.split("RESULT")[1])
    assert found["name"] == "calvin_mujoco"
    assert found["version"] == "1.0.0"
    assert found["splits"] == {"train": [12, 12], "val": [4, 4]}
    # what TFDS would write for these features is what we wrote
    assert json.loads((rewritten / "features.json").read_text()) == json.loads((built / "features.json").read_text())


@pytest.mark.medium
def test_every_feature_of_tfds_comes_back(tfds):
    directory = tfds[2]
    steps, whole = pickle.loads((directory / "expected.pickle").read_bytes())
    dataset = RLDSDataset(directory)
    (episode,), schema = dataset, dataset.schema
    assert len(episode) == write_every_feature.STEPS

    def check(name, feature, got, expected):
        if feature.kind == "image":
            if feature.is_colour:
                np.testing.assert_allclose(images.decode(got), expected, atol=2)
            else:
                assert got.startswith(images.PNG_MAGIC)
        elif feature.kind == "text":
            assert got == expected
        else:
            assert got.dtype == feature.dtype, name
            np.testing.assert_array_equal(got, np.asarray(expected, feature.dtype), name)

    def walk(name, feature, got, expected, levels):
        if not levels:
            return check(name, feature, got, expected)
        assert len(got) == len(expected), name
        for one, other in zip(got, expected, strict=True):
            walk(name, feature, one, other, levels - 1)

    def given(tree, name):
        """The value `name`, whose joined name may go through dictionaries and lists of them."""
        if isinstance(tree, list):
            return [given(one, name) for one in tree]
        if name in tree:
            return tree[name]
        first, _, rest = name.partition("/")
        return given(tree[first], rest)

    for name, feature in schema.steps.items():
        assert feature.kind != "unsupported", name
        expected = [given(step, name) for step in steps]
        if name == "box":
            expected = [list(box) for box in expected]
        walk(name, feature, episode.column(name), expected, 1 + len(feature.sequence))
    assert set(schema.episode) == {f"meta/{name}" for name in whole} - {"meta/nothing"}
    for name, feature in schema.episode.items():
        walk(name, feature, episode.metadata(name), given(whole, name.removeprefix("meta/")), len(feature.sequence))
    assert schema.cameras == ("jpeg", "png")


def test_nothing_on_the_training_path_imports_tensorflow_or_a_simulator(project):
    check = (
        "import sys, data_pipelines.sources, data_pipelines.statistics, data_pipelines.builders.calvin_mujoco, "
        "data_pipelines.builders.human_video, "
        "data_pipelines.builders.sharded\n"
        "bad = {'jax', 'tensorflow', 'tensorflow_datasets', 'torch', 'mujoco', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "import data_pipelines.loader\n"
        "bad = {'tensorflow', 'tensorflow_datasets', 'torch', 'mujoco'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    run = subprocess.run([sys.executable, "-c", check], cwd=project, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
