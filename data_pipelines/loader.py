"""Batches in a fixed order: step k's global batch is a function of (seed, k) alone, whatever the number of processes or threads.

Shuffling, repeating and mixing are Grain's index arithmetic, so the iterator's state is one number and resuming is exact.
"""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grain
import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.sources import Example, Mixture, Source, clip_source, policy_source

__all__ = ["clip_source", "eval_batches", "example_order", "make_iterator", "policy_source"]

# Elements a process may ask for before the order ends; far beyond any training run.
ENDLESS = 1 << 60
# Grain's shuffle permutes blocks of at least 2^16 numbers and skips those out of range: milliseconds per number in a source of ten.
SMALL = 1 << 16


def example_order(source: Source, seed: int, shuffle: bool = True) -> grain.MapDataset:
    """Infinite sequence of example numbers: each member reshuffled every epoch, members interleaved by weight."""
    members = [(0, len(source), 1.0)]
    if isinstance(source, Mixture):
        members = list(zip(source.starts[:-1], source.starts[1:], source.weights, strict=True))
    orders = []
    for number, (start, stop, _) in enumerate(members):
        member_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        if shuffle and stop - start <= SMALL:
            orders.append(grain.MapDataset.range(ENDLESS).map(_SmallShuffle(start, stop - start, member_seed)))
        elif shuffle:
            orders.append(grain.MapDataset.range(start, stop).shuffle(seed=member_seed).repeat())
        else:
            orders.append(grain.MapDataset.range(start, stop).repeat())
    return orders[0] if len(orders) == 1 else grain.MapDataset.mix(orders, [weight for _, _, weight in members])


@dataclass(frozen=True)
class _SmallShuffle:
    """Position -> number in [start, start + length), another permutation each epoch."""

    start: int
    length: int
    seed: int

    def __call__(self, position: int) -> int:
        epoch, index = divmod(int(position), self.length)
        return self.start + int(_permutation(self.length, self.seed, epoch)[index])


@functools.lru_cache(maxsize=16)
def _permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


@dataclass(frozen=True)
class _LocalExample:
    """Element i of one process: row `i % rows` of its contiguous part of global batch `i // rows`."""

    source: Source
    order: grain.MapDataset
    batch_size: int
    rows: int
    process_index: int

    def __call__(self, index: int) -> Example:
        batch, row = divmod(int(index), self.rows)
        return self.source[int(self.order[batch * self.batch_size + self.process_index * self.rows + row])]


def make_iterator(source: Source, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1, threads: int = 2,
                  shuffle: bool = True, prefetch: int = 32) -> grain.DatasetIterator:
    """Endless batches of this process: dicts of arrays with leading dimension batch_size / process_count.

    The parts of all processes, joined in process order, are the global batch. `get_state()` and `set_state()` are exact at any step.

    Args:
      source: examples with random access; a `Mixture` is drawn from by its weights.
      batch_size: global.
      threads: reader threads; 0 reads in the calling thread. Does not change the order.
      prefetch: examples read ahead.
    """
    rows = _rows(batch_size, process_index, process_count)
    local = _LocalExample(source, example_order(source, seed, shuffle), batch_size, rows, process_index)
    ahead = max(prefetch, rows) if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    examples = grain.MapDataset.range(ENDLESS).map(local).to_iter_dataset(options)
    return iter(examples.batch(rows, drop_remainder=True))


def eval_batches(source: Source, batch_size: int, process_index: int = 0, process_count: int = 1, threads: int = 2,
                 limit: int | None = None) -> Iterator[Example]:
    """One pass in the source's own order, without shuffling. Every batch has the same shape and a mask `valid bool[b]`.

    The ragged last batch repeats its last example with `valid` False there; every process gets the same number of batches.

    Args:
      limit: number of examples, spread evenly over the source; default all.
    """
    rows = _rows(batch_size, process_index, process_count)
    total = len(source)
    numbers = np.arange(total) if limit is None or limit >= total else np.linspace(0, total - 1, limit).astype(np.int64)
    with ThreadPoolExecutor(max(threads, 1), thread_name_prefix="eval-reader") as pool:
        for start in range(0, len(numbers), batch_size):
            mine = start + process_index * rows + np.arange(rows)
            examples = list(pool.map(source.__getitem__, numbers[np.minimum(mine, len(numbers) - 1)].tolist()))
            batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
            yield {**batch, "valid": mine < len(numbers)}


def _rows(batch_size: int, process_index: int, process_count: int) -> int:
    if not 0 <= process_index < process_count:
        raise DataError(f"process {process_index} of {process_count}")
    if batch_size < 1 or batch_size % process_count:
        raise DataError(f"batch_size {batch_size} cannot be split over {process_count} processes; make it a positive multiple")
    return batch_size // process_count
