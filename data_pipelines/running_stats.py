"""Mean, standard deviation and quantiles of a stream of episodes, independent of the order of the episodes and of splitting them.

The float64 mean and squared deviations of an episode depend on that episode only. They are combined with correctly rounded sums
(`math.fsum`), so the result is bit-identical for any order of the episodes and any number of processes. It is rounded to `DIGITS` before
it is used, stored or hashed, so that the last bit of another processor does not make another dataset.

Quantiles come from a histogram over the leading bits of float32: at first over all bits, so that quantiles are exact; whenever a dimension
has more than `MAX_BINS` bins, one bit is dropped. Integer counts do not depend on the order either.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32

MAX_BINS = 1 << 16
MANTISSA_BITS = 23
ROWS_AT_ONCE = 1 << 18  # rows buffered before they are added to the histogram
LARGEST = 0x7F7FFFFF  # key of the largest float32
DIGITS = 7  # significant digits of a standard deviation; the mean is rounded to the same decimal place


class RunningStats:
    """Streaming statistics of episodes of rows of `width` finite numbers. Memory grows by a few hundred bytes per episode."""

    def __init__(self, width: int):
        self.width = width
        self.low, self.high = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        self._lengths: list[int] = []
        self._moments: list[np.ndarray] = []  # of each episode [2, width]: mean, sum of squared deviations from it
        self._bins = [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in range(width)]  # sorted keys, counts
        self._dropped = [0] * width  # low bits that keys omit
        self._buffer: list[np.ndarray] = []  # rows that are in the moments but not yet in the bins
        self._buffered = 0

    @property
    def count(self) -> int:
        """Number of rows of all episodes."""
        return sum(self._lengths)

    def add(self, rows: Float[np.ndarray, "n w"]) -> None:
        """Adds one episode: rows of finite numbers, rounded to float32."""
        rows = np.array(rows, np.float32).reshape(len(rows), self.width)
        if not len(rows):
            return
        values = rows.astype(np.float64)
        mean = values.mean(0)
        self._lengths.append(len(rows))
        self._moments.append(np.stack([mean, ((values - mean) ** 2).sum(0)]))
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        self._buffer.append(rows)
        self._buffered += len(rows)
        if self._buffered >= ROWS_AT_ONCE:
            self._flush()

    def merge(self, other: "RunningStats") -> None:
        """Adds everything that was added to `other`."""
        other._flush()
        self._lengths += other._lengths
        self._moments += other._moments
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        for dimension, (keys, counts) in enumerate(other._bins):
            self._coarsen(dimension, other._dropped[dimension] - self._dropped[dimension])
            self._join(dimension, keys >> self._dropped[dimension] - other._dropped[dimension], counts)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The complete state, for storage."""
        self._flush()
        return {
            "range": np.stack([self.low, self.high]),
            "lengths": np.array(self._lengths, np.int64),
            "moments": np.array(self._moments, np.float64).reshape(-1, 2, self.width),
            "dropped": np.array(self._dropped),
            "bins": np.array([len(keys) for keys, _ in self._bins]),
            "keys": np.concatenate([keys for keys, _ in self._bins]),
            "counts": np.concatenate([counts for _, counts in self._bins]),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "RunningStats":
        made = cls(len(arrays["dropped"]))
        made.low, made.high = arrays["range"]
        made._lengths, made._moments = arrays["lengths"].tolist(), list(arrays["moments"])
        stops = np.cumsum(arrays["bins"])[:-1]
        made._bins = list(zip(np.split(arrays["keys"], stops), np.split(arrays["counts"], stops), strict=True))
        made._dropped = arrays["dropped"].tolist()
        return made

    def summary(self) -> dict[str, np.ndarray]:
        """mean and std (population; rounded), min and max: float64[w] each. Needs at least one row."""
        lengths, moments = np.array(self._lengths, np.float64), np.array(self._moments)
        mean, std = np.zeros(self.width), np.zeros(self.width)
        for dimension in range(self.width):
            if self.low[dimension] == self.high[dimension]:  # exactly constant, also if the means are rounded
                mean[dimension] = self.low[dimension]
                continue
            means, squares = moments[:, 0, dimension], moments[:, 1, dimension]
            centre = math.fsum(lengths * means) / self.count
            deviation = math.sqrt(math.fsum(squares + lengths * (means - centre) ** 2) / self.count)
            places = DIGITS - 1 - math.floor(math.log10(deviation))
            mean[dimension], std[dimension] = round(centre, places), round(deviation, places)
        return {"mean": mean, "std": std, "min": self.low.astype(np.float64), "max": self.high.astype(np.float64)}

    def quantiles(self, levels: Sequence[float]) -> list[np.ndarray]:
        """float64[w] for each level: interpolated between order statistics as in np.quantile, exact up to `relative_error`."""
        self._flush()
        return [self._quantile(level) for level in levels]

    def _quantile(self, level: float) -> np.ndarray:
        position = level * (self.count - 1)
        below = int(np.floor(position))
        values = []
        for (keys, counts), dropped in zip(self._bins, self._dropped, strict=True):
            stops = np.cumsum(counts)
            low, high = (
                _number(int(keys[np.searchsorted(stops, rank, side="right")]), dropped) for rank in (below, min(below + 1, self.count - 1))
            )
            values.append(low + (high - low) * (position - below))
        return np.clip(values, self.low, self.high)

    @property
    def relative_error(self) -> float:
        """Bound on the relative error of an order statistic (normal numbers): half a bin; 0 while no bit is dropped."""
        self._flush()
        dropped = max(self._dropped, default=0)
        return 2.0 ** (dropped - 1 - MANTISSA_BITS) if dropped else 0.0

    def _flush(self) -> None:
        """Adds the buffered rows to the histogram."""
        rows = np.concatenate([np.zeros((0, self.width), np.float32), *self._buffer])
        self._buffer, self._buffered = [], 0
        for start in range(0, len(rows), ROWS_AT_ONCE):
            for dimension, column in enumerate(np.ascontiguousarray(rows[start : start + ROWS_AT_ONCE].T)):
                self._join(dimension, *np.unique(_key(column) >> self._dropped[dimension], return_counts=True))

    def _join(self, dimension: int, keys: np.ndarray, counts: np.ndarray) -> None:
        have = self._bins[dimension]
        self._bins[dimension] = _grouped(np.concatenate([have[0], keys]), np.concatenate([have[1], counts]))
        while len(self._bins[dimension][0]) > MAX_BINS:
            self._coarsen(dimension, 1)

    def _coarsen(self, dimension: int, bits: int) -> None:
        if bits > 0:
            keys, counts = self._bins[dimension]
            self._bins[dimension] = _grouped(keys >> bits, counts)
            self._dropped[dimension] += bits


def _key(column: Float32[np.ndarray, "n"]) -> np.ndarray:
    """int64 keys in the order of the numbers; numbers with equal leading bits have adjacent keys."""
    bits = column.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)


def _number(key: int, dropped: int) -> float:
    """The midpoint of the numbers with this key."""
    first, last = max(key << dropped, -LARGEST - 1), min((key + 1 << dropped) - 1, LARGEST)
    return (_of_key(first) + _of_key(last)) / 2


def _of_key(key: int) -> float:
    bits = np.array([-(key + 1) if key < 0 else key], np.int64).astype(np.uint32)
    value = float(bits.view(np.float32)[0])
    return -value if key < 0 else value


def _grouped(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted unique keys with the sums of their counts."""
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, counts, len(unique)).astype(np.int64)
