from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from geochip.config import ChipsConfig, DataConfig, InferConfig, ModelConfig, RunConfig, TrainConfig
from geochip.dataset import BatchReader, find_data, training_batches, turned, validation_batches
from geochip.errors import InputError, WorkError
from geochip.store import (
    ChipStore,
    SplitLayout,
    SplitResult,
    StorePlan,
    create_chip_store,
    finish_chip_store,
    write_shard,
)

CHIPS, SIZE, BANDS, SHARD = 13, 8, 2, 4
CPU = torch.device("cpu")


def position_coded(chips=CHIPS):
    """uint16 pixels that tell band, row, column and (by their high bits) position; the label tells row and column."""
    chip, band, row, col = np.indices((chips, BANDS, SIZE, SIZE))
    image = (chip * 4096 + band * 256 + row * 16 + col).astype(np.uint16)
    label = (np.arange(SIZE)[:, None] * 16 + np.arange(SIZE)).astype(np.uint8)
    return image, np.stack([label] * chips)


STATISTICS = {
    "split": "train", "mean": [10.0, 20.0], "std": [1.0, 2.0], "min": [1.0, 2.0], "max": [30.0, 40.0],
    "percentiles": {"50": [10.0, 20.0]}, "class_pixels": {"background": 1, "building": 1}, "valid_pixels": 2,
}  # fmt: skip


def make_store(path: Path, *, written=None, complete=True, valid_fraction=1.0, statistics="right"):
    image, label = position_coded()
    layout = SplitLayout(
        name="train",
        scene_id=["a"] * CHIPS,
        shard=SHARD,
    )
    plan = StorePlan(
        layouts=[layout], bands=BANDS, size=SIZE, dtype="uint16", fill_value=0, classes=["background", "building"],
        attributes={
            "geochip_version": "0.1.0", "config": {"data": {"splits": ["train", "val"]}, "chips": {}}, "seed": 0,
            "class_names": ["background", "building"], "bands": [3, 1], "band_names": ["red", "blue"],
            "dtype": "uint16", "nodata": None, "chip_size": SIZE, "pixel_size_range": [0.3, 0.4], "fingerprint": "f0",
        },
    )  # fmt: skip
    create_chip_store(path, plan)
    for start in range(0, CHIPS, SHARD):
        write_shard(path, "train", start, image[start : start + SHARD], label[start : start + SHARD])
    if complete:
        result = replace(
            SplitResult.empty(CHIPS, 2),
            valid_fraction=np.full(CHIPS, valid_fraction, np.float32),
            status=np.zeros(CHIPS, np.uint8) if written is None else np.where(written, 0, 1).astype(np.uint8),
        )
        if statistics == "right":
            statistics = STATISTICS
        finish_chip_store(path, {"train": result}, {"statistics": statistics})
    return ChipStore(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("store") / "chips.zarr")


# --- order ------------------------------------------------------------------------------------------------------------


def test_a_store_that_lacks_a_file_is_refused(tmp_path):
    path = tmp_path / "chips.zarr"
    make_store(path)
    (path / "train" / "image" / "c.0.0.0.0").unlink()
    config = RunConfig(chips=ChipsConfig(store=str(path)), train=TrainConfig(val_split=None))
    with pytest.raises(
        InputError, match=r"chip store .* lacks 1 shard of split 'train', and what they held would read as"
    ):
        find_data(config, world=1)


def epoch_of(world, batch_size, epoch=0, seed=0, chips=CHIPS):
    """(step, rank, chip) positions."""
    return np.stack(
        [
            training_batches(
                np.arange(chips) * 10, seed=seed, epoch=epoch, batch_size=batch_size, rank=rank, world=world
            )
            for rank in range(world)
        ],
        axis=1,
    )


@pytest.mark.parametrize(("world", "batch_size"), [(2, 3), (3, 2), (6, 1)])
def test_ranks_share_the_global_batches_of_one_rank(world, batch_size):
    alone = epoch_of(1, 6)
    assert alone.shape == (2, 1, 6)
    np.testing.assert_array_equal(epoch_of(world, batch_size).reshape(2, 6), alone.reshape(2, 6))


