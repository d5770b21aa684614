"""GeoParquet as labels and areas of interest."""

import json
import os

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shapely.geometry import Polygon

from geochip.labels import Grid, LabelError, indexed_label, read_aoi
from geochip.windows import Window
from helpers import UTM, open_label, read_label
from told import told

SIZE = {"height": 60, "width": 70}


def rectangle(row, col, height, width):
    corners = ((col, row), (col + width, row), (col + width, row + height), (col, row + height))
    return Polygon([UTM @ corner for corner in corners])


def frame(*rectangles, crs="EPSG:32611", **columns):
    return gpd.GeoDataFrame(columns, geometry=[rectangle(*one) for one in rectangles], crs=crs)


def with_metadata(path, change):
    """The same table with other metadata: `change` alters what `geo` holds, or replaces it."""
    table = pq.read_table(path)
    geo = json.loads(table.schema.metadata[b"geo"])
    new = change(geo)
    metadata = {} if new is None else {b"geo": new if isinstance(new, bytes) else json.dumps(new).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def fault(path, **rules):
    with pytest.raises(LabelError) as caught:
        read_label(path, **SIZE, **rules)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.geoparquet", "A.PARQUET"])
@pytest.mark.parametrize("encoding", ["WKB", "geoarrow"])
def test_a_parquet_is_read_like_any_other_label(tmp_path, name, encoding):
    path = tmp_path / name
    frame((10, 20, 8, 12), (40, 40, 5, 5)).to_parquet(path, geometry_encoding=encoding, schema_version="1.1.0")
    label = read_label(path, **SIZE)
    assert label.sum() == 96 + 25
    assert label[10:18, 20:32].all()


def test_its_crs_is_the_one_in_its_metadata(tmp_path):
    path = tmp_path / "a.parquet"
    frame((10, 20, 8, 12)).to_crs("EPSG:3857").to_parquet(path)
    assert read_label(path, **SIZE).sum() == 96
    # Without a word of it, longitude and latitude.
    frame((10, 20, 8, 12)).to_crs("OGC:CRS84").to_parquet(path)
    with_metadata(path, lambda geo: geo["columns"]["geometry"].pop("crs") and geo)
    assert read_label(path, **SIZE).sum() == 96
    # Null: nothing is known.
    frame((10, 20, 8, 12), crs=None).to_parquet(path)
    assert "has no CRS while the image is in EPSG:32611" in fault(path)
    assert read_label(path, crs=None, **SIZE).sum() == 96


def test_the_column_of_geometries_may_have_any_name_and_company(tmp_path):
    path = tmp_path / "a.parquet"
    shapes = frame((10, 20, 8, 12), kind=["1"]).rename_geometry("where")
    shapes["centre"] = gpd.GeoSeries(shapes.centroid)
    shapes.to_parquet(path)
    assert read_label(path, class_property="kind", **SIZE).sum() == 96
    assert "it has kind: name one of them" in fault(path, class_property="sort")


def test_only_what_lies_near_is_read_where_the_file_has_bounds(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    places = [(int(row), int(col), 20, 20) for row, col in rng.integers(0, 2980, (40_000, 2))]
    kinds = [str(1 + k % 3) for k in range(len(places))]
    large = frame(*places, kind=kinds)
    how = {"height": 3000, "width": 3000, "classes": ("0", "1", "2", "3"), "class_property": "kind"}
    label = np.zeros((3000, 3000), np.uint8)
    for (row, col, tall, wide), kind in zip(places, kinds, strict=True):
        label[row : row + tall, col : col + wide] = int(kind)
    seen = []
    real = gpd.read_parquet
    monkeypatch.setattr(
        "geochip.labels.parquet.gpd.read_parquet",
        lambda *args, **more: seen.append(len(found := real(*args, **more))) or found,
    )
    for covered in (True, False):
        path = tmp_path / "a.parquet"
        large.to_parquet(path, write_covering_bbox=covered, row_group_size=1000)
        assert path.stat().st_size > 2**20
        for near in ([Window(row_off=500, col_off=700, height=64, width=64)], None):
            window = near[0] if near else Window(row_off=0, col_off=0, height=3000, width=3000)
            with open_label(path, near=near, **how) as opened:
                np.testing.assert_array_equal(opened.read(window), label[window.slices])
        assert (seen[-2] < 400) == covered
        # A file with bounds needs no copy.
        copy = indexed_label(str(path), tmp_path / "index", at_least=1)
        assert (copy == str(path)) == covered
    with open_label(copy, near=[window], **how) as opened:
        np.testing.assert_array_equal(opened.read(window), label)
    # What lies elsewhere is an empty label here.
    large.to_parquet(path, write_covering_bbox=True)
    far = UTM.translation(50_000, 0) @ UTM
    assert not read_label(path, **{**how, "transform": far, "height": 50, "width": 50}).any()


def test_a_feature_that_is_wrong_in_a_part_of_a_file(tmp_path):
    places = [(row, col, 3, 3) for row in range(0, 600, 4) for col in range(0, 600, 4)]
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    notes = [rng.bytes(40).hex() for _ in places]
    frame(*places, kind=["1"] * (len(places) - 1) + ["?"], note=notes).to_parquet(path, write_covering_bbox=True)
    assert path.stat().st_size > 2**20
    with pytest.raises(LabelError, match=r"a.parquet: a feature has kind = '\?', which is not in data.classes"):
        read_label(path, height=600, width=600, class_property="kind")


def test_an_area_of_interest(tmp_path):
    path = tmp_path / "a.parquet"
    frame((10, 20, 8, 12)).to_crs("EPSG:4326").to_parquet(path)
    grid = Grid(**SIZE, transform=UTM, crs="EPSG:32611")
    assert read_aoi(str(path), grid).area == pytest.approx(96, rel=1e-4)
    with pytest.raises(LabelError) as caught:
        read_aoi(str(path), grid, "layer")
    told("no layers", str(caught.value))
    assert "set chips.aoi_layer to null" in str(caught.value)


def test_a_layer_of_a_parquet(tmp_path):
    frame((10, 20, 8, 12)).to_parquet(tmp_path / "a.parquet")
    told("no layers", fault(tmp_path / "a.parquet", layer="buildings"))


def test_a_parquet_without_geometries(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    told("no GeoParquet", fault(path))
    # What it says to do.
    frame((10, 20, 8, 12)).to_parquet(path)
    assert read_label(path, **SIZE).sum() == 96


@pytest.mark.parametrize(
    "change",
    [
        lambda geo: b"{",
        lambda geo: b"[]",
        lambda geo: b"\xff",
        lambda geo: {},
        lambda geo: {**geo, "primary_column": "gone"},
        lambda geo: {**geo, "primary_column": 5},
        lambda geo: {**geo, "columns": []},
        lambda geo: {**geo, "columns": {"geometry": None}},
        lambda geo: {**geo, "columns": {"geometry": {"encoding": "ROT13"}}},
        lambda geo: {**geo, "columns": {"geometry": {**geo["columns"]["geometry"], "crs": {"type": "nonsense"}}}},
        lambda geo: {**geo, "columns": {"geometry": {**geo["columns"]["geometry"], "crs": 5}}},
        lambda geo: {**geo, "columns": {"geometry": {**geo["columns"]["geometry"], "covering": 5}}},
        lambda geo: {**geo, "version": None},
    ],
)
def test_metadata_that_is_not_what_it_should_be(tmp_path, change):
    path = tmp_path / "a.parquet"
    frame((10, 20, 8, 12)).to_parquet(path)
    with_metadata(path, change)
    told("damaged GeoParquet", fault(path))


def test_a_parquet_that_is_cut_short_or_none(tmp_path):
    path = tmp_path / "a.parquet"
    frame(*[(10, 20, 8, 12)] * 500).to_parquet(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:200] + b"\0" * 300 + whole[500:]):
        path.write_bytes(content)
        told("damaged GeoParquet", fault(path))
    path.unlink()
    assert "could not be read (No such file or directory)" in fault(path)
    os.mkfifo(path)
    told("not a regular file", fault(path))
