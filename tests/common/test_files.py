"""Files appear whole or not at all."""

import re

import pytest

from vpp_jax.common.files import atomic_path, write_atomically


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


def test_files_are_written_in_one_way(project):
    others = {
        "vpp_jax/common/files.py": "the one place",
        "vpp_jax/interop/importing.py": "a whole directory that gets its name when it is complete",
        "vpp_jax/training/checkpoints.py": "a whole directory, renamed before it is removed",
    }
    found = set()
    for folder in ("vpp_jax", "data_pipelines", "eval"):
        for path in (project / folder).rglob("*.py"):
            if re.search(r"os\.replace\(|\.rename\(|\.write_text\(|\.write_bytes\(|\.partial\b\"", path.read_text()):
                found.add(path.relative_to(project).as_posix())
    assert found == others.keys()
