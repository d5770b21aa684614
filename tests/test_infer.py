import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import rasterio
import torch
import xarray as xr
from affine import Affine
from rio_cogeo import cog_validate

import geochip
from bundles import MEAN, STD, contract, identity_bundle, random_bundle
from geochip import infer_worker
from geochip.errors import InputError, WorkError, run_command
from geochip.infer import main
from geochip.infer_plan import fit_scenes, pixel_size_warnings, plan_inference
from geochip.infer_state import grids_of, header_of, look, store_settings
from geochip.infer_worker import Job, predict_pieces, with_nodata
from geochip.run_file import parse_run_config
from geochip.scenes import Scene, find_scenes
from geochip.store import Journal, PredictionStore, journal_path
from helpers import UTM, data_flags, run, tree_hash, write_image, write_scene
from told import told

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

CLASSES = 7


def class_map(height, width, seed=0):
    """Class ids of which no two shifts agree: a prediction that is one pixel off differs in most of its pixels."""
    return np.random.default_rng((height, width, seed)).integers(0, CLASSES, (height, width)).astype(np.uint8)


def image_of(class_hw, *, bands=1, band=0):
    """An image whose `band` holds the classes and whose other bands hold noise."""
    image = np.random.default_rng(1).integers(1, 600, (bands, *class_hw.shape)).astype(np.uint16)
    image[band] = MEAN + STD * class_hw
    return image


@pytest.fixture
def flags(tmp_path, dask_address):
    """Flags that every run here shares; the cluster runs already."""
    return [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "test"), "--train.split=test",
        "--train.val_split=null", "--infer.split=test", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


@pytest.fixture
def small(tmp_path, flags):
    """Two scenes and a model of them; returns flags of a run that takes no time."""
    identity_bundle(tmp_path / "run" / "model")
    for scene_id, shape in (("1", (90, 70)), ("2", (40, 30))):
        write_scene(tmp_path / "data", "test", scene_id, image_of(class_map(*shape)))
    return [*flags, "--infer.block=50"]


def predicted(tmp_path, scene_id, run_dir="run"):
    return geochip.open_scene(tmp_path / run_dir / "predictions.zarr", scene_id)


# ------------------------------------------------------------------------------------------------ whole, through main()


@pytest.mark.parametrize(("bands", "band"), [(1, 0), (8, 4)])
def test_a_model_that_returns_its_input_gives_the_scenes_back(tmp_path, flags, bands, band):
    identity_bundle(tmp_path / "run" / "model", bands=bands, band=band)
    degrees = Affine(4.5e-06, 0, -115.3, 0, -4.5e-06, 36.2)
    cases = {
        "no multiple of anything": {"shape": (317, 211)},
        "smaller than the window": {"shape": (20, 13)},
        "in degrees": {"shape": (70, 90), "crs": "EPSG:4326", "transform": degrees},
        "with nodata": {"shape": (130, 110), "nodata": 0},
        "with another nodata": {"shape": (111, 131), "nodata": 65535},
    }
    expected = {}
    for number, case in enumerate(cases.values(), 1):
        expected[str(number)] = class_hw = class_map(*case.pop("shape"))
        image = image_of(class_hw, bands=bands, band=band)
        if "nodata" in case:
            image[:, 30:75, 20:99] = case["nodata"]
            class_hw[30:75, 20:99] = 255
        write_scene(tmp_path / "data", "test", str(number), image, **case)
    main([*flags, "--infer.block=100", "--infer.probability=true"])
    for scene_id, class_hw in expected.items():
        scene = predicted(tmp_path, scene_id)
        np.testing.assert_array_equal(scene["class"], class_hw)
        np.testing.assert_array_equal(np.isnan(scene.probability).all("class_name"), class_hw == 255)
        best = scene.probability.fillna(0).argmax("class_name").values
        np.testing.assert_array_equal(best[class_hw != 255], class_hw[class_hw != 255])
        with (
            rasterio.open(tmp_path / "data" / "test" / f"scene_{scene_id}.tif") as source,
            rasterio.open(tmp_path / "run" / "predictions" / f"{scene_id}.tif") as cog,
        ):
            assert cog.crs == scene.rio.crs == source.crs
            assert cog.transform == source.transform
            np.testing.assert_allclose(tuple(scene.rio.transform()), tuple(source.transform), rtol=1e-9)
            np.testing.assert_array_equal(cog.read(1), class_hw)
        assert cog_validate(tmp_path / "run" / "predictions" / f"{scene_id}.tif", strict=True, quiet=True)[0]


