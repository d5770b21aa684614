"""Sampling, labels and splits of the run file, from real files to the store."""

import json
from pathlib import Path
from types import SimpleNamespace

import geopandas as gpd
import numpy as np
import pytest
import shapely
import xarray as xr
from affine import Affine
from PIL import Image

from geochip.chipping import main
from geochip.config import DataConfig, RunConfig, SplitConfig
from geochip.errors import InputError, WorkError
from geochip.labels import indexed_label
from geochip.scenes import find_scenes
from geochip.store import ChipStore
from helpers import UTM, box, data_flags, position_coded, tree_hash, write_image, write_label, write_scene


@pytest.fixture
def chip(tmp_path, dask_address, capsys):
    """Runs the command in this process on the shared cluster; gives the train split's chips and what was printed."""

    def run_main(*flags, splits=("train",), size=32, split="train"):
        capsys.readouterr()
        main(
            [
                f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", *splits), f"--chips.size={size}",
                "--cluster.kind=address", f"--cluster.address={dask_address}", *map(str, flags),
            ]
        )  # fmt: skip
        path = tmp_path / "run" / "chips.zarr"
        with xr.open_datatree(path) as tree:
            chips = tree[split].to_dataset().load()
        return SimpleNamespace(chips=chips, printed=capsys.readouterr().out, path=path, attrs=ChipStore(path).attrs)

    return run_main


def windows(chips):
    return list(zip(chips.row_off.values.tolist(), chips.col_off.values.tolist(), strict=True))


def test_a_grid_covers_the_scene(tmp_path, chip):
    image = position_coded(60, 70)
    write_scene(tmp_path / "data", "train", "1", image)
    made = chip("--chips.method=grid", "--chips.stride=20")
    assert windows(made.chips) == [(row, col) for row in (0, 20, 28) for col in (0, 20, 38)]
    for one in made.chips.image.transpose("chip", ...):
        np.testing.assert_array_equal(one, image[:, one.row_off.item() :, one.col_off.item() :][:, :32, :32])


def test_a_grid_that_hangs_over_is_ignored_there(tmp_path, chip):
    write_scene(tmp_path / "data", "train", "1", position_coded(60, 70))
    chips = chip("--chips.method=grid", "--chips.edge=pad").chips
    assert windows(chips) == [(row, col) for row in (0, 32) for col in (0, 32, 64)]
    last = chips.label.isel(chip=5)
    assert (last[:28, :6] != 255).all()
    assert (last[28:] == 255).all()
    assert (last[:, 6:] == 255).all()


def test_chips_per_area_follow_the_size_of_the_scene(tmp_path, chip):
    write_scene(tmp_path / "data", "train", "1", position_coded(100, 100))
    write_scene(tmp_path / "data", "train", "2", position_coded(200, 150))
    counts = chip("--chips.per_area=1000").chips.scene_id.to_series().value_counts()
    assert counts.to_dict() == {"1": 10, "2": 30}


def test_windows_of_many_sizes_become_chips_of_one(tmp_path, chip):
    # Brightness is the column: a resampled chip must show the ramp of its window.
    ramp = np.broadcast_to(np.arange(400, dtype=np.float32), (1, 300, 400)).copy()
    transform = write_scene(tmp_path / "data", "train", "1", ramp, geometries=[])
    write_label(tmp_path / "data/train/label_1.geojson", [box(transform, 0, 0, 300, 200)])
    made = chip("--chips.size_range=[16,96]", "--chips.per_scene=40")
    chips = made.chips
    sizes = chips.window_size.values
    assert len(set(sizes.tolist())) > 20
    assert set(sizes.tolist()) <= set(range(16, 97))
    centres = (np.arange(32) + 0.5) / 32
    for one in range(40):
        col, size = chips.col_off.values[one], sizes[one]
        expected = col + centres * size - 0.5
        inner = slice(3, -3)  # at the edge the filter has one side only
        np.testing.assert_allclose(chips.image.values[one, 0, 5, inner], expected[inner], atol=0.75)
        np.testing.assert_array_equal(chips.label.values[one], np.tile((col + centres * size < 200), (32, 1)))
        grid = Affine(*chips.transform.values[one])
        assert grid @ (32, 32) == pytest.approx(transform @ (col + size, chips.row_off.values[one] + size))
        assert (chips.x0.values[one], chips.y0.values[one]) == pytest.approx(grid @ (0, 0))
    low, high = made.attrs["pixel_size_range"]
    assert (low, high) == pytest.approx((0.5 * 16 / 32, 0.5 * 96 / 32), rel=1e-2)


