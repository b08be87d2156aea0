"""Batches in a deterministic order: the global batch of step k depends on (seed, k) only, not on the number of hosts, threads or workers.

The state of the iterator is therefore one number, the examples consumed by all hosts together, and training resumes exactly at any step,
on any number of hosts.
"""

import functools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.configured_sources import clip_source, policy_source
from data_pipelines.errors import DataError
from data_pipelines.mixture_index import MAX_EXAMPLES, DatasetRange, MixtureIndex
from data_pipelines.sources import EpochSource, Example, Source, WeightedSource

__all__ = ["Batches", "clip_source", "eval_batches", "make_iterator", "mixture_index", "policy_source"]

# Batches whose example numbers are computed at once: the arithmetic takes as long for one number as for a hundred.
BATCHES_PER_PLAN = 64
# Bytes of a cache line. Arrays that share a block start at a multiple of it.
ALIGNED = 64


def mixture_index(source: Source, seed: int, shuffle: bool = True) -> MixtureIndex:
    """The infinite sequence of example numbers: each dataset is reshuffled every epoch; a mixture is interleaved by weight."""
    ranges = source.ranges() if isinstance(source, WeightedSource) else [DatasetRange(0, len(source))]
    return MixtureIndex(ranges, seed, shuffle)


def make_iterator(
    source: Source,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    threads: int = 2,
    shuffle: bool = True,
    prefetch: int = 32,
    workers: int = 0,
) -> "Batches":
    """Infinite batches of this process: dicts of arrays with one row for each of `rows`.

    Args:
      source: examples with random access; a `Mixture` is sampled by its weights. With workers it must be picklable.
      batch_size: of the global batch.
      rows: those of the global batch that this process holds (`vpp_jax.parallel.mesh.process_rows`); None: all.
      threads: reader threads; 0 reads in the calling thread. Decoding, resizing and copying release the GIL and run in parallel; the rest
        does not, which limits scaling beyond about ten threads.
      prefetch: examples read ahead.
      workers: worker processes that make whole batches instead of the threads; each takes seconds to start.
    """
    plan = _Plan(mixture_index(source, seed, shuffle), batch_size, _checked(rows, batch_size))
    return Batches(source, plan, threads, -(-prefetch // len(plan.rows)), workers)


@dataclass(frozen=True)
class _Plan:
    """Examples of one process: `plan(start, batch) -> int64[rows, 2]`, numbers and epochs of the batch that is `batch` batches after
    example `start`."""

    index: MixtureIndex
    batch_size: int
    rows: tuple[int, ...]

    def __call__(self, start: int, batch: int) -> np.ndarray:
        block, row = divmod(batch, BATCHES_PER_PLAN)
        return _planned(self, start, block)[row]


@functools.lru_cache(maxsize=8)
def _planned(plan: _Plan, start: int, block: int) -> np.ndarray:
    """int64[BATCHES_PER_PLAN, rows, 2]: the example numbers and epochs of consecutive batches."""
    batches = block * BATCHES_PER_PLAN + np.arange(BATCHES_PER_PLAN)
    positions = start + batches[:, None] * plan.batch_size + np.array(plan.rows)
    found = plan.index.with_epochs(np.minimum(positions, MAX_EXAMPLES - 1).ravel())
    return np.stack(found, axis=-1).reshape(*positions.shape, 2)


class Batches(Iterator[Example]):
    """See `make_iterator`. After a batch has raised, the next call tries the same batch again.

    Args:
      ahead: batches to prefetch.
    """

    def __init__(self, source: Source, plan: _Plan, threads: int, ahead: int, workers: int):
        self._source, self._plan, self._ahead, self._workers = source, plan, ahead, workers
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader") if threads and not workers else None
        self._restart(0)

    def _restart(self, start: int) -> None:
        self._start, self._num_consumed = start, 0
        self._pending: deque[_BatchAssembler] = deque()
        self._from_workers: Iterator[Example] | None = None

    def __next__(self) -> Example:
        if self._start + (self._num_consumed + 1) * self._plan.batch_size > MAX_EXAMPLES:
            raise DataError(f"example {MAX_EXAMPLES} is the last one that the data order defines")
        try:
            batch = self._next_from_workers() if self._workers else self._next_from_threads()
        except BaseException:
            self._restart(self._examples)
            raise
        self._num_consumed += 1
        return batch

    @property
    def _examples(self) -> int:
        return self._start + self._num_consumed * self._plan.batch_size

    def get_state(self) -> dict[str, int]:
        """The number of examples consumed by all processes together: the same in every process, valid for any number of them."""
        return {"examples": self._examples}

    def set_state(self, state: Any) -> None:
        """Resumes at the position of the iterator that returned `state`."""
        if not isinstance(state, dict) or state.keys() != {"examples"} or not 0 <= int(state["examples"]) < MAX_EXAMPLES:
            raise DataError(
                f"the state of the data iterator is {state}, expected {{'examples': N}}: it was written by another version of the "
                "loader. Start in a new work directory, or use the version that wrote it"
            )
        self._restart(int(state["examples"]))

    def _next_from_threads(self) -> Example:
        while len(self._pending) < (1 + self._ahead if self._pool else 1):
            numbers = self._plan(self._start, self._num_consumed + len(self._pending))
            self._pending.append(_BatchAssembler(self._source, numbers, self._pool))
        return self._pending.popleft().result()

    def _next_from_workers(self) -> Example:
        if self._from_workers is None:
            self._from_workers = _worker_batches(self._source, self._plan, self._examples, self._workers, self._ahead)
        return next(self._from_workers)


class _BatchAssembler:
    """A batch in the making: each example is written into its row by the thread that read it."""

    def __init__(self, source: Source, numbers: np.ndarray, pool: ThreadPoolExecutor | None):
        self._source, self._rows = source, len(numbers)
        self._lock, self._batch = threading.Lock(), {}
        self._tasks: list[Future] = []
        for row, (number, epoch) in enumerate(numbers.tolist()):
            if pool is None:
                self._fill(row, number, epoch)
            else:
                self._tasks.append(pool.submit(self._fill, row, number, epoch))

    def _fill(self, row: int, number: int, epoch: int) -> None:
        example = self._source.in_epoch(number, epoch) if isinstance(self._source, EpochSource) else self._source[number]
        with self._lock:
            if not self._batch:
                self._batch = _empty_rows(example, self._rows)
        for name, rows in self._batch.items():
            rows[row] = example[name]

    def result(self) -> Example:
        for task in self._tasks:
            task.result()
        return self._batch


def _empty_rows(example: Example, count: int) -> Example:
    """Arrays for `count` examples like this one, in one block: above 4 MB NumPy requests huge pages, and first use of small pages takes
    longer than copying latents into them."""
    values = {name: np.asarray(value) for name, value in example.items()}
    stops = np.cumsum([-(-value.nbytes * count // ALIGNED) * ALIGNED for value in values.values()]).tolist()
    block = np.empty(stops[-1], np.uint8)
    return {
        name: block[start : start + value.nbytes * count].view(value.dtype).reshape(count, *value.shape)
        for (name, value), start in zip(values.items(), [0, *stops], strict=False)
    }


def _worker_batches(source: Source, plan: _Plan, start: int, workers: int, ahead: int) -> Iterator[Example]:
    """Batches from example `start` on, made by worker processes. Grain passes them through shared memory, in order."""
    import grain  # takes seconds to import; needed for workers only
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain reads absl flags, which a program without absl has not parsed
        flags.FLAGS.mark_as_parsed()
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(-(-ahead // workers), 1))
    batches = grain.MapDataset.range(MAX_EXAMPLES // plan.batch_size).map(_WholeBatch(source, plan, start))
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(options))


@dataclass(frozen=True)
class _WholeBatch:
    source: Source
    plan: _Plan
    start: int

    def __call__(self, batch: int) -> Example:
        return _BatchAssembler(self.source, self.plan(self.start, int(batch)), None).result()


def eval_batches(
    source: Source, batch_size: int, rows: Sequence[int] | None = None, threads: int = 2, limit: int | None = None
) -> Iterator[Example]:
    """One pass over the source, unshuffled. Every batch has the same shape and a mask `valid bool[b]`.

    The last batch is padded with its last example, where `valid` is False; every process gets the same number of batches.

    Args:
      rows: those of each global batch that this process holds; None: all.
      limit: number of examples, evenly spaced over the source; None: all.
    """
    held = np.array(_checked(rows, batch_size))
    total = len(source)
    numbers = np.arange(total) if limit is None or limit >= total else np.linspace(0, total - 1, limit).astype(np.int64)
    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="eval-reader") as pool:
        for start in range(0, len(numbers), batch_size):
            mine = start + held
            examples = list(pool.map(source.__getitem__, numbers[np.minimum(mine, len(numbers) - 1)].tolist()))
            batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
            yield {**batch, "valid": mine < len(numbers)}


def _checked(rows: Sequence[int] | None, batch_size: int) -> tuple[int, ...]:
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}, expected at least 1")
    held = tuple(range(batch_size)) if rows is None else tuple(map(int, rows))
    if not held or not all(0 <= row < batch_size for row in held):
        raise DataError(f"rows {held} are not rows of a batch of {batch_size}")
    return held
