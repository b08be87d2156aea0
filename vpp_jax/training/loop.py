"""The training loop of every stage.

Its order is a contract, because resuming depends on it:

    for step: save?(step, state, iterator); evaluate?(step); batch = next(iterator); state = train_step(state, batch)

A checkpoint of `step` therefore contains the state after that many updates and an iterator that has produced exactly the batches before
them; metrics.jsonl then contains the entries up to `step`, without the evaluation of `step`, which a resumed run makes up if it is not
there. The same command resumes from the newest checkpoint and ends with the same parameters, EMA, optimizer state, data order and logged
metrics as an uninterrupted run. An evaluation that fails, or is interrupted, loses no update.

A run may have many processes, each with some of the devices and a shard of every batch. All execute this function in lockstep.
"""

import hashlib
import json
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from data_pipelines.loader import make_iterator
from vpp_jax.common.config_fields import ANNOUNCED, FIXED
from vpp_jax.common.files import write_atomically
from vpp_jax.common.json_values import flatten_dict
from vpp_jax.common.progress import waiting
from vpp_jax.common.provenance import device_name, git_revision, library_versions
from vpp_jax.config import ConfigError, ExperimentConfig, config_diff, config_hash, from_config_dict, on_resume, to_dict, to_json
from vpp_jax.functional import AbstractParams, Params, parameter_count
from vpp_jax.parallel.gather import on_mesh
from vpp_jax.parallel.mesh import batch_sharding, compiler_options, make_mesh, process_rows, put_batch, replicated
from vpp_jax.parallel.partition import partition
from vpp_jax.training.accumulation import check_micro_batches
from vpp_jax.training.checkpoint_writing import Checkpoints
from vpp_jax.training.checkpoints import check_stage
from vpp_jax.training.distributed import PreemptionFlag, all_gather_string, require_equal
from vpp_jax.training.evaluation import Evaluation, configured, due, full_batches
from vpp_jax.training.heartbeat import Heartbeat
from vpp_jax.training.metrics import JSON_LINES, MetricLog, append_line, best_step, evaluated_at, open_log, rewind
from vpp_jax.training.preemption import StopRequest
from vpp_jax.training.profiling import StepProfile
from vpp_jax.training.random_streams import random_streams
from vpp_jax.training.recorder import Clock, Recorder
from vpp_jax.training.schedules import check_same_past
from vpp_jax.training.stage import Stage
from vpp_jax.training.state import Trainer
from vpp_jax.training.utilization import Utilization
from vpp_jax.training.workdir import Workdir


@dataclass(frozen=True)
class TrainOutcome:
    """How a call of `train` ended. finished: all updates are made and evaluated. exit_code: 0, or 143 / 130 where SIGTERM / SIGINT to any
    process stopped it after saving."""

    step: int
    finished: bool
    exit_code: int
    compile_s: float
    train_s: float