def test_an_area_of_interest_for_all_scenes(tmp_path, chip):
    first = write_scene(tmp_path / "data", "train", "1", position_coded(80, 80))
    second = write_scene(tmp_path / "data", "train", "2", position_coded(80, 80))
    areas = [shapely.geometry.shape(box(first, 10, 20, 40, 45)), shapely.geometry.shape(box(second, 0, 0, 34, 33))]
    # In another CRS than the scenes: every corner moves by less than a hundredth of a pixel.
    gpd.GeoSeries(areas, crs="EPSG:32611").to_crs("EPSG:4326").to_file(tmp_path / "data" / "aoi.gpkg")
    chips = chip("--chips.aoi=aoi.gpkg", "--chips.per_scene=3").chips
    by_scene = {name: windows(chips.sel(chip=chips.scene_id == name)) for name in ("1", "2")}
    assert len(by_scene["1"]) == 3
    assert all(10 <= row <= 18 and 20 <= col <= 33 for row, col in by_scene["1"])
    assert set(by_scene["2"]) <= {(row, col) for row in (0, 1, 2) for col in (0, 1)}
    assert (chips.label < 2).all()


def test_outside_of_the_area_of_interest_labels_are_ignored(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(64, 64))
    write_label(tmp_path / "data/train/aoi_1.geojson", [box(transform, 5, 7, 40, 30)])
    chips = chip(
        "--chips.aoi={split}/aoi_{id}.geojson", "--chips.aoi_within=false", "--chips.method=grid", "--chips.stride=16"
    ).chips
    inside = np.zeros((64, 64), bool)
    inside[5:45, 7:37] = True
    # Windows that touch the area, and no other.
    assert windows(chips) == [
        (row, col) for row in (0, 16, 32) for col in (0, 16, 32) if inside[row : row + 32, col : col + 32].any()
    ]
    for one in chips.label:
        part = inside[one.row_off.item() :, one.col_off.item() :][:32, :32]
        np.testing.assert_array_equal(one != 255, part)


def test_areas_of_interest_divide_one_scene_into_splits(tmp_path, chip, dask_address):
    transform = UTM
    write_image(tmp_path / "data" / "whole.tif", position_coded(64, 128))
    write_label(tmp_path / "data" / "whole.geojson", [box(transform, 0, 0, 20, 20)])
    for split, cols in (("train", 0), ("val", 64)):
        write_label(tmp_path / "data" / f"{split}.geojson", [box(transform, 0, cols, 64, 64)])
    flags = [
        "--data.image={id}.tif",
        "--data.label={id}.geojson",
        "--chips.aoi={split}.geojson",
        "--chips.per_scene=20",
    ]
    made = chip(*flags, splits=("train", "val"))
    assert max(col for _, col in windows(made.chips)) <= 32
    assert made.attrs["overlap"] == {"pairs": 0, "train_chips": 0, "examples": []}


def test_mostly_empty_windows_are_not_taken(tmp_path, chip):
    image = np.full((2, 60, 60), 500, np.uint16)
    image[:, :, 30:] = 0
    write_scene(tmp_path / "data", "train", "1", image, nodata=0)
    made = chip("--chips.min_valid=0.9", "--chips.size=20", "--chips.per_scene=8", "--chips.max_tries=50")
    assert made.chips.written.all()
    assert (made.chips.col_off <= 12).all()
    assert (made.chips.valid_fraction >= 0.9).all()


def test_what_cannot_be_met_is_dropped_and_counted(tmp_path, chip):
    image = np.zeros((2, 60, 60), np.uint16)
    write_scene(tmp_path / "data", "train", "1", image, nodata=0)
    write_scene(tmp_path / "data", "train", "2", image + 5)
    made = chip("--chips.min_valid=0.5", "--chips.max_tries=3")
    assert made.chips.written.values.tolist() == [False] * 5 + [True] * 5
    assert made.chips.status.values.tolist() == [2] * 5 + [0] * 5
    assert (made.chips.label[:5] == 255).all()
    assert np.isnan(made.chips.x0[:5]).all()
    assert "for 5 chips none of the chips.max_tries = 3 windows fitted" in made.printed
    assert "5 dropped: no window fitted chips.min_valid and chips.target_classes" in made.printed
    table = gpd.read_parquet(tmp_path / "run" / "chips.parquet")
    assert table.status.tolist() == ["dropped"] * 5 + ["written"] * 5