def test_scenes_of_several_files_that_squares_divide(tmp_path, flags):
    identity_bundle(tmp_path / "run" / "model", bands=2, band=1)
    root = tmp_path / "flat"
    for number in range(6):
        transform = UTM @ Affine.translation(2000 * number, 0)
        image = image_of(class_map(40, 30, number))
        # The bytes of the first file become the model's 16 bits.
        write_image(root / f"rgb_{number}.tif", np.ones((1, 40, 30), np.uint8), transform=transform)
        write_image(root / f"high_{number}.tif", image, transform=transform)
    flags = [
        *(flag for flag in flags if not flag.startswith("--data.")), f"--data.root={root}",
        "--data.image=rgb_{id}.tif", '--data.stack=["high_{id}.tif"]', "--data.label={id}.json",
        "--data.splits=[test,other]", "--split.by=blocks", "--split.block=1000", "--split.buffer=0",
        "--split.fractions={test: 0.5, other: 0.5}",
    ]  # fmt: skip
    main(flags)
    with xr.open_datatree(tmp_path / "run" / "predictions.zarr") as tree:
        (group,) = tree.children.values()
        found = group["scene_id"].values.tolist()
    config = parse_run_config(flags, command="infer", description="")[0]
    assert found == [scene.scene_id for scene in find_scenes(config, need_labels=False).scenes if scene.split == "test"]
    assert len(found) == 3
    for scene_id in found:
        np.testing.assert_array_equal(predicted(tmp_path, scene_id)["class"], class_map(40, 30, int(scene_id)))


def test_what_is_printed(tmp_path, small, capsys):
    main([*small, "--infer.window=32", "--infer.stride=20"])
    out = capsys.readouterr().out
    store = tmp_path / "run" / "predictions.zarr"
    # Rows 0, 20, 40, 58 and columns 0, 20, 38 of scene 1; rows 0, 8 and column 0 of scene 2.
    assert "2 scenes, 14 windows of 32 x 32 pixels, 20 pixels apart" in out
    assert "predicted 2 scenes, 14 windows, in " in out
    assert " scenes/s\n" in out
    share = sum((class_map(*shape) == 3).sum() for shape in ((90, 70), (40, 30))) / 7500
    assert f"class 3 {100 * share:.1f} %" in out
    assert "of 7500 pixels with data" in out
    assert f"store: {store}\n" in out
    assert f"GeoTIFFs: {tmp_path / 'run' / 'predictions'}/*.tif\n" in out
    assert f"geochip.open_scene('{store}', '1')" in out


def test_the_store_says_what_it_was_made_with(tmp_path, small):
    main(small)
    attrs = xr.open_datatree(tmp_path / "run" / "predictions.zarr").attrs
    assert (attrs["window"], attrs["stride"], attrs["blend"], attrs["batch_size"]) == (64, 32, "hann", 8)
    assert attrs["class_names"] == [f"class {k}" for k in range(CLASSES)]
    assert attrs["geochip_version"] == geochip.__version__
    assert attrs["model"]["architecture"] == "linear"
    assert attrs["chip_store_fingerprint"] == "made by hand"
    assert len(attrs["model_sha256"]) == len(attrs["fingerprint"]) == 64


