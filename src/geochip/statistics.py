"""Statistics of bands that add up: each task counts its own pixels, the driver adds the counts in any grouping.

Mean, standard deviation and range are of every valid pixel; for integer pixels they come from exact integer sums.
Percentiles are of a sample, some rows and columns of each chip, whose values are counted in bins that follow the bits
of a float32: sign, exponent and the first six bits of the mantissa. So a bin is at most 1/64 of its value wide in any
unit and for any type, whole numbers up to 127 have bins of their own, and two tasks always use the same bins.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)

_DROPPED_BITS = 17
_SAMPLE_SIDE = 75
# Far below what 53 bits hold, short enough to stay in a core's cache, and too short for a BLAS to start threads for.
_PIECE = 2**13
_ONES = np.ones(_PIECE)


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
    """Pixels of the sample in each bin; keys ascend with the value."""

    @classmethod
    def of(cls, band_hw: npt.NDArray[Any], valid_hw: npt.NDArray[np.bool_] | None = None) -> "BandStatistics":
        """Count one band of one chip; see `BandCounter.add`."""
        counter = BandCounter()
        counter.add(band_hw, valid_hw)
        return counter.statistics()

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
        """The value that `percent` of the sample lie below, to within its bin, 1/64 of it; NaN without any."""
        if not self.bins:
            return float("nan")
        keys = np.array(sorted(self.bins))
        reached = np.cumsum([self.bins[int(key)] for key in keys])
        wanted = percent / 100 * int(reached[-1])
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


class BandCounter:
    """Counts one band of many chips; the bins are made once, at the end."""

    def __init__(self) -> None:
        self._sums = BandStatistics()
        self._histogram = np.zeros(0, np.int64)
        self._low = 0

    def add(self, band_hw: npt.NDArray[Any], valid_hw: npt.NDArray[np.bool_] | None = None) -> None:
        """Count one chip.

        Args:
            band_hw: (height, width), of one type in all calls; what is valid must be finite.
            valid_hw: True where the pixels count; None: everywhere.
        """
        values = band_hw.ravel() if valid_hw is None else band_hw[valid_hw]
        if not values.size:
            return
        sums = self._sums
        total, squares = _exact_sums(values) if values.dtype.kind in "iu" else _float_sums(values)
        sums.count += values.size
        sums.total += total
        sums.total_of_squares += squares
        sums.minimum = min(sums.minimum, values.min().item())
        sums.maximum = max(sums.maximum, values.max().item())
        step = sample_step(band_hw.shape)
        sample = band_hw[::step, ::step]
        sample = sample.ravel() if valid_hw is None else sample[valid_hw[::step, ::step]]
        # Few valid pixels may all lie beside the sampled rows and columns.
        self._add_sample(sample if sample.size else values)

    def _add_sample(self, values: npt.NDArray[Any]) -> None:
        if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
            # Counted by value first: a bin's number is then worked out once for each value and not for each pixel.
            self._low = int(np.iinfo(values.dtype).min)
            counts = np.bincount(values.astype(np.int64) - self._low if self._low else values)
            if len(counts) > len(self._histogram):
                counts, self._histogram = self._histogram, counts
            self._histogram[: len(counts)] += counts
        else:
            self._add_bins(values, np.ones(len(values), np.int64))

    def _add_bins(self, values: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> None:
        keys, inverse = np.unique(_bin_keys(values), return_inverse=True)
        in_bins = np.bincount(inverse, weights=counts).astype(np.int64)
        self._sums.add(BandStatistics(bins=dict(zip(keys.tolist(), in_bins.tolist(), strict=True))))

    def statistics(self) -> BandStatistics:
        """Of all that was counted."""
        present = np.flatnonzero(self._histogram)
        if len(present):
            self._add_bins(present + self._low, self._histogram[present])
            self._histogram = np.zeros(0, np.int64)
        self._sums.bins = dict(sorted(self._sums.bins.items()))
        return self._sums


def sample_step(shape: tuple[int, ...]) -> int:
    """Every so many rows and columns of a chip are its sample: all of a small one, at least 75 x 75 of a large one."""
    return max(1, min(shape) // _SAMPLE_SIDE)


def _exact_sums(values: npt.NDArray[Any]) -> tuple[int, int]:
    """Sum and sum of squares of whole numbers of at most 32 bits.

    Whole numbers below 2^53 are exact in float64, whatever the order in which they are added, and dot products of
    float64 are the fastest sums there are. So numbers are cut in two halves of 16 bits, and sums into short pieces.
    """
    if values.dtype.itemsize <= 2:
        low = values.astype(np.float64)
        return _dot(low), _dot(low, low)
    wide = values.astype(np.int64)
    high, low = (wide >> 16).astype(np.float64), (wide & 0xFFFF).astype(np.float64)
    total = (_dot(high) << 16) + _dot(low)
    return total, (_dot(high, high) << 32) + (_dot(high, low) << 17) + _dot(low, low)


def _dot(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64] | None = None) -> int:
    """Exact sum of products of whole numbers of at most 16 bits; of the numbers themselves without `second`."""
    whole = len(first) // _PIECE * _PIECE
    total = 0
    for part, columns in ((slice(0, whole), _PIECE), (slice(whole, None), len(first) - whole)):
        if len(first[part]):
            rows = first[part].reshape(-1, columns)
            others = _ONES[:columns] if second is None else second[part].reshape(-1, columns)
            total += sum(int(piece) for piece in np.vecdot(rows, others))
    return total


def _float_sums(values: npt.NDArray[Any]) -> tuple[float, float]:
    wide = values.astype(np.float64)
    return float(wide.sum()), float((wide * wide).sum())


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
