import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import geopandas as gpd
import numpy as np
import psutil
import pytest
import rasterio
import rasterio.features
import rasterio.shutil
import xarray as xr
from affine import Affine
from distributed import Client, LocalCluster
from rasterio.errors import NotGeoreferencedWarning

from geochip.chipping import main
from geochip.cluster import dask_client, make_way, run_tasks, wait_for_a_worker
from geochip.cluster._tasks import Patience, watched
from geochip.config import ClusterConfig
from geochip.errors import InputError, WorkError
from geochip.store import ChipStore, journal_path
from helpers import UTM, box, data_flags, position_coded, run, tree_hash, write_image, write_label, write_scene


@pytest.fixture
def chip(tmp_path, dask_address):
    """Runs the command in this process on the shared cluster."""

    def run_main(*flags, splits=("train",), run_dir="run"):
        main(
            [
                f"--run_dir={tmp_path / run_dir}", *data_flags(tmp_path / "data", *splits),
                "--cluster.kind=address", f"--cluster.address={dask_address}", "--chips.size=32",
                "--train.split=train", *(() if "val" in splits else ("--train.val_split=null",)),
                f"--infer.split={splits[-1]}", *map(str, flags),
            ]
        )  # fmt: skip
        return tmp_path / run_dir / "chips.zarr"

    return run_main


def scenes(tmp_path, split="train", ids="12", **more):
    return {scene_id: write_scene(tmp_path / "data", split, scene_id, **more) for scene_id in ids}


def chips_of(path, split="train"):
    with xr.open_datatree(path) as tree:
        return tree[split].to_dataset().load()


def assert_chips_equal_source(path, data_root, split="train", positions=None):
    """Every chip against its scene's file, read and rasterized independently of geochip."""
    chips = chips_of(path, split)
    if positions is not None:
        chips = chips.isel(chip=list(positions))
    assert chips.written.all()
    for chip in range(chips.sizes["chip"]):
        one = chips.isel(chip=chip)
        image, label = (
            data_root / split / name.format(one.scene_id.item()) for name in ("scene_{}.tif", "label_{}.geojson")
        )
        with rasterio.open(image) as dataset:
            whole, transform = dataset.read(), dataset.transform
        shapes = [feature["geometry"] for feature in json.loads(label.read_text())["features"]]
        drawn = rasterio.features.rasterize(shapes, out_shape=whole.shape[1:], transform=transform, dtype="uint8")
        size = chips.sizes["y"]
        rows, cols = (slice(int(one[name]), int(one[name]) + size) for name in ("row_off", "col_off"))
        np.testing.assert_array_equal(one.image, whole[:, rows, cols])
        np.testing.assert_array_equal(one.label, drawn[rows, cols])
        corner = transform @ (cols.start, rows.start)
        assert (one.x0.item(), one.y0.item()) == pytest.approx(corner)
        assert tuple(one.transform.values) == pytest.approx(
            tuple(transform @ Affine.translation(cols.start, rows.start))[:6]
        )


def test_chips_are_their_scenes_pixels_and_labels(tmp_path, chip, capsys):
    scenes(tmp_path)
    scenes(tmp_path, "val", "3")
    path = chip(splits=("train", "val"))
    for split in ("train", "val"):
        assert_chips_equal_source(path, tmp_path / "data", split)
    # Where the pixels say they are, without any file.
    for one in chips_of(path).transpose("chip", ...).image:
        rows, cols = (one[0].values >> 14) & 0x3FFF, one[0].values & 0x3FFF
        assert (rows - rows[0, 0] == np.arange(32)[:, None]).all()
        assert (cols - cols[0, 0] == np.arange(32)).all()
        assert (rows[0, 0], cols[0, 0]) == (one.row_off, one.col_off)
        assert ((one.values >> 28) == np.arange(3)[:, None, None]).all()
    printed = capsys.readouterr().out
    assert "3 scenes, 15 chips of 32 x 32 (10 in train, 5 in val)" in printed
    assert f"open it with xarray.open_datatree('{path}')" in printed
    catalogue = gpd.read_parquet(path.parent / "scenes.parquet")
    assert catalogue.status.tolist() == ["ok"] * 3
    assert "image_stamp" not in catalogue.columns


@pytest.mark.parametrize(
    ("bands", "dtype", "crs", "transform"),
    [
        (1, "uint8", "EPSG:4326", Affine(2.7e-6, 0, -115.3, 0, -2.7e-6, 36.13)),
        (8, "uint16", "EPSG:3857", Affine(0.4, 0, -12_800_000, 0, -0.4, 4_330_000)),
        (3, "float32", "EPSG:32611", UTM @ Affine.rotation(20)),
        (2, "int16", None, Affine(2, 0, 7, 0, -2, 9)),
    ],
)
def test_any_bands_types_and_grids(tmp_path, chip, bands, dtype, crs, transform):
    # Reduced to 14 bits, to fit every type but uint8, which wraps: still different at neighbouring places.
    image = (position_coded(61, 43, bands) % 16381).astype(dtype)
    scenes(tmp_path, ids="1", image=image, crs=crs, transform=transform)
    path = chip()
    assert_chips_equal_source(path, tmp_path / "data")
    assert chips_of(path).image.dtype == dtype


