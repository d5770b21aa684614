import json
import shutil

import numpy as np
import pytest
import zarr

from geochip.chip_verify import faults_of_shard, faults_of_splits, faults_of_store, shards_to_verify, verify_shard
from geochip.chipping import main
from geochip.errors import WorkError
from geochip.store import ChipStore, journal_path, read_journal, write_shard
from helpers import data_flags, tree_hash


@pytest.fixture
def run_dir(varied_run, tmp_path):
    """A run of one's own: 100 chips in train in shards of 60, the first 40 of scenes a and b; 40 in val."""
    return shutil.copytree(varied_run, tmp_path / "run")


@pytest.fixture
def store(run_dir):
    return run_dir / "chips.zarr"


def faults(store):
    opened = ChipStore(store)
    _, records, _ = read_journal(journal_path(store))
    found = []
    checked = set()
    for key, split, start, stop in shards_to_verify(opened):
        # What comes from a worker may have been packed and unpacked.
        record = json.loads(json.dumps(verify_shard(str(store), split, start, stop, 3)))
        found += faults_of_shard(records.get(key), record)
        checked.add(key)
    return found + faults_of_store(opened, records, checked)


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def rewrite(store, split, start, stop, change):
    """Write a shard again with other pixels, and right checksums."""
    image, label = ChipStore(store).read(split, np.arange(start, stop))
    change(image, label)
    write_shard(store, split, start, image, label)


def test_a_store_as_it_was_made_has_no_faults(store):
    assert shards_to_verify(ChipStore(store)) == [
        ("train/0", "train", 0, 60), ("train/60", "train", 60, 100), ("val/0", "val", 0, 40),
    ]  # fmt: skip
    before = tree_hash(store)
    assert faults(store) == []
    assert tree_hash(store) == before
    found = verify_shard(str(store), "train", 60, 100, 3)
    # The shard holds 20 chips that could not be read, of d, and 20 of e.
    assert found["scene_id"] == ["d"] * 20 + ["e"] * 20
    pixels = np.array(found["class_pixels"])
    assert (pixels[:20] == 0).all()
    assert (pixels[20:].sum(axis=1) == 24 * 24).all()
    assert [band[0] for band in found["statistics"]] == [20 * 24 * 24] * 3
    # No statistics of a split that the normalisation does not look at.
    assert verify_shard(str(store), "val", 0, 40, 3)["statistics"] == []


def test_a_damaged_chip_is_named(store):
    file = store / "train" / "image" / "c.1.0.0.0"
    flip(file, 40)
    (told,) = faults(store)
    assert told.startswith("train: chip 60 (scene d) cannot be read (DATA_LOSS: ")
    assert f'"{file}": Digest mismatch' in told
    other = store / "train" / "label" / "c.1.0.0"
    assert told.endswith(f"); delete {file} and {other} and run python -m geochip.chipping again")


def test_a_damaged_index_takes_all_chips_of_the_shard(store):
    flip(store / "val" / "label" / "c.0.0.0", -10)
    (told,) = faults(store)
    assert told.startswith("val: chips 0 (scene f), 1 (scene f), 2 (scene f) and 37 more cannot be read (DATA_LOSS: ")


def test_a_missing_file_is_told(store):
    (store / "train" / "label" / "c.0.0.0").unlink()
    assert faults(store) == [
        f"train: chips 0 to 59 (scenes a to c): {store}/train/label/c.0.0.0 not there; "
        "run python -m geochip.chipping again"
    ]


def test_whole_chips_of_another_kind_are_told(store):
    def other_label(image, label):
        label[3, 5, 7] = 2 if label[3, 5, 7] == 0 else 0

    rewrite(store, "train", 0, 60, other_label)
    (told,) = faults(store)
    assert told.startswith("train: chip 3 (scene a): the classes have [")
    assert "pixels, by the journal [" in told
    assert f"delete {store}/train/image/c.0.0.0.0 and {store}/train/label/c.0.0.0 and run" in told


