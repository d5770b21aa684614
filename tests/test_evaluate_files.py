"""Images that were named on the command line are compared with their labels."""

import json
from pathlib import Path

import numpy as np
import pytest

from bundles import MEAN, STD, identity_bundle
from geochip.config import DataConfig, RunConfig
from geochip.errors import run_command
from geochip.evaluate import main
from geochip.infer import main as infer
from geochip.scenes import labels_of_stranger
from helpers import UTM, box, data_flags, write_image, write_label
from told import told


@pytest.fixture
def flags(tmp_path, dask_address):
    identity_bundle(tmp_path / "run/model", class_names=("background", "building"))
    return [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train", "val"), "--infer.split=val",
        "--infer.cog=false", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


def write_building(path):
    """An image whose prediction is 6 x 5 pixels of building."""
    class_hw = np.zeros((20, 20), np.uint8)
    class_hw[2:8, 3:8] = 1
    return write_image(path, (MEAN + STD * class_hw[None]).astype(np.uint16))


def evaluated(tmp_path, flags, *more):
    main([*flags, *more])
    return json.loads((tmp_path / "run/eval.json").read_text())


PERFECT = [[370, 0], [0, 30]]


@pytest.mark.parametrize("label", ["val/label_7.geojson", "val/label_scene_7.geojson"])
def test_by_the_name_that_fits_the_template_and_by_the_files_own(tmp_path, flags, label):
    image = write_building(tmp_path / "elsewhere/scene_7.tif")
    write_label(tmp_path / "data" / label, [box(UTM, 2, 3, 6, 5)])
    infer([*flags, str(image)])
    found = evaluated(tmp_path, flags)
    assert found["confusion_matrix"] == PERFECT
    assert list(found["per_scene"]) == ["scene_7"]
    assert found["left_out"] == []


def test_labels_beside_the_images(tmp_path, flags):
    images = [write_building(tmp_path / f"new/town_{number}.tif") for number in (1, 2)]
    for number in (1, 2):
        write_label(tmp_path / f"new/town_{number}.json", [box(UTM, 2, 3, 6, 5)])
    (tmp_path / "data").mkdir()
    infer([*flags, *map(str, images)])
    found = evaluated(tmp_path, flags, f"--data.root={tmp_path / 'new'}", "--data.label={id}.json")
    assert found["scenes"] == 2
    assert found["confusion_matrix"] == [[740, 0], [0, 60]]


def test_without_a_label_it_says_where_one_was_looked_for(tmp_path, flags, capsys):
    image = write_building(tmp_path / "elsewhere/scene_7.tif")
    (tmp_path / "data").mkdir()
    infer([*flags, str(image)])
    assert run_command(main, flags) == 2
    told("stranger-without-label", err := capsys.readouterr().err)
    for label in ("train/label_scene_7", "val/label_scene_7", "train/label_7", "val/label_7"):
        assert f"{tmp_path}/data/{label}.geojson" in err
    write_label(tmp_path / "data/train/label_7.geojson", [box(UTM, 2, 3, 6, 5)])
    assert evaluated(tmp_path, flags)["confusion_matrix"] == PERFECT


def test_two_labels_of_its_name_are_not_chosen_from(tmp_path, flags, capsys):
    image = write_building(tmp_path / "elsewhere/scene_7.tif")
    for split in ("train", "val"):
        write_label(tmp_path / f"data/{split}/label_7.geojson", [box(UTM, 2, 3, 6, 5)])
    infer([*flags, str(image)])
    assert run_command(main, flags) == 2
    told("stranger-with-labels", capsys.readouterr().err)
    found = evaluated(tmp_path, flags, "--data.label=val/label_{id}.geojson")
    assert found["confusion_matrix"] == PERFECT


def test_the_area_of_interest_is_that_of_the_labels_split(tmp_path, flags, capsys):
    image = write_building(tmp_path / "elsewhere/scene_7.tif")
    write_label(tmp_path / "data/val/label_7.geojson", [box(UTM, 2, 3, 6, 5)])
    write_label(tmp_path / "data/val.geojson", [box(UTM, 0, 0, 10, 10)])
    infer([*flags, str(image)])
    found = evaluated(tmp_path, flags, "--chips.aoi={split}.geojson")
    assert found["confusion_matrix"] == [[70, 0], [0, 30]]
    more = ["--data.label=val/label_{id}.geojson", "--chips.aoi={split}.geojson"]
    assert run_command(main, [*flags, *more]) == 1
    assert "has an area for each split, and the scene belongs to none" in capsys.readouterr().err
    assert evaluated(tmp_path, flags, more[0], "--chips.aoi=null")["confusion_matrix"] == PERFECT


def test_a_scene_of_a_split_has_its_own_label_alone(tmp_path, flags):
    for split in ("train", "val"):
        write_building(tmp_path / f"data/{split}/scene_7.tif")
    write_label(tmp_path / "data/train/label_7.geojson", [box(UTM, 2, 3, 6, 5)])
    infer([*flags, str(tmp_path / "data/val/scene_7.tif")])
    assert run_command(main, flags) == 2


def test_where_labels_are_looked_for():
    data = DataConfig(root="/d", image="{split}/img{id}.tif", label="labels/{id}.gpkg")
    found = labels_of_stranger(RunConfig(data=data), "img12")
    assert list(found) == [Path("/d/labels/img12.gpkg"), Path("/d/labels/12.gpkg")]
    # An image's name without {id} tells no id.
    data = DataConfig(root="/d", image="{id}/image.tif", label="{id}/label.gpkg", splits=("train",))
    assert len(labels_of_stranger(RunConfig(data=data), "image")) == 1
