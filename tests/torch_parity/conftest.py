"""Makes `comparison` and the PyTorch twins in `benchmarks/pytorch` importable, and ends the suite with the errors it saw."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parents[1] / "benchmarks")]


@pytest.fixture
def float64():
    """Both sides compute in float64 where a test builds them so: a billion times less rounding, and a small mistake cannot hide in it."""
    import jax
    import torch

    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def pytest_terminal_summary(terminalreporter):
    seen = getattr(sys.modules.get("comparison"), "SEEN", {})
    if seen:
        terminalreporter.section("largest errors, as shares of the largest magnitude of the array")
    for (file, tolerance), errors in sorted(seen.items()):
        terminalreporter.write_line(f"{file:24s} tolerance {tolerance:7.0e}  {len(errors):4d} arrays  largest error {max(errors):.1e}")
