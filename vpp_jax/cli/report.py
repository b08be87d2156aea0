"""`vpp report DIR`: the results of a run as one self-contained HTML page."""

from collections.abc import Sequence
from functools import partial

from eval.report.page import write_report
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import local_path


def main(argv: Sequence[str]) -> int:
    parser = Parser(prog="vpp report", description=__doc__)
    parser.add_argument(
        "directory",
        type=partial(local_path, "DIRECTORY"),
        help="directory of a run; reports what it has of data/, vae/, video/, policy/, eval/ and timing.json",
    )
    parser.add_output("--out", metavar="FILE", help="the HTML file (default: DIRECTORY/report/index.html)")
    arguments = parser.parse_args(argv)
    path = write_report(arguments.directory, arguments.out)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0
