"""The process that `vpp compile` starts: compiles one program, with the environment that the TPU compiler needs already set."""

import json
import sys
from pathlib import Path

from vpp_jax.aot.chips import parse_topology
from vpp_jax.aot.request import OPTIONS, parse_mesh
from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import write_atomically


def main(argv: list[str]) -> int:
    import jax

    from vpp_jax.aot.program import DoesNotFitError, Program
    from vpp_jax.aot.report import provenance, suggest_change, table
    from vpp_jax.aot.roofline import analyse, request
    from vpp_jax.cli.config_flag import parse

    config, options = parse(argv, OPTIONS)
    level = options["optimisation"] or "O0"
    jax.config.update("jax_optimization_level", level)
    mesh = parse_mesh(options["mesh"], config.mesh) if options["mesh"] else None
    program = Program(config, parse_topology(options["topology"]), options["step"] or "train", float(options["per_chip"] or 1), mesh)
    print(f"compiling step {program.step} of stage {config.stage} for {program.topology.compiler_name} at {level} ...", flush=True)
    origin = provenance(argv, config)
    try:
        compiled = program.compile()
    except DoesNotFitError as error:
        short, suggestion = error.needed - error.available, suggest_change(origin | request(program))
        print(f"does not fit, short by at least {short:.2f} GiB: {error}; {suggestion}")
        return 1
    if options["hlo"]:
        write_atomically(Path(options["hlo"]), compiled.executable.as_text())
    report = origin | analyse(program, compiled, level)
    print(table(report))
    if options["out"]:
        path = Path(options["out"])
        write_atomically(path, json.dumps(report, indent=1) + "\n")
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except VppError as error:
        print(paragraph(error), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
