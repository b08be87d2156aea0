"""Training examples: their content, and errors for invalid data."""

import pickle

import numpy as np
import pytest

from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.openx.registry import REGISTRY, dataset_spec
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.examples import Example, encode
from data_pipelines.rlds.filters import without_text
from data_pipelines.transforms import resize
from vpp_jax.common.errors import ConfigError


def config(path, name="calvin_mujoco", dataset=None, **changes) -> DataConfig:
    values = {"clip_frames": 4, "clip_stride": 2, "action_horizon": 5, **changes}
    return DataConfig(datasets=(DatasetConfig(str(path), name, **(dataset or {})),), **values)


def test_clip_holds_the_right_frames(write_dataset, tokenizer):
    source = clip_source(config(write_dataset([7, 3])), 8, tokenizer, 6)
    assert len(source) == 4 + 2  # a start every 2 steps
    clip = source[5]  # second episode, from step 2 on: clamped to its last step
    assert clip["video"].shape == (4, 8, 8, 3)
    assert clip["video"].dtype == np.uint8
    np.testing.assert_allclose(clip["video"][:, 0, 0, 0], [12, 12, 12, 12], atol=1)
    np.testing.assert_allclose(source[1]["video"][:, 0, 0, 0], [2, 4, 6, 6], atol=1)
    assert clip["text_ids"].tolist() == [7, 1, 0, 0, 0, 0]
    assert clip["text_mask"].tolist() == [True, True, False, False, False, False]


def test_views_are_sampled_with_the_probabilities_of_the_row(built, tokenizer):
    source = clip_source(config(built), 16, tokenizer, 6)
    (member,) = source.sources
    static = [
        resize(RLDSDataset(built)[member._table[index][0]].frame("observation/rgb_static", 2 * member._table[index][1]), 16)
        for index in range(len(source))
    ]
    share = np.mean([np.array_equal(source[index]["video"][0], static[index]) for index in range(len(source))])
    spread = 4 * np.sqrt(0.75 * 0.25 / len(source))
    assert abs(share - 0.75) < spread
    np.testing.assert_array_equal(source[3]["video"], clip_source(config(built), 16, tokenizer, 6)[3]["video"])
    only = clip_source(config(built, dataset={"views": ("wrist",)}), 16, tokenizer, 6)
    assert only.sources[0].cameras == ("observation/rgb_gripper",)


def test_policy_example(write_dataset, tokenizer):
    directory = write_dataset([7, 3])
    source = policy_source(config(directory, observation_stride=3), 8, tokenizer, 6, action_dim=7)
    assert len(source) == 3 + 1
    example = source[2]  # first episode, step 6: one action is left
    assert set(example) == {f"images/{view}" for view in ("primary", "wrist")} | {
        *("proprio", "action", "action_mask", "text_ids", "text_mask", "robot", "control_hz")
    }
    assert example["images/wrist"].shape == (8, 8, 3)
    assert abs(int(example["images/primary"][0, 0, 0]) - 6) <= 1
    assert example["action_mask"].tolist() == [True] + [False] * 4
    np.testing.assert_array_equal(example["action"], np.full((5, 7), 6, "f"))
    np.testing.assert_array_equal(source[1]["action"][:, 0], [3, 4, 5, 6, 6])
    raw = np.concatenate([episode.column("observation/robot_obs") for episode in RLDSDataset(directory)])
    np.testing.assert_allclose(example["proprio"], (raw[6] - raw.mean(0)) / raw.std(0), rtol=1e-4, atol=1e-5)
    blind = policy_source(config(directory, observation_stride=3), 8, tokenizer, 6, with_images=False)[2]
    assert set(blind) == {name for name in example if not name.startswith("images/")}
    np.testing.assert_array_equal(blind["proprio"], example["proprio"])
    metadata = source.metadata()["datasets"][0]
    assert metadata["recorded_in"] == {}  # made here, without metadata.json
    assert metadata["views"] == {"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"}
    assert metadata["statistics_hash"] == source.sources[0].statistics.hash


