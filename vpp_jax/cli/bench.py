"""`vpp bench data | index | model | act | eval | pytorch | sim [options]`: speed and memory, printed with device and library versions.

Each benchmark is a script in `benchmarks/` of the checkout.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from vpp_jax.cli.main import UsageError
from vpp_jax.common.errors import VppError, nearest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
BENCHMARKS = {
    "data": ("loader.py", "frames per second of the loader"),
    "index": ("data_index.py", "start-up time with very many shards"),
    "model": ("train_step.py", "training step of each stage"),
    "act": ("act_latency.py", "latency of act(), in total and per part"),
    "eval": ("host_loop.py", "closed loop: simulator processes and one batched policy"),
    "pytorch": ("against_pytorch.py", "compared with diffusers and PyTorch modules; needs PyTorch (make benchmark-pytorch)"),
    "sim": ("simulator.py", "simulator steps per second, with and without cameras"),
}


class BenchError(VppError):
    """A benchmark that cannot be found."""


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        print("\n".join(f"  {name:<8} {text}" for name, (_, text) in BENCHMARKS.items()))
        return 0 if argv else 2
    name, *rest = argv
    if name not in BENCHMARKS:
        raise UsageError(f"there is no benchmark '{name}'{nearest(name, BENCHMARKS) or '.'} Benchmarks: {', '.join(BENCHMARKS)}")
    script = FOLDER / BENCHMARKS[name][0]
    if not script.is_file():
        raise BenchError(f"{script} does not exist: benchmarks are part of a checkout, not of the installed package")
    return subprocess.call([sys.executable, str(script), *rest], env=os.environ)
