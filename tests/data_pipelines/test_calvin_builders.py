"""Play from the simulator, and the converter of the recorded dataset on a miniature of its layout."""

import itertools
from pathlib import Path

import fake_table
import numpy as np
import pytest

from data_pipelines.builders import calvin_mujoco, sharded
from data_pipelines.builders.calvin_mujoco import Settings
from data_pipelines.builders.calvin_play import CalvinPlayRecipe
from data_pipelines.builders.calvin_recorded import CalvinRecordedRecipe, RecordedSettings, in_standard_order, read_windows
from data_pipelines.errors import DataError
from data_pipelines.openx.registry import dataset_spec
from data_pipelines.rlds.dataset import RLDSDataset
from eval.envs.calvin_mujoco.limits import VERSION


class PlayTable(fake_table.FakeTable):
    """The fake simulator with consecutive tasks."""

    def reset(self, *, task, scene, seed, render):
        super().reset(task="go_left", scene=scene, seed=seed, render=render)
        self._hopeless = False

    def begin_task(self, task):
        super().begin_task(task)
        self._goal = {"go_left": -1.0, "go_right": 1.0}[task]


def make_play_table(settings):
    return PlayTable(settings)


def feasible(environment):
    return {"left": ["go_left"]} if environment._place > 0 else {"right": ["go_right"]}


def play(**changes) -> CalvinPlayRecipe:
    settings = Settings(**{"scenes": ("A", "B"), "hours": 0.01, "static_size": 16, "gripper_size": 16, **changes})
    return CalvinPlayRecipe(
        settings, make_play_table, fake_table.expert, fake_table.instructions, fake_table.origin, feasible, run_steps=120
    )


