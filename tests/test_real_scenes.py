"""The whole way on real scenes, where there are some beside the checkout."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.features
import rioxarray
import xarray as xr

import geochip
from geochip import chipping, evaluate, infer, train_ddp
from helpers import run

RUN_FILE = Path(__file__).parent / "vegas_real.yaml"


@pytest.fixture(scope="module")
def vegas_run(tmp_path_factory, real_data, dask_address):
    """All commands, in one process but for Dask's workers, on the Las Vegas scenes."""
    run_dir = tmp_path_factory.mktemp("vegas")
    flags = [
        f"--config={RUN_FILE}", f"--run_dir={run_dir}", f"--data.root={real_data / 'vegas'}",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    for command in (chipping, train_ddp, infer, evaluate):
        command.main(flags)
    return run_dir


def test_chips_equal_the_scenes_bit_for_bit(vegas_run, real_data):
    with xr.open_datatree(vegas_run / "chips.zarr") as tree:
        for split, count in (("train", 25), ("val", 5), ("test", 10)):
            chips = tree[split].to_dataset().load()
            assert chips.sizes["chip"] == count
            assert chips.image.dtype == np.uint16
            for chip in range(count):
                one = chips.isel(chip=chip)
                name = "{}_AOI_2_Vegas_img" + one.scene_id.item()
                folder = real_data / "vegas" / split
                with rasterio.open(folder / f"{name.format('RGB-PanSharpen')}.tif") as dataset:
                    image, transform = dataset.read(), dataset.transform
                features = json.loads((folder / f"{name.format('buildings')}.geojson").read_text())["features"]
                shapes = [feature["geometry"] for feature in features]
                label = np.zeros(image.shape[1:], np.uint8)
                if shapes:
                    label = rasterio.features.rasterize(
                        shapes, out_shape=label.shape, transform=transform, dtype="uint8"
                    )
                rows, cols = (slice(int(one[name]), int(one[name]) + 300) for name in ("row_off", "col_off"))
                np.testing.assert_array_equal(one.image, image[:, rows, cols])
                np.testing.assert_array_equal(one.label, label[rows, cols])


def test_training_learns_something_of_real_scenes(vegas_run):
    log = (vegas_run / "train" / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[log[0].split(",").index("train_loss")]) for row in log[1:]]
    assert losses[-1] < losses[0]


def test_predictions_lie_on_their_scenes(vegas_run, real_data):
    for scene_id in ("1488", "5874"):
        scene = geochip.open_scene(vegas_run / "predictions.zarr", scene_id)
        with rioxarray.open_rasterio(
            real_data / "vegas" / "test" / f"RGB-PanSharpen_AOI_2_Vegas_img{scene_id}.tif"
        ) as source:
            np.testing.assert_allclose(scene.x, source.x, rtol=0, atol=1e-11)
            np.testing.assert_allclose(scene.y, source.y, rtol=0, atol=1e-11)
            assert scene.rio.crs == source.rio.crs
        assert scene["class"].shape == (650, 650)
        assert set(np.unique(scene["class"])) <= {0, 1}
        with rasterio.open(vegas_run / "predictions" / f"{scene_id}.tif") as cog:
            np.testing.assert_array_equal(cog.read(1), scene["class"])


def test_the_scores_are_those_of_an_independent_count(vegas_run, real_data):
    evaluation = json.loads((vegas_run / "eval.json").read_text())
    counts = np.zeros((2, 2), int)
    for scene_id in ("1488", "5874"):
        scene = geochip.open_scene(vegas_run / "predictions.zarr", scene_id)
        folder = real_data / "vegas" / "test"
        features = json.loads((folder / f"buildings_AOI_2_Vegas_img{scene_id}.geojson").read_text())["features"]
        label = np.zeros((650, 650), np.uint8)
        if features:
            shapes = [feature["geometry"] for feature in features]
            with rasterio.open(folder / f"RGB-PanSharpen_AOI_2_Vegas_img{scene_id}.tif") as dataset:
                label = rasterio.features.rasterize(shapes, (650, 650), transform=dataset.transform, dtype="uint8")
        for truth in (0, 1):
            for predicted in (0, 1):
                counts[truth, predicted] += ((label == truth) & (scene["class"].values == predicted)).sum()
    assert evaluation["confusion_matrix"] == counts.tolist()
    building = next(item for item in evaluation["overall"] if item.get("class_name") == "building")
    assert building["metrics"]["recall"] == pytest.approx(counts[1, 1] / counts[1].sum())


def test_a_large_orthomosaic_is_chipped_and_predicted_whole(vegas_run, real_data, tmp_path, dask_address):
    flags = [
        f"--config={RUN_FILE}", f"--run_dir={tmp_path}", f"--data.root={real_data}", "--data.image={split}/{id}.tif",
        "--data.label={split}/{id}_buildings.geojson", "--data.splits=[banepa]", "--train.split=banepa",
        "--train.val_split=null", "--infer.split=banepa", "--chips.per_scene=20", "--infer.block=1024",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    for command in (chipping, train_ddp, infer, evaluate):
        command.main(flags)
    with rasterio.open(real_data / "banepa" / "banepa.tif") as dataset:
        image, transform, crs = dataset.read(), dataset.transform, dataset.crs
    # The label is in degrees, the image in Web Mercator: reprojected here by GDAL's ogr2ogr path, not by geochip's.
    features = json.loads((real_data / "banepa" / "banepa_buildings.geojson").read_text())["features"]
    shapes = rasterio.warp.transform_geom("EPSG:4326", crs, [feature["geometry"] for feature in features])
    label = rasterio.features.rasterize(shapes, image.shape[1:], transform=transform, dtype="uint8")
    with xr.open_datatree(tmp_path / "chips.zarr") as tree:
        chips = tree["banepa"].to_dataset().load()
    for chip in range(20):
        one = chips.isel(chip=chip)
        rows, cols = (slice(int(one[name]), int(one[name]) + 300) for name in ("row_off", "col_off"))
        np.testing.assert_array_equal(one.image, image[:, rows, cols])
        # Two projection routines agree to a nanometre; a vertex may still fall on either side of a pixel's centre.
        assert (one.label.values != label[rows, cols]).mean() < 1e-4
    scene = geochip.open_scene(tmp_path / "predictions.zarr", "banepa")
    assert scene["class"].shape == (4096, 3072)
    assert set(np.unique(scene["class"])) <= {0, 1}
    assert (scene.rio.crs, scene.rio.transform()) == (crs, transform)


def test_the_commands_run_as_the_readme_has_them(real_data, tmp_path):
    # A real network this time, from random weights: what it learns in one epoch is not judged.
    flags = [
        f"--config={RUN_FILE}", f"--run_dir={tmp_path}", f"--data.root={real_data / 'vegas'}", "--model.architecture=unet",
        "--model.encoder=resnet18", "--model.encoder_weights=null", "--train.epochs=1",
    ]  # fmt: skip
    done = run("geochip.chipping", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    done = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "geochip.train_ddp", *flags)
    assert done.returncode == 0, done.stderr
    for command in ("geochip.infer", "geochip.evaluate"):
        done = run(command, *flags)
        assert (done.returncode, done.stderr) == (0, ""), command
    assert json.loads((tmp_path / "eval.json").read_text())["overall"]
