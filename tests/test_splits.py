"""Splits made of squares of the ground."""

import re
from dataclasses import replace

import pyproj
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geochip.config import ChipsConfig, DataConfig, RunConfig, SplitConfig
from geochip.errors import InputError
from geochip.scenes import Scene, SetAside, catalogue_frame, describe_files, find_scenes
from geochip.scenes.blocks import divide
from geochip.scenes.dividing import division_of
from helpers import FLAT_IMAGE, FLAT_LABEL, ids_by_split, position_coded, write_flat, write_image

SPLITS = ("train", "val", "test")


WHOLE = {"train": 0.5, "val": 0.25, "test": 0.25}


def blocked(root=".", *, splits=SPLITS, chips=8, **split):
    data = DataConfig(root=str(root), image=FLAT_IMAGE, label=FLAT_LABEL, splits=splits)
    return RunConfig(data=data, split=SplitConfig(**{"by": "blocks", **split}), chips=ChipsConfig(size=chips))


def record(scene_id, x, y, *, side=20.0, pixel=0.5, crs="EPSG:32611", pixel_size=0.5):
    """A scene without pixels: a square of `side` metres whose upper left corner is at (x, y)."""
    pixels = round(side / pixel)
    return Scene(
        scene_id=scene_id, split="", image=f"{scene_id}.tif", label=None, height=pixels, width=pixels, count=1,
        dtype="uint8", crs=crs, transform=Affine(pixel, 0, x, 0, -pixel, y), nodata=None, bands=(1,),
        band_names=("band_1",), pixel_size=pixel_size, image_bytes=1, label_bytes=0,
    )  # fmt: skip


def lattice(rows, cols, step, **more):
    """Scenes `step` metres apart, row by row, from a corner of the squares on."""
    return [
        record(f"{row}-{col}", 660_000 + step * col + 5, 4_000_000 + step * row + 25, **more)
        for row in range(rows)
        for col in range(cols)
    ]


def split_of(division):
    return {item.scene_id: item.split for item in (*division.members, *division.buffered)}


def test_a_square_and_all_its_scenes_go_to_one_split():
    scenes = lattice(12, 12, 50)
    division = divide(scenes, blocked(block=200, buffer=0, fractions=WHOLE))
    of = split_of(division)
    assert len(of) == 144
    for row in range(0, 12, 4):
        for col in range(0, 12, 4):
            square = {of[f"{row + i}-{col + j}"] for i in range(4) for j in range(4)}
            assert len(square) == 1, (row, col)
    assert set(of.values()) == set(SPLITS)
    assert division.buffered == ()
    # By split as configured, and within it in the order given.
    order = {scene.scene_id: number for number, scene in enumerate(scenes)}
    rank = [(SPLITS.index(scene.split), order[scene.scene_id]) for scene in division.members]
    assert rank == sorted(rank)


@given(
    st.integers(0, 10_000),
    st.integers(3, 30),
    st.sampled_from([WHOLE, {"train": 0.9, "val": 0.05, "test": 0.05}, {"train": 1.0, "val": 0.0, "test": 0.0}, None]),
)
def test_splits_get_their_share_of_the_scenes(seed, count, fractions):
    scenes = lattice(1, count, 100)
    of = split_of(divide(scenes, blocked(block=100, buffer=0, seed=seed, fractions=fractions)))
    shares = fractions or {"train": 0.8, "val": 0.1, "test": 0.1}
    for split, share in shares.items():
        got = sum(name == split for name in of.values())
        assert got == 0 if share == 0 else got >= 1
        # As near as whole squares allow, but that every split with a share gets one.
        assert abs(got - share * count) <= 2