def test_a_scene_smaller_than_a_chip_is_padded_and_ignored_there(tmp_path, chip):
    image = position_coded(20, 50)
    scenes(tmp_path, ids="1", image=image, nodata=77)
    chips = chips_of(chip("--chips.size=40"))
    assert chips.sizes["chip"] == 5
    for one in chips.transpose("chip", ...).image:
        np.testing.assert_array_equal(one[:, :20], image[:, :, int(one.col_off) : int(one.col_off) + 40])
        assert (one[:, 20:] == 77).all()
    assert (chips.label[:, 20:] == 255).all()
    assert (chips.label[:, :20] < 2).all()
    np.testing.assert_allclose(chips.valid_fraction, 0.5)


def test_nodata_ends_as_255_in_the_label_and_stays_out_of_the_statistics(tmp_path, chip):
    image = np.random.default_rng(0).integers(1, 2000, (2, 60, 70)).astype(np.uint16)
    image[:, :25, :30] = 0
    scenes(tmp_path, ids="1", image=image, nodata=0)
    path = chip("--chips.per_scene=20")
    chips, attributes = chips_of(path), ChipStore(path).attrs
    invalid = (chips.image == 0).all("band")
    assert invalid.any()
    assert ((chips.label == 255) == invalid).all()
    valid = chips.image.values.swapaxes(0, 1)[:, ~invalid.values].astype(float)
    statistics = attributes["statistics"]
    np.testing.assert_allclose(statistics["mean"], valid.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(statistics["std"], valid.std(axis=1), rtol=1e-9)
    np.testing.assert_allclose(statistics["percentiles"]["50"], np.median(valid, axis=1), rtol=1 / 64)
    assert (statistics["min"], statistics["max"]) == (valid.min(axis=1).tolist(), valid.max(axis=1).tolist())
    counts = [int((chips.label == value).sum()) for value in (0, 1)]
    assert list(statistics["class_pixels"].values()) == counts
    assert statistics["valid_pixels"] == sum(counts)
    np.testing.assert_allclose(chips.valid_fraction, (chips.label != 255).mean(("y", "x")), rtol=1e-6)
    building = (chips.label == 1).sum(("y", "x")) / (chips.label != 255).sum(("y", "x"))
    np.testing.assert_allclose(chips.class_fraction[:, 1], building, rtol=1e-6)


def test_scenes_with_another_nodata_value_get_the_stores(tmp_path, chip):
    for scene_id, nodata in (("1", 0), ("2", 9)):
        image = np.full((3, 40, 40), 50, np.uint16)
        image[:, :, :39] = nodata
        write_scene(tmp_path / "data", "train", scene_id, image, nodata=nodata)
    path = chip()
    chips = chips_of(path)
    assert ChipStore(path).attrs["nodata"] == 0
    assert set(np.unique(chips.image)) == {0, 50}
    assert ((chips.label == 255) == (chips.image == 0).all("band")).all()


def test_statistics_are_those_of_the_train_split_alone(tmp_path, chip):
    scenes(tmp_path, "train", "1", image=np.full((3, 40, 40), 100, np.uint16))
    scenes(tmp_path, "val", "2", image=np.full((3, 40, 40), 900, np.uint16))
    statistics = ChipStore(chip(splits=("train", "val"))).attrs["statistics"]
    assert (statistics["split"], statistics["mean"], statistics["std"]) == ("train", [100] * 3, [0] * 3)


def test_the_store_says_what_it_was_made_from(tmp_path, chip):
    scenes(tmp_path)
    attributes = ChipStore(chip("--chips.seed=4", "--data.bands=[3,1]")).attrs
    assert attributes["seed"] == 4
    assert attributes["config"]["chips"]["size"] == attributes["chip_size"] == 32
    assert attributes["class_names"] == ["background", "building"]
    assert (attributes["bands"], attributes["band_names"]) == ([3, 1], ["band_3", "band_1"])
    assert attributes["dtype"] == "uint32"
    assert attributes["pixel_size_range"] == pytest.approx([0.5, 0.5], rel=1e-2)
    assert attributes["complete"] is True
    assert len(attributes["fingerprint"]) == 64


@pytest.mark.parametrize(
    "flags",
    [
        ["--chips.per_scene=40"],
        ["--chips.per_scene=40", "--chips.size_range=[20,50]", "--chips.target_classes=[building]",
         "--chips.min_target_fraction=0.15", "--chips.negative_rate=0.1", "--chips.max_tries=3"],
    ],
    ids=["plain", "by content"],
)  # fmt: skip
def test_the_same_bytes_from_one_worker_and_from_four(tmp_path, flags):
    scenes(tmp_path, ids="123456")
    hashes = set()
    for workers in (1, 4):
        done = run(
            "geochip.chipping", f"--run_dir={tmp_path / str(workers)}", *data_flags(tmp_path / "data", "train"),
            "--train.val_split=null", "--infer.split=train", "--chips.size=32", *flags,
            f"--cluster.workers={workers}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        hashes.add(tree_hash(tmp_path / str(workers) / "chips.zarr"))
    assert len(hashes) == 1


def test_a_second_run_has_nothing_to_do_and_changes_nothing(tmp_path, chip, capsys):
    scenes(tmp_path)
    path = chip()
    before = tree_hash(path), journal_path(path).read_bytes()
    capsys.readouterr()
    chip()
    assert "1 of 1 shards are there already" in capsys.readouterr().out
    assert (tree_hash(path), journal_path(path).read_bytes()) == before


def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path, chip):
    scenes(tmp_path, ids="123456789")
    flags = ["--chips.per_scene=500", "--chips.size=24"]
    quiet = tree_hash(chip(*flags, run_dir="quiet"))
    command = [
        sys.executable, "-m", "geochip.chipping", f"--run_dir={tmp_path / 'killed'}",
        *data_flags(tmp_path / "data", "train"), "--train.val_split=null", "--infer.split=train", *flags,
        "--cluster.workers=1",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    store = tmp_path / "killed" / "chips.zarr"
    journal = journal_path(store)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(children, timeout=60)
    assert ChipStore(store).attrs["complete"] is False
    shards = len(list((store / "train" / "image").glob("c.*")))
    assert 5 <= shards < 9 * 500 // 64
    (store / "train" / "image" / "c.999.0.0.0.__lock").touch()
    assert tree_hash(chip(*flags, run_dir="killed")) == quiet


def test_a_bad_scene_keeps_its_positions_and_the_rest_goes_on(tmp_path, chip, capsys):
    scenes(tmp_path, ids="1234")
    damaged = tmp_path / "data" / "train" / "scene_2.tif"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2 - 5000))
    label = tmp_path / "data" / "train" / "label_3.geojson"
    label_text = label.read_text()
    label.write_text(label_text[:-1] + " ")
    with pytest.raises(WorkError) as caught:
        chip()
    text = str(caught.value)
    assert "scene 2 (train): " in text
    assert "could not be read at rows" in text
    assert "scene 3 (train): label " in text
    assert (
        "2 of 4 scenes could not be used (see above), data.max_bad_scenes allows 0; all other chips are there" in text
    )
    path = tmp_path / "run" / "chips.zarr"
    chips = chips_of(path)
    by_scene = chips.written.groupby("scene_id").all()
    assert dict(zip(by_scene.scene_id.values, by_scene.values, strict=True)) == {
        "1": True,
        "2": False,
        "3": False,
        "4": True,
    }
    assert (chips.label.sel(chip=~chips.written) == 255).all()
    assert ChipStore(path).written("train").tolist() == [*range(5), *range(15, 20)]
    assert gpd.read_parquet(tmp_path / "run" / "scenes.parquet").set_index("scene_id").status["2"] == "bad"
    capsys.readouterr()
    chip("--data.max_bad_scenes=2")
    printed = capsys.readouterr().out
    # A label that is no JSON is known before anything is cut.
    assert "set aside: scene 3 (train): label " in printed
    assert "set aside, as data.max_bad_scenes allows:\nscene 3 (train)" in printed
    assert "\nscene 2 (train): " in printed
    # Mended files are taken up by the same command.
    damaged.write_bytes(whole[: len(whole)])
    label.write_text(label_text)


