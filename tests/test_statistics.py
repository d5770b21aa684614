import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from geochip.statistics import PERCENTILES, BandCounter, BandStatistics

arrays = st.sampled_from(["uint8", "uint16", "int16", "int32", "uint32", "float32"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, st.integers(1, 300),
        elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False, allow_subnormal=False)
        if dtype != "float32" else st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    )
)  # fmt: skip


def of(values):
    return BandStatistics.of(values[None])


@given(arrays)
def test_moments_and_extremes_are_those_of_numpy(values):
    counted = of(values)
    exact = values.astype(np.float64)
    scale = max(abs(exact).max(), 1e-30)
    assert counted.count == values.size
    assert counted.mean() == pytest.approx(exact.mean(), rel=1e-9, abs=1e-9 * scale)
    assert counted.std() == pytest.approx(exact.std(), rel=1e-6, abs=1e-6 * scale)
    assert (counted.minimum, counted.maximum) == (values.min(), values.max())


@given(arrays, st.floats(0.5, 99.5))
def test_a_percentile_is_within_its_bin(values, percent):
    ordered = np.sort(values.astype(np.float64))
    reached = ordered[min(int(np.ceil(percent / 100 * len(ordered))) - 1, len(ordered) - 1)]
    found = of(values).percentile(percent)
    assert abs(found - reached) <= max(abs(reached) / 64, 1)


@given(arrays, st.integers(0, 300))
def test_counts_add_up_in_any_grouping(values, cut):
    whole = of(values)
    parts = of(values[cut:])
    parts.add(BandStatistics.from_json(json.loads(json.dumps(of(values[:cut]).to_json()))))
    assert parts.count == whole.count
    assert parts.bins == whole.bins
    assert parts.mean() == pytest.approx(whole.mean())
    if values.dtype.kind in "iu":
        assert (parts.total, parts.total_of_squares) == (whole.total, whole.total_of_squares)
        assert isinstance(parts.total_of_squares, int)


def test_integer_sums_are_exact_where_int64_would_overflow():
    values = np.full(100_000, 2**31 - 1, np.int32)
    assert of(values).total_of_squares == 100_000 * (2**31 - 1) ** 2
    assert of(values).std() == 0


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_sums_of_whole_numbers_are_exact_at_the_ends_of_their_range(dtype):
    ends = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(ends.min, ends.max, (1100, 1000), dtype=dtype, endpoint=True)
    values[:, :500] = ends.min
    values[:, 500:600] = ends.max
    counted, exact = of(values.ravel()), values.astype(object)
    assert (counted.total, counted.total_of_squares) == (exact.sum(), (exact * exact).sum())
    assert (counted.minimum, counted.maximum) == (ends.min, ends.max)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_statistics_of_large_chips_come_from_a_sample_of_them(dtype):
    rng = np.random.default_rng(1)
    counter, chips = BandCounter(), []
    for _ in range(4):
        chip = rng.normal(300, 90, (300, 310)).astype(dtype)
        valid = rng.random(chip.shape) < 0.7
        counter.add(chip, valid)
        chips.append(chip[valid])
    counted, whole = counter.statistics(), np.concatenate(chips).astype(float)
    assert counted.count == sum(counted.bins.values()) == pytest.approx(len(whole) / 16, rel=0.05)
    # Three standard errors of 16,000 values.
    assert counted.mean() == pytest.approx(whole.mean(), abs=3 * 90 / 126)
    assert counted.std() == pytest.approx(whole.std(), abs=3 * 90 / 178)
    # The range is that of all pixels.
    assert (counted.minimum, counted.maximum) == (whole.min(), whole.max())
    for percent in PERCENTILES:
        # A bin, and three standard errors of a quantile of 16,000 normal values.
        assert counted.percentile(percent) == pytest.approx(np.percentile(whole, percent), rel=1 / 64, abs=7)


def test_the_only_valid_pixel_counts_wherever_it_is():
    chip, valid = np.full((300, 300), 9, np.uint16), np.zeros((300, 300), bool)
    chip[1, 1], valid[1, 1] = 70, True
    counted = BandStatistics.of(chip, valid)
    assert (counted.count, counted.mean(), counted.percentile(50)) == (1, 70, 70)


def test_no_pixels_have_no_statistics():
    empty = of(np.empty(0, np.uint16))
    assert empty == BandStatistics() == BandStatistics.from_json(empty.to_json())
    assert all(np.isnan(value) for value in (empty.mean(), empty.std(), *map(empty.percentile, PERCENTILES)))


def test_few_bins_suffice_for_aerial_imagery():
    values = np.random.default_rng(0).integers(0, 2048, 1_000_000).astype(np.uint16)
    assert len(of(values).bins) < 500
