"""Statistics for normalisation: their values, the training split, and recomputation when shards change."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data_pipelines import statistics
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.openx.registry import dataset_spec
from data_pipelines.rlds.dataset import RLDSDataset

SPEC = dataset_spec("calvin_mujoco")


def test_columns_match_numpy(write_dataset):
    dataset = RLDSDataset(write_dataset([5, 9, 3]))
    made = statistics.compute(dataset, SPEC)
    state = np.concatenate([episode.column("observation/robot_obs") for episode in dataset]).astype(np.float64)
    column = made.columns["proprio"]
    assert (made.episodes, made.steps, column.count) == (3, 17, 17)
    for name, value in {
        "mean": state.mean(0),
        "std": state.std(0),
        "min": state.min(0),
        "max": state.max(0),
        "quantiles": np.quantile(state, (0.01, 0.99), axis=0),
    }.items():
        np.testing.assert_allclose(getattr(column, name), value, rtol=1e-6, atol=1e-7)
    scaled = made.proprio_normalizer().forward(state)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(0), 1, atol=1e-5)
    assert made.action_normalizer(SPEC).kind == "none"


def test_quantiles_are_chosen_by_the_row(dataset_copy):
    dataset = RLDSDataset(dataset_copy)
    first = statistics.load_or_compute(dataset, SPEC)
    chosen = replace(SPEC, normalization="quantile", quantiles=(0.1, 0.8))
    made = statistics.load_or_compute(dataset, chosen)  # in place of the stored ones, which have others
    assert (first.quantile_levels, made.quantile_levels) == ((0.01, 0.99), (0.1, 0.8))
    actions = np.concatenate([episode.column("action") for episode in dataset]).astype(np.float64)
    np.testing.assert_allclose(made.columns["action"].quantiles, np.quantile(actions, (0.1, 0.8), axis=0), rtol=1e-6, atol=1e-12)
    assert made.columns["action"].mean == first.columns["action"].mean
    assert made.hash != first.hash
    scaled = made.action_normalizer(chosen).forward(np.quantile(actions, (0.1, 0.8), axis=0))
    moving = np.ptp(actions, axis=0) > 1e-3
    np.testing.assert_allclose(scaled[:, moving], np.array([[-1], [1]]) * np.ones(moving.sum()), atol=1e-5)
    with pytest.raises(DataError, match="expected a lower and a higher one"):
        replace(SPEC, quantiles=(0.9, 0.1))


def test_stored_reused_and_recomputed_when_the_shards_change(dataset_copy, monkeypatch):
    calls = []
    compute = statistics.compute
    monkeypatch.setattr(statistics, "compute", lambda *arguments, **options: calls.append(1) or compute(*arguments, **options))
    first = statistics.load_or_compute(RLDSDataset(dataset_copy), SPEC)
    again = statistics.load_or_compute(RLDSDataset(dataset_copy), SPEC)
    assert len(calls) == 1
    assert first == again
    assert first.hash == again.hash
    stored = json.loads((dataset_copy / "statistics-train.json").read_text())
    assert (stored["dataset"], stored["version"], stored["split"], stored["hash"]) == ("calvin_mujoco", "1.0.0", "train", first.hash)
    assert stored["columns"]["action"]["count"] == first.steps
    shard = next(dataset_copy.glob("*train*00000-of*"))
    shard.write_bytes(next(dataset_copy.glob("*train*00001-of*")).read_bytes())
    assert statistics.load_or_compute(RLDSDataset(dataset_copy), SPEC).hash != first.hash
    assert len(calls) == 2


def test_hosts_share_the_work(dataset_copy, monkeypatch):
    before = RLDSDataset(dataset_copy)
    for host in range(5):
        statistics.save_partial(before, SPEC, host, 5)
    shard = next(dataset_copy.glob("*train*00000-of*"))
    shard.write_bytes(next(dataset_copy.glob("*train*00001-of*")).read_bytes())
    dataset = RLDSDataset(dataset_copy)
    alone = statistics.compute(dataset, SPEC)
    assert statistics.load_or_compute(dataset, SPEC) == alone  # parts of other shards are not used
    assert statistics.compute(before, SPEC) != alone
    statistics.statistics_path(dataset).unlink()
    parts = [statistics.save_partial(dataset, SPEC, host, 5) for host in (3, 0, 4, 2)]
    assert statistics._merged(dataset, SPEC, statistics._parts(dataset, None)) is None  # one is missing
    parts.append(statistics.save_partial(dataset, SPEC, 1, 5))
    assert sum(part.episodes for part in parts) == len(dataset)
    monkeypatch.setattr(statistics, "compute", None)
    merged = statistics.load_or_compute(dataset, SPEC)
    assert merged == alone
    assert merged.hash == alone.hash
    assert not [path for path in dataset_copy.iterdir() if "parts" in path.name]


def test_edited_file_is_recomputed(dataset_copy):
    dataset = RLDSDataset(dataset_copy)
    made = statistics.load_or_compute(dataset, SPEC)
    path = statistics.statistics_path(dataset)
    tree = json.loads(path.read_text())
    tree["columns"]["action"]["mean"][0] += 1
    path.write_text(json.dumps(tree))
    assert statistics.load_or_compute(dataset, SPEC) == made


def test_hash_does_not_depend_on_the_directory(built, dataset_copy):
    assert statistics.compute(RLDSDataset(built), SPEC).hash == statistics.compute(RLDSDataset(dataset_copy), SPEC).hash


def test_nan_is_an_error_or_skipped(write_dataset):
    def spoil(episode, steps):
        if episode == 1:
            steps["action"][2, 3] = np.nan

    dataset = RLDSDataset(write_dataset([4, 4, 4], spoil))
    with pytest.raises(BadRecordError, match=r"record 1, field 'action': NaN or infinite values at step 2"):
        statistics.compute(dataset, SPEC)
    made = statistics.compute(dataset, SPEC, "skip")
    assert made.episodes == 2
    assert made.steps == 8
    assert "record 1: action: NaN" in made.skipped[0]


def test_bridge_counts_reached_motion_without_the_first_and_the_last_step(bridge_dataset):
    dataset = RLDSDataset(bridge_dataset, index_dir=None)
    spec = dataset_spec("bridge_dataset")
    made = statistics.compute(dataset, spec)
    assert made.steps == 14 * 8
    normalizer = made.action_normalizer(spec)
    assert normalizer.shift[6] == 0
    assert normalizer.scale[6] == 1
    motion = np.concatenate([np.diff(episode.column("observation/state")[1:, :6], axis=0) for episode in dataset])
    np.testing.assert_allclose(made.columns["action"].mean[:6], motion.mean(0), atol=1e-6)
    actions = np.concatenate([statistics.actions(episode, spec)[1:] for episode in dataset])
    assert actions.shape == (14 * 8, 7)
    assert set(actions[:, 6]) <= {0, 1}
    np.testing.assert_allclose(normalizer.forward(actions)[:, :6].std(0), 1, atol=1e-4)
