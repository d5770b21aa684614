"""Squares of ground inside a scene: which pixels are whose, and where windows may be."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine

from geochip.chip_prepare import planned_windows, prepare
from geochip.config import ChipsConfig
from geochip.errors import DamagedError, InputError
from geochip.sampling import candidates_of, places_of
from geochip.scenes import Squares, find_scenes
from helpers import box, write_image, write_label
from orthophotos import COLS, GRIDS, ROWS, SPLITS, config_of, on_ground, outline, owners_of_pixels, write_ortho
from told import told

CHIPS = {
    "random": ChipsConfig(size=16, per_scene=40),
    "grid": ChipsConfig(size=16, method="grid", stride=8),
    "by area, of several sizes": ChipsConfig(size=16, size_range=(10, 24), per_area=1000),
    "that look at pixels": ChipsConfig(size=16, per_scene=20, min_valid=0.5, max_tries=4),
}


def drawn(region, shape=(ROWS, COLS)):
    """Where the centres of pixels lie in a region."""
    if region is None:
        return np.ones(shape, bool)
    if shapely.is_empty(region):
        return np.zeros(shape, bool)
    return rasterio.features.rasterize([region], out_shape=shape).astype(bool)


@pytest.mark.parametrize("grid", GRIDS)
def test_each_pixel_belongs_to_the_split_of_the_square_that_its_centre_lies_in(tmp_path, grid):
    write_ortho(tmp_path, grid=grid)
    catalogue = find_scenes(config_of(tmp_path))
    squares, scene = catalogue.squares, catalogue.scenes[0]
    owners = owners_of_pixels(scene, squares)
    assert set(np.unique(owners)) == set(SPLITS)
    for split in SPLITS:
        np.testing.assert_array_equal(drawn(squares.region(scene, split)), owners == split)
    shares = {split: (owners == split).mean() for split in SPLITS}
    # As near as whole squares allow: one is 5 % of the image.
    assert shares == pytest.approx({"train": 0.5, "val": 0.25, "test": 0.25}, abs=0.08)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("chips", CHIPS.values(), ids=CHIPS)
def test_windows_keep_to_the_blocks_of_their_split_and_train_keeps_its_distance(tmp_path, grid, chips):
    write_ortho(tmp_path, grid=grid)
    config = config_of(tmp_path, chips=chips, block=50.0)
    ready = prepare(config)
    squares = ready.catalogue.squares
    windows = {
        (planned.split, number): outline(planned.scene, squares, window)
        for split in ready.plan.splits
        for planned in split.scenes
        for number, window in enumerate(all_windows(planned, config))
    }
    others = shapely.union_all([one for (split, _), one in windows.items() if split != "train"])
    train = shapely.union_all([one for (split, _), one in windows.items() if split == "train"])
    width = chips.largest_window * ready.first.pixel_size
    assert train.distance(others) >= width
    owners = owners_of_pixels(ready.first, squares)
    for split in ready.plan.splits:
        assert split.chips > 0
        for planned in split.scenes:
            found = all_windows(planned, config)
            assert len(set(found)) == len(found)
            for window in found:
                assert window.row_stop <= ROWS
                assert window.col_stop <= COLS
                assert set(owners[window.slices].ravel()) == {split.split}


def all_windows(planned, config):
    if not config.chips.depend_on_content:
        return planned_windows(planned, config)
    scene = planned.scene
    places = candidates_of(
        config.chips, scene_id=scene.draws_as, height=scene.height, width=scene.width, region=scene.region
    )
    return [window for place in places for window in place]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("buffer", [0.0, 5.0, 12.3])
def test_a_configured_buffer_is_kept_in_metres(tmp_path, grid, buffer):
    write_ortho(tmp_path, grid=grid)
    catalogue = find_scenes(config_of(tmp_path, buffer=buffer))
    squares, scene = catalogue.squares, catalogue.scenes[0]
    train, val, test = (
        shapely.transform(one.region, lambda points: on_ground(scene, squares, points)) for one in catalogue.scenes
    )
    apart = train.distance(shapely.union_all([val, test]))
    # A pixel of 0.5 m more for the rounding of both borders, and not two.
    assert buffer <= apart + 1e-6 <= (buffer + 1.01 if buffer else 0.01)


def test_a_grid_covers_each_block_from_edge_to_edge(tmp_path):
    write_ortho(tmp_path)
    config = config_of(tmp_path, chips=ChipsConfig(size=16, method="grid"), buffer=0.0)
    ready = prepare(config)
    for split in ready.plan.splits:
        covered = np.zeros((ROWS, COLS), bool)
        for window in planned_windows(split.scenes[0], config):
            covered[window.slices] = True
        mine = drawn(ready.catalogue.squares.region(ready.first, split.split))
        assert not (covered & ~mine).any()
        # Blocks are 5 chips wide; what is missing are rims of parts that are no rectangles.
        assert covered.sum() > 0.85 * mine.sum()


def test_neighbouring_images_share_their_squares(tmp_path):
    # The second one lies beside the first, the third over both, on pixels of its own.
    write_ortho(tmp_path, "a")
    write_ortho(tmp_path, "b", shift=(COLS, 0))
    write_ortho(tmp_path, "c", shift=(COLS / 2 + 0.3, ROWS / 2 + 0.4))
    config = config_of(tmp_path)
    ready = prepare(config)
    assert ready.overlap.pairs == 0
    squares = ready.catalogue.squares
    placed = [
        (split.split, shapely.union_all([outline(one.scene, squares, window) for window in planned_windows(one, config)]))
        for split in ready.plan.splits
        for one in split.scenes
    ]  # fmt: skip
    assert len(placed) == 9
    train = shapely.union_all([one for split, one in placed if split == "train"])
    others = shapely.union_all([one for split, one in placed if split != "train"])
    assert train.distance(others) >= 16 * 0.5
    for scene in {scene.scene_id: scene for scene in ready.catalogue.scenes}.values():
        owners = owners_of_pixels(scene, squares)
        for split in SPLITS:
            np.testing.assert_array_equal(drawn(squares.region(scene, split)), owners == split)


def test_the_parts_of_a_scene_draw_other_windows_and_a_scene_in_one_split_draws_as_ever(tmp_path):
    write_ortho(tmp_path)
    write_image(tmp_path / "small.tif", np.zeros((1, 40, 40), np.uint16), transform=GRIDS["north up"][1])
    write_label(tmp_path / "small.geojson", [])
    config = config_of(tmp_path, buffer=0.0, block=100.0, splits=("train", "val"))
    ready = prepare(config)
    small = [one for split in ready.plan.splits for one in split.scenes if one.scene_id == "small"]
    (small,) = [one for one in small if one.scene.region is None]
    alone = candidates_of(config.chips, scene_id="small", height=40, width=40)
    assert planned_windows(small, config) == [place[0] for place in alone]
    ortho = {split.split: one for split in ready.plan.splits for one in split.scenes if one.scene_id == "ortho"}
    assert ortho["train"].scene.draws_as == "ortho/train" != ortho["val"].scene.draws_as


def test_scenes_no_larger_than_a_square_stay_whole(tmp_path):
    write_ortho(tmp_path, "a")
    write_ortho(tmp_path, "b", shift=(3000, 0))
    config = config_of(tmp_path, block=200.0, splits=("train", "val"))
    catalogue = find_scenes(config)
    assert catalogue.squares is None
    assert all(scene.region is None for scene in catalogue.scenes)
    assert {scene.split for scene in catalogue.scenes} == {"train", "val"}
    divided = find_scenes(replace(config, split=replace(config.split, scenes="divided")))
    assert divided.squares is not None
    whole = find_scenes(replace(config, split=replace(config.split, scenes="whole", block=40.0)))
    assert whole.squares is None


def test_an_area_of_interest_narrows_the_blocks(tmp_path):
    transform = write_ortho(tmp_path)
    write_label(tmp_path / "aoi.geojson", [box(transform, 0, 0, 140, 400)])
    for within in (True, False):
        chips = ChipsConfig(size=16, per_scene=30, aoi="aoi.geojson", aoi_within=within)
        config = config_of(tmp_path, chips=chips)
        ready = prepare(config)
        owners = owners_of_pixels(ready.first, ready.catalogue.squares)
        lowest = 0
        for split in ready.plan.splits:
            assert split.chips > 0
            for window in planned_windows(split.scenes[0], config):
                assert set(owners[window.slices].ravel()) == {split.split}
                assert (window.row_stop if within else window.row_off) <= 140
                lowest = max(lowest, window.row_stop)
        assert within == (lowest <= 140)


def test_a_small_region_scattered_over_a_large_scene_is_filled():
    # Two corners of 20 x 20 pixels: of all positions one in 16,000 is in one of them.
    region = shapely.multipolygons([shapely.box(0, 0, 20, 20), shapely.box(4980, 4980, 5000, 5000)])
    chips = ChipsConfig(size=16, per_scene=50)
    scene = {"scene_id": "x", "height": 5000, "width": 5000, "region": region}
    assert places_of(chips, **scene) == 50
    assert len({place[0] for place in candidates_of(chips, **scene)}) == 50
    # There are 5 x 5 positions in each, and no more.
    assert places_of(replace(chips, per_scene=60), **scene) == 50
    # As many as for its area.
    assert places_of(replace(chips, per_area=10_000), **scene) == 8
    large = shapely.multipolygons([shapely.box(0, 0, 300, 300), shapely.box(4000, 4000, 5000, 5000)])
    many = candidates_of(replace(chips, per_scene=1000), **{**scene, "region": large})
    in_first = sum(place[0].row_off < 300 for place in many)
    # Uniform over positions: 285² of 285² + 985².
    assert in_first == pytest.approx(1000 * 285**2 / (285**2 + 985**2), abs=30)
    assert places_of(chips, **{**scene, "region": shapely.MultiPolygon()}) == 0


def test_a_scene_across_the_180th_meridian_is_divided_like_any_other(tmp_path):
    # 0.009 degrees, about 1 km, of longitudes that go on beyond 180.
    write_image(
        tmp_path / "ortho.tif", np.zeros((1, 300, 300), np.uint16), crs="EPSG:4326",
        transform=Affine(3e-5, 0, 179.9955, 0, -3e-5, 0.0005),
    )  # fmt: skip
    write_label(tmp_path / "ortho.geojson", [], crs="EPSG:4326")
    catalogue = find_scenes(config_of(tmp_path, block=200.0))
    squares, scene = catalogue.squares, catalogue.scenes[0]
    owners = owners_of_pixels(scene, squares)
    for split in SPLITS:
        np.testing.assert_array_equal(drawn(squares.region(scene, split), (300, 300)), owners == split)


def test_what_is_kept_of_a_division_is_read_back_or_told(tmp_path):
    write_ortho(tmp_path)
    squares = find_scenes(config_of(tmp_path)).squares
    assert Squares.from_json(squares.to_json(), "x", "y") == squares
    for change, told_of in (
        ({"side": 0}, "side must be greater than 0"),
        ({"side": "wide"}, r"Expected `float`, got `str` - at `\$.side`"),
        ({"crs": "EPSG:1"}, "crs is 'EPSG:1', which PROJ does not know"),
        ({"home": "nobody"}, "home must be one of them"),
        ({"owners": {"train": [[1, 2]], "val": [[1, 2]]}}, "each square must belong to one split"),
        ({"owners": {"train": [[1, 2, 3]]}}, "length 2"),
    ):
        with pytest.raises(DamagedError, match=f"^file is damaged .*{told_of}.*; do this$"):
            Squares.from_json({**squares.to_json(), **change}, "file", "do this")


def test_a_grid_without_a_window_in_the_blocks_of_a_split_is_told(tmp_path):
    # Turned by 30 degrees, a square of 14 m has room for a chip of 8 m, but for few places of it.
    write_ortho(tmp_path, grid="rotated")
    chips = ChipsConfig(size=16, method="grid", stride=64)
    config = config_of(
        tmp_path, chips=chips, block=14.0, buffer=0.0, fractions={"train": 0.98, "val": 0.01, "test": 0.01}
    )
    with pytest.raises(InputError) as caught:
        prepare(config)
    told("blocks-no-grid-window", str(caught.value))
    ready = prepare(replace(config, chips=ChipsConfig(size=16)))
    assert all(split.chips for split in ready.plan.splits)


def test_squares_are_counted_where_they_have_pixels():
    squares = Squares(
        crs="EPSG:32611", side=10.0, home="train", apart=0.0, owners={"train": [(0, 0), (1, 0)], "val": [(0, 1), (5, 5)]}
    )  # fmt: skip
    grid = SimpleNamespace(height=15, width=10, transform=Affine(1, 0, 0, 0, -1, 15), crs="EPSG:32611")
    assert (squares.count(grid, "train"), squares.count(grid, "val")) == (1, 1)
    assert squares.region(grid, "val").bounds == (0, 0, 10, 5)
    assert squares.region(grid, "test").is_empty
    assert on_ground(grid, squares, [(0, 0)]).tolist() == [[0, 15]]
