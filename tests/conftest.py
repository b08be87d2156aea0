"""Fixtures every test may use."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

# Most of the suite's time is compilation, and what it compiles runs for seconds: half the optimisation, twice the speed. Set before JAX
# starts, and inherited by the commands that tests run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"


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
