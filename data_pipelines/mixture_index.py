"""The order of training examples as index arithmetic: which example is at which position of the infinite sequence; nothing is stored.

The datasets of a mixture are interleaved in proportion to their weights; each is reshuffled every epoch. Any position can be computed
directly, so training resumes at any step, on any number of hosts, from one number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from data_pipelines.errors import DataError

# Weights are rounded to multiples of 2^-WEIGHT_BITS, so that position * weight fits into 64 bits for positions below MAX_EXAMPLES.
WEIGHT_BITS = 24
MAX_EXAMPLES = 1 << (62 - WEIGHT_BITS)
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
STEPS = tuple(np.uint64(number * GOLDEN % (1 << 64)) for number in range(6))  # one for each round of the permutation


@dataclass(frozen=True)
class DatasetRange:
    """Examples `start` to `start + length - 1` of a source, and their sampling weight relative to the other ranges."""

    start: int
    length: int
    weight: float = 1.0


class MixtureIndex:
    """Example number by position: `index(positions)` depends on the ranges, the seed and the positions only."""

    def __init__(self, ranges: Sequence[DatasetRange], seed: int, shuffle: bool = True):
        for dataset in ranges:
            if dataset.length < 1 or not dataset.weight > 0:
                raise DataError(f"every dataset of a mixture needs examples and a positive weight, got {dataset}")
        self._ranges, self._shuffle = tuple(ranges), shuffle
        self._seeds = [np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] for number in range(len(ranges))]

    def __call__(self, positions: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Example number at each position; 0 <= position < MAX_EXAMPLES."""
        return self.with_epochs(positions)[0]

    def with_epochs(self, positions: Int[np.ndarray, "n"]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
        """Example number at each position, and how often its dataset was passed through before."""
        positions = np.asarray(positions, np.int64)
        numbers, epochs = np.empty_like(positions), np.empty_like(positions)
        datasets, within = interleave(positions, [dataset.weight for dataset in self._ranges])
        for number, (dataset, seed) in enumerate(zip(self._ranges, self._seeds, strict=True)):
            mine = datasets == number
            epoch, index = np.divmod(within[mine], dataset.length)
            if self._shuffle:
                index = permute(index, dataset.length, _mixed(seed + epoch.astype(np.uint64)))
            numbers[mine], epochs[mine] = dataset.start + index, epoch
        return numbers, epochs


def interleave(positions: Int[np.ndarray, "n"], weights: Sequence[float]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The dataset at each position, and how many earlier positions belong to the same dataset.

    The first dataset takes every position where floor(position * fraction) steps up; the others divide the remaining positions in the
    same way. Among the first n positions each dataset has its fraction of n, to within one position for itself and for every dataset
    before it.
    """
    datasets, within = np.zeros_like(positions), positions.copy()
    remaining = np.ones(positions.shape, bool)
    for number, weight in enumerate(weights[:-1]):
        fraction = min(max(round(weight / sum(weights[number:]) * (1 << WEIGHT_BITS)), 1), (1 << WEIGHT_BITS) - 1)
        before, after = within * fraction >> WEIGHT_BITS, (within + 1) * fraction >> WEIGHT_BITS
        taken = remaining & (after > before)
        remaining &= ~taken
        datasets[remaining] = number + 1
        within = np.where(taken, before, np.where(remaining, within - before, within))
    return datasets, within


def permute(index: Int[np.ndarray, "n"], length: int, key: UInt64[np.ndarray, "n"] | np.uint64) -> Int[np.ndarray, "n"]:
    """The image of each `index` under a random permutation of 0 .. length - 1 chosen by `key`.

    A Feistel network permutes the next power of two. It is applied again to results that are out of range until they are in range, which
    gives a permutation of the range (cycle walking, Black and Rogaway 2002).
    """
    bits = max((length - 1).bit_length(), 2)
    key = np.broadcast_to(key, np.shape(index))
    values = _feistel(np.asarray(index, np.uint64), bits, key)
    while (outside := values >= length).any():
        values[outside] = _feistel(values[outside], bits, key[outside])
    return values.astype(np.int64)


def _feistel(values: UInt64[np.ndarray, "n"], bits: int, key: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """A permutation of 0 .. 2^bits - 1: each round mixes one half of the bits into the other, then swaps the halves."""
    widths = [np.uint64(bits // 2), np.uint64(bits - bits // 2)]  # of the low and the high half
    for step in STEPS:
        low, high = values & _ones(widths[0]), values >> widths[0]
        high ^= _mixed(low + key + step) & _ones(widths[1])
        values, widths = low << widths[1] | high, widths[::-1]
    return values


def _ones(width: np.uint64) -> np.uint64:
    return (np.uint64(1) << width) - np.uint64(1)


def _mixed(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """64 bits to 64 bits; each output bit depends on all input bits (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    x = x + np.uint64(GOLDEN)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
