import shutil

import numpy as np
import pytest
import zarr
from PIL import Image

from geochip.chip_preview import chip_picture, choose_chips, class_colours, contact_sheet
from geochip.errors import WorkError
from geochip.store import ChipStore

CLASSES = ["background", "building", "main road"]
LOW, HIGH = np.array([0.0, 100, 200]), np.array([100.0, 200, 300])


@pytest.fixture
def store(varied_run):
    return ChipStore(varied_run / "chips.zarr")


def test_a_sheet_shows_chips_of_all_splits_and_is_the_same_each_time(store, tmp_path):
    path = tmp_path / "new" / "chips.png"
    assert contact_sheet(store, path) == 24
    with Image.open(path) as sheet:
        assert (sheet.format, sheet.mode) == ("PNG", "RGB")
        # Six columns and four rows of 240 pixels, with captions and a legend.
        assert sheet.width == 10 + 6 * 250
        assert 4 * 240 < sheet.height < 4 * 300
        # The colours of both classes and of what is ignored are there.
        colours = {colour for _, colour in sheet.getcolors(maxcolors=2**24)}
        legend = {colour for _, colour in sheet.crop((0, sheet.height - 26, 300, sheet.height)).getcolors(2**24)}
    assert {(86, 180, 233), (230, 159, 0), (120, 120, 120)} <= colours
    assert {(86, 180, 233), (230, 159, 0), (145, 145, 145)} <= legend
    first = path.read_bytes()
    contact_sheet(store, path)
    assert path.read_bytes() == first
    contact_sheet(store, path, seed=1)
    assert path.read_bytes() != first
    assert [found.name for found in path.parent.iterdir()] == ["chips.png"]


def test_chips_are_spread_over_splits_and_classes(store):
    chosen = choose_chips(store, 12, seed=0)
    assert {split: len(positions) for split, positions in chosen.items()} == {"train": 6, "val": 6}
    for split, positions in chosen.items():
        assert positions == sorted(set(positions))
        assert set(positions) <= set(store.written(split).tolist())
        shares = store.arrays(split, "class_fraction")["class_fraction"]
        for index in range(3):
            # Two of six chips are there for each class: they have as much of it as half of those that have any.
            some = shares[store.written(split), index]
            assert (shares[positions, index] >= np.median(some[some > 0])).sum() >= 2


def test_a_small_store_is_drawn_whole(store, tmp_path):
    written = {split: store.written(split).tolist() for split in ("train", "val")}
    assert choose_chips(store, 1000, seed=3) == written
    # A split that has no more leaves its turns to the other one.
    assert {split: len(some) for split, some in choose_chips(store, 95, seed=3).items()} == {"train": 55, "val": 40}
    assert contact_sheet(store, tmp_path / "one.png", chips=1) == 1
    with Image.open(tmp_path / "one.png") as sheet:
        assert sheet.width == 260


def test_a_class_that_is_rare_is_found(store, monkeypatch):
    shares = np.zeros((100, 3), np.float32)
    shares[:, 0] = 1
    shares[[33, 90], 2] = 0.01
    monkeypatch.setattr(ChipStore, "arrays", lambda *_: {"class_fraction": shares, "written": np.ones(100, np.bool_)})
    for seed in range(5):
        assert {33, 90} <= set(choose_chips(store, 8, seed)["train"])


def test_a_class_is_shown_where_there_is_much_of_it(store, monkeypatch):
    shares = np.zeros((100, 3), np.float32)
    shares[::2, 1], shares[1::2, 1] = 0.001, 0.5
    monkeypatch.setattr(ChipStore, "arrays", lambda *_: {"class_fraction": shares, "written": np.ones(100, np.bool_)})
    assert all(position % 2 for some in choose_chips(store, 16, seed=0).values() for position in some)


def picture(label, image=None, classes=CLASSES):
    label = np.array(label, np.uint8)
    if image is None:
        image = np.zeros((3, *label.shape), np.uint16)
    return chip_picture(image, label, LOW, HIGH, class_colours(classes))


def test_bands_are_stretched_between_their_own_limits():
    image = np.array([[[0, 50, 100, 150]], [[100, 150, 200, 250]], [[50, 250, 300, 9999]]], np.uint16)
    drawn = picture(np.zeros((1, 4)), image)
    assert drawn.dtype == np.uint8
    assert drawn.tolist() == [[[0, 0, 0], [128, 128, 128], [255, 255, 255], [255, 255, 255]]]


