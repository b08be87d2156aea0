"""PyTorch archives without PyTorch: what is read, and that no pickle can run anything.

Malicious files create a canary when `pickle` loads them, and do not when this reader does. That they would, and that the reader's modules
contain no way to import, look up or call what a file names, is tested in tests/common/test_inert_pickle.py.
"""

import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from malicious import attacks

from vpp_jax.common.errors import FileFormatError
from vpp_jax.interop.torch_file import TorchFile

# --- tensors ------------------------------------------------------------------------------------------------------------------------


def test_types_shapes_and_values(archive, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "brain": np.arange(4).astype(ml_dtypes.bfloat16),
        "count": np.arange(3),
        "scalar": np.array(-0.0, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }
    source = TorchFile(archive.write(tmp_path / "a.pt", {"model": archive.state_dict(arrays)}))
    assert source.arguments is None
    for name, value in arrays.items():
        assert (source.tensors[name].shape, source.tensors[name].dtype) == (value.shape, value.dtype)
        assert source.read(name).tobytes() == value.tobytes()


def test_a_bare_state_dict_is_read_too(archive, tmp_path):
    source = TorchFile(archive.write(tmp_path / "a.bin", archive.state_dict({"x": np.ones(2, np.float32)})))
    np.testing.assert_array_equal(source.read("x"), np.ones(2))


def test_views_parameters_and_shared_storages(archive, fabricated, tmp_path):
    values = np.arange(24, dtype=np.float32)
    storage, view = archive.storage(values), fabricated.view
    hooks = fabricated.Reduce(fabricated.Name("collections", "OrderedDict"))
    whole = view(storage, 0, (24,), (1,))
    tree = {
        "turned": view(storage, 0, (4, 6), (1, 4)),
        "part": view(storage, 5, (2, 3), (6, 2)),
        "repeated": view(storage, 3, (4, 2), (0, 1)),
        "parameter": fabricated.Reduce(fabricated.Name("torch._utils", "_rebuild_parameter"), (whole, True, hooks)),
    }
    source = TorchFile(archive.write(tmp_path / "a.pt", {"model": tree}))
    np.testing.assert_array_equal(source.read("turned"), values.reshape(6, 4).T)
    np.testing.assert_array_equal(source.read("part"), [[5, 7, 9], [11, 13, 15]])
    np.testing.assert_array_equal(source.read("repeated"), [[3, 4]] * 4)
    np.testing.assert_array_equal(source.read("parameter"), values)


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [((25,), (1,), 0), ((3,), (1,), 22), ((2, 2), (100, 1), 0), ((1 << 40,), (1,), 0), ((1,), (1,), 1 << 40)],
)
def test_tensors_beyond_their_storage(archive, tmp_path, fabricated, monkeypatch, shape, strides, offset):
    # the numbers need not fit 32 bits
    monkeypatch.setattr(
        fabricated,
        "_opcodes",
        lambda value, inner=fabricated._opcodes: b"\x8a\x08" + struct.pack("<q", value) if type(value) is int else inner(value),
    )
    tensor = fabricated.view(archive.storage(np.zeros(24, np.float32)), offset, shape, strides)
    source = TorchFile(archive.write(tmp_path / "a.pt", {"model": {"x": tensor}}))
    with pytest.raises(FileFormatError, match=r"x .* reaches beyond its storage of 24 values"):
        source.read("x")


def test_configuration_is_recovered_without_omegaconf(archive, fabricated, tmp_path):
    model = {"latent_dim": 384, "lr": 1e-4, "flag": True, "none": None, "views": [1, "two", [3]], "ref": "${model.lr}"}
    config = {"model": model, "seed": 6}
    tree = {"model": archive.state_dict({"x": np.ones(1, np.float32)}), "args": fabricated.omegaconf(config)}
    assert TorchFile(archive.write(tmp_path / "a.pt", tree)).arguments == config
    tree["args"] = {"plain": (1, 2), "type": fabricated.Name("typing", "Any")}
    assert TorchFile(archive.write(tmp_path / "b.pt", tree)).arguments == {"plain": [1, 2], "type": "typing.Any"}


def test_configurations_that_refer_to_themselves_or_explode(archive, tmp_path):
    """A dict that contains itself; and twenty tuples, each holding the one before ten times."""
    model = b"X\x05\0\0\0model}X\x01\0\0\0x" + TENSOR + b"s"
    archive.storage(np.ones(1, np.float32))
    itself = b"X\x04\0\0\0args}q\x07X\x01\0\0\0ah\x07s"
    bomb = b"X\x04\0\0\0args" + b"(" * 20 + b")" + (b"q\x07" + b"h\x07" * 9 + b"t") * 20
    for args in (itself, bomb):
        with pytest.raises(FileFormatError, match="too large or refers to itself"):
            TorchFile(archive.write(tmp_path / "a.pt", None, b"\x80\x02}(" + model + args + b"u."))


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0K\x01\x85K\x01\x85"
    b"\x89ccollections\nOrderedDict\n)RtR"
)


