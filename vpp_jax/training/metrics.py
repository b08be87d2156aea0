"""Metric writers: metrics.jsonl, the terminal, TensorBoard, and optionally Weights & Biases.

An entry is {"kind": "train" or "eval", "step": updates made, name: value, ...}. Names under `time/` differ between equal runs, and so
does `data/skipped_records`, which counts from the start of the process; all others are a function of the configuration: the file of a
resumed run equals that of an uninterrupted one.
"""

import json
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_pipelines.rlds.tfrecord import frame
from vpp_jax.common.errors import VppError
from vpp_jax.common.files import AppendedFile, write_atomically
from vpp_jax.common.progress import ProgressBar, is_terminal
from vpp_jax.config import ExperimentConfig, to_dict
from vpp_jax.training.workdir import Workdir

TIMING = "time/"
SKIPPED = "data/skipped_records"
SKIPPED_UPDATES = "skipped_updates"
JSON_LINES = "metrics.jsonl"
Values = Mapping[str, float]


class MetricsError(VppError):
    """A metrics destination that cannot be used."""


@runtime_checkable
class Writer(Protocol):
    def write(self, kind: str, step: int, values: Values) -> None: ...

    def close(self) -> None: ...


class MetricLog:
    """All writers as one. `tick` is called every step, `write` for every entry."""

    def __init__(self, writers: list[Writer]):
        self._writers = writers

    def write(self, kind: str, step: int, values: Values) -> None:
        for writer in self._writers:
            writer.write(kind, step, values)

    def tick(self, step: int) -> None:
        for writer in self._writers:
            if isinstance(writer, Terminal):
                writer.tick(step)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def open_log(workdir: Workdir, config: ExperimentConfig, start: int) -> MetricLog:
    """The writers of a run that starts or resumes at step `start`."""
    terminal = Terminal(start, config.train.steps) if config.train.progress and is_terminal() else Lines(config.train.steps)
    files = workdir.local
    writers: list[Writer] = [JsonLines(files / JSON_LINES), terminal, TensorBoard(files / "tensorboard", start)]
    if config.train.wandb:
        writers.append(WandB(files, workdir.name, to_dict(config)))
    writers.append(Uploads(workdir))
    return MetricLog(writers)


class JsonLines:
    """One JSON object per line, flushed as written."""

    def __init__(self, path: Path):
        self._file = AppendedFile(path)

    def write(self, kind: str, step: int, values: Values) -> None:
        self._file.append((json.dumps({"kind": kind, "step": step, **values}) + "\n").encode())

    def close(self) -> None:
        self._file.close()


class Lines:
    """Plain lines on standard output, for files and pipes."""

    def __init__(self, steps: int):
        self._steps = steps

    def write(self, kind: str, step: int, values: Values) -> None:
        print(f"{kind} {step}/{self._steps}  {summary(values)}", flush=True)

    def close(self) -> None:
        pass


class Terminal:
    """A progress bar with the last training metrics; evaluations are printed above it."""

    def __init__(self, start: int, steps: int):
        self._bar, self._summary = ProgressBar("steps", steps, start), ""

    def tick(self, step: int) -> None:
        self._bar.update(step, note=self._summary)

    def write(self, kind: str, step: int, values: Values) -> None:
        if kind == "train":
            self._summary = summary(values)
        else:
            self._bar.message(f"{kind} {step}  {summary(values)}")

    def close(self) -> None:
        self._bar.close()


class TensorBoard:
    """Event files; events after the step that a run resumes from are superseded.

    Written here, with the events that tensorboardX makes: its own writer is a thread, which ends without a word when the disk is full,
    and then blocks the training.
    """

    def __init__(self, directory: Path, start: int):
        # these take a third of a second, and nothing but training needs them; protobuf makes its classes at run time
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        self._file = AppendedFile(directory / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}")
        self._append(file_version="brain.Event:2")
        if start:
            self._append(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def _append(self, **fields: Any) -> None:
        self._file.append(frame(self._event(wall_time=time.time(), **fields).SerializeToString()))

    def write(self, kind: str, step: int, values: Values) -> None:
        for name, value in values.items():
            self._append(step=step, summary=self._scalar(f"{kind}/{name}", value))

    def close(self) -> None:
        self._file.close()


class WandB:
    """Weights & Biases; the run's id is stored in the work directory, so that a resumed run continues the same one."""

    def __init__(self, workdir: Path, name: str, config: dict[str, Any]):
        try:
            import wandb
        except ImportError:
            raise MetricsError("train.wandb is on, but wandb is not installed: pip install wandb, or --config.train.wandb=False") from None
        path = workdir / "wandb_id"
        identity = path.read_text().strip() if path.exists() else None
        self._run = wandb.init(project="vpp_jax", dir=str(workdir), id=identity, resume="allow", config=config, name=name)
        write_atomically(path, self._run.id)

    def write(self, kind: str, step: int, values: Values) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class Uploads:
    """After the writers of files: what they wrote goes to the bucket, where the work directory is in one."""

    def __init__(self, workdir: Workdir):
        self._workdir = workdir

    def write(self, kind: str, step: int, values: Values) -> None:
        self._workdir.try_upload()

    def close(self) -> None:
        self._workdir.try_upload()


def summary(values: Values) -> str:
    """The main metrics as one line."""
    shown = [f"{name} {values[name]:.4g}" for name in ("loss", "learning_rate", "grad_norm") if name in values]
    if f"{TIMING}step_ms" in values:
        shown.append(f"{values[f'{TIMING}step_ms']:.0f} ms/step")
        shown.append(f"{values[f'{TIMING}examples_per_s']:.4g} examples/s")
        shown.append(f"waiting for data {values[f'{TIMING}data_wait_share']:.0%}")
    for name, template in (("share_step", "goodput {:.0%}"), ("mfu", "MFU {:.1%}"), ("hbm_peak_gib", "HBM {:.1f} GiB")):
        if TIMING + name in values:
            shown.append(template.format(values[TIMING + name]))
    return "  ".join(shown)


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Entries of a metrics file."""
    return parse_entries(path.read_text()) if path.exists() else []


def parse_entries(text: str) -> list[dict[str, Any]]:
    """One entry per line; a last line that a killed process left incomplete is dropped."""
    entries = []
    for line in text.splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def rewind(path: Path, step: int) -> None:
    """Drops the entries of steps after checkpoint `step`. The evaluation of `step` was one of this checkpoint and remains."""
    if path.exists():
        write_atomically(path, "".join(json.dumps(entry) + "\n" for entry in read_entries(path) if entry["step"] <= step))


def evaluated_at(path: Path, step: int) -> bool:
    """Whether the file has the evaluation of `step`."""
    return any(entry["kind"] == "eval" and entry["step"] == step for entry in read_entries(path))


def best_step(path: Path, metric: str, steps: Collection[int]) -> int | None:
    """The step of `steps` whose evaluation has the lowest value of `metric`; the earliest of equal ones, None if there is no such value."""
    values = {entry["step"]: entry[metric] for entry in read_entries(path) if entry["kind"] == "eval" and metric in entry}
    return min((step for step in sorted(values) if step in steps), key=values.__getitem__, default=None)


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """One line to a journal."""
    with closing(AppendedFile(path)) as file:
        file.append((json.dumps(entry) + "\n").encode())