def test_classes_are_looked_for(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(200, 200))
    # One building in a corner: a random window of 32 rarely meets it.
    write_label(tmp_path / "data/train/label_1.geojson", [box(transform, 150, 160, 20, 20)])
    flags = ["--chips.target_classes=[building]", "--chips.min_target_fraction=0.1", "--chips.per_scene=6"]
    made = chip(*flags, "--chips.max_tries=300")
    assert made.chips.written.all()
    assert (made.chips.class_fraction[:, 1] >= 0.1).all()
    assert len(set(windows(made.chips))) == 6


def test_some_negatives_are_kept(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(300, 300))
    write_label(tmp_path / "data/train/label_1.geojson", [box(transform, 0, 0, 300, 60)])
    flags = ["--chips.target_classes=[building]", "--chips.per_scene=200", "--chips.size=16"]
    made = chip(*flags, "--chips.negative_rate=0.25", "--chips.max_tries=60")
    assert made.chips.written.all()
    negative = float((made.chips.class_fraction[:, 1] == 0).mean())
    # A quarter of the chips may be anything, and of all windows four fifths miss the building.
    assert 0.1 < negative < 0.3


def test_content_decides_alike_however_scenes_are_shared_out(tmp_path, chip, dask_address):
    # More chips of one scene than a shard holds: each part is decided on its own.
    rng = np.random.default_rng(0)
    image = np.where(rng.random((1, 100, 110)) < 0.5, 0, 7).astype(np.uint8)
    write_scene(tmp_path / "data", "train", "1", image, nodata=0)
    made = chip("--chips.min_valid=0.52", "--chips.size=12", "--chips.per_scene=150", "--chips.max_tries=9")
    kept = [where for where, written in zip(windows(made.chips), made.chips.written.values, strict=True) if written]
    assert len(kept) == len(set(kept)) > 60
    assert (made.chips.valid_fraction[made.chips.written] >= 0.52).all()


def test_labels_by_map_with_ignored_values_priority_and_width(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(32, 32))
    line = {"type": "LineString", "coordinates": [list(transform @ (0, 16)), list(transform @ (32, 16))]}
    shapes = [line, box(transform, 10, 10, 12, 12), box(transform, 0, 0, 4, 4)]
    write_label(
        tmp_path / "data/train/label_1.geojson", shapes,
        properties=[{"kind": "primary"}, {"kind": "house"}, {"kind": "unsure"}],
    )  # fmt: skip
    chips = chip(
        "--data.classes=[background,building,road]", "--labels.class_property=kind", "--labels.ignore=[unsure]",
        "--labels.class_map={primary: road, house: building}", "--labels.priority=[road]", "--labels.buffer={road: 2}",
    ).chips  # fmt: skip
    expected = np.zeros((32, 32), np.uint8)
    expected[10:22, 10:22] = 1
    expected[14:18] = 2
    expected[:4, :4] = 255
    np.testing.assert_array_equal(chips.label[0], expected)


def test_labels_of_a_raster(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(40, 50))
    values = np.random.default_rng(0).choice([10, 20, 30, 99], (1, 40, 50)).astype(np.uint8)
    write_image(tmp_path / "data/train/label_1.tif", values, transform=transform)
    chips = chip(
        "--data.label={split}/label_{id}.tif", "--data.classes=[ground,tree,house]", "--labels.ignore=[99]",
        '--labels.class_map={"10": ground, "20": tree, "30": house}',
    ).chips  # fmt: skip
    ids = np.array([0, 1, 2, 255], np.uint8)[np.searchsorted([10, 20, 30, 99], values[0])]
    for one in chips.label:
        np.testing.assert_array_equal(one, ids[one.row_off.item() :, one.col_off.item() :][:32, :32])