def test_shares_are_of_scenes_and_not_of_squares():
    scenes = [
        record(f"{square}-{number}", 660_000 + 100 * square + 5 + number, 4_000_000 + 25)
        for square in range(30)
        for number in range(1 + 7 * square % 9)
    ]
    for seed in range(5):
        of = split_of(divide(scenes, blocked(block=100, buffer=0, seed=seed, fractions=WHOLE)))
        for split, share in WHOLE.items():
            assert abs(sum(name == split for name in of.values()) - share * len(scenes)) <= 9


def test_a_scene_belongs_to_the_square_of_its_centre():
    # "over" begins in the first square, and most of it lies in the second.
    scenes = [record(name, 660_000 + x, 4_000_025) for name, x in (("first", 70), ("over", 91), ("second", 110))]
    divisions = [
        split_of(divide(scenes, blocked(block=100, buffer=0, seed=seed, splits=("train", "val")))) for seed in range(9)
    ]
    assert all(of["over"] == of["second"] != of["first"] for of in divisions)


def test_the_seed_alone_decides_which_square_goes_where():
    scenes = lattice(6, 6, 100)
    divisions = [split_of(divide(scenes, blocked(block=100, buffer=0, seed=seed))) for seed in (0, 0, 1, 2)]
    assert divisions[0] == divisions[1]
    assert len({tuple(division.items()) for division in divisions}) == 3
    shuffled = split_of(divide(scenes[::-1], blocked(block=100, buffer=0)))
    assert shuffled == divisions[0]


def test_scenes_close_to_another_split_are_left_out_of_training():
    # Two squares; across the border between them scenes are 30 m apart, and 80 m in the column behind.
    scenes = lattice(1, 8, 50)
    config = blocked(splits=("train", "val"), block=200, fractions={"train": 0.5, "val": 0.5})
    for buffer, left_out in ((29.9, 0), (30.1, 1), (79.9, 1), (80.1, 2)):
        division = divide(scenes, replace(config, split=replace(config.split, buffer=buffer)))
        of = split_of(division)
        train = [scene for scene in scenes if of[scene.scene_id] == "train"]
        border = train[::-1] if train[0].scene_id == "0-0" else train
        expected = {scene.scene_id for scene in border[:left_out]}
        assert {item.scene_id for item in division.buffered} == expected, buffer
        assert not expected & {item.scene_id for item in division.members}
        assert sum(item.split == "val" for item in division.members) == 4
    (last,) = (item for item in division.buffered if item.scene_id == border[0].scene_id)
    other = "0-4" if border[0].scene_id == "0-3" else "0-3"
    assert last.reason == (
        f"it lies 30 m from scene {other} of val, and split.buffer keeps 80.1 m between train and other splits"
    )
    assert last.split == "train"


def test_the_buffer_is_a_chip_wide_by_default():
    scenes = lattice(1, 8, 50)
    config = blocked(splits=("train", "val"), block=200, fractions={"train": 0.5, "val": 0.5})
    widths = {
        chips: len(divide(scenes, replace(config, chips=chips)).buffered)
        for chips in (ChipsConfig(size=59), ChipsConfig(size=61), ChipsConfig(size=59, size_range=(20, 161)))
    }
    # Pixels of half a metre: 29.5 m, 30.5 m, 80.5 m.
    assert list(widths.values()) == [0, 1, 2]


def test_metres_are_metres_on_the_ground():
    # Near 60 degrees North a metre of Web Mercator is half a metre: as map units, squares would be of 100 m.
    scenes = [
        record(str(i), 1_000_000 + 400 * i, 8_400_000, crs="EPSG:3857", pixel=1.0, pixel_size=0.5) for i in range(4)
    ]
    with pytest.raises(InputError, match=r"split.block: squares of 5000 m put the 4 scenes into 1 of them"):
        divide(scenes, blocked(block=5000, splits=("train", "val")))
    division = divide(scenes, blocked(block=200, splits=("train", "val"), buffer=185))
    # 400 map units are 200 m, less a scene's own 10 m: no train scene is within 185 m, two are within 195 m.
    assert division.buffered == ()
    assert len(divide(scenes, blocked(block=200, splits=("train", "val"), buffer=195)).buffered) in (1, 2)


