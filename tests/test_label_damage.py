"""Damaged label files: told by name, never a traceback, never a wait, never taken for what is left of them."""

import json
import os
import socket
from functools import partial

import geopandas as gpd
import pytest
from shapely.geometry import Polygon

from geochip.chipping import main
from geochip.config import LabelsConfig
from geochip.errors import WorkError
from geochip.labels import Grid, LabelError, LabelRules, indexed_label, look_at_label, read_aoi
from helpers import UTM, box, data_flags, position_coded, read_label, write_image, write_label, write_scene
from told import told

SIZE = {"height": 60, "width": 70}
DRIVERS = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".kml": "KML", ".gml": "GML", ".sqlite": "SQLite", ".shp": None}


def many(path):
    """500 boxes of a pixel each, in rows of 50."""
    squares = [
        Polygon([UTM @ point for point in ((c, r), (c + 1, r), (c + 1, r + 1), (c, r + 1))])
        for r in range(10) for c in range(50)
    ]  # fmt: skip
    gpd.GeoDataFrame({"kind": ["a"] * 500}, geometry=squares, crs="EPSG:32611").to_file(
        path, driver=DRIVERS[path.suffix]
    )
    return path


def fault(path, **rules):
    with pytest.raises(LabelError) as caught:
        read_label(path, **SIZE, **rules)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", DRIVERS)
@pytest.mark.parametrize("kept", [0.0, 0.0002, 0.3, 0.7])
def test_a_file_that_is_cut_short(tmp_path, suffix, kept):
    path = many(tmp_path / f"a{suffix}")
    assert read_label(path, **SIZE).sum() == 500
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    text = fault(path)
    assert text.endswith(("mend or remove it", "copy it again"))
    if kept > 0.1 and suffix == ".shp":
        told("cut short", text)
    if suffix == ".gml" and kept > 0.1:
        told("no whole XML", text)
    path.write_bytes(whole)
    assert read_label(path, **SIZE).sum() == 500


@pytest.mark.parametrize("suffix", [".shx", ".dbf"])
def test_a_shapefile_s_other_files(tmp_path, suffix):
    path = many(tmp_path / "a.shp")
    part = path.with_suffix(suffix)
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    text = fault(path, class_property="kind", class_map={"a": "1"})
    assert "is cut short: a.shx has" in text or "mend or remove it" in text
    part.unlink()
    text = fault(path, class_property="kind", class_map={"a": "1"})
    assert "Unable to open" in text if suffix == ".shx" else "has no property 'kind'" in text
    os.mkfifo(part)
    told("not a regular file", fault(path))


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_bytes_that_were_flipped(tmp_path, suffix):
    path = many(tmp_path / f"a{suffix}")
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 5000] = b"\xff" * 5000
    path.write_bytes(data)
    told("unreadable vector", fault(path))


NESTED = 100_000


@pytest.mark.parametrize(
    "text",
    [
        "", "hello", "[]", "5", "null", "\0" * 100, '{"type":"FeatureCollection"}', '{"a":' * NESTED + "1" + "}" * NESTED,
        '{"type":"FeatureCollection","features":{}}',
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":{"type":"Poi',
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{},"geometry":{"type":"Polygon",'
        '"coordinates":' + "[" * NESTED + "]" * NESTED + "}}]}",
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{"k":' + "[" * NESTED + "]" * NESTED
        + '},"geometry":null}]}',
        '{"type":"FeatureCollection","features":[{"type":"Feature","properties":{"k":' + "9" * 5000 + '},"geometry":null}]}',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
@pytest.mark.parametrize("indexed", [False, True])
def test_a_geojson_that_is_none(tmp_path, text, indexed):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    if indexed:
        with pytest.raises(LabelError) as caught:
            indexed_label(str(path), tmp_path / "index", at_least=0)
        told("unreadable vector", str(caught.value))
    else:
        told("unreadable vector", fault(path))


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon"}, {"type": "Point", "coordinates": [1]}, {"type": "Point", "coordinates": ["a", "b"]},
        {"type": "Point", "coordinates": [float("nan"), 1]}, {"type": "Circle", "coordinates": [1, 2]}, "a polygon", 5,
        {"type": "Polygon", "coordinates": 7}, {"type": "Polygon", "coordinates": [[["x", "y"], ["z", "w"]]]}, {},
    ],
)  # fmt: skip
@pytest.mark.parametrize("indexed", [False, True])
def test_a_geometry_that_cannot_be_drawn(tmp_path, geometry, indexed):
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 3, 3), geometry])
    index = partial(indexed_label, str(path), tmp_path / "index", at_least=0)
    read = index if indexed else partial(read_label, path, **SIZE)
    with pytest.raises(LabelError) as caught:
        read()
    if "no number; mend it" not in str(caught.value):
        told("cannot be drawn", str(caught.value))
        assert "feature 1 has a geometry" in str(caught.value)
    # What it says to do.
    write_label(path, [box(UTM, 0, 0, 3, 3), None])
    assert read_label(path, **SIZE).sum() == 9


