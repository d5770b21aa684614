"""The CRS of a label, and what a file is: by structure, not by text that stands somewhere in it."""

import json

import geopandas as gpd
import numpy as np
import pyogrio
import pytest
import shapely

from geochip.chipping import main
from geochip.config import LabelsConfig
from geochip.errors import InputError
from geochip.labels import Grid, LabelError, LabelRules, indexed_label, label_crs, look_at_label, read_aoi
from helpers import UTM, box, data_flags, read_label, write_label, write_scene
from told import told

HOW = {"height": 20, "width": 30}
SHAPE = box(UTM, 3, 5, 4, 6)


def member(name):
    return {"type": "name", "properties": {"name": name}}


def write(path, *, features=None, **members):
    """A FeatureCollection in the order of its members."""
    features = [{"type": "Feature", "properties": {}, "geometry": SHAPE}] if features is None else features
    path.write_text(json.dumps({"type": "FeatureCollection", **members, "features": features}))
    return path


def in_degrees():
    return shapely.geometry.mapping(
        gpd.GeoSeries([shapely.geometry.shape(SHAPE)], crs="EPSG:32611").to_crs("EPSG:4326")[0]
    )


@pytest.mark.parametrize(
    "properties",
    [
        {"crs": member("EPSG:32611")}, {"crs": None}, {"crs": "EPSG:32611"}, {"note": '"crs": {"type": "name", "properties": {"name": "EPSG:32611"}}'},
        {"nested": {"crs": member("EPSG:32611")}}, {'"crs"': 5},
    ],
)  # fmt: skip
def test_an_attribute_called_crs_is_an_attribute(tmp_path, properties):
    feature = {"type": "Feature", "properties": properties, "geometry": in_degrees()}
    path = write(tmp_path / "a.geojson", features=[feature])
    assert label_crs(str(path)).to_epsg() == 4326
    assert read_label(path, **HOW).sum() == 24
    # And the member counts, wherever it stands beside such an attribute.
    feature = {"type": "Feature", "properties": properties, "geometry": SHAPE}
    for number, document in enumerate(
        ({"crs": member("EPSG:32611"), "features": [feature]}, {"features": [feature], "crs": member("EPSG:32611")})
    ):
        path = tmp_path / f"{number}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", **document}))
        assert read_label(path, **HOW).sum() == 24


@pytest.mark.parametrize(
    "value",
    [5, "EPSG:32611", [], {}, True, {"type": "name"}, {"type": "name", "properties": {}}, {"type": "name", "properties": {"name": None}},
     {"type": "link", "properties": {"href": "http://example.com/crs"}}, {"properties": {"name": "EPSG:32611"}}],
)  # fmt: skip
def test_a_crs_member_that_is_not_understood_is_named(tmp_path, value):
    path = write(tmp_path / "a.geojson", crs=value)
    for read in (lambda: label_crs(str(path)), lambda: read_label(path, **HOW)):
        with pytest.raises(LabelError) as caught:
            read()
        told("crs-member", str(caught.value))
        assert f": {json.dumps(value)}; write " in str(caught.value)
    # As the text says.
    remedy = json.loads(str(caught.value).split("write ")[1].split(" with its CRS")[0])
    assert read_label(write(tmp_path / "a.geojson", crs=remedy), **HOW).sum() == 24


@pytest.mark.parametrize(
    "value", [member("urn:ogc:def:crs:EPSG::32611"), {"type": "EPSG", "properties": {"code": 32611}}]
)
def test_old_ways_to_name_a_crs(tmp_path, value):
    assert read_label(write(tmp_path / "a.geojson", crs=value), **HOW).sum() == 24


def test_a_mark_at_the_beginning_spaces_and_a_single_geometry(tmp_path):
    plain = json.dumps(
        {
            "type": "FeatureCollection",
            "crs": member("EPSG:32611"),
            "features": [{"type": "Feature", "properties": {}, "geometry": SHAPE}],
        }
    )
    for number, data in enumerate((b"\xef\xbb\xbf" + plain.encode(), b"\n  \t" + plain.encode())):
        path = tmp_path / f"{number}.json"
        path.write_bytes(data)
        assert read_label(path, **HOW).sum() == 24
    path = tmp_path / "one.geojson"
    path.write_text(json.dumps(in_degrees()))
    assert read_label(path, **HOW).sum() == 24


