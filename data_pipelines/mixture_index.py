"""which example comes at which position of the endless sequence that training reads: arithmetic on numbers, nothing is stored.

Members of a mixture take turns in proportion to their weights; each runs through all its examples, in another random order every
epoch. Any position can be asked for directly, so a training continues at any step, on any number of hosts, from one number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from data_pipelines.errors import DataError

# Weights are rounded to shares of 2^-SHARE_BITS, so positions up to MAX_EXAMPLES can be multiplied with them in 64 bits.
SHARE_BITS = 24
MAX_EXAMPLES = 1 << (62 - SHARE_BITS)
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
STEPS = tuple(np.uint64(number * GOLDEN % (1 << 64)) for number in range(6))  # one for each round of the permutation


@dataclass(frozen=True)
class DatasetRange:
    """Examples `start` to `start + length - 1` of a source, and how often they are drawn relative to the other members."""

    start: int
    length: int
    weight: float = 1.0


class MixtureIndex:
    """Example numbers by position: `order(positions)` is a function of the members, the seed and the positions alone."""

    def __init__(self, members: Sequence[DatasetRange], seed: int, shuffle: bool = True):
        for member in members:
            if member.length < 1 or not member.weight > 0:
                raise DataError(f"a mixture needs members with examples and positive weights, got {member}")
        self._members, self._shuffle = tuple(members), shuffle
        self._seeds = [np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] for number in range(len(members))]

    def __call__(self, positions: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Example number at each position; 0 <= position < MAX_EXAMPLES."""
        positions = np.asarray(positions, np.int64)
        numbers = np.empty_like(positions)
        turns, within = interleave(positions, [member.weight for member in self._members])
        for turn, (member, seed) in enumerate(zip(self._members, self._seeds, strict=True)):
            mine = turns == turn
            epoch, index = np.divmod(within[mine], member.length)
            if self._shuffle:
                index = permute(index, member.length, _mixed(seed + epoch.astype(np.uint64)))
            numbers[mine] = member.start + index
        return numbers


def interleave(positions: Int[np.ndarray, "n"], weights: Sequence[float]) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The member that each position belongs to, and how many earlier positions belong to the same member.

    The first member takes every place where floor(place * share) steps up; the others divide what is left among them in the same way.
    So among any first n positions each member has its share of n, to within one position for every member before it and itself.
    """
    turns, within = np.zeros_like(positions), positions.copy()
    left = np.ones(positions.shape, bool)
    for turn, weight in enumerate(weights[:-1]):
        share = min(max(round(weight / sum(weights[turn:]) * (1 << SHARE_BITS)), 1), (1 << SHARE_BITS) - 1)
        before, after = within * share >> SHARE_BITS, (within + 1) * share >> SHARE_BITS
        taken = left & (after > before)
        left &= ~taken
        turns[left] = turn + 1
        within = np.where(taken, before, np.where(left, within - before, within))
    return turns, within


def permute(index: Int[np.ndarray, "n"], length: int, key: UInt64[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Where a random permutation of 0 .. length - 1, chosen by `key`, takes each `index`.

    A Feistel network permutes the next power of two; results that are out of range go through it again until they are in range, which
    is a permutation of the range (cycle walking, Black and Rogaway 2002).
    """
    bits = max((length - 1).bit_length(), 2)
    key = np.broadcast_to(key, np.shape(index))
    values = _feistel(np.asarray(index, np.uint64), bits, key)
    while (outside := values >= length).any():
        values[outside] = _feistel(values[outside], bits, key[outside])
    return values.astype(np.int64)


def _feistel(values: UInt64[np.ndarray, "n"], bits: int, key: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """A permutation of 0 .. 2^bits - 1: each round mixes one half of the bits into the other, then they change places."""
    widths = [np.uint64(bits // 2), np.uint64(bits - bits // 2)]  # of the low and the high half
    for step in STEPS:
        low, high = values & _ones(widths[0]), values >> widths[0]
        high ^= _mixed(low + key + step) & _ones(widths[1])
        values, widths = low << widths[1] | high, widths[::-1]
    return values


def _ones(width: np.uint64) -> np.uint64:
    return (np.uint64(1) << width) - np.uint64(1)


def _mixed(x: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """64 bits to 64 bits, each of which depends on all (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    x = x + np.uint64(GOLDEN)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)
