"""Labels and areas of interest of scenes around 180 degrees, or whose longitudes count from 0 to 360."""

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine

from geochip.labels import Grid, indexed_label, read_aoi
from geochip.windows import Window
from helpers import read_label, write_label

STEP = 1e-5
HEIGHT, WIDTH = 64, 128


def grid_from(west, south=-17.0):
    return Affine(STEP, 0, west, 0, -STEP, south)


def degrees(west, rows=(10, 40), cols=(34, 94)):
    """The rectangle that covers these pixels of `grid_from(180 - 64 pixels)`, and its pixels."""
    left, right = west + cols[0] * STEP, west + cols[1] * STEP
    return shapely.box(left, -17 - rows[1] * STEP, right, -17 - rows[0] * STEP)


def pixels(rows=(10, 40), cols=(34, 94), shape=(HEIGHT, WIDTH)):
    found = np.zeros(shape, np.uint8)
    found[rows[0] : rows[1], cols[0] : cols[1]] = 1
    return found


EAST = 180 - 64 * STEP
HALVES = shapely.MultiPolygon([
    shapely.box(180 - 30 * STEP, -17 - 40 * STEP, 180, -17 - 10 * STEP),
    shapely.box(-180, -17 - 40 * STEP, -180 + 30 * STEP, -17 - 10 * STEP),
])  # fmt: skip
UNCUT = shapely.transform(degrees(EAST), lambda xy: np.column_stack([(xy[:, 0] + 180) % 360 - 180, xy[:, 1]]))
SPELT = {
    "cut at 180 degrees": HALVES,
    "up to 360 degrees": degrees(EAST),
    "below -180 degrees": degrees(EAST - 360),
    "not cut": UNCUT,
}


def write(path, shapes, **how):
    return write_label(path, [shapely.geometry.mapping(shape) for shape in shapes], **{"crs": "missing", **how})


@pytest.mark.parametrize("west", [EAST, EAST - 360])
@pytest.mark.parametrize("how", SPELT)
@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4269"])
def test_a_label_over_180_degrees_is_drawn_on_both_sides(tmp_path, west, how, crs):
    path = write(tmp_path / "a.geojson", [SPELT[how]], crs=crs if crs == "EPSG:4269" else "missing")
    label = read_label(path, height=HEIGHT, width=WIDTH, transform=grid_from(west), crs="EPSG:4326")
    np.testing.assert_array_equal(label, pixels())


@pytest.mark.parametrize(
    ("scene", "label"), [(190.0, -170.0), (-170.0, 190.0), (355.0, -5.0), (-5.0, 355.0), (-115.3, 244.7)]
)
def test_longitudes_up_to_360_and_below_0_are_the_same(tmp_path, scene, label):
    path = write(tmp_path / "a.geojson", [degrees(label), shapely.box(label - 90, -18, label - 80, -16)])
    drawn = read_label(path, height=HEIGHT, width=WIDTH, transform=grid_from(scene), crs="EPSG:4326")
    np.testing.assert_array_equal(drawn, pixels())


@pytest.mark.parametrize("how", SPELT)
@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32760", "EPSG:3857", "EPSG:3832"])
def test_a_scene_in_metres_over_180_degrees(tmp_path, crs, how):
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    x, y = to_crs.transform(180, -17)
    x = abs(x) if crs == "EPSG:3857" else x
    transform = Affine(1.0, 0, x - 64, 0, -1.0, y)
    path = write(tmp_path / "a.geojson", [SPELT[how]])
    drawn = read_label(path, height=HEIGHT, width=WIDTH, transform=transform, crs=crs)
    # The same place by PROJ alone, point by point.
    corners = shapely.transform(HALVES, lambda xy: np.column_stack(to_crs.transform(xy[:, 0], xy[:, 1])))
    if crs == "EPSG:3857":
        corners = shapely.transform(
            corners,
            lambda xy: np.column_stack([np.where(xy[:, 0] < 0, xy[:, 0] + 40075016.68557849, xy[:, 0]), xy[:, 1]]),
        )
    at = shapely.transform(shapely.union_all(corners), lambda xy: np.column_stack(~transform @ xy.T))
    rows, cols = np.indices((HEIGHT, WIDTH)) + 0.5
    expected = shapely.contains_xy(shapely.buffer(at, 1e-6), cols, rows)
    assert 1500 < expected.sum() < 2600
    assert (drawn != expected).sum() <= 2


