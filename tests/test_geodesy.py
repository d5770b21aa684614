"""Longitude is cyclic: outlines on the earth, and maps that come round again."""

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely

from geochip.chip_table import footprints
from geochip.geodesy import outlines, period_of, rolled_together


def square(x, y, width, height=None):
    """Corners of a rectangle whose upper left corner is (x, y)."""
    height = width if height is None else height
    return np.array([[(x, y), (x + width, y), (x + width, y - height), (x, y - height)]], np.float64)


def kilometres2(outline):
    """True area of an outline on the earth."""
    return abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(outline)[0]) / 1e6


@pytest.mark.parametrize(
    ("crs", "step"),
    [
        ("EPSG:4326", 360), ("EPSG:4269", 360), ("EPSG:4807", 400), ("EPSG:3857", 40_075_016.6856),
        ("EPSG:3395", 40_075_016.6856), ("EPSG:4087", 40_075_016.6856), ("EPSG:6933", 34_735_060.8903),
        # Web Mercator about the Pacific: its own edge lies at 30 degrees west.
        ("EPSG:3832", 40_075_016.6856), ("EPSG:32601", None), ("EPSG:3413", None), ("EPSG:5070", None),
        ("EPSG:4978", None), ('LOCAL_CS["a site of its own",UNIT["metre",1]]', None), ("no CRS", None),
    ],
)  # fmt: skip
def test_maps_that_repeat_themselves(crs, step):
    assert period_of(crs) == (None if step is None else pytest.approx(step, rel=1e-10))


@pytest.mark.parametrize(("crs", "x"), [("EPSG:4326", 179.99), ("EPSG:4326", -180.01), ("EPSG:4269", 179.99)])
def test_an_outline_over_180_degrees_is_cut_there(crs, x):
    (outline,) = outlines(square(x, -17, 0.02), crs)
    expected = shapely.union(shapely.box(179.99, -17.02, 180, -17), shapely.box(-180, -17.02, -179.99, -17))
    assert outline.geom_type == "MultiPolygon"
    assert shapely.symmetric_difference(outline, expected).area < 1e-9
    assert outline.bounds == (-180, pytest.approx(-17.02), 180, -17)


@pytest.mark.parametrize(("x", "west"), [(190, -170), (-190, 170), (359.5, -0.5), (540, -180)])
def test_longitudes_beyond_180_are_those_of_the_same_place(x, west):
    (outline,) = outlines(square(x, 5, 0.25), "EPSG:4326")
    assert outline.geom_type == "Polygon"
    assert outline.bounds == pytest.approx((west, 4.75, west + 0.25, 5))


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660", "EPSG:3857", "EPSG:3832"])
def test_an_outline_in_metres_over_180_degrees(crs):
    to_crs = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    (x, y), side = to_crs.transform(180, 52), 1000.0
    if crs == "EPSG:3857" and x < 0:
        x = -x
    (outline,) = outlines(square(x - side / 2, y + side / 2, side), crs)
    assert outline.geom_type == "MultiPolygon"
    assert len(outline.geoms) == 2
    assert outline.is_valid
    # Two narrow pieces and not the whole way round.
    assert all(piece.bounds[2] - piece.bounds[0] < 0.02 for piece in outline.geoms)
    stretch = np.cos(np.radians(52)) if crs in ("EPSG:3857", "EPSG:3832") else 1
    assert kilometres2(outline) == pytest.approx(stretch**2, rel=0.02)


@pytest.mark.parametrize(("crs", "pole"), [("EPSG:3413", 90), ("EPSG:3031", -90), ("EPSG:32661", 90)])
def test_an_outline_around_a_pole_reaches_the_pole(crs, pole):
    centre = 2_000_000 if crs == "EPSG:32661" else 0
    (outline,) = outlines(square(centre - 5000, centre + 5000, 10_000), crs)
    assert outline.is_valid
    low, high = sorted((pole, np.sign(pole) * 89.9))
    assert outline.bounds == (-180, pytest.approx(low, abs=0.07), 180, pytest.approx(high, abs=0.07))
    around = shapely.box(-180, min(pole, 0.9999 * pole), 180, max(pole, 0.9999 * pole))
    assert shapely.contains(outline, around)
    # A neighbour that does not hold the pole does not go around the world.
    (beside,) = outlines(square(centre + 20_000, centre + 5000, 10_000), crs)
    assert beside.bounds[2] - beside.bounds[0] < 45


@pytest.mark.parametrize(("crs", "x", "width"), [("EPSG:4326", -180, 360), ("EPSG:4326", 0, 360)])
def test_the_whole_earth_is_the_whole_earth(crs, x, width):
    (outline,) = outlines(square(x, 90, width, 180), crs)
    assert outline.bounds == (-180, -90, 180, 90)
    assert outline.area == 360 * 180


def test_what_is_nowhere_has_no_outline():
    somewhere, nowhere, unknown = square(5e5, 4e6, 100), square(1e12, 1e12, 100), square(np.nan, 0, 1)
    found = outlines(np.concatenate([nowhere, somewhere, unknown]), "EPSG:32611")
    assert [one is None for one in found] == [True, False, True]
    assert outlines(somewhere, 'LOCAL_CS["a site of its own",UNIT["metre",1]]').tolist() == [None]
    assert outlines(np.zeros((0, 4, 2)), "EPSG:4326").tolist() == []


def test_footprints_of_chips_are_cut_too():
    pixel = 1e-5
    transform = np.array([[pixel, 0, 180 + shift * pixel, 0, -pixel, -17] for shift in (-100, -32, 0)])
    left, middle, right = footprints(transform, np.array(["EPSG:4326"] * 3, object), 64)
    assert left.bounds == pytest.approx((180 - 100 * pixel, -17 - 64 * pixel, 180 - 36 * pixel, -17))
    assert right.bounds == pytest.approx((-180, -17 - 64 * pixel, -180 + 64 * pixel, -17))
    assert [piece.bounds[0] for piece in middle.geoms] == pytest.approx([-180, 180 - 32 * pixel])
    assert middle.area == pytest.approx((64 * pixel) ** 2)
    # As GeoParquet keeps them.
    frame = gpd.GeoDataFrame(geometry=[left, middle, right], crs="EPSG:4326")
    assert frame.is_valid.all()


def test_outlines_around_180_degrees_are_brought_side_by_side():
    across = outlines(square(179.9, 0, 0.2), "EPSG:4326")[0]
    west, east = shapely.box(-179, 0, -178, 1), shapely.box(178, 0, 179, 1)
    together = rolled_together(np.array([west, across, east], object))
    assert shapely.bounds(together)[:, [0, 2]].tolist() == pytest.approx(
        np.array([[181, 182], [179.9, 180.1], [178, 179]])
    )
    # Elsewhere nothing is moved.
    for others in ([west], [shapely.box(-3, 0, -2, 1), shapely.box(5, 0, 6, 1)], [shapely.box(-180, -90, 180, 90)], []):
        there = np.array(others, object)
        assert rolled_together(there) is there
