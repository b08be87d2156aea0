"""Building a dataset: the bytes do not depend on the workers, an interrupted build resumes, skipped episodes are reported."""

import hashlib
import json
from pathlib import Path

import fake_table
import numpy as np
import pytest

from data_pipelines.builders import sharded
from data_pipelines.builders.calvin_mujoco import Job, Settings, real_environment, record_attempt
from data_pipelines.errors import DataError
from data_pipelines.rlds.dataset import RLDSDataset
from vpp_jax.common.errors import ConfigError


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.suffix in (".json", "") or ".tfrecord" in path.name
        if not path.name.startswith(("record_index", "statistics"))
    }


def test_episodes_say_what_happened(built):
    for split, count in (("train", 12), ("val", 4)):
        dataset = RLDSDataset(built, split)
        assert len(dataset) == count
    seen = set()
    for episode in dataset:
        scene, task = episode.metadata("episode_metadata/scene"), episode.metadata("episode_metadata/task")
        seen.add((scene, task))
        assert episode.text("language_instruction") in fake_table.INSTRUCTIONS[task]
        assert episode.metadata("episode_metadata/episode_id") == f"val/{scene}/{task}/0"
        assert episode.metadata("episode_metadata/seed") % 3 != 0  # those the expert gives up on
        assert episode.metadata("episode_metadata/renderer") == "numbers"
        action, executed = episode.column("action"), episode.column("action_executed")
        state, reward = episode.column("observation/robot_obs"), episode.column("reward")
        # what was executed is what moved the dot, and the label differs from it by the noise on xyz only
        np.testing.assert_allclose(np.diff(state[:, 0]), 0.1 * executed[:-1, 0], atol=1e-5)
        np.testing.assert_array_equal(action[:, 3:], executed[:, 3:])
        moving = len(episode) - 4
        assert (np.abs(action[:moving, 0]) == 1).all()
        assert np.abs(executed).max() <= 1
        assert reward.tolist() == [0.0] * (moving - 1) + [1.0] + [0.0] * 4
        np.testing.assert_array_equal(action[moving:], [[0, 0, 0, 0, 0, 0, -1]] * 4)
        assert episode.column("is_last").tolist() == [False] * (len(episode) - 1) + [True]
        assert abs(int(episode.frame("observation/rgb_static", 0)[:, :, 1].max()) - ord(scene)) <= 12
    assert seen == {(scene, task) for scene in "AB" for task in ("go_left", "go_right")}


def test_report_counts_attempts(built):
    report = json.loads((built / "build_report.json").read_text())
    assert sum(report["kept"].values()) == 16
    assert report["episodes"] == {"train": 12, "val": 4}
    for group, share in report["kept_fraction"].items():
        assert share == report["kept"][group] / report["attempts"][group]
    assert min(report["kept_fraction"].values()) < 1  # one attempt in three is hopeless


def test_noise_has_the_requested_deviation_and_autocorrelation():
    plan = Settings(scenes=("A",), tasks=("never",), action_noise=0.2, noise_memory=0.7, static_size=8, gripper_size=8, max_steps=4000)
    executed = []

    class Endless(fake_table.FakeTable):
        def advance(self, action):
            executed.append(action.copy())
            return fake_table.Outcome(False, len(executed) == 4000, len(executed))

    assert record_attempt(Endless(plan), lambda table, rng: np.zeros(7), plan, Job("train", "A", "never", 0), ["x"], 1) is None
    noise = np.array(executed)
    np.testing.assert_allclose(noise[:, :3].std(0), 0.2, rtol=0.1)
    np.testing.assert_allclose([np.corrcoef(noise[1:, axis], noise[:-1, axis])[0, 1] for axis in range(3)], 0.7, atol=0.06)
    assert not noise[:, 3:].any()


def test_no_noise_executes_the_label(recipe, tmp_path):
    sharded.build(recipe(action_noise=0.0, episodes=1, val_episodes=0, scenes=("A",)), tmp_path / "quiet", workers=0)
    for episode in RLDSDataset(tmp_path / "quiet"):
        np.testing.assert_allclose(episode.column("action"), episode.column("action_executed"), atol=1e-6)