def test_files_of_a_stack_become_bands_of_one_chip(tmp_path, chip):
    image = position_coded(60, 70).astype(np.uint16)
    transform = write_scene(tmp_path / "data", "train", "1", image)
    height = np.random.default_rng(0).normal(20, 5, (1, 60, 70)).astype(np.float32)
    write_image(tmp_path / "data/train/height_1.tif", height, transform=transform)
    made = chip('--data.stack=["{split}/height_{id}.tif"]', "--data.bands=[4,1]")
    assert made.chips.image.dtype == np.float32
    for one in made.chips.image.transpose("chip", ...):
        part = (slice(None), slice(one.row_off.item(), None), slice(one.col_off.item(), None))
        np.testing.assert_array_equal(one[0], height[part][0, :32, :32])
        np.testing.assert_array_equal(one[1], image[part][0, :32, :32])
    assert made.attrs["bands"] == [4, 1]


def test_invalid_geometries_are_mended_and_counted(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(40, 40))
    bow_tie = [(0, 0), (20, 20), (20, 0), (0, 20), (0, 0)]
    shape = {"type": "Polygon", "coordinates": [[list(transform @ corner) for corner in bow_tie]]}
    write_label(tmp_path / "data/train/label_1.geojson", [shape])
    made = chip()
    assert "1 invalid geometries were mended (shapely.make_valid) as they were read" in made.printed
    assert (made.chips.class_fraction[:, 1] > 0).any()


