import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely

from geochip.chip_table import chips_frame, footprints
from geochip.store import ChipStore

REASONS = {"train/c": "was read all the same", "train/d": "cut short", "val/f": "was read all the same"}


@pytest.fixture(scope="module")
def frame(varied_run):
    return chips_frame(ChipStore(varied_run / "chips.zarr"), REASONS)


def test_every_chip_is_a_row_in_the_order_of_the_positions(frame):
    assert frame.split.tolist() == ["train"] * 100 + ["val"] * 40
    assert frame.position.tolist() == [*range(100), *range(40)]
    assert frame.scene_id.tolist() == [name for name in "abcdefg" for _ in range(20)]
    assert list(frame.columns) == [
        "split", "position", "scene_id", "row_off", "col_off", "window_size", "status", "reason", "valid_fraction",
        "fraction_background", "fraction_building", "fraction_main road", "geometry",
    ]  # fmt: skip
    status = frame.groupby("scene_id").status.unique()
    assert {name: set(values) for name, values in status.items()} == {
        **{name: {"written"} for name in "abefg"}, "c": {"dropped"}, "d": {"unread"},
    }  # fmt: skip
    # Why a scene could not be read is of no interest for a chip that was.
    assert {name: set(values) for name, values in frame.groupby("scene_id").reason.unique().items()} == {
        **{name: {""} for name in "abcefg"}, "d": {"cut short"},
    }  # fmt: skip


def test_class_fractions_are_those_of_the_labels(frame, varied_run):
    store = ChipStore(varied_run / "chips.zarr")
    for split, at in (("train", 25), ("val", 7)):
        row = frame[(frame.split == split) & (frame.position == at)].iloc[0]
        _, label = store.read(split, np.array([at]))
        valid = label != 255
        assert row.valid_fraction == pytest.approx(valid.mean())
        for index, name in enumerate(("background", "building", "main road")):
            assert row[f"fraction_{name}"] == pytest.approx((label[valid] == index).mean())


def test_footprints_are_where_the_pixels_are(frame, varied_run):
    assert frame.crs == "EPSG:4326"
    # Scenes of two UTM zones, against the files: the pixels of a chip are those that its footprint covers.
    for scene_id, split in (("a", "train"), ("e", "train"), ("g", "val")):
        with rasterio.open(varied_run.parent / "data" / split / f"scene_{scene_id}.tif") as dataset:
            rows = frame[frame.scene_id == scene_id].to_crs(dataset.crs)
            for row in rows.itertuples():
                top, left = row.row_off, row.col_off
                window = rasterio.windows.Window(left, top, 24, 24)
                outline = shapely.box(*rasterio.windows.bounds(window, dataset.transform))
                # Polygons with the same corners, however they are turned.
                assert shapely.symmetric_difference(row.geometry, outline).area < 1e-3
    written = frame.status == "written"
    assert frame.geometry[written].notna().all()
    assert frame.geometry[~written].isna().all()
    assert frame[written].geometry.is_valid.all()


def test_the_command_writes_it_beside_the_store(frame, varied_run):
    read = gpd.read_parquet(varied_run / "chips.parquet")
    assert read.drop(columns="reason").equals(frame.drop(columns="reason"))
    assert "could not be read" in read[read.status == "unread"].reason.iloc[0]
    assert read.geometry.geom_equals(frame.geometry)[read.status == "written"].all()


def test_chips_without_a_place_on_the_earth_have_no_footprint():
    transform = np.array([[0.5, 0, 500_000, 0, -0.5, 4_000_000]] * 5)
    transform[3] = np.nan
    local = 'LOCAL_CS["a site of its own",UNIT["metre",1]]'
    crs = np.array(["", "EPSG:32611", local, "EPSG:32611", "EPSG:32645"], object)
    outlines = footprints(transform, crs, 100)
    assert [outline is None for outline in outlines] == [True, False, True, True, False]
    # The same numbers in zones whose central meridians are 117 degrees west and 87 east.
    assert outlines[1].bounds[0] == pytest.approx(-117)
    assert outlines[4].bounds[0] == pytest.approx(87)


def test_a_footprint_outside_of_what_a_projection_covers_is_left_out():
    transform = np.array([[0.5, 0, 1e12, 0, -0.5, 1e12], [0.5, 0, 5e5, 0, -0.5, 4e6]])
    outlines = footprints(transform, np.array(["EPSG:32611"] * 2, object), 100)
    assert [outline is None for outline in outlines] == [True, False]


def test_a_turned_grid_has_a_turned_footprint():
    # Columns run north, rows east, a pixel is 2 m: 10 pixels are 20 m.
    transform = np.array([[0.0, 2.0, 500_000, 2.0, 0.0, 4_000_000]])
    (outline,) = footprints(transform, np.array(["EPSG:32611"], object), 10)
    (ground,) = gpd.GeoSeries([outline], crs="EPSG:4326").to_crs("EPSG:32611")
    expected = shapely.box(500_000, 4_000_000, 500_020, 4_000_020)
    assert shapely.symmetric_difference(ground, expected).area < 1e-3
