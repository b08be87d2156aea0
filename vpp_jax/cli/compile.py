"""`vpp compile --config=FILE --topology=v5e-256 [--per_chip=N --mesh=data=-1,fsdp=16 --step=all --out=report.json --config.key=value ...]`

Ahead-of-time compiles the programs of a configuration for a TPU topology, without the hardware: memory fit, communication, estimates of
speed. Needs libtpu (the extra `tpu`); the published size takes 8 GiB of memory and some minutes.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

from vpp_jax.aot.chips import parse_topology
from vpp_jax.aot.environment import VARIABLES, require_compiler
from vpp_jax.cli.parser import Parser


def main(argv: Sequence[str]) -> int:
    from vpp_jax.cli.config_flag import split_overrides

    compile_parser().parse_args(split_overrides(argv)[1])
    require_compiler()
    # a separate process: libtpu reads these variables when JAX is imported
    return subprocess.call([sys.executable, "-m", "vpp_jax.cli.compile_program", *argv], env=os.environ | VARIABLES)


def compile_parser() -> Parser:
    from vpp_jax.cli.config_flag import add_config_flag

    parser = Parser(prog="vpp compile", description=__doc__)
    add_config_flag(parser)
    parser.add_argument(
        "--topology",
        type=parse_topology,
        required=True,
        help="TPU slice, by accelerator type (v5e-256, v5p-8) or topology (v5e:16x16); 2xv5e-256 is two slices",
    )
    parser.add_argument(
        "--step",
        choices=("train", "evaluation", "action_mse", "preview", "features", "act", "init", "restore", "all"),
        default="train",
        help="what is compiled: the training step; an evaluation's loss, error of sampled actions (stage policy) or preview; the video "
        "model alone, or images to actions (stage policy); initialisation; the state that a checkpoint is read into; or all of these",
    )
    text = "examples per chip and step, below 1 if tensor > 1; without it the configuration's data.batch_size, for act and features one"
    parser.add_number("--per_chip", float, None, text, more_than=0, at_most=65_536)
    parser.add_argument("--mesh", metavar="data=N,fsdp=N", help="mesh, instead of the configuration's; -1 takes the remaining devices")
    parser.add_argument(
        "--optimisation",
        choices=("O0", "O1", "O2", "O3"),
        default="O0",
        help="compiler level; O0 takes minutes, higher levels fuse more and may take hours for a training step",
    )
    parser.add_output("--out", metavar="FILE", help="JSON file for the report")
    parser.add_output("--hlo", metavar="FILE", help="text file for the optimised HLO")
    return parser
