"""Raster labels whose nodata value is a class, and classes that no pixel is of."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import xarray as xr

from geochip import doctor
from geochip.chipping import main
from geochip.doctor.data import scenes as doctor_scenes
from geochip.doctor.findings import Case
from geochip.errors import WorkError
from geochip.run_file import parse_command
from geochip.windows import Window
from helpers import UTM, box, data_flags, open_label, position_coded, read_label, write_image, write_label, write_scene
from told import told

SIZE = {"height": 20, "width": 20}
MASK = "--data.label={split}/mask_{id}.tif"


def mask(rows=5, value=1, background=0, dtype=np.uint8):
    label = np.full((20, 20), background, dtype)
    label[:rows] = value
    return label


@pytest.fixture
def chip(tmp_path, dask_address, capsys):
    """Cuts 20 x 20 pixels whole; gives the labels' values with their numbers, by split, and what was printed."""

    def run_main(*flags, splits=("train",)):
        run_dir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        capsys.readouterr()
        main(
            [
                f"--run_dir={run_dir}", *data_flags(tmp_path / "data", *splits), "--chips.size=20", "--chips.method=grid",
                "--cluster.kind=address", f"--cluster.address={dask_address}", *flags,
            ]
        )  # fmt: skip
        counts = {}
        if (run_dir / "chips.zarr").exists():
            with xr.open_datatree(run_dir / "chips.zarr") as tree:
                for split in splits:
                    values, times = np.unique(tree[split].label.values, return_counts=True)
                    counts[split] = dict(zip(values.tolist(), times.tolist(), strict=True))
        return SimpleNamespace(counts=counts, printed=capsys.readouterr().out)

    return run_main


def scene(tmp_path, split, scene_id, label, **how):
    transform = write_scene(tmp_path / "data", split, scene_id, position_coded(20, 20))
    write_image(tmp_path / "data" / split / f"mask_{scene_id}.tif", label[None], transform=transform, **how)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "int32"])
@pytest.mark.parametrize(
    ("nodata", "rules", "expected", "hidden"),
    [
        # Nothing but the file says what 0 is.
        (0, {}, {255: 300, 1: 100}, 300),
        (1, {}, {0: 300, 255: 100}, 100),
        # The map says it too.
        (0, {"class_map": {0: "0", 1: "1"}}, {0: 300, 1: 100}, 0),
        (1, {"class_map": {"0": "0", "1.0": "1"}}, {0: 300, 1: 100}, 0),
        # The map says nothing of 0.
        (0, {"class_map": {1: "1"}}, {255: 300, 1: 100}, 0),
        # Both say the same.
        (0, {"ignore": (0,)}, {255: 300, 1: 100}, 0),
        (0, {"ignore": (0,), "class_map": {1: "0"}}, {255: 300, 0: 100}, 0),
        # No class has that value.
        (7, {}, {0: 300, 1: 100}, 0),
        (None, {}, {0: 300, 1: 100}, 0),
    ],
)
def test_what_the_map_names_wins_over_the_file_s_nodata(tmp_path, dtype, nodata, rules, expected, hidden):
    path = write_image(tmp_path / "a.tif", mask(dtype=dtype)[None], nodata=nodata)
    with open_label(path, **SIZE, **rules) as label:
        found = label.read(Window(row_off=0, col_off=0, **SIZE))
        assert (label.hidden_pixels, label.read_pixels) == (hidden, 400)
    assert dict(zip(*(one.tolist() for one in np.unique(found, return_counts=True)), strict=True)) == expected


def test_a_mask_band_is_no_nodata_value(tmp_path):
    path = write_image(tmp_path / "a.tif", mask()[None])
    with rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask(rows=10, value=255))
    label = read_label(path, **SIZE, class_map={0: "0", 1: "1"})
    assert (label[10:] == 255).all()
    assert (label[:10] != 255).all()


