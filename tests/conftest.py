"""Fixtures every test may use."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """Root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small real robot data that is never part of the project: `VPP_TEST_DATA`, else `../shared/data`. Skips where absent."""
    path = Path(os.environ.get("VPP_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not present at {path} (set VPP_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def micro_config() -> Callable:
    """stage -> ExperimentConfig of the smallest model that has every part."""
    from vpp_jax.config import from_config_dict

    spec = importlib.util.spec_from_file_location("micro", PROJECT / "tests" / "configs" / "micro.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda stage: from_config_dict(module.micro(stage))
