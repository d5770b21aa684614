"""Unusual scenes through every command, each handing over to the next in the formats on disk."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine

import geochip
from geochip import chipping, doctor, evaluate, infer, train_ddp
from helpers import UTM, box, data_flags, write_scene

DEGREES = Affine(2.7e-6, 0, -115.3, 0, -2.7e-6, 36.13)
MERCATOR = Affine(0.4, 0, -12_800_000, 0, -0.4, 4_330_000)


def bright_boxes(height, width, bands, dtype, transform, nodata=None):
    """An image that is bright where its label is, dark elsewhere, and nodata in its upper left corner if it has any."""
    rng = np.random.default_rng(height * width + bands)
    image = rng.integers(20, 60, (bands, height, width))
    boxes = [(2, 3, height // 3, width // 4), (height // 2, width // 2, height // 4, width // 3)]
    for row, col, rows, cols in boxes:
        image[:, row : row + rows, col : col + cols] += 100
    image = image.astype(dtype)
    if nodata is not None:
        image[:, :5, :7] = nodata
    return image, [box(transform, *one) for one in boxes]


@pytest.mark.filterwarnings("ignore:the grid of scene 4 is rotated")
@pytest.mark.parametrize(
    ("height", "width", "bands", "dtype", "crs", "transform", "nodata"),
    [
        pytest.param(20, 50, 3, "uint16", "EPSG:32611", UTM, None, id="smaller than the window"),
        pytest.param(117, 83, 3, "uint16", "EPSG:32611", UTM, None, id="a multiple of nothing"),
        pytest.param(64, 70, 3, "uint8", "EPSG:32611", UTM, 0, id="nodata"),
        pytest.param(64, 70, 3, "float32", "EPSG:32611", UTM, float("nan"), id="nodata NaN"),
        pytest.param(64, 70, 3, "uint16", "EPSG:4326", DEGREES, None, id="degrees"),
        pytest.param(64, 70, 3, "int16", "EPSG:3857", MERCATOR, -1, id="Web Mercator"),
        pytest.param(64, 70, 1, "uint16", "EPSG:32611", UTM, None, id="one band"),
        pytest.param(64, 70, 8, "uint16", "EPSG:32611", UTM, 0, id="eight bands"),
        pytest.param(64, 70, 3, "uint16", "EPSG:32611", UTM @ Affine.rotation(15), None, id="rotated"),
        pytest.param(
            64, 70, 3, "uint16", "EPSG:32611", Affine(0.5, 0, 664_000, 0, 0.5, 4_004_000), None, id="south up"
        ),
        pytest.param(64, 70, 3, "uint16", None, Affine(2, 0, 7, 0, -2, 9), None, id="no CRS"),
    ],
)
def test_every_scene_goes_through_every_command(
    tmp_path, dask_address, height, width, bands, dtype, crs, transform, nodata
):
    for split, scene_id in (("train", "1"), ("train", "2"), ("val", "3"), ("test", "4")):
        # Side by side: chips of two splits must not show the same ground.
        place = transform @ Affine.translation(2 * width * int(scene_id), 0)
        image, geometries = bright_boxes(height, width, bands, dtype, place, nodata)
        write_scene(
            tmp_path / "data", split, scene_id, image, geometries=geometries, crs=crs, transform=place, nodata=nodata
        )
    flags = [
        f"--run_dir={tmp_path / 'a run'}", *data_flags(tmp_path / "data", "train", "val", "test"),
        "--cluster.kind=address", f"--cluster.address={dask_address}", "--chips.size=32", "--chips.per_scene=20",
        "--model.architecture=linear", "--train.epochs=12", "--train.lr=0.5", "--train.batch_size=1", "--infer.block=48",
    ]  # fmt: skip
    # The doctor finds nothing in a run that works, neither before it nor when all of it is there.
    for command in (doctor, chipping, train_ddp, infer, evaluate, doctor):
        command.main(flags)
    run_dir = tmp_path / "a run"
    scene = geochip.open_scene(run_dir / "predictions.zarr", "4")
    with rasterio.open(tmp_path / "data" / "test" / "scene_4.tif") as source:
        missing = ~(source.dataset_mask() > 0)
        assert tuple(scene.rio.transform()) == pytest.approx(tuple(source.transform))
        assert scene.rio.crs == source.crs
    np.testing.assert_array_equal(scene["class"] == 255, missing)
    with rasterio.open(run_dir / "predictions" / "4.tif") as cog:
        np.testing.assert_array_equal(cog.read(1), scene["class"])
    # One weight a band tells bright from dark: what is lost on the way from scene to score would show here.
    evaluation = json.loads((run_dir / "eval.json").read_text())
    building = next(item for item in evaluation["overall"] if item.get("class_name") == "building")
    assert building["metrics"]["f1"] > 0.99
    assert evaluation["overall"][0]["gt_count"] + building["gt_count"] == (~missing).sum()
