import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine

from geochip.labels import LabelError
from geochip.windows import Window
from helpers import UTM, box, open_label, read_label, write_label

NAMES = ("background", "building", "road")


def line(transform, *points):
    """A GeoJSON line through (column, row) points of a grid."""
    return {"type": "LineString", "coordinates": [list(transform @ point) for point in points]}


def kinds(*values):
    return [{"kind": value} for value in values]


def expected(height, width, *boxes):
    """A label by hand: (row, col, height, width, value) in the order of drawing."""
    label = np.zeros((height, width), np.uint8)
    for row, col, rows, cols, value in boxes:
        label[row : row + rows, col : col + cols] = value
    return label


def test_class_map_and_ignored_values(tmp_path):
    boxes = [box(UTM, 0, 0, 6, 6), box(UTM, 4, 4, 6, 6), box(UTM, 8, 8, 6, 6), box(UTM, 12, 0, 4, 4)]
    path = write_label(tmp_path / "a.geojson", boxes, properties=kinds("unsure", "house", "7", "shed"))
    label = read_label(
        path, height=20, width=20, classes=NAMES, class_property="kind",
        class_map={"house": "building", "7": "road", "shed": "building"}, ignore=("unsure",),
    )  # fmt: skip
    # The ignored one comes first in the file and lies on top all the same.
    np.testing.assert_array_equal(
        label, expected(20, 20, (4, 4, 6, 6, 1), (8, 8, 6, 6, 2), (12, 0, 4, 4, 1), (0, 0, 6, 6, 255))
    )


def test_class_map_of_numbers_where_one_is_missing(tmp_path):
    path = write_label(
        tmp_path / "a.geojson", [box(UTM, 0, 0, 2, 2), None, box(UTM, 4, 4, 2, 2)], properties=kinds(7, None, 8)
    )
    label = read_label(
        path, height=9, width=9, classes=NAMES, class_property="kind", class_map={"7": "road", "8": "building"}
    )
    np.testing.assert_array_equal(label, expected(9, 9, (0, 0, 2, 2, 2), (4, 4, 2, 2, 1)))


def test_errors_of_class_maps(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)] * 2, properties=kinds("house", "shed"))
    how = {"height": 9, "width": 9, "classes": NAMES, "class_property": "kind"}
    with pytest.raises(
        LabelError,
        match=r"a.geojson: feature 1 has kind = 'shed', which is not in labels.class_map \(house\); add it there or to labels.ignore, or mend the file",
    ):
        read_label(path, class_map={"house": "building"}, **how)
    # A class's own name is none of the map's values.
    with pytest.raises(
        LabelError, match=r"feature 0 has kind = 'house', which is not in labels.class_map \(building\)"
    ):
        read_label(path, class_map={"building": "building"}, **how)


def test_the_more_important_class_lies_on_top_and_the_later_of_equals(tmp_path):
    names = ("0", "a", "b", "c", "d")
    boxes = [box(UTM, 0, column, 10, 6) for column in (0, 2, 4, 6, 8)]
    path = write_label(tmp_path / "a.geojson", boxes, properties=kinds("b", "a", "c", "d", "b"))

    def row(*priority):
        label = read_label(path, height=1, width=14, classes=names, class_property="kind", priority=priority)
        return "".join(names[number] for number in label[0])

    assert row() == "bbaaccddbbbbbb"
    assert row("b", "c") == "bbbbbbccbbbbbb"
    assert row("c", "b") == "bbbbccccccbbbb"
    # Of those that are not named, the later one wins.
    assert row("d", "a") == "bbaaaaddddddbb"


def test_all_touched(tmp_path):
    # From a quarter into a pixel to three quarters into another one: two pixels' centres lie within.
    small = box(UTM, 2.25, 3.25, 2.0, 1.5)
    path = write_label(tmp_path / "a.geojson", [small])
    np.testing.assert_array_equal(read_label(path, height=9, width=9), expected(9, 9, (2, 3, 2, 2, 1)))
    # A polygon that ends on a pixel's border touches the pixel behind it for GDAL; this one does not.
    np.testing.assert_array_equal(
        read_label(path, height=9, width=9, all_touched=True), expected(9, 9, (2, 3, 3, 2, 1))
    )