@pytest.mark.parametrize("bands", [1, 2])
def test_fewer_than_three_bands_are_grey(bands):
    drawn = picture(np.zeros((1, 2)), np.array([[[0, 100]], [[7, 7]]][:bands], np.float32))
    assert drawn.tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_a_band_of_one_value_and_nan_are_drawn():
    same = np.array([5.0])
    drawn = chip_picture(np.full((1, 2, 2), 5, np.uint8), np.zeros((2, 2), np.uint8), same, same, {})
    assert (drawn == 0).all()
    drawn = chip_picture(np.full((1, 2, 2), np.nan, np.float32), np.zeros((2, 2), np.uint8), same, same, {})
    assert (drawn == 0).all()


def test_a_class_is_tinted_and_outlined_in_its_colour():
    label = np.zeros((5, 5))
    label[1:4, 1:4] = 1
    label[4, 4] = 2
    drawn = picture(label)
    colours = class_colours(CLASSES)
    assert set(colours) == {1, 2}
    # The middle is tinted, what stands beside another class is in full colour, the background is the image.
    assert drawn[2, 2].tolist() == np.round(0.35 * colours[1]).tolist()
    assert (
        drawn[1, 2].tolist()
        == drawn[2, 1].tolist()
        == drawn[3, 2].tolist()
        == drawn[2, 3].tolist()
        == colours[1].tolist()
    )
    assert drawn[4, 4].tolist() == colours[2].tolist()
    assert drawn[0, 0].tolist() == drawn[3, 4].tolist() == [0, 0, 0]


def test_what_is_ignored_is_hatched_in_grey():
    label = np.full((8, 8), 255)
    label[:, 6:] = 0
    drawn = picture(label)
    greys = {tuple(pixel) for pixel in drawn[:, :6].reshape(-1, 3).tolist()}
    assert greys == {(120, 120, 120), (170, 170, 170)}
    assert (drawn[:, 6:] == 0).all()


def test_every_class_but_a_background_has_a_colour_of_its_own():
    assert list(class_colours(["Background", "water"])) == [1]
    assert list(class_colours(["water", "forest"])) == [0, 1]
    many = class_colours([f"class {number}" for number in range(254)])
    assert len({tuple(colour.tolist()) for colour in many.values()}) > 200
    some = list(many.values())[:20]
    assert min(np.abs(a.astype(int) - b).max() for i, a in enumerate(some) for b in some[:i]) > 20


def test_a_store_of_another_kind_of_image_is_drawn_too(varied_run, tmp_path):
    path = shutil.copytree(varied_run / "chips.zarr", tmp_path / "chips.zarr")
    root = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    # No training split, so no statistics; and class names that do not fit into the sheet.
    root.attrs["statistics"] = None
    root.attrs["class_names"] = ["background", "b" * 500, "c" * 500]
    assert contact_sheet(ChipStore(path), tmp_path / "chips.png", chips=3) == 3
    with Image.open(tmp_path / "chips.png") as sheet:
        assert sheet.width == 10 + 3 * 250
        # No text runs into the next chip's, or out of the sheet.
        below = np.asarray(sheet)[250:]
        for gap in (250, 500, 750):
            assert (below[:32, gap : gap + 8] == 255).all()
        assert (below[:, 750:] == 255).all()
        assert (below[:32, 10:250] < 100).any()


def test_what_cannot_be_drawn_is_told_and_leaves_no_file(varied_run, tmp_path):
    path = shutil.copytree(varied_run / "chips.zarr", tmp_path / "chips.zarr")
    shard = path / "val" / "image" / "c.0.0.0.0"
    content = bytearray(shard.read_bytes())
    content[-10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        WorkError,
        match=r"chips.zarr: a chip of val cannot be read \(DATA_LOSS.*\); python -m geochip.chipping --verify ",
    ):
        contact_sheet(ChipStore(path), tmp_path / "chips.png")
    root = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    with zarr.config.set({"array.write_empty_chunks": True}):
        for split in ("train", "val"):
            root[f"{split}/written"][...] = False
    with pytest.raises(WorkError, match=r"chips.zarr holds no chip with pixels, so there is nothing to draw"):
        contact_sheet(ChipStore(path), tmp_path / "chips.png")
    assert not (tmp_path / "chips.png").exists()
