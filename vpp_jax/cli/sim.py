"""`vpp sim install calvin_pybullet --checkout=DIR`: makes the environment in which a simulator of others runs, and remembers where it is.

calvin_pybullet is the original CALVIN simulator. DIR is your clone of https://github.com/mees/calvin_env; nothing of it is part of this
project. PyBullet has a wheel for Python 3.11 only. Afterwards `vpp eval calvin --environment=calvin_pybullet` runs in it.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from eval.simulators import SIMULATORS, Installed, home, write_installed
from vpp_jax.cli.parser import Parser
from vpp_jax.common.errors import VppError


class SimulatorError(VppError):
    """A simulator that cannot be installed here."""


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    simulator = SIMULATORS[arguments.simulator]
    try:
        checkout = Path(arguments.checkout).expanduser().resolve()
    except RuntimeError as error:  # a user that there is not, or links in a circle
        raise SimulatorError(f"--checkout={arguments.checkout}: {error}") from None
    if not (checkout / simulator.proof).is_file():
        raise SimulatorError(f"--checkout={arguments.checkout} has no {simulator.proof}: clone {simulator.source} there first")
    python = shutil.which(arguments.python)
    if python is None:
        raise SimulatorError(f"--python={arguments.python} is not installed; {arguments.simulator} needs Python {simulator.python}")
    folder = home() / arguments.simulator
    print(f"making {folder} ...", flush=True)
    for command in (
        [python, "-c", f"import sys; sys.exit('%d.%d' % sys.version_info[:2] != '{simulator.python}')"],
        [python, "-m", "venv", "--clear", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *simulator.requirements],
        [str(folder / "bin" / "python"), "-c", f"import {', '.join(simulator.modules)}"],
    ):
        if subprocess.run(command, check=False).returncode:
            hint = f" {arguments.simulator} needs Python {simulator.python}." if command[1] == "-c" and command[0] == python else ""
            raise SimulatorError(f"failed: {' '.join(command)}.{hint} What it printed stands above")
    path = write_installed(Installed(arguments.simulator, str(folder / "bin" / "python"), str(checkout)))
    print(f"wrote {path}; now: vpp eval calvin --environment={arguments.simulator} --sequences=10 --checkpoint=DIR --out=DIR")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="vpp sim", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="install")
    install = actions.add_parser("install", help="make a simulator's environment", description=__doc__)
    install.add_argument("simulator", choices=sorted(SIMULATORS), help="which one")
    install.add_argument("--checkout", required=True, metavar="DIR", help="clone of the simulator's repository")
    install.add_argument("--python", default="python3.11", help="interpreter that the environment is made with")
    return parser
