"""The recorded commit is this project's, never that of a repository around it."""

import subprocess
from pathlib import Path

import pytest

from vpp_jax.common.provenance import REVISION_VARIABLE, git_revision


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", directory, *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_commit_of_the_checkout(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert git_revision(repository) == commit
    (repository / "code.py").write_text("2\n")
    assert git_revision(repository) == commit + "-dirty"


def test_an_image_has_the_commit_that_it_was_built_from(repository, tmp_path_factory, monkeypatch):
    monkeypatch.setenv(REVISION_VARIABLE, "of the image")
    assert git_revision(tmp_path_factory.mktemp("outside")) == "of the image"
    assert git_revision(repository) == git(repository, "rev-parse", "HEAD")


def test_an_installed_package_has_no_commit(repository, tmp_path_factory):
    site_packages = repository / "venv" / "lib" / "site-packages"
    site_packages.mkdir(parents=True)
    assert git_revision(site_packages) == ""
    assert git_revision(tmp_path_factory.mktemp("outside")) == ""
