"""Makes `comparison` and the PyTorch twins in `benchmarks/pytorch` importable, and ends the suite with the errors it saw."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parents[1] / "benchmarks")]


def pytest_terminal_summary(terminalreporter):
    seen = getattr(sys.modules.get("comparison"), "SEEN", {})
    if seen:
        terminalreporter.section("largest errors, as shares of the largest magnitude of the array")
    for (file, tolerance), errors in sorted(seen.items()):
        terminalreporter.write_line(f"{file:24s} tolerance {tolerance:7.0e}  {len(errors):4d} arrays  largest error {max(errors):.1e}")
