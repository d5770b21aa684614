"""Files whose names are odd: they work, or they are one bad scene."""

import io
import os
import sys
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr

import geochip
from bundles import MEAN, STD, identity_bundle
from geochip.chipping import main as chipping
from geochip.config import DataConfig, RunConfig
from geochip.errors import run_command
from geochip.evaluate import main as evaluate
from geochip.infer import main as infer
from geochip.labels import LabelError, indexed_label, read_aoi
from geochip.labels.grid import Grid
from geochip.scenes import describe_files, find_scenes
from helpers import UTM, box, position_coded, read_label, write_image, write_label
from told import told

GRID = Grid(height=30, width=40, transform=UTM, crs="EPSG:32611")
ODD = ["a;b", "a!b", "a\tb", "a\nb", "a b?", "a#b,c", "-x", "a%20b", "a'b\"", "\u00fc\U0001f30d"]


def write_vector(path):
    (ring,) = box(UTM, 5, 7, 10, 12)["coordinates"]
    frame = gpd.GeoDataFrame({"kind": ["building"]}, geometry=[shapely.Polygon(ring)], crs="EPSG:32611")
    plain = path.with_name(f"plain{path.suffix}")
    frame.to_file(plain)
    for file in path.parent.glob("plain.*"):
        file.rename(path.with_suffix(file.suffix))
    return path


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp", ".fgb"])
@pytest.mark.parametrize("name", ODD)
def test_labels_and_areas_of_interest_are_read_under_any_name(tmp_path, name, suffix):
    path = write_vector(tmp_path / f"{name}{suffix}")
    label = read_label(path, height=30, width=40, classes=("other", "building"), class_property="kind")
    expected = np.zeros((30, 40), np.uint8)
    expected[5:15, 7:19] = 1
    np.testing.assert_array_equal(label, expected)
    assert read_aoi(str(path), GRID).bounds == pytest.approx((7, 5, 19, 15))
    if suffix == ".geojson":
        copy = indexed_label(str(path), tmp_path / "index", at_least=0)
        np.testing.assert_array_equal(read_label(copy, height=30, width=40, classes=("other", "building")), expected)


def test_another_file_is_not_taken_for_a_name_that_is_cut(tmp_path):
    # What follows a semicolon was cut off: the label of another scene was drawn.
    write_label(tmp_path / "a", [box(UTM, 0, 0, 30, 40)])
    write_label(tmp_path / "a;b.geojson", [])
    assert not read_label(tmp_path / "a;b.geojson", height=30, width=40).any()