def test_scenes_of_several_crs_share_their_squares():
    # The same two places, in UTM and in degrees.
    to_degrees = pyproj.Transformer.from_crs("EPSG:32611", "EPSG:4326", always_xy=True)
    scenes = []
    for i in range(6):
        x, y = 660_000 + 3000 * i, 4_000_000
        lon, lat = to_degrees.transform(x, y)
        scenes += [
            record(f"utm{i}", x, y),
            record(f"deg{i}", lon, lat, crs="EPSG:4326", pixel=5e-6, side=2e-4),
        ]
    of = split_of(divide(scenes, blocked(block=1500, buffer=0)))
    assert all(of[f"utm{i}"] == of[f"deg{i}"] for i in range(6))
    assert set(of.values()) == set(SPLITS)


def test_no_scene_comes_first_in_choosing_a_crs():
    # On the border of two zones, each scene in one of them.
    scenes = []
    for i in range(12):
        zone = 32611 + i % 2
        to_zone = pyproj.Transformer.from_crs("EPSG:4326", zone, always_xy=True)
        scenes.append(record(str(i), *to_zone.transform(-114.05 + 0.01 * i, 36), crs=f"EPSG:{zone}"))
    config = blocked(block=1500, buffer=0)
    assert split_of(divide(scenes, config)) == split_of(divide(scenes[::-1], config))


def test_a_scene_without_header_is_counted_to_train():
    bad = SetAside(scene_id="0-1b", split="", path="b.tif", reason="it is no raster")
    scenes = lattice(1, 6, 100)
    mixed = [*scenes[:2], bad, *scenes[2:]]
    division = divide(mixed, blocked(block=100, buffer=0))
    assert split_of(division) == {**split_of(divide(scenes, blocked(block=100, buffer=0))), "0-1b": "train"}
    train = [item.scene_id for item in division.members if item.split == "train"]
    assert train == [item.scene_id for item in mixed if item.scene_id in train]


ERRORS_OF_BLOCKS = {
    "no CRS": (
        [*lattice(1, 3, 100), record("x", 0, 0, crs=None), record("y", 0, 0, crs=None)],
        {},
        "split.by: blocks needs to know where each scene lies, and x.tif has no CRS, nor have 1 others; assign one to the image "
        "(gdal_edit.py -a_srs), or divide the scenes by split.by: manifest, or one large image by an area of interest for "
        "each split (chips.aoi with {split} in it)",
    ),
    "a local grid": (
        [record("x", 0, 0, crs='LOCAL_CS["site",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]')],
        {},
        "split.by: blocks needs to know where each scene lies, and x.tif is on a local grid; assign one to the image "
        "(gdal_edit.py -a_srs), or divide the scenes by split.by: manifest, or one large image by an area of interest for "
        "each split (chips.aoi with {split} in it)",
    ),
    "too few squares": (
        lattice(2, 5, 100),
        {"block": 10_000},
        "split.block: squares of 10000 m put the 10 scenes into 1 of them, too few for the 3 splits with a share; set "
        "split.block to 420, or divide the scenes by split.by: manifest",
    ),
    "nothing to train on": (
        lattice(1, 9, 100),
        {"block": 100, "buffer": 5000},
        "split.buffer: all 7 scenes of train lie closer than 5000 m to scenes of other splits, none is left; set "
        "split.buffer to 500, or divide the scenes by split.by: manifest",
    ),
    "half the world apart": (
        [
            record("x", 10, 50, crs="EPSG:4326", pixel=5e-6, side=2e-4),
            record("y", -170, -50, crs="EPSG:4326", pixel=5e-6, side=2e-4),
        ],
        {},
        "split.by: blocks found no CRS in which all 2 scenes can be measured in metres, they lie too far apart; divide "
        "them by split.by: manifest",
    ),
}


