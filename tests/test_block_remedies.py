"""What is told where squares of ground cannot divide an image, and that what is told helps."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from affine import Affine

from geochip.chip_prepare import prepare
from geochip.errors import InputError
from geochip.run_file import parse_command
from geochip.scenes.blocks import in_words
from helpers import box, write_image, write_label
from orthophotos import COLS, ROWS, write_ortho
from told import told


def flags_of(root, *more):
    return [
        f"--run_dir={root / 'run'}", f"--data.root={root}", "--data.image={id}.tif", "--data.label={id}.geojson",
        "--split.by=blocks", *more,
    ]  # fmt: skip


def plan(root, *more):
    return prepare(parse_command(flags_of(root, *more), command="chipping", description="").config)


def settings_in(text):
    """Each of the settings that a message says to set, as flags."""
    advice = text.rsplit("; set ", 1)[1].split(", or divide")[0]
    for one in advice.split(" or "):
        values = dict(re.findall(r"(split\.\w+|chips\.\w+)(?: to)? (\[.*?\]|[\w.+]+)", one))
        assert values, one
        yield [f"--{name}={value}" for name, value in values.items()]


TOO_LARGE = ("blocks-too-few-squares", "--split.block=1000", "--chips.size=16")
CASES = {
    "the default square is larger than the image": TOO_LARGE,
    "a square is smaller than a chip": ("blocks-no-room", "--split.block=7", "--chips.size=16"),
    "a square is a few pixels": ("blocks-no-room", "--split.block=0.6", "--chips.size=16"),
    "metres taken for degrees": ("blocks-no-room", "--split.block=0.01", "--chips.size=16"),
    "a chip as large as the image": ("blocks-no-room", "--split.block=100", "--chips.size=256"),
    "chips of many sizes": ("blocks-no-room", "--split.block=100", "--chips.size=64", "--chips.size_range=[64,290]"),
    "a buffer that leaves nothing": ("blocks-nothing-left", "--split.block=40", "--chips.size=16", "--split.buffer=150"),
    "the image is to stay whole": ("blocks-too-few-squares", "--split.block=40", "--chips.size=16", "--split.scenes=whole"),
    "hardly anything to train on": (
        "blocks-nothing-left", "--split.block=40", "--chips.size=48", "--split.seed=1",
        '--split.fractions={"train": 0.02, "val": 0.49, "test": 0.49}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("grid", ["north up", "rotated", "degrees"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_setting_that_is_named_gives_every_split_chips(tmp_path, case, grid):
    key, *flags = case
    write_ortho(tmp_path, grid=grid)
    with pytest.raises(InputError) as caught:
        plan(tmp_path, *flags)
    text = str(caught.value)
    told(key, text)
    # The image is named with its size, so that a person sees what squares can be.
    if "nothing-left" not in key:
        assert re.search(rf"ortho.tif \({COLS} x {ROWS} pixels, about \d+ x \d+ m\)", text)
    remedies = list(settings_in(text))
    assert remedies, text
    for remedy in remedies:
        ready = plan(tmp_path, *flags, *remedy)
        assert {split.split: split.chips > 0 for split in ready.plan.splits} == dict.fromkeys(
            ("train", "val", "test"), True
        )
        assert ready.overlap.pairs == 0


def test_more_squares_than_can_be_handled(tmp_path, monkeypatch):
    monkeypatch.setattr("geochip.scenes.dividing._MOST_SQUARES", 200)
    write_ortho(tmp_path)
    with pytest.raises(InputError) as caught:
        plan(tmp_path, "--split.block=9", "--chips.size=16")
    told("blocks-too-many", str(caught.value))
    (remedy,) = settings_in(str(caught.value))
    assert all(split.chips for split in plan(tmp_path, "--chips.size=16", *remedy).plan.splits)


def test_an_image_that_is_too_small_for_all_splits_says_so(tmp_path):
    write_image(tmp_path / "ortho.tif", np.zeros((1, 20, 20), np.uint8))
    write_label(tmp_path / "ortho.geojson", [])
    with pytest.raises(InputError) as caught:
        plan(tmp_path, "--chips.size=20")
    assert str(caught.value).endswith("; the image is too small to be divided: name fewer data.splits")
    assert plan(tmp_path, "--chips.size=20", "--data.splits=[train]", "--train.val_split=null").plan.chips == 1


# Coordinates of a plan: metres from a corner of the site, in no CRS.
OWN = Affine(0.5, 0, 100, 0, -0.5, 900)


@pytest.fixture
def nowhere(tmp_path):
    """An image that nothing relates to the ground, with a label in the same coordinates."""
    write_image(tmp_path / "ortho.tif", np.zeros((1, ROWS, COLS), np.uint8), crs=None, transform=OWN)
    write_label(tmp_path / "ortho.geojson", [box(OWN, 10, 10, 30, 30)], crs=None)
    with pytest.raises(InputError) as caught:
        plan(tmp_path, "--chips.size=16")
    told("blocks-no-crs", str(caught.value))
    return tmp_path


def test_an_image_without_crs_can_be_divided_once_it_has_one(nowhere):
    # As gdal_edit.py -a_srs EPSG:32611 -a_ullr does.
    with rasterio.open(nowhere / "ortho.tif", "r+") as dataset:
        dataset.crs, dataset.transform = "EPSG:32611", Affine(0.5, 0, 664_000, 0, -0.5, 4_004_000)
    write_label(nowhere / "ortho.geojson", [])
    assert all(split.chips for split in plan(nowhere, "--chips.size=16", "--split.block=40").plan.splits)


def test_an_image_without_crs_can_be_divided_by_areas_of_interest(nowhere):
    for split, first in (("train", 0), ("val", 200), ("test", 300)):
        area = box(OWN, 0, first, ROWS, 90)
        write_label(nowhere / f"{split}.json", [area], crs=None)
    flags = ["--chips.size=16", "--split.by=directories", "--chips.aoi={split}.json"]
    ready = prepare(parse_command(flags_of(nowhere, *flags), command="chipping", description="").config)
    assert [(split.split, split.chips) for split in ready.plan.splits] == [("train", 5), ("val", 5), ("test", 5)]


def test_the_message_is_one_line_on_the_command_line(tmp_path, capsys):
    from geochip.chipping import main
    from geochip.errors import run_command

    write_ortho(tmp_path)
    assert run_command(main, flags_of(tmp_path, *TOO_LARGE[1:])) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_several_images_are_told_the_manifest_too(tmp_path):
    for name, shift in (("a", (0, 0)), ("b", (COLS, 0))):
        write_ortho(tmp_path, name, shift=shift)
    with pytest.raises(InputError) as caught:
        plan(tmp_path, "--split.block=7", "--chips.size=16")
    assert "divide the 2 scenes into " in str(caught.value)
    assert str(caught.value).endswith(", or divide the scenes by split.by: manifest")
    (remedy,) = settings_in(str(caught.value))
    assert all(split.chips for split in plan(tmp_path, *remedy, "--chips.size=16").plan.splits)


@pytest.mark.parametrize(
    ("pixel_size", "size"), [(0.5, "1500 x 1490 m"), (1000, "3000000 x 2980000 m"), (1e-4, "0.3 x 0.298 m")]
)
def test_the_size_of_an_image_is_told_in_plain_numbers(pixel_size, size):
    scene = SimpleNamespace(image="city.tif", width=3000, height=2980, pixel_size=pixel_size)
    assert in_words([scene]) == f"city.tif (3000 x 2980 pixels, about {size})"