def test_a_real_network_gives_the_same_bytes_in_any_block(tmp_path, flags):
    random_bundle(tmp_path / "run" / "model", pixel_size_range=None)
    rng = np.random.default_rng(2)
    image = rng.integers(1, 600, (3, 150, 130)).astype(np.uint16)
    holes = [image.copy(), image.copy()]
    for hole, nodata in zip(holes, (0, 65535), strict=True):
        hole[:, 40:80, 50:90] = nodata
    write_scene(tmp_path / "data", "test", "1", image)
    write_scene(tmp_path / "data", "test", "2", holes[0], nodata=0)
    write_scene(tmp_path / "data", "test", "3", holes[1], nodata=65535)
    more = ["--infer.probability=true", "--infer.cog=false", "--infer.batch_size=3"]
    for block in (50, 2048):
        main([*flags, *more, f"--infer.block={block}", f"--infer.store={tmp_path / f'{block}.zarr'}"])
    stacks = [xr.open_zarr(tmp_path / f"{block}.zarr", group="150x130", mask_and_scale=False) for block in (50, 2048)]
    for name in ("class", "probability"):
        np.testing.assert_array_equal(stacks[0][name], stacks[1][name])
    classes, probability = stacks[0]["class"].values, stacks[0].probability.values
    # Nothing here is trivial: several classes, and blended probabilities of many values.
    assert len(np.unique(classes[0])) > 1
    assert len(np.unique(probability[0])) > 20
    # Whatever a scene's own nodata value is, the network sees the one that it was trained with.
    np.testing.assert_array_equal(probability[1], probability[2])
    assert (classes[1, 40:80, 50:90] == 255).all()


def test_no_byte_depends_on_workers_or_order(tmp_path, flags):
    random_bundle(tmp_path / "run" / "model", pixel_size_range=None)
    rng = np.random.default_rng(3)
    for scene_id in "12":
        write_scene(tmp_path / "data", "test", scene_id, rng.integers(1, 600, (3, 100, 90)).astype(np.uint16))
    more = ["--infer.probability=true", "--infer.block=48", "--infer.batch_size=2"]
    two = [*flags, *more]
    main([*two, f"--infer.store={tmp_path / 'two' / 'p.zarr'}"])
    one = [flag for flag in two if "--cluster" not in flag]
    main([*one, "--cluster.workers=1", f"--infer.store={tmp_path / 'one' / 'p.zarr'}"])
    assert tree_hash(tmp_path / "one" / "p.zarr") == tree_hash(tmp_path / "two" / "p.zarr")
    assert tree_hash(tmp_path / "one" / "p") == tree_hash(tmp_path / "two" / "p")

    # The other way round, and in this process.
    config, _ = parse_run_config([*two, f"--infer.store={tmp_path / 'r.zarr'}"], command="infer", description="")
    plan = plan_inference(config, ())
    header = header_of(plan, config.prediction_store)
    with Journal.of_store(config.prediction_store, header, option="infer.store") as journal:
        settings = store_settings(plan, header["fingerprint"])
        store = PredictionStore.create(config.prediction_store, grids_of(plan), **settings)
        pieces = look(plan, config.prediction_store, journal).to_do
        assert len(pieces) == 2 * 3 * 2
        for piece in reversed(pieces):
            predict_pieces(job_of(config, plan), 0, [piece])
        store.finish(store.scenes)
    assert tree_hash(tmp_path / "r.zarr") == tree_hash(tmp_path / "two" / "p.zarr")


def job_of(config, plan, **changes):
    values = Job(
        bundle=str(config.bundle_dir), model_sha256=plan.model_sha256, device="cpu", store=str(config.prediction_store),
        sliding=plan.sliding, nodata=plan.contract.nodata, probability=config.infer.probability,
        block=config.infer.block,
    )  # fmt: skip
    return replace(values, **changes)


def test_named_files(tmp_path, small, capsys):
    stranger = write_image(tmp_path / "elsewhere" / "town.tif", image_of(class_map(33, 44)), crs="EPSG:32645")
    main([*small, str(stranger), str(tmp_path / "data" / "test" / "scene_2.tif")])
    store = PredictionStore(tmp_path / "run" / "predictions.zarr")
    assert {scene.scene_id: scene.split for scene in store.scenes.values()} == {"town": "", "2": "test"}
    np.testing.assert_array_equal(predicted(tmp_path, "town")["class"], class_map(33, 44))


def test_named_files_of_one_id_are_an_error(tmp_path, small, capsys):
    for directory in ("a", "b"):
        write_image(tmp_path / directory / "town.tif", image_of(class_map(33, 44)))
    assert run_command(main, [*small, str(tmp_path / "a" / "town.tif"), str(tmp_path / "b" / "town.tif")]) == 2
    assert "scene id 'town' belongs to more than one of the named files" in capsys.readouterr().err
    assert not (tmp_path / "run" / "predictions.zarr").exists()


