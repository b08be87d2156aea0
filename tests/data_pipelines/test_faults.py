"""Faults in data, one by one: with 'fail' the error names file and record, with 'skip' the record is skipped and counted."""

import json
import time

import fake_bucket
import fsspec
import numpy as np
import pytest

from data_pipelines.builders import writer
from data_pipelines.config import DataConfig, DatasetConfig
from data_pipelines.configured_sources import policy_source
from data_pipelines.errors import BadRecordError, DatasetNotFoundError
from data_pipelines.loader import make_iterator
from data_pipelines.rlds import images, tfrecord
from data_pipelines.rlds.dataset import RLDSDataset

FILE = writer.shard_name("calvin_mujoco", "train", 0, 1)
LENGTHS = [4, 4, 4, 4]
SMALL = images.encode_jpeg(np.zeros((6, 8, 3), np.uint8))


def column(name, value):
    """Damages column `name` of episode 1."""

    def change(episode, steps):
        if episode == 1:
            if value is None:
                del steps[name]
            else:
                steps[name] = value(steps[name])

    return {"change": change}


def with_value(index, value):
    def change(values):
        values = np.array(values)
        values[index] = value
        return values

    return change


def file(change):
    """Damages the bytes of the finished file; `change(bytes, start of record 1)`."""
    return {"file": change}


def flip(place):
    def change(data, start):
        data[start + place] ^= 4
        return data

    return change


# fault -> how it is made, record and text of the error, remaining episodes
FAULTS = {
    "flipped byte": (file(flip(100)), 1, r"corrupt record \(CRC32C of the payload differs\)", 3),
    "flipped byte in a header": (file(flip(-12)), 1, r"corrupt record header .*the records after it cannot be located", 1),
    "truncated file": (file(lambda data, start: data[: start + 50]), 1, "truncated: the record at offset", 1),
    "record too few": (file(lambda data, start: data[: start - 12]), 1, "1 records instead of 4", 1),
    "NaN action": (column("action", with_value((2, 3), np.nan)), 1, "field 'action': NaN or infinite values at step 2", 3),
    "infinite state": (column("observation/robot_obs", with_value((0, 0), np.inf)), 1, "'observation/robot_obs': NaN or infinite", 3),
    "action of the wrong width": (column("action", lambda values: values[:, :6]), 1, r"24 numbers, expected 4 steps x \[7\]", 3),
    "empty instruction": (column("language_instruction", lambda texts: [" "] * len(texts)), 1, "empty instruction", 3),
    "instructions missing": (column("language_instruction", lambda texts: texts[:3]), 1, "3 values for 4 steps", 3),
    "zero-length episode": ({"lengths": [4, 0, 4, 4]}, 1, "zero-length episode", 3),
    "missing camera": (column("observation/rgb_static", None), 1, "field 'observation/rgb_static': missing in the record", 3),
    "damaged image": (column("observation/rgb_gripper", lambda frames: [frame[:60] for frame in frames]), 1, "cannot be decoded", 3),
    "no image": (column("observation/rgb_gripper", lambda frames: [b""] * len(frames)), 1, "neither JPEG nor PNG", 3),
    "image of another size": (
        column("observation/rgb_gripper", lambda frames: [SMALL] * 4),
        1,
        "an image of 6 x 8 pixels, features.json says 8 x 8",
        3,
    ),
    "images missing": (column("observation/rgb_static", lambda frames: frames[:-1]), 1, "3 values for 4 steps", 3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault, write_dataset, tokenizer):
    made, record, message, left = FAULTS[fault]
    directory = write_dataset(made.get("lengths", LENGTHS), made.get("change"))
    if "file" in made:
        path = directory / FILE
        start = int(RLDSDataset(directory, index_dir=directory / "before")._offset[1])
        path.write_bytes(made["file"](bytearray(path.read_bytes()), start))

    def read(on_bad_record):
        config = DataConfig(datasets=(DatasetConfig(str(directory)),), action_horizon=2, on_bad_record=on_bad_record)
        source = policy_source(config, 8, tokenizer, 6)
        return source, [source[index] for index in range(len(source))]

    with pytest.raises(BadRecordError, match=rf"{FILE} record {record}.*{message}.*on_bad_record=skip"):
        read("fail")
    source, examples = read("skip")
    assert {float(example["action"][0, 0]) // 100 for example in examples} == set(range(4)) - ({1} if left == 3 else {1, 2, 3})
    assert len(source.skipped) == 1
    assert f"{FILE} record {record}" in next(iter(source.skipped))


def test_text_that_is_not_unicode(write_dataset):
    directory = write_dataset([3])
    path = directory / FILE
    payload = path.read_bytes()[12:-4].replace(b"episode 0", b"\xe9pisode 0")
    tfrecord.write_records(path, [payload])
    with pytest.raises(BadRecordError, match=rf"{FILE} record 0, field 'language_instruction': .*utf-8"):
        RLDSDataset(directory)[0].text("language_instruction")


def test_absent_shard(dataset_copy, tokenizer):
    names = sorted(path.name for path in dataset_copy.glob("*-train.*"))
    (dataset_copy / names[1]).unlink()
    config = DataConfig(datasets=(DatasetConfig(str(dataset_copy)),), on_bad_record="skip")
    source = policy_source(config, 16, tokenizer, 6)
    assert source.skipped == {f"{names[1]} record 0": "listed in dataset_info.json but missing"}
    with pytest.raises(DatasetNotFoundError, match=names[1]):
        RLDSDataset(dataset_copy)


def test_index_older_than_its_shard(dataset_copy):
    """A shard replaced between two runs is indexed again; one replaced during a run is an error (test_storage)."""
    before = RLDSDataset(dataset_copy)
    names = sorted(path.name for path in dataset_copy.glob("*-train.*"))
    (dataset_copy / names[0]).write_bytes((dataset_copy / names[1]).read_bytes())
    after = RLDSDataset(dataset_copy)
    np.testing.assert_array_equal(after[0].column("action"), after[4].column("action"))
    assert after.fingerprint != before.fingerprint


def test_a_thousand_shards_start_at_once(write_dataset, tokenizer):
    """Copies of one small file, in a bucket."""
    shards, directory = 1000, write_dataset([2])
    fsspec.register_implementation("fake", fake_bucket.FakeBucket, clobber=True)
    bucket = fake_bucket.FakeBucket
    bucket.clear()
    info = json.loads((directory / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["1"] * shards
    bucket.put("b/set/dataset_info.json", json.dumps(info).encode())
    bucket.put("b/set/features.json", (directory / "features.json").read_bytes())
    for shard in range(shards):
        bucket.put(f"b/set/{writer.shard_name('calvin_mujoco', 'train', shard, shards)}", (directory / FILE).read_bytes())
    RLDSDataset("fake://b/set")  # makes the index, once
    assert len([request for request in bucket.requests if ".tfrecord" in request[1]]) == shards  # small ones: one read each
    config = DataConfig(datasets=(DatasetConfig("fake://b/set"),))
    policy_source(config, 16, tokenizer, 6)  # computes the statistics, once
    bucket.requests.clear()
    start = time.process_time()
    source = policy_source(config, 16, tokenizer, 6)
    make_iterator(source, 16, seed=0, threads=2)
    assert time.process_time() - start < 2.0
    assert len(source.sources[0].dataset) == shards
    assert len(bucket.requests) < 12  # whatever the number of shards
    assert not [request for request in bucket.requests if ".tfrecord" in request[1]]
    bucket.clear()
