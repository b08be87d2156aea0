"""ArrayRecord shards as TFDS writes them: the same episodes as from TFRecord; errors name damaged records."""

import json

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from data_pipelines.errors import BadRecordError
from data_pipelines.rlds import tfrecord
from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset, build_index
from data_pipelines.rlds.schema import Schema


@pytest.fixture
def rewritten(dataset_copy):
    """The content of the training episodes, and the directory with its shards rewritten as ArrayRecord."""
    splits = [RLDSDataset(dataset_copy, split, index_dir=dataset_copy / "before") for split in ("train", "val")]
    episodes = [(episode.column("action"), episode.encoded("observation/rgb_static", 2)) for episode in splits[0]]
    for dataset in splits:
        for shard, name in enumerate(dataset._files):
            writer = ArrayRecordWriter(str(dataset_copy / name.replace(".tfrecord-", ".array_record-")), "group_size:1")
            for row in np.flatnonzero(dataset._shard == shard):
                writer.write(tfrecord.read_payload(dataset_copy / name, int(dataset._offset[row]), int(dataset._bytes[row])))
            writer.close()
            (dataset_copy / name).unlink()
    info = json.loads((dataset_copy / "dataset_info.json").read_text())
    (dataset_copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "array_record"}))
    return episodes, dataset_copy


def test_the_same_episodes(rewritten):
    episodes, directory = rewritten
    dataset = RLDSDataset(directory, cache_bytes=0)
    assert dataset.lengths.tolist() == [len(actions) for actions, _ in episodes]
    for index in (11, 0, 5):
        np.testing.assert_array_equal(dataset[index].column("action"), episodes[index][0])
        assert dataset[index].encoded("observation/rgb_static", 2) == episodes[index][1]
    assert RLDSDataset(directory).lengths.tolist() == dataset.lengths.tolist()  # from the stored index
    places = build_index(DatasetInfo.read(directory), Schema.read(directory), "val", counted=False)
    assert sum(len(shard.offsets) for shard in places) == 4


def test_damage_is_named_or_skipped(rewritten):
    _, directory = rewritten
    names = DatasetInfo.read(directory).splits["train"].files
    data = bytearray((directory / names[1]).read_bytes())
    data[1000] ^= 0xFF  # inside the first record, whose images alone are larger
    (directory / names[1]).write_bytes(data)
    (directory / names[2]).write_bytes((directory / names[2]).read_bytes()[:100])
    with pytest.raises(BadRecordError, match=names[1]):
        RLDSDataset(directory)
    dataset = RLDSDataset(directory, on_bad_record="skip")
    assert 4 <= len(dataset) < 8
    problems = {defect.file: defect.problem for defect in dataset.defects}
    assert "corrupt record" in problems[names[1]]
    assert "0 records instead of 4" in problems[names[2]] or "not an ArrayRecord file" in problems[names[2]]


def test_a_rewritten_file_is_opened_again(rewritten):
    episodes, directory = rewritten
    dataset = RLDSDataset(directory, cache_bytes=0)
    names = DatasetInfo.read(directory).splits["train"].files
    _ = dataset[0]
    (directory / names[0]).write_bytes((directory / names[1]).read_bytes())
    np.testing.assert_array_equal(dataset[0]._example.numbers("steps/action"), episodes[4][0].ravel())