def test_it_is_told_with_its_share_and_the_remedy_works(tmp_path, chip):
    scene(tmp_path, "train", "1", mask(), nodata=0)
    scene(tmp_path, "train", "2", mask(rows=10))
    planned = chip(MASK, "--dry_run").printed
    told("nodata is a class", planned)
    assert "1 raster label declares nodata 0, which is the id of class 'background'" in planned
    made = chip(MASK)
    told("nodata is a class", made.printed)
    told("hidden pixels", made.printed)
    assert "warning: 37.5 % of the raster labels' pixels count for nothing (255)" in made.printed
    assert made.counts["train"] == {0: 200, 1: 300, 255: 300}
    remedy = "--labels.class_map={0: background, 1: building}"
    assert remedy.removeprefix("--labels.class_map=") in made.printed
    made = chip(MASK, remedy)
    assert "nodata" not in made.printed
    assert made.counts["train"] == {0: 500, 1: 300}


def test_a_nodata_value_that_no_pixel_has_is_told_before_and_not_after(tmp_path, chip):
    scene(tmp_path, "train", "1", mask(background=1), nodata=0)
    printed = chip(MASK).printed
    told("nodata is a class", printed)
    assert "% of the raster labels' pixels" not in printed


def test_the_doctor_says_it_too(tmp_path):
    scene(tmp_path, "train", "1", mask(), nodata=0)
    config = parse_command(
        [f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), MASK, "--chips.size=20"],
        command="doctor", description="",
    ).config  # fmt: skip
    (found,) = [one for one in doctor_scenes(Case(config=config, probe=False)) if one.what == "labels"]
    assert found.level == "warn"
    told("nodata is a class", str(found))
    assert doctor is not None


def test_a_class_without_a_pixel_is_named(tmp_path, chip):
    for split, boxes in (("train", [box(UTM, 0, 0, 5, 5)]), ("val", []), ("test", [])):
        write_scene(tmp_path / "data", split, "1", position_coded(20, 20))
        transform = write_scene(tmp_path / "data", split, "1", position_coded(20, 20))
        boxes = [box(transform, 0, 0, 5, 5)] if boxes else []
        write_label(tmp_path / "data" / split / "label_1.geojson", boxes)
    printed = chip(splits=("train", "val", "test")).printed
    told("absent class", printed)
    # A split that nothing is learned or chosen by may lack one.
    assert [line.split(";")[0] for line in printed.splitlines() if line.startswith("warning")] == [
        "warning: no valid pixel of val is of class 'building'"
    ]


def test_a_class_that_only_nodata_has_is_named(tmp_path, chip):
    scene(tmp_path, "train", "1", mask(), nodata=0)
    printed = chip(MASK).printed
    assert "warning: no valid pixel of train is of class 'background'; perhaps its value stands for nodata" in printed


@pytest.mark.parametrize("raster", [False, True])
def test_a_class_that_the_map_never_names_is_told_before_anything_is_cut(tmp_path, chip, raster):
    if raster:
        scene(tmp_path, "train", "1", mask(value=7, background=3))
        flags = [MASK, "--labels.class_map={7: building, 3: tree}"]
        expected = ["background", "road"]
    else:
        transform = write_scene(tmp_path / "data", "train", "1", position_coded(20, 20))
        boxes = [box(transform, 0, 0, 5, 5), box(transform, 8, 8, 5, 5)]
        write_label(tmp_path / "data/train/label_1.geojson", boxes, properties=[{"k": "a"}, {"k": "b"}])
        flags = ["--labels.class_property=k", "--labels.class_map={a: building, b: tree}"]
        expected = ["road"]
    printed = chip("--data.classes=[background,building,tree,road]", *flags, "--dry_run").printed
    told("unnamed class", printed)
    lines = [line for line in printed.splitlines() if line.startswith("warning")]
    assert [line.split("'")[1] for line in lines] == expected
    printed = chip(f"--data.classes=[{'background,' if not raster else ''}building,tree]", *flags, "--dry_run").printed
    assert "warning" not in printed


def test_one_raster_cannot_be_the_label_of_other_grids(tmp_path, chip):
    scene(tmp_path, "train", "1", mask())
    scene(tmp_path, "train", "2", mask())
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(WorkError) as caught:
        chip("--data.label={split}/mask_1.tif")
    told("shared raster", str(caught.value))
