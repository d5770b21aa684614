"""Splits as a table says."""

import re
import shutil
from dataclasses import replace

import geopandas as gpd
import pandas as pd
import pytest
import shapely

from geochip.config import ChipsConfig, DataConfig, RunConfig, SplitConfig
from geochip.errors import InputError
from geochip.scenes import aoi_path, describe_files, find_scenes, label_path
from helpers import FLAT_IMAGE, FLAT_LABEL, ids_by_split, position_coded, write_flat, write_image, write_label

SPLITS = ("train", "val", "test")


def listed(tmp_path, table, name="scenes.csv", column="split", splits=SPLITS, **data):
    """A configuration with a manifest of these rows."""
    path = tmp_path / name
    frame = pd.DataFrame(table)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        places = gpd.GeoSeries([shapely.Point(i, i) for i in range(len(frame))], crs="EPSG:4326")
        geo = gpd.GeoDataFrame(frame, geometry=places)
        geo.to_parquet(path) if path.suffix == ".geoparquet" else geo.to_file(path)
    section = {"root": str(tmp_path / "data"), "image": FLAT_IMAGE, "label": FLAT_LABEL, "splits": splits, **data}
    return RunConfig(data=DataConfig(**section), split=SplitConfig(by="manifest", manifest=str(path), column=column))


@pytest.mark.parametrize("name", ["a.csv", "a.gpkg", "a.geojson", "a.parquet", "a.geoparquet"])
def test_a_table_of_any_format_divides_the_scenes(tmp_path, name):
    for scene_id in ("007", "12", "9", "x", "unused"):
        write_flat(tmp_path / "data", scene_id)
    table = {
        "scene_id": ["12", "x", "9", "007", "unused"],
        "fold": ["train", "val", "train", "test", "nobody's"],
        "note": [1, 2, 3, 4, 5],
    }
    config = listed(tmp_path, table, name, column="fold")
    catalogue = find_scenes(config)
    assert ids_by_split(catalogue) == {"train": ["9", "12"], "val": ["x"], "test": ["007"]}
    assert catalogue.order == (("train", "9"), ("train", "12"), ("val", "x"), ("test", "007"))
    assert [scene.split for scene in find_scenes(config, ["test", "val"]).scenes] == ["val", "test"]
    assert ids_by_split(find_scenes(config, ["test"])) == {"train": [], "val": [], "test": ["007"]}
    (scene,) = find_scenes(config, ["val"]).scenes
    assert scene.image == str(tmp_path / "data" / "images" / "scene_x.tif")
    assert scene.label == str(tmp_path / "data" / "labels" / "x.geojson")


def test_ids_keep_their_zeros(tmp_path):
    for scene_id in ("007", "0012"):
        write_flat(tmp_path / "data", scene_id)
    config = listed(tmp_path, {"scene_id": ["007", "0012"], "split": ["train"] * 2}, splits=("train",))
    assert ids_by_split(find_scenes(config))["train"] == ["007", "0012"]


def test_ids_that_a_table_holds_as_numbers(tmp_path):
    for scene_id in ("7", "12"):
        write_flat(tmp_path / "data", scene_id)
    # A gap makes a column of integers one of floats.
    table = {"scene_id": [7, 12, None], "split": ["train", "train", "other"]}
    config = listed(tmp_path, table, "a.parquet", splits=("train",))
    assert ids_by_split(find_scenes(config))["train"] == ["7", "12"]


def test_a_table_may_name_the_files(tmp_path):
    root = tmp_path / "data"
    write_flat(root, "1")
    write_flat(root, "elsewhere")
    shutil.move(root / "images" / "scene_elsewhere.tif", root / "far.tif")
    (tmp_path / "abs").mkdir()
    shutil.move(root / "labels" / "elsewhere.geojson", tmp_path / "abs" / "l.geojson")
    table = {
        "image": ["images/scene_1.tif", "images/../far.tif"],
        "label": ["", str(tmp_path / "abs" / "l.geojson")],
        "split": ["train", "val"],
    }
    config = listed(tmp_path, table, splits=("train", "val"))
    # The id is what stands at {id} where the template fits, else the stem.
    first, second = find_scenes(config).scenes
    assert (first.scene_id, second.scene_id) == ("1", "far")
    assert (second.image, second.label) == (str(root / "far.tif"), str(tmp_path / "abs" / "l.geojson"))
    assert label_path(config, "val", "far") == tmp_path / "abs" / "l.geojson"
    # No label is named: by the template.
    assert label_path(config, "train", "1") == root / "labels" / "1.geojson"
    (named,) = describe_files([str(root / "far.tif")], config).scenes
    assert (named.scene_id, named.split, named.label) == ("far", "val", second.label)
    named_ids = listed(tmp_path, {**table, "scene_id": ["a", "b"]}, splits=("train", "val"))
    assert [scene.scene_id for scene in find_scenes(named_ids, need_labels=False).scenes] == ["a", "b"]


def test_a_file_that_no_row_names_belongs_to_no_split(tmp_path):
    for scene_id in "12":
        write_flat(tmp_path / "data", scene_id)
    config = listed(tmp_path, {"scene_id": ["1"], "split": ["train"]}, splits=("train",))
    (scene,) = describe_files([str(tmp_path / "data" / FLAT_IMAGE.format(id="2"))], config).scenes
    assert (scene.scene_id, scene.split, scene.label) == ("scene_2", "", None)


