"""Mean, spread and quantiles of a stream of float32 numbers in bounded memory, the same whatever the order and however it was split.

Sums are exact: a float32 is a 24-bit integer times a power of two, so numbers (and the parts of their squares) are added up as
integers per power of two, and only the final result is rounded. Quantiles come from counts of numbers that agree in their leading
bits: at first in all bits, so that quantiles are exact; where that makes more than `MAX_BINS` bins per dimension, in one bit less,
again and again. Integer counts and sums commute, hence the order does not matter; nor does merging.
"""

from fractions import Fraction

import numpy as np
from jaxtyping import Float32

MAX_BINS = 1 << 16
MANTISSA_BITS = 23
# A float32 is integer * 2^(power - 149) with |integer| < 2^24 and 0 <= power < 254.
POWERS, LOWEST_POWER = 254, -149
HALF = 12  # bits of the lower half of that integer
# Rows taken in together. bincount adds in float64, which is exact for up to 2^29 integers of 24 bits.
ROWS_AT_ONCE = 1 << 18
LARGEST = 0x7F7FFFFF  # key of the largest float32


class RunningStats:
    """Of rows of `width` finite numbers."""

    def __init__(self, width: int):
        self.width, self.count = width, 0
        self.low, self.high = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        # per dimension and power of two: sums of the integers, and of the three products that make up their squares
        self._sums = np.zeros((4, width, POWERS), np.int64)
        self._bins = [(np.zeros(0, np.int64), np.zeros(0, np.int64)) for _ in range(width)]  # sorted keys, counts
        self._dropped = [0] * width  # bits that keys leave out
        self._buffer: list[np.ndarray] = []

    def add(self, rows: Float32[np.ndarray, "n w"]) -> None:
        """Rows of finite numbers."""
        self._buffer.append(np.array(rows, np.float32).reshape(len(rows), self.width))
        self.count += len(rows)
        if sum(map(len, self._buffer)) >= ROWS_AT_ONCE:
            self._flush()

    def merge(self, other: "RunningStats") -> None:
        """Takes in what `other` has seen."""
        other._flush()
        self.count += other.count
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self._sums += other._sums
        for dimension, (keys, counts) in enumerate(other._bins):
            self._coarsen(dimension, other._dropped[dimension] - self._dropped[dimension])
            self._join(dimension, keys >> self._dropped[dimension] - other._dropped[dimension], counts)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All of it, to be stored."""
        self._flush()
        return {
            "count": np.array(self.count),
            "range": np.stack([self.low, self.high]),
            "sums": self._sums,
            "dropped": np.array(self._dropped),
            "bins": np.array([len(keys) for keys, _ in self._bins]),
            "keys": np.concatenate([keys for keys, _ in self._bins]),
            "counts": np.concatenate([counts for _, counts in self._bins]),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "RunningStats":
        made = cls(len(arrays["dropped"]))
        made.count, (made.low, made.high), made._sums = int(arrays["count"]), arrays["range"], arrays["sums"]
        stops = np.cumsum(arrays["bins"])[:-1]
        made._bins = list(zip(np.split(arrays["keys"], stops), np.split(arrays["counts"], stops), strict=True))
        made._dropped = arrays["dropped"].tolist()
        return made

    def _flush(self) -> None:
        rows = np.concatenate([np.zeros((0, self.width), np.float32), *self._buffer])
        self._buffer = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            self.low, self.high = np.minimum(self.low, part.min(0)), np.maximum(self.high, part.max(0))
            for dimension, column in enumerate(np.ascontiguousarray(part.T)):
                self._sums[:, dimension] += _power_sums(column)
                self._join(dimension, *np.unique(_key(column) >> self._dropped[dimension], return_counts=True))

    def summary(self) -> dict[str, np.ndarray]:
        """mean and std (of the population; the exact ones, rounded once), min, max, q01, q99: float64[w] each. At least one row."""
        self._flush()
        mean, variance = [], []
        for dimension in range(self.width):
            first, second = self._moment(dimension, (0,)) / self.count, self._moment(dimension, (1, 2, 3)) / self.count
            mean.append(float(first))
            variance.append(float(second - first * first))
        return {
            "mean": np.array(mean),
            "std": np.sqrt(variance),
            "min": self.low.astype(np.float64),
            "max": self.high.astype(np.float64),
            "q01": self.quantile(0.01),
            "q99": self.quantile(0.99),
        }

    def quantile(self, share: float) -> np.ndarray:
        """float64[w]: between the two nearest order statistics, as np.quantile; each known up to `relative_error` of itself."""
        self._flush()
        place = share * (self.count - 1)
        below = int(np.floor(place))
        values = []
        for (keys, counts), dropped in zip(self._bins, self._dropped, strict=True):
            stops = np.cumsum(counts)
            low, high = (
                _number(int(keys[np.searchsorted(stops, rank, side="right")]), dropped) for rank in (below, min(below + 1, self.count - 1))
            )
            values.append(low + (high - low) * (place - below))
        return np.clip(values, self.low, self.high)

    @property
    def relative_error(self) -> float:
        """Bound on how far an order statistic is off, relative to its size (normal numbers): half a bin; 0 while nothing was left out."""
        self._flush()
        dropped = max(self._dropped, default=0)
        return 2.0 ** (dropped - 1 - MANTISSA_BITS) if dropped else 0.0

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

    def _moment(self, dimension: int, parts: tuple[int, ...]) -> Fraction:
        """Exact sum of the numbers (part 0) or of their squares (parts 1 to 3)."""
        total = Fraction(0)
        for part in parts:
            scale = (1, 2 ** (2 * HALF), 2 ** (HALF + 1), 1)[part]
            for power, value in enumerate(self._sums[part, dimension].tolist()):
                if value:
                    total += value * scale * Fraction(2) ** ((power + LOWEST_POWER) * (1 if part == 0 else 2))
        return total


def _power_sums(column: Float32[np.ndarray, "n"]) -> np.ndarray:
    """int64[4, POWERS]: with numbers i * 2^p and i = a * 2^12 + b, the sums of i, a^2, a * b and b^2 by p."""
    bits = column.view(np.uint32).astype(np.int64)
    exponent, mantissa = bits >> MANTISSA_BITS & 0xFF, bits & (1 << MANTISSA_BITS) - 1
    power = np.maximum(exponent - 1, 0)
    size = mantissa + ((exponent > 0).astype(np.int64) << MANTISSA_BITS)
    high, low = size >> HALF, size & (1 << HALF) - 1
    terms = (np.where(bits >> 31, -size, size), high * high, high * low, low * low)
    return np.stack([np.bincount(power, term, POWERS) for term in terms]).astype(np.int64)


def _key(column: Float32[np.ndarray, "n"]) -> np.ndarray:
    """int64 that orders as the numbers do; numbers with equal leading bits lie together."""
    bits = column.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits)


def _number(key: int, dropped: int) -> float:
    """The middle of the numbers with this key."""
    first, last = max(key << dropped, -LARGEST - 1), min((key + 1 << dropped) - 1, LARGEST)
    return (_of_key(first) + _of_key(last)) / 2


def _of_key(key: int) -> float:
    bits = np.array([-(key + 1) if key < 0 else key], np.int64).astype(np.uint32)
    value = float(bits.view(np.float32)[0])
    return -value if key < 0 else value


def _grouped(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal keys joined; sorted."""
    unique, inverse = np.unique(keys, return_inverse=True)
    return unique, np.bincount(inverse, counts, len(unique)).astype(np.int64)
