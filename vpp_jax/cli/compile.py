"""`vpp compile --config=FILE --topology=v5e-256 [--per_chip=N --mesh=data=-1,fsdp=16 --step=act --out=report.json --config.key=value ...]`

Ahead-of-time compiles the training step (or the policy's inference) of a configuration for a TPU topology, without the hardware: memory
fit, communication, roofline. Needs libtpu (the extra `tpu`); the published size takes 8 GiB of memory and some minutes.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from vpp_jax.aot.chips import parse_topology
from vpp_jax.aot.environment import VARIABLES, require_compiler
from vpp_jax.cli.main import UsageError


def main(argv: Sequence[str]) -> int:
    from vpp_jax.aot.request import OPTIONS

    if "--help" in argv or "-h" in argv:
        flags = "\n".join(f"  --{name:<13} {text}" for name, text in OPTIONS.items())
        print(f"{__doc__}\nflags:\n  --config        Python with get_config(), or a config.json\n{flags}")
        return 0
    names = [argument.removeprefix("--topology=") for argument in argv if argument.startswith("--topology=")]
    if not names:
        raise UsageError("--topology=NAME is missing: the TPU slice to compile for, e.g. v5e-256 or v5e:16x16")
    parse_topology(names[-1])
    require_compiler()
    # a separate process: libtpu reads these variables when JAX is imported
    return subprocess.call([sys.executable, "-m", "vpp_jax.cli.compile_program", *argv], env=os.environ | VARIABLES)