# -------------------------------------------------------------------------------------------------------------- reruns


def test_a_finished_run_says_so_and_starts_no_cluster(tmp_path, small, capsys):
    main(small)
    before = tree_hash(tmp_path / "run")
    nowhere = [flag for flag in small if "cluster.address" not in flag]
    main([*nowhere, "--cluster.address=tcp://127.0.0.1:1"])
    assert "all of them are predicted already" in capsys.readouterr().out
    assert tree_hash(tmp_path / "run") == before


def test_data_that_were_moved_and_new_labels_change_nothing(tmp_path, small, capsys):
    main(small)
    (tmp_path / "data").rename(tmp_path / "moved")
    (tmp_path / "moved" / "test" / "label_1.geojson").unlink()
    main([flag.replace(str(tmp_path / "data"), str(tmp_path / "moved")) for flag in small])
    assert "all of them are predicted already" in capsys.readouterr().out


def test_a_lost_geotiff_is_made_again(tmp_path, small):
    main([*small, "--infer.cog=false"])
    assert not (tmp_path / "run" / "predictions").exists()
    main(small)
    before = tree_hash(tmp_path / "run" / "predictions")
    (tmp_path / "run" / "predictions" / "1.tif").unlink()
    main(small)
    assert tree_hash(tmp_path / "run" / "predictions") == before


def test_only_missing_blocks_are_predicted(tmp_path, small, capsys):
    main(small)
    path = journal_path(tmp_path / "run" / "predictions.zarr")
    before = tree_hash(tmp_path / "run" / "predictions.zarr")
    lines = path.read_text().splitlines()
    lost = [line for line in lines if '"block/1/50/50"' in line]
    assert len(lost) == 1
    path.write_text("\n".join(line for line in lines if line not in lost) + "\n")
    others = tmp_path / "run" / "predictions.zarr" / "90x70" / "class"
    (others / "c.0.1.1").unlink()
    times = {file.name: file.stat().st_mtime_ns for file in others.glob("c.*")}
    main(small)
    assert "4 of 5 blocks are there already" in capsys.readouterr().out
    assert tree_hash(tmp_path / "run" / "predictions.zarr") == before
    assert {name: (others / name).stat().st_mtime_ns for name in times} == times


def test_other_settings_are_refused_with_what_differs(tmp_path, small, capsys):
    main(small)
    before = tree_hash(tmp_path / "run")
    assert run_command(main, [*small, "--infer.stride=10", "--infer.blend=average"]) == 2
    err = capsys.readouterr().err
    assert "infer.stride was 32, now 10; infer.blend was 'hann', now 'average'; choose" in err
    assert "choose another run_dir or --infer.store, or remove it to make it anew" in err
    write_scene(tmp_path / "data", "test", "1", image_of(class_map(91, 70)))
    assert run_command(main, small) == 2
    err = capsys.readouterr().err
    assert "made from something else: 1 scene changed: 1; choose" in err
    assert tree_hash(tmp_path / "run") == before


def test_another_model_is_refused(tmp_path, small, capsys):
    main(small)
    identity_bundle(tmp_path / "run" / "model", mean=(MEAN + 1,))
    assert run_command(main, small) == 2
    assert "the model's sha256 was '" in capsys.readouterr().err


def test_a_store_without_its_journal_is_refused_and_a_journal_without_its_store_is_not(tmp_path, small, capsys):
    main(small)
    store = tmp_path / "run" / "predictions.zarr"
    before = tree_hash(store)
    shutil.rmtree(store)
    main([*small])
    assert tree_hash(store) == before
    journal_path(store).unlink()
    assert run_command(main, small) == 2
    assert (
        "predictions.zarr.journal beside it does not, so it cannot be continued; remove it" in capsys.readouterr().err
    )


