import errno
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from geochip.errors import InputError, WorkError
from geochip.store import (
    CHIP_DROPPED,
    CHIP_UNREAD,
    CHIP_WRITTEN,
    ChipStore,
    SplitLayout,
    SplitResult,
    StorePlan,
    create_chip_store,
    finish_chip_store,
    shard_files,
    sweep_locks,
    sync_shard,
    write_shard,
)
from helpers import tree_hash


def create(path, chips=7, *, size=8, bands=3, shard=4, dtype="uint16", fill_value=0, **attributes):
    layout = SplitLayout(
        name="train",
        scene_id=[f"scene {i // 2}" for i in range(chips)],
        shard=shard,
    )
    config = {"data": {"splits": ["val", "train"]}, "chips": {"size": size}}
    classes = ["ground", "tall building"]
    every = {
        "chip_size": size, "config": config, "nodata": None, "seed": 0, "class_names": classes,
        "bands": list(range(1, bands + 1)), "band_names": [f"band_{band + 1}" for band in range(bands)],
        "dtype": dtype, "pixel_size_range": None, "fingerprint": "f", "geochip_version": "0",
    }  # fmt: skip
    plan = StorePlan(
        layouts=[layout], bands=bands, size=size, dtype=dtype, fill_value=fill_value, classes=classes,
        attributes={**every, **attributes},
    )  # fmt: skip
    create_chip_store(path, plan)


def pixels(chips, size=8, bands=3, dtype="uint16"):
    image = np.arange(chips * bands * size * size).reshape(chips, bands, size, size).astype(dtype)
    return image, (image[:, 0] % 3).astype(np.uint8)


def fill(path, image, label, shard=4):
    for start in range(0, len(image), shard):
        write_shard(path, "train", start, image[start : start + shard], label[start : start + shard])


