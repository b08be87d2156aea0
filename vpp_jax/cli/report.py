"""`vpp report DIR`: the results of a run as one self-contained HTML page."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval.report.page import write_report


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vpp report", description=__doc__)
    parser.add_argument("directory", type=Path, help="a run directory: data/, vae/, video/, policy/, eval/, timing.json, as far as present")
    parser.add_argument("--out", type=Path, help="the HTML file (default: DIRECTORY/report/index.html)")
    arguments = parser.parse_args(argv)
    path = write_report(arguments.directory, arguments.out)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
