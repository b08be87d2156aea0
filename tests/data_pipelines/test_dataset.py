"""Random access to episodes: our datasets, the real shard, and errors for invalid directories."""

import json
import os
import pickle
import shutil
import zlib

import numpy as np
import pytest

from data_pipelines.errors import BadRecordError, DataError, DatasetNotFoundError
from data_pipelines.rlds import examples, images
from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset
from data_pipelines.rlds.schema import Feature, Schema


def test_columns_come_back(write_dataset):
    dataset = RLDSDataset(write_dataset([4, 1, 6]))
    assert len(dataset) == 3
    assert dataset.lengths.tolist() == [4, 1, 6]
    assert dataset.num_steps == 11
    episode = dataset[2]
    np.testing.assert_array_equal(episode.column("action")[:, 0], 200 + np.arange(6))
    assert episode.column("is_first").tolist() == [True] + [False] * 5
    assert episode.column("is_first").dtype == bool
    assert episode.text("language_instruction", 3) == "episode 2"
    assert episode.metadata("episode_metadata/number") == 2
    assert abs(int(episode.frame("observation/rgb_static", 5)[0, 0, 0]) - 25) <= 1


def test_dataset_pickles_and_its_copy_reads(write_dataset):
    dataset = RLDSDataset(write_dataset([4, 2]))
    _ = dataset[0]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset))[1].column("action"), dataset[1].column("action"))


def test_cache_stays_within_its_budget(write_dataset):
    dataset = RLDSDataset(write_dataset([3] * 10), cache_bytes=20_000)
    for index in [*range(10), *range(10)]:
        np.testing.assert_array_equal(dataset[index].column("action")[0, 0], 100 * index)
    assert 0 < len(dataset._cache) < 10
    assert dataset._cache.used <= 20_000


def test_index_is_next_to_the_shards_or_in_index_dir(write_dataset, tmp_path):
    directory = write_dataset([2])
    RLDSDataset(directory, index_dir=tmp_path / "elsewhere")
    assert not list(directory.glob("record_index*"))
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    RLDSDataset(directory)
    assert (directory / "record_index-train.npz").is_file()


def test_newest_version_is_used(built, tmp_path):
    for version in ("1.0.0", "1.10.0", "1.9.0"):
        shutil.copytree(built, tmp_path / "name" / version)
    assert DatasetInfo.read(tmp_path / "name").directory.name == "1.10.0"


def test_missing_directory_split_and_shard_have_different_errors(dataset_copy):
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        RLDSDataset(dataset_copy / "nothing")
    (dataset_copy.parent / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"has no dataset_info\.json"):
        RLDSDataset(dataset_copy.parent / "empty")
    with pytest.raises(DatasetNotFoundError, match=r"no split 'test'.*has train, val"):
        RLDSDataset(dataset_copy, "test")
    names = DatasetInfo.read(dataset_copy).splits["val"].files
    (dataset_copy / names[0]).unlink()
    assert len(RLDSDataset(dataset_copy, "train")) == 12
    with pytest.raises(DatasetNotFoundError, match=rf"{names[0]}.*complete splits: train"):
        RLDSDataset(dataset_copy, "val")


def test_skip_continues_without_a_missing_shard(dataset_copy):
    names = DatasetInfo.read(dataset_copy).splits["train"].files
    (dataset_copy / names[1]).unlink()
    dataset = RLDSDataset(dataset_copy, on_bad_record="skip")
    assert len(dataset) == 8
    assert [defect.file for defect in dataset.defects] == [names[1]]


def test_corrupt_record_is_named_or_skipped(dataset_copy):
    path = dataset_copy / DatasetInfo.read(dataset_copy).splits["train"].files[2]
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(BadRecordError, match=rf"{path.name} record 0.*CRC32C.*on_bad_record=skip"):
        RLDSDataset(dataset_copy)
    dataset = RLDSDataset(dataset_copy, on_bad_record="skip")
    assert len(dataset) == 11
    assert dataset.defects[0].where == f"{path.name} record 0"


