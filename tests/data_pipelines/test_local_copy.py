"""Mixtures by name, and `vpp data inspect` of a directory with many datasets."""

import csv
import json
import re
from dataclasses import replace

import fsspec
import pytest

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source
from data_pipelines.errors import DataError
from data_pipelines.openx import local_copy
from data_pipelines.openx.mixtures import MIXTURES, OCTO, OCTO_LISTS, OPENVLA, OPENVLA_LISTS, RT_1_X, expand, mixture
from data_pipelines.openx.registry import POLICY_COLUMNS
from data_pipelines.openx.table import OPENX
from vpp_jax.cli import data as command
from vpp_jax.cli.config_flag import add_config_flag, parse
from vpp_jax.cli.parser import Parser

# Datasets without a public row: private data and Octo's copies.
PRIVATE = {"metaworld", "panda_arm", "dexterous_hand", "gnm_dataset", "aloha_static_dataset", "aloha_mobile_dataset", "rh20t"}


@pytest.fixture(scope="module")
def published(reference_data) -> dict[tuple[str, str], dict[str, float]]:
    """(publisher, mixture) -> dataset -> weight."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    with open(reference_data / "openx" / "mixtures.tsv", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            found.setdefault((row["publisher"], row["mixture"]), {})[row["dataset"]] = float(row["weight"])
    return found


@pytest.mark.parametrize(("publisher", "ours", "lists"), [("octo", OCTO, OCTO_LISTS), ("openvla", OPENVLA, OPENVLA_LISTS)])
def test_lists_agree_cell_by_cell(published, publisher, ours, lists):
    theirs = {mixture: weights for (name, mixture), weights in published.items() if name == publisher}
    assert theirs == {name: {dataset: row[column] for dataset, row in ours.items() if row[column]} for column, name in enumerate(lists)}
    assert all(any(row) and len(row) == len(lists) for row in ours.values())


def test_plain_lists_agree(published):
    assert published["rt_1_x", "rt_1_x"] == RT_1_X
    assert published["ivideogpt", "ivideogpt"] == MIXTURES["ivideogpt"].weights


def test_vpp_and_merged_mixtures():
    assert sum(MIXTURES["vpp_paper"].weights.values()) == pytest.approx(1)
    assert sum(MIXTURES["vpp_released"].weights.values()) == pytest.approx(1)
    merged = MIXTURES["octo_rtx_franka"].weights
    assert (merged["viola"], merged["kaist_nonprehensile_converted_externally_to_rlds"]) == (2, 3)  # the first weight is kept
    assert set(merged) == {name for name, row in OCTO.items() if row[0] or row[1]}
    unknown = {name for row in MIXTURES.values() for name in row.weights if local_copy.row_of(name) is None}
    assert unknown <= PRIVATE
    with pytest.raises(DataError, match="did you mean 'octo_magic_soup' or 'openvla_magic_soup'"):
        mixture("oxe_magic_soup")


@pytest.fixture
def local_root(write_openx, tmp_path):
    write_openx(OPENX["viola"], val=True)
    write_openx(OPENX["toto"], version="0.2.0")
    write_openx(OPENX["jaco_play"], leave_out=("observation/end_effector_cartesian_pos", "action/world_vector"))
    directory = write_openx(OPENX["taco_play"])
    next(directory.glob("*.tfrecord*")).unlink()
    write_openx(OPENX["fmb"], folder="fmb_dataset")
    write_openx(replace(OPENX["viola"], name="my_robot"))
    (tmp_path / "openx" / "notes").mkdir()
    return tmp_path / "openx"


def test_every_state_a_dataset_can_be_in(local_root):
    found = {finding.name: finding for finding in local_copy.check(local_root, local_copy.datasets(local_root))}
    assert {name: finding.status for name, finding in found.items()} == {
        "viola": "ok",
        "toto": "other version",
        "jaco_play": "missing key",
        "taco_play": "missing shard",
        "fmb_dataset": "ok",
        "my_robot": "not in the registry",
    }
    assert found["toto"].problems == ("version 0.2.0, expected 0.1.0",)
    assert found["jaco_play"].problems == ("no step field 'action/world_vector'", "no step field 'observation/end_effector_cartesian_pos'")
    assert found["taco_play"].problems == ("split train: 1 of 1 shards absent",)
    assert found["viola"].splits == {"train": (1, 1, 2), "val": (1, 1, 2)}
    assert set(found["fmb_dataset"].unusable) == {"policy"}
    (absent,) = local_copy.check(local_root, ["bc_z"])
    assert (absent.status, absent.version) == ("absent", "")


def test_expected_version_is_preferred(write_openx, tmp_path):
    for version in ("0.1.0", "1.5.0"):
        write_openx(OPENX["viola"], version=version)
    assert local_copy.locate(tmp_path / "openx", "viola")[1].version == "0.1.0"
    write_openx(OPENX["bridge"], root="other")
    row, info = local_copy.locate(tmp_path / "other", "bridge")
    assert (row, info.directory.parent.name) == ("bridge", "bridge_data_v2")


def test_command_checks_a_local_copy(local_root, capsys, tmp_path):
    assert command.main(["inspect", str(local_root), "--json", str(tmp_path / "report.json")]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^viola +ok +0\.1\.0 +video\+policy +train 1/1, 2; val 1/1, 2$", printed, re.M)
    assert "6 datasets: 2 ok, 1 not in the registry, 1 other version, 1 missing shard, 1 missing key" in printed
    assert {entry["status"] for entry in json.loads((tmp_path / "report.json").read_text())} >= {"ok", "missing key"}
    assert command.main(["inspect", str(local_root), "--mixture", "rt_1_x"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^viola +ok +0\.1\.0 +video\+policy +3 ", printed, re.M)
    assert re.search(r"^bridge +absent +- +- +50$", printed, re.M)


def test_local_copy_in_a_bucket(local_root, capsys):
    bucket = fsspec.filesystem("memory")
    bucket.put(str(local_root), "/robots", recursive=True)
    try:
        assert command.main(["inspect", "memory://robots"]) == 1
        assert "6 datasets: 2 ok, " in capsys.readouterr().out
        made = expand(DataConfig(mixture="rt_1_x", data_dir="memory://robots", missing_datasets="skip"))
        assert made.datasets[2].path.endswith("robots/viola/0.1.0")
        assert made.datasets[2].path.startswith("memory://")
    finally:
        bucket.rm("/robots", recursive=True)


def test_mixture_becomes_datasets(local_root, tokenizer):
    config = DataConfig(mixture="rt_1_x", data_dir=str(local_root), clip_frames=2)
    with pytest.raises(DataError, match=r"lacks 6 of the 10 datasets .*: fractal20220817_data, bridge, .*data\.missing_datasets=skip"):
        expand(config)
    made = expand(replace(config, missing_datasets="skip"))
    assert [(entry.name, entry.weight, entry.per_step, entry.val_split) for entry in made.datasets] == [
        ("taco_play", 5, False, "train"),
        ("jaco_play", 20, False, "train"),
        ("viola", 3, False, "val"),
        ("toto", 5, False, "train"),
    ]
    assert (made.mixture, made.data_dir, expand(made)) == ("", "", made)
    next((local_root / "viola").rglob("*val.tfrecord*")).unlink()  # an incomplete split is not used for validation
    assert [entry.val_split for entry in expand(replace(config, missing_datasets="skip")).datasets] == ["train"] * 4
    (plus,) = (
        entry
        for entry in expand(replace(config, mixture="openvla_magic_soup_plus", missing_datasets="skip")).datasets
        if entry.name == "fmb"
    )
    assert (plus.weight, plus.per_step) == (1, True)
    with pytest.raises(DataError, match=r"data\.datasets is empty; expand data.mixture"):
        clip_source(config, 8, tokenizer, 6)
    with pytest.raises(DataError, match=r"data\.data_dir is empty"):
        expand(DataConfig(mixture="rt_1_x"))
    with pytest.raises(DataError, match="lacks 10 of the 10"):
        expand(replace(config, data_dir=str(local_root / "notes"), missing_datasets="skip"))


def test_a_mixture_merges_with_own_entries(local_root, tokenizer):
    """A path adds a dataset, or says where a member is; without one, fields of a member change; what changes nothing is an error."""
    config = DataConfig(mixture="rt_1_x", data_dir=str(local_root), missing_datasets="skip", clip_frames=2)

    def members(*entries, **more):
        return {entry.name: entry for entry in expand(replace(config, datasets=entries, **more)).datasets}

    own = DatasetConfig(str(local_root / "my_robot"), "my_robot", robot="viola")
    assert list(members(own)) == ["taco_play", "jaco_play", "viola", "toto", "my_robot"]
    changed = members(DatasetConfig(name="viola", weight=7.0, views=("wrist",)), DatasetConfig(name="toto", val_split="test"))
    assert (changed["viola"].weight, changed["viola"].views, changed["viola"].val_split) == (7, ("wrist",), "val")
    assert (changed["toto"].weight, changed["toto"].val_split) == (5, "test")
    elsewhere = members(DatasetConfig(str(local_root / "viola"), "kuka"), DatasetConfig(str(local_root / "my_robot"), "viola"))
    assert (elsewhere["kuka"].weight, elsewhere["viola"].path, elsewhere["viola"].weight) == (1, str(local_root / "my_robot"), 3)
    assert list(members(DatasetConfig(name="calvin_mujoco"))) == ["taco_play", "jaco_play", "viola", "toto"]  # says nothing
    with pytest.raises(DataError, match="changes weight of 'violla', which is no member of mixture 'rt_1_x', did you mean 'viola'"):
        members(DatasetConfig(name="violla", weight=2.0))


def test_datasets_that_cannot_be_used_may_be_skipped(local_root):
    config = DataConfig(mixture="rt_1_x", data_dir=str(local_root), missing_datasets="skip", refused="skip")
    assert [entry.name for entry in expand(config).datasets] == ["taco_play", "jaco_play", "viola", "toto"]
    assert [entry.name for entry in expand(config, POLICY_COLUMNS).datasets] == ["viola", "toto"]
    allowed = replace(config, allow_unverified=("taco_play",))
    assert [entry.name for entry in expand(allowed, POLICY_COLUMNS).datasets] == ["taco_play", "viola", "toto"]
    only = DataConfig(datasets=(DatasetConfig("x", "tidybot", robot="tidybot"),), refused="skip")
    with pytest.raises(DataError, match="leaves no dataset: tidybot"):
        expand(only, POLICY_COLUMNS)


def test_a_weight_means_the_same_next_to_weights_per_step(write_openx, tokenizer):
    """0.5 next to two members of weight 1 is a fifth of the examples, however many steps those have."""
    entries = [
        DatasetConfig(str(write_openx(OPENX[name], lengths)), name, weight=weight, per_step=per_step)
        for name, lengths, weight, per_step in (("viola", (4, 3), 1.0, True), ("toto", (14,), 1.0, True), ("jaco_play", (5,), 0.5, False))
    ]
    source = clip_source(DataConfig(datasets=tuple(entries), clip_frames=2), 8, tokenizer, 6)
    assert source.weights == pytest.approx((2 / 3, 4 / 3, 0.5))


def test_mixture_on_the_command_line(local_root, project):
    flags = [
        f"--config={project / 'tests' / 'configs' / 'micro_video.py'}",
        "--config.data.mixture=octo_rtx",
        f"--config.data.data_dir={local_root}",
        "--config.data.missing_datasets=skip",
    ]
    parser = Parser()
    add_config_flag(parser)
    config, _ = parse(parser, flags)
    assert [entry.name for entry in config.data.datasets] == ["taco_play", "jaco_play", "viola", "toto"]
    assert all(entry.per_step for entry in config.data.datasets)


def test_one_dataset_is_still_inspected_alone(local_root, capsys):
    assert command.main(["inspect", str(local_root / "viola")]) == 0
    assert "split train: 1 of 1 shard(s) present" in capsys.readouterr().out
