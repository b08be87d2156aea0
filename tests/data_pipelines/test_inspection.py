"""`vpp data`: reports, contact sheets and the commands."""

import json
import re

import fake_table
import numpy as np
import pytest
from PIL import Image

from data_pipelines import contact_sheet, inspection
from data_pipelines.builders.calvin_mujoco import CalvinMujocoRecipe, Settings
from data_pipelines.errors import DatasetNotFoundError
from data_pipelines.openx.registry import dataset_spec
from data_pipelines.openx.table import OPENX
from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset
from vpp_jax.cli import data as command
from vpp_jax.cli.main import UsageError


def test_report_of_a_sound_dataset(built, tmp_path):
    report = inspection.inspect_dataset(built, tmp_path)
    train, dataset = report["splits"]["train"], RLDSDataset(built)
    assert (train["shards"], train["shards_present"], train["shards_absent"]) == (3, 3, [])
    assert (train["episodes"], train["steps"], train["defects_total"], train["warnings"]) == (12, dataset.num_steps, 0, [])
    assert train["cameras"]["observation/rgb_static"]["sizes"] == {"24x24": 12}
    actions = np.concatenate([episode.column("action") for episode in dataset])
    found = train["numbers"]["action"]
    assert found["width"] == 7
    for row in ("min", "mean", "max"):
        np.testing.assert_allclose(found[row], getattr(actions, row)(0), atol=1e-6)
    assert train["instructions"]["language_instruction"]["distinct"] == len({episode.text("language_instruction") for episode in dataset})
    assert "12 episodes" in inspection.summary(report)


def test_defects_and_warnings(write_dataset):
    def spoil(episode, steps):
        if episode == 0:
            steps["action"][1, 2] = np.nan
        if episode == 1:
            steps["language_instruction"] = ["go", "", "go"]
        if episode == 2:
            steps["observation/rgb_static"] = [b"\xff\xd8 broken"] * 3
            steps["is_first"][:] = True

    directory = write_dataset([3, 3, 3, 3], spoil)
    report = inspection.inspect_dataset(directory)["splits"]["train"]
    text = "\n".join(report["defects"])
    assert report["defects_total"] == 3
    assert re.search(r"record 0, field 'action': NaN or infinite values at step 1", text)
    assert re.search(r"record 1, field 'language_instruction': empty instruction at step 1", text)
    assert re.search(r"record 2, field 'observation/rgb_static': image cannot be decoded", text)
    warnings = {warning["problem"]: warning["records"] for warning in report["warnings"]}
    assert warnings["field 'is_first' is set at other steps too"] == 1
    assert any("rgb_gripper': 4 of 4 images checked are blank" in problem for problem in warnings)  # uniformly grey images


def test_command_inspects_the_real_shard(bridge_dataset, tmp_path, capsys):
    outputs = {name: tmp_path / f"report.{name}" for name in ("json", "png")}
    directory = bridge_dataset / "1.0.0"
    files = ["--json", str(outputs["json"]), "--png", str(outputs["png"])]
    assert command.main(["inspect", str(directory), "--index_dir", str(tmp_path), *files]) == 0
    printed = capsys.readouterr().out
    assert "absent: bridge_dataset-val.tfrecord-00000-of-00001" in printed
    report = json.loads(outputs["json"].read_text())
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (val["shards_present"], val["shards_absent"]) == (0, ["bridge_dataset-val.tfrecord-00000-of-00001"])
    assert (train["episodes"], train["steps"], train["defects_total"]) == (14, 140, 0)
    assert train["instructions"]["language_instruction"]["distinct"] == 4
    # this copy says that it has no cameras, and three of its four do hold images
    assert {warning["problem"].split("'")[1] for warning in train["warnings"] if "has_image" in warning["problem"]} == {
        f"episode_metadata/has_image_{camera}" for camera in range(3)
    }
    trained = train["numbers"]["action as trained"]
    assert (trained["width"], trained["min"][6], trained["max"][6]) == (7, 0, 1)
    assert report["robot"]["unusable"] == {}
    pixels = np.asarray(Image.open(outputs["png"]).convert("RGB")).astype(np.int32)
    assert min(pixels.shape[:2]) > 800
    assert len(np.unique(pixels @ [65536, 256, 1])) > 5000  # photographs, not an empty page


def test_sheet_of_common_actions_of_others_and_of_none(write_openx, write_dataset, tmp_path):
    red = np.array([214, 39, 40])  # the first of three curves

    def curves(dataset, spec) -> int:
        contact_sheet.draw(dataset, tmp_path / "sheet.png", spec=spec, episodes=1, frames=2, size=16)
        pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
        return int((np.abs(pixels - red).sum(-1) < 30).sum())

    def apart(_, steps):
        steps["action"] += 10 * np.arange(18)

    composed = RLDSDataset(write_openx(OPENX["viola"]))
    assert curves(composed, dataset_spec("viola")) > 200
    assert curves(composed, None) < 10  # its action is a group of columns
    assert curves(RLDSDataset(write_dataset([4], apart, action_width=18)), None) > 50


def test_command_builds_indexes_and_counts(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(
        command.RECIPES,
        "calvin_mujoco",
        (
            lambda settings: CalvinMujocoRecipe(settings, fake_table.make, fake_table.expert, fake_table.instructions, fake_table.origin),
            Settings,
            "a fake",
        ),
    )
    out = tmp_path / "data"
    options = "--workers 0 --scenes A --tasks go_left,go_right --episodes 2 --static_size 16 --gripper_size 16 --max_attempts 9"
    arguments = ["build", "calvin_mujoco", "--out", str(out), *options.split()]
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    assert re.search(r"A/go_left +2 +\d+ +\d+%", printed.out)
    assert "4/4 episodes" in printed.err
    assert command.main(arguments) == 0
    assert "1 shard(s) from an earlier run" in capsys.readouterr().err
    for shard_index in ("1", "0"):
        assert command.main(["index", str(out), "--shard_index", shard_index, "--num_shards", "2", "--headers_only"]) == 0
    assert "0 of 1 shard(s), 0 records" in capsys.readouterr().out
    assert command.main(["index", str(out), "--workers", "2"]) == 0
    assert "1 of 1 shard(s), 4 episodes" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--shard_index=2 must be at least 0 and below --num_shards=2"):
        command.main(["index", str(out), "--shard_index=2", "--num_shards=2"])
    assert (out / "record_index-train.npz").is_file()
    assert command.main(["stats", str(out)]) == 0
    assert "proprio (observation/robot_obs)" in capsys.readouterr().out
    shard = out / DatasetInfo.read(out).splits["train"].files[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    assert command.main(["index", str(out)]) == 1
    assert "truncated" in capsys.readouterr().out


def test_command_names_what_is_missing(tmp_path, capsys):
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        command.main(["inspect", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as exit_code:
        command.main(["build", "calvin_mujoco", "--help"])
    assert exit_code.value.code == 0
    assert "--action_noise" in capsys.readouterr().out