def test_mended_scenes_are_filled_in(tmp_path, chip):
    scenes(tmp_path, ids="1234")
    whole = tree_hash(chip(run_dir="whole"))
    broken = [tmp_path / "data" / "train" / name for name in ("label_3.geojson", "scene_2.tif")]
    contents = [file.read_bytes() for file in broken]
    for file, content in zip(broken, contents, strict=True):
        file.write_bytes(content[: len(content) - 200])
    with pytest.raises(WorkError, match=r"2 of 4 scenes could not be used .* Mend the files and run again"):
        chip()
    broken[0].write_bytes(contents[0])
    with pytest.raises(WorkError, match="1 of 4 scenes could not be used"):
        chip()
    broken[1].write_bytes(contents[1])
    assert tree_hash(chip()) == whole
    # From now on they must stay as they are.
    broken[0].write_bytes(contents[0].replace(b"5", b"6", 1))
    with pytest.raises(InputError, match="1 scene changed: train/3"):
        chip()


def test_a_scene_whose_header_could_not_be_read_has_its_places_kept(tmp_path, chip):
    scenes(tmp_path, ids="1234")
    whole = tree_hash(chip(run_dir="whole"))
    broken = [tmp_path / "data" / "train" / name for name in ("scene_2.tif", "label_3.geojson")]
    contents = [file.read_bytes() for file in broken]
    broken[0].write_text("no")
    write_label(broken[1], [], crs="EPSG:999999")
    with pytest.raises(WorkError, match=r"2 of 4 scenes could not be used .* Mend the files and run again"):
        chip()
    chips = chips_of(tmp_path / "run" / "chips.zarr")
    assert chips.scene_id.values.tolist() == [name for name in "1234" for _ in range(5)]
    assert chips.written.values.tolist() == [name in "14" for name in "1234" for _ in range(5)]
    assert set(chips.status.values[5:15].tolist()) == {1}
    # Mended one by one, in two more runs.
    broken[0].write_bytes(contents[0])
    with pytest.raises(WorkError, match="1 of 4 scenes could not be used"):
        chip()
    broken[1].write_bytes(contents[1])
    assert tree_hash(chip()) == whole
    # From now on it must be readable.
    broken[0].write_text("no")
    with pytest.raises(InputError, match="1 scene readable before and not now: train/2"):
        chip()


