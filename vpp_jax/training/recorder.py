"""Metrics one step late: a step's metrics are read while the next step runs, so that logging never blocks the device."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from vpp_jax.common.errors import VppError
from vpp_jax.functional import Params
from vpp_jax.training.metrics import SKIPPED, SKIPPED_UPDATES, TIMING, MetricLog
from vpp_jax.training.utilization import Utilization

# Logged as its value at the last step of a window; every other metric is the mean over the window.
LATEST = ("learning_rate",)


class TrainingDivergedError(VppError):
    """A loss or a gradient that is not finite."""


@dataclass
class Clock:
    """Seconds spent training; evaluation, saving and compiling are not counted. `total` continues over restarts."""

    total: float = 0.0
    waiting: float = 0.0  # for data, since the last `lap`
    steps: int = 0  # since the last `lap`
    now: Callable[[], float] = time.perf_counter
    _lap: float = 0.0
    _running_since: float | None = None

    def start(self) -> None:
        self._running_since = self.now()

    def _advance(self) -> None:
        if self._running_since is not None:
            now = self.now()
            self.total += now - self._running_since
            self._lap += now - self._running_since
            self._running_since = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._advance()
        self._running_since = None
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def waits(self) -> Iterator[None]:
        begin = self.now()
        yield
        self.waiting += self.now() - begin

    def lap(self, batch_size: int) -> dict[str, float]:
        """Timing metrics since the last lap."""
        self._advance()
        steps, seconds = max(self.steps, 1), max(self._lap, 1e-9)
        values = {
            "step_ms": 1e3 * seconds / steps,
            "data_wait_ms": 1e3 * self.waiting / steps,
            "data_wait_share": min(self.waiting / seconds, 1.0),
            "examples_per_s": batch_size * self.steps / seconds,
            "train_s": self.total,
        }
        self._lap, self.waiting, self.steps = 0.0, 0.0, 0
        return values


@dataclass
class Recorder:
    """Collects the metrics of every step and writes their means every `log_every` steps.

    window: metrics of the steps since the last entry; saved with a checkpoint, so that the next entry's mean is exact after a resume.
    skipped: number of data records skipped by this process; logged if not 0. utilization: of the machine; not logged if absent.
    max_skipped_updates: updates that are not finite and that the training step therefore leaves out (`Trainer.step`); one more raises.
    skipped_updates: how many there have been.
    """

    log: MetricLog
    clock: Clock
    log_every: int
    batch_size: int
    window: list[dict[str, float]] = field(default_factory=list)
    skipped: Callable[[], int] = lambda: 0
    utilization: Utilization | None = None
    max_skipped_updates: int = 0
    skipped_updates: int = 0
    _pending: tuple[int, Params, Params, dict[str, np.ndarray]] | None = None

    def push(self, step: int, metrics: Params, squares: Params, batch: dict[str, np.ndarray]) -> None:
        """Adds the (still running) step that makes update `step`, and reads the metrics of the previous one."""
        previous, self._pending = self._pending, (step, metrics, squares, batch)
        if previous is not None:
            self._settle(*previous)

    def settle(self) -> None:
        """Blocks on the last step. Afterwards no metrics are pending, and the parameters are known to be finite."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._settle(*pending)

    def _settle(self, step: int, metrics: Params, squares: Params, batch: dict[str, np.ndarray]) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            self.window.append(values)
        else:
            self._not_finite(step, values, squares, batch)
        self.clock.steps += 1
        self.log.tick(step)
        if step % self.log_every == 0:
            means = {name: values[name] if name in LATEST else _mean(self.window, name) for name in values if self.window}
            skipped = {SKIPPED: count} if (count := self.skipped()) else {}
            left_out = {SKIPPED_UPDATES: self.skipped_updates} if self.skipped_updates else {}
            self.log.write("train", step, means | left_out | self._timing() | skipped)
            self.window.clear()

    def _timing(self) -> dict[str, float]:
        lap = self.clock.lap(self.batch_size)
        used = self.utilization.metrics(1e-3 * lap["step_ms"]) if self.utilization else {}
        return {TIMING + name: value for name, value in (lap | used).items()}

    def _not_finite(self, step: int, values: dict[str, float], squares: Params, batch: dict[str, np.ndarray]) -> None:
        """Counts an update that was left out, or raises where no more may be."""
        diagnosis = _diagnosis(values, jax.device_get(squares), batch)
        self.skipped_updates += 1
        if self.skipped_updates > self.max_skipped_updates:
            budget = f", after {self.max_skipped_updates} skipped ones" if self.max_skipped_updates else ""
            raise TrainingDivergedError(
                f"training stopped at step {step}{budget}: {diagnosis}. The newest checkpoint is from before that step. Try a lower "
                "optimizer.learning_rate, a longer warm-up or optimizer.grad_clip"
            )
        logging.getLogger(__name__).warning(
            "update %d is skipped, %d of %d: %s", step, self.skipped_updates, self.max_skipped_updates, diagnosis
        )


def _mean(window: list[dict[str, float]], name: str) -> float:
    return math.fsum(values[name] for values in window) / len(window)


def _diagnosis(values: dict[str, float], squares: dict[str, Any], batch: dict[str, np.ndarray]) -> str:
    """The first gradient that is not finite, and whether the batch is finite."""
    bad = [name for name, value in sorted(squares.items()) if not np.isfinite(value)]
    gradients = f"{len(bad)} of {len(squares)} gradients are not finite, first {bad[0]}" if bad else "every gradient is finite"
    floats = {name: value for name, value in batch.items() if np.issubdtype(value.dtype, np.floating)}
    spoiled = [name for name, value in floats.items() if not np.isfinite(value).all()]
    data = f"the batch has NaN or infinite values in {', '.join(spoiled)}" if spoiled else "the batch is finite"
    return f"loss {values['loss']}, gradient norm {values['grad_norm']}; {gradients}; {data}"
