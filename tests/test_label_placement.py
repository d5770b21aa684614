"""Labels, and areas of interest, that lie elsewhere than their scenes."""

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine

from geochip.chipping import main
from geochip.config import ChipsConfig, DataConfig, RunConfig, TrainConfig
from geochip.doctor.data import scenes as findings_of_scenes
from geochip.doctor.findings import Case
from geochip.errors import InputError, WorkError
from geochip.labels import Grid, Placed, describe_miss, find_misses
from geochip.scenes import find_scenes
from geochip.store import ChipStore
from geochip.windows import Window
from helpers import (
    IMAGE,
    LABEL,
    UTM,
    box,
    data_flags,
    open_label,
    position_coded,
    write_image,
    write_label,
    write_scene,
)
from told import told

GRID = Grid(height=60, width=70, transform=UTM, crs="EPSG:32611")
HERE = shapely.geometry.shape(box(UTM, 10, 20, 8, 12))
ON_EARTH = gpd.GeoSeries([HERE], crs="EPSG:32611").to_crs("EPSG:4326")[0]
SWAPPED = shapely.transform(ON_EARTH, lambda xy: xy[:, ::-1])


def moved(cols, rows=0):
    return shapely.geometry.shape(box(UTM, 10 + rows, 20 + cols, 8, 12))


def write(path, shapes, crs="EPSG:32611"):
    return write_label(path, [shapely.geometry.mapping(shape) for shape in shapes], crs=crs)


def misses(*paths, grid=GRID, reach=0.0):
    places = {
        number: Placed(path=str(path), image=f"{number}.tif", grid=grid, reach=reach)
        for number, path in enumerate(paths)
    }
    return {number: str(miss) for number, miss in find_misses(places).items()}