def test_points_and_lines_are_a_pixel_wide_unless_buffered(tmp_path):
    point = {"type": "Point", "coordinates": list(UTM @ (2.5, 2.5))}
    path = write_label(tmp_path / "a.geojson", [point, line(UTM, (6.5, 10.5), (13.5, 10.5))])
    np.testing.assert_array_equal(
        read_label(path, height=20, width=20), expected(20, 20, (2, 2, 1, 1, 1), (10, 6, 1, 8, 1))
    )


def test_buffer_in_pixels_by_class(tmp_path):
    lines = [line(UTM, (10, 10), (30, 10)), line(UTM, (10, 25), (30, 25)), box(UTM, 40, 10, 2, 2)]
    path = write_label(tmp_path / "a.geojson", lines, properties=kinds("road", "path", "road"))
    label = read_label(
        path, height=50, width=40, classes=("background", "road", "path"), class_property="kind",
        buffer={"road": 3.0, "path": 1.0},
    )  # fmt: skip
    np.testing.assert_array_equal(np.flatnonzero(label[:, 20]), [7, 8, 9, 10, 11, 12, 24, 25])
    assert label[24, 20] == 2
    # Round ends, of the line's width; and polygons stay as they are.
    np.testing.assert_array_equal(np.flatnonzero(label[10]), np.arange(7, 33))
    assert np.flatnonzero(label[7]).tolist() == list(range(8, 32))
    np.testing.assert_array_equal(label[35:], expected(15, 40, (5, 10, 2, 2, 1)))
    # The same as buffering with shapely on the map: half a metre a pixel.
    road = shapely.geometry.shape(lines[0]).buffer(1.5)
    theirs = rasterio.features.rasterize([road], out_shape=(20, 40), transform=UTM, dtype="uint8")
    np.testing.assert_array_equal(label[:20], theirs)


def test_a_buffer_reaches_into_the_scene_from_outside(tmp_path):
    point = {"type": "Point", "coordinates": list(UTM @ (-2.0, 5.0))}
    path = write_label(tmp_path / "a.geojson", [point])
    assert not read_label(path, height=10, width=10).any()
    assert np.flatnonzero(read_label(path, height=10, width=10, buffer=5.0)[4]).tolist() == [0, 1, 2]


def test_ignored_lines_get_the_largest_buffer(tmp_path):
    path = write_label(tmp_path / "a.geojson", [line(UTM, (0, 10), (20, 10))], properties=kinds("?"))
    label = read_label(
        path, height=20, width=20, classes=NAMES, class_property="kind", ignore=("?",),
        buffer={"road": 4.0, "building": 1.0},
    )  # fmt: skip
    assert np.flatnonzero(label[:, 10] == 255).tolist() == [6, 7, 8, 9, 10, 11, 12, 13]


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:4326", Affine(1e-5, 0, 10, 0, -1e-5, 60)),
        ("EPSG:3857", Affine(1, 0, 1_113_194.9, 0, -1, 8_399_737.9)),
        ("EPSG:32632", Affine.translation(555_776, 6_651_832) * Affine.rotation(30) * Affine.scale(0.7, -1.1)),
        ("EPSG:2263", Affine(2, 0, 984_000, 0, -2, 200_000)),
    ],
    ids=["degrees", "web mercator", "turned", "feet"],
)
def test_buffer_in_metres_is_metres_on_the_ground(tmp_path, crs, transform):
    side = 101
    at = (50.5, 50.5)
    path = write_label(tmp_path / "a.geojson", [{"type": "Point", "coordinates": list(transform @ at)}], crs=crs)
    label = read_label(path, height=side, width=side, transform=transform, crs=crs, buffer=12.0, buffer_units="metres")
    # How far each pixel's centre is from the point, by a geodesic.
    rows, cols = np.indices((side, side)) + 0.5
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*(transform @ (cols.ravel(), rows.ravel())))
    centre = to_degrees.transform(*(transform @ at))
    count = lon.size
    distance = pyproj.Geod(ellps="WGS84").inv(np.full(count, centre[0]), np.full(count, centre[1]), lon, lat)[2]
    distance = distance.reshape(side, side)
    # A circle is drawn as a polygon of 64 corners.
    assert label[distance < 11.9].all()
    assert not label[distance > 12.05].any()
    assert label.any()
    assert not label[:, [0, -1]].any()


