"""Files that nearly fit a template are counted and named, with the template that takes them."""

import re
import unicodedata
from pathlib import Path

import pytest

from bundles import identity_bundle
from geochip.chipping import main
from geochip.config import DataConfig, RunConfig, SplitConfig
from geochip.doctor import main as doctor
from geochip.errors import InputError, run_command
from geochip.infer_plan import plan_inference
from geochip.run_file import parse_run_config
from geochip.scenes import describe_files, find_scenes
from helpers import position_coded, write_image, write_label
from told import told


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Writes images and labels of these names below data."""
    monkeypatch.chdir(tmp_path)

    def write(*names):
        for name in names:
            path = tmp_path / "data" / name
            if path.suffix.lower() in (".geojson", ".json"):
                write_label(path, [])
            else:
                write_image(path, position_coded(40, 40))

    return write


def config_of(image="{split}/{id}.tif", label="{split}/{id}.geojson", splits=("train",), **more):
    data = DataConfig(root="data", image=image, label=label, splits=splits, **more)
    return RunConfig(data=data)


def ids(catalogue):
    return [(scene.split, scene.scene_id) for scene in catalogue.scenes]


@pytest.mark.parametrize("other", [".TIF", ".tiff", ".JP2", ".jpeg", ".Tif"])
def test_another_suffix(place, other):
    place("train/1.tif", "train/1.geojson", f"train/2{other}", f"train/3{other}")
    catalogue = find_scenes(config_of())
    (text,) = catalogue.near
    told("near-files", text)
    assert text.startswith("2 files nearly fit data.image ({split}/{id}.tif) and are left out, the first is ")
    assert f"train/2{other}: --data.image '{{split}}/{{id}}{other}' would take them in place of those that fit" in text
    assert ids(catalogue) == [("train", "1")]
    # As it says.
    template = re.search(r"--data.image '(.+?)'", text)[1]
    assert ids(find_scenes(config_of(template), need_labels=False)) == [("train", "2"), ("train", "3")]


def test_when_none_fits_the_error_says_what_would(place):
    place("train/1.TIF", "train/1.geojson")
    with pytest.raises(InputError) as error:
        find_scenes(config_of())
    assert "data.image: no file matches" in str(error.value)
    assert "1 file nearly fits data.image" in str(error.value)
    assert ids(find_scenes(config_of(re.search(r"--data.image '(.+?)'", str(error.value))[1]))) == [("train", "1")]


def test_letters_in_another_case(place):
    place("train/Scene_1.tif", "train/scene_2.tif", "train/2.geojson", "train/SCENE_3.TIF")
    first, second = find_scenes(config_of("{split}/scene_{id}.tif")).near
    assert "'{split}/SCENE_{id}.TIF'" in first
    assert "'{split}/Scene_{id}.tif'" in second


def test_a_split_in_another_case(place):
    place("Train/1.tif", "Train/1.geojson", "val/2.tif", "val/2.geojson")
    with pytest.raises(InputError, match=r"name the split 'Train' in data.splits, or rename the directory"):
        find_scenes(config_of(splits=("train", "val")))
    # As it says.
    Path("data/Train").rename("data/train")
    assert ids(find_scenes(config_of(splits=("train", "val")))) == [("train", "1"), ("val", "2")]


def test_a_directory_in_another_case_and_an_absolute_template(place, tmp_path):
    place("Images/a/1.tif", "1.geojson")
    with pytest.raises(InputError, match=r"'Images/\{id\}/1.tif' would take it"):
        find_scenes(config_of("images/{id}/1.tif"))
    with pytest.raises(InputError, match=rf"--data.image '{tmp_path}/data/Images/a/{{id}}.tif' would take it"):
        find_scenes(config_of(f"{tmp_path}/data/Images/a/{{id}}.TIF"))


def test_companions_are_not_near(place):
    # Quick looks of scenes that are there, files of other templates, and what is no image.
    place("train/1.tif", "train/1.geojson", "train/1.png", "train/1_height.tif", "train/2_height.TIF", "train/1.json")
    for name in ("1.tif.aux.xml", "1.tfw", "1.tif.ovr", "readme.txt", "3.geojson"):
        Path("data/train", name).write_text("")
    catalogue = find_scenes(config_of(stack=("{split}/{id}_height.tif",), image="{split}/{id}.tif"))
    assert catalogue.near == ()


def test_labels(place):
    place("train/1.tif", "train/1.geojson", "train/2.tif", "train/2.GeoJSON", "train/3.tif")
    catalogue = find_scenes(config_of())
    (text,) = catalogue.near
    told("near-label", text)
    assert "train/2.GeoJSON: --data.label '{split}/{id}.GeoJSON' would take it in place of those that fit" in text
    assert [item.scene_id for item in catalogue.unlabelled] == ["2", "3"]
    assert ids(find_scenes(config_of(label="{split}/{id}.GeoJSON"))) == [("train", "2")]
    # Nobody asks for labels where scenes are predicted.
    assert find_scenes(config_of(), need_labels=False).near == ()


def test_when_no_scene_has_a_label(place):
    place("train/1.tif", "train/1.json", "train/2.tif", "train/2.json")
    with pytest.raises(InputError, match=r"2 files nearly fit data.label.*--data.label '{split}/{id}.json' would take"):
        find_scenes(config_of())
    assert len(find_scenes(config_of(label="{split}/{id}.json")).scenes) == 2


def test_it_is_told_by_every_command_that_looks(place, capsys):
    place("train/1.tif", "train/1.geojson", "train/2.TIF")
    flags = [
        "--data.root=data", "--data.image={split}/{id}.tif", "--data.label={split}/{id}.geojson", "--data.splits=[train]",
        "--train.val_split=null", "--infer.split=train", "--chips.size=16", "--run_dir=run",
    ]  # fmt: skip
    for arguments in ([*flags, "--dry_run"], flags):
        main(arguments)
        out = capsys.readouterr().out
        assert out.count("nearly fits data.image") == 1
        assert "warning: 1 file nearly fits" in out
    identity_bundle(Path("run/model"), bands=3, dtype="uint32")
    run_command(doctor, [*flags, "--no_probe", "--model.encoder_weights=null"])
    assert capsys.readouterr().out.count("nearly fits data.image") == 1
    plan = plan_inference(parse_run_config(flags, command="infer", description="")[0], ())
    assert [text for text in plan.warnings if "nearly fits" in text]


def test_a_file_that_a_table_names_otherwise(place, tmp_path):
    place("a.TIF", "b.tif", "c.tif")
    (tmp_path / "m.csv").write_text(
        "scene_id,image,split\n1,a.tif,train\n2,B.tif,train\n3,c.tif,train\n4,d.tif,train\n"
    )
    config = RunConfig(
        data=DataConfig(root="data", splits=("train",)), split=SplitConfig(by="manifest", manifest="m.csv")
    )
    bad = {item.scene_id: item.reason for item in find_scenes(config, need_labels=False).bad}
    told("similar-file", bad["1"])
    assert f"there is {tmp_path}/data/a.TIF, so correct the name" in bad["1"]
    assert f"there is {tmp_path}/data/b.tif" in bad["2"]
    assert bad["4"] == f"{tmp_path}/data/d.tif is no file"
    assert "3" not in bad


def test_a_stacked_file_that_nearly_fits(place, tmp_path):
    place("train/1.tif", "train/1_height.TIFF")
    catalogue = config_of(stack=("{split}/{id}_height.tif",))
    with pytest.raises(InputError, match=r"data.stack asks for it; there is .*1_height.TIFF"):
        find_scenes(catalogue, need_labels=False)


NFC = "M\u00fcnchen"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.mark.parametrize("on_disk", [NFC, NFD])
@pytest.mark.parametrize("typed", [NFC, NFD])
def test_a_name_is_found_however_its_umlauts_are_composed(place, tmp_path, on_disk, typed):
    other = NFD if on_disk == NFC else NFC
    place(f"train/{on_disk}.tif", f"train/{other}.geojson", f"{on_disk}/1.tif", f"{on_disk}/1.geojson")
    (scene,) = find_scenes(config_of()).scenes
    assert scene.scene_id == NFC
    assert scene.image.endswith(f"train/{on_disk}.tif")
    assert scene.label.endswith(f"train/{other}.geojson")
    assert ids(find_scenes(config_of(f"{typed}/{{id}}.tif", f"{typed}/{{id}}.geojson"))) == [("train", "1")]
    (tmp_path / "m.csv").write_text(f"scene_id,split\n{typed},train\n")
    data = DataConfig(root="data", image="train/{id}.tif", label="train/{id}.geojson", splits=("train",))
    config = RunConfig(data=data, split=SplitConfig(by="manifest", manifest="m.csv"))
    (scene,) = find_scenes(config).scenes
    assert (scene.scene_id, scene.label is not None) == (NFC, True)
    (named,) = describe_files([f"data/train/{on_disk}.tif"], config).scenes
    assert (named.split, named.scene_id) == ("train", NFC)


def test_two_names_that_look_alike(place):
    place(f"train/{NFC}.tif", f"train/{NFD}.tif", f"train/{NFC}.geojson")
    catalogue = find_scenes(config_of())
    assert ids(catalogue) == [("train", NFC)]
    (item,) = catalogue.bad
    told("two-spellings", item.reason)
    assert catalogue.order == (("train", NFC),)