@pytest.mark.parametrize(("scenes", "split", "text"), ERRORS_OF_BLOCKS.values(), ids=ERRORS_OF_BLOCKS.keys())
def test_errors_of_blocks(scenes, split, text):
    with pytest.raises(InputError, match=f"^{re.escape(text)}$"):
        division_of(scenes, blocked(**split))


@pytest.fixture
def ground(tmp_path):
    """Twelve scenes 100 m apart in a row, the last but one of them no image."""
    for number in range(12):
        write_flat(tmp_path, number, x=100 * number)
    (tmp_path / FLAT_IMAGE.format(id=10)).write_text("no image")
    return tmp_path


def test_every_command_finds_the_same_division(ground):
    config = blocked(ground, block=100, buffer=0)
    together = find_scenes(config)
    assert {split: len(found) for split, found in ids_by_split(together).items()} == {"train": 9, "val": 1, "test": 1}
    for split in SPLITS:
        assert ids_by_split(find_scenes(config, [split]))[split] == ids_by_split(together)[split]
        assert ids_by_split(find_scenes(config, [split], need_labels=False))[split] == ids_by_split(together)[split]
    train = [scene_id for split, scene_id in together.order if split == "train"]
    assert train == sorted([*ids_by_split(together)["train"], "10"], key=int)
    assert [split for split, _ in together.order] == ["train"] * 10 + ["val", "test"]
    assert [(item.split, item.scene_id) for item in together.bad] == [("train", "10")]
    # A label that is not there yet moves no scene to another split.
    (test,) = ids_by_split(together)["test"]
    (ground / FLAT_LABEL.format(id=test)).unlink()
    (ground / FLAT_LABEL.format(id=train[0])).unlink()
    without = find_scenes(config)
    assert ids_by_split(without) == {**ids_by_split(together), "train": ids_by_split(together)["train"][1:], "test": []}
    assert [(item.split, item.scene_id) for item in without.unlabelled] == [("train", train[0]), ("test", test)]
    assert f"there is no label file {ground / FLAT_LABEL.format(id=test)}" in str(without.unlabelled[1])
    assert ids_by_split(find_scenes(config, ["test"], need_labels=False))["test"] == [test]


def test_a_split_without_a_share_has_no_scenes(ground):
    config = blocked(ground, block=100, fractions={"train": 0.5, "val": 0, "test": 0.5}, buffer=0)
    found = find_scenes(config)
    assert {scene.split for scene in found.scenes} == {"train", "test"}
    with pytest.raises(
        InputError, match=r"split.fractions: val has a share of 0, and so no scene; give it one, or name another split"
    ):
        find_scenes(config, ["val"])


def test_scenes_within_the_buffer_are_named_in_the_catalogue(ground):
    config = blocked(ground, block=100, buffer=99)
    catalogue = find_scenes(config)
    assert catalogue.buffered
    kept = set(ids_by_split(catalogue)["train"])
    assert not kept & {item.scene_id for item in catalogue.buffered}
    assert not {("train", item.scene_id) for item in catalogue.buffered} & set(catalogue.order)
    frame = catalogue_frame(catalogue).set_index("scene_id")
    assert set(frame.index[frame.status == "buffered"]) == {item.scene_id for item in catalogue.buffered}
    assert find_scenes(config, ["test"]).buffered == ()


def test_a_named_file_has_the_split_of_its_square(ground):
    config = blocked(ground, block=100, buffer=0)
    (test,) = ids_by_split(find_scenes(config))["test"]
    stranger = write_image(ground / "other.tif", position_coded(4, 5))
    catalogue = describe_files([str(ground / FLAT_IMAGE.format(id=test)), str(stranger)], config)
    assert [(scene.split, scene.scene_id) for scene in catalogue.scenes] == [("test", test), ("", "other")]
    assert catalogue.scenes[0].label == str(ground / FLAT_LABEL.format(id=test))
