"""The toy stage, importable and runnable."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).with_name("toy_stage.py")


@pytest.fixture(scope="session")
def toy():
    """The module tests/training/toy_stage.py."""
    spec = importlib.util.spec_from_file_location("toy_stage", TOY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start_toy(tmp_path_factory):
    """Starts the toy as its own process: start_toy(workdir, steps=30, delay=0.01) -> Popen with piped output."""
    cache = tmp_path_factory.mktemp("compiled")

    def start(workdir: Path, environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
        variables = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, str(TOY), str(workdir), *(f"--{name}={value}" for name, value in options.items())]
        return subprocess.Popen(
            command, env=os.environ | variables | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start
