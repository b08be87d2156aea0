"""The training loop of every stage.

Its order is a contract, because resuming depends on it:

    for step: evaluate?(step); save?(step, state, iterator); batch = next(iterator); state = train_step(state, batch)

A checkpoint of `step` therefore contains the state after that many updates and an iterator that has produced exactly the batches before
them; metrics.jsonl then contains the entries up to `step`. The same command resumes from the newest checkpoint and ends with the same
parameters, EMA, optimizer state, data order and logged metrics as an uninterrupted run.

A run may have many processes, each with some of the devices and a shard of every batch. All execute this function in lockstep.
"""

import hashlib
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.loader import eval_batches, make_iterator
from vpp_jax.common.config_fields import ANNOUNCED, FIXED
from vpp_jax.common.files import write_atomically
from vpp_jax.common.provenance import device_name, git_revision, library_versions
from vpp_jax.config import ConfigError, ExperimentConfig, config_diff, config_hash, from_config_dict, on_resume, to_dict, to_json
from vpp_jax.functional import AbstractParams, Params, parameter_count
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import batch_sharding, compiler_options, make_mesh, put_batch, replicated
from vpp_jax.parallel.partition import partition
from vpp_jax.training.accumulation import check_micro_batches
from vpp_jax.training.checkpoints import Checkpoints, check_stage
from vpp_jax.training.distributed import PreemptionFlag, process_shard, require_equal
from vpp_jax.training.heartbeat import Heartbeat
from vpp_jax.training.metrics import JSON_LINES, MetricLog, append_line, open_log, rewind
from vpp_jax.training.preemption import StopRequest
from vpp_jax.training.profiling import StepProfile
from vpp_jax.training.recorder import Clock, Recorder
from vpp_jax.training.stage import Stage, StageSource
from vpp_jax.training.state import Trainer
from vpp_jax.training.utilization import Utilization

# Random streams besides those of training steps, which use fold_in(key(seed), step).
INIT_STREAM, EVAL_STREAM = 0x1A17, 0xE7A1


@dataclass(frozen=True)
class TrainOutcome:
    """How a call of `train` ended. exit_code: 0, or 143 / 130 where SIGTERM / SIGINT to any process stopped it after saving."""

    step: int
    finished: bool
    exit_code: int
    compile_s: float
    train_s: float


