"""Record files and their index: what is written comes back, what is damaged is named."""

import os
import struct

import crc32c
import numpy as np
import pytest

from data_pipelines.rlds import index, tfrecord


def payloads(count: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    return [rng.bytes(int(rng.integers(0, 300))) for _ in range(count)]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "x-train.tfrecord-00000-of-00001"
    tfrecord.write_records(path, payloads(9))
    return path


def test_masked_crc_follows_the_format():
    assert crc32c.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    rotated = (0xE3069283 >> 15) | (0xE3069283 << 17) & 0xFFFFFFFF
    assert tfrecord.masked_crc(b"123456789") == (rotated + 0xA282EAD8) % 2**32


def test_records_come_back_in_place(shard):
    scanned = tfrecord.scan(shard, len)
    assert scanned.counts.tolist() == [len(payload) for payload in payloads(9)]
    for number in (8, 0, 5):
        got = tfrecord.read_payload(shard, int(scanned.offsets[number]), int(scanned.lengths[number]))
        assert got == payloads(9)[number]
    assert not scanned.defects


def test_nothing_of_an_interrupted_write_remains(tmp_path):
    def broken():
        yield b"one"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        tfrecord.write_records(tmp_path / "file", broken())
    assert not list(tmp_path.iterdir())


def test_flipped_payload_byte_spoils_one_record(shard):
    scanned = tfrecord.scan(shard, len)
    data = bytearray(shard.read_bytes())
    data[scanned.offsets[3]] ^= 1
    shard.write_bytes(data)
    after = tfrecord.scan(shard, len)
    assert [defect.record for defect in after.defects] == [3]
    assert after.counts[3] == -1
    assert len(after.counts) == 9
    with pytest.raises(ValueError, match="CRC32C"):
        tfrecord.read_payload(shard, int(scanned.offsets[3]), int(scanned.lengths[3]))


def test_flipped_header_loses_the_rest(shard):
    scanned = tfrecord.scan(shard, len)
    data = bytearray(shard.read_bytes())
    data[scanned.offsets[4] - 12] ^= 1  # lowest byte of the length
    shard.write_bytes(data)
    (defect,) = tfrecord.scan(shard, len).defects
    assert defect.fatal
    assert defect.record == 4
    assert "header" in defect.problem


@pytest.mark.parametrize("cut", [1, 5, 13, 20])
def test_truncation_is_named(shard, cut):
    os.truncate(shard, shard.stat().st_size - cut)
    after = tfrecord.scan(shard, len)
    assert len(after.offsets) == 8
    assert after.defects[0].record == 8
    assert "truncated" in after.defects[0].problem


def test_huge_length_is_not_believed(tmp_path):
    path = tmp_path / "file"
    length = struct.pack("<Q", 2**60)
    path.write_bytes(length + struct.pack("<I", tfrecord.masked_crc(length)) + b"abc")
    assert "truncated" in tfrecord.scan(path, len).defects[0].problem


def test_index_is_stored_reused_and_rebuilt_on_change(shard, tmp_path, monkeypatch):
    scans = []
    monkeypatch.setattr(index, "scan", lambda path, count: scans.append(path) or tfrecord.scan(path, count))
    store = tmp_path / "index" / "record_index.npz"
    first = index.load_or_build([shard], store, len)
    again = index.load_or_build([shard], store, len)
    assert len(scans) == 1
    for name in ("offsets", "lengths", "counts"):
        np.testing.assert_array_equal(getattr(first[0], name), getattr(again[0], name))
    tfrecord.write_records(shard, payloads(9)[:4])
    changed = index.load_or_build([shard], store, len)
    assert len(scans) == 2
    assert len(changed[0].offsets) == 4
    assert index.fingerprint(changed) != index.fingerprint(first)


def test_only_the_changed_shard_is_scanned_again(tmp_path, monkeypatch):
    shards = [tmp_path / f"shard{number}" for number in range(3)]
    for number, path in enumerate(shards):
        tfrecord.write_records(path, payloads(number + 1))
    store = tmp_path / "index.npz"
    index.load_or_build(shards, store, len)
    tfrecord.write_records(shards[1], payloads(7))
    scans = []
    monkeypatch.setattr(index, "scan", lambda path, count: scans.append(path.name) or tfrecord.scan(path, count))
    assert [len(shard.offsets) for shard in index.load_or_build(shards, store, len)] == [1, 7, 3]
    assert scans == ["shard1"]


def test_damaged_index_is_rebuilt(shard, tmp_path):
    store = tmp_path / "record_index.npz"
    good = index.load_or_build([shard], store, len)
    store.write_bytes(store.read_bytes()[:100])
    np.testing.assert_array_equal(index.load_or_build([shard], store, len)[0].offsets, good[0].offsets)


def test_read_only_directory_keeps_the_index_in_memory(shard, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    try:
        assert len(index.load_or_build([shard], locked / "record_index.npz", len)[0].offsets) == 9
        assert not list(locked.iterdir())
    finally:
        locked.chmod(0o755)
