import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from bundles import MEAN, STD, identity_bundle
from geochip.errors import run_command
from geochip.evaluate import main
from geochip.infer import main as infer
from geochip.store import PredictionStore, journal_path
from helpers import ROOT, UTM, box, data_flags, run, write_image, write_label, write_scene

CLASSES = ("background", "building")


@pytest.fixture
def flags(tmp_path):
    return [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "test"), "--train.split=test",
        "--train.val_split=null", "--infer.split=test",
    ]  # fmt: skip


@pytest.fixture
def predict(tmp_path, flags, dask_address):
    """Predicts the scenes that there are, as their pixels say."""

    def run_infer(*more, classes=CLASSES):
        identity_bundle(tmp_path / "run" / "model", class_names=classes)
        infer(
            [
                *flags, "--cluster.kind=address", f"--cluster.address={dask_address}", "--infer.cog=false",
                "--infer.block=24", *map(str, more),
            ]
        )  # fmt: skip

    return run_infer


def image(class_hw):
    return (MEAN + STD * class_hw[None]).astype(np.uint16)


def building(shape, rows, cols):
    class_hw = np.zeros(shape, np.uint8)
    class_hw[slice(*rows), slice(*cols)] = 1
    return class_hw


@pytest.fixture
def two_scenes(tmp_path, predict):
    """Scene 1, 50 x 40: the label is 10 x 20 pixels, the prediction the same two rows lower. Scene 2, 30 x 30: the label
    is 5 x 5, nothing is predicted, and the 10 uppermost rows, which hold 2 rows of the label, are nodata."""
    write_scene(
        tmp_path / "data", "test", "1", image(building((50, 40), (7, 17), (10, 30))), transform=UTM,
        geometries=[box(UTM, 5, 10, 10, 20)],
    )  # fmt: skip
    empty = image(np.zeros((30, 30)))
    empty[:, :10] = 0
    write_scene(
        tmp_path / "data", "test", "2", empty, transform=UTM, geometries=[box(UTM, 8, 20, 5, 5)], nodata=0
    )  # fmt: skip
    predict()


# By hand. Scene 1: 8 of 10 rows of 20 agree. Scene 2: 600 pixels have data, 15 of them are building.
ONE = [[2000 - 200 - 40, 40], [40, 160]]
TWO = [[600 - 15, 0], [15, 0]]
BOTH = [[ONE[i][j] + TWO[i][j] for j in (0, 1)] for i in (0, 1)]


def result(tmp_path):
    return json.loads((tmp_path / "run" / "eval.json").read_text())


def test_scores_by_hand(tmp_path, flags, two_scenes):
    main(flags)
    found = result(tmp_path)
    assert found["confusion_matrix"] == BOTH
    background, foreground, average = found["overall"]
    assert foreground["class_name"] == "building"
    assert foreground["metrics"]["precision"] == pytest.approx(160 / 200)
    assert foreground["metrics"]["recall"] == pytest.approx(160 / 215)
    assert foreground["metrics"]["iou"] == pytest.approx(160 / 255)
    assert foreground["metrics"]["f1"] == pytest.approx(320 / 415)
    # As the Raster Vision tutorial reads it.
    assert found["overall"][0]["conf_mat_frac_dict"] == pytest.approx(
        {"TN": 160 / 2600, "FP": 55 / 2600, "FN": 40 / 2600, "TP": 2345 / 2600}
    )
    assert background["gt_count"] == 2385
    assert average["class_name"] == "average"
    assert list(found["per_scene"]) == ["2", "1"]
    assert found["per_scene"]["1"][2]["conf_mat"] == ONE
    assert found["per_scene"]["2"][2]["conf_mat"] == TWO
    assert found["per_scene"]["2"][1]["metrics"]["precision"] is None
    assert (found["class_names"], found["split"], found["scenes"]) == (list(CLASSES), "test", 2)
    assert found["left_out"] == []
    store = PredictionStore(tmp_path / "run" / "predictions.zarr")
    assert found["model_sha256"] == store.attrs["model_sha256"]