def test_a_mended_scene_does_not_change_how_the_store_is_laid_out(tmp_path, chip, dask_address):
    # Three scenes of 16 chips and two of 20: with the third of these, 20 would be the usual number, and 60 not 64 a shard.
    for number in range(6):
        write_scene(tmp_path / "data", "train", str(number), position_coded(64, 64 if number < 3 else 80), nodata=99)
    flags = ["--chips.method=grid", "--chips.size=16"]
    broken = tmp_path / "data" / "train" / "scene_5.tif"
    whole = broken.read_bytes()
    broken.write_text("no")
    with pytest.raises(WorkError, match="1 of 6 scenes could not be used"):
        chip(*flags)
    broken.write_bytes(whole)
    path = chip(*flags)
    store = ChipStore(path)
    positions = store.written("train")
    assert len(positions) == 3 * 16 + 2 * 20 + 16
    assert_chips_equal_source(path, tmp_path / "data", positions=positions)
    main([f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--verify",
          "--cluster.kind=address", f"--cluster.address={dask_address}"])  # fmt: skip


def test_the_nodata_value_of_a_store_stays(tmp_path, chip):
    image = np.full((3, 40, 40), 50, np.uint16)
    for name, nodata in (("1", 7), ("2", 9), ("3", 9)):
        image[:, :, :10] = nodata
        write_scene(tmp_path / "data", "train", name, image, nodata=nodata)
    broken = tmp_path / "data" / "train" / "scene_1.tif"
    whole = broken.read_bytes()
    broken.write_text("no")
    with pytest.raises(WorkError, match="1 of 3 scenes could not be used"):
        chip()
    broken.write_bytes(whole)
    path = chip()
    chips = chips_of(path)
    assert ChipStore(path).attrs["nodata"] == 9
    assert set(np.unique(chips.image).tolist()) == {9, 50}
    assert ((chips.label == 255) == (chips.image == 9).all("band")).all()


def test_an_area_of_interest_that_was_mended_is_taken_up(tmp_path, chip):
    for name in "12":
        place = write_scene(tmp_path / "data", "train", name)
        write_label(tmp_path / "data" / "train" / f"aoi_{name}.geojson", [box(place, 5, 5, 45, 50)])
    flags = ["--chips.aoi={split}/aoi_{id}.geojson", "--chips.per_scene=4"]
    whole = tree_hash(chip(*flags, run_dir="whole"))
    area = tmp_path / "data" / "train" / "aoi_2.geojson"
    content = area.read_text()
    area.unlink()
    with pytest.raises(WorkError, match=r"scene 2 \(train\): chips.aoi: .*aoi_2.geojson could not be read"):
        chip(*flags)
    area.write_text(content)
    assert tree_hash(chip(*flags)) == whole
    write_label(area, [box(UTM, 5, 5, 45, 50)])
    with pytest.raises(InputError, match="1 scene changed: train/2"):
        chip(*flags)


def test_an_image_that_was_changed_in_place_is_refused(tmp_path, chip):
    scenes(tmp_path)
    path = chip()
    before = tree_hash(path)
    place = tmp_path / "data" / "train" / "scene_2.tif"
    with rasterio.open(place, "r+") as dataset:
        dataset.write(dataset.read() + 1)
    with pytest.raises(InputError, match="1 scene changed: train/2"):
        chip()
    assert tree_hash(path) == before


