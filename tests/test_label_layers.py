"""Containers that hold several things: which of them is meant, and what is told when nothing says so."""

import json
import zipfile

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
from PIL import Image
from shapely.geometry import Polygon, mapping

from geochip.chipping import main
from geochip.config import DataConfig, SplitConfig
from geochip.errors import InputError
from geochip.labels import Grid, LabelError, indexed_label, read_aoi
from geochip.scenes.manifest import read_manifest
from helpers import UTM, data_flags, position_coded, read_label, write_scene
from told import told

SIZE = {"height": 60, "width": 70}


def rectangle(row, col, height, width):
    corners = ((col, row), (col + width, row), (col + width, row + height), (col, row + height))
    return Polygon([UTM @ corner for corner in corners])


def frame(*rectangles, crs="EPSG:32611", **columns):
    return gpd.GeoDataFrame(columns, geometry=[rectangle(*one) for one in rectangles], crs=crs)


def two_layers(path, driver="GPKG"):
    frame((0, 0, 60, 70)).to_file(path, layer="extent", driver=driver)
    frame((10, 20, 8, 12)).to_file(path, layer="buildings", driver=driver)
    return path


def in_degrees(shape):
    return gpd.GeoSeries([shape], crs="EPSG:32611").to_crs("EPSG:4326")[0]


def kml(*folders):
    """A document with a folder for each list of rectangles; a tuple is a folder in the one before it."""
    marks = [
        "".join(
            "<Placemark><Polygon><outerBoundaryIs><LinearRing><coordinates>"
            + " ".join(f"{x:.12f},{y:.12f}" for x, y in in_degrees(rectangle(*one)).exterior.coords)
            + "</coordinates></LinearRing></outerBoundaryIs></Polygon></Placemark>"
            for one in folder
        )
        for folder in folders
    ]
    body = "".join(f"<Folder><name>{name}</name>{mark}</Folder>" for name, mark in zip("ABAC", marks, strict=False))
    nested = f"<Folder><name>outer</name>{body}</Folder>"
    return f'<kml xmlns="http://www.opengis.net/kml/2.2"><Document>{nested}</Document></kml>'


def fault(path, **rules):
    with pytest.raises(LabelError) as caught:
        read_label(path, **SIZE, **rules)
    return str(caught.value)


@pytest.mark.parametrize(("name", "driver"), [("a.gpkg", "GPKG"), ("a.gdb", "OpenFileGDB"), ("a.sqlite", "SQLite")])
def test_a_layer_is_named_or_refused(tmp_path, name, driver):
    path = two_layers(tmp_path / name, driver)
    text = fault(path)
    told("several layers", text)
    assert "holds 2 layers, extent, buildings, and" in text
    # What it says to do.
    assert read_label(path, layer="buildings", **SIZE).sum() == 96
    assert read_label(path, layer="extent", **SIZE).sum() == 60 * 70
    text = fault(path, layer="houses")
    told("no such layer", text)
    assert "it has extent, buildings: name one of them" in text


def test_tables_without_geometries_are_no_layers(tmp_path):
    path = tmp_path / "a.gpkg"
    pyogrio.write_dataframe(pd.DataFrame({"styleName": ["red"]}), path, layer="layer_styles", driver="GPKG")
    frame((10, 20, 8, 12)).to_file(path, layer="buildings", driver="GPKG")
    assert read_label(path, **SIZE).sum() == 96
    text = fault(path, layer="layer_styles")
    told("layer-without-geometries", text)
    assert "in layer 'layer_styles', which labels.layer asks for; it has buildings: name one of them, or" in text
    assert read_label(path, layer="buildings", **SIZE).sum() == 96
    # Nor are they among those to choose from.
    assert "it has buildings: name one of them" in fault(path, layer="houses")


