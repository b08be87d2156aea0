"""A test that is skipped for want of something that the project installs or ships fails instead."""

import re
import shutil
import subprocess
import sys

TESTS = """
import pytest

def test_allowed():
    pytest.skip("libtpu is not installed (requirements/tpu.txt)")

@pytest.mark.skipif(True, reason="no data here")
def test_marked():
    pass

@pytest.mark.xfail(reason="known")
def test_expected_to_fail():
    assert False

def test_called():
    pytest.importorskip("no_such_module")
"""


def test_unknown_reasons_fail(project, tmp_path):
    shutil.copy(project / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole_file.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    command = [sys.executable, "-m", "pytest", "-ra", "--import-mode=importlib", f"--rootdir={tmp_path}", "-c", "/dev/null", str(tmp_path)]
    run = subprocess.run([*command, "--continue-on-collection-errors"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stdout
    summary = re.findall(r"^(FAILED|ERROR|SKIPPED|XFAIL) .*?(test_\w+)\.py(?:::(\w+))?", run.stdout, re.M)
    assert sorted(summary) == [
        ("ERROR", "test_some", "test_marked"),
        ("ERROR", "test_whole_file", ""),
        ("FAILED", "test_some", "test_called"),
        ("SKIPPED", "test_some", ""),
        ("XFAIL", "test_some", "test_expected_to_fail"),
    ]
    assert "'no data here' is no reason to skip a test" in run.stdout