def train(
    stage: Stage,
    directory: Path | Workdir,
    mesh: Mesh | None = None,
    heartbeat: Heartbeat | None = None,
    ideal_step_s: float | None = None,
) -> TrainOutcome:
    """Trains `stage` to `config.train.steps` updates in `directory`, from its newest checkpoint if there is one.

    The loop reports its phases to `heartbeat`, which the caller starts and stops. `ideal_step_s`: the seconds at which MFU is 1
    (`vpp_jax/aot/mfu.py`); None logs none.
    """
    config, primary = stage.config, jax.process_index() == 0
    place = directory if isinstance(directory, Workdir) else Workdir(directory)
    workdir = place.local
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    heartbeat = heartbeat or Heartbeat(place.heartbeats, 0, 1, config.train.heartbeat_s, config.train.peer_timeout_s)
    check_micro_batches(config.data.batch_size, config.train.grad_accum_steps, mesh)
    timeout_s, metrics_file, evaluators = config.train.peer_timeout_s, workdir / JSON_LINES, configured(config)

    def best(steps: Sequence[int]) -> int | None:
        return best_step(metrics_file, config.train.keep_best, steps) if config.train.keep_best else None

    with (
        closing(Checkpoints(place.checkpoints, config.train.max_to_keep, config.train.keep_period, best)) as checkpoints,
        on_mesh(mesh, config.mesh.min_size_to_shard),
    ):
        # === resume from the newest checkpoint =========================================================================================
        start = checkpoints.latest()
        require_equal("configuration", config_hash(config), timeout_s, "Start every process with the same flags")
        require_equal("checkpoint to resume from", str(start), timeout_s, f"{place} must be one directory that all processes share")
        saved = checkpoints.metadata(start) if start is not None else {"window": [], "train_s": 0.0}
        changed = _check_resumable(place, config, saved) if start is not None else {}
        step = start or 0
        # files of a work directory belong to process 0, which tells the others
        evaluated = all_gather_string("evaluated", str(int(primary and evaluated_at(metrics_file, step))), timeout_s)[0] == "1"
        if step >= config.train.steps and (evaluated or not evaluators):
            print(f"{place} is trained to step {step}: nothing left to do (a larger train.steps continues)", flush=True)
            return TrainOutcome(step, True, 0, 0.0, saved["train_s"])
        if primary:
            write_atomically(workdir / "config.json", to_json(config) + "\n")
            rewind(metrics_file, -1 if start is None else start)

        # === parameters: abstract -> shardings -> arrays ============================================================================
        trainer = Trainer(stage)
        abstract, shardings = trainer.abstract, trainer.shardings(mesh)
        frozen = _frozen(stage, mesh, checkpoints, resumed=start is not None)
        if start is not None:
            state = checkpoints.restore(start, abstract, shardings)
        elif (given := stage.load_trainable(shardings.params)) is not None:
            state = jax.jit(trainer.init_from_params, out_shardings=shardings)(given)
        else:
            state = jax.jit(trainer.init, out_shardings=shardings)(random_streams(config.seed).init)

        # === data ===================================================================================================================
        source = stage.source("train", frozen, workdir)
        evaluation = Evaluation.open(stage, mesh, frozen, workdir, source)
        data = source.metadata()
        statistics = statistics_hash(data)
        if saved.get("statistics_hash", statistics) != statistics:
            raise ConfigError(
                f"{place} was trained on data with statistics hash {saved['statistics_hash']}, the data now has {statistics}: restore "
                "the old shards, or use a new work directory"
            )
        if start is not None:
            _check_data(place, saved["data"], data)
        iterator = make_iterator(
            source,
            config.data.batch_size,
            config.seed,
            process_rows(mesh, config.data.batch_size).tolist(),
            config.data.threads,
            prefetch=config.data.prefetch,
            workers=config.data.workers,
        )
        if start is not None:
            iterator.set_state(checkpoints.data_state(start))

        # === compilation, ahead of time and timed apart =============================================================================
        begin = time.perf_counter()
        heartbeat.enter("compile", start or 0)
        with waiting("compiling the training step", visible=primary):
            train_step: Any = compile_step(trainer, mesh, frozen, source[0]) if step < config.train.steps else None
        compile_s = time.perf_counter() - begin
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
        last_saved, preemption = step, PreemptionFlag(mesh)
        profile = StepProfile(workdir / "profile", step, config.train.profile_steps if primary else 0)
        with closing(open_log(place, config, step) if primary else MetricLog([])) as log, closing(profile), StopRequest() as stop:

            def skipped() -> int:
                return len(getattr(source, "skipped", ()))

            def stop_asked() -> bool:
                return preemption.any_process(stop.requested)

            utilization = Utilization(heartbeat.phases, jax.local_devices(), ideal_step_s)
            recorder = Recorder(
                log,
                clock,
                config.train.log_every,
                config.data.batch_size,
                saved["window"],
                skipped,
                utilization,
                config.train.max_skipped_updates,
                saved.get("skipped_updates", 0),
            )
            clock.start()
            while True:
                finished, stopping = step >= config.train.steps, stop_asked()

                # --- save?(step, state, iterator) -----------------------------------------------------------------------------------
                if (finished or stopping or step % config.train.save_every == 0) and step != last_saved:
                    recorder.settle()
                    with clock.paused(), heartbeat.during("save"):
                        if primary:  # metrics.jsonl has every entry up to a step before its checkpoint is visible
                            place.upload()
                        progress = {
                            "finished": finished,
                            "window": list(recorder.window),
                            "skipped_updates": recorder.skipped_updates,
                            "train_s": clock.total,
                        }
                        batches = full_batches(source, config, mesh, config.train.eval_batches)
                        added = stage.final_metadata(state.eval_params, frozen, batches) if finished else {}
                        checkpoints.save(step, state, about | progress | added, iterator.get_state())
                    last_saved = step

                # --- evaluate?(step) ------------------------------------------------------------------------------------------------
                pending = [] if evaluated else due(evaluators, step, finished)
                if pending and not stopping:
                    recorder.settle()
                    with clock.paused(), heartbeat.during("eval"):
                        values = evaluation(pending, state.eval_params, step, stop_asked)
                    if values is None:
                        continue  # to save this step, unless it is saved already, and end
                    log.write("eval", step, values)
                    if (metric := config.train.keep_best) and metric not in values and len(pending) == len(evaluators):
                        message = "train.keep_best is %s, which the evaluation of step %d does not have (has %s): it keeps no checkpoint"
                        logging.getLogger(__name__).warning(message, metric, step, ", ".join(values))
                    pending = []
                if finished or stopping:
                    break

                # --- batch = next(iterator) -----------------------------------------------------------------------------------------
                heartbeat.enter("data", step)
                with clock.waits():
                    batch = next(iterator)
                    on_device = put_batch(batch, mesh, config.data.batch_size)
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
    done = finished and not pending
    return TrainOutcome(step, done, 0 if done else stop.exit_code or 128 + signal.SIGTERM, compile_s, clock.total)


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