def test_a_folder_and_a_zip_of_shapefiles_are_containers_too(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()
    frame((10, 20, 8, 12)).to_file(folder / "a.shp")
    assert read_label(folder, **SIZE).sum() == 96
    frame((0, 0, 60, 70)).to_file(folder / "b.shp")
    told("several layers", fault(folder))
    assert read_label(folder, layer="a", **SIZE).sum() == 96
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for one in folder.iterdir():
            file.write(one, one.name)
    told("several layers", fault(tmp_path / "a.zip"))
    assert read_label(tmp_path / "a.zip", layer="a", **SIZE).sum() == 96
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.write(tmp_path / "a.zip", "a.zip")
    assert "unpack it and name the file in it" in fault(tmp_path / "b.zip")


def test_all_folders_of_a_kml_are_read(tmp_path):
    path = tmp_path / "a.kml"
    path.write_text(kml([(10, 20, 8, 12)], [(40, 40, 10, 10), (30, 0, 5, 5)], [(50, 0, 5, 4)]))
    assert read_label(path, **SIZE).sum() == 96 + 100 + 25 + 20
    with zipfile.ZipFile(tmp_path / "a.kmz", "w") as file:
        file.write(path, "doc.kml")
    assert read_label(tmp_path / "a.kmz", **SIZE).sum() == 96 + 100 + 25 + 20
    # One of them can be asked for.
    assert read_label(path, layer="B", **SIZE).sum() == 125
    told("no such layer", fault(path, layer="D"))


def test_a_property_that_only_one_folder_of_a_kml_has(tmp_path):
    path = tmp_path / "a.kml"
    text = kml([(10, 20, 8, 12)], [(40, 40, 10, 10)])
    data = '<Placemark><ExtendedData><Data name="kind"><value>house</value></Data></ExtendedData>'
    path.write_text(text.replace("<Placemark>", data, 1))
    how = {"class_property": "kind", "class_map": {"house": "1"}}
    told("no value", fault(path, **how))
    label = read_label(path, no_value="ignore", **how, **SIZE)
    assert [(label == value).sum() for value in (1, 255)] == [96, 100]


def test_topojson_is_a_container(tmp_path):
    def ring(*place):
        return [list(point) for point in rectangle(*place).exterior.coords]

    arcs = [ring(10, 20, 8, 12), ring(0, 0, 60, 70)]
    objects = {
        name: {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "arcs": [[number]], "properties": {}}]}
        for number, name in enumerate(("houses", "extent"))
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"type": "Topology", "objects": objects, "arcs": arcs}))
    told("several layers", fault(path))
    # The format knows no CRS.
    assert read_label(path, layer="houses", crs=None, **SIZE).sum() == 96


def test_gml_is_read_without_a_file_beside_it(tmp_path):
    path = tmp_path / "a.gml"
    frame((10, 20, 8, 12)).to_file(path, driver="GML")
    before = sorted(tmp_path.iterdir())
    assert read_label(path, **SIZE).sum() == 96
    assert sorted(tmp_path.iterdir()) == before


def test_an_index_holds_the_layer_that_was_meant(tmp_path):
    path = tmp_path / "a.kml"
    path.write_text(kml([(10, 20, 8, 12)], [(40, 40, 10, 10)]))
    every = indexed_label(str(path), tmp_path / "index", at_least=1)
    one = indexed_label(str(path), tmp_path / "index", layer="B", at_least=1)
    assert len({str(path), every, one}) == 3
    assert read_label(every, **SIZE).sum() == 196
    # Read with the same rules as the label itself.
    assert read_label(one, layer="B", **SIZE).sum() == 100
    with pytest.raises(LabelError) as caught:
        indexed_label(str(path), tmp_path / "index", layer="D", at_least=1)
    told("no such layer", str(caught.value))


def test_the_area_of_interest_has_a_key_of_its_own(tmp_path):
    grid = Grid(**SIZE, transform=UTM, crs="EPSG:32611")
    path = str(two_layers(tmp_path / "a.gpkg"))
    with pytest.raises(LabelError) as caught:
        read_aoi(path, grid)
    told("several layers", str(caught.value))
    assert str(caught.value).startswith(f"chips.aoi: {path} holds 2 layers")
    assert "chips.aoi_layer" in str(caught.value)
    assert read_aoi(path, grid, "buildings").area == pytest.approx(96)


def test_the_manifest_has_one_too(tmp_path):
    path = tmp_path / "scenes.gpkg"
    rows = pd.DataFrame({"scene_id": ["1"], "split": ["train"]})
    pyogrio.write_dataframe(pd.DataFrame({"note": ["?"]}), path, layer="notes", driver="GPKG")
    pyogrio.write_dataframe(rows, path, layer="scenes", driver="GPKG")
    data = DataConfig(root=str(tmp_path), image="{id}.tif", label="{id}.geojson")
    with pytest.raises(InputError) as caught:
        read_manifest(data, SplitConfig(by="manifest", manifest=str(path)))
    told("several layers", str(caught.value))
    assert "name it with split.manifest_layer" in str(caught.value)
    found = read_manifest(data, SplitConfig(by="manifest", manifest=str(path), manifest_layer="scenes"))
    assert list(found) == [("train", "1")]
    with pytest.raises(InputError) as caught:
        read_manifest(data, SplitConfig(by="manifest", manifest=str(path), manifest_layer="scene"))
    told("no such layer", str(caught.value))
    rows.to_csv(tmp_path / "scenes.csv")
    with pytest.raises(InputError, match=r"scenes.csv holds one table and no layers; set split.manifest_layer to null"):
        read_manifest(data, SplitConfig(by="manifest", manifest=str(tmp_path / "scenes.csv"), manifest_layer="scenes"))


