"""The flags of `vpp compile`."""

from dataclasses import replace

from vpp_jax.common.errors import ConfigError
from vpp_jax.config import MeshConfig
from vpp_jax.parallel.mesh import AXES

OPTIONS = {
    "topology": "slice, by the name it is asked for (v5e-256, v5p-8) or by its shape (v5e:16x16)",
    "step": "train (default); of stage policy also act, from images to actions, and features, the pass of the video model alone",
    "per_chip": "examples per chip and step, default 1; less than 1 where tensor > 1",
    "mesh": "data=N,fsdp=N,tensor=N instead of the configuration's; -1 takes what the others leave",
    "optimisation": "level of the compiler, O0 (default, minutes) to O3; higher ones fuse more and may take hours for a training step",
    "out": "file for the report, JSON",
    "hlo": "file for the optimised program, text",
}


def parse_mesh(text: str, base: MeshConfig) -> MeshConfig:
    """`data=-1,fsdp=16` -> the mesh; axes that are not named are 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, equals, size = part.partition("=")
        if name not in AXES or not equals or not size.lstrip("-").isdigit():
            raise ConfigError(f"--mesh={text}: '{part}' is not one of {', '.join(f'{axis}=N' for axis in AXES)}")
        sizes[name] = int(size)
    return replace(base, **sizes)
