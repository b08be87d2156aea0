"""Mesh equivalence: three training steps of every stage on meshes of eight devices, and `vpp train` as several processes.

    python tools/meshes.py devices   [--stages vae,video,policy] [--meshes 8x1x1,...]     eight simulated devices in one process
    python tools/meshes.py processes --out DIR [--stages ...] [--counts 2,4]                  `vpp train` over loopback, then onto fewer

The model is the smallest one that has every part (tests/configs/micro.py), in float32, its parameters split as far as they divide.
`devices` compares losses and updated parameters after each of three steps. `processes` trains each stage as 1, 2 and 4 processes on the
same data, one device each, and resumes a run of the most processes with fewer: losses (and so the order of the data) and parameters must
equal those of one process.

Differences are relative: for a tensor, the largest difference over its largest value, or over the learning rate if that is larger (the size
of an Adam update). Float32 sums over a batch have another order on another mesh; the bound is 1e-5. Adam divides a gradient by its own
magnitude, so a gradient of pure rounding error would move its parameter by a full step in a random direction: eps is 1e-3 here, which
suppresses such updates.
"""

import dataclasses
import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from vpp_jax.cli.parser import Parser

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "configs"))
DEVICES, STEPS, BOUND = 8, 3, 1e-5
LEARNING_RATE, EPS = 1e-3, 1e-3
STAGES = ("vae", "video", "policy")
MESHES = tuple(sizes for sizes in itertools.product((1, 2, 4, 8), repeat=3) if sizes[0] * sizes[1] * sizes[2] == DEVICES)


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("what", choices=("devices", "processes"))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--meshes", default=",".join("x".join(map(str, sizes)) for sizes in MESHES), help="data x fsdp x tensor, each")
    parser.add_argument("--counts", default="2,4", help="numbers of processes")
    parser.add_output("--out", help="new directory of the runs of `processes`")
    options = parser.parse_args()
    stages = options.stages.split(",")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    flags = "--xla_backend_optimization_level=0"  # compilation dominates the run time
    if options.what == "devices":
        flags += f" --xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    if options.what == "processes":
        worst = on_processes(options.out, stages, [int(count) for count in options.counts.split(",")])
    else:
        worst = on_devices(stages, [tuple(map(int, sizes.split("x"))) for sizes in options.meshes.split(",")])
    print(f"largest difference {worst:.1e}, allowed {BOUND:.0e}")
    return 0 if worst <= BOUND else 1


# --- eight simulated devices ----------------------------------------------------------------------------------------------------------


