"""The process that `vpp compile` starts: compiles one program, with the environment that the TPU compiler needs already set."""

import json
import sys

from vpp_jax.aot.request import parse_mesh
from vpp_jax.cli.compile import compile_parser
from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import write_atomically


def main(argv: list[str]) -> int:
    import jax

    from vpp_jax.aot.program import DoesNotFitError, Program
    from vpp_jax.aot.report import provenance, suggest_change, table
    from vpp_jax.aot.roofline import analyse, request
    from vpp_jax.cli.config_flag import parse

    config, options = parse(compile_parser(), argv)
    level = options.optimisation
    jax.config.update("jax_optimization_level", level)
    mesh = parse_mesh(options.mesh, config.mesh) if options.mesh else None
    program = Program(config, options.topology, options.step, options.per_chip, mesh)
    print(f"compiling step {program.step} of stage {config.stage} for {program.topology.compiler_name} at {level} ...", flush=True)
    origin = provenance(argv, config)
    try:
        compiled = program.compile()
    except DoesNotFitError as error:
        short, suggestion = error.needed - error.available, suggest_change(origin | request(program))
        print(f"does not fit, short by at least {short:.2f} GiB: {error}; {suggestion}")
        return 1
    if options.hlo:
        write_atomically(options.hlo, compiled.executable.as_text() or "")
    report = origin | analyse(program, compiled, level)
    print(table(report))
    if options.out:
        write_atomically(options.out, json.dumps(report, indent=1) + "\n")
        print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except VppError as error:
        print(paragraph(error), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