def statistics_hash(data: dict[str, Any]) -> str:
    """The hash of the statistics in a source's metadata; of several datasets, the hash of their hashes; '' where there are none."""
    hashes = [entry["statistics_hash"] for entry in data.get("datasets", [data]) if "statistics_hash" in entry]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(json.dumps(hashes).encode()).hexdigest() if hashes else ""


def _frozen(stage: Stage, mesh: Mesh, checkpoints: Checkpoints, resumed: bool) -> Params:
    """Frozen parameters on the mesh. A resumed run reads its own copy: the earlier stage may have been trained further since."""
    abstract = stage.abstract_frozen()
    shardings = partition(abstract, mesh, stage.config.mesh.min_size_to_shard)
    params = checkpoints.restore_frozen(abstract, shardings) if resumed else None
    if params is None:
        params = jax.device_put(stage.load_frozen(shardings), shardings)
        checkpoints.save_frozen(params)
    return params


def _check_resumable(workdir: Workdir, config: ExperimentConfig, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that changed since the run was started and are to be announced; ConfigError where one changed that must not."""
    check_stage(str(workdir), saved, config.stage)
    if (step := saved["step"]) >= config.train.steps and not saved["finished"]:
        raise ConfigError(f"{workdir} is at step {step} of a longer run: set train.steps above {step} to resume")
    before = from_config_dict(saved["config"])
    changed = config_diff(before, config)
    if fixed := {name: values for name, values in changed.items() if on_resume(name) is FIXED}:
        raise ConfigError(f"{workdir} holds a run with another configuration: {_listed(fixed)}. Use the old values, or a new --workdir")
    check_same_past(before, config, step)
    return {name: values for name, values in changed.items() if on_resume(name) is ANNOUNCED}


def _check_data(workdir: Workdir, before: dict[str, Any], now: dict[str, Any]) -> None:
    """ConfigError where shards, or the description of a robot, are not those that the run was started with."""
    for old, new in zip(before.get("datasets", ()), now.get("datasets", ()), strict=False):
        if old.get("fingerprint", "") != new.get("fingerprint", old.get("fingerprint", "")):
            raise ConfigError(
                f"{workdir} holds a run on other shards of '{new['robot']['name']}' (names, sizes or numbers of steps have changed): the "
                "order of its examples would differ. Restore them, or use a new --workdir"
            )
        was, is_now = (flatten_dict({**entry.get("robot", {}), "notes": ""}) for entry in (old, new))
        if differ := {key: (was.get(key), is_now.get(key)) for key in was | is_now if was.get(key) != is_now.get(key)}:
            raise ConfigError(
                f"{workdir} holds a run whose robot '{new['robot']['name']}' was described otherwise: {_listed(differ)}. Restore the "
                "description, or use a new --workdir"
            )


def _listed(changed: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in sorted(changed.items()))
