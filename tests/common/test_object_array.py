"""NumPy files of Python objects: equal to what NumPy's own loader gives, and nothing in them runs."""

import io
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from malicious import attacks

from vpp_jax.common.errors import FileFormatError
from vpp_jax.common.object_array import read_object_array

CONTENT = {
    "language": {"ann": ["lift it", "öffne"], "task": ["lift", "open"], "emb": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 1, 4)},
    "info": {"indx": [(1, 2), (np.int64(300), np.int64(1 << 40))], "episodes": [], "more": (None, True, 1.5, b"raw", -7, 1 << 80)},
    "arrays": [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.array([b"x", b"yz"]),
        np.array([True, False]),
        np.array([1 + 2j]),
        np.zeros((0, 3), np.float16),
        np.array([{"deep": [1]}, None], object),
        np.array(3, np.uint8),
    ],
    "scalars": [np.float32(0.1), np.bool_(True), np.str_("text"), np.float64(1e300), np.int8(-1)],
    7: "a number as the key",
}
CONTENT["shared"] = [CONTENT["language"], CONTENT["language"]]


def written(path: Path, content, protocol: int, module: bytes = b"numpy._core") -> Path:
    """As np.save writes it, with any protocol, and with the names of NumPy before 2.0."""
    array = np.empty((), object)
    array[()] = content
    data = pickle.dumps(array, protocol=protocol)
    if module != b"numpy._core":  # protocols below 4 spell names as lines, without their length
        assert b"c" + b"numpy._core" in data
        data = data.replace(b"numpy._core", module)
    return headed(path, data)


def headed(path: Path, data: bytes, shape=(), dtype: str = "|O") -> Path:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    path.write_bytes(file.getvalue() + data)
    return path


def same(one, two) -> bool:
    if isinstance(one, dict):
        return type(two) is dict and list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray):
        equal = isinstance(two, np.ndarray) and (one.dtype, one.shape) == (two.dtype, two.shape)
        return equal and (all(map(same, one.flat, two.flat)) if one.dtype == object else np.array_equal(one, two))
    return type(one) is type(two) and one == two


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_equal_to_numpys_own_loader(tmp_path, protocol):
    path = written(tmp_path / "a.npy", CONTENT, protocol)
    read = read_object_array(path).item()
    assert same(read, np.load(path, allow_pickle=True).item())
    assert same(read, CONTENT)
    assert read["shared"][0] is read["shared"][1]


@pytest.mark.parametrize("protocol", [2, 3])
def test_names_of_numpy_before_2(tmp_path, protocol):
    assert same(read_object_array(written(tmp_path / "a.npy", CONTENT, protocol, b"numpy.core")).item(), CONTENT)


def test_other_byte_orders_become_this_machines(tmp_path):
    path = written(tmp_path / "a.npy", [np.array([1, 2], ">i4"), np.array(["a"], ">U1"), np.float64(2.5).astype(">f8")], 3)
    assert same(read_object_array(path).item(), np.load(path, allow_pickle=True).item())


def test_a_file_that_numpy_1_26_wrote(project):
    content = read_object_array(project / "tests" / "data" / "lang_ann_numpy1.npy").item()
    assert content["language"]["task"] == ["lift_red_block_table", "open_drawer", "lift_red_block_table"]
    assert content["info"] == {"episodes": [], "indx": [(358656, 358720), (358700, 358764), (360573, 360617)]}
    np.testing.assert_array_equal(content["language"]["emb"], np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 1, 4))


def test_bytes_as_python_2_wrote_them(tmp_path):
    """Protocol 2 with byte strings, type and data alike."""
    array = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01)cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]}U\x01xcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"U\x04\x01\x00\xff\x00tbsatb."
    )
    read = read_object_array(headed(tmp_path / "a.npy", array)).item()
    assert list(read) == ["x"]
    np.testing.assert_array_equal(read["x"], np.array([1, 255], np.int16))


