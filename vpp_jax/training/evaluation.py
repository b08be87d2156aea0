"""Evaluators: what is measured while a run trains, on fixed batches with fixed noise, without dropout and without dropped text.

    loss         mean training loss
    preview      WORKDIR/previews/step_NNNNNNNN.png, and metrics of the predictions shown there
    action_mse   stage policy: mean squared error of sampled, normalised actions, by which VPP's authors select checkpoints; on the noise
                 schedule the policy acts with, and as `action_mse_validation` on the one they validate with

An evaluator has its own cadence, split and dataset. The metrics of all that are due at a step are one line of metrics.jsonl, written when
the last of them is done, so that a run stopped in between makes all of them up. A preview that fails is reported and ends nothing.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import jax
from jax.sharding import Mesh

from data_pipelines.loader import eval_batches
from vpp_jax.config import EvaluatorConfig, ExperimentConfig
from vpp_jax.functional import Params
from vpp_jax.parallel.mesh import compiler_options, process_rows, put_batch, replicated
from vpp_jax.training.random_streams import random_streams
from vpp_jax.training.stage import ActionStage, Stage, StageSource

Metrics = dict[str, float]


def configured(config: ExperimentConfig) -> tuple[EvaluatorConfig, ...]:
    """The evaluators of a run, each with its cadence and size filled in; () where evaluation is off."""
    chosen = config.train.evaluators or tuple(EvaluatorConfig(kind) for kind in ("loss", "preview"))
    if not config.train.evaluators and config.stage == "policy":
        chosen += (EvaluatorConfig("action_mse"),)
    complete = (
        replace(entry, every=entry.every or config.train.eval_every, batches=entry.batches or config.train.eval_batches) for entry in chosen
    )
    return tuple(entry for entry in complete if entry.every)


def due(evaluators: Sequence[EvaluatorConfig], step: int, finished: bool) -> list[EvaluatorConfig]:
    """Those that run at `step`; all of them at the end of a run."""
    return [entry for entry in evaluators if finished or (step > 0 and step % entry.every == 0)]


class Stopped(Exception):
    """A process was asked to stop during an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Runs evaluators with the parameters that inference uses (the EMA).

    Attributes:
      sources: (split, dataset) -> what evaluators read; opened when a run starts, so that one that does not exist is not found hours later.
    """

    stage: Stage
    mesh: Mesh
    frozen: Params
    workdir: Path
    sources: Mapping[tuple[str, str], StageSource]

    @classmethod
    def open(cls, stage: Stage, mesh: Mesh, frozen: Params, workdir: Path, train: StageSource) -> "Evaluation":
        """`train`: what the run itself reads, which is not opened again."""
        places, sources = {(entry.split, entry.dataset) for entry in configured(stage.config)}, {("train", ""): train}
        sources |= {place: stage.source(place[0], frozen, workdir, place[1]) for place in sorted(places - sources.keys())}
        return cls(stage, mesh, frozen, workdir, sources)

    @cached_property
    def _loss(self):
        def loss(*arguments):
            return self.stage.loss(*arguments, training=False)

        return jax.jit(loss, out_shardings=replicated(self.mesh), compiler_options=compiler_options())

    @cached_property
    def _sampling_errors(self):
        assert isinstance(self.stage, ActionStage)  # the configuration allows this evaluator in stage policy alone
        return jax.jit(self.stage.sampling_errors, out_shardings=replicated(self.mesh), compiler_options=compiler_options())

    def __call__(self, evaluators: Sequence[EvaluatorConfig], params: Params, step: int, stop_asked: Callable[[], bool]) -> Metrics | None:
        """The metrics of all `evaluators`; None if `stop_asked()`, called before every batch, returned True."""
        found: Metrics = {}
        try:
            for entry in evaluators:
                metrics = getattr(self, f"_{entry.kind}_metrics")(entry, params, step, stop_asked)
                found |= {"/".join((*entry.where, name)): value for name, value in metrics.items()}
        except Stopped:
            return None
        return found

    def _loss_metrics(self, entry: EvaluatorConfig, params: Params, step: int, stop_asked: Callable[[], bool]) -> Metrics:
        rows = []
        for batch, key in self._batches(entry, stop_asked):
            loss, metrics = self._loss(params, self.frozen, batch, key)
            rows.append({name: float(value) for name, value in jax.device_get({"loss": loss, **metrics}).items()})
        return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

    def _action_mse_metrics(self, entry: EvaluatorConfig, params: Params, step: int, stop_asked: Callable[[], bool]) -> Metrics:
        totals: Metrics = {}
        weight = 0.0
        for batch, key in self._batches(entry, stop_asked):
            sums, count = jax.device_get(self._sampling_errors(params, self.frozen, batch, key))
            totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
            weight += float(count)
        return {name: value / weight for name, value in totals.items()} if weight else {}

    def _preview_metrics(self, entry: EvaluatorConfig, params: Params, step: int, stop_asked: Callable[[], bool]) -> Metrics:
        name = "_".join((f"step_{step:08d}", *entry.where))
        path = self.workdir / "previews" / f"{name}.png" if jax.process_index() == 0 else None
        batch, key = next(self._batches(entry, stop_asked))
        try:
            return self.stage.plot_predictions(params, self.frozen, batch, key, path)
        except Exception as error:
            logging.getLogger(__name__).warning("the preview at step %d failed, training continues: %s", step, error, exc_info=True)
            return {}

    def _batches(self, entry: EvaluatorConfig, stop_asked: Callable[[], bool]) -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        """The batches of an evaluator, each with its key; always the same ones."""
        source, root = self.sources[entry.split, entry.dataset], random_streams(self.stage.config.seed).evaluation
        for number, batch in enumerate(full_batches(source, self.stage.config, self.mesh, entry.batches)):
            if stop_asked():
                raise Stopped
            yield batch, jax.random.fold_in(root, number)


def full_batches(source: StageSource, config: ExperimentConfig, mesh: Mesh, most: int) -> Iterator[dict[str, jax.Array]]:
    """At most `most` batches spread evenly over `source`, always the same ones, all of full size.

    Means over batches are then means over examples. A source smaller than one batch yields one batch, its last example repeated.
    """
    size = config.data.batch_size
    count = min(most, max(len(source) // size, 1))
    for batch in eval_batches(source, size, process_rows(mesh, size).tolist(), config.data.threads, limit=count * size):
        yield put_batch({name: value for name, value in batch.items() if name != "valid"}, mesh, size)
