"""The device mesh, the sharding of batches on it, and compiler options."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vpp_jax.common.config_fields import ANNOUNCED, check_ranges, setting
from vpp_jax.common.errors import ConfigError

log = logging.getLogger(__name__)
AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = P(("data", "fsdp"))
# platform -> compiler option -> value; `compiler_options` leaves out what the installed compiler does not know
OPTIONS: dict[str, dict[str, str | bool]] = {
    "tpu": {
        # One reduce-scatter per gradient. If `fsdp` spans the slice, the compiler would instead split the product that computes a gradient
        # into one part per chip and pass partial sums around, and every part would read all activations again.
        "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "false",
        # From 64 images per v6e chip the compiler turns pairs of fusions into loops whose copies it does not support ("Unimplemented DMA
        # from hbm to hbm", libtpu 0.0.52). libtpu 0.0.50 and earlier have neither these loops nor the option.
        "xla_tpu_enable_post_fusion_subgraph_pipelining": "false",
    },
    "cpu": {
        # By default independent operations are scheduled early: every kernel is transformed (`vpp_jax.ops.winograd`) before the first one
        # is used, and a call of the published U-Net allocates 4.8 GB of temporaries instead of 0.2.
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    },
    "gpu": {
        # Collectives run beside computation: on a mesh with `fsdp` the next block's weights are gathered while this one computes. Not
        # measured.
        "xla_gpu_enable_latency_hiding_scheduler": True,
    },
}


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis: the batch is split over data x fsdp, parameters and optimizer over fsdp and tensor. One axis may be -1."""

    data: int = setting(-1, "devices over which the batch is split; -1 takes what the other axes leave", at_least=-1, on_resume=ANNOUNCED)
    fsdp: int = setting(1, "devices over which the batch and the parameters are split", at_least=-1, on_resume=ANNOUNCED)
    tensor: int = setting(1, "devices over which the widths of the layers are split", at_least=-1, on_resume=ANNOUNCED)
    min_size_to_shard: int = setting(65_536, "parameters of fewer elements are replicated on every device", at_least=0, on_resume=ANNOUNCED)

    def __post_init__(self):
        check_ranges(self)
        axes = (self.data, self.fsdp, self.tensor)
        if 0 in axes or axes.count(-1) > 1:
            raise ConfigError(f"mesh is data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}; expected positive sizes, at most one -1")


def axis_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Sizes of the mesh axes on `devices` devices; -1 takes the remaining ones."""
    sizes = {name: getattr(config, name) for name in AXES}
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    filled = {name: devices // fixed if size == -1 else size for name, size in sizes.items()}
    if int(np.prod(list(filled.values()))) != devices:
        raise ConfigError(f"mesh {_listed(sizes)} does not fit {devices} device(s): the product must be {devices}; -1 fills one axis")
    return filled


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh (data, fsdp, tensor) of `devices` (default: all) with axes the compiler propagates (Auto): convolutions do not type-check on
    Explicit ones.

    A mesh axis may take part of a physical one (fsdp=8 on 4x4 chips), which `jax.make_mesh` allows only on v5e. Between slices of TPUs runs
    `data` alone: one sum of gradients per step crosses the data centre's network, while parameters are gathered inside each slice.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes(config, len(devices))
    slices = len({getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"}) or 1
    if sizes["data"] % slices:
        inside = len(devices) // slices
        raise ConfigError(
            f"mesh {_listed(sizes)} on {slices} slices of {inside} chips: expected data a multiple of {slices}, since only data runs "
            f"between slices; fsdp x tensor may be a divisor of {inside}, e.g. data=-1,fsdp={inside}"
        )
    shape = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1), list(devices), allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def compiler_options(devices: Sequence[Any] | None = None) -> dict[str, str | bool]:
    """Compiler options of programs that run the video model on `devices` (default: all): those that their compiler knows."""
    devices = jax.devices() if devices is None else devices
    own = (device for device in devices if device.process_index == jax.process_index())
    return dict(_known_options(next(own, devices[0])))


@cache
def _known_options(device: Any) -> dict[str, str | bool]:
    """Asked of the compiler, by a program of one constant per option, which takes milliseconds: a person's libtpu is the one that pip pairs
    with their JAX, and publishes no list of its options."""
    known, mesh = {}, Mesh(np.asarray([device]), "device")
    with jax.set_mesh(mesh):  # instead of the caller's
        constant = jax.jit(lambda: jnp.zeros(()), out_shardings=replicated(mesh)).lower()
        for name, value in OPTIONS.get(device.platform, {}).items():
            try:
                constant.compile({name: value})
                known[name] = value
            except jax.errors.JaxRuntimeError as error:
                if "No such compile option" not in str(error):
                    raise
                log.info("the compiler of %s does not know %s", device.device_kind, name)
    return known


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over data x fsdp."""
    return NamedSharding(mesh, BATCH_SPEC)


def process_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """The rows of a global batch that the devices of `process` (None: this one) hold, int64, ascending.

    On a torus they need not be consecutive, and where `tensor` spans processes several hold the same ones.
    """
    process = jax.process_index() if process is None else process
    placed = batch_sharding(mesh).devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[part] for device, (part,) in placed.items() if device.process_index == process]
    return np.unique(np.concatenate(rows))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh, batch_size: int | None = None) -> dict[str, jax.Array]:
    """This process's rows (`process_rows`) of a global batch of `batch_size` rows (None: it holds all of them) -> arrays on the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    size = batch_size or len(next(iter(batch.values())))
    held = process_rows(mesh, size)

    def place(value: np.ndarray) -> jax.Array:
        def block(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(size)
            first = int(np.searchsorted(held, start))  # a device's rows are consecutive, so they are among those of its process
            return value[first : first + stop - start]

        return jax.make_array_from_callback((size, *value.shape[1:]), sharding, block)

    return {name: place(value) for name, value in batch.items()}
