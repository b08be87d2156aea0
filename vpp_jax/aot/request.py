"""The mesh that `vpp compile --mesh` asks for."""

import re
from dataclasses import replace

from vpp_jax.common.errors import ConfigError
from vpp_jax.config import MeshConfig
from vpp_jax.parallel.mesh import AXES


def parse_mesh(text: str, base: MeshConfig) -> MeshConfig:
    """`data=-1,fsdp=16` -> the mesh; axes not named are 1."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, equals, size = part.partition("=")
        if name not in AXES or not equals or not re.fullmatch(r"-?[0-9]{1,9}", size):
            raise ConfigError(f"--mesh={text}: '{part}' is not one of {', '.join(f'{axis}=N' for axis in AXES)}")
        sizes[name] = int(size)
    return replace(base, **sizes)
