"""Errors of the machine as one paragraph."""

import errno
import subprocess
import sys

from vpp_jax.common.os_errors import explain


def raised(make) -> Exception:
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_full_disk_is_found_behind_other_errors(tmp_path):
    def wrapped():
        try:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
        except OSError as error:
            raise RuntimeError("a worker failed") from error

    def grouped():
        raise ExceptionGroup("several", [ValueError("a"), OSError(errno.EDQUOT, "Disk quota exceeded")])

    def in_text():
        raise ValueError(f"INTERNAL: error writing {tmp_path}/b/c: No space left on device [source locations=...]")

    def of_numpy():
        raise OSError("1024 requested and 512 written")

    assert explain(raised(wrapped)).startswith(f"No space left on device while {tmp_path}/a was written (")
    assert explain(raised(grouped)).startswith("Disk quota exceeded. What was complete")
    assert f"{tmp_path}/b/c was written (" in explain(raised(in_text))
    assert "no space left on device. What was complete before is unharmed" in explain(raised(of_numpy))


def test_what_to_do_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    assert explain(raised(lambda: (tmp_path / "file" / "a").mkdir())).endswith("a file stands where a directory is expected")
    assert explain(raised((tmp_path / "file").mkdir)) == f"{tmp_path}/file: File exists; a file stands where a directory is expected"
    assert explain(raised(tmp_path.read_text)).endswith("a directory stands where a file is expected")
    assert explain(raised((tmp_path / "none").read_text)) == f"{tmp_path}/none: No such file or directory"
    assert explain(MemoryError()).startswith("out of memory")
    assert explain(OSError(errno.EIO, "Input/output error")) == "Input/output error"


def test_defects_are_not_explained_away(tmp_path):
    def careless():
        try:
            (tmp_path / "none").read_text()
        except OSError:
            return [][0]

    assert explain(raised(careless)) == ""
    assert explain(ValueError("no")) == explain(KeyError("x")) == ""


def test_standard_output_on_a_full_disk():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "vpp_jax", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