@pytest.fixture
def flags(tmp_path, dask_address):
    return [
        f"--run_dir={tmp_path / 'run'}", f"--data.root={tmp_path / 'data'}", "--data.image={split}/{id}.tif",
        "--data.label={split}/{id}.geojson", "--data.splits=[test]", "--train.split=test", "--train.val_split=null",
        "--infer.split=test", "--chips.size=16", "--chips.method=grid",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


def write_building(root, name):
    """A scene of 30 x 40 pixels whose building is labelled and would be predicted."""
    class_hw = np.zeros((30, 40), np.uint8)
    class_hw[5:15, 7:19] = 1
    write_image(root / f"test/{name}.tif", (MEAN + STD * class_hw[None]).astype(np.uint16))
    write_label(root / f"test/{name}.geojson", [box(UTM, 5, 7, 10, 12)])


def test_odd_ids_go_through_all_commands(tmp_path, flags):
    identity_bundle(tmp_path / "run/model", class_names=("background", "building"))
    names = [name for name in ODD if name.isprintable()]
    for name in names:
        write_building(tmp_path / "data", name)
    for main in (chipping, infer, evaluate):
        main([*flags, "--chips.allow_overlap=true"])
    with xr.open_datatree(tmp_path / "run/chips.zarr", engine="zarr") as tree:
        assert set(tree["test"]["scene_id"].values.tolist()) == set(names)
    for name in names:
        assert geochip.open_scene(tmp_path / "run/predictions.zarr", name)["class"].values.sum() == 120
        assert (tmp_path / f"run/predictions/{name}.tif").is_file()
    assert '"f1": 1.0' in (tmp_path / "run/eval.json").read_text()


@pytest.mark.parametrize("name", [b"a\xffb", b"a\nb", b"a\tb", b"x" * 252])
def test_a_name_that_is_no_id_is_one_bad_scene(tmp_path, flags, capsys, name):
    identity_bundle(tmp_path / "run/model", class_names=("background", "building"))
    # Images without a suffix: an id may then be as long as a file's name.
    for scene_id in (name, b"1"):
        write_building(tmp_path / "data", "new")
        (tmp_path / "data/test/new.tif").rename(tmp_path / "data/test" / os.fsdecode(scene_id))
    (tmp_path / "data/test/new.geojson").rename(tmp_path / "data/1.geojson")
    flags = [*flags, "--data.image={split}/{id}", "--data.label={id}.geojson"]
    for main in (chipping, infer):
        assert run_command(main, flags) == 1
        told("id-of-file", capsys.readouterr().err)
        assert run_command(main, [*flags, "--data.max_bad_scenes=1"]) == 0
        told("id-of-file", capsys.readouterr().out)
    assert [path.name for path in (tmp_path / "run/predictions").iterdir()] == ["1.tif"]
    assert pd.read_parquet(tmp_path / "run/scenes.parquet").status.tolist() == ["ok", "bad"]


def test_a_file_of_the_command_line_with_such_a_name(tmp_path):
    path = write_image(tmp_path / "a.tif", position_coded(5, 6)).rename(tmp_path / os.fsdecode(b"a\xff.tif"))
    write_image(tmp_path / "b.tif", position_coded(5, 6))
    catalogue = describe_files([str(path), str(tmp_path / "b.tif")], RunConfig())
    assert [scene.scene_id for scene in catalogue.scenes] == ["b"]
    assert catalogue.bad[0].scene_id == "a\\xff"
    told("id-of-file", catalogue.bad[0].reason)


def test_a_directory_that_is_no_utf8_is_one_bad_scene(tmp_path):
    write_image(tmp_path / "b/1.tif", position_coded(5, 6))
    write_image(tmp_path / "c/1.tif", position_coded(5, 6))
    (tmp_path / "b").rename(tmp_path / os.fsdecode(b"b\xff"))
    data = DataConfig(root=str(tmp_path), image="{id}/1.tif", splits=("train",))
    catalogue = find_scenes(RunConfig(data=data), need_labels=False)
    assert [scene.scene_id for scene in catalogue.scenes] == ["c"]
    catalogue.bad[0].reason.encode()


def test_labels_of_too_long_a_name_are_not_there(tmp_path):
    write_image(tmp_path / f"{'x' * 240}.tif", position_coded(5, 6))
    write_image(tmp_path / "1.tif", position_coded(5, 6))
    write_label(tmp_path / "label_of_1_and_more.geojson", [])
    data = DataConfig(root=str(tmp_path), image="{id}.tif", label="label_of_{id}_and_more.geojson", splits=("train",))
    catalogue = find_scenes(RunConfig(data=data))
    assert [scene.scene_id for scene in catalogue.scenes] == ["1"]
    assert [item.scene_id for item in catalogue.unlabelled] == ["x" * 240]


def test_an_index_of_a_label_with_a_long_name(tmp_path):
    path = write_label(tmp_path / ("\u00fc" * 120 + ".geojson"), [box(UTM, 5, 7, 10, 12)])
    assert Path(indexed_label(str(path), tmp_path / "index", at_least=0)).is_file()


def test_a_missing_area_of_interest_is_called_so(tmp_path, flags, capsys):
    identity_bundle(tmp_path / "run/model", class_names=("background", "building"))
    write_building(tmp_path / "data", "1")
    assert run_command(chipping, [*flags, "--chips.aoi=none.gpkg"]) == 2
    told("aoi-missing", err := capsys.readouterr().err)
    assert f"{tmp_path}/data/none.gpkg" in err
    infer(flags)
    assert run_command(evaluate, [*flags, "--chips.aoi=none.gpkg"]) == 1
    told("aoi-missing", err := capsys.readouterr().err)
    assert "label" not in err.splitlines()[0].replace("none of the labelled", "")
    (tmp_path / "bad.geojson").write_text("{")
    with pytest.raises(LabelError, match=r"^chips.aoi: .* could not be read as a vector file"):
        read_aoi(str(tmp_path / "bad.geojson"), GRID)
    # Relative to data.root, as the documents say.
    write_label(tmp_path / "data/area.geojson", [box(UTM, 0, 0, 30, 40)])
    chipping([*flags, "--chips.aoi=area.geojson"])


def test_values_of_labels_are_compared_as_they_look(tmp_path):
    nfd, nfc = "Geba\u0308ude", "Geb\u00e4ude"
    path = write_label(tmp_path / "a.geojson", [box(UTM, 0, 0, 3, 4)], properties=[{nfd: nfd}])
    found = read_label(path, height=30, width=40, classes=("other", nfc), class_property=nfc)
    assert found.sum() == 12
    mapped = {"class_property": nfd, "class_map": {nfc: "x"}}
    assert read_label(path, height=30, width=40, classes=("other", "x"), **mapped).sum() == 12


def test_a_name_that_the_terminal_cannot_show_does_not_end_a_command(tmp_path, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run_command(lambda argv: print("\u00fc \udcff"), []) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xfc \\udcff\n"
