"""Safetensors: the streaming writer against the format's own library, types, memory, and damaged files."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vpp_jax.common.errors import FileFormatError
from vpp_jax.interop.safetensors_file import UNMAP_AFTER, SafetensorsFile, SafetensorsShards, make_header, parse_header, write_file


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "z": rng.standard_normal((3, 5)).astype(np.float32),
        "a.weight": rng.standard_normal((2, 3, 1)).astype(np.float16),
        "count": np.arange(4, dtype=np.int64),
        "scalar": np.array(-0.0, np.float32),
        "nan": np.array([0x7FC12345, 0xFF800001], np.uint32).view(np.float32),  # payloads must survive
        "empty": np.zeros((0, 4), np.float32),
        "bytes": np.arange(5, dtype=np.uint8),
    }


@pytest.fixture
def saved(arrays, tmp_path):
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "pt"})
    return tmp_path / "a.safetensors"


def test_reads_what_the_library_wrote(saved, arrays):
    file = SafetensorsFile(saved)
    assert file.tensors.keys() == arrays.keys()
    for name, value in arrays.items():
        read = file.read(name)
        assert (read.shape, read.dtype) == (value.shape, value.dtype) == (file.tensors[name].shape, file.tensors[name].dtype)
        assert read.tobytes() == value.tobytes()


def test_writes_the_bytes_that_the_library_writes(saved, arrays, tmp_path):
    header = make_header(SafetensorsFile(saved).tensors, {"format": "pt"})
    ours = tmp_path / "b.safetensors"
    size = write_file(ours, header, ((name, arrays[name]) for name in parse_header(header)))
    assert ours.read_bytes() == saved.read_bytes()
    assert size == saved.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_bfloat16_and_turned_arrays(tmp_path):
    value = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
    write_file(tmp_path / "a.safetensors", make_header({"x": value.T}), [("x", value.T)])
    read = SafetensorsFile(tmp_path / "a.safetensors").read("x")
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, value.T)


def test_the_library_reads_what_we_wrote(arrays, tmp_path):
    header = make_header({name: value for name, value in arrays.items()})
    write_file(tmp_path / "a.safetensors", header, ((name, arrays[name]) for name in parse_header(header)))
    for name, value in load_file(tmp_path / "a.safetensors").items():
        assert value.tobytes() == arrays[name].tobytes()


def test_values_that_do_not_fit_the_header_are_not_written(tmp_path):
    header = make_header({"x": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="does not fit"):
        write_file(tmp_path / "a.safetensors", header, [("x", np.zeros(4, np.float32))])
    assert not (tmp_path / "a.safetensors").exists()


# --- damaged files ------------------------------------------------------------------------------------------------------------------


def refused(path) -> str:
    with pytest.raises(FileFormatError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).startswith(
        f"{path} is not a safetensors file, or it is truncated or damaged (Error while deserializing header:"
    )
    return str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_truncated(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:keep])
    refused(saved)


def test_longer_than_its_header_says(saved):
    saved.write_bytes(saved.read_bytes() + b"x")
    refused(saved)


def test_absurd_header_length(saved):
    saved.write_bytes(struct.pack("<Q", 1 << 60) + saved.read_bytes()[8:])
    assert "header too large" in refused(saved)


def with_header(path, tree, data: bytes = b"\0" * 8) -> None:
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "tree",
    [
        b"{not json",
        b"\xff\xfe",
        b"[1, 2]",
        b"[" * 20_000,
        {"x": 3},
        {"x": {**GOOD, "dtype": "F33"}},
        {"x": {**GOOD, "shape": [-2]}},
        {"x": {**GOOD, "shape": [2.0]}},
        {"x": {**GOOD, "shape": [True, 2]}},
        {"x": {**GOOD, "data_offsets": [0]}},
        {"x": {"dtype": "F32", "shape": [2]}},
    ],
)
def test_corrupt_header(tmp_path, tree):
    with_header(tmp_path / "a.safetensors", tree)
    refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "entries", [{"x": {**GOOD, "data_offsets": [4, 12]}}, {"x": GOOD, "y": GOOD}, {"x": {**GOOD, "shape": [1 << 40, 1 << 40]}}]
)
def test_tensors_that_overlap_leave_holes_or_lie_about_their_size(tmp_path, entries):
    with_header(tmp_path / "a.safetensors", entries, b"\0" * 12)
    refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_types_that_are_not_supported(tmp_path, kind):
    with_header(tmp_path / "a.safetensors", {"x": {"dtype": kind, "shape": [8], "data_offsets": [0, 8]}})
    with pytest.raises(FileFormatError, match=rf"a\.safetensors: tensor x has type {kind}, supported are BOOL, .*BF16"):
        SafetensorsFile(tmp_path / "a.safetensors")


def test_what_was_read_does_not_stay_in_memory(tmp_path):
    """Mapped pages count as memory of the process until they are unmapped."""
    save_file({f"x{index}": np.zeros(UNMAP_AFTER // 8, np.uint8) for index in range(24)}, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    begin = mapped_bytes()
    peak = 0
    for name in file.tensors:
        file.read(name)
        peak = max(peak, mapped_bytes() - begin)
    assert peak < 1.5 * UNMAP_AFTER


def mapped_bytes() -> int:
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile:"))


# --- shards -------------------------------------------------------------------------------------------------------------------------


def shards(folder, weight_map) -> SafetensorsShards:
    save_file({"a": np.zeros(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.ones(3, np.float32)}, folder / "two.safetensors")
    (folder / "index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return SafetensorsShards(folder / "index.json")


def test_shards_are_read_through_their_index(tmp_path):
    source = shards(tmp_path, {"b": "two.safetensors", "a": "one.safetensors"})
    assert {name: spec.shape for name, spec in source.tensors.items()} == {"a": (2,), "b": (3,)}
    np.testing.assert_array_equal(source.read("b"), np.ones(3))


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", "..\\one.safetensors"])
def test_an_index_may_not_leave_its_folder(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "secret.safetensors")
    with pytest.raises(FileFormatError, match="only names of files in the same folder"):
        shards(folder, {"a": name})


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"a": "three.safetensors"}, "which does not exist"),
        ({"a": "two.safetensors"}, "maps a to two.safetensors, which does not contain it"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "maps c to two"),
        ({}, "is not an index"),
        ({"a": 3}, "is not an index"),
        ([1], "is not an index"),
    ],
)
def test_index_that_does_not_fit(tmp_path, weight_map, problem):
    with pytest.raises(FileFormatError, match=problem):
        shards(tmp_path, weight_map)


def test_index_that_leaves_tensors_out(tmp_path):
    save_file({"a": np.zeros(2, np.float32), "b": np.zeros(2, np.float32)}, tmp_path / "both.safetensors")
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": {"a": "both.safetensors"}}))
    with pytest.raises(FileFormatError, match="does not list 1 tensors of its files, first b"):
        SafetensorsShards(tmp_path / "index.json")