def test_a_member_may_choose_its_normalization(write_dataset, tokenizer):
    member = {"normalization": "quantile", "quantiles": (0.25, 0.75)}
    source = policy_source(config(write_dataset([9]), dataset=member), 8, tokenizer, 6)
    np.testing.assert_allclose(source[0]["action"][:, 0], [-1, -1, -1, -0.5, 0], atol=1e-6)  # actions 0 to 8: 2 to -1, 6 to 1
    assert source.metadata()["datasets"][0]["action"]["kind"] == "quantile"
    with pytest.raises(ConfigError, match="expected a lower and a higher one"):
        config("x", dataset={"quantiles": (0.5,)})


def test_validation_uses_the_training_statistics(built, tokenizer):
    train, val = (policy_source(config(built), 8, tokenizer, 6, split) for split in ("train", "val"))
    assert len(val) < len(train)
    assert train.metadata()["datasets"][0]["recorded_in"]["simulator"] == "calvin_mujoco"
    assert train.metadata()["datasets"][0]["statistics_hash"] == val.metadata()["datasets"][0]["statistics_hash"]


def test_sources_pickle(built, tokenizer):
    for source in (clip_source(config(built), 8, tokenizer, 6), policy_source(config(built), 8, tokenizer, 6)):
        copy = pickle.loads(pickle.dumps(source))
        for name, value in source[7].items():
            np.testing.assert_array_equal(copy[7][name], value)


def test_missing_camera_and_unknown_view(write_dataset, tokenizer):
    directory = write_dataset([4], cameras=("rgb_static",))
    with pytest.raises(DataError, match=r"camera 'observation/rgb_gripper' is not in features.json \(has cameras observation/rgb_static"):
        clip_source(config(directory), 8, tokenizer, 6)
    with pytest.raises(DataError, match="view 'top' is unknown"):
        policy_source(config(directory), 8, tokenizer, 6, views=("top",))
    assert len(clip_source(config(directory, dataset={"views": ("rgb_static",)}), 8, tokenizer, 6)) == 2


def test_another_action_width_is_refused(write_dataset, tokenizer):
    with pytest.raises(DataError, match=r"field 'action' has shape \[6\] .* the description of 'calvin_mujoco' says \[7\]"):
        policy_source(config(write_dataset([4], action_width=6)), 8, tokenizer, 6)
    with pytest.raises(DataError, match=r"the model's action_dim is 18"):
        policy_source(config(write_dataset([4], name="other")), 8, tokenizer, 6, action_dim=18)