@pytest.mark.parametrize(
    ("shapes", "crs", "hint"),
    [
        ([SWAPPED], "missing", "with x and y exchanged they would meet it; write x (longitude) before y (latitude)"),
        ([ON_EARTH], "EPSG:32611", "taken as EPSG:4326 they would meet it; name that as the file's CRS"),
        ([HERE], "EPSG:32612", "taken as EPSG:32611 they would meet it; name that as the file's CRS"),
        ([HERE], "missing", "taken as EPSG:32611 they would meet it; name that as the file's CRS"),
        ([moved(500), moved(500, 500)], "EPSG:32611", "correct its CRS, or name the file that belongs to the image; a scene without objects has an empty file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["geojson", "gpkg"])
def test_a_label_elsewhere_is_named_with_both_bounds_and_a_hint(tmp_path, shapes, crs, hint, form):
    path = write(tmp_path / "a.geojson", shapes, crs)
    if form == "gpkg":
        gpd.read_file(path).set_crs("EPSG:4326" if crs == "missing" else crs, allow_override=True).to_file(
            tmp_path / "a.gpkg"
        )
        path = tmp_path / "a.gpkg"
    # Fewer features than are looked at first, and more.
    for scale in (1, 30):
        if scale > 1 and form == "geojson":
            write(path, [shape for shape in shapes for _ in range(scale)], crs)
        text = misses(path)[0]
        told("label-misses", text)
        west, south, east, north = shapely.total_bounds(shapes)
        assert f"they lie within ({west:.9g}, {south:.9g}) to ({east:.9g}, {north:.9g}), the image within" in text
        assert text.endswith(hint)
    declared = "EPSG:4326" if crs == "missing" else crs
    assert f"(x and y, in {declared})" in text
    scene = gpd.GeoSeries([shapely.box(*(UTM @ (0, 60)), *(UTM @ (70, 0)))], crs="EPSG:32611").to_crs(declared)
    told_bounds = [
        float(word) for word in text.split("the image within (")[1].split(") (")[0].replace(") to (", ", ").split(", ")
    ]
    assert told_bounds == pytest.approx(scene.total_bounds.tolist(), rel=1e-6)


def test_following_the_hints(tmp_path):
    assert misses(write(tmp_path / "a.geojson", [ON_EARTH], "missing")) == {}
    assert misses(write(tmp_path / "a.geojson", [ON_EARTH], "EPSG:4326")) == {}
    assert misses(write(tmp_path / "a.geojson", [HERE], "EPSG:32611")) == {}
    assert misses(write(tmp_path / "a.geojson", [])) == {}
    assert misses(write_label(tmp_path / "a.geojson", [None, {"type": "Polygon", "coordinates": []}])) == {}


def test_an_image_without_georeference_has_pixels(tmp_path):
    grid = Grid(height=60, width=70, transform=Affine.identity(), crs=None)
    path = write(tmp_path / "a.geojson", [HERE], None)
    text = misses(path, grid=grid)[0]
    assert (
        "the image within (0, 0) to (70, 60) (x and y, without a CRS); the image has no geotransform, its pixels count"
        in text
    )
    assert misses(write(tmp_path / "b.geojson", [shapely.box(3, 4, 9, 9)], None), grid=grid) == {}


def test_a_file_for_many_scenes_is_judged_over_all_of_them(tmp_path):
    path = write(tmp_path / "a.geojson", [HERE, moved(5000)])
    far, near = (
        Grid(height=60, width=70, transform=UTM @ Affine.translation(cols, 0), crs="EPSG:32611") for cols in (9000, 0)
    )
    one, other = (Placed(path=str(path), image=f"{k}.tif", grid=grid) for k, grid in enumerate((far, near)))
    assert find_misses({"far": one, "near": other}) == {}
    assert list(find_misses({"far": one})) == ["far"]
    own = write(tmp_path / "b.geojson", [HERE])
    assert list(find_misses({"far": Placed(path=str(own), image="x", grid=far), "near": other})) == ["far"]


def test_a_buffer_reaches_further(tmp_path):
    path = write_label(tmp_path / "a.geojson", [{"type": "Point", "coordinates": list(UTM @ (400, 30))}])
    assert len(misses(path)) == 1
    assert misses(path, reach=340.0) == {}


def test_what_cannot_be_read_or_related_is_told_elsewhere(tmp_path):
    broken = tmp_path / "a.geojson"
    broken.write_text("no")
    raster = write_image(tmp_path / "b.tif", np.zeros((1, 60, 70), np.uint8))
    without = write(tmp_path / "c.geojson", [HERE], None)
    assert misses(broken, raster, without, tmp_path / "none.geojson") == {}
    assert describe_miss(Placed(path=str(broken), image="x.tif", grid=GRID)).endswith(
        "none of its features meets the image x.tif"
    )


# --- what drawing tells ------------------------------------------------------------------------------------------------

AROUND = [moved(-80), moved(90), moved(0, -60), moved(0, 90)]
"""Features on all sides of the scene, within whose bounds it lies."""


@pytest.mark.parametrize("near", [None, "some"])
@pytest.mark.parametrize(("shapes", "missed"), [(AROUND, True), ([*AROUND, HERE], False), ([], False), ([HERE], False)])
@pytest.mark.parametrize("large", [False, True])
def test_features_around_a_scene_miss_it(tmp_path, monkeypatch, shapes, missed, near, large):
    if large:
        monkeypatch.setattr("geochip.labels.source._FILTERED_BYTES", 0)
    windows = None if near is None else [Window(row_off=40, col_off=40, height=8, width=8)]
    path = write(tmp_path / "a.geojson", shapes)
    with open_label(path, height=60, width=70, near=windows) as label:
        assert label.missed is missed


# --- the commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chip(tmp_path, dask_address, capsys):
    def run_main(*flags, splits=("train",)):
        main([
            f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", *splits), "--chips.size=32",
            *(() if "val" in splits else ("--train.val_split=null",)), f"--infer.split={splits[-1]}",
            "--cluster.kind=address", f"--cluster.address={dask_address}", *flags,
        ])  # fmt: skip
        return capsys.readouterr().out

    return run_main


def scene(tmp_path, scene_id, split="train", shift=0):
    """A scene whose label lies `shift` columns beside it."""
    transform = write_scene(tmp_path / "data", split, scene_id)
    place = transform @ Affine.translation(shift, 0)
    return transform, write_label(
        tmp_path / "data" / LABEL.format(split=split, id=scene_id), [box(place, 10, 20, 8, 12)]
    )


@pytest.mark.parametrize("command", [(), ("--dry_run",)])
def test_one_scene_that_is_missed_is_named(tmp_path, chip, command):
    scene(tmp_path, "1")
    scene(tmp_path, "2", shift=900)
    printed = chip(*command)
    told("label-misses", printed)
    assert "label_2.geojson: none of its features meets the image" in printed
    assert "1 of 2 scenes missed by their files (see above)" in printed
    assert "label_1.geojson" not in printed


def test_a_split_that_is_missed_is_an_error_before_anything_is_written(tmp_path, chip):
    scene(tmp_path, "1")
    for scene_id in "345":
        scene(tmp_path, scene_id, "val", shift=900)
    with pytest.raises(InputError) as caught:
        chip(splits=("train", "val"))
    told("split-missed", str(caught.value))
    assert "split val: no label meets its scene (see above; 3 scenes)" in str(caught.value)
    assert not (tmp_path / "run").exists()
    # One of them is mended, another has an empty label.
    scene(tmp_path, "3", "val")
    printed = chip("--dry_run", splits=("train", "val"))
    assert "2 of 4 scenes missed" in printed
    for scene_id in "345":
        write_label(tmp_path / "data" / LABEL.format(split="val", id=scene_id), [])
    assert "missed" not in chip("--dry_run", splits=("train", "val"))


def test_a_split_whose_features_lie_around_its_scenes_shows_when_they_are_drawn(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1")
    label = tmp_path / "data" / LABEL.format(split="train", id="1")
    around = [box(transform, 10 + row, 20 + col, 8, 12) for row, col in ((0, -80), (0, 90), (-60, 0), (90, 0))]
    write_label(label, around)
    with pytest.raises(WorkError, match=r"split train: no label meets its scene \(see above; 1 scene\)"):
        chip()
    assert ChipStore(tmp_path / "run" / "chips.zarr").attrs["complete"] is False
    # Beside a scene that is met it is named.
    scene(tmp_path, "2")
    printed = chip(f"--chips.store={tmp_path / 'other.zarr'}")
    assert "label_1.geojson: none of its features meets the image" in printed
    assert "1 of 2 scenes missed" in printed


def test_an_area_of_interest_elsewhere(tmp_path, chip):
    transform, _ = scene(tmp_path, "1")
    scene(tmp_path, "2", "val")
    flags = ["--chips.aoi=aoi.geojson", "--dry_run"]
    write_label(tmp_path / "data" / "aoi.geojson", [box(transform, 0, 0, 50, 50)])
    with pytest.raises(InputError) as caught:
        chip(*flags, splits=("train", "val"))
    told("aoi-misses", str(caught.value))
    assert "no area of interest meets a scene of split val (see above; 1 scene)" in str(caught.value)
    # The remedies.
    chip(*flags)
    chip("--chips.aoi=null", "--dry_run", splits=("train", "val"))
    # An area for each scene.
    scene(tmp_path, "3")
    for scene_id in "13":
        write_label(tmp_path / "data" / f"{scene_id}.geojson", [box(transform, 0, 0, 50, 50)])
    printed = chip("--chips.aoi={id}.geojson", "--dry_run")
    assert "chips.aoi " in printed
    assert "3.geojson: none of its features meets the image" in printed


def test_an_image_with_a_crs_and_no_geotransform(tmp_path, chip):
    def catalogue():
        data = DataConfig(root=str(tmp_path / "data"), image=IMAGE, label=LABEL, splits=("train",))
        return find_scenes(RunConfig(data=data)).scenes

    image = tmp_path / "data" / IMAGE.format(split="train", id="1")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        write_image(image, position_coded(60, 70), transform=None)
    label = write(tmp_path / "data" / LABEL.format(split="train", id="1"), [HERE])
    with pytest.raises(InputError) as caught:
        chip()
    told("no-geotransform", str(caught.value))
    assert "scene_1.tif has the CRS EPSG:32611 and no geotransform" in str(caught.value)
    assert "give it one (gdal_edit.py -a_ullr, or a world file beside it)" in str(caught.value)
    # In pixels it may be drawn, and has no place.
    write(label, [shapely.box(3, 4, 13, 9)], None)
    told("no-geotransform", chip())
    (found,) = catalogue()
    assert (found.crs, found.unused_georeference, found.pixel_size) == (None, "the CRS EPSG:32611", None)
    # The remedy: a world file beside it (pixel centres).
    image.with_suffix(".tfw").write_text(
        "\n".join(map(str, (UTM.a, 0, 0, UTM.e, UTM.c + UTM.a / 2, UTM.f + UTM.e / 2)))
    )
    write(label, [HERE])
    printed = chip(f"--chips.store={tmp_path / 'placed.zarr'}")
    assert "geotransform" not in printed
    (found,) = catalogue()
    assert (found.crs, found.transform) == ("EPSG:32611", UTM)


def test_an_image_in_degrees_that_are_none(tmp_path, chip):
    write_scene(tmp_path / "data", "train", "1", crs="EPSG:4326", transform=UTM)
    with pytest.raises(InputError) as caught:
        chip()
    told("no-degrees", str(caught.value))
    assert "has coordinates such as (664000, 4004000), which are no degrees, but is in EPSG:4326" in str(caught.value)


def test_the_doctor_names_what_is_missed(tmp_path):
    scene(tmp_path, "1")
    scene(tmp_path, "2", shift=900)
    data = DataConfig(root=str(tmp_path / "data"), image=IMAGE, label=LABEL, splits=("train",))
    config = RunConfig(
        run_dir=str(tmp_path / "run"), data=data, chips=ChipsConfig(size=32), train=TrainConfig(val_split=None)
    )
    texts = [str(one) for one in findings_of_scenes(Case(config=config, probe=False))]
    (text,) = [text for text in texts if "missed" in text]
    assert "1 missed by their files" in text
    told("label-misses", text)
    scene(tmp_path, "1", shift=900)
    texts = [str(one) for one in findings_of_scenes(Case(config=config, probe=False))]
    told("split-missed", " ".join(texts))
    assert "FAIL" in texts[0]


@pytest.mark.parametrize("suffix", ["shp", "gpkg", "fgb", "geojson"])
def test_an_empty_file_of_any_format_lies_nowhere_wrong(tmp_path, suffix):
    """A shapefile without features says that they lie at (0, 0)."""
    path = tmp_path / f"a.{suffix}"
    gpd.GeoDataFrame({"a": []}, geometry=[], crs="EPSG:32611").to_file(path)
    assert misses(path) == {}
