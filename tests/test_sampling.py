import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from geochip.config import ChipsConfig
from geochip.sampling import candidates_of, places_of
from geochip.windows import Window, grid_windows

lengths = st.integers(1, 200)


def draw(chips, height=200, width=180, scene_id="a", aoi=None):
    places = candidates_of(chips, scene_id=scene_id, height=height, width=width, aoi=aoi)
    assert len(places) == places_of(chips, scene_id=scene_id, height=height, width=width, aoi=aoi)
    return places


def windows(chips, **where):
    return [candidates[0] for candidates in draw(chips, **where)]


@given(lengths, lengths, st.integers(1, 64), st.integers(1, 30), st.integers(0, 2**32))
def test_random_windows_lie_inside_and_differ(height, width, size, count, seed):
    drawn = windows(ChipsConfig(size=size, per_scene=count, seed=seed), height=height, width=width)
    positions = max(height - size, 0) + 1, max(width - size, 0) + 1
    assert len(drawn) == len(set(drawn)) == min(count, positions[0] * positions[1])
    for window in drawn:
        assert (window.height, window.width) == (size, size)
        assert window.row_off < positions[0]
        assert window.col_off < positions[1]
    # In reading order: what lies close together in the store lies close together in the file.
    assert drawn == sorted(drawn, key=lambda window: (window.row_off, window.col_off))


@pytest.mark.parametrize(("height", "width"), [(13, 12), (213, 212)])
def test_random_windows_reach_every_position_alike(height, width):
    # A scene whose positions are listed, and one whose windows are drawn.
    hits = np.zeros((4, 3), int)
    for seed in range(1500):
        for window in windows(ChipsConfig(size=10, per_scene=4, seed=seed), height=height, width=width):
            cells = (height - 9) / 4, (width - 9) / 3
            hits[int(window.row_off / cells[0]), int(window.col_off / cells[1])] += 1
    # 500 expected in each of the 12 parts; five standard deviations are 107.
    assert abs(hits - 500).max() < 107


def test_windows_depend_on_the_seed_and_the_scenes_id_and_shape_alone():
    chips = ChipsConfig(size=64)
    one = windows(chips)
    assert windows(chips) == one
    assert windows(ChipsConfig(size=64, seed=1)) != one
    assert windows(chips, scene_id="b") != one
    # What else is asked of the chips draws the same windows first.
    assert set(windows(ChipsConfig(size=64, min_valid=0.5))) == set(one)


def test_windows_of_a_scene_are_fixed_for_ever():
    # A change here means that the same run file gives other chips than before: say so in the changelog.
    first, second = windows(ChipsConfig(size=300, per_scene=2), height=400, width=500, scene_id="225")
    assert (first.row_off, first.col_off, second.row_off, second.col_off) == (69, 116, 87, 102)


def test_small_scenes_give_one_hanging_chip():
    assert windows(ChipsConfig(size=64), height=40, width=30) == [Window(row_off=0, col_off=0, height=64, width=64)]


def test_per_area_samples_scenes_of_all_sizes_alike():
    chips = ChipsConfig(size=10, per_area=100)
    assert [len(windows(chips, height=h, width=w)) for h, w in ((1000, 1000), (2000, 1000), (100, 100), (20, 20))] == [
        100, 200, 1, 1,
    ]  # fmt: skip
    aoi = shapely.box(0, 0, 500, 1000)
    assert len(windows(chips, height=1000, width=1000, aoi=aoi)) == 50


def test_sizes_are_drawn_from_the_whole_range():
    chips = ChipsConfig(size=32, size_range=(20, 40), per_scene=3000)
    drawn = windows(chips, height=500, width=400)
    assert {window.height for window in drawn} == set(range(20, 41))
    assert all(window.height == window.width for window in drawn)
    assert all(window.row_stop <= 500 and window.col_stop <= 400 for window in drawn)
    counts = np.bincount([window.height for window in drawn])[20:]
    # 143 expected of each size; five standard deviations are 60.
    assert abs(counts - 3000 / 21).max() < 60