def test_other_values_of_the_image_are_told(store):
    def other_image(image, label):
        image[0, 2, 0, 0] += 1

    rewrite(store, "train", 0, 60, other_image)
    (told,) = faults(store)
    assert told.startswith("train: chips 0 to 59 (scenes a to c): the image holds other values than the journal says")


def test_what_stands_under_255_counts_for_nothing(store):
    def nodata(image, label):
        image[:, 0][label == 255] = 40_000

    rewrite(store, "train", 0, 60, nodata)
    assert faults(store) == []


def test_a_value_that_is_no_class_is_told(store):
    def strange(image, label):
        label[1, 0, 0] = 9

    rewrite(store, "val", 0, 40, strange)
    told = faults(store)
    assert told[0].startswith("val: chip 1 (scene f): the label holds values that are no class and not 255; delete")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("row_off", 50, "row_off is 50, by the journal "),
        ("col_off", 50, "col_off is 50, by the journal "),
        ("window_size", 25, "window_size is 25, by the journal 24"),
        ("status", 2, "status is 2, by the journal 0"),
        ("written", False, "written is False, by the journal True"),
        ("valid_fraction", 0.25, "valid_fraction is 0.25, by the journal 1.0"),
        ("class_fraction", [0.5, 0.5, 0.5], "class_fraction is [0.5 0.5 0.5], by the journal ["),
        ("x0", 12.0, "transform, x0 and y0 do not fit row_off, col_off and window_size"),
        ("y0", np.nan, "transform, x0 and y0 do not fit row_off, col_off and window_size"),
        ("transform", np.arange(6.0), "transform, x0 and y0 do not fit row_off, col_off and window_size"),
    ],
)
def test_small_arrays_are_compared_with_the_journal(store, name, value, text):
    zarr.open_group(str(store), mode="r+", use_consolidated=False)[f"val/{name}"][30] = value
    told = faults(store)
    assert any(one.startswith(f"val: chip 30 (scene g): {text}") for one in told)
    assert all("val: chip 30 (scene g): " in one for one in told)
    assert all(one.endswith("; run python -m geochip.chipping again, which writes it anew") for one in told)


def test_a_grid_that_is_shifted_by_a_hundredth_of_a_pixel_is_told(store):
    # The second chip of a scene: the first one is what others are compared with.
    train = zarr.open_group(str(store), mode="r+", use_consolidated=False)["train"]
    for name in ("x0", "transform"):
        values = train[name][...]
        values[21, *([2] if name == "transform" else [])] += 0.005
        train[name][...] = values
    (told,) = faults(store)
    assert told.startswith("train: chip 21 (scene b): transform, x0 and y0 do not fit")


def test_a_small_array_whose_file_is_gone_is_told(store):
    (store / "train" / "col_off" / "c.0").unlink()
    assert faults_of_splits(ChipStore(store)) == {
        "train": f"{store}/train/col_off/c.0 is not there; run python -m geochip.chipping again, which writes it anew"
    }


