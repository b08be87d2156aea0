"""Files of a run in a bucket: written locally, uploaded when they changed, fetched by a run that resumes."""

import fsspec
import pytest

from data_pipelines import storage
from data_pipelines.errors import WriteFailedError
from vpp_jax.training import workdir as module
from vpp_jax.training.workdir import Workdir, WorkdirError

PLACE = "memory://store/runs/video"


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    """fsspec's memory in place of gs://; tests/training/test_resume.py has an emulator of the real thing."""
    monkeypatch.setattr(module, "SCHEME", "memory://")
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture
def writes(monkeypatch) -> list[str]:
    """Names of the files that are uploaded."""
    seen, real = [], storage.write
    monkeypatch.setattr(storage, "write", lambda path, data: (seen.append(path.removeprefix(f"{PLACE}/")), real(path, data)))
    return seen


def test_on_a_file_system_the_directory_is_itself(tmp_path, writes):
    workdir = Workdir(tmp_path / "runs" / "video")
    assert workdir.local == workdir.place == tmp_path / "runs" / "video"
    assert workdir.local.is_dir()
    assert (workdir.beside, workdir.name, workdir.in_bucket) == (tmp_path / "runs", "video", False)
    (workdir.local / "metrics.jsonl").write_text("1\n")
    workdir.upload()
    workdir.close()
    assert not writes
    assert (workdir.local / "metrics.jsonl").exists()


def test_what_changed_is_uploaded_and_what_is_there_is_fetched(writes):
    first = Workdir(PLACE)
    (first.local / "metrics.jsonl").write_text("1\n")
    (first.local / "previews").mkdir()
    (first.local / "previews" / "step.png").write_bytes(b"png")
    (first.local / ".config.json.12.tmp").write_text("half")
    first.upload()
    first.upload()
    assert writes == ["metrics.jsonl", "previews/step.png"]
    with (first.local / "metrics.jsonl").open("a") as file:
        file.write("2\n")
    first.close()
    assert writes[2:] == ["metrics.jsonl"]
    assert not first.local.exists()

    writes.clear()
    second = Workdir(PLACE)
    assert (second.local / "metrics.jsonl").read_text() == "1\n2\n"
    assert not (second.local / "previews").exists()  # only what a run appends to
    assert (second.beside, second.name, second.heartbeats) == ("memory://store/runs", "video", f"{PLACE}/heartbeats")
    second.upload()
    assert not writes
    second.close()


def test_a_failed_upload_is_made_up_for(monkeypatch, caplog, writes):
    workdir = Workdir(PLACE)
    (workdir.local / "metrics.jsonl").write_text("1\n")
    with monkeypatch.context() as broken:
        broken.setattr(storage, "write", lambda *unused: (_ for _ in ()).throw(WriteFailedError("no bucket")))
        workdir.try_upload()
        assert "not uploaded: no bucket" in caplog.text
        with pytest.raises(WriteFailedError):
            workdir.upload()
        workdir.close()
    assert f"what was not uploaded is in {workdir.local}" in caplog.text
    workdir.close()
    assert writes == ["metrics.jsonl"]
    assert not workdir.local.exists()


@pytest.mark.parametrize("place", ["memory://store", "s3://bucket/run"])
def test_places_that_cannot_hold_a_run(place):
    with pytest.raises(WorkdirError, match=f"{place} cannot hold a run"):
        Workdir(place)