# --- nothing runs -------------------------------------------------------------------------------------------------------------------


NAMES = list(attacks(Path("x")))


@pytest.mark.parametrize("attack", NAMES)
def test_malicious_files_are_refused_with_nothing_run(archive, tmp_path, attack):
    canary = tmp_path / "canary"
    data = attacks(canary)[attack]
    archive.storage(np.ones(1, np.float32))
    path = archive.write(tmp_path / "a.pt", None, data)
    with pytest.raises(FileFormatError, match="is refused") as caught:
        TorchFile(path)
    assert not canary.exists()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("attack", NAMES)
def test_a_legacy_file_is_refused_before_its_pickle_is_looked_at(tmp_path, attack):
    canary = tmp_path / "canary"
    (tmp_path / "old.pt").write_bytes(attacks(canary)[attack])
    with pytest.raises(FileFormatError, match=r"is not a zip archive .* weights_only=True"):
        TorchFile(tmp_path / "old.pt")
    assert not canary.exists()


def test_all_forbidden_names_are_listed(archive, tmp_path):
    data = b"\x80\x02](cos\nsystem\ncsubprocess\nPopen\nctorch._utils\n_rebuild_tensor_v2\ne."
    with pytest.raises(FileFormatError, match=r"calls for os\.system, subprocess\.Popen, which weight files have no use for"):
        TorchFile(archive.write(tmp_path / "a.pt", None, data))


# --- damaged and odd files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02.",
        b"\x80\x02h\x05.",
        b"\x80\x02K\x01u.",
        b"\x80\x02(K\x01u.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02}]K\x01s.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02X\xff\xff\xff\x7fab.",
        b"\x80\x02R.",
        b"\x80\x02t.",
        b"\x80\x02\xfe.",
        b"\x80\x02]K\x01\x86",
        b"garbage",
    ],
)
def test_damaged_pickles(archive, tmp_path, data):
    with pytest.raises(FileFormatError, match=r"damaged|refused"):
        TorchFile(archive.write(tmp_path / "a.pt", None, data))


def test_other_files(archive, fabricated, tmp_path):
    def refused(path) -> str:
        with pytest.raises(FileFormatError) as caught:
            TorchFile(path)
        return str(caught.value)

    good = archive.write(tmp_path / "good.pt", {"model": archive.state_dict({"x": np.ones(2, np.float32)})}).read_bytes()
    (tmp_path / "cut.pt").write_bytes(good[: len(good) // 2])
    assert "is not a zip archive" in refused(tmp_path / "cut.pt")
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as other:
        other.writestr("readme", "hello")
    assert "without (one) data.pkl" in refused(tmp_path / "zip.pt")
    tree = {"model": archive.state_dict({"x": np.ones(2, np.float32)})}
    assert "compresses nothing" in refused(archive.write(tmp_path / "packed.pt", tree, compression=zipfile.ZIP_DEFLATED))
    assert "holds a list" in refused(archive.write(tmp_path / "list.pt", [1]))
    assert "is empty or not a dict of tensors" in refused(archive.write(tmp_path / "empty.pt", {"model": {}}))
    assert "'x' is a int, expected a dense tensor" in refused(archive.write(tmp_path / "int.pt", {"model": {"x": 3}}))
    absent = fabricated.view(fabricated.Reference(("storage", fabricated.Name("torch", "FloatStorage"), "../9", "cpu", 1)), 0, (1,), (1,))
    assert "expected a dense tensor with its storage" in refused(archive.write(tmp_path / "absent.pt", {"model": {"x": absent}}))


def test_a_damaged_storage_is_named(archive, tmp_path):
    path = archive.write(tmp_path / "a.pt", {"model": archive.state_dict({"x": np.full(64, 3.0, np.float32)})})
    content = path.read_bytes()
    place = content.find(np.full(64, 3.0, np.float32).tobytes())
    path.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    source = TorchFile(path)
    with pytest.raises(FileFormatError, match="the storage of x is damaged"):
        source.read("x")


def test_archive_members_are_not_extracted(archive, tmp_path):
    """A member called ../evil stays inside the archive."""
    archive.storage(np.ones(1, np.float32))
    path = archive.write(tmp_path / "a.pt", {"model": archive.state_dict({"x": np.ones(2, np.float32)})})
    with zipfile.ZipFile(path, "a") as other:
        other.writestr("../evil", "x")
    TorchFile(path).read("x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pt"]