def test_a_geometry_may_be_empty_on_purpose(tmp_path):
    nothing = [
        None, {"type": "Polygon", "coordinates": []}, {"type": "MultiPolygon", "coordinates": [[]]},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": []}]},
    ]  # fmt: skip
    path = write_label(tmp_path / "a.geojson", [*nothing, box(UTM, 0, 0, 3, 3)])
    assert read_label(path, **SIZE).sum() == 9
    assert not read_label(write_label(tmp_path / "b.geojson", nothing), **SIZE).any()
    # Or a feature stands alone.
    path.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": []}}))
    assert not read_label(path, **SIZE).any()


@pytest.mark.parametrize("kind", ["features that are none", "a folder"])
def test_what_is_in_the_place_of_features(tmp_path, kind):
    path = tmp_path / "a.geojson"
    if kind == "a folder":
        path.mkdir()
        told("unreadable vector", fault(path))
    else:
        path.write_text('{"type":"FeatureCollection","features":[1,null,"x"]}')
        told("cannot be drawn", fault(path))


@pytest.mark.parametrize(
    "text", ["hello", "<kml><Document>", "<kml>" + "<Folder>" * NESTED + "</Folder>" * NESTED + "</kml>"]
)
def test_a_kml_that_is_none(tmp_path, text):
    path = tmp_path / "a.kml"
    path.write_text(text)
    told("unreadable vector", fault(path))


@pytest.mark.parametrize("name", ["a.geojson", "a.gpkg", "a.shp", "a.kml", "a.tif", "a.parquet", "a.gdb"])
@pytest.mark.parametrize("make", ["pipe", "socket", "inside"])
def test_nothing_is_waited_for(tmp_path, name, make, monkeypatch):
    path = tmp_path / name
    if make == "pipe":
        os.mkfifo(path)
    elif make == "socket":
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(name)
    else:
        path.mkdir()
        os.mkfifo(path / "a00000001.gdbtable")
    how = LabelRules(classes=("0", "1"), labels=LabelsConfig())
    for look in (
        lambda: look_at_label(str(path), Grid(**SIZE, transform=UTM, crs="EPSG:32611"), how),
        lambda: read_label(path, **SIZE),
        lambda: read_aoi(str(path), Grid(**SIZE, transform=UTM, crs="EPSG:32611")),
    ):
        with pytest.raises(LabelError) as caught:
            look()
        told("not a regular file", str(caught.value))


def test_one_damaged_label_of_three_is_told_and_the_others_are_cut(tmp_path, dask_address, capsys):
    for scene_id in "123":
        write_scene(tmp_path / "data", "train", scene_id)
    label = tmp_path / "data" / "train" / "label_2.geojson"
    label.unlink()
    flags = [
        *data_flags(tmp_path / "data", "train"), "--chips.size=30", "--chips.method=grid", f"--run_dir={tmp_path}",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    os.mkfifo(label)
    main([*flags, "--data.max_bad_scenes=1"])
    told("not a regular file", capsys.readouterr().out)
    label.unlink()
    label.write_text("[" * NESTED)
    with pytest.raises(WorkError) as caught:
        main(flags)
    told("unreadable vector", str(caught.value))
    assert "1 of 3 scenes could not be used" in str(caught.value)
    label.unlink()
    write_scene(tmp_path / "data", "train", "2")
    main(flags)
    assert "train: 18 chips of 3 scenes" in capsys.readouterr().out


def test_an_area_of_interest_is_called_one(tmp_path):
    with pytest.raises(LabelError) as caught:
        read_aoi(str(tmp_path / "none.gpkg"), Grid(**SIZE, transform=UTM, crs="EPSG:32611"))
    assert str(caught.value) == f"chips.aoi: {tmp_path / 'none.gpkg'} could not be read (No such file or directory)"


def test_a_raster_label_that_is_none(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"hello")
    assert "could not be read as a raster (" in fault(path)
    write_image(path, position_coded(60, 70)[:1].astype("uint8") * 0)
    assert not read_label(path, **SIZE).any()
