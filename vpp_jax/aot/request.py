"""The flags of `vpp compile`."""

from dataclasses import replace

from vpp_jax.common.errors import ConfigError
from vpp_jax.config import MeshConfig
from vpp_jax.parallel.mesh import AXES

OPTIONS = {
    "topology": "TPU slice, by accelerator type (v5e-256, v5p-8) or topology (v5e:16x16)",
    "step": "train (default); for stage policy also act (images to actions) and features (the video model only)",
    "per_chip": "examples per chip and step (default: 1); may be below 1 if tensor > 1",
    "mesh": "data=N,fsdp=N,tensor=N instead of the configuration's; -1 takes the remaining devices",
    "optimisation": "compiler level, O0 (default, minutes) to O3; higher levels fuse more and may take hours for a training step",
    "out": "JSON file for the report",
    "hlo": "text file for the optimised HLO",
}


def parse_mesh(text: str, base: MeshConfig) -> MeshConfig:
    """`data=-1,fsdp=16` -> the mesh; axes not named are 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, equals, size = part.partition("=")
        if name not in AXES or not equals or not size.lstrip("-").isdigit():
            raise ConfigError(f"--mesh={text}: '{part}' is not one of {', '.join(f'{axis}=N' for axis in AXES)}")
        sizes[name] = int(size)
    return replace(base, **sizes)
