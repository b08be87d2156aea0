"""Partially read records have the same content as complete ones, and only the requested bytes are read."""

import numpy as np
import pytest

from data_pipelines import storage
from data_pipelines.errors import BadRecordError
from data_pipelines.rlds import examples, tfrecord
from data_pipelines.rlds.dataset import RLDSDataset
from data_pipelines.rlds.sparse import SparseExample, split

CAMERA = "steps/observation/rgb_static"
IMAGES = [bytes([k]) * size for k, size in enumerate((1, 0, 127, 128, 300, 20_000))]
RECORD = examples.encode(
    {CAMERA: IMAGES, "steps/action": np.arange(12, dtype="f"), "steps/text": [b"one", b"two"], "steps/is_first": np.array([True, False])}
)


def sparse(payload: bytes, columns=(CAMERA,)) -> SparseExample:
    return SparseExample(payload, columns, lambda offset, length: payload[offset : offset + length])


def test_nothing_is_lost():
    whole, part = examples.Example(RECORD), sparse(RECORD)
    assert part.names == whole.names
    assert all(name in part for name in whole.names)
    assert list(part.blobs(CAMERA)) == list(whole.blobs(CAMERA)) == IMAGES
    assert list(part.blobs("steps/text")) == [b"one", b"two"]
    np.testing.assert_array_equal(part.numbers("steps/action"), whole.numbers("steps/action"))
    for drop in ((), ("steps/action",), (CAMERA,)):
        assert part.replaced(drop, {"steps/new": [b"new"]}) == whole.replaced(drop, {"steps/new": [b"new"]})
    with pytest.raises(ValueError, match="missing in the record"):
        part.blobs("steps/other")
    assert part.nbytes < len(RECORD) / 2


def test_unusual_records_are_left_to_the_parser():
    doubled = RECORD + RECORD  # protobuf reads two concatenated messages as one; later entries win
    numbers = examples.encode({CAMERA: np.arange(3)})
    for payload in (doubled, numbers, b"", examples.encode({})):
        assert split(payload, (CAMERA,))[1] == {}
        assert sparse(payload).names == examples.Example(payload).names
    with pytest.raises(ValueError, match="holds int64_list, expected bytes_list"):
        sparse(numbers).blobs(CAMERA)


def test_damaged_records_are_refused_or_read_as_the_parser_reads_them():
    """Every truncation, and random byte changes: no error but ValueError, and no values but those of the full parser."""
    small = examples.encode({CAMERA: [b"ab", b"c" * 130], "steps/action": np.arange(3, dtype="f")})
    rng = np.random.default_rng(0)
    damaged = [small[:stop] for stop in range(len(small))]
    for _ in range(2000):
        changed = bytearray(small)
        changed[rng.integers(len(small))] = rng.integers(256)
        damaged.append(bytes(changed))
    agreed = 0
    for payload in damaged:
        try:
            whole = examples.Example(payload)
        except ValueError:
            with pytest.raises(ValueError):
                sparse(payload)
            continue
        part = sparse(payload)
        assert part.names == whole.names
        if CAMERA in whole:
            try:
                expected = list(whole.blobs(CAMERA))
            except ValueError:
                continue
            assert list(part.blobs(CAMERA)) == expected
            agreed += 1
    assert agreed > 100


def test_later_windows_read_their_frames_only(built, monkeypatch):
    data, fetched, read = RLDSDataset(built), [], storage.read_range
    payload = tfrecord.read_payload(data._path(1), int(data._offset[1]), int(data._bytes[1]))
    expected = [examples.Example(payload).blobs(CAMERA)[step] for step in (0, 3)]
    monkeypatch.setattr(storage, "read_range", lambda *request: fetched.append(request[2]) or read(*request))
    data[1].column("action")
    assert [data[1].encoded("observation/rgb_static", step) for step in (0, 3)] == expected
    assert fetched == [len(payload) + tfrecord.FOOTER.size, *map(len, expected)]
    assert sum(fetched[1:]) < len(payload) / 4


def test_a_file_truncated_after_the_first_read_is_named(dataset_copy):
    data = RLDSDataset(dataset_copy)
    last = len(data) - 1
    path = dataset_copy / data.where(last).rsplit("/", 1)[1].split(" record")[0]
    data[last].column("action")
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - data._bytes[last] // 2)
    with pytest.raises(BadRecordError, match=r"record \d+, field 'observation/rgb_(static|gripper)': .*rewritten after it was indexed"):
        [data[last].encoded(camera, step) for camera in data.schema.cameras for step in range(data.lengths[last])]
    path.unlink()
    with pytest.raises(BadRecordError, match="the file no longer exists"):
        data[last].encoded("observation/rgb_static", 0)
