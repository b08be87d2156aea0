"""Several processes as one run: start-up, agreement between processes, and the shard of each batch that a process reads.

The processes of a run execute the same program in lockstep. Every value that selects the next computation (the checkpoint to resume from,
a preemption) must therefore be equal on all processes at the same step. Only process 0 writes files other than checkpoints
and cached features.
"""

import os
import sys
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vpp_jax.common.errors import VppError
from vpp_jax.parallel.mesh import AXES, process_rows, replicated

# sysexits.h: a temporary failure; schedulers restart such a job.
EX_TEMPFAIL = 75
# JAX's own detector of lost processes aborts without naming them, and aborts every process after a suspension of the machine; heartbeats
# (vpp_jax/training/heartbeat.py) detect them sooner.
_JAX_DETECTOR_S = 3600


class DistributedError(VppError):
    """Processes that do not agree, or cannot split a batch."""


class MissingProcessError(DistributedError):
    """Processes that did not connect in time. A restart may help."""


# --- start --------------------------------------------------------------------------------------------------------------------------


def start(coordinator: str = "", process_index: int | None = None, process_count: int | None = None, timeout_s: float = 300.0) -> None:
    """Connects the processes of a run, once, before JAX touches a device. Does nothing for a run of one process.

    Args:
      coordinator: HOST:PORT of process 0. '' reads the TPU's metadata on a TPU, and means a single process elsewhere.
      timeout_s: how long to wait for the other processes.
    """
    if jax.distributed.is_initialized() or not (coordinator or _on_tpu()):
        return
    if coordinator and (process_index is None or process_count is None):
        raise DistributedError(
            f"coordinator is {coordinator}, but process_index is {process_index} and process_count {process_count}: "
            "each process needs all three"
        )
    jax.config.update("jax_enable_preemption_service", False)  # it would catch SIGTERM before the training loop does
    try:
        jax.distributed.initialize(
            coordinator or None,
            process_count,
            process_index,
            initialization_timeout=int(timeout_s),
            heartbeat_timeout_seconds=_JAX_DETECTOR_S,
        )
    except RuntimeError as error:
        where = coordinator or "of the TPU"
        raise MissingProcessError(f"not all processes connected within {timeout_s:g} s (coordinator {where}): {error}") from None


def _on_tpu() -> bool:
    """JAX will take TPUs. It looks for chips on the bus when it is imported, and has no public form of the answer."""
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    return running_in_cloud_tpu_vm and os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] == "tpu"


def hard_exit(code: int) -> NoReturn:
    """Ends this process without waiting for the others, as a regular exit would: they may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# --- agreement ----------------------------------------------------------------------------------------------------------------------


def all_gather_string(name: str, value: str, timeout_s: float) -> list[str]:
    """Every process's `value`, in process order. Also a barrier: MissingProcessError names the processes that did not arrive in time.

    `name` must be unique to the call.
    """
    if jax.process_count() == 1:
        return [value]
    client = _key_value_store()
    client.key_value_set(f"vpp/{name}/{jax.process_index()}", value)
    values, missing = [], []
    for process in range(jax.process_count()):
        try:  # a process that arrived while we waited for another one needs no more time
            values.append(client.blocking_key_value_get(f"vpp/{name}/{process}", int(1000 * (0.1 if missing else timeout_s))))
        except jax.errors.JaxRuntimeError:
            missing.append(str(process))
    if missing:
        raise MissingProcessError(
            f"process {jax.process_index()} waited {timeout_s:g} s at '{name}' for process {', '.join(missing)} of "
            f"{jax.process_count()}, which did not arrive"
        )
    return values


def _key_value_store() -> Any:
    """The store through which the processes of `jax.distributed` find each other; it has no public form."""
    from jax._src.distributed import global_state

    return global_state.client


def require_equal(name: str, value: str, timeout_s: float, hint: str) -> None:
    """DistributedError, with all values, where a process has another `value` than process 0."""
    values = all_gather_string(name, value, timeout_s)
    if len(set(values)) > 1:
        listed = "; ".join(f"process {index}: {seen}" for index, seen in enumerate(values) if index == 0 or seen != values[0])
        raise DistributedError(f"the processes do not agree on the {name}: {listed}. {hint}")


class PreemptionFlag:
    """Whether any process was asked to stop, known to all processes at the same step.

    With several processes the answer is one call late, so that reading it never blocks on the running step.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, P(AXES))
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._devices, self._pending, self._raised = mesh.size, None, False

    def any_process(self, raised: bool) -> bool:
        """Logical or of `raised` over all processes; each must call it equally often."""
        if jax.process_count() == 1:
            return raised
        before = self._pending
        mine = np.full(self._devices, raised, np.int32)
        self._pending = self._any(jax.make_array_from_callback(mine.shape, self._sharding, lambda part: mine[part]))
        self._raised |= before is not None and bool(before)
        return self._raised


# --- data ---------------------------------------------------------------------------------------------------------------------------


def process_shard(mesh: Mesh) -> tuple[int, int]:
    """(i, n): this process holds the i-th of n equal shares of a batch. Processes whose devices hold the same rows get the same i."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    held = [tuple(process_rows(mesh, ways, process).tolist()) for process in range(jax.process_count())]
    shards = sorted(set(held))
    if sum(map(len, shards)) != ways or len({len(shard) for shard in shards}) != 1:
        raise DistributedError(
            f"mesh {dict(mesh.shape)} gives the processes overlapping rows of a batch: {shards}; make data x fsdp a multiple, or a "
            "divisor, of the number of processes"
        )
    return shards.index(held[jax.process_index()]), len(shards)


def local_rows(value: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded like a batch, in the order of `process_rows`: the inverse of `put_batch`."""
    parts = {shard.index[0].start or 0: shard.data for shard in value.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def on_host(tree: Any) -> Any:
    """NumPy arrays of a tree of global arrays, unsharded on every process; all processes must call it."""

    def gathered(value: Any) -> np.ndarray:
        if isinstance(value, jax.Array) and not (value.is_fully_addressable or value.is_fully_replicated):
            return multihost_utils.process_allgather(value, tiled=True)
        return np.asarray(value)

    return jax.tree.map(gathered, tree)