def test_a_document_that_is_cut_short_is_named(tmp_path):
    path = write(tmp_path / "a.geojson", crs=member("EPSG:32611"))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(LabelError) as caught:
        label_crs(str(path))
    told("label-json", str(caught.value))
    path.write_text("{" * 100_000)
    with pytest.raises(LabelError, match=r"is no valid JSON"):
        label_crs(str(path))


def test_other_json_says_itself_what_it_is_in(tmp_path):
    x, y = UTM @ (5, 3)
    ring = [[x, y], [x + 3, y], [x + 3, y - 2], [x, y - 2], [x, y]]
    esri = {
        "geometryType": "esriGeometryPolygon", "spatialReference": {"wkid": 32611}, "fields": [],
        "features": [{"attributes": {}, "geometry": {"rings": [ring]}}],
    }  # fmt: skip
    foreground = {
        "type": "FeatureCollection", "conformsTo": ["http://www.opengis.net/spec/json-fg-1/0.2/conf/core"],
        "coordRefSys": "http://www.opengis.net/def/crs/EPSG/0/32611",
        "features": [{"type": "Feature", "id": 1, "time": None, "properties": {}, "geometry": None, "place": SHAPE}],
    }  # fmt: skip
    for number, document in enumerate((esri, foreground)):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(document))
        assert read_label(path, **HOW).sum() == 24
    lines = tmp_path / "lines.json"
    lines.write_text(
        "\n".join(json.dumps({"type": "Feature", "properties": {}, "geometry": in_degrees()}) for _ in range(2))
    )
    assert read_label(lines, **HOW).sum() == 24


# --- files that send GDAL elsewhere -----------------------------------------------------------------------------------


def elsewhere(form, target):
    layer = f'<OGRVRTLayer name="secret"><SrcDataSource>{target}</SrcDataSource></OGRVRTLayer>'
    return {
        "vrt": f"<OGRVRTDataSource>{layer}</OGRVRTDataSource>",
        "vrt after a comment": f'<?xml version="1.0"?>\n<!-- a label -->\n<OGRVRTDataSource>{layer}</OGRVRTDataSource>',
        "service": "<OGRWFSDataSource><URL>http://127.0.0.1:9/x</URL></OGRWFSDataSource>",
        "command": json.dumps({"type": "gdal_streamed_alg", "command_line": f"gdal vector pipeline ! read {target}"}),
    }[form]


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.gpkg", "a.kml", "a"])
@pytest.mark.parametrize("form", ["vrt", "vrt after a comment", "service", "command"])
def test_a_file_that_sends_gdal_elsewhere_is_refused(tmp_path, name, form):
    secret = write_label(tmp_path / "secret.geojson", [SHAPE])
    path = tmp_path / name
    path.write_text(elsewhere(form, secret))
    reads = [
        lambda: read_label(path, **HOW),
        lambda: read_aoi(str(path), Grid(**HOW, transform=UTM, crs="EPSG:32611")),
        lambda: indexed_label(str(path), tmp_path / "index", at_least=1),
    ]
    # What has an index of its own is not copied.
    for read in reads[: 2 if name == "a.gpkg" else 3]:
        with pytest.raises(LabelError) as caught:
            read()
        told("label-elsewhere", str(caught.value))
    assert "ogr2ogr -f GPKG" in str(caught.value)
    # The remedy.
    gpd.read_file(secret).to_file(tmp_path / "own.gpkg")
    assert read_label(tmp_path / "own.gpkg", **HOW).sum() == 24


def test_a_geojson_that_gdal_would_read_as_a_vrt_is_refused(tmp_path):
    """GDAL takes a file for a VRT when the words stand at its beginning, in a string of a GeoJSON too."""
    secret = write_label(tmp_path / "secret.geojson", [SHAPE])
    note = elsewhere("vrt", secret).replace('"', "'")
    path = write(tmp_path / "a.geojson", note=note, crs=member("EPSG:32611"), features=[])
    assert pyogrio.read_info(path)["driver"] == "OGR_VRT"
    with pytest.raises(LabelError) as caught:
        read_label(path, **HOW)
    told("label-elsewhere", str(caught.value))