def on_devices(stages: list[str], meshes: list[tuple[int, ...]]) -> float:
    """Prints a row per stage and mesh -> the largest difference."""
    import tempfile

    from synthetic_episodes import write_episodes

    worst = 0.0
    print("| stage | data x fsdp x tensor | split tensors | loss | gradient norm | parameters | s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as data:
        write_episodes(Path(data), steps=32)
        for name in stages:
            one = three_steps(micro(name, Path(data)), (1, 1, 1))
            for sizes in meshes:
                begin = time.perf_counter()
                other = three_steps(micro(name, Path(data)), sizes)
                found = [largest(one[part], other[part]) for part in ("loss", "grad_norm", "params")]
                worst = max(worst, *found)
                row = [name, " x ".join(map(str, sizes)), other["split"], *(f"{value:.1e}" for value in found)]
                print(f"| {' | '.join(map(str, row))} | {time.perf_counter() - begin:.0f} |", flush=True)
    return worst


def micro(stage: str, data: Path):
    """The smallest experiment of a stage, float32, for eight devices; a policy computes its features in the step."""
    import micro as file

    from vpp_jax.config import from_config_dict

    config = file.micro(stage)
    config.data.datasets = ({"path": str(data), "name": "calvin_mujoco"},)
    config.data.update(batch_size=DEVICES, threads=0)
    config.policy_diffusion.feature_draws = 0
    config.model.image_size = 16
    config.model.vae.block_out_channels = (8, 16)
    config.optimizer.update(learning_rate=LEARNING_RATE, eps=EPS)
    config.mesh.min_size_to_shard = 0
    return from_config_dict(config)


def three_steps(config, sizes: tuple[int, ...]) -> dict:
    """Losses, gradient norms and all parameters after three updates on a mesh of the first devices."""
    import jax
    import numpy as np

    from data_pipelines.loader import make_iterator
    from vpp_jax.config import MeshConfig
    from vpp_jax.parallel.gather import on_mesh
    from vpp_jax.parallel.mesh import make_mesh, put_batch
    from vpp_jax.parallel.partition import partition
    from vpp_jax.training.loop import compile_step
    from vpp_jax.training.stages.registry import make_stage
    from vpp_jax.training.state import Trainer

    config = dataclasses.replace(config, mesh=MeshConfig(*sizes, min_size_to_shard=0))
    stage, mesh = make_stage(config), make_mesh(config.mesh, jax.devices()[: int(np.prod(sizes))])
    with on_mesh(mesh, 0):
        trainer, rng, held = Trainer(stage), np.random.default_rng(0), stage.abstract_frozen()
        values = {name: np.asarray(0.02 * rng.normal(size=spec.shape) + (spec.shape == ()), spec.dtype) for name, spec in held.items()}
        frozen = jax.device_put(values, partition(held, mesh, 0))
        shardings = trainer.shardings(mesh)
        state = jax.device_put(jax.jit(trainer.init)(jax.random.key(0)), shardings)
        source = stage.source("train", frozen, Path())
        iterator = make_iterator(source, config.data.batch_size, 0, threads=0)
        step, losses, norms = compile_step(trainer, mesh, frozen, source[0]), [], []
        for _ in range(STEPS):
            state, metrics, _ = step(state, frozen, put_batch(next(iterator), mesh))
            losses.append(np.asarray(metrics["loss"]))
            norms.append(np.asarray(metrics["grad_norm"]))
        split = sum(not value.sharding.is_fully_replicated for value in state.params.values())
        params = {name: np.asarray(value) for name, value in state.params.items()}
    return {"loss": {"": np.stack(losses)}, "grad_norm": {"": np.stack(norms)}, "params": params, "split": f"{split} of {len(params)}"}


def largest(one: dict, other: dict) -> float:
    """The largest relative difference between tensors of the same names."""
    import numpy as np

    assert one.keys() == other.keys()
    return max(float(np.max(np.abs(one[name] - other[name])) / max(np.max(np.abs(one[name])), LEARNING_RATE)) for name in one)


# --- several processes ------------------------------------------------------------------------------------------------------------------


def on_processes(out: Path, stages: list[str], counts: list[int]) -> float:
    """Prints a row per stage and number of processes -> the largest difference. Later stages build on the runs of one process."""
    from synthetic_episodes import write_episodes

    write_episodes(out / "data", steps=32)
    worst, way_down = 0.0, [*sorted(counts, reverse=True), 1]
    print("| stage | processes | losses | parameters | s |\n|---|---|---|---|---|")
    for stage in STAGES[: 1 + max(STAGES.index(name) for name in stages)]:
        command(out, stage, out / f"{stage}_1", 1, 6)
        if stage not in stages:
            continue
        for count in counts:
            seconds = command(out, stage, out / f"{stage}_{count}", count, 6)
            worst = max(worst, report(out, stage, f"{stage}_{count}", str(count), seconds))
        seconds = sum(command(out, stage, out / f"{stage}_down", count, 2 * (index + 1)) for index, count in enumerate(way_down))
        worst = max(worst, report(out, stage, f"{stage}_down", "two steps each: " + ", then ".join(map(str, way_down)), seconds))
    return worst


def command(out: Path, stage: str, workdir: Path, count: int, steps: int) -> float:
    """Seconds of `vpp train` as `count` processes, one device each, up to `steps`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        sys.executable,
        "-m",
        "vpp_jax",
        "train",
        f"--config=tests/configs/micro_{stage}.py",
        f"--workdir={workdir}",
        f"--config.data.datasets[0].path={out / 'data'}",
        f"--config.train.steps={steps}",
        f"--config.optimizer.eps={EPS}",
        f"--config.optimizer.learning_rate={LEARNING_RATE}",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=-1",
        "--config.mesh.min_size_to_shard=0",
    ]
    arguments += [f"--config.init.vae={out / 'vae_1'}"] if stage == "video" else []
    arguments += [f"--config.init.video={out / 'video_1'}"] if stage == "policy" else []
    begin, running = time.perf_counter(), []
    for index in range(count):
        several = (f"--coordinator=127.0.0.1:{port}", f"--shard_index={index}", f"--num_shards={count}") if count > 1 else ()
        with (out / f"{workdir.name}.{index}.log").open("ab") as log:
            running.append(subprocess.Popen([*arguments, *several], cwd=PROJECT, stdout=log, stderr=log))
    codes = [process.wait() for process in running]
    assert codes == [0] * count, f"{workdir.name}: exit codes {codes}, see {out}/*.log"
    return time.perf_counter() - begin


def report(out: Path, stage: str, name: str, processes: str, seconds: float) -> float:
    """Prints the row of one run compared with one process -> the larger difference."""
    import numpy as np

    from vpp_jax.training.checkpoints import list_tensors, load_params
    from vpp_jax.training.metrics import read_entries

    runs = [out / f"{stage}_1", out / name]
    losses = [{"": np.array([entry["loss"] for entry in read_entries(run / "metrics.jsonl")])} for run in runs]
    params = []
    for run in runs:
        wanted = {key: spec for key, spec in list_tensors(run, item="params").items()}
        params.append({key: np.asarray(value) for key, value in load_params(run, wanted, item="params").items()})
    found = [largest(*losses), largest(*params)]
    print(f"| {stage} | {processes} | {found[0]:.1e} | {found[1]:.1e} | {seconds:.0f} |", flush=True)
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
