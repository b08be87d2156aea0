"""TFRecord files and their index: round trip, and errors that name damaged records."""

import os
import struct

import crc32c
import numpy as np
import pytest

from data_pipelines import storage
from data_pipelines.rlds import index, tfrecord
from data_pipelines.rlds.shards import UNCOUNTED


def payloads(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(int(rng.integers(0, 300))) for _ in range(count)]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "x-train.tfrecord-00000-of-00001"
    tfrecord.write_records(path, payloads(9))
    return path


def scan(path, count=len):
    return tfrecord.scan(path, storage.file_info(path), count)


def load_or_build(paths, store, scans=None, **options):
    """The index of `paths`, in order; names of the files that were read go to `scans`."""

    def note(name, status):
        if scans is not None:
            scans.append(name)
        return tfrecord.scan(paths[0].parent / name, status, len if options.get("counted", True) else None)

    return index.load_or_build({path.name: storage.file_info(path) for path in paths}, store, note, **options)


def test_masked_crc_follows_the_format():
    assert crc32c.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    rotated = (0xE3069283 >> 15) | (0xE3069283 << 17) & 0xFFFFFFFF
    assert tfrecord.masked_crc(b"123456789") == (rotated + 0xA282EAD8) % 2**32


def test_records_come_back_in_place(shard):
    scanned = scan(shard)
    assert scanned.counts.tolist() == [len(payload) for payload in payloads(9)]
    for number in (8, 0, 5):
        got = tfrecord.read_payload(shard, int(scanned.offsets[number]), int(scanned.lengths[number]))
        assert got == payloads(9)[number]
    assert not scanned.defects


@pytest.mark.parametrize("block", [1, 13, 100, 1 << 20])
def test_records_are_found_whatever_is_fetched_at_once(shard, monkeypatch, block):
    expected = scan(shard)
    monkeypatch.setattr(tfrecord, "LOCAL_BLOCK", block)
    found = scan(shard)
    for name in ("offsets", "lengths", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_headers_give_the_offsets(shard, monkeypatch):
    expected, fetched = scan(shard), []
    read_range = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda path, offset, length, retry: fetched.append(length) or read_range(path, offset, length, retry)
    )
    found = scan(shard, None)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    assert set(found.counts) == {UNCOUNTED}
    assert fetched == [12] * 9
    data = bytearray(shard.read_bytes())
    data[expected.offsets[4] - 12] ^= 1  # lowest byte of a length: its checksum is checked, too
    shard.write_bytes(data)
    (defect,) = scan(shard, None).defects
    assert (defect.record, defect.fatal) == (4, True)


def test_nothing_of_an_interrupted_write_remains(tmp_path):
    def broken():
        yield b"one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tfrecord.write_records(tmp_path / "file", broken())
    assert not list(tmp_path.iterdir())


def test_flipped_payload_byte_damages_one_record(shard):
    scanned = scan(shard)
    data = bytearray(shard.read_bytes())
    data[scanned.offsets[3]] ^= 1
    shard.write_bytes(data)
    after = scan(shard)
    assert [defect.record for defect in after.defects] == [3]
    assert after.counts[3] == -1
    assert len(after.counts) == 9
    with pytest.raises(ValueError, match="CRC32C"):
        tfrecord.read_payload(shard, int(scanned.offsets[3]), int(scanned.lengths[3]))


def test_flipped_header_loses_the_rest(shard):
    scanned = scan(shard)
    data = bytearray(shard.read_bytes())
    data[scanned.offsets[4] - 12] ^= 1  # lowest byte of the length
    shard.write_bytes(data)
    (defect,) = scan(shard).defects
    assert defect.fatal
    assert defect.record == 4
    assert "header" in defect.problem


@pytest.mark.parametrize("cut", [1, 5, 13, 20])
def test_truncation_is_named(shard, cut):
    os.truncate(shard, shard.stat().st_size - cut)
    after = scan(shard)
    assert len(after.offsets) == 8
    assert after.defects[0].record == 8
    assert "truncated" in after.defects[0].problem


def test_huge_length_is_an_error(tmp_path):
    path = tmp_path / "file"
    length = struct.pack("<Q", 2**60)
    path.write_bytes(length + struct.pack("<I", tfrecord.masked_crc(length)) + b"abc")
    assert "truncated" in scan(path).defects[0].problem