def result(chips, written=True):
    return SplitResult(
        crs=["EPSG:32611"] * chips,
        row_off=np.arange(chips) * 3,
        col_off=np.arange(chips) * 5,
        window_size=np.full(chips, 8),
        transform=np.arange(chips * 6, dtype=float).reshape(chips, 6),
        valid_fraction=np.linspace(0, 1, chips, dtype=np.float32),
        class_fraction=np.full((chips, 2), 0.5, np.float32),
        status=np.full(chips, CHIP_WRITTEN if written else CHIP_UNREAD, np.uint8),
    )


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.sampled_from(["uint8", "uint16", "int32", "float32"])
)
def test_what_is_written_is_what_xarray_reads(tmp_path_factory, chips, shard, bands, dtype):
    path = tmp_path_factory.mktemp("store") / "chips.zarr"
    image, label = pixels(chips, bands=bands, dtype=dtype)
    create(path, chips, shard=shard, bands=bands, dtype=dtype)
    fill(path, image, label, shard)
    finish_chip_store(path, {"train": result(chips)}, {"statistics": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xr.open_datatree(path) as tree:
            np.testing.assert_array_equal(tree["train"].image, image)
            np.testing.assert_array_equal(tree["train"].label, label)
            assert tree["train"].image.dtype == dtype
            assert tree["train"].image.dims == ("chip", "band", "y", "x")
        with xr.open_zarr(path, group="train") as split:
            np.testing.assert_array_equal(split.image, image)


def test_every_chip_says_where_it_is_from(tmp_path):
    create(tmp_path / "c.zarr")
    finish_chip_store(tmp_path / "c.zarr", {"train": result(7)}, {})
    with xr.open_datatree(tmp_path / "c.zarr") as tree:
        train = tree["train"].ds
        assert train.scene_id.values.tolist() == [f"scene {i // 2}" for i in range(7)]
        assert train.image.coords["row_off"].values.tolist() == [0, 3, 6, 9, 12, 15, 18]
        assert train.image.coords["col_off"].values.tolist() == [0, 5, 10, 15, 20, 25, 30]
        assert train.transform.values.tolist()[1] == [6, 7, 8, 9, 10, 11]
        assert (train.x0.values[1], train.y0.values[1], train.crs.values[1]) == (8, 11, "EPSG:32611")
        assert train.label.attrs["flag_values"] == [0, 1, 255]
        assert train.label.attrs["flag_meanings"] == "ground tall_building ignore"
        # Chips are chosen by scene in one expression.
        assert train.image.sel(chip=train.scene_id == "scene 2").sizes["chip"] == 2


def test_the_layout_on_disk(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    image, label = pixels(7)
    fill(path, image, label)
    metadata = zarr.open_array(str(path / "train" / "image"), mode="r").metadata.to_dict()
    assert metadata["zarr_format"] == 3
    assert metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
    (sharding,) = metadata["codecs"]
    inner = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert inner == ["bytes", "blosc", "crc32c"]
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    blosc = sharding["configuration"]["codecs"][1]["configuration"]
    assert (blosc["cname"], blosc["shuffle"], blosc["typesize"]) == ("lz4", "bitshuffle", 2)
    assert list(sharding["configuration"]["chunk_shape"]) == [1, 3, 8, 8]
    files = {file.name for file in (path / "train" / "image").iterdir()}
    assert files == {"zarr.json", "c.0.0.0.0", "c.1.0.0.0"}


def test_chips_of_nothing_but_fill_are_written_too(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    write_shard(path, "train", 0, np.zeros((4, 3, 8, 8), np.uint16), np.full((4, 8, 8), 255, np.uint8))
    assert (path / "train" / "image" / "c.0.0.0.0").stat().st_size > 100
    assert (path / "train" / "label" / "c.0.0.0").exists()


def test_a_missing_label_reads_as_ignore(tmp_path):
    create(tmp_path / "c.zarr", fill_value=9)
    image, label = ChipStore(tmp_path / "c.zarr").read("train", np.array([2]))
    assert (label == 255).all()
    assert (image == 9).all()


def test_writing_a_shard_again_gives_the_same_bytes(tmp_path):
    image, label = pixels(7)
    hashes = set()
    for name, orders in (("a", [(0, 4)]), ("b", [(4, 0), (0, 4)])):
        create(tmp_path / name)
        for order in orders:
            for start in order:
                write_shard(tmp_path / name, "train", start, image[start : start + 4], label[start : start + 4])
        hashes.add(tree_hash(tmp_path / name))
    assert len(hashes) == 1


def test_chips_are_read_at_any_positions_into_given_buffers(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    image, label = pixels(7)
    fill(path, image, label)
    store = ChipStore(path)
    positions = np.array([6, 0, 3, 3, 5])
    image_out, label_out = np.zeros((5, 3, 8, 8), np.uint16), np.zeros((5, 8, 8), np.uint8)
    read = store.read("train", positions, image_out, label_out)
    assert read[0] is image_out
    assert read[1] is label_out
    np.testing.assert_array_equal(image_out, image[positions])
    np.testing.assert_array_equal(label_out, label[positions])
    np.testing.assert_array_equal(store.read("train", positions)[0], image[positions])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("train", positions)[1], label[positions])


def test_a_store_that_was_not_read_yet_survives_a_fork(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    image, label = pixels(7)
    fill(path, image, label)
    script = f"""if True:
        import os
        import numpy as np
        from geochip.store import ChipStore
        store = ChipStore({str(path)!r})
        assert store.written("train").size == 0
        if os.fork() == 0:
            os._exit(int(store.read("train", np.array([1]))[0].sum() != {image[1].sum()}))
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("byte", [10, 60, 150, -10])
def test_damage_is_not_read_silently(tmp_path, byte):
    path = tmp_path / "c.zarr"
    create(path)
    fill(path, *pixels(7))
    shard = path / "train" / "image" / "c.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[byte] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.0\.0\.0\.0"):
        ChipStore(path).read("train", np.arange(4))


def test_written_and_table_tell_what_is_there(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    assert ChipStore(path).written("train").tolist() == []
    assert ChipStore(path).attrs["complete"] is False
    done = result(7)
    done.status[3] = CHIP_DROPPED
    finish_chip_store(path, {"train": done}, {"overlap": {"pairs": 0}})
    store = ChipStore(path)
    assert store.attrs["complete"] is True
    assert store.attrs["overlap"] == {"pairs": 0}
    assert store.splits == ["train"]
    assert store.written("train").tolist() == [0, 1, 2, 4, 5, 6]
    table = store.table("train")
    assert table.scene_id.tolist()[2] == "scene 1"
    assert table.written.sum() == 6
    assert table.status.tolist() == [0, 0, 0, 2, 0, 0, 0]
    with xr.open_datatree(path) as tree:
        assert tree["train"].status.attrs["flag_meanings"].split()[2] == "dropped"


def test_what_was_written_does_not_change_with_the_memory_that_it_was_written_from(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    image, label = pixels(7)
    memory_image, memory_label = np.empty_like(image[:4]), np.empty_like(label[:4])
    for start in (0, 4):
        count = len(image[start : start + 4])
        memory_image[:count], memory_label[:count] = image[start : start + 4], label[start : start + 4]
        write_shard(path, "train", start, memory_image[:count], memory_label[:count])
        memory_image[:], memory_label[:] = 9999, 99
    read_image, read_label = ChipStore(path).read("train", np.arange(7))
    np.testing.assert_array_equal(read_image, image)
    np.testing.assert_array_equal(read_label, label)


def test_missing_shards_are_counted(tmp_path):
    path = tmp_path / "c.zarr"
    create(path)
    assert ChipStore(path).missing_shards("train") == 2
    fill(path, *pixels(7))
    assert ChipStore(path).missing_shards("train") == 0
    (path / "train" / "label" / "c.1.0.0").unlink()
    assert ChipStore(path).missing_shards("train") == 1


def test_a_nodata_value_of_nan_survives(tmp_path):
    create(tmp_path / "c.zarr", dtype="float32", nodata="NaN")
    assert np.isnan(ChipStore(tmp_path / "c.zarr").attrs["nodata"])


def test_errors_of_a_store(tmp_path):
    with pytest.raises(InputError, match=r"there is no chip store at .*none; make one with python -m geochip.chipping"):
        ChipStore(tmp_path / "none")
    zarr.create_group(str(tmp_path / "other"), zarr_format=3)
    with pytest.raises(InputError, match="there is no chip store at"):
        ChipStore(tmp_path / "other")
    create(tmp_path / "c.zarr")
    with pytest.raises(InputError, match=r"chip store .* has no split 'val'; it has train"):
        ChipStore(tmp_path / "c.zarr").written("val")
    zarr.open_group(str(tmp_path / "c.zarr"), mode="r+").update_attributes({"format_version": 99})
    with pytest.raises(InputError, match=r"has format version 99, this geochip reads 1; make it anew"):
        ChipStore(tmp_path / "c.zarr")


def test_locks_of_killed_writers_are_swept(tmp_path):
    create(tmp_path / "c.zarr")
    lock = tmp_path / "c.zarr" / "train" / "image" / "c.0.0.0.0.__lock"
    lock.touch()
    sweep_locks(tmp_path / "c.zarr")
    assert not lock.exists()


def test_a_disk_that_is_found_full_only_when_it_is_waited_for(tmp_path, monkeypatch):
    # Lustre and NFS may take a write and tell of a quota only then; the real thing is in test_chipping_faults.py.
    path = tmp_path / "chips.zarr"
    create(path)
    fill(path, *pixels(7))
    assert sync_shard(path, "train", 0) == sum(file.stat().st_size for file in shard_files(path, "train", 0))

    def refuse(number):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", lambda _: refuse(errno.EDQUOT))
    with pytest.raises(WorkError, match="the disk or your quota on it is full"):
        sync_shard(path, "train", 0)
    monkeypatch.setattr(os, "fsync", lambda _: refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        sync_shard(path, "train", 0)
