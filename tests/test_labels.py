import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio.features
import shapely
from affine import Affine

from geochip.labels import LabelError, label_crs
from helpers import UTM, box, read_label, write_label


def rasterize(
    path, *, crs="EPSG:32611", transform=UTM, classes=("background", "building"), height=20, width=30, **rules
):
    return read_label(path, crs=crs, transform=transform, classes=classes, height=height, width=width, **rules)


def test_boxes_become_just_their_pixels(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 3, 5, 4, 6), box(UTM, 18, 28, 10, 10)])
    expected = np.zeros((20, 30), np.uint8)
    expected[3:7, 5:11] = 1
    expected[18:, 28:] = 1
    np.testing.assert_array_equal(rasterize(path), expected)


def test_a_label_in_degrees_lands_on_a_grid_in_metres(tmp_path):
    frame = gpd.GeoDataFrame(geometry=[shapely.geometry.shape(box(UTM, 3, 5, 4, 6))], crs="EPSG:32611").to_crs(
        "EPSG:4326"
    )
    for name in ("urn:ogc:def:crs:OGC:1.3:CRS84", "missing", "EPSG:4326", "urn:ogc:def:crs:EPSG::4326"):
        path = write_label(tmp_path / "a.geojson", [shapely.geometry.mapping(frame.geometry[0])], crs=name)
        label = rasterize(path)
        assert label[3:7, 5:11].all(), name
        assert label.sum() == 24, name


def test_crs84_on_a_scene_in_degrees_is_not_moved_at_all(tmp_path):
    transform = Affine(2.7e-6, 0, -115.3, 0, -2.7e-6, 36.13)
    rng = np.random.default_rng(0)
    triangles = [
        {"type": "Polygon", "coordinates": [[list(transform @ tuple(point)) for point in (*corners, corners[0])]]}
        for corners in rng.uniform(-10, 110, (60, 3, 2))
    ]
    path = write_label(tmp_path / "a.geojson", triangles, crs="urn:ogc:def:crs:OGC:1.3:CRS84")
    expected = rasterio.features.rasterize(triangles, out_shape=(100, 100), transform=transform, dtype="uint8")
    label = rasterize(path, crs="EPSG:4326", transform=transform, height=100, width=100)
    np.testing.assert_array_equal(label, expected)


def test_heights_multipolygons_holes_and_missing_geometries(tmp_path):
    outer, hole = box(UTM, 2, 2, 8, 8)["coordinates"][0], box(UTM, 4, 4, 3, 3)["coordinates"][0]
    with_hole = {"type": "Polygon", "coordinates": [[[*p, 12.5] for p in outer], [[*p, 12.5] for p in hole]]}
    multi = {
        "type": "MultiPolygon",
        "coordinates": [box(UTM, 12, 1, 2, 2)["coordinates"], box(UTM, 12, 20, 3, 3)["coordinates"]],
    }
    path = write_label(tmp_path / "a.geojson", [with_hole, None, multi, {"type": "Polygon", "coordinates": []}])
    expected = np.zeros((20, 30), np.uint8)
    expected[2:10, 2:10] = 1
    expected[4:7, 4:7] = 0
    expected[12:14, 1:3] = 1
    expected[12:15, 20:23] = 1
    np.testing.assert_array_equal(rasterize(path), expected)


def test_an_empty_collection_is_all_background(tmp_path):
    assert not rasterize(write_label(tmp_path / "a.geojson", [])).any()
    assert not rasterize(write_label(tmp_path / "b.geojson", [None])).any()


def test_a_geopackage_is_a_label_too(tmp_path):
    frame = gpd.GeoDataFrame(geometry=[shapely.geometry.shape(box(UTM, 3, 5, 4, 6))], crs="EPSG:32611").to_crs(
        "EPSG:3857"
    )
    frame.to_file(tmp_path / "a.gpkg")
    assert rasterize(tmp_path / "a.gpkg").sum() == 24


def test_classes_by_attribute_and_the_later_one_wins(tmp_path):
    path = write_label(
        tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4), box(UTM, 2, 2, 4, 4), box(UTM, 10, 10, 2, 2)],
        properties=[{"kind": "road"}, {"kind": "building"}, {"kind": "background"}],
    )  # fmt: skip
    label = rasterize(path, classes=("background", "building", "road"), class_property="kind")
    assert label[1, 1] == 2
    assert label[3, 3] == 1
    assert label[11, 11] == 0


def test_errors_of_classes(tmp_path):
    path = write_label(
        tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)] * 2, properties=[{"kind": "road"}, {"kind": "shed"}]
    )
    with pytest.raises(
        LabelError,
        match=r"feature 1 has kind = 'shed', which is not in data.classes \(background, road\); add it there",
    ):
        rasterize(path, classes=("background", "road"), class_property="kind")
    with pytest.raises(LabelError, match=r"has no property 'type', which labels.class_property asks for; it has kind"):
        rasterize(path, class_property="type")


