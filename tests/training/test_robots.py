"""One policy, several robots: trained, saved and loaded as in a run, each robot keeps its own units."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from fabricated_robots import write_robot

from data_pipelines.config import DatasetConfig
from data_pipelines.rlds.dataset import RLDSDataset
from eval.policies import Observations
from vpp_jax.cli.main import main
from vpp_jax.config import ConfigError, to_dict
from vpp_jax.serving.policy_runner import load_policy
from vpp_jax.training.checkpoints import Checkpoints
from vpp_jax.training.loop import train
from vpp_jax.training.robots import UnknownRobotError
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.state import TrainState

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def video(micro_config, tmp_path_factory):
    """A work directory of stage video with random parameters."""
    config = micro_config("video")
    stage, rng = make_stage(config), np.random.default_rng(0)
    params = {name: (0.1 * rng.standard_normal(spec.shape)).astype(np.float32) for name, spec in stage.abstract_trainable().items()}
    frozen = {name: jnp.asarray(0.1 * rng.standard_normal(spec.shape), spec.dtype) for name, spec in stage.abstract_frozen().items()}
    directory = tmp_path_factory.mktemp("video")
    checkpoints = Checkpoints(directory / "checkpoints", max_to_keep=1)
    checkpoints.save_frozen(frozen)
    about = {"stage": "video", "config": to_dict(config), "config_hash": "x", "latent_scaling_factor": 0.5}
    checkpoints.save(1, TrainState(jnp.int32(1), params, {}, {}), about, None)
    checkpoints.close()
    return directory


@pytest.fixture(scope="module")
def policy_config(micro_config, video):
    """(paths of datasets) -> configuration of stage policy on them."""

    def configured(*paths, **data):
        config = micro_config("policy")
        members = tuple(DatasetConfig(str(path), path.name) for path in paths)
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, **{"datasets": members, "observation_stride": 2, **data}),
            init=dataclasses.replace(config.init, video=str(video)),
            train=dataclasses.replace(config.train, steps=2),
        )

    return configured


@pytest.fixture(scope="module")
def two_scales(policy_config, tmp_path_factory):
    """The work directory of a policy of two robots, whose actions have scales 1 and 100."""
    root = tmp_path_factory.mktemp("scales")
    paths = [write_robot(root / "small"), write_robot(root / "large", scale=100.0, signed_dimensions=[6])]
    assert train(make_stage(policy_config(*paths)), root / "run").finished
    return root


def observed(count=1):
    rng = np.random.default_rng(3)
    images = {view: rng.integers(0, 255, (count, 40, 50, 3), np.uint8) for view in ("primary", "wrist")}
    return Observations(images, rng.normal(size=(count, 15)).astype(np.float32), ["push it"] * count)


@pytest.mark.parametrize("name", ["small", "large"])
def test_each_robot_gets_its_own_units_back(two_scales, name):
    policy = load_policy(two_scales / "run", robot=name)
    episodes = list(RLDSDataset(two_scales / name))
    for column, normalizer in (("action", policy.robot.action), ("observation/state", policy.robot.proprio)):
        raw = np.concatenate([episode.column(column) for episode in episodes])
        np.testing.assert_allclose(normalizer.forward(raw).std(0), 1, rtol=1e-4)
        np.testing.assert_allclose(normalizer.inverse(normalizer.forward(raw)), raw, rtol=1e-6, atol=1e-6 * np.abs(raw).max())
    about = policy.metadata
    assert (about.robot, about.action_mode, about.statistics_hash) == (name, "relative", policy.robot.statistics_hash)
    chunk = policy.act(observed(), np.zeros(1, np.uint32))
    normalised = policy._act(policy.params, *policy.inputs(observed()), np.zeros(1, np.uint32))
    expected = np.asarray(normalised) * policy.robot.action.scale + policy.robot.action.shift
    np.testing.assert_allclose(chunk[..., :6], expected[..., :6], rtol=1e-6)
    assert (set(np.unique(chunk[..., 6])) <= {-1.0, 1.0}) == (name == "large")


def test_without_a_name_or_with_a_wrong_one_nothing_is_loaded(two_scales, tmp_path, capsys):
    with pytest.raises(UnknownRobotError, match=r"trained on 2 robots \(small, large\): choose one with --robot=NAME"):
        load_policy(two_scales / "run")
    with pytest.raises(UnknownRobotError, match=r"not trained on a robot 'larg', did you mean 'large'\?; it knows small, large"):
        load_policy(two_scales / "run", robot="larg")
    place = f"--checkpoint={two_scales / 'run'}"
    assert main(["eval", "calvin", place, f"--out={tmp_path / 'e'}", "--sequences=1"]) == 1
    assert main(["convert", "export", place, f"--out={tmp_path / 'none'}"]) == 1
    assert capsys.readouterr().err.count("choose one with --robot=NAME") == 2
    assert main(["convert", "export", place, f"--out={tmp_path / 'out'}", "--robot=large"]) == 0
    written = json.loads((tmp_path / "out" / "robot.json").read_text())
    assert (written["spec"]["name"], min(written["action"]["scale"]) > 50) == ("large", True)


def test_acting_reads_the_checkpoint_and_not_the_registry(policy_config, tmp_path, monkeypatch):
    path = write_robot(tmp_path / "calvin_mujoco", action_mode="absolute")
    assert train(make_stage(policy_config(path)), tmp_path / "run").finished
    (path / "robot.json").unlink()
    monkeypatch.setattr("data_pipelines.openx.registry.REGISTRY", {})
    policy = load_policy(tmp_path / "run")
    assert (policy.metadata.robot, policy.metadata.action_mode) == ("calvin_mujoco", "absolute")
    assert np.isfinite(policy.act(observed(), np.zeros(1, np.uint32))).all()


def test_a_run_does_not_resume_on_another_description(policy_config, tmp_path):
    path = write_robot(tmp_path / "arm")
    config = policy_config(path)
    assert train(make_stage(config), tmp_path / "run").finished
    tree = json.loads((path / "robot.json").read_text())
    (path / "robot.json").write_text(json.dumps(tree | {"cameras": {"primary": "observation/wrist", "wrist": "observation/primary"}}))
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3))
    with pytest.raises(ConfigError, match=r"robot 'arm' was described otherwise: cameras\.primary was 'observation/primary'"):
        train(make_stage(longer), tmp_path / "run")


def test_names_of_robots_differ(policy_config, tmp_path):
    with pytest.raises(ConfigError, match="has calvin_mujoco more than once"):
        policy_config(tmp_path / "a" / "calvin_mujoco", tmp_path / "b" / "calvin_mujoco")
