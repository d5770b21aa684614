"""Pixels that a file has room for and no bytes of."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window as Place

from geochip.chipping import main
from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError
from geochip.scenes import SceneReader, describe_files, notice_lines
from geochip.windows import Window
from helpers import UTM, read_label, write_image
from told import told

SIDE = 640
"""Ten blocks of 64 pixels."""


def part_of(path, rows=SIDE, bands=1, **profile):
    """An image of which only the first rows were ever written."""
    profile = {"tiled": True, "blockxsize": 64, "blockysize": 64, "sparse_ok": True} | profile
    with rasterio.open(
        path, "w", driver="GTiff", height=SIDE, width=SIDE, count=bands, dtype="uint8", crs="EPSG:32611",
        transform=UTM, **profile,
    ) as dataset:  # fmt: skip
        if rows:
            dataset.write(np.full((bands, rows, SIDE), 7, np.uint8), window=Place(0, 0, SIDE, rows))
    return path


def scene_of(path, **data):
    (scene,) = describe_files([str(path)], RunConfig(data=DataConfig(**data))).scenes
    return scene


def share_of(path, **data):
    """The share that is told, in per cent; 0 where nothing is."""
    lines = list(notice_lines([scene_of(path, max_missing=1, **data)]))
    shares = [float(line.split("%")[0].split()[-1]) for line in lines if "never written" in line]
    return shares[0] if shares else 0


LAYOUTS = {
    "tiles": {},
    "tiles, BigTIFF": {"bigtiff": "YES"},
    "tiles, big-endian": {"endianness": "big"},
    "tiles, compressed": {"compress": "deflate"},
    "strips": {"tiled": False, "blockysize": 64},
    "strips of one row": {"tiled": False, "blockysize": 1},
}


@pytest.mark.parametrize("profile", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_share_is_told(tmp_path, profile):
    if profile.get("tiled") is False:
        profile = {**profile, "blockxsize": SIDE}
    assert share_of(part_of(tmp_path / "a.tif", SIDE, **profile)) == 0
    assert share_of(part_of(tmp_path / "a.tif", 448, **profile)) == 30
    assert share_of(part_of(tmp_path / "a.tif", 448, bands=3, **profile)) == 30


def test_one_strip_that_gdal_reads_in_parts_lacks_nothing(tmp_path):
    assert share_of(part_of(tmp_path / "a.tif", tiled=False, blockxsize=SIDE, blockysize=SIDE, compress="deflate")) == 0


def test_bands_one_after_the_other(tmp_path):
    path = part_of(tmp_path / "a.tif", 0, bands=2, interleave="band")
    with rasterio.open(path, "r+") as dataset:
        dataset.write(np.full((SIDE, SIDE), 7, np.uint8), 1)
    assert share_of(path) == 50
    assert share_of(path, bands=(1,)) == 0
    assert share_of(path, bands=(2,)) == 100


def test_a_little_is_told_and_much_sets_the_scene_aside(tmp_path):
    little, much = part_of(tmp_path / "a.tif", 576), part_of(tmp_path / "b.tif", 448)
    with rasterio.open(little, "r+") as dataset:
        dataset.write(np.full((1, 64, 320), 7, np.uint8), window=Place(0, 576, 320, 64))
    scene = scene_of(little)
    told("missing pixels", "\n".join(notice_lines([scene])))
    with pytest.raises(InputError) as caught:
        scene_of(much)
    told("too many missing pixels", str(caught.value))
    assert f"{much}: 30.00% of its pixels were never written" in str(caught.value)
    assert "data.max_missing allows 5.00%. Write the file again, or, if zeros are no data, declare them" in str(
        caught.value
    )
    # The remedies: zeros are meant, or they are no data.
    scene = scene_of(much, max_missing=1)
    with SceneReader(scene) as reader:
        image, valid = reader.read(Window(row_off=440, col_off=0, height=16, width=16))
    assert (valid.all(), image[0, 8:].max()) == (True, 0)
    with rasterio.open(much, "r+") as dataset:
        dataset.nodata = 0
    scene = scene_of(much)
    assert list(notice_lines([scene])) == []
    with SceneReader(scene) as reader:
        _, valid = reader.read(Window(row_off=440, col_off=0, height=16, width=16))
    assert valid.sum() == 8 * 16


def test_one_bad_scene_does_not_stop_the_others(tmp_path):
    part_of(tmp_path / "a.tif", 320)
    part_of(tmp_path / "b.tif")
    catalogue = describe_files([str(tmp_path / name) for name in ("a.tif", "b.tif")], RunConfig())
    assert ([one.scene_id for one in catalogue.scenes], [one.scene_id for one in catalogue.bad]) == (["b"], ["a"])


@pytest.mark.parametrize("how", ["nodata", "mask", "alpha"])
def test_files_that_say_where_data_is_may_be_sparse(tmp_path, how):
    path = tmp_path / "a.tif"
    if how == "alpha":
        part_of(path, 320, bands=4, photometric="RGB", alpha="YES")
    else:
        part_of(path, 320, nodata=0 if how == "nodata" else None)
    if how == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(np.arange(SIDE)[:, None].repeat(SIDE, 1) < 320)
    assert share_of(path) == 0
    if how == "alpha":
        assert share_of(path, alpha="band") == 50


def test_a_writer_that_was_killed(tmp_path):
    path = tmp_path / "a.tif"
    writer = (
        "import os, sys, numpy as np, rasterio\n"
        "from rasterio.windows import Window\n"
        f"with rasterio.open(sys.argv[1], 'w', driver='GTiff', height={SIDE}, width={SIDE}, count=1, dtype='uint8',\n"
        "                   tiled=True, blockxsize=64, blockysize=64, crs='EPSG:32611',\n"
        f"                   transform=({UTM.a}, 0, {UTM.c}, 0, {UTM.e}, {UTM.f})) as dataset:\n"
        f"    dataset.write(np.full((1, 320, {SIDE}), 7, 'uint8'), window=Window(0, 0, {SIDE}, 320))\n"
        "    dataset.update_tags(x='1')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", writer, str(path)], check=False, timeout=60)
    if not path.stat().st_size:
        with pytest.raises(InputError, match="is no raster that GDAL can read"):
            scene_of(path)
    else:
        with pytest.raises(InputError, match=r"of its pixels were never written|is no raster that GDAL can read"):
            scene_of(path)


# ------------------------------------------------------------------------------------------------------------- mosaics


def mosaic(path, parts, *, nodata=None, side=SIDE):
    """A VRT of (file, column, row, side) squares."""
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{SIDE}" ySize="{SIDE}"/>'
        f'<DstRect xOff="{col}" yOff="{row}" xSize="{size}" ySize="{size}"/></SimpleSource>'
        for file, col, row, size in parts
    )
    declared = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
    path.write_text(
        f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}"><SRS>EPSG:32611</SRS><GeoTransform>{UTM.c},0.5,0,{UTM.f}'
        f',0,-0.5</GeoTransform><VRTRasterBand dataType="Byte" band="1">{declared}{sources}</VRTRasterBand></VRTDataset>'
    )
    return path


def test_gaps_of_a_mosaic(tmp_path):
    part_of(tmp_path / "whole.tif")
    half = SIDE // 2
    squares = [("whole.tif", col, row, half) for col in (0, half) for row in (0, half)]
    assert share_of(mosaic(tmp_path / "a.vrt", squares)) == 0
    assert share_of(mosaic(tmp_path / "a.vrt", squares[:3])) == 25
    # Squares that lie on each other cover once.
    assert share_of(mosaic(tmp_path / "a.vrt", [squares[0], squares[0]])) == 75
    assert share_of(mosaic(tmp_path / "a.vrt", [])) == 100
    assert share_of(mosaic(tmp_path / "a.vrt", squares[:3], nodata=0)) == 0
    with SceneReader(scene_of(mosaic(tmp_path / "a.vrt", squares[:3]), max_missing=1)) as reader:
        image, _ = reader.read(Window(row_off=0, col_off=0, height=SIDE, width=SIDE))
    assert (image == 0).mean() == 0.25


def test_what_is_missing_in_the_files_of_a_mosaic(tmp_path):
    part_of(tmp_path / "whole.tif")
    part_of(tmp_path / "part.tif", 320)
    half = SIDE // 2
    squares = [
        ("part.tif" if col == row == 0 else "whole.tif", col, row, half) for col in (0, half) for row in (0, half)
    ]
    assert share_of(mosaic(tmp_path / "a.vrt", squares)) == 12.5
    mosaic(tmp_path / "inner.vrt", squares)
    assert share_of(mosaic(tmp_path / "b.vrt", [("inner.vrt", 0, 0, SIDE)])) == 12.5
    # A mosaic that holds itself ends.
    assert share_of(mosaic(tmp_path / "c.vrt", [("c.vrt", 0, 0, SIDE)])) == 0


def test_a_raw_file_that_was_cut_short(tmp_path):
    path = tmp_path / "a.img"
    with rasterio.open(
        path, "w", driver="ENVI", height=100, width=100, count=2, dtype="uint16", crs="EPSG:32611", transform=UTM
    ) as dataset:
        dataset.write(np.full((2, 100, 100), 9, np.uint16))
    assert share_of(path) == 0
    path.write_bytes(path.read_bytes()[:30_000])
    assert share_of(path) == 25


@pytest.mark.parametrize("at", range(8, 200, 12))
def test_damaged_directories_are_no_defect(tmp_path, at):
    path = part_of(tmp_path / "a.tif", 448)
    data = bytearray(path.read_bytes())
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)
    catalogue_or_error = None
    try:
        catalogue_or_error = describe_files([str(path)], RunConfig())
    except InputError as error:
        catalogue_or_error = error
    assert catalogue_or_error is not None


def test_an_image_of_the_size_asked_for_costs_one_look(tmp_path):
    # Nothing of the pixels is read: a file of 10^10 pixels without bytes is told of at once.
    path = write_image(tmp_path / "small.tif", np.ones((1, 4, 4), np.uint8))
    assert share_of(path) == 0
    with rasterio.open(
        tmp_path / "large.tif", "w", driver="GTiff", height=100_000, width=100_000, count=1, dtype="uint8",
        tiled=True, blockxsize=512, blockysize=512, sparse_ok=True, crs="EPSG:32611", transform=UTM,
    ):  # fmt: skip
        pass
    assert share_of(tmp_path / "large.tif") == 100


def test_a_label_that_was_not_written_whole(tmp_path, capsys):
    write_image(tmp_path / "1.tif", np.full((3, SIDE, SIDE), 7, np.uint8), transform=UTM)
    label = part_of(tmp_path / "1_label.tif", rows=448)
    flags = [
        f"--data.root={tmp_path}", "--data.image={id}.tif", "--data.label={id}_label.tif", "--data.splits=[train]",
        "--labels.class_map={0: background, 7: building}", "--chips.size=64", "--dry_run",
        f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    main(flags)
    printed = capsys.readouterr().out
    told("unwritten labels", printed)
    assert (
        f"1 raster label with pixels that were never written, as when the program that wrote it was killed, of {label} 30.00%"
        in printed
    )
    # The remedy.
    with rasterio.open(label, "r+") as dataset:
        dataset.nodata = 255
    main(flags)
    assert "never written" not in capsys.readouterr().out
    drawn = read_label(
        label,
        height=SIDE,
        width=SIDE,
        class_map={"0": "background", "7": "building"},
        classes=("background", "building"),
    )
    assert (drawn == 255).sum() == 192 * SIDE
    assert (drawn == 1).sum() == 448 * SIDE
