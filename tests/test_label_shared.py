"""One label file for all scenes, or one for each split."""

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr

from bundles import MEAN, STD, identity_bundle
from geochip.chipping import main
from geochip.errors import InputError
from geochip.evaluate import main as evaluate
from geochip.infer import main as infer
from geochip.run_file import parse_command
from geochip.scenes import find_scenes
from helpers import box, data_flags, position_coded, tree_hash, write_label, write_scene
from told import told


@pytest.fixture
def scenes(tmp_path):
    """Three scenes of 60 x 70 pixels far from one another, with a box of another size on each: its number, squared."""
    boxes = []
    for number, (split, scene_id) in enumerate((("train", "1"), ("train", "2"), ("val", "3")), 4):
        transform = write_scene(tmp_path / "data", split, scene_id, position_coded(60, 70))
        boxes.append(box(transform, 10, 20, number, number))
        (tmp_path / "data" / split / f"label_{scene_id}.geojson").unlink()
    write_label(tmp_path / "data" / "all.geojson", boxes)
    return tmp_path / "data"


@pytest.fixture
def flags(tmp_path, dask_address):
    return [
        *data_flags(tmp_path / "data", "train", "val"), "--chips.size=60", "--chips.method=grid", "--chips.edge=pad",
        "--cluster.kind=address", f"--cluster.address={dask_address}", f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip


def buildings(path):
    """Building pixels of each scene."""
    found = {}
    with xr.open_datatree(path) as tree:
        for split in ("train", "val"):
            for scene_id, label in zip(tree[split].scene_id.values, tree[split].label.values, strict=True):
                found[str(scene_id)] = found.get(str(scene_id), 0) + int((label == 1).sum())
    return found


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "parquet"])
def test_every_scene_has_what_lies_on_it(tmp_path, scenes, flags, suffix):
    if suffix == "parquet":
        gpd.read_file(scenes / "all.geojson").to_parquet(scenes / "all.parquet")
    elif suffix != "geojson":
        gpd.read_file(scenes / "all.geojson").to_file(scenes / f"all.{suffix}")
    main([*flags, f"--data.label=all.{suffix}"])
    assert buildings(tmp_path / "run" / "chips.zarr") == {"1": 16, "2": 25, "3": 36}


def test_one_for_each_split(tmp_path, scenes, flags):
    document = json.loads((scenes / "all.geojson").read_text())
    write_label(scenes / "train.geojson", [one["geometry"] for one in document["features"][:2]])
    write_label(scenes / "val.geojson", [document["features"][2]["geometry"]])
    main([*flags, "--data.label={split}.geojson"])
    assert buildings(tmp_path / "run" / "chips.zarr") == {"1": 16, "2": 25, "3": 36}


def test_it_is_copied_once_when_it_is_large_and_gives_the_same(tmp_path, scenes, flags, monkeypatch):
    main([*flags, "--data.label=all.geojson"])
    plain = tmp_path / "run" / "chips.zarr"
    document = json.loads((scenes / "all.geojson").read_text())
    # Two mebibytes: less than is worth a copy for one scene.
    document["features"] += [{"type": "Feature", "properties": {"note": "x" * 2**21}, "geometry": None}]
    (scenes / "large.geojson").write_text(json.dumps(document))
    seen = []
    from geochip.labels import index

    real = index.indexed_label
    monkeypatch.setattr(
        index, "indexed_label", lambda *args, **how: seen.append((args[0], found := real(*args, **how))) or found
    )
    other = tmp_path / "other"
    main([*flags, "--data.label=large.geojson", f"--run_dir={other}"])
    ((label, copy),) = seen
    assert label == str(scenes / "large.geojson")
    assert copy != label
    assert Path(copy).is_absolute()
    assert not Path(copy).exists()
    assert buildings(other / "chips.zarr") == buildings(plain)


def test_the_fingerprint_follows_the_file(tmp_path, scenes, flags):
    main([*flags, "--data.label=all.geojson"])
    before = tree_hash(tmp_path / "run" / "chips.zarr")
    main([*flags, "--data.label=all.geojson"])
    assert tree_hash(tmp_path / "run" / "chips.zarr") == before
    write_label(scenes / "all.geojson", [])
    with pytest.raises(InputError, match=r"3 scenes changed: train/1, train/2, val/3"):
        main([*flags, "--data.label=all.geojson"])


