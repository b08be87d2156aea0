"""Fixtures every test may use."""

import os
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