def test_index_is_stored_reused_and_rebuilt_on_change(shard, tmp_path):
    scans, store = [], tmp_path / "index" / "record_index.npz"
    first = load_or_build([shard], store, scans)
    again = load_or_build([shard], store, scans)
    assert len(scans) == 1
    for name in ("offsets", "lengths", "counts"):
        np.testing.assert_array_equal(getattr(first[0], name), getattr(again[0], name))
    tfrecord.write_records(shard, payloads(9)[:4])
    changed = load_or_build([shard], store, scans)
    assert len(scans) == 2
    assert len(changed[0].offsets) == 4
    assert index.fingerprint(changed) != index.fingerprint(first)


@pytest.fixture
def several(tmp_path):
    paths = [tmp_path / f"shard{number}" for number in range(5)]
    for number, path in enumerate(paths):
        tfrecord.write_records(path, payloads(number + 1))
    return paths


def test_only_the_changed_shard_is_scanned_again(several, tmp_path):
    scans, store = [], tmp_path / "index.npz"
    load_or_build(several, store)
    tfrecord.write_records(several[1], payloads(7))
    assert [len(shard.offsets) for shard in load_or_build(several, store, scans)] == [1, 7, 3, 4, 5]
    assert scans == ["shard1"]


def test_steps_are_added_to_an_index_without_and_preserved_in_one_with(several, tmp_path):
    scans, store = [], tmp_path / "index.npz"
    places = load_or_build(several, store, scans, counted=False)
    assert not any(shard.counted for shard in places)
    full = load_or_build(several, store, scans)
    assert len(scans) == 10
    assert [shard.counts.tolist() for shard in load_or_build(several, store, scans, counted=False)] == [s.counts.tolist() for s in full]
    assert len(scans) == 10


def test_interrupted_build_saves_partial_results(several, tmp_path, monkeypatch):
    store, scans = tmp_path / "out" / "index.npz", []

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_or_build(several, store, workers=1, progress=stop)
    assert not store.exists()
    shards = load_or_build(several, store, scans)
    assert 0 < len(scans) <= 2
    assert [len(shard.offsets) for shard in shards] == [1, 2, 3, 4, 5]
    assert [path.name for path in store.parent.iterdir()] == ["index.npz"]


def test_killed_build_loses_a_second_at_most(several, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PART_EVERY_S", 0.0)
    monkeypatch.setattr(index, "_finalize", lambda *_: None)  # killed before the end
    store, scans = tmp_path / "out" / "index.npz", []
    load_or_build(several, store)
    monkeypatch.undo()
    load_or_build(several, store, scans)
    assert len(scans) <= 1
    assert store.is_file()


def test_hosts_share_the_work(several, tmp_path):
    store, scans = tmp_path / "index.npz", []
    for host in (2, 0):
        load_or_build(several, store, scans, shard_index=host, num_shards=3)
    assert sorted(scans) == ["shard0", "shard2", "shard3"]
    load_or_build(several, store, scans, shard_index=1, num_shards=3)
    assert sorted(scans) == [path.name for path in several]
    shards = load_or_build(several, store, scans)  # merges, reads nothing
    assert len(scans) == 5
    assert index.fingerprint(shards) == index.fingerprint(load_or_build(several, tmp_path / "alone.npz"))


def test_another_rule_makes_another_index(shard, tmp_path):
    scans, store = [], tmp_path / "index.npz"
    for rule in ("", "", "episodes without success", "episodes without success", ""):
        load_or_build([shard], store, scans, rule=rule)
    assert len(scans) == 3


def test_damaged_index_is_rebuilt(shard, tmp_path):
    store = tmp_path / "record_index.npz"
    good = load_or_build([shard], store)
    store.write_bytes(store.read_bytes()[:100])
    np.testing.assert_array_equal(load_or_build([shard], store)[0].offsets, good[0].offsets)


def test_read_only_directory_keeps_the_index_in_memory(shard, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    try:
        assert len(load_or_build([shard], locked / "record_index.npz")[0].offsets) == 9
        assert not list(locked.iterdir())
    finally:
        locked.chmod(0o755)
