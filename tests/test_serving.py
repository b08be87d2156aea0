"""Checkpoints as host-side functions: what they do to an observation before the models see it."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.openx.registry import dataset_spec
from data_pipelines.transforms import Normalizer, resize
from eval.policies import Observations, PolicyMetadata
from vpp_jax.policy import InstructionEmbedding
from vpp_jax.serving.policy_runner import PolicyRunner
from vpp_jax.serving.video_generator import VideoGenerator
from vpp_jax.training.robots import TrainedRobot


@pytest.mark.parametrize("antialias", [True, False])
def test_images_are_resized_as_in_training(micro_config, antialias, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)

    def config(stage):
        trained = micro_config(stage)
        return replace(trained, data=replace(trained.data, antialias=antialias))

    wanted = resize(image, 32, antialias)
    views = {"primary": "rgb_static", "wrist": "rgb_gripper"}
    robot = TrainedRobot(0, dataset_spec("calvin_mujoco"), views, 4, Normalizer.identity(7), Normalizer.identity(15), "", {})
    runner = PolicyRunner(config("policy"), {}, robot, PolicyMetadata({"primary": 32, "wrist": 32}, 7, 6, 4))
    embedding = InstructionEmbedding(np.zeros((1, 12, 16), np.float32), np.zeros((1, 16), np.float32))
    monkeypatch.setattr(runner, "_encode_instruction", lambda text: embedding)
    images, *_ = runner.inputs(Observations({"primary": image[None], "wrist": image[None]}, np.zeros((1, 15), np.float32), ["go"]))
    np.testing.assert_array_equal(images["wrist"][0], wanted)

    generator = VideoGenerator(config("video"), {})
    monkeypatch.setattr(generator, "_generate", lambda params, first, ids, mask, key: (first[:, None], True))
    np.testing.assert_array_equal(generator.generate(image, "go")[0], wanted)
