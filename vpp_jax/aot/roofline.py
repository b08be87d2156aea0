"""Roofline of a compiled program: the time of a step bounded by arithmetic, memory and links, and the resulting MFU."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax

from vpp_jax.aot.chips import Topology
from vpp_jax.aot.collectives import BYTES, KINDS, Collective, collectives
from vpp_jax.aot.program import Compiled, DoesNotFitError, Program
from vpp_jax.common.errors import VppError

GIB = 2**30
# the steps whose time matters; the others contain loops, whose traffic the compiler counts once
BOUNDED = ("train", "features", "act")
# reserved for the runtime: programs, infeed, fragmentation
RESERVE_GIB = 0.5
# bytes; embeddings of positions and token ids may be gathered and are smaller, while any activation is larger
TABLE = 2**18


class UnreadableProgramError(VppError):
    """jaxlib cannot parse an instruction of the compiled program."""


@dataclass(frozen=True)
class Memory:
    """GiB per chip. peak: the compiler's; arguments and outputs share memory where they are donated. resident: what the run holds besides,
    see `Program.resident`."""

    arguments: float
    outputs: float
    temporaries: float
    peak: float
    resident: float
    limit: float

    @property
    def short(self) -> float:
        """Missing GiB; negative if memory is left."""
        return self.peak + self.resident + RESERVE_GIB - self.limit

    def to_json(self) -> dict[str, float]:
        return {**{name: round(value, 3) for name, value in vars(self).items()}, "short": round(self.short, 3)}


def refused(program: Program, error: DoesNotFitError) -> dict[str, Any]:
    """The report of a program that the compiler gives up because of its memory."""
    missing = error.needed + program.resident / GIB - error.available
    sizes = {
        "needed": error.needed,
        "available": error.available,
        "resident": program.resident / GIB,
        "limit": program.topology.chip.memory,
    }
    return request(program) | {"memory_gib": {name: round(value, 3) for name, value in (sizes | {"short": missing}).items()}}


def restored(program: Program) -> dict[str, Any]:
    """The report of step `restore`, which runs no program: arrays are read straight onto their places."""
    memory = Memory(0.0, 0.0, 0.0, 0.0, program.resident / GIB, program.topology.chip.memory)
    return request(program) | {"memory_gib": memory.to_json()}


def request(program: Program) -> dict[str, Any]:
    """The part of the report that needs no compiled program."""
    topology = program.topology
    return {
        "topology": {"name": topology.name, "compiler": topology.compiler_name, "chips": topology.chips, "mesh": dict(program.mesh.shape)},
        "step": program.step,
        "global_batch": program.rows,
        "examples": program.examples,
        "examples_per_chip": program.rows / topology.chips,
    }


def analyse(program: Program, compiled: Compiled, level: str) -> dict[str, Any]:
    """The report, as JSON."""
    topology, executable = program.topology, compiled.executable
    cost: Any = executable.cost_analysis()
    usage: Any = executable.memory_analysis()  # neither is None on a TPU
    memory = Memory(
        *(
            value / GIB
            for value in (
                usage.argument_size_in_bytes,
                usage.output_size_in_bytes,
                usage.temp_size_in_bytes,
                usage.peak_memory_in_bytes,
            )
        ),
        resident=program.resident / GIB,
        limit=topology.chip.memory,
    )
    arithmetic = compiled.flops / topology.chips
    report = request(program) | {
        "compiler": {"optimisation": level, "seconds": round(compiled.seconds, 1)},
        "memory_gib": memory.to_json(),
        "per_chip": {
            "model_tflop": compiled.model_flops / topology.chips / 1e12,
            "tflop": arithmetic / 1e12,
            "padded_tflop": compiled.padded_flops / topology.chips / 1e12,
        },
    }
    if program.step not in BOUNDED:
        return report
    found = collectives(_text(executable, memory), topology.chips)
    inside, between = ([entry for entry in found if entry.network is network] for network in (False, True))
    accessed = cost["bytes accessed"]
    times = bounds(topology, compiled.padded_flops / topology.chips, accessed, found)
    step, own = max(times.values()), cost.get("optimal_seconds", 0.0)
    own = own if own > 0 else None  # at high levels it is negative at times
    ideal = compiled.model_flops / topology.chips / (topology.chip.peak * 1e12)
    report["per_chip"] |= {
        "compiler_tflop": cost["flops"] / 1e12,
        "accessed_gb": accessed / 1e9,
        "sent_gb": sum(entry.sent for entry in inside) / 1e9,
        "network_gb": sum(entry.sent for entry in between) / 1e9,
    }
    return report | {
        "collectives": _by_kind(inside),
        "collectives_between_slices": _by_kind(between),
        "collectives_in_loops_of_unknown_length": sum(not entry.counted for entry in found),
        "gathered_not_parameters": foreign_gathers(found, compiled.parameters),
        "bounds_s": times,
        "compiler_seconds_per_step": own,
        "bound": {
            "limited_by": max(times, key=times.__getitem__),
            "step_s": step,
            "examples_per_s": compiled.examples / step,
            "mfu": ideal / step,
            "mfu_of_compiler": ideal / own if own else None,
            "mfu_of_arithmetic": ideal / times["compute"],
        },
    }


def _text(executable: jax.stages.Compiled, memory: Memory) -> str:
    try:
        return executable.as_text() or ""
    except jax.errors.JaxRuntimeError as error:
        raise UnreadableProgramError(
            f"compiled, with a peak of {memory.peak:.2f} of {memory.limit:g} GiB per chip, but this jaxlib cannot parse the program "
            f"of this libtpu, so its collectives cannot be counted; another --per_chip may avoid that instruction. "
            f"{str(error).splitlines()[0]}"
        ) from None


def bounds(topology: Topology, flops: float, accessed: float, found: list[Collective]) -> dict[str, float]:
    """Seconds per step if only arithmetic, only memory, only links or only the network between slices took time, from counts per chip;
    collectives run sequentially. `flops` as the matrix units count them, padded."""
    chip = topology.chip
    return {
        "compute": flops / (chip.peak * 1e12),
        "memory": accessed / (chip.bandwidth * 1e9),
        "interconnect": sum(entry.sent / topology.group_bandwidth(entry.group) for entry in found if not entry.network) / 1e9,
        "network": sum(entry.sent for entry in found if entry.network) / (chip.network * 1e9),
    }


def foreign_gathers(found: list[Collective], parameters: frozenset[tuple[int, ...]]) -> list[str]:
    """All-gathers of arrays larger than `TABLE` that have no parameter's size: activations that should have remained sharded.

    Sizes, not shapes: the compiler may transpose or reshape a kernel before it gathers it.
    """
    known = {math.prod(shape) for shape in parameters}
    return [
        f"{dtype}{list(shape)} {entry.op_name}"
        for entry in found
        if entry.kind == "all-gather"
        for dtype, shape in entry.shapes
        if math.prod(shape) * BYTES[dtype] > TABLE and math.prod(shape) not in known
    ]


def _by_kind(found: list[Collective]) -> dict[str, dict[str, float]]:
    groups: dict[str, list[Collective]] = defaultdict(list)
    for entry in found:
        groups[entry.kind].append(entry)
    return {
        kind: {
            "count": sum(entry.times for entry in groups[kind]),
            "gb": sum(entry.times * entry.size for entry in groups[kind]) / 1e9,
            "sent_gb": sum(entry.sent for entry in groups[kind]) / 1e9,
        }
        for kind in KINDS
        if kind in groups
    }