def later(path):
    """Give a file another time of change than it had, whatever the file system's clock counts in."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 2_000_000_000))


@pytest.mark.parametrize("finished", [True, False])
def test_a_pixel_that_was_changed_in_the_middle_is_found(tmp_path, chip, finished, capsys):
    # Neither the size nor the first and last 16 KiB tell: 3 x 200 x 200 uint32, not compressed.
    image = position_coded(200, 200)
    for name in "123":
        write_scene(tmp_path / "data", "train", name, image)
    flags = ["--chips.method=grid", "--chips.edge=shift"]
    path = chip(*flags)
    if not finished:
        (path / "train/image/c.2.0.0.0").unlink()
    before = tree_hash(path)
    place = tmp_path / "data" / "train" / "scene_2.tif"
    whole = place.read_bytes()
    at = whole.index(image[:, 100].T.tobytes())
    place.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    later(place)
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"chips.zarr was made from something else: 1 scene changed: train/2; choose"
        ):
            chip(*flags)
    assert tree_hash(path) == before
    # As it was, but of another time: compared once, and what is missing is made.
    place.write_bytes(whole)
    later(place)
    for name in "13":
        later(tmp_path / "data" / "train" / f"scene_{name}.tif")
    capsys.readouterr()
    chip(*flags)
    assert "3 scenes have files with another time of change than before" in capsys.readouterr().out
    assert tree_hash(path) == tree_hash(chip(*flags, run_dir="whole"))
    capsys.readouterr()
    chip(*flags)
    assert "another time of change" not in capsys.readouterr().out


def test_doubtful_scenes_beside_others_are_compared_too(tmp_path, chip, capsys):
    """In the same shard: one that cannot be read and is allowed for, and one that has been mended."""
    image = position_coded(200, 200)
    for name in "12":
        write_scene(tmp_path / "data", "train", name, image)
    broken, place = (tmp_path / "data" / "train" / f"scene_{name}.tif" for name in "12")
    contents = broken.read_bytes(), place.read_bytes()
    broken.write_bytes(contents[0][: len(contents[0]) // 2])
    flags = ["--data.max_bad_scenes=1"]
    path = chip(*flags)
    before, journal = tree_hash(path), journal_path(path).read_bytes()
    at = contents[1].index(image[:, 100].T.tobytes())
    # All of the middle: it is a matter of chance what the windows see.
    middle = slice(at, len(contents[1]) - 20_000)
    changed = bytearray(contents[1])
    changed[middle] = bytes(255 - value for value in changed[middle])
    place.write_bytes(changed)
    later(place)
    chip(*flags, "--dry_run")
    assert "1 scene has files with another time of change than before" in capsys.readouterr().out
    for mended in (False, True):
        if mended:
            broken.write_bytes(contents[0])
        with pytest.raises(InputError, match="1 scene changed: train/2; choose"):
            chip(*flags)
        assert (tree_hash(path), journal_path(path).read_bytes()) == (before, journal)
    place.write_bytes(contents[1])
    later(place)
    assert tree_hash(chip(*flags)) == tree_hash(chip(*flags, run_dir="whole"))


def test_a_scene_that_cannot_be_read_to_be_compared_has_not_changed(tmp_path, chip):
    noise = np.random.default_rng(0).integers(0, 60_000, (3, 200, 200)).astype(np.uint16)
    for name in "12":
        write_scene(tmp_path / "data", "train", name, noise, compress="deflate")
    path = chip()
    before = tree_hash(path)
    place = tmp_path / "data" / "train" / "scene_2.tif"
    content = place.read_bytes()
    half = len(content) // 2
    place.write_bytes(content[:half] + bytes(200) + content[half + 200 :])
    later(place)
    with pytest.raises(WorkError, match=r"(?s)scene train/2: .*1 scene could not be compared: train/2 \(see above\)"):
        chip()
    assert tree_hash(path) == before
    place.write_bytes(content)
    assert tree_hash(chip()) == before


def test_a_comparison_that_was_stopped_goes_on(tmp_path, chip, monkeypatch, capsys):
    for name in "123":
        write_scene(tmp_path / "data", "train", name, position_coded(200, 200))
    flags = ["--chips.method=grid"]
    path = chip(*flags)
    before = tree_hash(path)
    for name in "123":
        later(tmp_path / "data" / "train" / f"scene_{name}.tif")

    def stop(client, function, tasks, on_result):
        def result(key, found):
            on_result(key, found)
            raise KeyboardInterrupt

        run_tasks(client, function, tasks, result)

    monkeypatch.setattr("geochip.recheck.run_tasks", stop)
    with pytest.raises(KeyboardInterrupt):
        chip(*flags)
    monkeypatch.undo()
    capsys.readouterr()
    chip(*flags)
    assert "2 scenes have files with another time of change than before" in capsys.readouterr().out
    assert tree_hash(path) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--chips.size_range=[24,48]"],
        ["--chips.target_classes=[building]", "--chips.negative_rate=0.3", "--chips.min_target_fraction=0.05"],
        ["--chips.method=grid", "--chips.edge=pad", "--chips.min_valid=0.5"],
    ],
)  # fmt: skip
def test_scenes_of_another_time_are_the_same_whatever_is_asked_for(tmp_path, chip, flags):
    scenes(tmp_path, ids="123")
    path = chip(*flags)
    before = tree_hash(path)
    for name in "123":
        later(tmp_path / "data" / "train" / f"scene_{name}.tif")
    assert tree_hash(chip(*flags)) == before


def test_a_mosaic_of_mosaics_of_which_a_mask_has_changed_is_found(tmp_path, chip):
    scenes(tmp_path)
    place = tmp_path / "data" / "train" / "scene_1.tif"
    source = place.with_name("source.tif")
    place.rename(source)
    with rasterio.open(source, "r+") as dataset, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        dataset.write_mask(np.full((60, 70), 255, np.uint8))
    for name, of in (("inner.vrt", source), ("scene_1.tif", place.with_name("inner.vrt"))):
        rasterio.shutil.copy(of, place.with_name(name), driver="VRT")
    path = chip()
    before = tree_hash(path)
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(source.with_name("source.tif.msk"), "r+") as dataset:
        dataset.write(np.zeros((60, 70), np.uint8), 1)
    later(source.with_name("source.tif.msk"))
    with pytest.raises(InputError, match="1 scene changed: train/1"):
        chip()
    assert tree_hash(path) == before


def test_a_mask_beside_an_image_that_was_changed_is_found(tmp_path, chip):
    scenes(tmp_path)
    place = tmp_path / "data" / "train" / "scene_1.tif"
    mask = np.full((60, 70), 255, np.uint8)
    with rasterio.open(place, "r+") as dataset, rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False):
        dataset.write_mask(mask)
    assert place.with_name("scene_1.tif.msk").exists()
    path = chip()
    before = tree_hash(path)
    sidecar = place.with_name("scene_1.tif.msk")
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(sidecar, "r+") as dataset:
        dataset.write(np.zeros_like(mask), 1)
    with pytest.raises(InputError, match="1 scene changed: train/1"):
        chip()
    assert tree_hash(path) == before


def test_a_damaged_store_is_not_taken_for_the_same(tmp_path, chip):
    scenes(tmp_path)
    path = chip()
    shard = path / "train/image/c.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 255
    shard.write_bytes(content)
    later(tmp_path / "data" / "train" / "scene_1.tif")
    with pytest.raises(
        WorkError,
        match=r"chips.zarr: a chip of scene train/1 is damaged .*; remove \S+/c\.0\.0\.0\.0 and \S+/c\.0\.0\.0 and run",
    ):
        chip()


def test_a_dry_run_tells_of_the_store_that_is_there(tmp_path, chip, capsys):
    scenes(tmp_path)
    chip()
    capsys.readouterr()
    chip("--dry_run")
    assert "1 of 1 shards are there already" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"chips\.size was 32, now 24"):
        chip("--chips.size=24", "--dry_run")


def test_a_killed_finish_leaves_no_store_that_says_it_is_complete(tmp_path, chip, monkeypatch):
    scenes(tmp_path)
    path = chip()
    whole = tree_hash(path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("geochip.chipping.finish", killed)
    with pytest.raises(KeyboardInterrupt):
        chip()
    assert ChipStore(path).attrs["complete"] is False
    monkeypatch.undo()
    assert tree_hash(chip()) == whole


def test_waiting_for_workers_is_told(capsys):
    with LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster, Client(cluster) as client:  # fmt: skip
        waiting = threading.Thread(target=wait_for_a_worker, args=(client,), kwargs={"seconds": 0.2})
        waiting.start()
        deadline = time.monotonic() + 60
        told = ""
        while "waiting for a Dask worker: none has come to " not in told:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            told += capsys.readouterr().err
        cluster.scale(1)
        waiting.join(60)
        assert not waiting.is_alive()


def test_workers_that_vanish_are_told_and_new_ones_get_work_until_patience_ends(capsys):
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster, Client(cluster) as client, watched(client, Patience(client, seconds=0.5, wait_minutes=1)):  # fmt: skip
        processes = []
        tasks = ((str(number), (0.1,)) for number in range(60))
        running = threading.Thread(
            target=run_tasks, args=(client, _slow_process, tasks, lambda _, process: processes.append(process))
        )
        running.start()
        deadline = time.monotonic() + 60
        while not processes:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.scale(0)
        told = ""
        while f"waiting for a Dask worker: none has come to {cluster.scheduler_address} for " not in told:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            told += capsys.readouterr().err
        cluster.scale(2)
        running.join(60)
        assert len(processes) == 60
        # That which went, and both that came.
        assert len(set(processes)) == 3
    with LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster:  # fmt: skip
        config = ClusterConfig(kind="address", address=cluster.scheduler_address, wait_minutes=0.02)
        with (
            pytest.raises(
                WorkError, match=r"^no Dask worker has come to .* for 0.02 minutes \(cluster.wait_minutes\); start some"
            ),
            dask_client(config) as client,
        ):
            run_tasks(client, _slow_process, [("one", (0,))], print)


def _slow_process(seconds):
    time.sleep(seconds)
    return os.getpid()


def test_a_dry_run_shows_the_script_of_the_slurm_jobs(tmp_path, capsys):
    scenes(tmp_path)
    main([
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--chips.size=32", "--infer.split=train",
        "--train.val_split=null", "--cluster.kind=slurm", "--cluster.workers=3", "--cluster.cpu.account=forest", "--dry_run",
    ])  # fmt: skip
    told = capsys.readouterr().out
    assert "3 jobs with this script would be submitted:\n\n#!/bin/bash -l\n" in told
    assert "\n#SBATCH -A forest\n" in told
    assert "-m distributed.cli.dask_worker tls://" in told
    assert not (tmp_path / "run").exists()


def test_a_mended_scene_of_another_shape_gets_the_places_that_were_kept(tmp_path, chip, capsys):
    scenes(tmp_path, ids="12")
    (tmp_path / "data" / "train" / "scene_3.tif").write_text("no")
    (tmp_path / "data" / "train" / "label_3.geojson").write_text("{}")
    grid = ["--chips.method=grid"]
    with pytest.raises(WorkError, match="1 of 3 scenes could not be used"):
        chip(*grid)
    write_scene(tmp_path / "data", "train", "3", position_coded(100, 100))
    capsys.readouterr()
    # 60 x 70 pixels have 2 x 3 windows of 32, 100 x 100 have 16.
    path = chip(*grid)
    assert_chips_equal_source(path, tmp_path / "data")
    assert chips_of(path).sizes["chip"] == 18
    assert "10 windows of scenes whose headers could not be read at first have no place" in capsys.readouterr().out


def test_one_malformed_geometry_stops_its_scene_alone(tmp_path, chip):
    scenes(tmp_path, ids="12")
    write_label(
        tmp_path / "data" / "train" / "label_2.geojson", [{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}]
    )
    with pytest.raises(WorkError, match=r"scene 2 \(train\): label .* could not be read as a vector file"):
        chip()
    assert ChipStore(tmp_path / "run" / "chips.zarr").written("train").tolist() == [0, 1, 2, 3, 4]


def test_workers_elsewhere_find_relative_paths(tmp_path, dask_address, monkeypatch):
    scenes(tmp_path)
    monkeypatch.chdir(tmp_path)
    main([
        "--run_dir=run", *data_flags("data", "train"), "--chips.size=32", "--train.val_split=null",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ])  # fmt: skip
    assert_chips_equal_source(tmp_path / "run" / "chips.zarr", tmp_path / "data")


def test_an_unreachable_cluster_ends_before_anything_is_written(tmp_path, chip):
    scenes(tmp_path)
    with pytest.raises(
        InputError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9' \(.*start one, or use cluster.kind: local"
    ):
        chip("--cluster.address=tcp://127.0.0.1:9")
    assert not (tmp_path / "run").exists()


def test_another_train_split_is_another_store(tmp_path, chip):
    scenes(tmp_path, "train", "1")
    scenes(tmp_path, "val", "2")
    chip(splits=("train", "val"))
    with pytest.raises(InputError, match=r"train.split was 'train', now 'val'"):
        chip("--train.split=val", splits=("train", "val"))


def test_ctrl_c_ends_quietly_and_the_run_goes_on_later(tmp_path, chip):
    scenes(tmp_path, ids="123456789")
    flags = ["--chips.per_scene=500", "--chips.size=24"]
    command = [
        sys.executable, "-m", "geochip.chipping", f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"),
        "--train.val_split=null", *flags, "--cluster.workers=2",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    journal = journal_path(tmp_path / "run" / "chips.zarr")
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    # As a terminal does it: every process of the group gets it.
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130
    assert told == "geochip: interrupted; what is finished is kept, and the same command goes on from there\n"
    assert tree_hash(chip(*flags)) == tree_hash(chip(*flags, run_dir="quiet"))


def test_scenes_without_label_are_reported_at_the_start_and_at_the_end(tmp_path, chip, capsys):
    scenes(tmp_path, ids="123")
    label = tmp_path / "data" / "train" / "label_2.geojson"
    label.unlink()
    chip()
    line = f"left out: scene 2 (train): there is no label file {label}"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == line
    assert printed[-1] == line


def test_a_changed_configuration_is_refused_and_nothing_is_lost(tmp_path, chip):
    scenes(tmp_path)
    path = chip()
    before = tree_hash(path)
    with pytest.raises(
        InputError, match=r"was made from something else: chips.size was 32, now 24; choose another run_dir"
    ):
        chip("--chips.size=24")
    scenes(tmp_path, ids="3")
    with pytest.raises(InputError, match=r"1 scene not there before: train/3; choose another run_dir or --chips.store"):
        chip()
    assert tree_hash(path) == before


def test_a_store_without_journal_is_refused_and_a_removed_store_is_made_anew(tmp_path, chip):
    scenes(tmp_path)
    path = chip()
    before = tree_hash(path)
    journal_path(path).unlink()
    with pytest.raises(
        InputError, match=r"chips.zarr exists, but chips.zarr.journal beside it does not, so it cannot be continued"
    ):
        chip()
    shutil.rmtree(path)
    assert tree_hash(chip()) == before
    shutil.rmtree(path)
    assert tree_hash(chip()) == before


def test_bad_input_ends_before_anything_is_written(tmp_path, chip):
    for name, breaks, message in (
        ("no image", lambda: write_label(tmp_path / "data/train/label_1.geojson", []), "data.image: no file matches"),
        ("no crs", lambda: scenes(tmp_path, ids="1", crs=None), None),
        (
            "crs on one side",
            lambda: write_label(tmp_path / "data/train/label_1.geojson", [box(UTM, 0, 0, 3, 3)], crs="missing"),
            r"scene_1.tif has no CRS while label .*label_1.geojson is in EPSG:4326, so nothing tells where",
        ),
        (
            "unknown crs",
            lambda: write_label(tmp_path / "data/train/label_1.geojson", [], crs="EPSG:999999"),
            r"label .*label_1.geojson is in an unknown CRS: 'EPSG:999999'",
        ),
        (
            "no geotiff",
            lambda: (tmp_path / "data/train/scene_1.tif").write_text("no"),
            "scene_1.tif is no raster that GDAL can read, such as a GeoTIFF",
        ),
        ("no band", lambda: write_image(tmp_path / "data/train/scene_1.tif", position_coded(4, 4)), None),
    ):
        breaks()
        if message:
            with pytest.raises(InputError, match=message):
                chip()
            assert not (tmp_path / "run").exists(), name
    with pytest.raises(InputError, match=r"data.bands asks for band 4, .*scene_1.tif has bands 1 to 3"):
        chip("--data.bands=[1,4]")


def test_odd_scenes_are_set_aside(tmp_path, chip):
    scenes(tmp_path, ids="123")
    write_scene(tmp_path / "data", "train", "4", np.zeros((3, 40, 40), np.uint8))
    with pytest.raises(WorkError, match="has the bands band_1, band_2, band_3 of uint8 where most scenes have"):
        chip()
    path = tmp_path / "run" / "chips.zarr"
    assert ChipStore(path).written("train").tolist() == [*range(15)]
    assert_chips_equal_source(path, tmp_path / "data", positions=range(15))


def test_classes_by_attribute(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(32, 32))
    label = tmp_path / "data" / "train" / "label_1.geojson"
    shapes = [box(transform, 0, 0, 10, 10), box(transform, 5, 5, 10, 10)]
    write_label(label, shapes, properties=[{"kind": "road"}, {"kind": "building"}])
    flags = ["--data.classes=[background,building,road]", "--labels.class_property=kind"]
    chips = chips_of(chip(*flags))
    assert [int((chips.label == value).sum()) for value in range(3)] == [32 * 32 - 175, 100, 75]
    write_label(label, shapes, properties=[{"kind": "road"}, {"kind": "shed"}])
    with pytest.raises(WorkError, match=r"feature 1 has kind = 'shed', which is not in data.classes"):
        chip(*flags, run_dir="other")


def _square(number):
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number * number


def _wait_for(file):
    make_way()
    while not Path(file).exists():
        time.sleep(0.01)


def _give_up():
    raise WorkError("this is what is wrong")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_tasks_run_once_each_and_errors_come_back():
    with dask_client(ClusterConfig(workers=2)) as client:
        results = {}
        run_tasks(client, _square, ((str(n), (n,)) for n in range(50)), results.__setitem__)
        assert results == {str(n): n * n for n in range(50)}
        run_tasks(client, _square, [], results.__setitem__)
        with pytest.raises(ValueError, match="-1 is negative"):
            run_tasks(client, _square, (("bad", (-1,)) for _ in range(3)), results.__setitem__)


def test_a_worker_goes_on_with_the_next_task_while_one_waits_for_the_disk(tmp_path):
    make_way()  # Nothing, where there is no worker.
    file = tmp_path / "there"
    with dask_client(ClusterConfig(workers=1)) as client:
        done = []
        tasks = [("waits", (_wait_for, str(file))), ("makes", (Path.touch, file))]
        run_tasks(client, lambda function, *arguments: function(*arguments), tasks, lambda key, _: done.append(key))
    assert done == ["makes", "waits"]


def test_the_dashboard_is_served_where_it_is_asked_for(capsys):
    with dask_client(ClusterConfig(workers=1, dashboard=True)):
        told = capsys.readouterr().err
        # On the loopback interface only.
        (address,) = re.findall(r"^Dask's dashboard: (http://127\.0\.0\.1:\d+/status)$", told, re.MULTILINE)
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200


def test_without_a_dashboard_its_imports_take_no_time(tmp_path):
    script = """if True:
        import sys
        from geochip.cluster import dask_client
        from geochip.config import ClusterConfig
        if __name__ == "__main__":
            with dask_client(ClusterConfig(workers=1)):
                print("bokeh" in sys.modules)
    """
    file = tmp_path / "script.py"
    file.write_text(script)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=200, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("_die", "task train/0: worker processes died on it again and again; most often memory ran out: use fewer workers, or smaller chips or blocks"),
        ("_give_up", "this is what is wrong"),
    ],
)  # fmt: skip
def test_what_goes_wrong_on_workers_is_told_in_one_line(tmp_path, function, line):
    # In a process of its own: what Dask's threads and processes log would show there.
    script = f"""if True:
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_chipping
        from geochip.cluster import dask_client, make_way, run_tasks, wait_for_a_worker
        from geochip.config import ClusterConfig
        from geochip.errors import run_command
        def main(argv):
            with dask_client(ClusterConfig(workers=2)) as client:
                run_tasks(client, test_chipping.{function}, [("train/0", ())], print)
        if __name__ == "__main__":
            sys.exit(run_command(main, []))
    """
    file = tmp_path / "script.py"
    file.write_text(script)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    told = done.stderr.splitlines()
    assert [text for text in told if text.startswith("geochip: ")] == [f"geochip: error: {line}"]
    # No traceback of geochip. A worker that Dask is just starting anew, at the end, may complain of that itself.
    assert not [text for text in told if "src/geochip/" in text]
    assert len(told) == 1 or function == "_die"
