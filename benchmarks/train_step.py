"""Training step of each stage: steps/s, examples/s, and the share of the time spent waiting for data.

    python benchmarks/train_step.py [--config configs/tiny_calvin_vae.py ...] [--data DIR --name calvin_mujoco] [--steps 20] [--json FILE]

The step is that of the training loop: compiled ahead of time, state donated, the loader running concurrently. Frozen parameters are
random, since speed does not depend on their values. Without --data it writes a dataset of photograph-like JPEG first. `computing` is the
same step on one batch that is already on the device: the speed with an infinitely fast loader.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from data_pipelines.config import DatasetConfig
from data_pipelines.loader import make_iterator
from vpp_jax.cli.config_flag import load_config
from vpp_jax.cli.parser import Parser
from vpp_jax.common.files import write_atomically
from vpp_jax.common.host_memory import restart_with_huge_pages
from vpp_jax.common.provenance import device_name, library_versions
from vpp_jax.config import ExperimentConfig
from vpp_jax.functional import Params, parameter_count
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import make_mesh, put_batch
from vpp_jax.parallel.partition import partition
from vpp_jax.training.loop import compile_step
from vpp_jax.training.recorder import Clock
from vpp_jax.training.stage import Stage
from vpp_jax.training.stages.registry import make_stage
from vpp_jax.training.state import Trainer

TINY = tuple(f"configs/tiny_calvin_{stage}.py" for stage in ("vae", "video", "policy"))
WARM_UP = 3


def measure(config: ExperimentConfig, workdir: Path, steps: int) -> dict[str, float]:
    """Timings of one stage on real batches."""
    stage, mesh = make_stage(config), make_mesh(config.mesh)
    with on_mesh(mesh, config.mesh.min_size_to_shard):
        trainer = Trainer(stage)
        frozen = random_frozen(stage, mesh)
        state = jax.jit(trainer.init, out_shardings=trainer.shardings(mesh))(jax.random.key(0))
        parameters = parameter_count(state.params)
        begin = time.perf_counter()
        source = stage.source("train", frozen, workdir)
        prepare_s = time.perf_counter() - begin
        iterator = make_iterator(source, config.data.batch_size, 0, threads=config.data.threads, prefetch=config.data.prefetch)
        begin = time.perf_counter()
        step = compile_step(trainer, mesh, frozen, source[0])
        compile_s = time.perf_counter() - begin

        clock = Clock()
        for index in range(WARM_UP + steps):
            if index == WARM_UP:
                jax.block_until_ready(state)
                clock = Clock()
                clock.start()
            with clock.waits():
                batch = put_batch(next(iterator), mesh)
            state, metrics, _ = step(state, frozen, batch)
            clock.steps += 1
        jax.block_until_ready(state)
        lap = clock.lap(config.data.batch_size)

        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics, _ = step(state, frozen, batch)
        jax.block_until_ready(state)
        computing_ms = 1e3 * (time.perf_counter() - begin) / steps
    assert np.isfinite(float(metrics["loss"]))
    return {
        "trained_parameters": parameters,
        "frozen_parameters": parameter_count(frozen),
        "batch_size": config.data.batch_size,
        "steps_per_s": 1e3 / lap["time/step_ms"],
        "examples_per_s": lap["time/examples_per_s"],
        "step_ms": lap["time/step_ms"],
        "computing_ms": computing_ms,
        "data_wait_share": lap["time/data_wait_share"],
        "compile_s": compile_s,
        "prepare_data_s": prepare_s,
    }


def random_frozen(stage: Stage, mesh: jax.sharding.Mesh) -> Params:
    abstract = stage.abstract_frozen()
    shardings = partition(abstract, mesh, stage.config.mesh.min_size_to_shard)
    rng = np.random.default_rng(0)
    values = {name: np.asarray(0.02 * rng.normal(size=spec.shape), spec.dtype) for name, spec in abstract.items()}
    if "latents/scaling_factor" in values:
        values["latents/scaling_factor"] = np.float32(1.0)
    return jax.device_put(values, shardings)


def _with_data(config: ExperimentConfig, path: Path, name: str, index_dir: Path) -> ExperimentConfig:
    """`config` on other data. Cached features carry the identity of a trained checkpoint, so a policy computes them in its step."""
    data = dataclasses.replace(config.data, datasets=(DatasetConfig(path=str(path), name=name),), index_dir=str(index_dir))
    return dataclasses.replace(config, data=data, policy_diffusion=dataclasses.replace(config.policy_diffusion, feature_draws=0))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", nargs="+", default=TINY, help="configurations, one or more")
    parser.add_argument("--data", type=Path, help="TFDS/RLDS directory")
    parser.add_argument("--name", default="calvin_mujoco", help="its row of the registry")
    parser.add_number("--steps", int, 20, "timed steps", at_least=1, at_most=1_000_000)
    parser.add_output("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    restart_with_huge_pages()  # as `vpp eval` and `vpp train` do
    about = {"device": device_name(), "versions": library_versions(), "steps": options.steps, "stages": {}}
    print(about["device"])
    print(" ".join(f"{name} {version}" for name, version in about["versions"].items()))
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data
        if data is None:
            data = Path(scratch) / "data"
            sys.path.insert(0, str(Path(__file__).parent / "loading"))
            from shards import write_images

            write_images(data, episodes=16, steps=60, height=200, width=200)
        for name in options.config:
            config = _with_data(load_config(name), data, options.name, Path(scratch) / "index")
            row = measure(config, Path(scratch) / "work" / Path(name).stem, options.steps)
            about["stages"][name] = row
            print(
                f"{name:36s} {row['trained_parameters']:>11,} parameters  batch {row['batch_size']:3d}  {row['steps_per_s']:7.2f} steps/s  "
                f"{row['examples_per_s']:8.1f} examples/s  waiting for data {row['data_wait_share']:4.0%}  "
                f"computing {row['computing_ms']:.0f} ms of {row['step_ms']:.0f}  compiled in {row['compile_s']:.0f} s",
                flush=True,
            )
    if options.json:
        write_atomically(options.json, json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