def test_perfect_predictions_of_three_classes(tmp_path, flags, predict):
    class_hw = np.zeros((60, 50), np.uint8)
    class_hw[10:20, 5:25], class_hw[30:50, 10:40] = 1, 2
    names = ("background", "roof", "road")
    write_image(tmp_path / "data" / "test" / "scene_1.tif", image(class_hw))
    write_label(
        tmp_path / "data" / "test" / "label_1.geojson", [box(UTM, 10, 5, 10, 20), box(UTM, 30, 10, 20, 30)],
        properties=[{"kind": "roof"}, {"kind": "road"}],
    )  # fmt: skip
    more = [f"--data.classes=[{','.join(names)}]", "--labels.class_property=kind"]
    predict(*more, classes=names)
    main([*flags, *more])
    assert result(tmp_path)["confusion_matrix"] == [[2200, 0, 0], [0, 200, 0], [0, 0, 600]]


def test_outside_of_the_area_of_interest_nothing_counts(tmp_path, flags, two_scenes):
    # Of scene 1 the rows from 10 on, of scene 2 nothing.
    write_label(tmp_path / "data" / "test" / "aoi_1.geojson", [box(UTM, 10, 0, 40, 40)])
    write_label(tmp_path / "data" / "test" / "aoi_2.geojson", [box(UTM, 300, 300, 9, 9)])
    main([*flags, "--chips.aoi={split}/aoi_{id}.geojson"])
    assert result(tmp_path)["per_scene"]["1"][2]["conf_mat"] == [[1600 - 100 - 40, 40], [0, 100]]
    assert result(tmp_path)["confusion_matrix"] == [[1600 - 100 - 40, 40], [0, 100]]


def test_a_label_that_is_a_raster(tmp_path, flags, predict):
    truth = building((50, 40), (7, 17), (10, 30))
    write_image(tmp_path / "data" / "test" / "scene_1.tif", image(truth))
    write_image(tmp_path / "data" / "test" / "mask_1.tif", np.where(truth, 9, 4)[None].astype(np.uint8))
    more = [
        "--data.label={split}/mask_{id}.tif",
        '--labels.class_map={"4": background, "9": building}',
    ]
    predict(*more)
    main([*flags, *more])
    assert result(tmp_path)["confusion_matrix"] == [[1800, 0], [0, 200]]


def test_what_is_printed(tmp_path, flags, two_scenes):
    finished = run("geochip.evaluate", *flags)
    assert finished.returncode == 0, finished.stderr
    out = finished.stdout
    # No colour codes where nobody sees colours.
    assert "\x1b" not in out
    assert re.search(r"class +precision +recall +F1 +IoU +true pixels +predicted", out)
    assert re.search(r"building +0\.800 +0\.744 +0\.771 +0\.627 +215 +200", out)
    assert re.search(r"truth \\ predicted +background +building", out)
    assert re.search(r"background +2345 +40", out)
    assert re.search(r"building +55 +160", out)
    assert re.search(r"scene +mean IoU +F1 +accuracy +pixels", out)
    assert out.index("\n2  ") < out.index("\n1  ")
    assert f"scores: {tmp_path / 'run' / 'eval.json'}" in out
    assert finished.stderr == ""


def test_on_a_terminal_it_is_the_same_in_style(tmp_path, flags, two_scenes):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "geochip.evaluate", *flags], stdout=theirs, stderr=theirs, cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 4096):
            text += piece
    except OSError:
        pass  # the terminal closed
    os.close(ours)
    assert process.wait() == 0
    assert b"\x1b[1m" in text
    assert b"0.627" in text


def test_many_scenes_and_markup_in_names(tmp_path, flags, predict, capsys):
    for number in range(12):
        write_scene(
            tmp_path / "data", "test", f"{number}", image(building((20, 20), (0, 10), (0, number + 5))), transform=UTM,
            geometries=[box(UTM, 0, 0, 10, 5)],
        )  # fmt: skip
    names = ("background", "[bold]house[/bold]")
    predict(classes=names)
    capsys.readouterr()
    main([*flags, "--data.classes=['background','[bold]house[/bold]']"])
    out = capsys.readouterr().out
    assert "the 10 scenes of lowest mean IoU" in out
    # A row of the scores, a row and a column of the confusion matrix.
    assert out.count("[bold]house[/bold]") == 3
    assert re.search(r"\n11 +", out)
    # The two best are not shown.
    assert not re.search(r"\n0 +0", out)


def test_scenes_without_label_are_named_and_left_out(tmp_path, flags, two_scenes, capsys):
    (tmp_path / "data" / "test" / "label_2.geojson").unlink()
    main(flags)
    assert "left out: scene 2 (test): there is no label file" in capsys.readouterr().out
    found = result(tmp_path)
    assert found["confusion_matrix"] == ONE
    assert [item["scene_id"] for item in found["left_out"]] == ["2"]