def train(
    stage: Stage,
    workdir: str | Path,
    mesh: Mesh | None = None,
    heartbeat: Heartbeat | None = None,
    ideal_step_s: float | None = None,
) -> TrainOutcome:
    """Trains `stage` to `config.train.steps` updates in `workdir`, from its newest checkpoint if there is one.

    The loop reports its phases to `heartbeat`, which the caller starts and stops. `ideal_step_s`: the seconds at which MFU is 1
    (`vpp_jax/aot/mfu.py`); None logs none.
    """
    config, workdir, primary = stage.config, Path(workdir), jax.process_index() == 0
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    heartbeat = heartbeat or Heartbeat(workdir / "heartbeats", 0, 1, config.train.heartbeat_s, config.train.peer_timeout_s)
    check_micro_batches(config.data.batch_size, config.train.grad_accum_steps, mesh)
    part, timeout_s = process_shard(mesh), config.train.peer_timeout_s

    with (
        closing(Checkpoints(workdir / "checkpoints", config.train.max_to_keep)) as checkpoints,
        on_mesh(mesh, config.mesh.min_size_to_shard),
    ):
        # === resume from the newest checkpoint =========================================================================================
        start = checkpoints.latest()
        require_equal("configuration", config_hash(config), timeout_s, "Start every process with the same flags")
        require_equal("checkpoint to resume from", str(start), timeout_s, f"{workdir} must be one directory that all processes share")
        saved = checkpoints.metadata(start) if start is not None else {"window": [], "train_s": 0.0, "evaluated": False}
        changed = _check_resumable(workdir, config, saved) if start is not None else {}
        if start is not None and start >= config.train.steps:
            return _nothing_left(workdir, start, saved)
        if primary:
            write_atomically(workdir / "config.json", to_json(config) + "\n")
            rewind(workdir / JSON_LINES, -1 if start is None else start, saved["evaluated"])

        # === parameters: abstract -> shardings -> arrays ============================================================================
        trainer = Trainer(stage)
        abstract, shardings = trainer.abstract, trainer.shardings(mesh)
        frozen = _frozen(stage, mesh, checkpoints, resumed=start is not None)
        if start is not None:
            state = checkpoints.restore(start, abstract, shardings)
        elif (given := stage.load_trainable(shardings.params)) is not None:
            state = jax.jit(trainer.init_from_params, out_shardings=shardings)(given)
        else:
            key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
            state = jax.jit(trainer.init, out_shardings=shardings)(key)

        # === data ===================================================================================================================
        source = stage.source("train", frozen, workdir)
        held_out = stage.source("val", frozen, workdir) if config.train.eval_every else None
        data = source.metadata()
        statistics = statistics_hash(data)
        if saved.get("statistics_hash", statistics) != statistics:
            raise ConfigError(
                f"{workdir} was trained on data with statistics hash {saved['statistics_hash']}, the data now has {statistics}: restore "
                "the old shards, or use a new work directory"
            )
        iterator = make_iterator(
            source,
            config.data.batch_size,
            config.seed,
            *part,
            config.data.threads,
            prefetch=config.data.prefetch,
            workers=config.data.workers,
        )
        if start is not None:
            iterator.set_state(checkpoints.data_state(start))

        # === compilation, ahead of time and timed apart =============================================================================
        begin = time.perf_counter()
        heartbeat.enter("compile", start or 0)
        train_step = compile_step(trainer, mesh, frozen, source[0])
        compile_s = time.perf_counter() - begin
        step = start or 0
        run = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "compile_s": round(compile_s, 3),
            "device": device_name(),
            "mesh": dict(mesh.shape),
            "processes": jax.process_count(),
            "versions": library_versions(),
            "git_revision": git_revision(),
            "changed": changed,
        }
        if primary:
            append_line(workdir / "runs.jsonl", run)
            if changed:
                logging.getLogger(__name__).info("resumes at step %d with %s", step, _listed(changed))
                print(f"resumes at step {step} with other values: {_listed(changed)}", flush=True)
            print(
                f"stage {config.stage}: {parameter_count(abstract.params):,} parameters and {parameter_count(frozen):,} frozen ones; "
                f"{len(source):,} examples; {run['device']}; compiled in {compile_s:.1f} s; steps {step} to {config.train.steps}",
                flush=True,
            )
        about = {
            "stage": config.stage,
            "config": to_dict(config),
            "config_hash": config_hash(config),
            "data": data,
            "statistics_hash": statistics,
            "versions": run["versions"],
            "git_revision": run["git_revision"],
            "device": run["device"],
        }

        # === the loop ===============================================================================================================
        clock = Clock(total=saved["train_s"])
        evaluation = Evaluation(stage, mesh, frozen, held_out, workdir) if held_out is not None else None
        last_saved, evaluated, preemption = start, saved["evaluated"], PreemptionFlag(mesh)
        profile = StepProfile(workdir / "profile", step, config.train.profile_steps if primary else 0)
        with closing(open_log(workdir, config, step) if primary else MetricLog([])) as log, closing(profile), StopRequest() as stop:

            def skipped() -> int:
                return len(getattr(source, "skipped", ()))

            def stop_asked() -> bool:
                return preemption.any_process(stop.requested)

            utilization = Utilization(heartbeat.phases, jax.local_devices(), ideal_step_s)
            recorder = Recorder(log, clock, config.train.log_every, config.data.batch_size, saved["window"], skipped, utilization)
            clock.start()
            while True:
                finished, stopping = step >= config.train.steps, stop_asked()

                # --- evaluate?(step) ------------------------------------------------------------------------------------------------
                due = finished or (step > 0 and config.train.eval_every and step % config.train.eval_every == 0)
                if evaluation and due and not evaluated and (finished or not stopping):
                    recorder.settle()
                    with clock.paused(), heartbeat.during("eval"):
                        values = evaluation(state.eval_params, step, None if finished else stop_asked)
                    if values is not None:
                        log.write("eval", step, values)
                        evaluated = True

                # --- save?(step, state, iterator) -----------------------------------------------------------------------------------
                due = finished or stopping or (step > 0 and step % config.train.save_every == 0)
                if due and step != (last_saved or 0):
                    recorder.settle()
                    with clock.paused(), heartbeat.during("save"):
                        progress = {"finished": finished, "evaluated": evaluated, "window": list(recorder.window), "train_s": clock.total}
                        added = stage.final_metadata(state.eval_params, frozen, _full_batches(source, config, mesh)) if finished else {}
                        checkpoints.save(step, state, about | progress | added, iterator.get_state())
                    last_saved = step
                if finished or stopping:
                    break

                # --- batch = next(iterator) -----------------------------------------------------------------------------------------
                heartbeat.enter("data", step)
                with clock.waits():
                    batch = next(iterator)
                    on_device = put_batch(batch, mesh)
                if step == 0 and primary:
                    with clock.paused():
                        stage.plot_batch(batch, workdir / "first_batch.png")

                # --- state = train_step(state, batch) -------------------------------------------------------------------------------
                profile.at(step)
                heartbeat.enter("step", step + 1)
                with jax.transfer_guard("disallow"), jax.profiler.StepTraceAnnotation("train", step_num=step):
                    state, metrics, squares = train_step(state, frozen, on_device)
                step, evaluated = step + 1, False
                recorder.push(step, metrics, squares, batch)
            heartbeat.enter("save")
            checkpoints.wait()
    return TrainOutcome(step, finished, 0 if finished else stop.exit_code or 128 + signal.SIGTERM, compile_s, clock.total)