def test_a_record_damaged_after_indexing_is_found_when_read(dataset_copy):
    dataset = RLDSDataset(dataset_copy)
    path = dataset_copy / DatasetInfo.read(dataset_copy).splits["train"].files[0]
    data = bytearray(path.read_bytes())
    data[dataset._offset[1] + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadRecordError, match=rf"{path.name} record 1: corrupt"):
        dataset[1]
    assert len(dataset[2].column("action"))


def test_no_image_comes_from_a_rewritten_file(write_dataset):
    directory = write_dataset([3, 3])
    dataset = RLDSDataset(directory)
    (path,) = directory.glob("*.tfrecord-*")
    episode = dataset[0]
    before = episode.frame("observation/rgb_static", 1)
    data, state = bytearray(path.read_bytes()), path.stat()
    data[int(dataset._offset[0]) + 700] ^= 1  # the checksum of the episode is not verified again
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    with pytest.raises(BadRecordError, match=r"record 0, field 'observation/rgb_static': the file was rewritten after it was indexed"):
        episode.frame("observation/rgb_static", 2)
    os.truncate(path, 0)
    with pytest.raises(BadRecordError, match=r"record 1: truncated record"):
        dataset[1]
    path.unlink()
    with pytest.raises(BadRecordError, match="the file no longer exists"):
        episode.frame("observation/rgb_static", 2)
    assert before.shape == (8, 8, 3)