def digests(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.tfrecord-*"))}


def test_play_chains_tasks_without_resets(tmp_path):
    report = sharded.build(play(), tmp_path / "data", workers=0)
    dataset = RLDSDataset(tmp_path / "data")
    assert len(dataset) == report["episodes"]["train"] == sum(report["kept"].values())
    assert dataset.recorded_in == {
        "simulator": "calvin_mujoco",
        "version": VERSION,
        "quality": "no_shadows",
        "static_size": 16,
        "gripper_size": 16,
    }
    runs: dict[str, list] = {}
    for episode in dataset:
        runs.setdefault(episode.text("episode_metadata/run"), []).append(episode)
    assert len(runs) == round(0.01 * 3600 * 30 / 240) * 2
    for segments in runs.values():
        assert [int(e.metadata("episode_metadata/segment")) for e in segments] == list(range(len(segments)))
        for one, two in itertools.pairwise(segments):
            steps = len(one.column("action")) - 1  # the last row only records the result
            assert int(two.metadata("episode_metadata/start_step")) == int(one.metadata("episode_metadata/start_step")) + steps
            np.testing.assert_array_equal(one.column("observation/robot_obs")[-1], two.column("observation/robot_obs")[0])
            assert one.text("episode_metadata/task") != two.text("episode_metadata/task")
        for episode in segments:
            task = episode.text("episode_metadata/task")
            assert episode.text("language_instruction") in fake_table.INSTRUCTIONS[task]
            assert episode.column("reward").sum() == 1


def test_another_version_of_the_environment_does_not_finish_a_build(tmp_path, monkeypatch):
    sharded.build(play(hours=0.002), tmp_path, workers=0)
    monkeypatch.setattr(calvin_mujoco, "VERSION", "older")
    with pytest.raises(DataError, match=f"environment_version: {VERSION}, now older"):
        sharded.build(play(hours=0.002), tmp_path, workers=0)


def test_play_does_not_depend_on_the_number_of_workers(tmp_path):
    sharded.build(play(), tmp_path / "here", workers=0)
    recipe = play(episodes_per_shard=32)
    sharded.build(recipe, tmp_path / "other_shards", workers=0)

    def episodes(directory):
        return {e.text("episode_metadata/episode_id"): e.column("action").tobytes() for e in RLDSDataset(directory)}

    assert episodes(tmp_path / "here") == episodes(tmp_path / "other_shards")


# --- the recorded dataset


@pytest.fixture
def recorded(tmp_path):
    """A miniature with frames 10...39 (scene B up to 24, then C) and two windows per split."""
    rng = np.random.default_rng(0)
    for folder in ("training", "validation"):
        directory = tmp_path / "calvin" / folder
        (directory / "lang_annotations").mkdir(parents=True)
        for number in range(10, 40):
            np.savez(
                directory / f"episode_{number:07d}.npz",
                rgb_static=np.full((200, 200, 3), number, np.uint8),
                rgb_gripper=np.full((84, 84, 3), number, np.uint8),
                robot_obs=rng.normal(size=15),
                scene_obs=np.arange(24.0),
                actions=rng.normal(size=7),
                rel_actions=np.full(7, number / 100),
                depth_static=np.zeros((200, 200), np.float32),
            )
        content = {
            "language": {"ann": ["lift the red thing", "shut it"], "task": ["lift_red_block_table", "close_drawer"], "emb": None},
            "info": {"indx": [(12, 17), (26, 33)], "episodes": []},
        }
        np.save(directory / "lang_annotations" / "auto_lang_ann.npy", content, allow_pickle=True)
    np.save(tmp_path / "calvin" / "training" / "scene_info.npy", {"calvin_scene_B": [0, 24], "calvin_scene_C": [25, 99]}, allow_pickle=True)
    return tmp_path / "calvin"


def test_recorded_windows_become_episodes(recorded, tmp_path):
    report = sharded.build(CalvinRecordedRecipe(RecordedSettings(source=str(recorded))), tmp_path / "out", workers=0)
    assert report["episodes"] == {"train": 2, "val": 2}
    first, second = dataset = RLDSDataset(tmp_path / "out")
    assert dataset.recorded_in == {"simulator": "calvin_pybullet", "static_size": 200, "gripper_size": 84}
    assert [episode.text("episode_metadata/scene") for episode in (first, second)] == ["B", "C"]
    assert first.text("language_instruction") == "lift the red thing"
    np.testing.assert_allclose(first.column("action")[:, 0], np.arange(12, 17) / 100, atol=1e-6)  # the end is exclusive
    np.testing.assert_array_equal(first.column("is_first"), [True, False, False, False, False])
    np.testing.assert_array_equal(first.column("is_last"), [False, False, False, False, True])
    assert first.column("reward").tolist() == [0, 0, 0, 0, 1]
    blue, red, pink = np.arange(24.0)[6:].reshape(3, 6)  # order of scene C
    np.testing.assert_array_equal(second.column("observation/scene_obs")[0][6:], np.concatenate([red, blue, pink]))
    assert {e.text("episode_metadata/scene") for e in RLDSDataset(tmp_path / "out", "val")} == {"D"}


def test_recorded_and_simulated_data_have_the_same_step_columns(recorded):
    recorded_schema = CalvinRecordedRecipe(RecordedSettings(source=str(recorded))).schema()
    assert recorded_schema.steps.keys() == play().schema().steps.keys()


def test_block_orders():
    poses = {"red": 1.0, "blue": 2.0, "pink": 3.0}
    for scene, order in (("A", ("pink", "blue", "red")), ("B", ("red", "blue", "pink")), ("C", ("blue", "red", "pink"))):
        scene_obs = np.concatenate([np.zeros(6), *(np.full(6, poses[colour]) for colour in order)])
        np.testing.assert_array_equal(in_standard_order(scene_obs, scene)[6::6], [1.0, 2.0, 3.0])


def test_what_is_wrong_with_a_recorded_dataset_is_named(recorded, tmp_path):
    with pytest.raises(DataError, match="--source is ''"):
        RecordedSettings()
    with pytest.raises(DataError, match=r"auto_lang_ann\.npy is missing"):
        read_windows(RecordedSettings(source=str(recorded), language="lang_clip"), "train")
    assert len(read_windows(RecordedSettings(source=str(recorded), limit=1), "train")) == 1
    (recorded / "training" / "episode_0000014.npz").unlink()
    with pytest.raises(DataError, match=r"episode_0000014\.npz does not exist"):
        sharded.build(CalvinRecordedRecipe(RecordedSettings(source=str(recorded))), tmp_path / "out", workers=0)


def test_converted_data_can_be_trained_on(recorded, tmp_path):
    sharded.build(CalvinRecordedRecipe(RecordedSettings(source=str(recorded))), tmp_path / "out", workers=0)
    dataset = RLDSDataset(tmp_path / "out")
    spec = dataset_spec(dataset.name)
    assert spec.action_width == dataset.schema.steps[spec.action].shape[0]
    assert spec.camera("wrist", tuple(dataset.schema.steps), "here") == "observation/rgb_gripper"


def damaged_frame(path: Path, change: dict) -> None:
    with np.load(path) as content:
        arrays = dict(content)
    arrays |= {key: value(arrays[key]) for key, value in change.items() if value}
    np.savez(path, **{key: value for key, value in arrays.items() if change.get(key, True)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "not a CALVIN frame, or it is cut off or damaged"),
        (lambda path: path.write_bytes(b""), "not a CALVIN frame, or it is cut off or damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:100] + bytes(500) + path.read_bytes()[600:]), "cut off or damaged"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.unlink(), "does not exist: a window of the annotations names this frame"),
        (lambda path: (path.unlink(), path.mkdir()), "not a CALVIN frame"),
        (lambda path: damaged_frame(path, {"rel_actions": lambda a: a * np.nan}), "rel_actions has NaN or infinite values"),
        (lambda path: damaged_frame(path, {"robot_obs": lambda a: a + np.inf}), "robot_obs has NaN or infinite values"),
        (lambda path: damaged_frame(path, {"rgb_static": lambda a: a / 255}), "rgb_static is float64, expected uint8"),
        (
            lambda path: damaged_frame(path, {"rel_actions": lambda a: a.astype(str)}),
            "rel_actions is <U32, expected floating-point numbers",
        ),
        (
            lambda path: damaged_frame(path, {"rgb_gripper": lambda a: a[:, :80]}),
            r"rgb_gripper has shape \[84, 80, 3\], expected",
        ),
        (lambda path: damaged_frame(path, {"rel_actions": None, "scene_obs": None}), "has no scene_obs, rel_actions, expected rgb_static"),
    ],
)
def test_a_frame_that_cannot_be_used_is_named_with_its_window(recorded, tmp_path, change, problem):
    change(recorded / "training" / "episode_0000014.npz")
    with pytest.raises(DataError, match=rf"(?s)episode_0000014\.npz.*{problem}.*\(window 0 of split train, frames 12 to 16\)"):
        sharded.build(CalvinRecordedRecipe(RecordedSettings(source=str(recorded))), tmp_path / "out", workers=0)


def annotate(recorded: Path, **language) -> None:
    content = {"language": {"ann": ["lift", "shut it"], "task": ["lift_red_block_table", "close_drawer"]} | language}
    content["info"] = {"indx": language.pop("indx", [(12, 17), (26, 33)])}
    np.save(recorded / "training" / "lang_annotations" / "auto_lang_ann.npy", content, allow_pickle=True)


def test_annotations_may_be_bytes_or_several_texts(recorded, tmp_path):
    annotate(recorded, ann=[b"open the drawer", ["shut it", b"close the drawer", "shut it", ""]], task=[b"open_drawer", "close_drawer"])
    windows = read_windows(RecordedSettings(source=str(recorded)), "train")
    assert [window.instructions for window in windows] == [("open the drawer",), ("shut it", "close the drawer")]
    assert windows[0].task == "open_drawer"
    annotate(recorded, ann=np.array([["lift it", "raise it"], ["shut it", "close it"]]))
    assert [window.instructions for window in read_windows(RecordedSettings(source=str(recorded)), "train")] == [
        ("lift it", "raise it"),
        ("shut it", "close it"),
    ]
    sharded.build(CalvinRecordedRecipe(RecordedSettings(source=str(recorded))), tmp_path / "out", workers=0)
    episode = RLDSDataset(tmp_path / "out")[0]
    assert episode.texts("episode_metadata/instructions") == ("lift it", "raise it")
    assert episode.texts("language_instruction") == ("lift it",)


@pytest.mark.parametrize(
    ("language", "problem"),
    [
        ({"ann": ["lift", ""]}, r"window 1, language\.ann: the instruction is empty"),
        ({"ann": ["lift", []]}, r"window 1, language\.ann: the instruction is empty"),
        ({"ann": ["lift", np.nan]}, r"window 1, language\.ann: expected a text or a list of texts, found nan \(float\)"),
        ({"ann": [b"caf\xe9", "shut"]}, r"window 0, language\.ann: bytes that are not UTF-8 at 3"),
        ({"task": ["a", ["b", "c"]]}, r"window 1, language\.task: 2 texts, expected one"),
        ({"indx": [(12, 17), (30, 30)]}, "window 1: frames 30 to 29, expected a start and a later end"),
        ({"indx": [(-3, 17), (26, 33)]}, "window 0: frames -3 to 16"),
        ({"ann": [], "task": [], "indx": []}, "has no window"),
    ],
)
def test_annotations_that_are_no_instructions_are_named(recorded, language, problem):
    annotate(recorded, **language)
    with pytest.raises(DataError, match=rf"auto_lang_ann\.npy.*{problem}"):
        read_windows(RecordedSettings(source=str(recorded)), "train")
