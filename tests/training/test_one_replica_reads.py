"""Where processes hold the same tensors, one of them reads a checkpoint and the others get it through the mesh."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

SHAPES = {"net/wide": (600, 1000), "net/tall": (900, 700), "net/bias": (5,)}


def main(index: int, port: str, folder: str) -> None:
    """One of two processes: writes, restores, and prints what it read."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    import tensorstore

    from vpp_jax.parallel.mesh import AXES
    from vpp_jax.training import checkpoints as reading
    from vpp_jax.training.checkpoint_writing import Checkpoints

    mesh = Mesh(np.array(jax.devices()).reshape(2, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)
    whole = NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    abstract = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in values.items()}
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save_frozen({name: jax.make_array_from_callback(v.shape, whole, lambda part, v=v: v[part]) for name, v in values.items()})
    checkpoints.wait()

    def bytes_read() -> int:
        found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(value["value"] for metric in found for value in metric["values"])

    told = {}
    for way in ("broadcast", "each"):
        if way == "each":
            reading.one_replica_reads = lambda shardings: False
        before = bytes_read()
        params = checkpoints.restore_frozen(abstract, dict.fromkeys(abstract, whole))
        equal = all(np.array_equal(params[name].addressable_data(0), value) for name, value in values.items())
        told[way] = {"bytes": bytes_read() - before, "equal": equal, "whole": all(p.sharding == whole for p in params.values())}
    checkpoints.close()
    print(json.dumps(told))


@pytest.mark.medium
def test_the_second_process_reads_nothing_large(project, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__]
    environment = os.environ | {"PYTHONPATH": str(project)}
    running = [
        subprocess.Popen([*command, str(index), port, str(tmp_path / "checkpoints")], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    first, second = (json.loads(process.communicate(timeout=600)[0].splitlines()[-1]) for process in running)
    assert all(way["equal"] and way["whole"] for told in (first, second) for way in told.values())
    size = sum(4 * np.prod(shape) for shape in SHAPES.values())
    assert first["broadcast"]["bytes"] > 0.8 * size
    assert second["each"]["bytes"] > 0.8 * size
    assert second["broadcast"]["bytes"] < 0.01 * size


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
