import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geochip.windows import Window, blend_weights, blocks, grid_windows, sliding_offsets, sliding_windows

lengths = st.integers(1, 200)


@given(lengths, lengths, st.integers(1, 64), st.data())
def test_sliding_windows_cover_every_pixel_and_stay_inside(height, width, size, data):
    stride = data.draw(st.integers(1, size))
    covered = np.zeros((height, width), int)
    for window in sliding_windows(height, width, size, stride):
        assert window.row_stop <= max(height, size)
        assert window.col_stop <= max(width, size)
        covered[window.slices] += 1
    assert covered.min() >= 1


@given(lengths, st.integers(1, 64), st.data())
def test_sliding_offsets_ascend_by_at_most_the_stride(length, size, data):
    stride = data.draw(st.integers(1, size))
    offsets = sliding_offsets(length, size, stride)
    assert offsets[0] == 0
    assert offsets[-1] == max(length - size, 0)
    steps = np.diff(offsets)
    assert (steps >= 1).all()
    assert (steps <= stride).all()
    assert (steps[:-1] == stride).all()


@pytest.mark.parametrize("stride", [0, 11])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(ValueError, match=f"stride {stride} must be at least 1 and at most the window's size 10"):
        sliding_offsets(100, 10, stride)


@given(lengths, lengths, st.integers(1, 64), st.integers(1, 90))
def test_grid_windows_treat_the_edge_as_asked(height, width, size, stride):
    def along(edge, axis):
        windows = grid_windows(height, width, size, stride, edge)
        assert len(windows) == len(set(windows))
        return sorted({(window.row_off, window.col_off)[axis] for window in windows})

    for axis, length in ((0, height), (1, width)):
        dropped, shifted, padded = (along(edge, axis) for edge in ("drop", "shift", "pad"))
        if height >= size and width >= size:
            assert dropped == list(range(0, length - size + 1, stride))
        else:
            # A scene with no room for a window along one side has none at all.
            assert not dropped
        assert all(offset + size <= max(length, size) for offset in shifted)
        assert all(offset % stride == 0 and offset < length for offset in padded)
        if stride <= size:
            # Nothing is left out.
            assert shifted[-1] == max(length - size, 0)
            assert padded[-1] + size >= length


def test_a_window_of_impossible_shape_is_refused():
    with pytest.raises(ValueError, match="offsets must be at least 0 and sizes at least 1"):
        Window(row_off=-1, col_off=0, height=1, width=1)
    with pytest.raises(ValueError, match="offsets must be at least 0 and sizes at least 1"):
        Window(row_off=0, col_off=0, height=1, width=0)


def test_window_geometry():
    a = Window(row_off=10, col_off=20, height=30, width=40)
    b = Window(row_off=35, col_off=5, height=100, width=20)
    common = a.intersection(b)
    assert common == Window(row_off=35, col_off=20, height=5, width=5)
    assert common.relative_to(a) == Window(row_off=25, col_off=0, height=5, width=5)
    assert a.intersection(Window(row_off=40, col_off=20, height=1, width=1)) is None
    array = np.arange(100 * 100).reshape(100, 100)
    assert (array[a.slices] == array[10:40, 20:60]).all()


@given(lengths, lengths, st.integers(1, 70))
def test_blocks_tile_a_scene_without_overlap(height, width, size):
    owners = np.zeros((height, width), int)
    for block in blocks(height, width, size):
        owners[block.slices] += 1
        assert block.row_off % size == 0
        assert block.col_off % size == 0
    assert (owners == 1).all()


@given(st.integers(1, 512))
def test_blend_weights_are_positive_symmetric_and_highest_in_the_middle(size):
    weights = blend_weights(size, "hann")
    assert weights.dtype == np.float32
    assert weights.min() > 0
    assert weights.max() <= 1
    np.testing.assert_allclose(weights, weights[::-1, ::-1], rtol=1e-5)
    assert weights[size // 2, size // 2] == weights.max()
    assert (blend_weights(size, "average") == 1).all()