def test_scenes_in_another_order_are_told(store):
    ids = zarr.open_group(str(store), mode="r+", use_consolidated=False)["train/scene_id"]
    values = ids[...]
    values[:20], values[20:40] = "b", "a"
    ids[...] = values
    (told,) = faults(store)
    assert told == (
        "train: chips 0 to 59: scene train/b stands where the journal has scene train/a; "
        "run python -m geochip.chipping again, which writes it anew"
    )
    values[:20], values[20:60] = "a", "b"
    ids[...] = values
    assert faults(store)[0].startswith("train: chips 0 to 59: chips of 2 scenes stand where the journal has 3 scenes; ")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("mean", "statistics: the mean of the bands is [1.0, "),
        ("std", "statistics: the std of the bands is [1.0, "),
        ("min", "statistics: the min of the bands is [1.0, "),
        ("max", "statistics: the max of the bands is [1.0, "),
        ("98", "statistics: the percentile 98 of the bands is [1.0, "),
        ("class_pixels", "statistics: the classes have {'background': 5, "),
        ("valid_pixels", "statistics: the classes have {"),
    ],
)
def test_statistics_are_the_sum_of_what_was_counted(store, key, text):
    root = zarr.open_group(str(store), mode="r+", use_consolidated=False)
    statistics = root.attrs["statistics"]
    if key == "98":
        statistics["percentiles"][key][0] = 1.0
    elif key == "class_pixels":
        statistics[key]["background"] = 5
    elif key == "valid_pixels":
        statistics[key] += 1
    else:
        statistics[key][0] = None if key == "min" else 1.0
    root.attrs["statistics"] = statistics
    (told,) = faults(store)
    assert told.startswith(text.replace("1.0", "None") if key == "min" else text)
    assert "by the journal of split train" in told
    assert told.endswith("run python -m geochip.chipping again, which writes it anew")


def edit_journal(store, change):
    path = journal_path(store)
    header, *lines = path.read_text().splitlines()
    records = {}
    for line in lines:
        document = json.loads(line)
        records[document.pop("key")] = document
    change(records)
    lines = [json.dumps({"key": key, **record}) for key, record in records.items()]
    path.write_text("\n".join([header, *lines]) + "\n")


def test_what_the_journal_lacks_and_has_too_much_is_told(store):
    def change(records):
        records["val/400"] = records.pop("val/0")

    edit_journal(store, change)
    assert faults(store) == [
        "val/0: not in the journal; run python -m geochip.chipping again",
        "val/400: in the journal, but the store has no such shard; run python -m geochip.chipping again",
    ]


def test_a_record_of_another_number_of_chips_is_told(store):
    def change(records):
        for name in ("class_pixels", "status", "written", "windows"):
            del records["val/0"][name][-1]

    edit_journal(store, change)
    (told,) = faults(store)
    assert told.startswith(
        "val: chips 0 to 39 (scenes f to g): the journal speaks of 39 chips and the store has 40; del"
    )


def test_a_shard_that_nobody_read_is_told(store):
    opened = ChipStore(store)
    _, records, _ = read_journal(journal_path(store))
    assert faults_of_store(opened, records, {"train/0", "val/0"}) == ["train/60: was not read"]


def test_a_store_of_a_scene_without_any_pixel_is_verified(store):
    # Without statistics every split is counted; without valid pixels there is no mean.
    root = zarr.open_group(str(store), mode="r+", use_consolidated=False)
    root.attrs["statistics"] = None
    assert len(verify_shard(str(store), "val", 0, 40, 3)["statistics"]) == 3


def test_the_command_tells_the_faults_and_what_it_advises_mends_them(run_dir, varied_run, dask_address, capsys):
    store = run_dir / "chips.zarr"
    flags = [
        f"--run_dir={run_dir}", *data_flags(varied_run.parent / "data", "train", "val"), "--data.max_bad_scenes=1",
        "--data.classes=[background,building,main road]", "--labels.class_property=kind", "--chips.size=24",
        "--chips.per_scene=20", "--chips.min_valid=0.5", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    main([*flags, "--verify"])
    assert (
        "3 shards read; checksums, journal, positions and statistics are as they should be" in capsys.readouterr().out
    )
    before = tree_hash(store)
    flip(store / "train" / "image" / "c.0.0.0.0", 100)
    zarr.open_group(str(store), mode="r+", use_consolidated=False)["val/row_off"][0] = 1
    with pytest.raises(
        WorkError, match=r"train: chip 0 \(scene a\) cannot be read[^\n]*\nval: chip 0 \(scene f\): row_"
    ):
        main([*flags, "--verify"])
    for name in ("image/c.0.0.0.0", "label/c.0.0.0"):
        (store / "train" / name).unlink()
    main(flags)
    main([*flags, "--verify"])
    assert tree_hash(store) == before
