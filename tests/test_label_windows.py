import json
import os
import subprocess
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio.features
import shapely
from affine import Affine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geochip.errors import WorkError
from geochip.labels import Grid, LabelError, indexed_label, read_aoi
from geochip.windows import Window
from helpers import UTM, box, open_label, read_label, write_label

HEIGHT, WIDTH = 1100, 1300
UNIT = Affine(1, 0, 0, 0, -1, 0)


def window(row_off, col_off, height, width):
    return Window(row_off=row_off, col_off=col_off, height=height, width=width)


def through_centres(count, height, width):
    """Polygons on UNIT whose edges pass through pixels' centres as nearly as numbers can: the last bit decides."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(count):
        row, col = rng.integers(0, height) + 0.5, rng.integers(0, width) + 0.5
        angle = rng.uniform(0, 2 * np.pi, 2)
        reach = rng.uniform(20, 400, 3)
        ends = [
            (col + reach[0] * np.cos(angle[0]), row + reach[0] * np.sin(angle[0])),
            (col - reach[1] * np.cos(angle[0]), row - reach[1] * np.sin(angle[0])),
            (col + reach[2] * np.cos(angle[1]), row + reach[2] * np.sin(angle[1])),
        ]
        found.append(shapely.Polygon([UNIT @ end for end in ends]))
    return found


def write_shapes(path, shapes, properties=None, crs=None):
    return write_label(path, [shapely.geometry.mapping(shape) for shape in shapes], crs=crs, properties=properties)


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    shapes = through_centres(600, HEIGHT, WIDTH)
    path = write_shapes(
        tmp_path_factory.mktemp("labels") / "a.geojson", shapes, [{"kind": str(k % 5)} for k in range(len(shapes))]
    )
    how = {
        "height": HEIGHT, "width": WIDTH, "transform": UNIT, "crs": None, "classes": tuple("01234"), "class_property": "kind",
    }  # fmt: skip
    return path, how, read_label(path, **how)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1), st.integers(1, 500), st.integers(1, 500))
def test_a_window_is_the_slice_of_the_whole_to_the_last_bit(edges, row, col, height, width):
    path, how, whole = edges
    here = window(row, col, height, width)
    with open_label(path, near=[here], **how) as label:
        found = label.read(here)
    inside = whole[here.slices]
    np.testing.assert_array_equal(found[: inside.shape[0], : inside.shape[1]], inside)
    # Outside of the scene.
    found[: inside.shape[0], : inside.shape[1]] = 255
    assert (found == 255).all()


def test_windows_that_together_cover_the_scene_are_its_slices_too(edges):
    path, how, whole = edges
    rng = np.random.default_rng(0)
    near = [window(int(row), int(col), 300, 300) for row, col in rng.integers(0, (800, 1000), (40, 2))]
    with open_label(path, near=near, **how) as label:
        for here in near:
            found = label.read(here)
            np.testing.assert_array_equal(found, whole[here.slices])
            # It is the caller's to change.
            found[:] = 77


def test_all_is_drawn_as_rasterio_does(edges):
    path, _, whole = edges
    frame = gpd.read_file(path)
    pairs = zip(frame.geometry, frame.kind.astype(int), strict=True)
    theirs = rasterio.features.rasterize(pairs, out_shape=(HEIGHT, WIDTH), transform=UNIT, dtype="uint8")
    # Nothing but the pixels whose centres an edge was laid through may differ.
    assert (whole != theirs).sum() < 100
    assert set(np.unique(whole)) == set(range(5))


@pytest.mark.parametrize("transform", [UTM, Affine(0.5, 0, 664_000, 0, 0.5, 4_000_000), UTM @ Affine.rotation(90)])
def test_edges_just_through_centres_fall_as_they_do_for_rasterio(tmp_path, transform):
    rng = np.random.default_rng(8)
    halves = [box(transform, *(rng.integers(0, 80, 4) / 2).tolist()) for _ in range(40)]
    diamonds = [
        {
            "type": "Polygon",
            "coordinates": [[list(transform @ (c + x, r + y)) for x, y in ((0, -5), (5, 0), (0, 5), (-5, 0), (0, -5))]],
        }
        for r, c in (rng.integers(0, 80, (40, 2)) / 2).tolist()
    ]
    shapes = [shape for pair in zip(halves, diamonds, strict=True) for shape in pair]
    shapes = [shape for shape in shapes if shapely.geometry.shape(shape).area > 0]
    path = write_label(tmp_path / "a.geojson", shapes, properties=[{"kind": k % 7} for k in range(len(shapes))])
    pairs = [(shape, k % 7) for k, shape in enumerate(shapes)]
    theirs = rasterio.features.rasterize(pairs, out_shape=(60, 60), transform=transform, dtype="uint8")
    label = read_label(path, height=60, width=60, transform=transform, classes=tuple("0123456"), class_property="kind")
    np.testing.assert_array_equal(label, theirs)


def test_polygons_of_very_many_vertices(tmp_path):
    angle = np.linspace(0, 2 * np.pi, 30_000, endpoint=False)
    rng = np.random.default_rng(1)
    radius = 480 + 40 * np.sin(9 * angle) + rng.uniform(0, 1, len(angle))
    star = shapely.Polygon(np.column_stack((650.3 + radius * np.cos(angle), -550.2 + radius * np.sin(angle))))
    path = write_shapes(tmp_path / "a.geojson", [star])
    theirs = rasterio.features.rasterize([star], out_shape=(HEIGHT, WIDTH), transform=UNIT, dtype="uint8")
    how = {"height": HEIGHT, "width": WIDTH, "transform": UNIT, "crs": None}
    whole = read_label(path, **how)
    np.testing.assert_array_equal(whole, theirs)
    with open_label(path, near=[window(100, 100, 300, 300)], **how) as label:
        np.testing.assert_array_equal(label.read(window(100, 100, 300, 300)), theirs[100:400, 100:400])


def test_a_window_that_was_not_announced_is_a_defect(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)])
    with open_label(path, height=100, width=100, near=[window(0, 0, 20, 20), window(10, 10, 20, 20)]) as label:
        assert label.read(window(0, 0, 20, 20)).sum() == 16
        with pytest.raises(ValueError, match=r"lies outside of the windows that label .*a.geojson was opened for"):
            label.read(window(0, 15, 20, 20))
    # What hangs over is no part of the scene.
    with open_label(path, height=100, width=100, near=[window(90, 90, 20, 20)]) as label:
        assert (label.read(window(90, 90, 50, 50))[10:] == 255).all()


@pytest.mark.parametrize("size", [40, 64, 23])
def test_a_resampled_window_is_drawn_on_its_own_pixels(tmp_path, size):
    rng = np.random.default_rng(4)
    triangles = [
        shapely.Polygon(UTM.c + xy * (0.5, 0) + (0, UTM.f) - xy * (0, 0.5)) for xy in rng.uniform(0, 100, (9, 3, 2))
    ]
    path = write_shapes(tmp_path / "a.geojson", triangles, crs="EPSG:32611")
    here = window(20, 31, 40, 40)
    with open_label(path, height=100, width=100, near=[here]) as label:
        found = label.read(here, size)
    finer = UTM @ Affine.translation(31, 20) @ Affine.scale(40 / size)
    theirs = rasterio.features.rasterize(triangles, out_shape=(size, size), transform=finer, dtype="uint8")
    np.testing.assert_array_equal(found, theirs)


def test_a_resampled_window_that_hangs_over(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 200, 200)])
    with open_label(path, height=100, width=100) as label:
        found = label.read(window(80, 70, 40, 40), 20)
        odd = label.read(window(80, 70, 40, 40), 7)
    # Two pixels become one: 10 rows of the scene are left, and 15 columns.
    assert (found[:10, :15] == 1).all()
    assert (found == 255).sum() == 400 - 150
    # The fourth row's centres lie just on the scene's edge: nothing of the scene is there.
    assert (odd[:3, :5] == 1).all()
    assert (odd == 255).sum() == 49 - 15


def test_outside_of_the_area_of_interest(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 30, 30)])
    areas = write_label(
        tmp_path / "aoi.geojson", [box(UTM, 10, 10, 40, 20), box(UTM, -50, 25, 70, 300), box(UTM, 5000, 0, 9, 9)]
    )
    grid = Grid(height=60, width=50, transform=UTM, crs="EPSG:32611")
    aoi = read_aoi(str(areas), grid)
    assert shapely.equals(aoi, shapely.union(shapely.box(10, 10, 30, 50), shapely.box(25, 0, 50, 20)))
    by_hand = np.full((60, 50), 255)
    by_hand[10:50, 10:30] = by_hand[:20, 25:] = 0
    by_hand[:30, :30][by_hand[:30, :30] == 0] = 1
    np.testing.assert_array_equal(read_label(path, height=60, width=50, aoi=aoi), by_hand)
    with open_label(path, height=60, width=50, aoi=aoi) as label:
        # Each pixel twice as fine in both directions.
        twice = np.repeat(np.repeat(by_hand[5:25, 15:35], 2, axis=0), 2, axis=1)
        np.testing.assert_array_equal(label.read(window(5, 15, 20, 20), 40), twice)


def test_an_area_in_degrees_and_one_elsewhere(tmp_path):
    grid = Grid(height=60, width=50, transform=UTM, crs="EPSG:32611")
    frame = gpd.GeoDataFrame(geometry=[shapely.geometry.shape(box(UTM, 10, 10, 20, 20))], crs="EPSG:32611")
    here = frame.to_crs("EPSG:4326").geometry[0]
    # What has no place in the scene's zone, and must not be asked for one.
    nowhere = shapely.Polygon([(0, 0), (10, 0), (10, 95), (0, 0)])
    path = write_shapes(tmp_path / "aoi.geojson", [nowhere, here], crs="missing")
    assert read_aoi(str(path), grid).area == pytest.approx(400, rel=1e-4)
    elsewhere = write_shapes(tmp_path / "b.geojson", [nowhere], crs="missing")
    empty = read_aoi(str(elsewhere), grid)
    assert empty.is_empty
    label = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 30, 30)])
    assert (read_label(label, height=60, width=50, aoi=empty) == 255).all()


def test_errors_of_areas(tmp_path):
    grid = Grid(height=60, width=50, transform=UTM, crs="EPSG:32611")
    path = write_label(tmp_path / "aoi.geojson", [{"type": "Point", "coordinates": [664_001, 4_003_999]}])
    with pytest.raises(
        LabelError, match=r"aoi.geojson holds no polygon, so no area of interest; draw one, or set chips.aoi to null"
    ):
        read_aoi(str(path), grid)
    with pytest.raises(LabelError, match=r"none.geojson could not be read \(No such file or directory\)"):
        read_aoi(str(tmp_path / "none.geojson"), grid)
    path = write_label(tmp_path / "aoi.geojson", [box(UTM, 0, 0, 4, 4)])
    with pytest.raises(LabelError, match="the image has no CRS"):
        read_aoi(str(path), Grid(height=60, width=50, transform=UTM, crs=None))
    # It would lie elsewhere, and nothing be left of the scene.
    path = write_label(tmp_path / "aoi.geojson", [box(UTM, 0, 0, 4, 4)], crs="missing")
    with pytest.raises(LabelError, match="which are no degrees, but is in EPSG:4326"):
        read_aoi(str(path), grid)


# More than a mebibyte, from which on a file is asked for a part of its features.
@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """9000 boxes in a scene of 3000 x 3000, that overlap; a class and an id of its own each."""
    rng = np.random.default_rng(5)
    corners = rng.integers(0, 2990, (9000, 2))
    boxes = [box(UTM, int(row), int(col), 25, 25) for row, col in corners]
    properties = [{"kind": "abc"[k % 3], "n": k, "tags": ["x"], "when": None} for k in range(len(boxes))]
    path = write_label(tmp_path_factory.mktemp("many") / "a.geojson", boxes, properties=properties)
    assert path.stat().st_size > 2**20
    label = np.zeros((3000, 3000), np.uint8)
    for k, (row, col) in enumerate(corners):
        label[row : row + 25, col : col + 25] = 1 + k % 3
    return path, label


MANY = {"height": 3000, "width": 3000, "classes": ("0", "a", "b", "c"), "class_property": "kind"}


def with_ids(path, directory):
    """GDAL knows features by their ids; these have nothing to do with their order."""
    document = json.loads(path.read_text())
    for k, feature in enumerate(document["features"]):
        feature["id"] = 20_000 - k
    (directory / "ids.geojson").write_text(json.dumps(document))
    return directory / "ids.geojson"


def as_geopackage(path, directory):
    gpd.read_file(path).drop(columns=["tags", "when"]).to_file(directory / "a.gpkg")
    return directory / "a.gpkg"


def as_index(path, directory):
    return indexed_label(str(path), directory, at_least=0)


def in_degrees(path, directory):
    gpd.read_file(path).drop(columns=["tags", "when"]).to_crs("EPSG:4326").to_file(directory / "a.gpkg")
    return directory / "a.gpkg"


@pytest.mark.parametrize("form", [None, with_ids, as_geopackage, as_index, in_degrees])
def test_a_part_of_a_large_file_is_read_in_the_file_s_order(many, tmp_path, form):
    path, whole = many
    path = form(path, tmp_path) if form else path
    rng = np.random.default_rng(6)
    scattered = [window(int(row), int(col), 60, 80) for row, col in rng.integers(0, 2950, (12, 2))]
    # Two that are read apart, and between them features that both of them know.
    neighbours = [window(700, 100, 324, 600), window(1024, 100, 100, 600), window(2900, 2900, 90, 90)]
    for near in ([window(1200, 700, 90, 90)], scattered, neighbours):
        with open_label(path, near=near, **MANY) as label:
            for here in near:
                found, inside = label.read(here), whole[here.slices]
                np.testing.assert_array_equal(found[: inside.shape[0], : inside.shape[1]], inside)
    np.testing.assert_array_equal(read_label(path, **MANY), whole)


def test_only_the_windows_neighbourhood_of_a_large_file_is_read(many, tmp_path):
    path, _ = many
    document = json.loads(path.read_text())
    document["features"][7]["properties"]["kind"] = "nonsense"
    corner = document["features"][7]["geometry"]["coordinates"][0][0]
    col, row = (int(value) for value in ~UTM @ tuple(corner))
    broken = tmp_path / "a.geojson"
    broken.write_text(json.dumps(document))
    far = window((row + 1500) % 2900, (col + 1500) % 2900, 50, 50)
    for file in (broken, as_index(broken, tmp_path), as_geopackage(broken, tmp_path)):
        with open_label(file, near=[far], **MANY):
            pass
        number = 8 if str(file).endswith("gpkg") else 7
        with (
            pytest.raises(LabelError, match=rf"feature {number} has kind = 'nonsense'"),
            open_label(file, near=[window(row, col, 5, 5), far], **MANY),
        ):
            pass


@pytest.mark.parametrize("how", [{"buffer": 220.0}, {"buffer": 110.0, "buffer_units": "metres"}])
def test_a_buffered_point_far_from_the_window_is_read(tmp_path, how):
    points = [{"type": "Point", "coordinates": list(UTM @ (300.5, 5.5 + k))} for k in range(12_000)]
    path = write_label(tmp_path / "a.geojson", points)
    assert path.stat().st_size > 2**20
    here = window(1000, 0, 10, 100)
    with open_label(path, height=3000, width=3000, near=[here], **how) as label:
        found = label.read(here)
    # A circle's polygon lies a little within the circle.
    assert 80 <= np.flatnonzero(found[5])[0] <= 81
    assert found[5, 81:].all()


def test_a_large_file_in_degrees_over_the_date_line(tmp_path):
    # Zone 1 begins at 180 degrees, 166021 m on the equator: the scene lies to both sides.
    transform = Affine(1, 0, 165_021, 0, -1, 2000)
    cells = [(row, col) for row in range(0, 2000, 20) for col in range(0, 2000, 20)]
    to_degrees = pyproj.Transformer.from_crs("EPSG:32601", "EPSG:4326", always_xy=True)
    x, y = to_degrees.transform(*(transform @ np.array([(col + 10, row + 10) for row, col in cells]).T))
    assert x.min() < -179
    assert x.max() > 179
    points = [{"type": "Point", "coordinates": list(at)} for at in zip(x.tolist(), y.tolist(), strict=True)]
    path = write_label(tmp_path / "a.geojson", points, crs="missing")
    assert path.stat().st_size > 2**20
    here = window(500, 900, 200, 200)
    with open_label(path, height=2000, width=2000, transform=transform, crs="EPSG:32601", near=[here]) as label:
        assert label.read(here).sum() == 100


def test_an_edge_that_is_bent_from_one_crs_to_the_other(tmp_path):
    # Twenty kilometres along a parallel, which runs some metres south of the straight line in UTM.
    to_degrees = pyproj.Transformer.from_crs("EPSG:32611", "EPSG:4326", always_xy=True)
    west, east = to_degrees.transform(490_000, 4_003_990)[0], to_degrees.transform(510_000, 4_003_990)[0]
    north = to_degrees.transform(500_000, 4_003_990)[1]
    field = shapely.box(west, north - 0.1, east, north)
    how = {"height": 100, "width": 100, "crs": "EPSG:32611", "transform": Affine(1, 0, 500_000, 0, -1, 4_004_000)}
    here = window(6, 20, 3, 3)
    small = write_shapes(tmp_path / "a.geojson", [field], crs="missing")
    far = [shapely.Point(10 + k / 1000, 20) for k in range(12_000)]
    large = write_shapes(tmp_path / "b.geojson", [field, *far], crs="missing")
    assert large.stat().st_size > 2**20
    for path in (small, large):
        with open_label(path, near=[here], **how) as label:
            assert label.read(here).all(), path


def test_the_index_keeps_the_order_of_very_many_features(tmp_path):
    boxes = [box(UTM, 0, 0, 1, 1)] * 66_000
    kinds = ["a"] * len(boxes)
    boxes[5], boxes[65_540], kinds[65_540] = box(UTM, 5, 5, 3, 3), box(UTM, 5, 5, 2, 2), "b"
    path = write_label(tmp_path / "a.geojson", boxes, properties=[{"kind": kind} for kind in kinds])
    index = indexed_label(str(path), tmp_path, at_least=0)
    label = read_label(index, height=9, width=9, classes=("0", "a", "b"), class_property="kind")
    assert [(label == value).sum() for value in (1, 2)] == [1 + 5, 4]


def test_metres_called_degrees_show_in_a_part_of_a_large_file_too(many, tmp_path):
    path, _ = many
    document = json.loads(path.read_text())
    del document["crs"]
    (tmp_path / "a.geojson").write_text(json.dumps(document))
    with (
        pytest.raises(LabelError, match="which are no degrees, but is in EPSG:4326"),
        open_label(tmp_path / "a.geojson", near=[window(0, 0, 9, 9)], **MANY),
    ):
        pass


def test_the_index_is_made_once_and_anew_when_the_label_changes(many, tmp_path):
    path = tmp_path / "with space.geojson"
    path.write_text(many[0].read_text())
    directory = tmp_path / "made" / "here"
    assert indexed_label(str(path), directory) == str(path)
    first = indexed_label(str(path), directory, at_least=1000)
    assert first.startswith(str(directory / "with_space."))
    made = Path(first).stat()
    assert indexed_label(str(path), directory, at_least=1000) == first
    assert Path(first).stat() == made
    os.utime(path, (1, 1))
    assert indexed_label(str(path), directory, at_least=1000) != first
    # Nothing else is left over.
    assert len(list(directory.iterdir())) == 2


@pytest.mark.parametrize("crs", ["missing", None, "urn:ogc:def:crs:EPSG::32611", "EPSG:3857", "EPSG:2263"])
def test_the_index_has_the_crs_that_the_file_declares(tmp_path, crs):
    known = {"missing": "EPSG:4326"}.get(crs, crs)
    frame = gpd.GeoDataFrame(geometry=[shapely.geometry.shape(box(UTM, 3, 5, 4, 6))], crs=crs and "EPSG:32611")
    shape = (frame.to_crs(known) if crs else frame).geometry[0]
    path = write_shapes(tmp_path / "a.geojson", [shape, shapely.Polygon()], crs=crs)
    index = indexed_label(str(path), tmp_path, at_least=0)
    assert index.endswith(".fgb")
    scene = {"height": 20, "width": 30, "crs": crs and "EPSG:32611"}
    assert read_label(path, **scene).sum() == 24
    np.testing.assert_array_equal(read_label(index, **scene), read_label(path, **scene))


def test_formats_with_an_index_of_their_own_are_left_alone(tmp_path):
    for name in ("a.gpkg", "a.fgb", "a.tif", "a.shp"):
        (tmp_path / name).write_bytes(b"x")
        assert indexed_label(str(tmp_path / name), tmp_path / "index", at_least=0) == str(tmp_path / name)
    assert not (tmp_path / "index").exists()


def test_errors_of_indexes(tmp_path):
    path = tmp_path / "a.geojson"
    with pytest.raises(LabelError, match=r"a.geojson could not be read \(No such file or directory\)"):
        indexed_label(str(path), tmp_path / "index")
    path.write_text('{"type": "FeatureCollection", "features": [')
    with pytest.raises(LabelError, match=r"a.geojson could not be read as a vector file \(.*\); mend or remove it"):
        indexed_label(str(path), tmp_path / "index", at_least=0)
    ring = box(UTM, 0, 0, 4, 4)["coordinates"][0]
    write_label(path, [{"type": "Polygon", "coordinates": [ring[:-1]]}])
    with pytest.raises(LabelError, match=r"a.geojson could not be read as a vector file \(.*\); mend or remove it"):
        indexed_label(str(path), tmp_path / "index", at_least=0)
    table = tmp_path / "a.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(LabelError, match="holds no geometries"):
        indexed_label(str(table), tmp_path / "index", at_least=0)
    assert list((tmp_path / "index").iterdir()) == []
    write_label(path, [box(UTM, 0, 0, 4, 4)])
    (tmp_path / "file").write_text("")
    with pytest.raises(
        WorkError, match=r"its index could not be written to .*file \(.*\); make room there, or make it"
    ):
        indexed_label(str(path), tmp_path / "file", at_least=0)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from geochip.errors import WorkError
from geochip.labels import indexed_label
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    indexed_label(sys.argv[1], Path(sys.argv[2]), at_least=0)
except WorkError as error:
    print(error)
"""


def test_a_full_disk_leaves_no_half_index(many, tmp_path):
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, many[0], tmp_path / "index"], capture_output=True, text=True, check=False
    )
    assert "a.geojson: its index could not be written to" in finished.stdout, finished.stderr
    assert "index (" in finished.stdout
    assert list((tmp_path / "index").iterdir()) == []
