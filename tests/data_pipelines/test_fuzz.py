"""Damaged shards, thousands of them: every one is read correctly, skipped, or an error that names the record.

Two attacks. Bytes of a file are changed as disks and networks do it: the checksums must catch all of it, so what is still read must
be what was written. And payloads are changed *and their checksums made anew*, so that the parser, the columns and the decoders meet
every kind of nonsense: they may give other values then, but of the shape and type that features.json promises, or a clear error.
"""

import io
import json
import pickle
import random
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines import storage
from data_pipelines.builders import writer
from data_pipelines.errors import BadRecordError, DataError
from data_pipelines.rlds import examples, images, tfrecord
from data_pipelines.rlds.dataset import Episode, RLDSDataset
from data_pipelines.rlds.schema import Schema, numpy_dtype

STEPS = 3
LONGEST_S = 2.0  # of processor time for one damaged file; a reader that loops or unpacks gigabytes takes longer


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict:
    body = {"shape": {"dimensions": [str(size) for size in shape]}, "dtype": dtype, "encoding": encoding}
    return {"pythonClassName": "t.Tensor", "tensor": body}


def image(encoding: str) -> dict:
    return {"pythonClassName": "t.Image", "image": {"shape": {"dimensions": ["8", "8", "3"]}, "dtype": "uint8", "encodingFormat": encoding}}


TEXT = {"pythonClassName": "t.Text", "text": {}}
STEP_FEATURES = {
    "action": tensor("float32", 7),
    "flag": tensor("bool"),
    "wide": tensor("uint64", 2),
    "packed": tensor("float32", 2, 2, encoding="zlib"),
    "open": tensor("int32", -1, -1, encoding="bytes"),
    "text": TEXT,
    "png": image("png"),
    "jpeg": image("jpeg"),
    "list": {"pythonClassName": "t.Sequence", "sequence": {"feature": tensor("int64"), "length": "-1"}},
    "words": {"pythonClassName": "t.Sequence", "sequence": {"feature": TEXT, "length": "-1"}},
}
FEATURES = {
    "featuresDict": {
        "features": {
            "steps": {"sequence": {"feature": {"featuresDict": {"features": STEP_FEATURES}}}},
            "name": TEXT,
            "score": tensor("float32", 2),
        }
    }
}


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "png")
    return buffer.getvalue()


def record(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (STEPS, 8, 8, 3), np.uint8)
    opened = [rng.integers(0, 9, (1 + step, 2), np.int32) for step in range(STEPS)]
    return examples.encode(
        {
            "steps/action": rng.standard_normal((STEPS, 7)).astype("f"),
            "steps/flag": rng.integers(0, 2, STEPS),
            "steps/wide": rng.integers(-9, 9, (STEPS, 2)),
            "steps/packed": [zlib.compress(rng.standard_normal((2, 2)).astype("f").tobytes()) for _ in range(STEPS)],
            "steps/open/value": [value.tobytes() for value in opened],
            "steps/open/shape": np.array([value.shape for value in opened]),
            "steps/text": [b"pick", "löffel".encode(), b""],
            "steps/png": [png(frame) for frame in frames],
            "steps/jpeg": [images.encode_jpeg(frame) for frame in frames],
            "steps/list/ragged_flat_values": np.arange(4),
            "steps/list/ragged_row_lengths_0": np.array([3, 0, 1]),
            "steps/words/ragged_flat_values": [b"a", b"b"],
            "steps/words/ragged_row_lengths_0": np.array([0, 2, 0]),
            "name": [b"episode"],
            "score": rng.standard_normal(2).astype("f"),
        }
    )


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to three changes."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(out) + 1)
        length = min(chance.choice((1, 1, 2, 4, 16, 300)), len(out))
        kind = chance.randrange(7)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[place : place + length] = chance.randbytes(length)
        elif kind == 2:
            del out[place : place + length]
        elif kind == 3:
            out[place:place] = chance.randbytes(length)
        elif kind == 4:  # the largest variable-length number
            out[place : place + 10] = b"\xff" * 9 + b"\x01"
        elif kind == 5:
            other = chance.randrange(len(out) + 1)
            out[place : place + length] = out[other : other + length]
        else:
            del out[place:]
    return bytes(out)


