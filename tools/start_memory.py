"""Host memory for restoring a checkpoint of size svd on one host of eight, compared with that host's share of the state.

    python tools/start_memory.py --out DIR

The state of stage `video` is parameters, EMA and two moments. Eight processes over loopback, one device each, are the hosts of a mesh
fsdp = 8. They restore every 32nd and every 16th tensor by size, starting with the largest, with their true shapes; the difference between
both is scaled to all tensors. On CPU the arrays remain in host memory, so the figure includes the share itself and the overhead of
restoring; on a TPU the share is moved to the chips. The checkpoint is read as written by eight devices, and as written unsharded by one.
"""

import argparse
import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically

PROJECT = Path(__file__).resolve().parents[1]
HOSTS, BOUND, SUBSETS = 8, 1.3, (32, 16)


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_output("--out", required=True, help="directory of the checkpoints; those that are there are read again")
    parser.add_argument("--every", type=int, help="of a process that this program starts: of so many tensors one is there")
    parser.add_argument("--role", help="of a process that this program starts: 'write', or 'read', its number and the port of number 0")
    options = parser.parse_args()
    if options.role:
        play(options)
        return 0
    ratios = []
    print("| written by | of so many tensors one | share, MiB | grown by at most, MiB | times the share |\n|---|---|---|---|---|")
    for writers in (HOSTS, 1):
        found = [measure(options.out / f"by_{writers}_{every}", every, writers) for every in SUBSETS]
        for every, (share, grown) in zip(SUBSETS, found, strict=True):
            print(f"| {writers} | {every} | {share / 2**20:.0f} | {grown / 2**20:.0f} | {grown / share:.2f} |", flush=True)
        (few, grown_few), (more, grown_more) = found
        sizes = [sum(math.prod(shape) for shape in tensors(options.out, every).values()) for every in (SUBSETS[-1], 1)]
        share = more * sizes[1] / sizes[0]
        grown = grown_more + (grown_more - grown_few) / (more - few) * (share - more)
        ratios.append(grown / share)
        print(f"| {writers} | 1, computed | {share / 2**20:.0f} | {grown / 2**20:.0f} | {ratios[-1]:.2f} |", flush=True)
    return 0 if max(ratios) < BOUND else 1


def measure(folder: Path, every: int, writers: int) -> tuple[int, int]:
    """(bytes of the share, bytes by which the process grew at most) of the host that grew most for its share."""
    if not (folder / "1").exists():
        start(folder, every, "write", writers).communicate()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    readers = [start(folder, every, f"read {index} {port}", 1) for index in range(HOSTS)]
    measured = [json.loads(reader.communicate()[0].splitlines()[-1]) for reader in readers]
    return max(measured, key=lambda entry: entry[1] / entry[0])


def start(folder: Path, every: int, role: str, devices: int) -> subprocess.Popen:
    command = [sys.executable, __file__, f"--out={folder}", f"--every={every}", f"--role={role}"]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(command, cwd=PROJECT, env=os.environ | flags, stdout=subprocess.PIPE, text=True)


def play(options: argparse.Namespace) -> None:
    """Writes the checkpoint, or reads it and prints (bytes of the share, bytes by which the process grew at most)."""
    import jax
    import numpy as np

    from vpp_jax.cli.config_flag import load_config
    from vpp_jax.config import MeshConfig
    from vpp_jax.parallel.mesh import make_mesh, replicated
    from vpp_jax.parallel.partition import like_params, partition
    from vpp_jax.training.checkpoint_writing import Checkpoints
    from vpp_jax.training.state import TrainState

    role, *place = options.role.split()
    if role == "read":
        jax.distributed.initialize(f"127.0.0.1:{place[1]}", HOSTS, int(place[0]))
    config = load_config("configs/svd_calvin_video.py")
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in tensors(options.out.parent, options.every).items()}
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1, tensor=1))
    split = partition(params, mesh, config.mesh.min_size_to_shard)

    def as_state(step, values) -> TrainState:
        return TrainState(step, values, values, {"mu": values, "nu": values})

    abstract = as_state(jax.ShapeDtypeStruct((), np.int32), params)
    shardings = dataclasses.replace(as_state(replicated(mesh), split), opt_state=like_params(abstract.opt_state, split, mesh))
    checkpoints = Checkpoints(options.out, max_to_keep=1)
    if role == "write":
        rng = np.random.default_rng(0)
        values = {name: jax.device_put(rng.standard_normal(spec.shape, np.float32), split[name]) for name, spec in params.items()}
        checkpoints.save(1, as_state(np.int32(1), values), {}, {})
        checkpoints.close()
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    state = jax.block_until_ready(checkpoints.restore(1, abstract, shardings))
    grown = memory("VmHWM") - before
    print(json.dumps([sum(shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards), grown]))


def tensors(folder: Path, every: int) -> dict[str, tuple[int, ...]]:
    """Shapes of every n-th parameter by size; all shapes are cached in a file, since building the model takes seconds."""
    path = folder / "tensors.json"
    if not path.exists():
        from vpp_jax.cli.config_flag import load_config
        from vpp_jax.training.stages.registry import make_stage

        found = make_stage(load_config("configs/svd_calvin_video.py")).abstract_trainable()
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({name: spec.shape for name, spec in found.items()}))
    shapes = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    return {name: shapes[name] for name in sorted(sorted(shapes, key=lambda name: math.prod(shapes[name]), reverse=True)[::every])}


def memory(what: str) -> int:
    """Bytes, from the kernel's table of this process."""
    return 1024 * next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))


if __name__ == "__main__":
    sys.exit(main())