def test_metres_without_a_crs_are_an_error(tmp_path):
    path = write_label(tmp_path / "a.geojson", [line(UTM, (0, 0), (5, 5))], crs=None)
    with pytest.raises(
        LabelError,
        match=r"labels.buffer_units: metres cannot be told in pixels here \(the image has no CRS\); use pixels, or assign a CRS",
    ):
        read_label(path, height=9, width=9, crs=None, buffer=2.0, buffer_units="metres")
    assert read_label(path, height=9, width=9, crs=None, buffer=2.0).any()
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]'
    path = write_label(tmp_path / "b.geojson", [line(UTM, (0, 0), (5, 5))], crs=local)
    with pytest.raises(LabelError, match=r"\(the image's CRS is a local one \(site\)\)"):
        read_label(path, height=9, width=9, crs=local, buffer=2.0, buffer_units="metres")


BOW_TIE = {"type": "Polygon", "coordinates": [[list(UTM @ p) for p in ((0, 0), (8, 8), (8, 0), (0, 8), (0, 0))]]}


def in_bow_tie():
    """Where its pixels have their centres: left and right of the crossing; and which do not lie on an edge."""
    rows, cols = np.abs(np.indices((8, 8)) + 0.5 - 4)
    return rows < cols, rows != cols


def test_invalid_polygons_are_mended_and_counted(tmp_path):
    flat = {"type": "Polygon", "coordinates": [[list(UTM @ p) for p in ((0, 12), (8, 12), (4, 12), (0, 12))]]}
    # With a thread of no width, which make_valid leaves as a line.
    thread = {
        "type": "Polygon",
        "coordinates": [[list(UTM @ p) for p in ((10, 0), (13, 0), (18, 0), (13, 0), (13, 3), (10, 3), (10, 0))]],
    }
    path = write_label(tmp_path / "a.geojson", [BOW_TIE, flat, thread, box(UTM, 15, 15, 3, 3)])
    with open_label(path, height=20, width=20) as label:
        found = label.read(Window(row_off=0, col_off=0, height=20, width=20))
        assert label.mended == 3
    inside, clear = in_bow_tie()
    np.testing.assert_array_equal(found[:8, :8][clear], inside[clear])
    found[:8, :8] = 0
    np.testing.assert_array_equal(found, expected(20, 20, (0, 10, 3, 3, 1), (15, 15, 3, 3, 1)))


def test_a_mended_polygon_stays_where_it_was_in_the_order(tmp_path):
    boxes = [box(UTM, 0, 0, 8, 8), BOW_TIE, box(UTM, 3, 0, 2, 1)]
    path = write_label(tmp_path / "a.geojson", boxes, properties=kinds("building", "road", "building"))
    label = read_label(path, height=8, width=8, classes=NAMES, class_property="kind")
    inside, clear = in_bow_tie()
    by_hand = np.where(inside, 2, 1)
    by_hand[3:5, 0] = 1
    np.testing.assert_array_equal(label[clear], by_hand[clear])


def test_a_collection_with_an_invalid_member_counts_once(tmp_path):
    two = {"type": "MultiPolygon", "coordinates": [BOW_TIE["coordinates"], BOW_TIE["coordinates"]]}
    path = write_label(tmp_path / "a.geojson", [two, box(UTM, 10, 10, 2, 2)])
    with open_label(path, height=20, width=20) as label:
        assert label.mended == 1


def test_a_coordinate_that_is_no_number_is_an_error(tmp_path):
    frame = gpd.GeoDataFrame(geometry=[shapely.Point(np.inf, 4_003_999)], crs="EPSG:32611")
    frame.to_file(tmp_path / "a.gpkg")
    with pytest.raises(LabelError, match=r"label .*a.gpkg holds a shape with a coordinate that is no number; mend it"):
        read_label(tmp_path / "a.gpkg", height=9, width=9)