def everything(episode: Episode, schema: Schema) -> int:
    """Reads all columns of an episode and checks them against the schema. Returns the number of fields with an error."""
    refused = []
    for name, feature in (*schema.steps.items(), *schema.episode.items()):
        of_step = name in schema.steps
        try:
            values = episode.column(name) if of_step else episode.metadata(name)
            if of_step and feature.is_colour and not feature.sequence:
                frame = episode.frame(name, 0)
                assert (frame.ndim, frame.shape[2], frame.dtype) == (3, 3, np.uint8)
                assert all(size in (None, found) for size, found in zip(feature.shape, frame.shape, strict=True))
        except BadRecordError as error:
            refused.append((name, error))
            continue
        if of_step:
            assert len(values) == len(episode)
        if feature.kind == "tensor" and not feature.sequence:
            for value in [values] if not feature.dynamic or not of_step else values:
                assert value.dtype == numpy_dtype(feature)
            if not feature.dynamic:
                assert values.shape[int(of_step) :] == feature.shape
        elif feature.kind == "text" and not feature.sequence and of_step:
            assert all(isinstance(text, str) for text in values)
    assert all((error.where, error.field) == (episode.where, name) for name, error in refused)
    return len(refused)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Directory of one shard, its payloads, and a read-only directory for the index."""
    directory = tmp_path_factory.mktemp("fuzz") / "set"
    directory.mkdir()
    payloads = [record(seed) for seed in range(3)]
    (directory / "features.json").write_text(json.dumps(FEATURES))
    info = {"name": "fuzz", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [{"name": "train", "shardLengths": ["3"]}]}
    (directory / "dataset_info.json").write_text(json.dumps(info))
    tfrecord.write_records(directory / writer.shard_name("fuzz", "train", 0, 1), payloads)
    locked = directory.parent / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    return directory, payloads, locked


def test_the_sound_file_is_read_without_complaint(dataset):
    directory, payloads, locked = dataset
    sound = RLDSDataset(directory, index_dir=locked)
    assert [everything(episode, sound.schema) for episode in sound] == [0] * len(payloads)


def test_damaged_files_give_what_was_written_or_an_error(dataset):
    directory, payloads, locked = dataset
    path = directory / writer.shard_name("fuzz", "train", 0, 1)
    whole, chance = path.read_bytes(), random.Random(0)
    known, outcomes, times = set(payloads), {"refused": 0, "whole": 0, "read": 0}, 400
    sound = RLDSDataset(directory, index_dir=locked)
    contents = {content(episode, sound.schema) for episode in sound}
    try:
        for _ in range(times):
            path.write_bytes(damaged(whole, chance))
            start = time.process_time()
            try:
                RLDSDataset(directory, index_dir=locked)
                assert set(_payloads(path)) <= known
                outcomes["whole"] += 1
            except DataError as error:
                outcomes["refused"] += path.name in str(error)
            left = RLDSDataset(directory, index_dir=locked, on_bad_record="skip")
            assert left.defects or len(left) == len(payloads)
            for episode in left:
                assert content(episode, left.schema) in contents
                outcomes["read"] += 1
            assert time.process_time() - start < LONGEST_S
    finally:
        path.write_bytes(whole)
    assert outcomes["refused"] + outcomes["whole"] == times  # every error named the file
    assert outcomes["whole"] < 40  # a change may cancel itself
    assert outcomes["read"] > 200  # sound records of a damaged file are kept


def content(episode: Episode, schema: Schema) -> bytes:
    """All values of an episode."""
    return pickle.dumps([[episode.column(name) for name in schema.steps], [episode.metadata(name) for name in schema.episode]])


def _payloads(path) -> list[bytes]:
    return [tfrecord.read_payload(path, int(offset), int(length)) for offset, length in _places(path)]


def _places(path):
    shard = tfrecord.scan(path, storage.file_info(path), None)
    return zip(shard.offsets, shard.lengths, strict=True)


def attack(payload: bytes, schema: Schema, chance: random.Random, times: int) -> dict[str, int]:
    """Damages payloads, with matching checksums; reads them as the dataset does."""
    outcomes = {"no record": 0, "fields refused": 0, "read": 0}
    for _ in range(times):
        changed, start = damaged(payload, chance), time.process_time()
        try:
            steps = examples.count_steps(changed, schema)
            example = examples.Example(changed)
        except ValueError:  # which `scan` and RLDSDataset turn into a BadRecordError: see the test above
            outcomes["no record"] += 1
            continue
        assert steps > 0
        refused = everything(Episode(example, schema, "file record 0", steps), schema)
        outcomes["fields refused" if refused else "read"] += 1
        assert time.process_time() - start < LONGEST_S
    return outcomes


def test_damaged_records_with_right_checksums(dataset):
    directory, payloads, _ = dataset
    outcomes = attack(payloads[1], Schema.read(directory), random.Random(1), 3000)
    assert min(outcomes.values()) > 100, outcomes


def test_damaged_records_of_a_real_dataset(bridge_dataset):
    directory = bridge_dataset / "1.0.0"
    path = next(directory.glob("*train*"))
    schema = Schema.read(directory)
    offset, length = next(iter(_places(path)))
    outcomes = attack(tfrecord.read_payload(path, int(offset), int(length)), schema, random.Random(2), 500)
    assert min(outcomes.values()) > 10, outcomes


def test_decoders_refuse_damaged_images():
    """Only ValueError is raised, and no image is larger than the limit on its header."""
    chance, rng = random.Random(3), np.random.default_rng(3)
    frame = rng.integers(0, 256, (16, 16, 3), np.uint8)
    for data in (images.encode_jpeg(frame), png(frame)):
        refused = 0
        for _ in range(1500):
            start = time.process_time()
            try:
                assert images.decode(damaged(data, chance)).size <= 3 * images.MAX_PIXELS
            except ValueError:
                refused += 1
            assert time.process_time() - start < LONGEST_S
        assert refused > 500
