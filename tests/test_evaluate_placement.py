"""Predictions, and what they are compared with, that lie elsewhere or nowhere."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine

from bundles import MEAN, STD, identity_bundle
from geochip.errors import InputError, WorkError
from geochip.evaluate import main
from geochip.infer import main as infer
from geochip.labels import LabelError
from geochip.store import open_scene
from helpers import IMAGE, LABEL, UTM, box, data_flags, read_label, write_image, write_label, write_scene
from told import told

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

CLASSES = ("background", "building")
BUILDING = (5, 10, 10, 20)


@pytest.fixture
def flags(tmp_path):
    return [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "test"), "--train.split=test",
        "--train.val_split=null", "--infer.split=test",
    ]  # fmt: skip


@pytest.fixture
def predict(tmp_path, flags, dask_address):
    def run_infer(*more):
        identity_bundle(tmp_path / "run" / "model", class_names=CLASSES)
        infer([*flags, "--cluster.kind=address", f"--cluster.address={dask_address}", "--infer.block=24", *more])

    return run_infer


def image():
    class_hw = np.zeros((50, 40), np.uint8)
    class_hw[5:15, 10:30] = 1
    return (MEAN + STD * class_hw[None]).astype(np.uint16)


def label(tmp_path, scene_id, geometries):
    write_label(tmp_path / "data" / LABEL.format(split="test", id=scene_id), geometries)


@pytest.fixture
def places(tmp_path, predict):
    """Two predicted scenes, far from each other."""
    found = {}
    for scene_id in "12":
        found[scene_id] = UTM @ Affine.translation(1000 * int(scene_id), 0)
        write_scene(tmp_path / "data", "test", scene_id, image(), transform=found[scene_id], geometries=[])
    predict("--infer.cog=false")
    return found


def test_labels_that_all_lie_elsewhere_are_an_error(tmp_path, flags, places):
    for scene_id in "12":
        label(tmp_path, scene_id, [box(UTM, *BUILDING)])
    with pytest.raises(InputError) as caught:
        main(flags)
    told("evaluate-missed", str(caught.value))
    told("label-misses", str(caught.value))
    assert not (tmp_path / "run" / "eval.json").exists()


def test_features_around_all_scenes_are_an_error_once_they_are_drawn(tmp_path, flags, places):
    for scene_id, place in places.items():
        label(tmp_path, scene_id, [box(place, *at, 5, 5) for at in ((10, -60), (10, 90), (-60, 10), (90, 10))])
    with pytest.raises(WorkError) as caught:
        main(flags)
    told("evaluate-missed", str(caught.value))
    assert not (tmp_path / "run" / "eval.json").exists()


def test_one_label_elsewhere_is_named_and_counts(tmp_path, flags, places, capsys):
    label(tmp_path, "1", [box(places["1"], *BUILDING)])
    label(tmp_path, "2", [box(UTM, *BUILDING)])
    main(flags)
    printed = capsys.readouterr().out
    told("label-misses", printed)
    assert "label_2.geojson: none of its features meets the image 2" in printed
    assert "label_1.geojson: none" not in printed
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["confusion_matrix"] == [[1800 + 1800, 200], [0, 200]]


def test_empty_labels_are_legitimate(flags, places, capsys):
    main(flags)
    assert "none of its features" not in capsys.readouterr().out


def test_an_area_of_interest_elsewhere_leaves_nothing_to_score(tmp_path, flags, places):
    write_label(tmp_path / "data" / "aoi.geojson", [box(UTM, 0, 0, 20, 20)])
    with pytest.raises(WorkError, match=r"none of 2 scenes has a pixel with a prediction and a label.*chips.aoi"):
        main([*flags, "--chips.aoi=aoi.geojson"])
    assert not (tmp_path / "run" / "eval.json").exists()
    write_label(tmp_path / "data" / "aoi.geojson", [box(places["1"], 0, 0, 20, 20)])
    main([*flags, "--chips.aoi=aoi.geojson"])


def test_predictions_of_an_image_without_a_geotransform_claim_no_place(tmp_path, predict, capsys):
    write_image(tmp_path / "data" / IMAGE.format(split="test", id="1"), image(), transform=None)
    predict("--infer.cog=true")
    told("no-geotransform", capsys.readouterr().out)
    assert open_scene(tmp_path / "run" / "predictions.zarr", "1").rio.crs is None
    with rasterio.open(tmp_path / "run" / "predictions" / "1.tif") as dataset:
        assert (dataset.crs, dataset.transform) == (None, Affine.identity())
        assert (dataset.read(1) == 1).sum() == 200


def test_a_raster_label_without_a_georeference(tmp_path):
    values = np.zeros((1, 60, 50), np.uint8)
    values[:, 3:7, 5:11] = 1
    path = tmp_path / "a.png"
    how = {"height": 60, "width": 50, "classes": CLASSES}
    write_image(tmp_path / "b.tif", values, crs=None, transform=None)
    with rasterio.open(path, "w", driver="PNG", count=1, height=60, width=50, dtype="uint8") as dataset:
        dataset.write(values)
    for name in ("a.png", "b.tif"):
        with pytest.raises(LabelError) as caught:
            read_label(tmp_path / name, **how)
        told("label-raster-nowhere", str(caught.value))
    # The remedy: gdal_translate with these bounds.
    words = str(caught.value).split("gdal_translate -a_srs ")[1].rstrip(")").split(" ")
    assert words[:2] == ["EPSG:32611", "-a_ullr"]
    west, north, east, south = map(float, words[2:])
    transform = rasterio.transform.from_bounds(west, south, east, north, 50, 60)
    write_image(tmp_path / "c.tif", values, crs=words[0], transform=transform)
    assert read_label(tmp_path / "c.tif", **how).sum() == 24
    # A CRS alone is none.
    write_image(tmp_path / "d.tif", values, transform=None)
    with pytest.raises(LabelError) as caught:
        read_label(tmp_path / "d.tif", **how)
    told("label-raster-nowhere", str(caught.value))
    assert read_label(tmp_path / "d.tif", **how, transform=Affine.identity(), crs=None).sum() == 24
