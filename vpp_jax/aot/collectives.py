"""The collectives of a compiled program, parsed from its HLO text: what is gathered, reduced or sent, and how many bytes per chip.

The TPU compiler writes a reduce-scatter as a fusion `all-reduce-scatter`: an all-reduce whose result is sliced to the chip's own shard; and
what crosses from slice to slice as a `send` to its host, whose attributes name the collective and the slices.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
NETWORK = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
# bytes sent per chip, per byte of the larger side, in a ring of n
SENT = {
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One instruction. shapes: of the unsharded arrays, e.g. ('bf16', (320, 320)); group: number of participating chips; times: runs per
    step (exact if `counted`; otherwise a lower bound, since an enclosing loop has an unknown trip count). network: it runs between slices
    over the data centre's network; then shapes are those of a chip's shards and group is the number of slices."""

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    group: int
    times: int
    op_name: str
    counted: bool
    network: bool = False

    @property
    def size(self) -> int:
        """Bytes of the unsharded arrays."""
        total = 0
        for dtype, shape in self.shapes:
            count = BYTES[dtype]
            for dimension in shape:
                count *= dimension
            total += count
        return total

    @property
    def sent(self) -> float:
        """Bytes sent per chip and step."""
        return self.times * self.size * SENT[self.kind](self.group)


def collectives(text: str, devices: int) -> list[Collective]:
    """All collectives of an optimised module for `devices` devices, those in loops with the trip counts."""
    computations, entry = _computations(text)
    return list(_walk(computations, entry, 1, True, devices))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found, entry, lines = {}, "", []
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{") and not line.startswith("HloModule"):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            lines = found.setdefault(name, [])
            if line.startswith("ENTRY"):
                entry = name
        else:
            lines.append(line)
    return found, entry


def _walk(computations: dict[str, list[str]], name: str, times: int, counted: bool, devices: int) -> Iterator[Collective]:
    shapes: dict[str, str] = {}
    for line in computations.get(name, ()):
        match = INSTRUCTION.match(line)
        if not match:
            continue
        result, kind, rest = match[2], match[3], match[4]
        shapes[match[1]] = result
        for called, loops in _calls(kind, rest):
            yield from _walk(computations, called, times * (loops or 1), counted and loops is not None, devices)
        base = kind.removesuffix("-start")
        if base == "all-reduce" and name.startswith("all-reduce-scatter"):
            base = "reduce-scatter"
        operands = ",".join(shapes.get(word, "") for word in re.findall(r"%([\w.\-]+)", rest.split("), ", 1)[0]))
        if kind == "send" and NETWORK in rest:
            yield _between_slices(operands, rest, times, counted)
        elif base in KINDS:
            yield _collective(base, kind, result, operands, rest, times, counted, devices)


def _calls(kind: str, rest: str) -> Iterator[tuple[str, int | None]]:
    """Computations that an instruction runs, each with how often; None for a loop of unknown trip count."""
    if kind == "while":
        count = re.search(r"known_trip_count[^\d]*(\d+)", rest)
        yield from ((body, int(count[1]) if count else None) for body in re.findall(r"body=%?([\w.\-]+)", rest)[:1])
    elif kind in ("call", "async-start", "conditional", "fusion"):
        for found in re.findall(r"(?:to_apply|calls|called_computations|branch_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)", rest):
            yield from ((word.strip().lstrip("%"), 1) for word in found.split(","))


def _collective(base: str, kind: str, result: str, operands: str, rest: str, times: int, counted: bool, devices: int) -> Collective:
    group = _group_size(rest, devices)
    if base == "collective-permute":
        group = 2
    sides = _shapes(operands)
    if base == "all-gather":  # the result; a started one carries its operands in front
        found = _shapes(result)
        sides = found[len(sides) :] if kind.endswith("-start") else found
    name = re.search(r'op_name="([^"]*)"', rest)
    return Collective(base, sides, group, times, name[1] if name else "", counted)


def _between_slices(operands: str, rest: str, times: int, counted: bool) -> Collective:
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', rest)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', rest)
    name = kind[1].lower().replace("_", "-") if kind else ""
    group = sum(_length(part) for part in slices[1].split(",")) if slices else 2
    op_name = re.search(r'op_name="([^"]*)"', rest)
    return Collective(
        name if name in KINDS else "collective-permute", _shapes(operands), group, times, op_name[1] if op_name else "", counted, True
    )


def _length(part: str) -> int:
    """Of `3` or of a range `0:3`, both ends included."""
    first, _, last = part.partition(":")
    return int(last or first) - int(first) + 1


def _shapes(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (dtype, tuple(map(int, filter(None, dimensions.split(","))))) for dtype, dimensions in SHAPE.findall(text) if dtype in BYTES
    )


def _group_size(rest: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(match[1].split(","))
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return devices
