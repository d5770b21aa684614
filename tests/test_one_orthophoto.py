"""One image as a whole data set: chipping, inference and evaluation of blocks of ground."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import geopandas as gpd
import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster

from bundles import MEAN, STD, identity_bundle
from geochip.chipping import main as chipping
from geochip.errors import InputError, WorkError
from geochip.evaluate import main as evaluate
from geochip.infer import main as infer
from geochip.run_file import parse_command
from geochip.scenes import find_scenes
from geochip.store import PredictionStore, journal_path
from helpers import tree_hash
from orthophotos import COLS, ROWS, SPLITS, owners_of_pixels, write_ortho
from told import told

CLASSES = ("background", "building")


def flags_of(root, run_dir="run"):
    return [
        f"--run_dir={root / run_dir}", f"--data.root={root / 'data'}", "--data.image={id}.tif",
        "--data.label={id}.geojson", "--split.by=blocks", "--split.block=40", "--chips.size=16",
        '--split.fractions={"train": 0.5, "val": 0.25, "test": 0.25}', "--chips.per_scene=40",
    ]  # fmt: skip


def config_of(root, *more):
    return parse_command([*flags_of(root), *more], command="chipping", description="").config


def image_of(class_hw):
    return (MEAN + STD * class_hw[None]).astype(np.uint16)


@pytest.fixture
def data(tmp_path):
    """An image whose pixels of test look like buildings; nothing is labelled."""
    write_ortho(tmp_path / "data")
    catalogue = find_scenes(config_of(tmp_path))
    owners = owners_of_pixels(catalogue.scenes[0], catalogue.squares)
    write_ortho(tmp_path / "data", image=image_of(owners == "test"))
    return owners


@pytest.fixture
def on(dask_address):
    return ["--cluster.kind=address", f"--cluster.address={dask_address}"]


def test_chips_of_one_image_are_those_of_its_blocks(tmp_path, data, on, capsys):
    chipping([*flags_of(tmp_path), *on])
    out = capsys.readouterr().out
    assert "scenes are divided by blocks of 40 m: " in out
    assert "train keeps 8.5" in out
    assert "1 scene, 120 chips of 16 x 16 (40 in train, 40 in val, 40 in test)" in out
    with xr.open_datatree(tmp_path / "run" / "chips.zarr") as tree:
        for split in SPLITS:
            chips = tree[split].to_dataset().load()
            assert chips.status.values.tolist() == [1] * 40 or chips.written.values.all()
            # Only those of test look like buildings, all of them and all over.
            assert set(np.unique(chips.image)) == {int(MEAN + STD * (split == "test"))}
            for row, col in zip(chips.row_off.values, chips.col_off.values, strict=True):
                assert set(data[row : row + 16, col : col + 16].ravel()) == {split}
    table = gpd.read_parquet(tmp_path / "run" / "scenes.parquet")
    assert list(zip(table.split, table.scene_id, table.status, strict=True)) == [(s, "ortho", "ok") for s in SPLITS]
    areas = table.to_crs("EPSG:32611").geometry.area
    assert areas[2] == pytest.approx((data == "test").sum() * 0.25, rel=1e-3)
    assert areas[0] < (data == "train").sum() * 0.25
    record = table.attrs["squares"]
    assert (record["side"], record["home"], set(record["owners"])) == (40.0, "train", set(SPLITS))


def test_the_same_bytes_from_one_worker_and_from_two_and_a_rerun_changes_nothing(tmp_path, data, on, capsys):
    chipping([*flags_of(tmp_path), *on, "--chips.per_scene=200"])
    path = tmp_path / "run" / "chips.zarr"
    first = tree_hash(path)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    ) as cluster:  # fmt: skip
        alone = ["--cluster.kind=address", f"--cluster.address={cluster.scheduler_address}", "--chips.per_scene=200"]
        chipping([*flags_of(tmp_path, "alone"), *alone])
    assert tree_hash(tmp_path / "alone" / "chips.zarr") == first
    catalogue = (tmp_path / "run" / "scenes.parquet").read_bytes()
    capsys.readouterr()
    chipping([*flags_of(tmp_path), *on, "--chips.per_scene=200"])
    assert "12 of 12 shards are there already" in capsys.readouterr().out
    assert tree_hash(path) == first
    assert (tmp_path / "run" / "scenes.parquet").read_bytes() == catalogue
    chipping([*flags_of(tmp_path), *on, "--chips.per_scene=200", "--verify"])


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path, data, on):
    many = ["--chips.per_scene=1500", "--chips.size=16"]
    chipping([*flags_of(tmp_path, "quiet"), *on, *many])
    process = subprocess.Popen(
        [sys.executable, "-m", "geochip.chipping", *flags_of(tmp_path, "killed"), *on, *many],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    store = tmp_path / "killed" / "chips.zarr"
    journal, deadline = journal_path(store), time.monotonic() + 200
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    chipping([*flags_of(tmp_path, "killed"), *on, *many])
    assert tree_hash(store) == tree_hash(tmp_path / "quiet" / "chips.zarr")


def test_an_image_that_cannot_be_read_counts_once_and_is_mended_in_place(tmp_path, data, on):
    chipping([*flags_of(tmp_path, "quiet"), *on])
    image = tmp_path / "data" / "ortho.tif"
    whole = image.read_bytes()
    image.write_bytes(whole[:-100_000])
    with pytest.raises(WorkError) as caught:
        chipping([*flags_of(tmp_path), *on])
    assert "scene ortho (test): " in str(caught.value)
    assert "1 of " in str(caught.value)
    assert "data.max_bad_scenes allows 0" in str(caught.value)
    image.write_bytes(whole)
    chipping([*flags_of(tmp_path), *on])
    assert tree_hash(tmp_path / "run" / "chips.zarr") == tree_hash(tmp_path / "quiet" / "chips.zarr")


@pytest.fixture
def predicted(tmp_path, data, on):
    """Chips, and a model that says what pixels look like; predicted for test."""
    chipping([*flags_of(tmp_path), *on])
    identity_bundle(tmp_path / "run" / "model", class_names=CLASSES)
    infer([*flags_of(tmp_path), *on, "--infer.block=128"])
    return data


def scores(tmp_path, *more):
    evaluate([*flags_of(tmp_path), *more])
    return json.loads((tmp_path / "run" / "eval.json").read_text())


def test_scores_are_those_of_the_blocks_of_a_split(tmp_path, predicted, on, capsys):
    capsys.readouterr()
    found = scores(tmp_path)
    test = int((predicted == "test").sum())
    # All of test looks like buildings where nothing is labelled, and nothing else does.
    assert found["confusion_matrix"] == [[0, test], [0, 0]]
    assert found["split"] == "test"
    (counted,) = found["blocks"]["per_scene"].values()
    assert counted["split"] == "test"
    assert 0 < counted["blocks"] < counted["of"]
    assert found["blocks"]["side"] == 40
    told_of = (
        f"counted: {counted['blocks']} of {counted['of']} blocks of 40 m, those of test; --infer.split names another"
    )
    assert told_of in " ".join(capsys.readouterr().out.split())
    total = test
    for split in ("val", "train"):
        found = scores(tmp_path, f"--infer.split={split}")
        pixels = int((predicted == split).sum())
        assert found["confusion_matrix"] == [[pixels, 0], [0, 0]]
        assert found["split"] == split
        total += pixels
    assert total == ROWS * COLS


def test_one_prediction_serves_every_split(tmp_path, predicted, on, capsys):
    before = tree_hash(tmp_path / "run" / "predictions.zarr")
    capsys.readouterr()
    infer([*flags_of(tmp_path), *on, "--infer.block=128", "--infer.split=val"])
    out = capsys.readouterr().out
    assert "all of them are predicted already" in out
    assert (
        "blocks of 40 m divide the scenes between train, val, test: they are predicted whole, and geochip.evaluate counts "
        "the blocks of infer.split"
    ) in out
    assert tree_hash(tmp_path / "run" / "predictions.zarr") == before
    infer(
        [
            *flags_of(tmp_path),
            *on,
            "--infer.store",
            str(tmp_path / "by_name.zarr"),
            str(tmp_path / "data" / "ortho.tif"),
        ]
    )
    store = PredictionStore(tmp_path / "by_name.zarr")
    assert [(scene.scene_id, scene.split, scene.complete) for scene in store.scenes.values()] == [
        ("ortho", "test", True)
    ]
    found = scores(tmp_path, f"--infer.store={tmp_path / 'by_name.zarr'}")
    assert found["confusion_matrix"] == [[0, int((predicted == "test").sum())], [0, 0]]


def test_an_area_of_interest_narrows_what_is_counted(tmp_path, predicted):
    from helpers import box, write_label
    from orthophotos import GRIDS

    write_label(tmp_path / "data" / "aoi" / "all.json", [box(GRIDS["north up"][1], 0, 0, 130, COLS)])
    found = scores(tmp_path, "--chips.aoi=aoi/all.json")
    assert found["confusion_matrix"] == [[0, int((predicted[:130] == "test").sum())], [0, 0]]


def test_later_commands_keep_to_the_division_of_the_store(tmp_path, predicted, on):
    catalogue = find_scenes(config_of(tmp_path))
    for more in (["--split.seed=7"], ["--split.block=55"], ["--split.buffer=0"], ["--chips.size=32"]):
        again = find_scenes(config_of(tmp_path, *more))
        assert again.squares == catalogue.squares
        assert again.scenes == catalogue.scenes
        with pytest.raises(InputError, match=more[0][2:].split("=")[0]):
            chipping([*flags_of(tmp_path), *on, *more])
    with pytest.raises(InputError, match=r"split\.scenes"):
        chipping([*flags_of(tmp_path), *on, "--split.scenes=whole"])
    chipping([*flags_of(tmp_path), *on, "--split.scenes=divided"])


def test_an_image_that_is_added_later_moves_nothing(tmp_path, predicted):
    before = find_scenes(config_of(tmp_path))
    # It overlaps the first one by half: there, ground is whose it was; all other ground is that of train.
    write_ortho(tmp_path / "data", "added", shift=(COLS / 2, 0))
    after = find_scenes(config_of(tmp_path))
    assert after.squares == before.squares
    assert [one for one in after.scenes if one.scene_id == "ortho"] == list(before.scenes)
    (added,) = [one for one in after.scenes if one.scene_id == "added" and one.split == "test"]
    owners = owners_of_pixels(added, after.squares)
    np.testing.assert_array_equal(owners[:, : COLS // 2], predicted[:, COLS // 2 :])
    assert set(np.unique(owners[:, COLS // 2 + 80 :])) == {"train"}


def test_a_damaged_record_of_the_division_is_told(tmp_path, predicted):
    path = tmp_path / "run" / "scenes.parquet"
    table = gpd.read_parquet(path)
    table.attrs["squares"] = {**table.attrs["squares"], "side": -1}
    table.to_parquet(path)
    with pytest.raises(InputError) as caught:
        find_scenes(config_of(tmp_path))
    told("blocks-record-damaged", str(caught.value))


def test_dry_run_and_doctor_say_what_each_split_gets(tmp_path, data, capsys):
    from geochip.doctor.data import scenes
    from geochip.doctor.findings import Case

    chipping([*flags_of(tmp_path), "--dry_run"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "divided by blocks" in line)
    squares = find_scenes(config_of(tmp_path)).squares
    for split in SPLITS:
        assert f"{len(squares.owners[split])} in {split} (" in line
    test = (data == "test").sum() * 0.25 / 1e6
    assert f" in test ({test:.3g} km² to cut from)" in line
    found = scenes(Case(config=config_of(tmp_path)))
    assert next((one.level, one.text) for one in found if one.what == "splits") == ("ok", line)
    assert any(one.text.startswith("1 scene below ") for one in found)