def test_words_of_a_command_in_a_feature_are_words(tmp_path):
    feature = {"type": "Feature", "properties": {"type": "gdal_streamed_alg"}, "geometry": SHAPE}
    path = write(tmp_path / "a.geojson", crs=member("EPSG:32611"), features=[feature])
    assert read_label(path, **HOW).sum() == 24


@pytest.mark.parametrize("driver", ["KML", "GML", "FlatGeobuf", "ESRI Shapefile", "GPX", "MapInfo File", "CSV"])
def test_formats_that_hold_their_features_are_read(tmp_path, driver):
    suffix = {
        "KML": "kml",
        "GML": "gml",
        "FlatGeobuf": "fgb",
        "ESRI Shapefile": "shp",
        "GPX": "gpx",
        "MapInfo File": "tab",
        "CSV": "csv",
    }[driver]
    frame = gpd.GeoDataFrame({"name": ["x"]}, geometry=[shapely.geometry.shape(in_degrees())], crs="EPSG:4326")
    if driver == "GPX":
        frame = frame.set_geometry(frame.geometry.representative_point())
    path = tmp_path / f"a.{suffix}"
    frame.to_file(path, driver=driver, **({"GEOMETRY": "AS_WKT", "CREATE_CSVT": "YES"} if driver == "CSV" else {}))
    assert np.isclose(read_label(path, **HOW).sum(), 1 if driver == "GPX" else 24)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize("name", ["a.geojson", "a.shp", "a.csv", "a.parquet"])
def test_a_label_without_a_crs_is_refused_before_anything_is_written(tmp_path, name):
    write_scene(tmp_path / "data", "train", "1", transform=UTM)
    path = tmp_path / "data" / "train" / f"label_{name.replace('a', '1', 1)}"
    path.with_suffix(".geojson").unlink(missing_ok=True)
    frame = gpd.GeoDataFrame({"a": [1]}, geometry=[shapely.geometry.shape(SHAPE)], crs=None)
    if path.suffix == ".geojson":
        write_label(path, [SHAPE], crs=None)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path, **({"GEOMETRY": "AS_WKT"} if path.suffix == ".csv" else {}))
    flags = [
        *data_flags(tmp_path / "data", "train"),
        f"--data.label={{split}}/label_{{id}}{path.suffix}",
        "--chips.size=20",
    ]
    with pytest.raises(InputError) as caught:
        main([*flags, f"--run_dir={tmp_path / 'run'}"])
    told("vector-without-crs", str(caught.value))
    assert not (tmp_path / "run").exists()
    # The remedy.
    if path.suffix == ".geojson":
        assert 'leave its "crs": null out where it is in longitude and latitude' in str(caught.value)
        write(path, features=[{"type": "Feature", "properties": {}, "geometry": in_degrees()}])
    else:
        assert "ogr2ogr -a_srs" in str(caught.value)
        path = path.with_suffix(".gpkg")
        frame.set_crs("EPSG:32611").to_file(path)
    assert read_label(path, **HOW).sum() == 24


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_what_holds_no_features_needs_no_crs(tmp_path):
    """A scene without objects has an empty label, whatever is said of its CRS."""
    null, plain = write(tmp_path / "null.geojson", crs=None, features=[]), write(tmp_path / "a.geojson", features=[])
    empty = gpd.GeoDataFrame({"a": []}, geometry=[], crs=None)
    empty.to_file(tmp_path / "a.shp", geometry_type="Polygon")
    for path in (null, plain, tmp_path / "a.shp"):
        for crs in ("EPSG:32611", None):
            grid = Grid(height=HOW["height"], width=HOW["width"], transform=UTM, crs=crs)
            rules = LabelRules(classes=("background", "building"), labels=LabelsConfig())
            assert look_at_label(str(path), grid, rules).hidden is None
            assert read_label(path, **(HOW | {"crs": crs})).sum() == 0