def test_chipping_refuses_before_anything_is_written_and_then_follows(tmp_path, dask_address):
    write_scene(tmp_path / "data", "train", "1", transform=UTM)
    (tmp_path / "data" / "train" / "label_1.geojson").unlink()
    two_layers(tmp_path / "data" / "train" / "label_1.gpkg")
    flags = [
        *data_flags(tmp_path / "data", "train"), "--data.label={split}/label_{id}.gpkg", "--chips.size=20",
        f"--run_dir={tmp_path / 'run'}", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        main(flags)
    told("several layers", str(caught.value))
    assert not (tmp_path / "run").exists()
    main([*flags, "--labels.layer=buildings"])
    # The layer decides what the chips hold.
    with pytest.raises(InputError, match=r"labels.layer was 'buildings', now 'extent'"):
        main([*flags, "--labels.layer=extent"])


def test_a_table_is_refused_before_anything_is_written(tmp_path):
    write_scene(tmp_path / "data", "train", "1", transform=UTM)
    label = two_layers(tmp_path / "data" / "train" / "label_1.gpkg")
    pyogrio.write_dataframe(pd.DataFrame({"styleName": ["red"]}), label, layer="layer_styles", driver="GPKG")
    flags = [
        *data_flags(tmp_path / "data", "train"), "--data.label={split}/label_{id}.gpkg", "--chips.size=20",
        f"--run_dir={tmp_path / 'run'}", "--labels.layer=layer_styles",
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        main(flags)
    told("layer-without-geometries", str(caught.value))
    assert not (tmp_path / "run").exists()


def test_files_of_several_rasters(tmp_path, dask_address):
    from geochip.scenes import SetAside
    from geochip.scenes.header import Source, describe

    def pages(path, *arrays):
        first, *others = (Image.fromarray(one) for one in arrays)
        first.save(path, save_all=True, append_images=others)
        return path

    dark, light = np.zeros((60, 70), np.uint8), np.ones((60, 70), np.uint8)
    path = pages(tmp_path / "a.tif", dark, light)
    text = fault(path)
    told("several rasters", text)
    assert f"GTIFF_DIR:2:{path}" in text
    found = describe(Source(scene_id="1", split="train", image=str(path), stack=(), label=None), DataConfig())
    assert isinstance(found, SetAside)
    told("image of several rasters", found.reason)
    # Masks and overviews inside a GeoTIFF are no other rasters.
    import rasterio

    from helpers import write_image

    image = write_image(tmp_path / "b.tif", position_coded(600, 600), tiled=True)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(image, "r+") as dataset:
        dataset.write_mask(np.full((600, 600), 255, np.uint8))
        dataset.build_overviews([2, 4])
    found = describe(Source(scene_id="1", split="train", image=str(image), stack=(), label=None), DataConfig())
    assert not isinstance(found, SetAside)


def test_a_vrt_of_vectors_is_not_followed(tmp_path):
    frame((0, 0, 5, 5)).to_file(tmp_path / "other.gpkg")
    vrt = (
        f'<OGRVRTDataSource><OGRVRTLayer name="other"><SrcDataSource>{tmp_path / "other.gpkg"}</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    (tmp_path / "a.geojson").write_text(vrt)
    told("label-elsewhere", fault(tmp_path / "a.geojson"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "a.geojson", "a.vrt")
    told("label-elsewhere", fault(tmp_path / "a.zip"))


def test_a_gpx_has_the_layers_that_hold_something(tmp_path):
    x, y = in_degrees(rectangle(10, 20, 1, 1)).centroid.coords[0]
    head = '<gpx version="1.1" creator="x" xmlns="http://www.topografix.com/GPX/1/1">'
    point = f'lat="{y:.12f}" lon="{x:.12f}"'
    path = tmp_path / "a.gpx"
    path.write_text(f"{head}<wpt {point}/></gpx>")
    assert read_label(path, **SIZE).sum() == 1
    path.write_text(f"{head}<wpt {point}/><trk><trkseg><trkpt {point}/><trkpt {point}/></trkseg></trk></gpx>")
    assert "holds 3 layers, waypoints, tracks, track_points, and" in fault(path)
    assert read_label(path, layer="waypoints", **SIZE).sum() == 1
    path.write_text(f"{head}</gpx>")
    assert not read_label(path, **SIZE).any()


def test_layers_of_which_only_the_geometry_differs(tmp_path):
    shapes = [rectangle(10, 20, 8, 12), rectangle(0, 0, 4, 4).centroid]
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(shape)} for shape in shapes]
    crs = {"type": "name", "properties": {"name": "EPSG:32611"}}
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    # One layer, whatever its features are.
    assert read_label(path, **SIZE).sum() == 96 + 1