def test_an_epoch_holds_no_chip_twice_and_drops_what_fills_no_global_batch():
    positions = epoch_of(2, 3).ravel()
    assert len(set(positions.tolist())) == 12
    assert set(positions.tolist()) < set(range(0, 130, 10))


def test_every_epoch_and_seed_has_its_own_order_and_drops_others():
    orders = [epoch_of(1, 6, epoch=epoch, seed=seed).ravel().tolist() for epoch in range(20) for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 40
    assert len({frozenset(order) for order in orders}) > 5
    assert epoch_of(1, 6, epoch=3, seed=1).ravel().tolist() == orders[7]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_validation_takes_each_chip_once_in_batches_that_do_not_depend_on_ranks(world):
    positions = np.arange(CHIPS) * 10
    parts = [validation_batches(positions, batch_size=4, rank=rank, world=world) for rank in range(world)]
    batches = {tuple(batch.tolist()) for part in parts for batch in part}
    assert batches == {(0, 10, 20, 30), (40, 50, 60, 70), (80, 90, 100, 110), (120,)}
    assert sum(map(len, parts)) == 4


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_the_eight_ways_are_those_of_a_square():
    square = np.array([[1, 2], [3, 4]])
    assert [turned(square, way).tolist() for way in range(8)] == [
        [[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]],
        [[2, 1], [4, 3]], [[4, 2], [3, 1]], [[3, 4], [1, 2]], [[1, 3], [2, 4]],
    ]  # fmt: skip


def read_all(store, batches, *, epoch=0, augment_seed=0, batch_size=4):
    """{position: (image, label)} as the reader gives them; a chip's own pixels tell its position."""
    chips = {}
    with BatchReader(store, "train", batch_size=batch_size, device=CPU, augment_seed=augment_seed) as reader:
        for batch, positions in zip(reader.read(batches, epoch=epoch), batches, strict=True):
            assert len(batch.image_bchw) == len(batch.label_bhw) == len(positions)
            for index, position in enumerate(positions):
                chips[int(position)] = (
                    batch.image_bchw.numpy()[index].copy(),
                    batch.label_bhw.numpy()[index].copy(),
                )
    return chips


def way_of(image, plain):
    """Which of the eight ways a chip was turned."""
    ways = [way for way in range(8) if np.array_equal(image, turned(plain, way))]
    assert len(ways) == 1
    return ways[0]


def test_image_and_label_are_turned_alike_and_chips_differ(store):
    plain_image, plain_label = position_coded()
    ways = []
    for epoch in range(6):
        for position, (image, label) in read_all(store, [np.arange(CHIPS)], epoch=epoch, batch_size=CHIPS).items():
            ways.append(way_of(image, plain_image[position]))
            np.testing.assert_array_equal(label, turned(plain_label[position], ways[-1]))
    assert set(ways) == set(range(8))
    assert ways[:CHIPS] != ways[CHIPS : 2 * CHIPS]


def test_how_a_chip_is_turned_depends_on_seed_epoch_and_position_alone(store):
    together = read_all(store, [np.arange(CHIPS)], epoch=2, batch_size=CHIPS)
    apart = read_all(store, [np.array([position]) for position in range(CHIPS)][::-1], epoch=2)
    for position in range(CHIPS):
        np.testing.assert_array_equal(together[position][0], apart[position][0])
    other = read_all(store, [np.arange(CHIPS)], epoch=2, augment_seed=1, batch_size=CHIPS)
    assert any(not np.array_equal(other[position][0], together[position][0]) for position in range(CHIPS))


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_reader_gives_what_is_in_the_store(store):
    """More batches than buffers, of different lengths, in no order, one chip twice."""
    rng = np.random.default_rng(0)
    batches = [rng.integers(CHIPS, size=size) for size in (4, 4, 1, 3, 4, 2, 4, 4, 4)]
    plain_image, plain_label = position_coded()
    with BatchReader(store, "train", batch_size=4, device=CPU) as reader:
        for _ in range(2):  # a reader may be used again
            for batch, positions in zip(reader.read(batches), batches, strict=True):
                assert batch.image_bchw.dtype == torch.uint16
                assert batch.label_bhw.dtype == torch.uint8
                np.testing.assert_array_equal(batch.image_bchw.numpy(), plain_image[positions])
                np.testing.assert_array_equal(batch.label_bhw.numpy(), plain_label[positions])
                assert batch.valid == plain_label[positions].size
        assert list(reader.read([])) == []


def test_valid_pixels_are_those_that_are_not_ignored(tmp_path):
    store = make_store(tmp_path / "chips.zarr")
    image, label = position_coded()
    label[4, :3] = 255
    label[5] = 255
    write_shard(store.path, "train", 4, image[4:8], label[4:8])
    with BatchReader(store, "train", batch_size=2, device=CPU, augment_seed=0) as reader:
        valid = [batch.valid for batch in reader.read([np.array([3, 4]), np.array([5]), np.array([4, 5])])]
    assert valid == [64 + 40, 0, 40]


def test_a_damaged_chip_is_named(tmp_path):
    store = make_store(tmp_path / "chips.zarr")
    shard = store.path / "train" / "image" / "c.1.0.0.0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 255
    shard.write_bytes(data)
    with BatchReader(store, "train", batch_size=2, device=CPU) as reader:
        batches = reader.read([np.array([0, 1]), np.array([2, 4]), np.array([8, 9])])
        next(batches)
        with pytest.raises(WorkError, match=r"chips 2, 4 of split 'train' in .*chips.zarr cannot be read: .*damaged"):
            next(batches)


# --- what there is to train on ----------------------------------------------------------------------------------------


def config(store, **train):
    return RunConfig(
        data=DataConfig(splits=("train", "val")),
        chips=ChipsConfig(store=str(store)),
        model=ModelConfig(architecture="linear"),
        train=TrainConfig(**{"val_split": None, **train}),
        infer=InferConfig(split="val"),
    )


def test_chips_that_were_not_written_are_left_out(tmp_path):
    written = [True] * CHIPS
    written[0] = written[7] = False
    data = find_data(config(make_store(tmp_path / "chips.zarr", written=written).path, val_split=None), world=1)
    assert data.train.tolist() == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert data.val.tolist() == []


def test_the_contract_is_that_of_the_store(store):
    contract = find_data(config(store.path), world=1).contract
    assert (contract.mean, contract.std, contract.bands, contract.band_names, contract.dtype, contract.nodata) == (
        (10.0, 20.0), (1.0, 2.0), (3, 1), ("red", "blue"), "uint16", None,
    )  # fmt: skip
    assert (contract.architecture, contract.class_names, contract.chip_size, contract.pixel_size_range) == (
        "linear", ("background", "building"), SIZE, (0.3, 0.4),
    )  # fmt: skip
    assert contract.chip_store_fingerprint == "f0"


def test_a_store_that_cannot_be_trained_on(tmp_path, store):
    with pytest.raises(InputError, match="there is no chip store at"):
        find_data(config(tmp_path / "absent"), world=1)
    with pytest.raises(InputError, match=r"is not complete: run python -m geochip.chipping again"):
        find_data(config(make_store(tmp_path / "incomplete.zarr", complete=False).path), world=1)
    with pytest.raises(InputError, match=r"has 13 chips, fewer than one global batch of 14 \(2 ranks x train.batch"):
        find_data(config(store.path, batch_size=7), world=2)
    with pytest.raises(InputError, match=r"has no chips of split 'val'; .* or use --train.val_split null"):
        find_data(config(store.path, val_split="val"), world=1)
    for number, wrong in enumerate(
        (
            {"valid_fraction": 0.0},
            {"statistics": None},
            {"statistics": {**STATISTICS, "mean": [None, None], "std": [None, None]}},
        )
    ):
        path = make_store(tmp_path / f"empty{number}.zarr", **wrong).path
        with pytest.raises(
            InputError, match=r"split 'train' of .* has no valid pixel: all is nodata; check data.image"
        ):
            find_data(config(path), world=1)


def test_statistics_of_another_split_are_refused(tmp_path):
    statistics = {**STATISTICS, "split": "val"}
    path = make_store(tmp_path / "chips.zarr", statistics=statistics).path
    with pytest.raises(
        InputError, match=r"train.split: .* has the statistics of split 'val', not 'train'; remove the store"
    ):
        find_data(config(path), world=1)
