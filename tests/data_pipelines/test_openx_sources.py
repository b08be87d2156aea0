"""Every row of the Open-X table on a tiny dataset that has its columns: clips and policy examples in the common layout, or an error."""

from dataclasses import replace

import numpy as np
import pytest

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.inspection import inspect_dataset
from data_pipelines.openx.registry import CLIP_COLUMNS, POLICY_COLUMNS, REGISTRY, dataset_spec
from data_pipelines.openx.standardise import relative_to_absolute
from data_pipelines.openx.table import OPENX
from data_pipelines.rlds.dataset import RLDSDataset
from vpp_jax.cli import data as command


def config(*entries: DatasetConfig, **changes) -> DataConfig:
    return DataConfig(datasets=entries, **{"clip_frames": 2, "action_horizon": 3, "frame_cache_mb": 1, **changes})


@pytest.mark.parametrize("name", sorted(OPENX))
def test_each_row_gives_examples_or_says_why_not(name, write_openx, tokenizer):
    row, spec = OPENX[name], dataset_spec(name)
    directory = write_openx(row)
    entry = DatasetConfig(str(directory), name)
    accepted = config(entry, allow_unverified=(name,))
    if spec.why_unusable(CLIP_COLUMNS, allow_unverified=True):
        with pytest.raises(DataError, match=f"cannot be used here: {name} \\(cameras"):
            clip_source(accepted, 8, tokenizer, 6)
    else:
        clip = clip_source(accepted, 8, tokenizer, 6)[0]
        assert (clip["video"].shape, clip["text_mask"].sum()) == ((2, 8, 8, 3), 1 if name == "language_table" else 2)
    if spec.why_unusable(POLICY_COLUMNS, allow_unverified=True):
        with pytest.raises(DataError, match="cannot be used here"):
            policy_source(accepted, 8, tokenizer, 6)
        return
    if spec.why_unusable(POLICY_COLUMNS):
        with pytest.raises(DataError, match=r"not verified.*data\.allow_unverified"):
            policy_source(config(entry), 8, tokenizer, 6)
    source = policy_source(accepted, 8, tokenizer, 6, action_dim=7)
    example = source[0]
    assert (example["action"].shape, example["proprio"].shape) == ((3, 7), (8,))
    lost = spec.action_parts.lost_steps
    assert len(source) == 4 + 3 - 2 * (lost + spec.first_step)
    assert np.isfinite(example["action"]).all()


