"""Statistics of bands that add up: each task counts its own pixels, the driver adds the counts in any grouping.

Values are counted in bins that follow the bits of a float32: sign, exponent and the first six bits of the mantissa. So
a bin is at most 1/64 of its value wide in any unit and for any type, whole numbers up to 127 have bins of their own,
and two tasks always use the same bins. Mean and standard deviation do not go through the bins: for integer pixels they
come from exact integer sums.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)

_DROPPED_BITS = 17


@dataclass
class BandStatistics:
    """Counts of one band."""

    count: int = 0
    """Valid pixels."""
    total: float = 0
    """Their sum; a Python integer, so exact, for integer pixels."""
    total_of_squares: float = 0
    """The sum of their squares, likewise."""
    minimum: float = float("inf")
    maximum: float = float("-inf")
    bins: dict[int, int] = field(default_factory=dict)
    """Pixels in each bin; keys ascend with the value."""

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> "BandStatistics":
        """Count the values of an array of any shape; all of them must be finite."""
        values = values.ravel()
        if not values.size:
            return cls()
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
            # A histogram of all 65,536 possible values is the fastest sum of squares there is.
            low = int(np.iinfo(values.dtype).min)
            counts = np.bincount(values.astype(np.int64) - low if low else values)
            present = np.flatnonzero(counts)
            counts, distinct = counts[present], present + low
        else:
            distinct, counts = np.unique(values, return_counts=True)
        if values.dtype.kind in "iu":
            # Object arrays hold Python integers: squares of int32 values overflow int64 soon.
            exact, exactly = distinct.astype(object), counts.astype(object)
            sums: tuple[float, float] = int((exact * exactly).sum()), int((exact * exact * exactly).sum())
            ends: tuple[float, float] = int(distinct[0]), int(distinct[-1])
        else:
            wide = distinct.astype(np.float64)
            sums = float((wide * counts).sum()), float((wide * wide * counts).sum())
            ends = float(wide[0]), float(wide[-1])
        keys, inverse = np.unique(_bin_keys(distinct), return_inverse=True)
        in_bins = np.bincount(inverse, weights=counts).astype(np.int64)
        return cls(int(values.size), *sums, *ends, dict(zip(keys.tolist(), in_bins.tolist(), strict=True)))

    def add(self, other: "BandStatistics") -> None:
        """Add the counts of other pixels to these."""
        self.count += other.count
        self.total += other.total
        self.total_of_squares += other.total_of_squares
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        for key, count in other.bins.items():
            self.bins[key] = self.bins.get(key, 0) + count

    def mean(self) -> float:
        """Arithmetic mean, in the band's own units; NaN without pixels."""
        return self.total / self.count if self.count else float("nan")

    def std(self) -> float:
        """Population standard deviation, in the band's own units; NaN without pixels."""
        if not self.count:
            return float("nan")
        # Integers: exact until the one division. n Σx² - (Σx)² is never negative then; floats may round below 0.
        spread = self.count * self.total_of_squares - self.total * self.total
        return math.sqrt(max(spread, 0) / self.count**2)

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the pixels lie below, to within its bin, 1/64 of it; NaN without pixels."""
        if not self.count:
            return float("nan")
        keys = np.array(sorted(self.bins))
        reached = np.cumsum([self.bins[int(key)] for key in keys])
        wanted = percent / 100 * self.count
        index = min(int(np.searchsorted(reached, wanted)), len(keys) - 1)
        low, high = _bin_edges(int(keys[index]))
        within = self.bins[int(keys[index])]
        value = low + (high - low) * (wanted - (reached[index] - within)) / within
        return float(min(max(value, self.minimum), self.maximum))

    def to_json(self) -> list[Any]:
        """As a short JSON list, for a journal."""
        bins = [list(self.bins), list(self.bins.values())]
        return [self.count, self.total, self.total_of_squares, self.minimum, self.maximum, *bins] if self.count else []

    @classmethod
    def from_json(cls, document: list[Any]) -> Self:
        """Back from `to_json`."""
        if not document:
            return cls()
        count, total, squares, minimum, maximum, keys, counts = document
        return cls(count, total, squares, minimum, maximum, dict(zip(keys, counts, strict=True)))


def _bin_keys(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32) >> _DROPPED_BITS
    # Negative floats count downwards in their bits: turn them so that keys ascend with values.
    return np.where(bits < 0, np.int32(np.iinfo(np.int32).min >> _DROPPED_BITS) - bits - 1, bits).astype(np.int64)


def _bin_edges(key: int) -> tuple[float, float]:
    def value(bits: int) -> float:
        return float(np.array([bits << _DROPPED_BITS], np.int64).astype(np.int32).view(np.float32)[0])

    if key >= 0:
        return value(key), value(key + 1)
    positive = -key - 1
    return -value(positive + 1), -value(positive)