def test_fewer_records_than_listed_is_an_error(dataset_copy):
    info = json.loads((dataset_copy / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"][0] = "5"
    (dataset_copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(BadRecordError, match="4 records instead of 5"):
        RLDSDataset(dataset_copy)


def test_zero_length_episode_is_a_bad_record(write_dataset):
    directory = write_dataset([3, 0, 2])
    with pytest.raises(BadRecordError, match="record 1: zero-length episode"):
        RLDSDataset(directory)
    assert RLDSDataset(directory, on_bad_record="skip").lengths.tolist() == [3, 2]


def test_wrong_columns_name_the_field(write_dataset):
    def spoil(episode, steps):
        steps["action"] = steps["action"][:-1]
        steps["observation/rgb_static"] = [b"not an image"] * 3

    episode = RLDSDataset(write_dataset([3], spoil))[0]
    with pytest.raises(BadRecordError, match=r"record 0, field 'action': 14 numbers, expected 3 steps x \[7\]"):
        episode.column("action")
    with pytest.raises(BadRecordError, match=r"field 'observation/rgb_static': neither JPEG nor PNG"):
        episode.frame("observation/rgb_static", 0)
    with pytest.raises(DataError, match=r"no step field 'state'.*has action, is_first"):
        episode.column("state")


def test_unreadable_descriptions_are_named(dataset_copy):
    (dataset_copy / "features.json").write_text("{")
    with pytest.raises(DataError, match=r"features.json: not a TFDS feature description"):
        RLDSDataset(dataset_copy)
    (dataset_copy / "dataset_info.json").write_text("[]")
    with pytest.raises(DataError, match=r"dataset_info.json: not a TFDS dataset description"):
        RLDSDataset(dataset_copy)


def test_schema_of_every_feature_class():
    def leaf(kind, **body):
        return {"pythonClassName": f"x.{kind}", **body}

    tree = {
        "featuresDict": {
            "features": {
                "steps": {
                    "sequence": {
                        "feature": {
                            "featuresDict": {
                                "features": {
                                    "a/b": leaf(
                                        "Tensor", tensor={"shape": {"dimensions": ["2", "-1"]}, "dtype": "uint16", "encoding": "zlib"}
                                    ),
                                    "flag": leaf("Scalar", tensor={"shape": {}, "dtype": "bool"}),
                                    "name": leaf("Tensor", tensor={"shape": {}, "dtype": "string"}),
                                    "o": {
                                        "featuresDict": {
                                            "features": {"image": leaf("Image", image={"shape": {"dimensions": ["-1", "-1", "3"]}})}
                                        }
                                    },
                                    "list": leaf("Sequence", sequence={"feature": {}}),
                                }
                            }
                        }
                    }
                },
                "episode_metadata": {"pythonClassName": "y.FeaturesDict"},
                "id": leaf("Text", text={}),
            }
        }
    }
    schema = Schema.from_json(tree)
    assert schema.steps["a/b"].shape == (2, None)
    assert {name: feature.kind for name, feature in schema.steps.items()} == {
        "a/b": "tensor",
        "flag": "tensor",
        "name": "text",
        "o/image": "image",
        "list": "unsupported",
    }
    assert list(schema.episode) == ["id"]
    assert schema.cameras == ("o/image",)


def test_encoded_tensors_and_unpacked_floats():
    values = np.arange(12, dtype="<u2").reshape(2, 3, 2)
    record = examples.encode({"z": [zlib.compress(step.tobytes()) for step in values]})
    feature = Feature("tensor", "uint16", (None, 2), "zlib")
    np.testing.assert_array_equal(examples.Example(record).column("z", feature, 2), values)
    # the same column by a writer that does not pack its floats: field 1, wire type 5, each
    body = b"".join(b"\x0d" + np.float32(value).tobytes() for value in (1.5, -2, 3))

    def wrap(number, data):
        return bytes([number << 3 | 2, len(data)]) + data

    unpacked = wrap(1, wrap(1, wrap(1, b"f") + wrap(2, wrap(2, body))))
    assert examples.Example(unpacked).numbers("f").tolist() == [1.5, -2, 3]


def test_numbers_that_do_not_fit_are_refused():
    record = examples.Example(
        examples.encode(
            {
                "i": np.array([1, 300]),
                "f": np.array([1.5, 2], "f"),
                "bomb/value": [zlib.compress(bytes(1 << 20))] * 2,
                "bomb/shape": np.array([[1 << 40, 1 << 40], [3, 5]]),
            }
        )
    )
    for name, feature, problem in (
        ("i", Feature("tensor", "int8"), "from 1 to 300, features.json says int8"),
        ("f", Feature("tensor", "int32"), "holds float32 numbers, features.json says int32"),
        ("i", Feature("tensor", "float32"), "holds int64 numbers, features.json says float32"),
        ("bomb", Feature("tensor", "uint8", (None, None), "zlib"), "bytes in one value, more than"),
        ("bomb/value", Feature("tensor", "uint8", (16,), "zlib"), "17 bytes unpacked, expected 16"),
    ):
        with pytest.raises(ValueError, match=problem):
            record.column(name, feature, 2)


def test_png_and_jpeg_are_detected_from_their_bytes():
    import io

    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    np.testing.assert_array_equal(images.decode(buffer.getvalue()), image)
    assert images.size(buffer.getvalue()) == (9, 7)
    smooth = np.tile(np.linspace(0, 255, 16, dtype=np.uint8)[:, None, None], (1, 16, 3))
    assert np.abs(images.decode(images.encode_jpeg(smooth)).astype(int) - smooth).max() <= 4
    with pytest.raises(ValueError, match="cannot be decoded"):
        images.decode(images.encode_jpeg(smooth)[:40])


def test_real_shard_with_a_missing_one(bridge_dataset, tmp_path):
    dataset = RLDSDataset(bridge_dataset, index_dir=tmp_path)
    assert len(dataset) == 14
    assert set(dataset.lengths) == {10}
    assert dataset.schema.steps["observation/image_0"].encoding == "jpeg"
    for episode in (dataset[0], dataset[13]):
        assert episode.column("action").shape == (10, 7)
        assert episode.column("language_embedding").shape == (10, 512)
        assert len(episode.text("language_instruction").split()) >= 4
        assert episode.frame("observation/image_1", 9).shape == (64, 64, 3)
    with pytest.raises(DatasetNotFoundError, match=r"bridge_dataset-val.tfrecord-00000-of-00001.*complete splits: train"):
        RLDSDataset(bridge_dataset, "val", index_dir=tmp_path)