def test_values_of_an_old_style_dataset(write_openx, tokenizer):
    directory = write_openx(OPENX["fractal20220817_data"])
    episode = RLDSDataset(directory)[1]
    source = policy_source(config(DatasetConfig(str(directory), "fractal20220817_data")), 8, tokenizer, 6)
    raw = source.sources[0].action_normalizer.inverse(source[4]["action"])
    np.testing.assert_allclose(raw[:, :3], episode.column("action/world_vector")[:, :3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw[:, 3:6], episode.column("action/rotation_delta")[:, :3], rtol=1e-4, atol=1e-5)
    expected = relative_to_absolute(episode.column("action/gripper_closedness_action")[:, 0])
    np.testing.assert_array_equal(source[4]["action"][:, 6], expected)  # the gripper is not normalised
    metadata = source.metadata()["datasets"][0]
    assert metadata["statistics"]["columns"]["action"]["key"] == (
        "action/world_vector[0:3] + action/rotation_delta[0:3] + relative(action/gripper_closedness_action[0:1])"
    )


def test_bgr_images_are_converted(write_openx, tokenizer):
    directory = write_openx(OPENX["berkeley_autolab_ur5"])
    source = clip_source(config(DatasetConfig(str(directory), "berkeley_autolab_ur5", views=("primary",))), 8, tokenizer, 6)
    wrist = clip_source(config(DatasetConfig(str(directory), "berkeley_autolab_ur5", views=("wrist",))), 8, tokenizer, 6)
    straight, turned = source[0]["video"][0, 0, 0].astype(int), wrist[0]["video"][0, 0, 0].astype(int)
    assert np.abs(straight - [200, 100, 20]).max() < 12
    np.testing.assert_array_equal(turned, straight[::-1])


def test_missing_and_narrow_columns_are_named(write_openx, tokenizer):
    directory = write_openx(OPENX["viola"], leave_out=("action/rotation_delta",))
    with pytest.raises(
        DataError, match=r"the description of 'viola' reads columns that features.json lacks: step field 'action/rotation_delta'"
    ):
        policy_source(config(DatasetConfig(str(directory), "viola")), 8, tokenizer, 6)
    other = write_openx(OPENX["toto"])
    with pytest.raises(DataError, match=r"actions of 'toto' have shape \[7\], but the model's action_dim is 18"):
        policy_source(config(DatasetConfig(str(other), "toto")), 8, tokenizer, 6, action_dim=18)


def test_a_quaternion_of_zeros_is_a_bad_record(write_openx, tokenizer, monkeypatch):
    directory = write_openx(OPENX["cmu_play_fusion"], lengths=(3,))
    column = RLDSDataset(directory)[0].__class__.column
    monkeypatch.setattr("data_pipelines.rlds.dataset.Episode.column", lambda self, name: column(self, name) * (name != "action"))
    with pytest.raises(BadRecordError, match="field 'action': quaternion of norm zero at step 0"):
        policy_source(config(DatasetConfig(str(directory), "cmu_play_fusion")), 8, tokenizer, 6)


def test_weights_per_step(write_openx, tokenizer):
    entries = [
        DatasetConfig(str(write_openx(OPENX[name], lengths)), name, weight=weight, per_step=True)
        for name, lengths, weight in (("viola", (4, 3), 2.0), ("toto", (5,), 1.0))
    ]
    source = clip_source(config(*entries), 8, tokenizer, 6)
    assert source.weights == (2.0 * 7, 1.0 * 5)


def test_all_unusable_datasets_are_named_at_once(tokenizer):
    names = ("taco_play", "tidybot", "viola", "io_ai_tech")
    with pytest.raises(DataError, match=r"3 of 4 datasets cannot be used here: taco_play \(gripper.*tidybot \(action.*io_ai_tech \("):
        policy_source(config(*(DatasetConfig("nowhere", name) for name in names)), 8, tokenizer, 6)


@pytest.mark.parametrize(
    ("name", "lengths", "metadata", "kept"),
    [
        ("kuka", (4, 3, 5), {"success": [np.array([True]), np.array([False]), np.array([True])]}, [4, 5]),
        ("droid", (4, 3), {"episode_metadata/file_path": [[b"gs://r2d2/failure/2"], [b"gs://r2d2/success/1"]]}, [3]),
        ("berkeley_gnm_recon", (1, 3), {}, [3]),
    ],
)
def test_filtered_episodes_count_nowhere(name, lengths, metadata, kept, write_openx, tokenizer):
    directory = write_openx(OPENX[name], lengths, metadata=metadata)
    dataset = RLDSDataset(directory, episode_filter=dataset_spec(name).episode_filter)
    assert (dataset.lengths.tolist(), dataset.num_filtered, dataset.defects) == (kept, len(lengths) - len(kept), ())
    source = clip_source(config(DatasetConfig(str(directory), name, per_step=True), allow_unverified=(name,)), 8, tokenizer, 6)
    assert source.weights == (sum(kept),)
    report = inspect_dataset(directory)["splits"]["train"]
    assert (report["episodes"], report["episodes_filtered"], report["defects_total"]) == (len(kept), len(lengths) - len(kept), 0)


SUCCESSES = {"success": [np.array([True]), np.array([False]), np.array([True])]}


def test_the_filter_belongs_to_the_row_not_to_the_name_in_the_file(write_openx, tokenizer, monkeypatch, capsys):
    """The same data under another name is filtered where its row says so; a dataset called kuka with its own row loses nothing."""
    own = replace(dataset_spec("kuka"), name="my_arm", episode_filter=None)
    monkeypatch.setitem(REGISTRY, own.name, own)
    renamed = write_openx(replace(OPENX["kuka"], name="kuka_copy"), (4, 3, 5), metadata=SUCCESSES)
    called_kuka = write_openx(OPENX["kuka"], (4, 3, 5), metadata={})  # has no success flag

    def lengths(directory, row):
        (source,) = clip_source(config(DatasetConfig(str(directory), row)), 8, tokenizer, 6).sources
        return source.dataset.lengths.tolist()

    assert RLDSDataset(renamed).name == "kuka_copy"
    assert lengths(renamed, "kuka") == [4, 5]
    assert RLDSDataset(called_kuka).name == "kuka"
    assert lengths(called_kuka, "my_arm") == [4, 3, 5]
    for directory, row, episodes in ((renamed, "kuka", 2), (called_kuka, "my_arm", 3)):
        for verb in ("index", "stats", "inspect"):
            assert command.main([verb, str(directory), "--robot", row]) == 0
            assert f"{episodes} episodes" in capsys.readouterr().out


def test_a_record_that_does_not_say_whether_to_keep_it_is_a_defect(write_openx):
    with pytest.raises(BadRecordError, match="missing in the record"):
        RLDSDataset(write_openx(OPENX["kuka"], metadata={}), episode_filter=dataset_spec("kuka").episode_filter)
