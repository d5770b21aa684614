"""Statistics of bands that add up: each task counts its own pixels, the driver adds the counts in any grouping.

They are of a sample of the valid pixels, but for the range, which is of all: of every chip some rows and columns, all
of a small chip and at least 75 x 75 of a large one. Over thousands of chips that is as good as all pixels are, for a
sixteenth of the work. Mean and standard deviation of integer pixels come from exact integer sums, so that no order of
tasks changes them.

Percentiles come from counts in bins that follow the bits of a float32: sign, exponent and the first six bits of the
mantissa. So a bin is at most 1/64 of its value wide in any unit and for any type, whole numbers up to 127 have bins of
their own, and two tasks always use the same bins.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 2, 5, 25, 50, 75, 95, 98, 99)

_DROPPED_BITS = 17
_SAMPLE_SIDE = 75


@dataclass
class BandStatistics:
    """Counts of one band."""

    count: int = 0
    """Valid pixels of the sample."""
    total: float = 0
    """Their sum; a Python integer, so exact, for integer pixels."""
    total_of_squares: float = 0
    """The sum of their squares, likewise."""
    minimum: float = float("inf")
    """Of all valid pixels, as is the maximum."""
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
    """Counts one band of many chips; sums and bins are made once, at the end."""

    def __init__(self) -> None:
        self._known = BandStatistics()
        self._histogram = np.zeros(0, np.int64)
        self._low = 0

    def add(self, band_hw: npt.NDArray[Any], valid_hw: npt.NDArray[np.bool_] | None = None) -> None:
        """Count one chip.

        Args:
            band_hw: (height, width), of one type in all calls; what is valid must be finite.
            valid_hw: True where the pixels count; None: everywhere.
        """
        values = band_hw if valid_hw is None else band_hw[valid_hw]
        if not values.size:
            return
        self._known.minimum = min(self._known.minimum, values.min().item())
        self._known.maximum = max(self._known.maximum, values.max().item())
        step = sample_step(band_hw.shape)
        sample = band_hw[::step, ::step]
        sample = sample.ravel() if valid_hw is None else sample[valid_hw[::step, ::step]]
        # Few valid pixels may all lie beside the sampled rows and columns.
        sample = sample if sample.size else values.ravel()
        if sample.dtype.kind in "iu" and sample.dtype.itemsize <= 2:
            # Counted by value: sums and bins are then worked out once for each value and not for each pixel.
            self._low = int(np.iinfo(sample.dtype).min)
            counts = np.bincount(sample.astype(np.int64) - self._low if self._low else sample)
            if len(counts) > len(self._histogram):
                counts, self._histogram = self._histogram, counts
            self._histogram[: len(counts)] += counts
        else:
            self._add_counts(*np.unique(sample, return_counts=True))

    def _add_counts(self, distinct: npt.NDArray[Any], counts: npt.NDArray[np.int64]) -> None:
        """Add different values, and how often each occurs."""
        if distinct.dtype.kind in "iu":
            # Object arrays hold Python integers: squares of int32 values overflow int64 soon.
            exact, exactly = distinct.astype(object), counts.astype(object)
            sums: tuple[float, float] = int((exact * exactly).sum()), int((exact * exact * exactly).sum())
        else:
            wide = distinct.astype(np.float64)
            sums = float((wide * counts).sum()), float((wide * wide * counts).sum())
        keys, inverse = np.unique(_bin_keys(distinct), return_inverse=True)
        in_bins = np.bincount(inverse, weights=counts).astype(np.int64)
        self._known.add(
            BandStatistics(int(counts.sum()), *sums, bins=dict(zip(keys.tolist(), in_bins.tolist(), strict=True)))
        )

    def statistics(self) -> BandStatistics:
        """Of all that was counted."""
        present = np.flatnonzero(self._histogram)
        if len(present):
            self._add_counts(present + self._low, self._histogram[present])
            self._histogram = np.zeros(0, np.int64)
        self._known.bins = dict(sorted(self._known.bins.items()))
        return self._known


def sample_step(shape: tuple[int, ...]) -> int:
    """Every so many rows and columns of a chip are its sample."""
    return max(1, min(shape) // _SAMPLE_SIDE)


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