def compile_step(trainer: Trainer, mesh: Mesh, frozen: Params | AbstractParams, example: dict[str, np.ndarray]) -> jax.stages.Compiled:
    """The training step, compiled for this mesh with every sharding pinned and the state donated."""
    shardings, rows = trainer.shardings(mesh), trainer.stage.config.data.batch_size
    batch = {name: jax.ShapeDtypeStruct((rows, *np.shape(value)), np.asarray(value).dtype) for name, value in example.items()}
    placed = ({name: value.sharding for name, value in frozen.items()}, {name: batch_sharding(mesh) for name in batch})
    step = jax.jit(
        trainer.step, donate_argnums=0, in_shardings=(shardings, *placed), out_shardings=(shardings, replicated(mesh), replicated(mesh))
    )
    abstract_frozen = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in frozen.items()}
    return step.lower(trainer.abstract, abstract_frozen, batch).compile(compiler_options(list(mesh.devices.flat)))


class Evaluation:
    """Mean loss over fixed held-out batches with fixed noise, and a plot of predictions."""

    def __init__(self, stage: Stage, mesh: Mesh, frozen: Params, source: StageSource, workdir: Path):
        self._stage, self._mesh, self._frozen, self._source, self._workdir = stage, mesh, frozen, source, workdir
        self._loss = jax.jit(stage.loss, out_shardings=replicated(mesh), compiler_options=compiler_options())

    def __call__(self, params: Params, step: int, stop_asked: Callable[[], bool] | None) -> dict[str, float] | None:
        """Metrics of `params` (the EMA); None if `stop_asked()`, called before every batch, returned True."""
        plot = self._workdir / "previews" / f"step_{step:08d}.png" if jax.process_index() == 0 else None
        root = jax.random.fold_in(jax.random.key(self._stage.config.seed), EVAL_STREAM)
        rows: list[dict[str, float]] = []
        shown: dict[str, float] = {}
        for index, batch in enumerate(_full_batches(self._source, self._stage.config, self._mesh)):
            if stop_asked is not None and stop_asked():
                return None
            key = jax.random.fold_in(root, index)
            loss, metrics = self._loss(params, self._frozen, batch, key)
            rows.append({name: float(value) for name, value in jax.device_get({"loss": loss, **metrics}).items()})
            if index == 0:
                shown = self._stage.plot_predictions(params, self._frozen, batch, key, plot)
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} | shown


def statistics_hash(data: dict[str, Any]) -> str:
    """The hash of the statistics in a source's metadata; of several datasets, the hash of their hashes; '' where there are none."""
    hashes = [entry["statistics_hash"] for entry in data.get("datasets", [data]) if "statistics_hash" in entry]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest() if hashes else ""


def _full_batches(source: StageSource, config: ExperimentConfig, mesh: Mesh) -> Iterator[dict[str, jax.Array]]:
    """At most `eval_batches` batches spread evenly over `source`, always the same ones, all of full size.

    Means over batches are then means over examples. A source smaller than one batch yields one batch, its last example repeated.
    """
    size = config.data.batch_size
    count = min(config.train.eval_batches, max(len(source) // size, 1))
    batches = eval_batches(source, size, *process_shard(mesh), config.data.threads, limit=count * size)
    for batch in batches:
        yield put_batch({name: value for name, value in batch.items() if name != "valid"}, mesh)


def _frozen(stage: Stage, mesh: Mesh, checkpoints: Checkpoints, resumed: bool) -> Params:
    """Frozen parameters on the mesh. A resumed run reads its own copy: the earlier stage may have been trained further since."""
    abstract = stage.abstract_frozen()
    shardings = partition(abstract, mesh, stage.config.mesh.min_size_to_shard)
    params = checkpoints.restore_frozen(abstract, shardings) if resumed else None
    if params is None:
        params = jax.device_put(stage.load_frozen(shardings), shardings)
        checkpoints.save_frozen(params)
    return params


def _check_resumable(workdir: Path, config: ExperimentConfig, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that changed since the run was started and are to be announced; ConfigError where one changed that must not."""
    check_stage(workdir, saved, config.stage)
    changed = config_diff(from_config_dict(saved["config"]), config)
    if fixed := {name: values for name, values in changed.items() if on_resume(name) is FIXED}:
        raise ConfigError(f"{workdir} holds a run with another configuration: {_listed(fixed)}. Use the old values, or a new --workdir")
    return {name: values for name, values in changed.items() if on_resume(name) is ANNOUNCED}


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in sorted(changed.items()))


def _nothing_left(workdir: Path, step: int, saved: dict[str, Any]) -> TrainOutcome:
    if not saved["finished"]:
        raise ConfigError(f"{workdir} is at step {step} of a longer run: set train.steps above {step} to resume")
    print(f"{workdir} is trained to step {step}: nothing left to do (a larger train.steps continues)", flush=True)
    return TrainOutcome(step, True, 0, 0.0, saved["train_s"])
