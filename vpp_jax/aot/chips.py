"""TPU generations and slices: the hardware figures of the roofline, and the names that users and the compiler use.

Peak, memory and link figures are those of Google's pages on each generation (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e): bf16 without
sparsity, HBM bandwidth, and "bidirectional inter-chip bandwidth per chip", half of it in each direction. Between slices: the data centre
network's bandwidth per pod or host there, divided by its chips (v4 as v5p).
"""

import math
import re
from dataclasses import dataclass

from vpp_jax.common.errors import VppError, nearest


class TopologyError(VppError):
    """A slice that does not exist or that the compiler does not know."""


@dataclass(frozen=True)
class Chip:
    """One generation, per chip.

    peak: bf16 TFLOP/s; memory: HBM, GiB; bandwidth: of the HBM, GB/s; links: outgoing ICI of all links together, GB/s; wraps: length from
    which an axis of the torus is closed; cores: what the number in a slice's name counts per chip (`v5p-8` is 4 chips);
    devices: devices per chip that the compiler sees.
    """

    peak: float
    memory: float
    bandwidth: float
    links: float
    axes: int
    wraps: int
    network: float
    matrix: int = 128
    cores: int = 1
    mode: str = ""


CHIPS = {
    "v4": Chip(peak=275, memory=32, bandwidth=1228, links=300, axes=3, wraps=4, network=6.25, cores=2, mode="megacore"),
    "v5e": Chip(peak=197, memory=16, bandwidth=819, links=200, axes=2, wraps=16, network=3.125),
    "v5p": Chip(peak=459, memory=95, bandwidth=2765, links=600, axes=3, wraps=4, network=6.25, cores=2),
    "v6e": Chip(peak=918, memory=32, bandwidth=1640, links=400, axes=2, wraps=16, network=12.5, matrix=256),
}

# bf16 TFLOP/s without sparsity of one device, by `jax.Device.device_kind`; GPUs: NVIDIA's data sheets, SXM modules
PEAK_BY_DEVICE_KIND = {
    "TPU v4": CHIPS["v4"].peak,
    "TPU v5 lite": CHIPS["v5e"].peak,
    "TPU v5": CHIPS["v5p"].peak,
    "TPU v6 lite": CHIPS["v6e"].peak,
    "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100-SXM4-80GB": 312,
    "NVIDIA H100 80GB HBM3": 989,
    "NVIDIA H200": 989,
}

# number of chips -> topology of Google's slice of that size
SHAPES = {
    2: {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16)},
    3: {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8)},
}


@dataclass(frozen=True)
class Topology:
    """Slices of one shape, connected by the data centre's network: `name` is the user's."""

    name: str
    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Of all slices; the compiler sees one device per chip."""
        return self.slices * math.prod(self.shape)

    @property
    def compiler_name(self) -> str:
        """What `jax.experimental.topologies` takes for one slice, e.g. v5e:16x16."""
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"

    @property
    def compiler_arguments(self) -> dict[str, str | int]:
        """What it takes besides the name."""
        mode = {"chip_config_name": self.chip.mode} if self.chip.mode else {}
        return mode | ({"num_slices": self.slices} if self.slices > 1 else {})

    def group_bandwidth(self, group: int) -> float:
        """GB/s sent per chip in a collective of `group` devices of a slice: the links of the fewest torus axes that contain the group.

        An axis too short to be closed to a ring counts half.
        """
        per_axis, held, total = self.chip.links / self.chip.axes, 1, 0.0
        for size in sorted(self.shape, reverse=True):
            if size > 1 and held < group:
                held *= size
                total += per_axis * (1.0 if size >= self.chip.wraps else 0.5)
        return total or per_axis


def parse_topology(name: str) -> Topology:
    """`v5e-256` (accelerator type; v4 and v5p count two cores per chip) or `v5e:16x16`; `2xv5e-256` is two slices of that."""
    match = re.fullmatch(r"(?:([1-9]\d*)x)?(v\d+[a-z]*|v5litepod)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    generation = {"v5litepod": "v5e"}.get(match[2], match[2]) if match else ""
    if match is None or generation not in CHIPS:
        hint = nearest(generation, CHIPS) if generation else None
        raise TopologyError(
            f"topology '{name}' is not one of {', '.join(CHIPS)} with a size, e.g. v5e-256 or v5e:16x16, or 2xv5e-256 for two slices"
            f"{hint or ''}"
        )
    chip, slices = CHIPS[generation], int(match[1] or 1)
    if match[4]:
        shape = tuple(map(int, match[4].split("x")))
        if len(shape) != chip.axes:
            raise TopologyError(f"topology '{name}': {generation} slices have {chip.axes} dimensions, e.g. {_names(generation)}")
        return Topology(name, generation, shape, slices)
    count = int(match[3])
    shapes = SHAPES[chip.axes]
    if count % chip.cores or count // chip.cores not in shapes:
        raise TopologyError(f"topology '{name}': there are {_names(generation)}")
    return Topology(name, generation, shapes[count // chip.cores], slices)


def _names(generation: str) -> str:
    chip = CHIPS[generation]
    return ", ".join(f"{generation}-{count * chip.cores}" for count in SHAPES[chip.axes])