def test_a_listed_image_that_is_not_there_is_set_aside_in_its_place(tmp_path):
    for scene_id in "135":
        write_flat(tmp_path / "data", scene_id)
    (tmp_path / "data" / FLAT_LABEL.format(id="5")).unlink()
    config = listed(tmp_path, {"scene_id": list("12345"), "split": ["train"] * 5}, splits=("train",))
    write_label(tmp_path / "data" / FLAT_LABEL.format(id="2"), [])
    catalogue = find_scenes(config)
    image = tmp_path / "data" / "images"
    assert ids_by_split(catalogue)["train"] == ["1", "3"]
    assert [str(item) for item in catalogue.bad] == [
        f"scene 2 (train): {image}/scene_2.tif is no file", f"scene 4 (train): {image}/scene_4.tif is no file",
    ]  # fmt: skip
    assert [item.scene_id for item in catalogue.unlabelled] == ["5"]
    assert catalogue.order == tuple(("train", scene_id) for scene_id in "1234")


def test_a_table_that_changed_is_read_again(tmp_path):
    for scene_id in "12":
        write_flat(tmp_path / "data", scene_id)
    before = listed(tmp_path, {"scene_id": ["1"], "split": ["train"]}, splits=("train",))
    assert ids_by_split(find_scenes(before))["train"] == ["1"]
    after = listed(tmp_path, {"scene_id": ["1", "2"], "split": ["train"] * 2}, splits=("train",))
    assert after == before
    assert ids_by_split(find_scenes(after))["train"] == ["1", "2"]


ERRORS_OF_TABLES = {
    "no such column": (
        {"id": ["1"], "fold": ["train"]},
        "split.column: {path} has no column 'split'; it has id, fold: name one of them",
    ),
    "no scenes": (
        {"id": ["1"], "split": ["train"]},
        "split.manifest: {path} has neither a column scene_id nor a column image; it has id, split: add the scenes' "
        "ids, or the paths of their images",
    ),
    "an empty id": (
        {"scene_id": ["1", ""], "split": ["train", "train"]},
        "split.manifest: {path} has no scene_id in row 2; fill it in or remove the row",
    ),
    "an empty path": (
        {"image": ["1.tif", ""], "split": ["train", "train"]},
        "split.manifest: {path} has no image in row 2; fill it in or remove the row",
    ),
    "twice in a split": (
        {"scene_id": ["1", "2", "1"], "split": ["train"] * 3},
        "split.manifest: {path} lists scene '1' of train twice, in row 1 (train) and in row 3 (train); a scene belongs "
        "to one split, once: give one of them another scene_id, with the path of its image in a column image, or "
        "remove a row that is too many",
    ),
    "in two splits": (
        {"scene_id": ["1", "1"], "split": ["train", "val"]},
        "split.manifest: {path} lists image {root}/images/scene_1.tif twice, in row 1 (train) and in row 2 (val); a "
        "scene belongs to one split, once: remove a row",
    ),
    "one image under two names": (
        {"scene_id": ["a", "b"], "image": ["x/1.tif", "x/y/../1.tif"], "split": ["train", "val"]},
        "split.manifest: {path} lists image {root}/x/1.tif twice, in row 1 (train) and in row 2 (val); a scene belongs "
        "to one split, once: remove a row",
    ),
    "a split without rows": (
        {"scene_id": ["1", "2"], "split": ["train", "test"]},
        "split.manifest: {path} has no row with 'val' in its column 'split', of data.splits only train, test; correct "
        "the table, split.column or data.splits",
    ),
}


@pytest.mark.parametrize(("table", "text"), ERRORS_OF_TABLES.values(), ids=ERRORS_OF_TABLES.keys())
def test_errors_of_tables(tmp_path, table, text):
    write_flat(tmp_path / "data", "1")
    config = listed(tmp_path, table)
    expected = text.format(path=tmp_path / "scenes.csv", root=tmp_path / "data")
    with pytest.raises(InputError, match=f"^{re.escape(expected)}$"):
        find_scenes(config)


def test_tables_that_cannot_be_read(tmp_path):
    write_flat(tmp_path / "data", "1")
    config = listed(tmp_path, {"scene_id": ["1"], "split": ["train"]}, splits=("train",))
    for name, content in (("a.csv", b""), ("b.parquet", b"no table"), ("c.gpkg", b"no table"), ("d.csv", b"\xff\xfe")):
        path = tmp_path / name
        path.write_bytes(content)
        spoilt = replace(config, split=replace(config.split, manifest=str(path)))
        with pytest.raises(
            InputError, match=rf"split.manifest: {path} could not be read \(.+\); it must be a table such as CSV"
        ):
            find_scenes(spoilt)
    missing = replace(config, split=replace(config.split, manifest=str(tmp_path / "none.csv")))
    with pytest.raises(
        InputError,
        match=r"split.manifest: .*none.csv could not be read \(No such file or directory\); give the path of the table",
    ):
        find_scenes(missing)


def test_a_scene_of_the_same_name_in_two_directories_is_two_scenes(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / "data" / split / "1.tif", position_coded(4, 5))
    table = {"scene_id": ["1", "1"], "split": ["train", "val"]}
    config = listed(tmp_path, table, image="{split}/{id}.tif", splits=("train", "val"))
    assert ids_by_split(find_scenes(config, need_labels=False)) == {"train": ["1"], "val": ["1"], "test": []}


def test_where_the_area_of_interest_is(tmp_path):
    config = RunConfig(data=DataConfig(root=str(tmp_path)))
    assert aoi_path(config, "train", "7") is None
    per_scene = replace(config, chips=ChipsConfig(aoi="aoi/{split}/{id}.gpkg"))
    assert aoi_path(per_scene, "train", "7") == tmp_path / "aoi" / "train" / "7.gpkg"
    for_all = replace(config, chips=ChipsConfig(aoi=str(tmp_path / "elsewhere" / "aoi.gpkg")))
    assert aoi_path(for_all, "train", "7") == tmp_path / "elsewhere" / "aoi.gpkg"