def test_the_number_of_workers_changes_nothing(recipe, built, tmp_path):
    report = sharded.build(recipe(), tmp_path / "parallel", workers=2)
    assert report["episodes"] == {"train": 12, "val": 4}
    assert digests(tmp_path / "parallel") == digests(built)


def test_interrupted_build_resumes(recipe, built, tmp_path, monkeypatch):
    directory, written = tmp_path / "data", []
    write = sharded.write_shard

    def interrupted(recipe, shard, directory):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.file)
        return write(recipe, shard, directory)

    monkeypatch.setattr(sharded, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sharded.build(recipe(), directory, workers=0)
    assert not (directory / "dataset_info.json").exists()
    lines = []
    monkeypatch.setattr(sharded, "write_shard", lambda *arguments: lines.append(arguments[1].file) or write(*arguments))
    sharded.build(recipe(), directory, workers=0)
    assert len(lines) == 2
    assert not set(lines) & set(written)
    assert digests(directory) == digests(built)
    sharded.build(recipe(), directory, workers=0)  # everything exists already
    assert len(lines) == 2
    victim = directory / written[0]
    victim.unlink()
    sharded.build(recipe(), directory, workers=0)
    assert lines[2:] == [written[0]]
    assert digests(directory) == digests(built)


def test_other_settings_are_not_mixed_in(recipe, tmp_path):
    small = {"episodes": 1, "val_episodes": 0, "scenes": ("A",)}
    sharded.build(recipe(**small), tmp_path / "data", workers=0)
    with pytest.raises(DataError, match=r"other settings \(seed: 0, now 7\)"):
        sharded.build(recipe(**small, seed=7), tmp_path / "data", workers=0)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="not empty and does not contain a build of calvin_mujoco"):
        sharded.build(recipe(**small), tmp_path / "photos", workers=0)


def test_unsolvable_task_is_an_error(recipe, tmp_path):
    with pytest.raises(DataError, match=r"none of 6 attempts succeeded \(A/never\)"):
        sharded.build(recipe(tasks=("never",), episodes=2, scenes=("A",), max_attempts=3), tmp_path / "data", workers=0)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="episodes is 0, expected at least 1"):
        Settings(episodes=0)
    with pytest.raises(DataError, match=r"stack_block, expected tasks among open_drawer.*blocks need --blocks"):
        real_environment(Settings(tasks=("open_drawer", "stack_block")))
    real_environment(Settings(tasks=("open_drawer", "stack_block"), blocks=True)).close()


@pytest.mark.medium
def test_the_real_table_is_recorded_alike_in_every_process(tmp_path):
    from data_pipelines.builders.calvin_mujoco import CalvinMujocoRecipe
    from eval.calvin import tasks
    from eval.envs.calvin_mujoco import instructions

    names = ("turn_on_led", "open_drawer")
    recipe = CalvinMujocoRecipe(Settings(scenes=("B",), tasks=names, episodes=1, static_size=32, gripper_size=32, episodes_per_shard=1))
    sharded.build(recipe, tmp_path / "here", workers=0)
    sharded.build(recipe, tmp_path / "there", workers=1)
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    for episode, name in zip(RLDSDataset(tmp_path / "here"), names, strict=True):
        instruction = episode.text("language_instruction")
        assert instruction in instructions.training_instructions(name)
        assert instruction != tasks.get_task(name).evaluation_instruction
        action, executed, state = (episode.column(key) for key in ("action", "action_executed", "observation/robot_obs"))
        assert np.abs(action[:, :6]).max() <= 1 + 1e-6
        assert set(action[:, 6]) <= {-1.0, 1.0}
        assert 0.05 < np.abs(action - executed)[:-4, :3].mean() < 0.5
        # over an episode the hand moves by the sum of the executed actions (2 cm each)
        np.testing.assert_allclose(state[-1, :3] - state[0, :3], 0.02 * executed[:-1, :3].sum(0), atol=0.05)
        assert episode.column("reward").sum() == 1