def test_many_classes_are_counted(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1", position_coded(40, 40))
    names = [f"c{number}" for number in range(20)]
    shapes = [box(transform, number, number, 5, 9) for number in range(1, 20)]
    write_label(tmp_path / "data/train/label_1.geojson", shapes, properties=[{"kind": name} for name in names[1:]])
    made = chip(f"--data.classes=[{','.join(names)}]", "--labels.class_property=kind")
    for one in range(made.chips.sizes["chip"]):
        shares = np.bincount(made.chips.label[one].values.ravel(), minlength=20) / 32**2
        np.testing.assert_allclose(made.chips.class_fraction[one], shares, rtol=1e-6)
    assert list(made.attrs["statistics"]["class_pixels"].values()) == [
        int((made.chips.label == number).sum()) for number in range(20)
    ]


def test_large_labels_are_indexed_once_and_give_the_same_chips(tmp_path, chip, monkeypatch):
    for scene_id in "123":
        write_scene(tmp_path / "data", "train", scene_id)
    plain = chip()
    seen = []

    def indexed(label, directory, *, layer, at_least):
        copy = indexed_label(label, directory, layer=layer, at_least=1)
        seen.append((label, copy, Path(copy).exists()))
        return copy

    monkeypatch.setattr("geochip.labels.index.indexed_label", indexed)
    chip(f"--run_dir={tmp_path / 'large'}", f"--chips.store={tmp_path / 'large' / 'chips.zarr'}")
    assert [there and label != copy for label, copy, there in seen] == [True] * 3
    assert tree_hash(tmp_path / "large" / "chips.zarr") == tree_hash(plain.path)
    assert not Path(seen[0][1]).exists()


# --- the same ground in two splits ------------------------------------------------------------------------------------


def neighbours(tmp_path, gap, crs="EPSG:32611", second_crs=None):
    """A train scene, and a val scene `gap` pixels to the right of it."""
    write_scene(tmp_path / "data", "train", "1", position_coded(40, 40), transform=UTM, crs=crs)
    there = UTM @ Affine.translation(40 + gap, 0)
    if second_crs is None:
        write_scene(tmp_path / "data", "val", "2", position_coded(40, 40), transform=there, crs=crs)
        return
    corners = gpd.GeoSeries([shapely.Point(there @ (0, 0)), shapely.Point(there @ (40, 40))], crs=crs).to_crs(
        second_crs
    )
    (left, top), (right, bottom) = ((point.x, point.y) for point in corners)
    grid = Affine((right - left) / 40, 0, left, 0, (bottom - top) / 40, top)
    write_scene(tmp_path / "data", "val", "2", position_coded(40, 40), transform=grid, crs=second_crs)


@pytest.mark.parametrize("second_crs", [None, "EPSG:4326"])
def test_chips_of_two_splits_on_the_same_ground_are_refused(tmp_path, chip, second_crs):
    neighbours(tmp_path, -10, second_crs=second_crs)
    flags = ["--chips.method=grid", "--chips.size=40"]
    with pytest.raises(InputError) as caught:
        chip(*flags, splits=("train", "val"))
    assert str(caught.value) == (
        "1 pairs of chips show some of the same ground, one of each pair in split train and one in another split: train/1 "
        "(rows 0 to 39, columns 0 to 39) and val/2 (rows 0 to 39, columns 0 to 39). Scores on such chips are better than "
        "the model is; divide the scenes anew (split.by: blocks), or go on with --chips.allow_overlap true, which the "
        "store, the model and eval.json then say"
    )
    assert not (tmp_path / "run").exists()
    made = chip(*flags, "--chips.allow_overlap=true", splits=("train", "val"))
    assert "allowed by chips.allow_overlap: 1 pairs of chips" in made.printed
    assert (made.attrs["overlap"]["pairs"], made.attrs["overlap"]["train_chips"]) == (1, 1)


@pytest.mark.parametrize("second_crs", [None, "EPSG:4326"])
def test_neighbours_do_not_overlap(tmp_path, chip, second_crs):
    neighbours(tmp_path, 0, second_crs=second_crs)
    made = chip("--chips.method=grid", "--chips.size=40", splits=("train", "val"))
    assert made.attrs["overlap"]["pairs"] == 0


def test_overlapping_scenes_with_chips_apart_are_no_overlap(tmp_path, chip):
    # Rows 0 to 19 of one, rows 40 to 59 of the other.
    for split, name, rows in (("train", "1", (0, 20)), ("val", "2", (40, 60))):
        write_scene(tmp_path / "data", split, name, position_coded(60, 40), transform=UTM)
        write_label(tmp_path / "data" / split / "aoi.geojson", [box(UTM, rows[0], 0, 20, 40)])
    flags = ["--chips.size=20", "--chips.method=grid", "--chips.aoi={split}/aoi.geojson"]
    assert chip(*flags, splits=("train", "val")).attrs["overlap"]["pairs"] == 0


def test_overlap_is_looked_for_after_the_cut_where_pixels_decide(tmp_path, chip):
    image = np.full((1, 60, 60), 9, np.uint8)
    upper, lower = image.copy(), image.copy()
    upper[:, 30:], lower[:, :30] = 0, 0
    flags = ["--chips.size=20", "--chips.min_valid=0.95", "--chips.max_tries=200"]
    write_scene(tmp_path / "data", "train", "1", upper, transform=UTM, nodata=0)
    write_scene(tmp_path / "data", "val", "2", lower, transform=UTM, nodata=0)
    assert chip(*flags, splits=("train", "val")).attrs["overlap"]["pairs"] == 0
    # One scene more, which has pixels everywhere.
    write_scene(tmp_path / "data", "val", "3", image, transform=UTM, nodata=0)
    flags.append(f"--run_dir={tmp_path / 'other'}")
    with pytest.raises(WorkError, match=r"pairs of chips show some of the same ground"):
        chip(*flags, splits=("train", "val"))
    assert ChipStore(tmp_path / "other" / "chips.zarr").attrs["complete"] is False
    chip(*flags, "--chips.allow_overlap=true", splits=("train", "val"))
    attributes = ChipStore(tmp_path / "other" / "chips.zarr").attrs
    assert attributes["complete"] is True
    assert attributes["overlap"]["pairs"] > 0
    assert "train/1 (rows" in attributes["overlap"]["examples"][0]


def test_scenes_without_crs_cannot_be_compared(tmp_path, chip):
    for split in ("train", "val"):
        write_scene(tmp_path / "data", split, "1", position_coded(40, 40), crs=None, transform=UTM)
    printed = chip(splits=("train", "val")).printed
    assert "2 scenes have no CRS: whether they share ground with other splits cannot be told" in printed


# --- splits that geochip makes, or reads from a table -----------------------------------------------------------------


def test_splits_made_of_blocks_do_not_overlap(tmp_path, chip):
    # A chessboard of scenes that each overlap their neighbours by a quarter.
    for number in range(36):
        place = UTM @ Affine.translation(30 * (number % 6), 30 * (number // 6))
        write_image(tmp_path / "data" / f"{number}.tif", position_coded(40, 40), transform=place)
        write_label(tmp_path / "data" / f"{number}.geojson", [box(place, 3, 3, 9, 9)])
    flags = ["--data.image={id}.tif", "--data.label={id}.geojson", "--chips.size=20"]
    made = chip(*flags, "--split.by=blocks", "--split.block=45", splits=("train", "val", "test"))
    assert made.attrs["overlap"]["pairs"] == 0
    assert "left out: scene " in made.printed
    table = gpd.read_parquet(tmp_path / "run" / "chips.parquet")
    assert set(table.split) == {"train", "val", "test"}


def test_a_scene_that_is_mended_moves_no_other_to_another_split(tmp_path, chip):
    for number in range(20):
        place = UTM @ Affine.translation(100 * (number % 5), 100 * (number // 5))
        write_image(tmp_path / "data" / f"{number}.tif", position_coded(40, 40), transform=place)
        write_label(tmp_path / "data" / f"{number}.geojson", [box(place, 3, 3, 9, 9)])
    flags = [
        "--data.image={id}.tif", "--data.label={id}.geojson", "--chips.size=20", "--split.by=blocks", "--split.block=60",
        "--split.buffer=0",
    ]  # fmt: skip
    broken = tmp_path / "data" / "7.tif"
    whole = broken.read_bytes()
    broken.write_text("no")
    with pytest.raises(WorkError, match="1 of 20 scenes could not be used"):
        chip(*flags, splits=("train", "val", "test"))
    before = gpd.read_parquet(tmp_path / "run" / "scenes.parquet").set_index("scene_id").split
    broken.write_bytes(whole)
    made = chip(*flags, splits=("train", "val", "test"))
    after = gpd.read_parquet(tmp_path / "run" / "scenes.parquet").set_index("scene_id").split
    assert after.to_dict() == before.to_dict()
    assert after["7"] == "train"
    assert made.chips.written.all()
    # And so does every other command divide them.
    run = RunConfig(
        run_dir=str(tmp_path / "run"), split=SplitConfig(by="blocks", block=60, buffer=0),
        data=DataConfig(root=str(tmp_path / "data"), image="{id}.tif", label="{id}.geojson"),
    )  # fmt: skip
    found = find_scenes(run, ["test"]).scenes
    assert [scene.scene_id for scene in found] == sorted(after[after == "test"].index, key=int)
    with pytest.raises(InputError, match=r"split.block was 60.0, now 70.0"):
        chip(*flags, "--split.block=70", splits=("train", "val", "test"))


def test_local_grids_cannot_be_compared(tmp_path, chip):
    local = 'LOCAL_CS["a field",UNIT["metre",1]]'
    for split in ("train", "val"):
        write_image(tmp_path / "data" / split / "scene_1.tif", position_coded(40, 40), crs=local)
        write_image(tmp_path / "data" / split / "label_1.tif", np.ones((1, 40, 40), np.uint8), crs=local)
    made = chip("--data.label={split}/label_{id}.tif", splits=("train", "val"))
    assert "2 scenes have no CRS" in made.printed


def test_a_list_as_a_class_sets_its_scene_aside(tmp_path, chip):
    for name in "12":
        transform = write_scene(tmp_path / "data", "train", name)
        write_label(
            tmp_path / "data" / "train" / f"label_{name}.geojson", [box(transform, 3, 3, 9, 9)],
            properties=[{"kind": ["building", "shed"] if name == "2" else "building"}],
        )  # fmt: skip
    with pytest.raises(WorkError, match=r"scene 2 \(train\): label .* feature 0 has kind = .*, which is not in"):
        chip("--labels.class_property=kind")


def test_splits_of_a_manifest(tmp_path, chip):
    for number in range(4):
        place = UTM @ Affine.translation(100 * number, 0)
        write_image(tmp_path / "data" / f"{number}.tif", position_coded(40, 40), transform=place)
        write_label(tmp_path / "data" / f"{number}.geojson", [box(place, 3, 3, 9, 9)])
    (tmp_path / "splits.csv").write_text("scene_id,part\n0,train\n1,val\n2,train\n3,unused\n")
    made = chip(
        "--data.image={id}.tif", "--data.label={id}.geojson", "--split.by=manifest", "--split.column=part",
        f"--split.manifest={tmp_path / 'splits.csv'}", splits=("train", "val"),
    )  # fmt: skip
    assert sorted(set(made.chips.scene_id.values.tolist())) == ["0", "2"]


# --- before and after -------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    write_scene(tmp_path / "data", "train", "1")
    write_scene(tmp_path / "data", "train", "2")
    (tmp_path / "data/train/label_2.geojson").unlink()
    (tmp_path / "data/train/scene_3.tif").write_text("no")
    write_label(tmp_path / "data/train/label_3.geojson", [])
    flags = [f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--chips.size=32", "--dry_run"]
    main(flags)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("left out: scene 2 (train): there is no label file")
    assert printed[1].startswith("set aside: scene 3 (train): ")
    assert printed[2] == "2 scenes, 10 chips of 32 x 32 (10 in train)"
    assert printed[3].startswith("1 shard of 65 chips in 1 task; at most 0.1 MiB on disk")
    assert not (tmp_path / "run").exists()


def test_the_estimate_of_files_and_bytes_holds(tmp_path, chip):
    for split in ("train", "val"):
        for name in "123":
            write_scene(tmp_path / "data", split, name)
    made = chip("--chips.per_scene=50", splits=("train", "val"))
    files = [file for file in made.path.rglob("*") if file.is_file()]
    (line,) = [line for line in made.printed.splitlines() if "tasks; at most" in line]
    assert f"in {len(files)} files" in line
    at_most = float(line.split("at most ")[1].split(" MiB")[0])
    pixels = sum(file.stat().st_size for file in files if file.parent.name in ("image", "label")) / 2**20
    assert 0 < pixels < at_most


def test_switches_are_one_at_a_time(tmp_path):
    with pytest.raises(InputError, match="--dry_run and --verify cannot be asked for at once; choose one"):
        main(["--dry_run", "--verify"])


def test_bands_and_classes_are_told_at_the_end(tmp_path, chip):
    image = np.arange(2 * 40 * 40, dtype=np.uint16).reshape(2, 40, 40)
    write_scene(tmp_path / "data", "train", "1", image, geometries=[])
    printed = chip("--chips.size=40").printed
    assert "train: 1 chip of 1 scene; background 100.0 %, building 0.0 %" in printed
    assert "band_2: 1600 to 3199, mean 2399.5, 2nd to 98th percentile 16" in printed
    assert "with --preview" in printed


def test_chips_open_in_gis(tmp_path, chip):
    transform = write_scene(tmp_path / "data", "train", "1")
    made = chip()
    table = gpd.read_parquet(tmp_path / "run" / "chips.parquet").to_crs("EPSG:32611")
    for row in table.itertuples():
        wanted = shapely.geometry.shape(box(transform, row.row_off, row.col_off, 32, 32))
        assert row.geometry.symmetric_difference(wanted).area < 0.01
    np.testing.assert_allclose(table.fraction_building, made.chips.class_fraction[:, 1], rtol=1e-6)


def test_a_preview_is_drawn(tmp_path, chip, capsys):
    write_scene(tmp_path / "data", "train", "1")
    flags = [f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--preview"]
    with pytest.raises(InputError, match="there is no chip store at"):
        main(flags)
    chip()
    main(flags)
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'chips.png'}: 5 chips with their labels\n"
    with Image.open(tmp_path / "run" / "chips.png") as picture:
        assert min(picture.size) > 64


def test_what_was_allowed_is_carried_into_model_and_evaluation(tmp_path, chip):
    from geochip import evaluate, infer, train_ddp

    neighbours(tmp_path, -10)
    # Two global batches of one step need a few chips.
    flags = ["--chips.per_scene=4", "--chips.size=32", "--chips.allow_overlap=true"]
    made = chip(*flags, splits=("train", "val"))
    run = [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train", "val"), "--model.architecture=linear",
        "--train.epochs=1", "--infer.split=val", "--cluster.workers=1", "--infer.cog=false",
    ]  # fmt: skip
    train_ddp.main(run)
    infer.main(run)
    evaluate.main(run)
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["split_overlap"] == made.attrs["overlap"]
    assert found["split_overlap"]["pairs"] > 0