def wait_for_blocks(process, run_dir, count):
    path = journal_path(run_dir / "predictions.zarr")
    while not path.exists() or path.read_bytes().count(b'"block/') < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def test_a_killed_worker_and_a_killed_driver_lose_nothing(tmp_path, flags):
    identity_bundle(tmp_path / "model")
    write_scene(tmp_path / "data", "test", "1", image_of(class_map(410, 400)))
    more = [f"--model.bundle={tmp_path / 'model'}", "--infer.block=20"]
    main([*flags, *more])
    command = ["geochip.infer", *(flag for flag in flags if "--cluster" not in flag), *more, "--cluster.workers=1"]
    command[1] = f"--run_dir={tmp_path / 'killed'}"
    process = subprocess.Popen(
        [sys.executable, "-m", *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_for_blocks(process, tmp_path / "killed", 50)
    driver = psutil.Process(process.pid)
    (worker,) = [child for child in driver.children() if "spawn_main" in " ".join(child.cmdline())]
    worker.kill()
    # There was one worker: whatever comes now was done by the one that took its place.
    wait_for_blocks(process, tmp_path / "killed", 150)
    children = driver.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for child in children:
        # Orphans finish their tasks and notice; a machine that went down would have taken them along.
        child.kill()
    psutil.wait_procs(children)
    assert not PredictionStore(tmp_path / "killed" / "predictions.zarr").complete
    finished = run(*command)
    assert finished.returncode == 0, finished.stderr
    assert "of 420 blocks are there already" in finished.stdout
    for made in ("predictions.zarr", "predictions"):
        assert tree_hash(tmp_path / "killed" / made) == tree_hash(tmp_path / "run" / made)


# ---------------------------------------------------------------------------------------------------------- bad scenes


def spoil_pixels(path):
    """The header stays good, the pixels cannot be decoded."""
    path.write_bytes(path.read_bytes()[:-2000])


def write_spoilt(tmp_path, scene_id, shape=(90, 70)):
    write_scene(tmp_path / "data", "test", scene_id, image_of(class_map(*shape)), compress="deflate")
    spoil_pixels(tmp_path / "data" / "test" / f"scene_{scene_id}.tif")


def test_a_scene_whose_pixels_cannot_be_read_is_set_aside(tmp_path, small, capsys):
    write_spoilt(tmp_path, "3")
    assert run_command(main, small) == 1
    captured = capsys.readouterr()
    assert f"scene 3 (test): {tmp_path / 'data' / 'test' / 'scene_3.tif'} could not be" in captured.err
    assert "could not be read at rows" in captured.err
    assert "1 of 3 scenes could not be read (see above), data.max_bad_scenes allows 0" in captured.err
    assert "predicted 2 scenes" in captured.out
    for scene_id, shape in (("1", (90, 70)), ("2", (40, 30))):
        np.testing.assert_array_equal(predicted(tmp_path, scene_id)["class"], class_map(*shape))
    store = PredictionStore(tmp_path / "run" / "predictions.zarr")
    assert {scene.scene_id: scene.complete for scene in store.scenes.values()} == {"1": True, "2": True, "3": False}
    assert not (tmp_path / "run" / "predictions" / "3.tif").exists()

    # Allowed, it is still named.
    assert run_command(main, [*small, "--data.max_bad_scenes=1"]) == 0
    assert "set aside, as data.max_bad_scenes allows:\nscene 3 (test)" in capsys.readouterr().out


def test_a_scene_whose_header_cannot_be_read_is_set_aside(tmp_path, small, capsys):
    (tmp_path / "data" / "test" / "scene_3.tif").write_bytes(b"no image")
    assert run_command(main, small) == 1
    captured = capsys.readouterr()
    assert "scene 3 (test): " in captured.err
    assert "1 of 3 scenes could not be read" in captured.err
    np.testing.assert_array_equal(predicted(tmp_path, "1")["class"], class_map(90, 70))
    # What is finished is finished: a second run has nothing to do, and the same to say.
    assert run_command(main, small) == 1
    assert run_command(main, [*small, "--data.max_bad_scenes=1"]) == 0


def test_all_scenes_bad(tmp_path, flags, capsys):
    identity_bundle(tmp_path / "run" / "model")
    (tmp_path / "data" / "test").mkdir(parents=True)
    (tmp_path / "data" / "test" / "scene_1.tif").write_bytes(b"no image")
    assert run_command(main, flags) == 2
    assert "no scene can be used" in capsys.readouterr().err
    assert not (tmp_path / "run" / "predictions.zarr").exists()


# ------------------------------------------------------------------------------------------------- what does not fit


def refused(flags, capsys, tmp_path):
    assert run_command(main, flags) == 2
    assert not (tmp_path / "run" / "predictions.zarr").exists()
    return capsys.readouterr().err


def test_no_model(tmp_path, small, capsys):
    shutil.rmtree(tmp_path / "run" / "model")
    assert "there is no trained model at" in refused(small, capsys, tmp_path)


def test_a_stride_larger_than_the_models_chips(tmp_path, small, capsys):
    err = refused([*small, "--infer.stride=65"], capsys, tmp_path)
    assert "infer.stride: 65 is not allowed: must be at most the window, which is the model's chip size of 64" in err


def test_a_scene_of_another_dtype_is_set_aside(tmp_path, small, capsys):
    write_scene(tmp_path / "data", "test", "9", np.ones((1, 20, 20), np.uint8))
    assert run_command(main, small) == 1
    err = capsys.readouterr().err
    assert "scene 9 (test): " in err
    assert "has pixels of type uint8, the model was trained on uint16" in err
    assert "convert the file as the training scenes were" in err
    assert "1 of 3 scenes could not be read (see above)" in err
    assert list(PredictionStore(tmp_path / "run" / "predictions.zarr").scenes) == ["2", "1"]


def test_a_mended_scene_is_predicted(tmp_path, small, flags):
    write_scene(tmp_path / "data", "test", "3", image_of(class_map(90, 70)), compress="deflate")
    main([*small, f"--infer.store={tmp_path / 'whole' / 'p.zarr'}"])
    path = tmp_path / "data" / "test" / "scene_3.tif"
    content = path.read_bytes()
    spoil_pixels(path)
    assert run_command(main, small) == 1
    path.write_bytes(content)
    main(small)
    assert tree_hash(tmp_path / "run" / "predictions.zarr") == tree_hash(tmp_path / "whole" / "p.zarr")
    spoil_pixels(path)
    with pytest.raises(InputError, match="1 scene changed: 3; choose another run_dir"):
        main(small)


def test_a_pixel_that_was_changed_in_the_middle_is_found(tmp_path, small, capsys):
    image = image_of(class_map(200, 300))
    write_scene(tmp_path / "data", "test", "3", image)
    store = tmp_path / "run" / "predictions.zarr"
    main(small)
    before = tree_hash(store)
    path = tmp_path / "data" / "test" / "scene_3.tif"
    whole = path.read_bytes()
    at = whole.index(image[0, 100].tobytes())
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    os.utime(path, ns=(0, 10**18))
    with pytest.raises(InputError, match=r"predictions.zarr was made from something else: 1 scene changed: 3; choose"):
        main(small)
    assert tree_hash(store) == before
    # As it was, but of another time: compared once.
    path.write_bytes(whole)
    os.utime(path, ns=(0, 2 * 10**18))
    for _ in range(2):
        capsys.readouterr()
        main(small)
        out = capsys.readouterr().out
        assert "all of them are predicted already" in out
        assert ("1 scene has files with another time of change" in out) == (_ == 0)
    assert tree_hash(store) == before


def test_files_of_the_run_file_are_predicted(tmp_path, small):
    main([*small, f"--infer.files=[{tmp_path / 'data' / 'test' / 'scene_2.tif'}]"])
    assert list(PredictionStore(tmp_path / "run" / "predictions.zarr").scenes) == ["2"]
    assert geochip.open_scene(tmp_path / "run" / "predictions.zarr", 2).attrs["scene_id"] == "2"


def test_too_few_bands(tmp_path, small, capsys):
    identity_bundle(tmp_path / "run" / "model", bands=3)
    err = refused(small, capsys, tmp_path)
    assert "has the bands band_1, the model takes band_1, band_2, band_3, in this order" in err
    told("bands-too-few", err)


def test_a_gpu_that_is_not_there(tmp_path, small, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    local = [flag for flag in small if "--cluster" not in flag]
    err = refused([*local, "--infer.device=cuda"], capsys, tmp_path)
    assert "infer.device: 'cuda' is not possible: " in err
    assert "; or compute on the CPU: infer.device: cpu" in err
    # On a cluster only its workers can tell.
    assert run_command(main, [*small, "--infer.device=cuda"]) == 1
    assert re.search(r"error: a worker on \S+: infer.device: 'cuda' is not possible: ", capsys.readouterr().err)


def test_a_dry_run_says_what_would_be_done(tmp_path, small, capsys):
    elsewhere = [flag for flag in small if "--cluster" not in flag]
    main([*elsewhere, "--cluster.kind=slurm", "--cluster.gpu.gres=gpu:a100_1g.10gb:1", "--dry_run"])
    told = capsys.readouterr().out
    assert told.startswith("2 scenes, ")
    assert "4 jobs with this script would be submitted:\n\n#!/bin/bash -l\n" in told
    assert "\n#SBATCH -J infer-worker-geochip\n" in told
    assert "\n#SBATCH --gres=gpu:a100_1g.10gb:1\n" in told
    main([*small, "--dry_run"])
    assert "jobs with this script" not in capsys.readouterr().out
    assert not (tmp_path / "run" / "predictions.zarr").exists()


def scene(scene_id="5", **changes):
    base = Scene(
        scene_id=scene_id, split="test", image="5.tif", label=None, height=9, width=9, count=3, dtype="uint16",
        crs="EPSG:32611", transform=UTM, nodata=None, bands=(1, 2, 3), band_names=("band_1", "band_2", "band_3"),
        pixel_size=0.5, image_bytes=1, label_bytes=0,
    )  # fmt: skip
    return replace(base, **changes)


RGB = ("red", "green", "blue")


def test_bands_are_found_by_name():
    described = contract(bands=3, band_names=RGB)
    names = ("nir", "blue", "green", "red")
    (fitted,), _, doubts = fit_scenes([scene(bands=(1, 2, 3, 4), band_names=names)], described, bands_chosen=False)
    assert (fitted.bands, fitted.band_names, doubts) == ((4, 3, 2), RGB, ())


def test_bands_without_names_are_found_by_number():
    described = contract(bands=3)
    described = replace(described, bands=(5, 3, 2), band_names=("band_5", "band_3", "band_2"))
    eight = scene(bands=tuple(range(1, 9)), band_names=tuple(f"band_{n}" for n in range(1, 9)))
    (fitted,), _, doubts = fit_scenes([eight], described, bands_chosen=False)
    assert (fitted.bands, doubts) == ((5, 3, 2), ())
    (fitted,), _, doubts = fit_scenes([eight], replace(described, band_names=RGB), bands_chosen=False)
    assert (fitted.bands, doubts) == ((5, 3, 2), ())


def test_bands_of_other_names_do_not_fit():
    described = contract(bands=3, band_names=RGB)
    swapped = scene(bands=(1, 2, 3), band_names=("blue", "green", "red"))
    # Found by name they would fit; chosen by data.bands they are meant as they are.
    assert fit_scenes([swapped], described, bands_chosen=False)[0][0].bands == (3, 2, 1)
    _, ((_, reason),), _ = fit_scenes([swapped], described, bands_chosen=True)
    assert reason.startswith("5.tif has the bands blue, green, red as data.bands chooses them, the model takes red, ")
    _, ((_, reason),), _ = fit_scenes([scene(band_names=("nir", "green", "red"))], described, bands_chosen=False)
    assert reason.startswith("5.tif has the bands nir, green, red, the model takes red, green, blue, in this order")


def test_chosen_bands_that_nothing_names_are_doubted():
    others = [scene(str(n), bands=(3, 2, 1), band_names=("band_3", "band_2", "band_1")) for n in range(7)]
    fitted, _, doubts = fit_scenes(others, contract(bands=3), bands_chosen=True)
    assert fitted[0].bands == (3, 2, 1)
    assert doubts[0].startswith(
        "scenes 0, 1, 2, 3, 4 and 2 more: bands 3, 2, 1 go into a model that was trained on bands 1, 2, 3; "
    )


def test_pixels_of_another_size_are_warned_of(tmp_path, small, capsys):
    trained = contract(pixel_size_range=(0.3, 0.5))
    assert pixel_size_warnings([scene(pixel_size=size) for size in (0.2, 0.75, None)], trained) == ()
    assert pixel_size_warnings([scene(pixel_size=9.0)], contract(pixel_size_range=None)) == ()
    (line,) = pixel_size_warnings([scene("a", pixel_size=0.19), scene("b", pixel_size=0.76)], trained)
    assert line.startswith("scenes a, b: pixels of 0.19 to 0.76 m, the model was trained on pixels of 0.3 to 0.5 m")
    identity_bundle(tmp_path / "run" / "model", pixel_size_range=(1.0, 1.0))
    main(small)
    assert "warning: scenes 1, 2: pixels of 0.5 m, the model was trained on pixels of 1 m" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------- in the worker


def test_pixels_without_data_get_the_models_nodata():
    image = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    valid = np.array([[True, False], [True, True]])
    filled = with_nodata(image, valid, 1.0, 99.0)
    assert filled.tolist() == [[[0, 99], [2, 3]], [[4, 99], [6, 7]]]
    assert filled.dtype == np.uint16
    assert with_nodata(image, valid, 1.0, None).tolist() == [[[0, 0], [2, 3]], [[4, 0], [6, 7]]]
    # As in the chips, whatever else tells that a pixel has no data: a mask beside the same nodata value, for example.
    assert with_nodata(image, valid, 99.0, 99.0).tolist() == filled.tolist()
    assert with_nodata(image, np.ones_like(valid), 1.0, 99.0) is image
    # Without any nodata value in the scenes that it was trained on a pixel under a mask stays as it is, here as there.
    assert with_nodata(image, valid, None, None) is image


@pytest.fixture
def job_and_piece(tmp_path, small):
    config, _ = parse_run_config(small, command="infer", description="")
    plan = plan_inference(config, ())
    header = header_of(plan, config.prediction_store)
    with Journal.of_store(config.prediction_store, header, option="infer.store") as journal:
        PredictionStore.create(config.prediction_store, grids_of(plan), **store_settings(plan, header["fingerprint"]))
        pieces = look(plan, config.prediction_store, journal).to_do
    return job_of(config, plan), pieces[0]


def test_a_model_that_was_replaced_during_the_run_is_refused(job_and_piece):
    job, piece = job_and_piece
    with pytest.raises(WorkError, match=r"was replaced during the run: its sha256 was 000000000000\.\.\., is "):
        predict_pieces(replace(job, model_sha256="0" * 64), 0, [piece])


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), WorkError, r"scene 1, Window.*8 windows of 64 x 64 pixels do not fit"),
        (WorkError("the model's probabilities are not numbers"), WorkError, r"scene 1, Window\(.*\): the model's prob"),
    ],
)  # fmt: skip
def test_errors_of_the_network_name_scene_and_window(job_and_piece, monkeypatch, error, expected, text):
    job, piece = job_and_piece
    monkeypatch.setitem(infer_worker._models, (job.model_sha256, "cpu"), Failing(error))
    with pytest.raises(expected, match=text):
        predict_pieces(job, 0, [piece])


def test_a_defect_keeps_its_traceback_and_names_the_scene(job_and_piece, monkeypatch):
    job, piece = job_and_piece
    monkeypatch.setitem(infer_worker._models, (job.model_sha256, "cpu"), Failing(ZeroDivisionError("defect")))
    with pytest.raises(ZeroDivisionError) as caught:
        predict_pieces(job, 0, [piece])
    assert caught.value.__notes__[0].startswith("while predicting scene 1, Window(")


class Failing(torch.nn.Module):
    """A network that cannot."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, image):
        raise self.error


def test_journal_keeps_the_classes_of_each_block(tmp_path, small):
    main(small)
    header, *records = map(json.loads, journal_path(tmp_path / "run" / "predictions.zarr").read_text().splitlines())
    assert header["settings"]["infer.block"] == 50
    counted = {record["key"]: record["class_pixels"] for record in records if record["key"].startswith("block/")}
    block = class_map(90, 70)[50:90, 0:50]
    assert counted["block/1/50/0"] == np.bincount(block.ravel(), minlength=CLASSES).tolist()
    assert {record["key"] for record in records if record["key"].startswith("cog/")} == {"cog/1", "cog/2"}