def test_bad_records_fail_or_are_replaced_and_listed(write_dataset, tokenizer):
    def spoil(episode, steps):
        if episode == 1:
            steps["language_instruction"] = ["  "] * 4
        if episode == 2:
            steps["action"][3, 0] = np.inf

    directory = write_dataset([4, 4, 4, 4], spoil)
    with pytest.raises(BadRecordError, match=r"record 1, field 'language_instruction': empty instruction\. .*on_bad_record=skip"):
        clip_source(config(directory), 8, tokenizer, 6)[2]
    source = policy_source(config(directory, on_bad_record="skip"), 8, tokenizer, 6)
    examples = [source[index] for index in range(len(source))]
    episodes = [int(example["action"][0, 0]) // 100 for example in examples]
    assert (episodes[:4], episodes[12:], set(episodes[4:12])) == ([0] * 4, [3] * 4, {0, 3})
    assert sorted(where.rsplit(" ", 1)[1] + ": " + problem for where, problem in source.skipped.items()) == [
        "1: language_instruction: empty instruction",
        "2: action: NaN or infinite values at step 3",
    ]


def test_what_takes_the_place_of_bad_windows_is_not_biased(write_dataset, tokenizer):
    """Half of the records are bad: of all examples each good window gets its share, and first windows no more than others."""

    def spoil(episode, steps):
        if episode % 2:
            steps["language_instruction"] = [""] * 10

    source = policy_source(config(write_dataset([10] * 40, spoil), on_bad_record="skip"), 8, tokenizer, 6)
    seen = [float(source.sources[0].in_epoch(index, epoch)["action"][0, 0]) for epoch in range(4) for index in range(len(source))]
    first = np.mean([value % 100 == 0 for value in seen])
    assert abs(first - 0.1) < 4 * np.sqrt(0.1 * 0.9 / (len(seen) / 2))  # a tenth of the windows; the old rule gave 0.55
    counts = np.unique(seen, return_counts=True)[1]
    assert len(counts) == 200
    assert counts.min() >= 4  # itself in every epoch
    again = policy_source(config(source.sources[0].dataset.directory, on_bad_record="skip"), 8, tokenizer, 6)
    backwards = [float(again.sources[0].in_epoch(index, 3)["action"][0, 0]) for index in reversed(range(len(source)))]
    assert backwards[::-1] == seen[-len(source) :]  # whatever was read before


def test_the_camera_of_a_clip_changes_between_epochs(write_dataset, tokenizer):
    source = clip_source(config(write_dataset([40])), 8, tokenizer, 6).sources[0]
    cameras = np.array([[source._camera(index, epoch) for index in range(20)] for epoch in range(60)])
    assert all(len(set(cameras[:, index])) == 2 for index in range(20))
    share = np.mean(cameras == "observation/rgb_static")
    assert abs(share - 0.75) < 4 * np.sqrt(0.75 * 0.25 / cameras.size)


def test_episodes_without_an_instruction(write_dataset, tokenizer):
    def spoil(episode, steps):
        if episode == 1:
            steps["language_instruction"] = [" "] * 4

    directory = write_dataset([4, 4, 6], spoil)
    with pytest.raises(BadRecordError, match=r"empty instruction\. Set data\.empty_instructions=filter .*on_bad_record=skip"):
        clip_source(config(directory), 8, tokenizer, 6)[2]
    filtered = policy_source(config(directory, empty_instructions="filter"), 8, tokenizer, 6)
    (member,) = filtered.sources
    assert (member.dataset.lengths.tolist(), member.dataset.num_filtered, len(filtered), member.skipped) == ([4, 6], 1, 10, {})
    assert member.statistics.episodes == 2
    kept = clip_source(config(directory, empty_instructions="keep"), 8, tokenizer, 6)
    assert len(kept) == 2 + 2 + 3
    assert not kept[2]["text_mask"].any()
    assert kept.metadata()["datasets"][0]["fingerprint"] != filtered.metadata()["datasets"][0]["fingerprint"]


def test_filters_of_texts_in_every_form():
    def keeps(**columns):
        return without_text(None, ("first", "second")).keep(Example(encode(columns)), 2)

    assert keeps(**{"steps/second": [b"", b"go"]})
    assert not keeps(**{"steps/first": [b" ", b""], "steps/second": [b"go", b"go"]})
    assert keeps(**{"steps/first/ragged_flat_values": [b"go"], "steps/first/ragged_row_lengths_0": np.array([1, 0])})
    assert keeps(first=[b"go"])
    assert not keeps(**{"steps/first": np.zeros(6, np.int64)})
    assert keeps(**{"steps/first": np.array([103, 111, 0, 0])})
    with pytest.raises(IndexError, match="none of first, second"):
        keeps(third=[b"go"])


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(DataError, match="did you mean 'bridge_dataset'"):
        dataset_spec("bridge_datasets")


def test_registry_rows_are_complete():
    for name, spec in REGISTRY.items():
        assert spec.name == name
        assert abs(sum(spec.clip_views.values()) - 1) < 1e-9 or "cameras" in spec.unsupported
        assert bool(spec.proprio) == bool(spec.proprio_width)


def test_real_clips_span_the_episode(bridge_dataset, tokenizer):
    source = clip_source(config(bridge_dataset, "bridge_dataset", clip_frames=16), 32, tokenizer, 6)
    assert len(source) == 14
    episode = RLDSDataset(bridge_dataset)[3]
    expected = np.stack(
        [resize(episode.frame("observation/image_0", step), 32) for step in np.trunc(np.linspace(0, 9, 16)).astype(int).tolist()]
    )
    np.testing.assert_array_equal(source[3]["video"], expected)


def test_config_refuses_nonsense(tokenizer):
    for wrong, message in ((dict(batch_size=0), "batch_size is 0"), (dict(on_bad_record="ignore"), "one of fail, skip")):
        with pytest.raises(ConfigError, match=message):
            DataConfig(**wrong)
    with pytest.raises(ConfigError, match="weight"):
        DatasetConfig("x", weight=0)
    with pytest.raises(DataError, match=r"data\.datasets is empty"):
        clip_source(DataConfig(), 8, tokenizer, 6)
