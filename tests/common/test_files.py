"""Files appear whole or not at all."""

import re
import resource

import pytest

from vpp_jax.common.files import AppendedFile, atomic_path, write_atomically
from vpp_jax.common.os_errors import explain


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "öffne\n")
    assert path.read_bytes() == "öffne\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_protected_directory_is_left_alone(tmp_path):
    (tmp_path / "protected").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match="is read-only"):
        write_atomically(tmp_path / "protected" / "a.txt", "x")
    assert list((tmp_path / "protected").iterdir()) == []


@pytest.fixture
def small_files():
    """No file may become longer than 100 bytes: the same as a full disk, without its privileges."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_does_not_fit_names_its_file_and_leaves_the_old_one(tmp_path, small_files):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    with pytest.raises(OSError, match=r"a\.txt") as caught:
        write_atomically(path, "x" * 200)
    text = explain(caught.value)
    assert f"File too large while {path} was written (" in text
    assert "GB free in" in text
    assert "the same command continues" in text
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_appended_file_ends_as_before_where_a_piece_does_not_fit(tmp_path, small_files):
    file = AppendedFile(tmp_path / "deep" / "a.jsonl")
    file.append(b"x" * 60, sync=True)
    with pytest.raises(OSError, match=r"a\.jsonl"):
        file.append(b"y" * 60)
    assert file.path.read_bytes() == b"x" * 60
    file.append(b"z" * 30)
    file.close()
    assert file.path.read_bytes() == b"x" * 60 + b"z" * 30


def test_files_are_written_in_one_way(project):
    others = {
        "vpp_jax/common/files.py": "the one place",
        "vpp_jax/interop/importing.py": "a whole directory that gets its name when it is complete",
        "vpp_jax/training/checkpoint_writing.py": "a whole directory, renamed before it is removed",
    }
    found = set()
    for folder in ("vpp_jax", "data_pipelines", "eval"):
        for path in (project / folder).rglob("*.py"):
            if re.search(r"os\.replace\(|\.rename\(|\.write_text\(|\.write_bytes\(|\.partial\b\"", path.read_text()):
                found.add(path.relative_to(project).as_posix())
    assert found == others.keys()
