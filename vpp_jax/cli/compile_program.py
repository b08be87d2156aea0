"""The process that `vpp compile` starts: compiles one program, with the environment that the TPU compiler needs already set."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vpp_jax.aot.request import parse_mesh
from vpp_jax.cli.compile import compile_parser
from vpp_jax.cli.main import UsageError, paragraph
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import require_writable, write_atomically
from vpp_jax.common.os_errors import explain

if TYPE_CHECKING:
    from vpp_jax.aot.program import Program


def main(argv: list[str]) -> int:
    import jax

    from vpp_jax.aot.program import Program, steps_of
    from vpp_jax.aot.report import provenance, summary, table
    from vpp_jax.cli.config_flag import parse

    config, options = parse(compile_parser(), argv, reads_data=False)
    jax.config.update("jax_optimization_level", options.optimisation)
    if options.hlo and options.step in ("all", "restore"):
        raise UsageError(f"--hlo={options.hlo}: step {options.step} is not one program; name one with --step")
    for path in filter(None, (options.out, options.hlo)):
        require_writable(path)
    mesh = parse_mesh(options.mesh, config.mesh) if options.mesh else None
    origin, reports = provenance(argv, config), {}
    for step in steps_of(config.stage) if options.step == "all" else [options.step]:
        per_chip = None if options.step == "all" and step in ("act", "features") else options.per_chip
        program = Program(config, options.topology, step, per_chip, mesh)
        reports[step] = origin | _report(program, options.optimisation, options.hlo)
    print(summary(reports) if options.step == "all" else table(reports[options.step]))
    if options.out:
        document = origin | {"steps": reports} if options.step == "all" else reports[options.step]
        write_atomically(options.out, json.dumps(document, indent=1) + "\n")
        print(f"wrote {options.out}")
    return 1 if any(report["memory_gib"]["short"] > 0 for report in reports.values()) else 0


def _report(program: "Program", level: str, hlo: Path | None) -> dict[str, Any]:
    from vpp_jax.aot.program import DoesNotFitError
    from vpp_jax.aot.roofline import analyse, refused, restored

    if program.step == "restore":
        return restored(program)
    print(f"compiling step {program.step} of stage {program.config.stage} for {program.topology.name} at {level} ...", flush=True)
    try:
        compiled = program.compile()
    except DoesNotFitError as error:
        return refused(program, error)
    if hlo:
        write_atomically(hlo, compiled.executable.as_text() or "")
    return analyse(program, compiled, level)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as error:
        message = error if isinstance(error, VppError) else explain(error)
        if not message:
            raise
        print(paragraph(message), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