def test_plain_arrays_and_arrays_of_objects(tmp_path):
    np.save(tmp_path / "plain.npy", np.arange(3))
    np.testing.assert_array_equal(read_object_array(tmp_path / "plain.npy"), np.arange(3))
    np.save(tmp_path / "objects.npy", np.array([[{"a": 1}, None], ["x", 2]], object))
    read = read_object_array(tmp_path / "objects.npy")
    assert read.shape == (2, 2)
    assert read.tolist() == [[{"a": 1}, None], ["x", 2]]


NAMES = list(attacks(Path("x")))


@pytest.mark.parametrize("attack", NAMES)
def test_malicious_files_are_refused_with_nothing_run(tmp_path, attack):
    canary = tmp_path / "canary"
    path = headed(tmp_path / "a.npy", attacks(canary)[attack])
    with pytest.raises(FileFormatError, match="is refused") as caught:
        read_object_array(path)
    assert not canary.exists()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("attack", NAMES)
def test_numpys_own_loader_does_run_them(tmp_path, attack):
    """Without this the test above could pass on harmless files."""
    canary = tmp_path / "canary"
    path = headed(tmp_path / "a.npy", attacks(canary)[attack])
    with suppress(Exception):  # it runs first, and then most results are no arrays
        np.load(path, allow_pickle=True)
    assert canary.exists()


def test_allowed_names_in_other_places(tmp_path):
    """Everything a file may mention stands only where NumPy writes it; a name elsewhere is no value."""
    name = b"cnumpy\ndtype\n"
    array = pickle.dumps(np.array({"x": "HERE"}, object), protocol=2)
    place = array.index(b"X\x04\x00\x00\x00HERE")
    for smuggled in (name, name + b"X\x02\x00\x00\x00f8\x85R", b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R"):
        data = array[:place] + smuggled + array[place + 9 :]
        with pytest.raises(FileFormatError, match="is damaged or not written by"):
            read_object_array(headed(tmp_path / "a.npy", data))


@pytest.mark.parametrize("dtype", ["V8", "M8", "i8,O", "O8,i4", "f16", "S" * 9, ""])
def test_types_that_numbers_and_texts_do_not_need(tmp_path, dtype):
    text = dtype.encode()
    array = (
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU" + bytes([len(text)]) + text + b"K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x08\x00\x00\x00\x00\x00\x00\x00\x00\x86R."
    )
    with pytest.raises(FileFormatError, match="is damaged or not written by"):
        read_object_array(headed(tmp_path / "a.npy", array))


def test_values_that_contain_themselves_or_multiply(tmp_path):
    content = {}
    content["itself"] = [content]
    with pytest.raises(FileFormatError, match="contains itself"):
        read_object_array(written(tmp_path / "a.npy", content, 4))
    nested = ["x"]
    for _ in range(100):  # 2**100 entries, were each reference followed
        nested = [nested, nested]
    assert len(read_object_array(written(tmp_path / "b.npy", nested, 4)).item()) == 2


def test_every_truncation_and_random_bytes_give_the_one_error(project, tmp_path):
    data = (project / "tests" / "data" / "lang_ann_numpy1.npy").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [data[:length] for length in range(len(data))]
    for _ in range(500):
        noise = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            noise[place] = rng.integers(0, 256)
        damaged.append(bytes(noise))
    refused, path = 0, tmp_path / "a.npy"
    for content in damaged:
        path.write_bytes(content)
        try:
            read_object_array(path)
        except FileFormatError:
            refused += 1
    assert refused >= len(data)


def test_header_and_content_that_differ(tmp_path):
    data = pickle.dumps(np.array([1, "a"], object), protocol=4)
    with pytest.raises(FileFormatError, match=r"does not hold the array of objects \(3,\)"):
        read_object_array(headed(tmp_path / "a.npy", data, (3,)))
    with pytest.raises(FileFormatError, match="does not hold the array of objects"):
        read_object_array(headed(tmp_path / "a.npy", pickle.dumps({"a": 1}, protocol=4)))
    with pytest.raises(FileFormatError, match="is not a NumPy file"):
        read_object_array(headed(tmp_path / "a.npy", data, (2,), [("a", "|O"), ("b", "<i4")]))