def test_a_class_on_top_stays_on_top(tmp_path):
    path = write(
        tmp_path / "a.geojson", [HALVES, degrees(EAST, cols=(60, 70)), degrees(EAST - 360, cols=(66, 80))],
        properties=[{"kind": "a"}, {"kind": "b"}, {"kind": "a"}],
    )  # fmt: skip
    drawn = read_label(
        path, height=HEIGHT, width=WIDTH, transform=grid_from(EAST), crs="EPSG:4326", classes=("0", "a", "b"), class_property="kind",
    )  # fmt: skip
    assert drawn[20, [50, 60, 65, 66, 79, 90]].tolist() == [1, 2, 2, 1, 1, 1]


def test_what_goes_around_the_world_is_drawn_around_the_world(tmp_path):
    world = shapely.box(-180, -17 - 40 * STEP, 180, -17 - 10 * STEP)
    for west in (10.0, 190.0, EAST):
        path = write(tmp_path / "a.geojson", [world])
        drawn = read_label(path, height=HEIGHT, width=WIDTH, transform=grid_from(west), crs="EPSG:4326")
        np.testing.assert_array_equal(drawn, pixels(cols=(0, WIDTH)))
    # Nearly so, and no scene where it would be narrow.
    path = write(tmp_path / "a.geojson", [shapely.box(-179.9, -17 - 40 * STEP, 179.9, -17 - 10 * STEP)])
    drawn = read_label(path, height=HEIGHT, width=WIDTH, transform=grid_from(10.0), crs="EPSG:4326")
    np.testing.assert_array_equal(drawn, pixels(cols=(0, WIDTH)))


@pytest.fixture(scope="module", params=["cut at 180 degrees", "up to 360 degrees", "below -180 degrees"])
def many(request, tmp_path_factory):
    """A file of more than a megabyte: features around the world, and one at the scene."""
    shapes = [shapely.box(lon, lat, lon + 0.5, lat + 0.5) for lon in range(-178, 178, 2) for lat in range(-60, 60, 2)]
    where = len(shapes) // 2
    shapes.insert(where, SPELT[request.param])
    return write(tmp_path_factory.mktemp("many") / "a.geojson", shapes), where


@pytest.mark.parametrize("form", ["geojson", "gpkg", "index"])
@pytest.mark.parametrize(("crs", "west"), [("EPSG:4326", EAST), ("EPSG:4326", EAST - 360), ("EPSG:32601", None)])
def test_of_a_large_file_both_sides_are_read(many, tmp_path, form, crs, west):
    path, _ = many
    if form == "gpkg":
        gpd.read_file(path).to_file(tmp_path / "a.gpkg")
        path = tmp_path / "a.gpkg"
    elif form == "index":
        path = indexed_label(str(path), tmp_path, at_least=2**20)
    transform = None if west is None else grid_from(west)
    if transform is None:
        x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(180, -17)
        transform = Affine(1.0, 0, x - 64, 0, -1.0, y)
    drawn = read_label(
        path, height=HEIGHT, width=WIDTH, transform=transform, crs=crs,
        near=[Window(row_off=0, col_off=0, height=HEIGHT, width=WIDTH)],
    )  # fmt: skip
    if west is None:
        assert drawn[20, 40] == drawn[20, 90] == 1
        assert 1900 < drawn.sum() < 2300
    else:
        np.testing.assert_array_equal(drawn, pixels())


@pytest.mark.parametrize("how", SPELT)
@pytest.mark.parametrize("west", [EAST, EAST - 360])
def test_an_area_of_interest_over_180_degrees(tmp_path, how, west):
    path = write(tmp_path / "a.geojson", [SPELT[how]])
    area = read_aoi(str(path), Grid(height=HEIGHT, width=WIDTH, transform=grid_from(west), crs="EPSG:4326"))
    expected = shapely.box(34, 10, 94, 40)
    assert shapely.symmetric_difference(area, expected).area < 1e-4


def test_a_scene_at_a_pole(tmp_path):
    """A polar projection repeats nothing, and takes all longitudes."""
    transform = Affine(100.0, 0, -3200, 0, -100.0, 3200)
    to_degrees = pyproj.Transformer.from_crs("EPSG:3413", "EPSG:4326", always_xy=True)
    # From a side of the pole to the other, over 180 degrees.
    ring = [transform @ corner for corner in ((10, 5), (50, 5), (50, 20), (10, 20))]
    shape = shapely.Polygon(np.column_stack(to_degrees.transform(*np.transpose(ring))))
    drawn = read_label(
        write(tmp_path / "a.geojson", [shape]), height=64, width=64, transform=transform, crs="EPSG:3413"
    )
    np.testing.assert_array_equal(drawn, pixels((5, 20), (10, 50), (64, 64)))