@pytest.mark.parametrize("name", ["EPSG:999999", "nonsense", 5])
def test_an_unknown_crs_is_an_error_where_gdal_would_take_degrees(tmp_path, name):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)], crs=name)
    with pytest.raises(LabelError, match=f"is in an unknown CRS: {name!r}; write one that PROJ knows"):
        label_crs(str(path))
    with pytest.raises(LabelError, match="unknown CRS"):
        rasterize(path)


def test_the_crs_is_found_behind_many_features(tmp_path):
    document = json.loads(write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)] * 2000).read_text())
    document["crs"] = document.pop("crs")
    (tmp_path / "a.geojson").write_text(json.dumps(document))
    assert (tmp_path / "a.geojson").stat().st_size > 200_000
    assert label_crs(str(tmp_path / "a.geojson")).to_epsg() == 32611


def test_errors_of_files(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": [')
    with pytest.raises(
        LabelError, match=r"label .*a.geojson could not be read as a vector file \(.*\); mend or remove it"
    ):
        rasterize(path)
    path.write_text(
        '{"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name" "x"}}, "features": []}'
    )
    with pytest.raises(LabelError, match="is no valid JSON"):
        label_crs(str(path))
    with pytest.raises(LabelError, match=r"label .*none.geojson could not be read \(No such file or directory\)"):
        label_crs(str(tmp_path / "none.geojson"))
    table = tmp_path / "a.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(LabelError, match="holds no geometries; it must be a vector file such as GeoJSON"):
        rasterize(table)


def test_errors_of_crs_on_one_side(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)])
    with pytest.raises(LabelError, match=r"the image has no CRS while label .* is in EPSG:32611; assign one"):
        rasterize(path, crs=None)
    path = write_label(tmp_path / "b.geojson", [box(UTM, 0, 0, 4, 4)], crs=None)
    with pytest.raises(LabelError, match=r"label .*b.geojson has no CRS while the image is in EPSG:32611"):
        rasterize(path)
    assert rasterize(path, crs=None).sum() == 16


def test_metres_called_degrees_are_an_error(tmp_path):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 4, 4)], crs="missing")
    with pytest.raises(
        LabelError, match=r"has coordinates such as \(664000, 4.004e\+06\), which are no degrees, but is in EPSG:4326"
    ):
        rasterize(path)


def test_coordinates_that_cannot_be_projected_are_an_error(tmp_path):
    pole = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 95], [0, 0]]]}
    path = write_label(tmp_path / "a.geojson", [pole], crs="missing")
    with pytest.raises(LabelError, match="coordinates outside of what EPSG:4326 can be turned into EPSG:32611 for"):
        rasterize(path)


def test_a_ring_that_is_not_closed_is_an_error_of_that_file(tmp_path):
    ring = box(UTM, 0, 0, 4, 4)["coordinates"][0]
    for broken in (ring[:-1], ring[:2]):
        path = write_label(tmp_path / "a.geojson", [{"type": "Polygon", "coordinates": [broken]}])
        with pytest.raises(
            LabelError, match=r"label .*a.geojson could not be read as a vector file \(.*\); mend or remove it"
        ):
            rasterize(path)


def test_collections_are_drawn_part_by_part_in_the_order_of_features(tmp_path):
    empty = {"type": "Polygon", "coordinates": []}
    inner = {"type": "GeometryCollection", "geometries": [box(UTM, 5, 5, 2, 2), empty]}
    collection = {"type": "GeometryCollection", "geometries": [box(UTM, 0, 0, 3, 3), empty, inner]}
    path = write_label(
        tmp_path / "a.geojson", [collection, box(UTM, 2, 2, 2, 2)], properties=[{"kind": "a"}, {"kind": "b"}]
    )
    label = rasterize(path, classes=("0", "a", "b"), class_property="kind")
    assert [(label == value).sum() for value in (1, 2)] == [8 + 4, 4]
    assert label[2, 2] == 2


def test_classes_that_are_numbers_and_features_without_a_class(tmp_path):
    boxes = [box(UTM, 0, 0, 4, 4), box(UTM, 8, 8, 2, 2)]
    path = write_label(tmp_path / "a.geojson", boxes, properties=[{"kind": 1}, {"kind": None}])
    with pytest.raises(LabelError, match=r"feature 1 has no value of 'kind'; say with labels.no_value what"):
        rasterize(path, classes=("0", "1"), class_property="kind")
    # What is drawn nowhere need not have a class.
    path = write_label(tmp_path / "b.geojson", [boxes[0], None], properties=[{"kind": 1}, {"kind": None}])
    assert rasterize(path, classes=("0", "1"), class_property="kind").sum() == 16


def test_a_local_grid_cannot_be_related_to_degrees(tmp_path):
    path = write_label(tmp_path / "a.geojson", [{"type": "Point", "coordinates": [1, 1]}], crs="missing")
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]'
    with pytest.raises(
        LabelError, match=r"a.geojson is in EPSG:4326, which PROJ cannot relate to the image's CRS \(.*give both one"
    ):
        rasterize(path, crs=local)
