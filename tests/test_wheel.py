"""A wheel installed in another environment, used from an empty directory: contents, `vpp --help`, demonstrations, a few training steps."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest

pytestmark = pytest.mark.slow
PACKAGES = ("vpp_jax", "data_pipelines", "eval", "configs")
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which could lead back to this checkout


@pytest.fixture(scope="module")
def wheel(project, tmp_path_factory) -> Path:
    """Built from a copy, so that no `build` directory of an earlier build adds its files."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for package in PACKAGES:
        copytree(project / package, source / package, ignore=ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        (source / file).write_bytes((project / file).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", dist, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = dist.glob("vpp_jax-*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel. The packages it needs are those of this interpreter, but not this checkout: the file that makes
    an editable installation work counts only in this interpreter's own directory."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True, timeout=120)
    install = [sys.executable, "-m", "pip", "--python", directory / "bin" / "python", "install", "-q", "--no-deps", wheel]
    done = subprocess.run(install, env=OUTSIDE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (site_packages,) = directory.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """An empty directory outside the checkout."""
    return tmp_path_factory.mktemp("elsewhere")


def run(environment: Path, elsewhere: Path, program: str, *arguments: str) -> str:
    command = [environment / "bin" / program, *arguments]
    done = subprocess.run(command, cwd=elsewhere, env=OUTSIDE, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_wheel_holds_every_file_of_its_packages(wheel, project):
    paths = [path for package in PACKAGES for path in (project / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    with zipfile.ZipFile(wheel) as archive:
        missing = {str(path.relative_to(project)) for path in paths} - set(archive.namelist())
    assert not missing, f"not in the wheel: {sorted(missing)}"


def test_metadata(wheel, project):
    (info,) = [entry for entry in zipfile.Path(wheel).iterdir() if entry.name.endswith(".dist-info")]
    metadata = PathDistribution(info).metadata
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert metadata["Requires-Python"] == declared["requires-python"]
    assert set(metadata.get_all("Provides-Extra")) == set(declared["optional-dependencies"])
    licences = {str(info / "licenses" / file).split(".dist-info/")[1] for file in metadata.get_all("License-File")}
    with zipfile.ZipFile(wheel) as archive:
        assert all(any(name.endswith(licence) for name in archive.namelist()) for licence in licences)
    assert any("clip_bpe" in licence for licence in licences)


def test_help_comes_from_the_wheel(environment, elsewhere):
    where = run(environment, elsewhere, "python", "-c", "import vpp_jax, configs; print(vpp_jax.__file__); print(configs.__file__)")
    assert all(Path(line).is_relative_to(environment) for line in where.split())
    assert "vpp VERB" in run(environment, elsewhere, "vpp", "--help")
    assert "--config" in run(environment, elsewhere, "vpp", "train", "--help")


def test_demonstrations_and_training_from_an_empty_directory(environment, elsewhere):
    """The shipped configuration is found by the name that the documentation uses, although no `configs` directory is here."""
    build = ("--scenes=A", "--episodes=1", "--val_episodes=1", "--workers=1", "--seed=3")
    run(environment, elsewhere, "vpp", "data", "build", "calvin_mujoco", "--out=data", *build)
    few_steps = ("--config.train.steps=2", "--config.train.log_every=1", "--config.train.eval_every=0", "--config.data.batch_size=2")
    data = "--config.data.datasets[0].path=data"
    run(environment, elsewhere, "vpp", "train", "--config=configs/tiny_calvin_vae.py", "--workdir=vae", data, *few_steps)
    losses = [line["loss"] for line in map(json.loads, (elsewhere / "vae" / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert (elsewhere / "vae" / "checkpoints" / "2").is_dir()
    assert {path.name for path in elsewhere.iterdir()} <= {"data", "vae", "MUJOCO_LOG.TXT"}