def test_no_scene_with_a_label(tmp_path, flags, two_scenes, capsys):
    for scene_id in "12":
        (tmp_path / "data" / "test" / f"label_{scene_id}.geojson").unlink()
    assert run_command(main, flags) == 2
    err = capsys.readouterr().err
    assert "data.label: none of the 2 scenes of" in err
    assert "there is no label file" in err
    assert "correct data.label or data.root" in err
    assert not (tmp_path / "run" / "eval.json").exists()


def test_scenes_of_no_split_have_no_label(tmp_path, flags, predict, capsys):
    write_scene(tmp_path / "data", "test", "1", image(building((20, 20), (0, 10), (0, 5))))
    stranger = write_image(tmp_path / "town.tif", image(building((20, 20), (0, 10), (0, 5))))
    predict(stranger, tmp_path / "data" / "test" / "scene_1.tif")
    main(flags)
    assert "left out: scene town: it belongs to no split, and there is no " in capsys.readouterr().out
    assert list(result(tmp_path)["per_scene"]) == ["1"]


def test_a_label_that_cannot_be_used(tmp_path, flags, two_scenes, capsys):
    (tmp_path / "data" / "test" / "label_2.geojson").write_text("no GeoJSON")
    assert run_command(main, flags) == 1
    err = capsys.readouterr().err
    assert "scene 2 (test): label " in err
    assert "1 of 2 scenes could not be evaluated (see above), data.max_bad_scenes allows 0" in err
    assert result(tmp_path)["confusion_matrix"] == ONE
    assert run_command(main, [*flags, "--data.max_bad_scenes=1"]) == 0
    assert "set aside, as data.max_bad_scenes allows:\nscene 2 (test): label " in capsys.readouterr().out
    (tmp_path / "run" / "eval.json").unlink()
    (tmp_path / "data" / "test" / "label_1.geojson").write_text("no GeoJSON")
    assert run_command(main, [*flags, "--data.max_bad_scenes=2"]) == 1
    assert "none of the labelled scenes could be evaluated (see above); nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "run" / "eval.json").exists()


def test_a_scene_that_was_not_predicted(tmp_path, flags, two_scenes, capsys):
    PredictionStore(tmp_path / "run" / "predictions.zarr").finish(["1"])
    assert run_command(main, flags) == 1
    assert "scene 2 (test): it is not predicted completely: geochip.infer could not read" in capsys.readouterr().err
    assert result(tmp_path)["confusion_matrix"] == ONE


def test_no_predictions(tmp_path, flags, capsys):
    assert run_command(main, flags) == 2
    assert "there is no prediction store at" in capsys.readouterr().err


def test_predictions_that_are_not_finished(tmp_path, flags, two_scenes, capsys):
    store = tmp_path / "run" / "predictions.zarr"
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["complete"] = False
    (store / "zarr.json").write_text(json.dumps(document))
    path = journal_path(store)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    assert run_command(main, flags) == 2
    err = capsys.readouterr().err
    # 50 x 40 and 30 x 30 in blocks of 24: six and four.
    assert "is not complete: 3 of its 10 blocks are predicted" in err
    assert "run python -m geochip.infer again, which goes on where it stopped" in err


def test_other_classes(tmp_path, flags, two_scenes, capsys):
    assert run_command(main, [*flags, "--data.classes=[background,house]"]) == 2
    err = capsys.readouterr().err
    assert "data.classes: background, house is not what" in err
    assert "was predicted with, which is background, building" in err


def test_evaluation_agrees_with_reading_both_files(tmp_path, flags, predict):
    """Independently of geochip: GDAL's rasterization of the label against the GeoTIFF of the prediction."""
    rng = np.random.default_rng(5)
    write_scene(
        tmp_path / "data", "test", "1", image(rng.integers(0, 2, (77, 91))), transform=UTM,
        geometries=[box(UTM, 3.3, 4.6, 40.2, 33.9), box(UTM, 50, 60, 11.5, 20.5)],
    )  # fmt: skip
    predict("--infer.cog=true")
    main(flags)
    shapes = json.loads((tmp_path / "data" / "test" / "label_1.geojson").read_text())["features"]
    truth = rasterio.features.rasterize([one["geometry"] for one in shapes], out_shape=(77, 91), transform=UTM)
    with rasterio.open(tmp_path / "run" / "predictions" / "1.tif") as dataset:
        guess = dataset.read(1)
    expected = [[int(((truth == i) & (guess == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert result(tmp_path)["confusion_matrix"] == expected
