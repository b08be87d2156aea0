"""Files in buckets and on disk: the same results, few requests, retries of transient errors but not of permanent ones."""

import pickle

import fake_bucket
import fsspec
import numpy as np
import pytest

from data_pipelines import storage
from data_pipelines.errors import BadRecordError, DataError, DatasetNotFoundError, ReadFailedError
from data_pipelines.rlds.dataset import DatasetInfo, RLDSDataset, build_index
from data_pipelines.rlds.schema import Schema
from data_pipelines.storage import Retry

QUICK = Retry(attempts=3, wait_s=0.001)
Bucket = fake_bucket.FakeBucket


@pytest.fixture(autouse=True)
def bucket():
    fsspec.register_implementation("fake", Bucket, clobber=True)
    Bucket.clear()
    yield Bucket
    Bucket.clear()


def test_disk_and_bucket_agree(bucket, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one").write_bytes(b"0123456789")
    (tmp_path / "sub" / "two").write_bytes(b"abc")
    memory = "memory://store/set"
    for name, data in (("one", b"0123456789"), ("sub/two", b"abc")):
        storage.write(f"{memory}/{name}", data)
    for place in (tmp_path, bucket.upload(tmp_path, "store/set"), memory):
        place = storage.location(place)
        one = storage.join(place, "one")
        assert storage.read(one) == b"0123456789"
        assert storage.read_range(one, 3, 4) == b"3456"
        assert storage.read_range(one, 8, 40) == b"89"
        assert {name: state.size for name, state in storage.list_files(place).items()} == {"one": 10}
        assert storage.list_dirs(place) == ["sub"]
        assert storage.file_info(one) == storage.list_files(place)["one"]
        before = storage.file_info(one)
        storage.write(one, b"9876543210")
        assert storage.file_info(one) != before
        storage.remove(one)
        storage.remove(one)
        for read in (
            lambda place=place: storage.read(storage.join(place, "one")),
            lambda place=place: storage.list_files(storage.join(place, "nothing")),
        ):
            with pytest.raises(FileNotFoundError):
                read()


@pytest.mark.parametrize(
    "error",
    [
        OSError("reset by peer"),
        TimeoutError(),
        type("HttpError", (Exception,), {"code": 503})(),
        type("HttpError", (Exception,), {"code": 429})(),
    ],
)
def test_transient_errors_are_retried(bucket, error):
    bucket.put("b/x", b"data")
    bucket.failures += [error, error]
    assert storage.read("fake://b/x", QUICK) == b"data"
    bucket.failures += [error] * 3
    with pytest.raises(ReadFailedError, match=r"fake://b/x: reading failed 3 time\(s\)"):
        storage.read("fake://b/x", QUICK)
    assert len(bucket.requests) == 6


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), type("HttpError", (Exception,), {"code": 401})()])
def test_permanent_errors_are_not_retried(bucket, error):
    bucket.put("b/x", b"data")
    bucket.failures += [error]
    with pytest.raises(type(error)):
        storage.read("fake://b/x", QUICK)
    assert len(bucket.requests) == 1


def test_pauses_grow_up_to_a_limit():
    retry = Retry(attempts=9, wait_s=0.5, max_wait_s=4)
    for failed, longest in ((1, 0.5), (2, 1), (4, 4), (8, 4)):
        pauses = [retry.pause(failed) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    with pytest.raises(DataError, match="at least 1"):
        Retry(attempts=0)


def test_missing_packages_are_named():
    with pytest.raises(DataError, match=r"s3:// needs the package s3fs.*pip install 'fsspec\[s3\]'"):
        storage.read("s3://bucket/name", QUICK)
    with pytest.raises(DataError, match="does not know the scheme nonsense://"):
        storage.read("nonsense://bucket/name", QUICK)


def test_episodes_of_a_bucket_are_read_by_range(bucket, built):
    local, url = RLDSDataset(built), bucket.upload(built, "robots/calvin_mujoco/1.0.0")
    bucket.requests.clear()
    dataset = RLDSDataset("fake://robots/calvin_mujoco", cache_bytes=0, retry=QUICK)
    assert (dataset.directory, dataset.fingerprint) == (url, local.fingerprint)
    assert dataset.lengths.tolist() == local.lengths.tolist()
    assert f"{url}/record_index-train.npz".removeprefix("fake://") in bucket.objects
    bucket.requests.clear()
    again = pickle.loads(pickle.dumps(RLDSDataset(url, cache_bytes=0)))
    shards = [request for request in bucket.requests if ".tfrecord" in request[1]]
    assert not shards  # with a stored index, opening a dataset reads no shard
    bucket.requests.clear()
    for index in (7, 0, 11):
        np.testing.assert_array_equal(again[index].column("action"), local[index].column("action"))
        np.testing.assert_array_equal(again[index].frame("observation/rgb_static", 1), local[index].frame("observation/rgb_static", 1))
    assert [size for _, _, size in bucket.requests] == [
        int(local._bytes[index]) + 4 for index in (7, 7, 0, 0, 11, 11)
    ]  # one request a record (nothing cached here), not a file


def test_headers_only_index_of_a_bucket_fetches_little(bucket, write_dataset):
    url = bucket.upload(write_dataset([30] * 4, size=64), "b/set")
    info = DatasetInfo.read(url)
    (shard,) = build_index(info, Schema.read(url), "train", counted=False)
    fetched = sum(size for what, name, size in bucket.requests if what == "read" and ".tfrecord" in name)
    assert len(shard.offsets) == 4
    assert fetched < shard.file_info.size


def test_an_outage_while_reading_names_the_record(bucket, write_dataset):
    url = bucket.upload(write_dataset([3, 3]), "b/set")
    dataset = RLDSDataset(url, retry=QUICK)
    bucket.failures += [OSError("reset"), OSError("reset")]
    assert len(dataset[0].column("action")) == 3
    bucket.failures += [OSError("reset")] * 3
    with pytest.raises(BadRecordError, match=r"record 1: .*reading failed 3 time\(s\).*reset"):
        dataset[1]
    assert len(dataset[1].column("action")) == 3


def test_a_shard_rewritten_during_a_run_is_reported(bucket, write_dataset):
    url = bucket.upload(write_dataset([3, 3]), "b/set")
    dataset = RLDSDataset(url, retry=QUICK)
    (name,) = (name for name in bucket.objects if ".tfrecord" in name)
    bucket.put(name, bucket.objects[name][5:])
    with pytest.raises(BadRecordError, match=r"record 1: .*rewritten after it was indexed.*restart the process"):
        dataset[1]
    del bucket.objects[name]
    with pytest.raises(BadRecordError, match="record 1: the file no longer exists"):
        dataset[1]


def test_what_is_not_in_a_bucket(bucket, write_dataset):
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        RLDSDataset("fake://b/nothing")
    url = bucket.upload(write_dataset([3]), "b/set")
    bucket.objects["b/set/dataset_info.json"] = bucket.objects["b/set/dataset_info.json"].replace(b'"tfrecord"', b'"array_record"')
    for name in [name for name in bucket.objects if ".tfrecord" in name]:
        bucket.put(name.replace("tfrecord", "array_record"), b"")
    with pytest.raises(DataError, match=r"ArrayRecord shards are read from local paths only.*gcsfuse"):
        RLDSDataset(url)


def test_read_only_bucket_keeps_the_index_in_memory(bucket, write_dataset, monkeypatch):
    url = bucket.upload(write_dataset([3]), "b/set")
    monkeypatch.setattr(bucket, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(PermissionError("read-only")))
    assert len(RLDSDataset(url)) == 1