@pytest.mark.parametrize("label", ["none.geojson", "{split}.geojson"])
@pytest.mark.parametrize("by", ["directories", "manifest", "blocks"])
def test_one_that_is_missing_is_an_error_and_not_a_thousand_scenes_without(tmp_path, scenes, flags, label, by):
    write_label(scenes / "train.geojson", [])
    how = []
    if by == "blocks":
        for split in ("train", "val"):
            for path in list((scenes / split).iterdir()):
                path.rename(scenes / path.name)
        label = "none.geojson"
        how = ["--split.by=blocks", "--data.image=scene_{id}.tif", "--split.fractions={train: 0.5, val: 0.5}"]
    if by == "manifest":
        (tmp_path / "m.csv").write_text("scene_id,split\n1,train\n2,train\n3,val\n")
        how = ["--split.by=manifest", f"--split.manifest={tmp_path / 'm.csv'}"]
    with pytest.raises(InputError) as caught:
        main([*flags, *how, f"--data.label={label}"])
    told("shared label missing", str(caught.value))
    assert not (tmp_path / "run").exists()
    # Predicting needs none.
    config = parse_command([*flags, *how, f"--data.label={label}"], command="infer", description="").config
    assert sum(len(find_scenes(config, [split], need_labels=False).scenes) for split in ("train", "val")) == 3


def test_a_row_of_a_manifest_may_have_a_file_of_its_own(tmp_path, scenes, flags):
    features = json.loads((scenes / "all.geojson").read_text())["features"]
    write_label(scenes / "own.geojson", [features[2]["geometry"]])
    (tmp_path / "m.csv").write_text("scene_id,split,label\n1,train,\n2,train,\n3,val,own.geojson\n")
    main([*flags, "--data.label=all.geojson", "--split.by=manifest", f"--split.manifest={tmp_path / 'm.csv'}"])
    assert buildings(tmp_path / "run" / "chips.zarr") == {"1": 16, "2": 25, "3": 36}


@pytest.mark.parametrize("copied", [False, True])
def test_evaluate_reads_it_too(tmp_path, scenes, flags, copied, monkeypatch):
    if copied:
        monkeypatch.setattr("geochip.labels.index._SMALLEST", 1)
        monkeypatch.setattr("geochip.labels.index.LARGE", 1)
    for scene_id in "12":
        image = (MEAN + STD * np.zeros((1, 60, 70))).astype(np.uint16)
        write_scene(scenes, "train", scene_id, image)
        (scenes / "train" / f"label_{scene_id}.geojson").unlink()
    identity_bundle(tmp_path / "run" / "model", class_names=("background", "building"))
    more = [*flags, "--data.label=all.geojson", "--infer.split=train", "--infer.cog=false"]
    infer(more)
    evaluate([flag for flag in more if not flag.startswith("--cluster")])
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["scenes"] == 2
    assert found["confusion_matrix"] == [[2 * 60 * 70 - 16 - 25, 0], [16 + 25, 0]]
    assert not (tmp_path / "run" / "eval.json.labels").exists()
    (scenes / "all.geojson").unlink()
    with pytest.raises(InputError) as caught:
        evaluate([flag for flag in more if not flag.startswith("--cluster")])
    told("shared label missing", str(caught.value))


def test_evaluate_reads_a_geodatabase(tmp_path, scenes, flags):
    """A directory is a label file, too."""
    gpd.read_file(scenes / "all.geojson").to_file(scenes / "all.gdb", driver="OpenFileGDB", layer="houses")
    gpd.read_file(scenes / "all.geojson").iloc[:1].to_file(scenes / "all.gdb", driver="OpenFileGDB", layer="other")
    image = (MEAN + STD * np.zeros((1, 60, 70))).astype(np.uint16)
    for scene_id in "12":
        write_scene(scenes, "train", scene_id, image)
    identity_bundle(tmp_path / "run" / "model", class_names=("background", "building"))
    more = [*flags, "--data.label=all.gdb", "--infer.split=train", "--infer.cog=false", "--labels.layer=houses"]
    infer(more)
    evaluate([flag for flag in more if not flag.startswith("--cluster")])
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["confusion_matrix"][1] == [16 + 25, 0]