@pytest.mark.parametrize("edge", ["shift", "drop", "pad"])
def test_a_grid_is_the_scenes_grid(edge):
    chips = ChipsConfig(size=64, method="grid", stride=50, edge=edge)
    assert windows(chips) == grid_windows(200, 180, 64, 50, edge)
    assert windows(ChipsConfig(size=64, method="grid", edge=edge)) == grid_windows(200, 180, 64, 64, edge)


@pytest.mark.parametrize("method", ["random", "grid"])
def test_windows_lie_in_the_area_of_interest(method):
    chips = ChipsConfig(size=20, method=method, **({"per_scene": 50} if method == "random" else {"stride": 7}))
    aoi = shapely.Polygon([(30, 40), (120, 60), (90, 160), (30, 150)])
    inside = windows(chips, aoi=aoi)
    assert len(inside) == 50 or method == "grid"
    assert inside
    for window in inside:
        assert aoi.covers(shapely.box(window.col_off, window.row_off, window.col_stop, window.row_stop))
    touching = ChipsConfig(
        size=20, method=method, aoi_within=False, **({"per_scene": 400} if method == "random" else {"stride": 7})
    )
    partly = [
        shapely.box(window.col_off, window.row_off, window.col_stop, window.row_stop).intersection(aoi).area
        for window in windows(touching, aoi=aoi)
    ]
    assert all(area > 0 for area in partly)
    assert any(area < 400 for area in partly)


def test_an_area_of_interest_without_room_gives_no_chip():
    assert windows(ChipsConfig(size=50), aoi=shapely.box(0, 0, 40, 40)) == []
    assert windows(ChipsConfig(size=50), height=5000, width=5000, aoi=shapely.box(0, 0, 40, 40)) == []
    assert windows(ChipsConfig(size=50, per_area=10), aoi=shapely.Polygon()) == []
    # Just one window fits, in a scene with far more positions than are listed.
    only = windows(ChipsConfig(size=40, aoi_within=True), height=140, width=150, aoi=shapely.box(3, 5, 43, 45))
    assert only == [Window(row_off=5, col_off=3, height=40, width=40)]


def test_every_place_has_candidates_of_its_own():
    chips = ChipsConfig(size=32, per_scene=6, min_valid=0.5, max_tries=8)
    places = draw(chips)
    assert [len(candidates) for candidates in places] == [8] * 6
    every = [window for candidates in places for window in candidates]
    assert len(set(every)) == 48
    # More tries leave the candidates of fewer tries where they are.
    more = draw(ChipsConfig(size=32, per_scene=6, min_valid=0.5, max_tries=9))
    assert [candidates[:8] for candidates in more] == places
    # A scene with few positions has them all tried, each once.
    few = draw(chips, height=34, width=36)
    assert sorted(len(candidates) for candidates in few) == [2, 2, 2, 3, 3, 3]
    assert len({window for candidates in few for window in candidates}) == 15
    # Where pixels do not decide, there is nothing to try.
    assert all(len(candidates) == 1 for candidates in draw(ChipsConfig(size=32)))


def test_a_small_area_in_a_large_scene_is_found():
    aoi = shapely.box(3000, 2500, 3040, 2540)
    inside = windows(ChipsConfig(size=32, per_scene=5), height=4000, width=4000, aoi=aoi)
    assert len(inside) == 5
    assert all(3000 <= one.col_off <= 3008 and 2500 <= one.row_off <= 2508 for one in inside)
    touching = windows(ChipsConfig(size=32, per_scene=50, aoi_within=False), height=4000, width=4000, aoi=aoi)
    assert len(touching) == 50
    assert all(2968 < one.col_off < 3040 and 2468 < one.row_off < 2540 for one in touching)
    assert min(one.col_off for one in touching) < 3000 < 3010 < max(one.col_off for one in touching)
