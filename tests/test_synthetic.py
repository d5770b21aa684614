import contextlib
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError, WorkError, run_command
from geochip.neighbourhood import painting
from geochip.neighbourhood.painting import cast_shadows
from geochip.scenes import find_scenes
from geochip.synthetic import SPLITS, SceneTask, draw_scene, main
from helpers import run, tree_hash

IMAGE = "RGB-PanSharpen_AOI_2_Vegas_img{}.tif"
LABEL = "buildings_AOI_2_Vegas_img{}.geojson"
COUNTS = {"train": 12, "val": 3, "test": 10}


def draw(out, *flags, train=0, val=0, test=0):
    main([str(out), f"--train={train}", f"--val={val}", f"--test={test}", *flags])
    return Path(out)


def ids(split, count):
    return [SceneTask(out="", split=split, index=index, size=64, seed=0).scene_id for index in range(count)]


def features(path):
    return json.loads(path.read_text())["features"]


def label_hw(label, image):
    """What rasterio alone makes of a label on its image's grid."""
    geometries = [feature["geometry"] for feature in features(label)]
    with rasterio.open(image) as dataset:
        if not geometries:
            return np.zeros(dataset.shape, "uint8")
        return rasterize(geometries, out_shape=dataset.shape, transform=dataset.transform)


def pairs(root):
    """(image, label) of each scene of a data set."""
    images = sorted(root.rglob("*.tif"))
    return [(image, image.with_name(LABEL.format(image.stem.rpartition("img")[2]))) for image in images]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Small scenes of all splits, drawn by two processes."""
    return draw(tmp_path_factory.mktemp("small") / "set", "--size=128", "--workers=2", **COUNTS)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Scenes that are wide enough to hold some of everything."""
    return draw(tmp_path_factory.mktemp("wide") / "set", "--size=400", "--workers=2", train=20)


def test_layout_and_names_are_those_of_the_tutorial(small):
    expected = {
        f"{split}/{name.format(scene_id)}"
        for split, count in COUNTS.items()
        for scene_id in ids(split, count)
        for name in (IMAGE, LABEL)
    }
    assert {str(path.relative_to(small)) for path in small.rglob("*") if path.is_file()} == expected
    assert len(expected) == 2 * sum(COUNTS.values())


def test_the_default_configuration_finds_every_scene(small):
    catalogue = find_scenes(RunConfig(data=DataConfig(root=str(small))))
    assert {split: sum(scene.split == split for scene in catalogue.scenes) for split in SPLITS} == COUNTS
    assert (catalogue.bad, catalogue.unlabelled) == ((), ())


@pytest.mark.parametrize(("size", "flags"), [(650, []), (200, ["--size=200"])])
def test_images_have_the_form_of_the_real_ones(tmp_path, size, flags):
    out = draw(tmp_path / "set", *flags, train=1)
    with rasterio.open(out / "train" / IMAGE.format(1)) as dataset:
        assert dataset.shape == (size, size)
        assert (dataset.driver, dataset.count, dataset.dtypes) == ("GTiff", 3, ("uint16",) * 3)
        assert dataset.crs == "EPSG:4326"
        assert dataset.res == pytest.approx((2.7e-6, 2.7e-6), rel=1e-12)
        assert dataset.nodata is None
        assert dataset.compression is None
        assert not dataset.is_tiled
        assert -115.4 < dataset.bounds.left < -115.0
        assert 36.0 < dataset.bounds.top < 36.3


def test_labels_have_the_form_of_the_real_ones(small):
    seen = 0
    for image, label in pairs(small):
        document = json.loads(label.read_text())
        assert document["type"] == "FeatureCollection"
        assert document["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
        with rasterio.open(image) as dataset:
            scene = shapely.box(*dataset.bounds).buffer(1e-12)
        for feature in document["features"]:
            assert feature["type"] == "Feature"
            assert "class_name" not in feature["properties"]
            outline = shapely.from_geojson(json.dumps(feature["geometry"]))
            assert outline.geom_type in ("Polygon", "MultiPolygon")
            assert outline.is_valid
            assert scene.covers(outline)
            places = shapely.get_coordinates(outline, include_z=True)
            assert (places[:, 2] == 0).all()
            seen += 1
    assert seen > 20


def test_pixel_values_resemble_the_real_ones(wide):
    with_buildings = [image for image, label in pairs(wide) if features(label)]
    pixels = np.stack([rasterio.open(image).read() for image in with_buildings])
    assert pixels.min() >= 1
    assert 1500 < pixels.max() <= 2047
    # The eight real scenes have band means of 179..461, 369..602, 295..450 and deviations of 57..276, 58..279, 32..175.
    assert np.all(np.abs(pixels.mean((0, 2, 3)) / [430, 570, 420] - 1) < 0.15)
    assert np.all(np.abs(pixels.std((0, 2, 3)) / [240, 240, 145] - 1) < 0.3)


def test_the_number_of_processes_changes_nothing(small, tmp_path):
    alone = draw(tmp_path / "alone", "--size=128", "--workers=1", **COUNTS)
    assert tree_hash(alone) == tree_hash(small)


def test_the_number_of_scenes_changes_none_of_them(small, tmp_path):
    fewer = draw(tmp_path / "fewer", "--size=128", "--workers=1", train=3, val=1)
    drawn = [path.relative_to(fewer) for path in fewer.rglob("*img*")]
    assert len(drawn) == 8
    for path in drawn:
        assert (fewer / path).read_bytes() == (small / path).read_bytes(), path


def test_another_seed_another_split_and_another_number_draw_other_scenes():
    def image(**changes):
        task = {"out": "", "split": "train", "index": 0, "size": 64, "seed": 0} | changes
        return draw_scene(SceneTask(**task))[0]

    images = [image(), image(seed=1), image(split="val"), image(split="test"), image(index=1)]
    assert np.array_equal(images[0], image())
    for one, other in itertools.combinations(images, 2):
        assert (one != other).mean() > 0.9


def test_one_scene_in_ten_is_empty(small):
    for split, empty in {"train": 1, "val": 0, "test": 1}.items():
        counts = [len(features(small / split / LABEL.format(scene_id))) for scene_id in ids(split, COUNTS[split])]
        assert sum(count == 0 for count in counts) == empty
        assert counts[0] > 0
    tasks = [SceneTask(out="", split="train", index=index, size=64, seed=3) for index in range(40)]
    assert [sum(not task.built for task in tasks[first : first + 10]) for first in (0, 10, 20, 30)] == [1] * 4
    # Even scenes that are hardly larger than a house never miss all houses by chance.
    for task in tasks[:12]:
        assert bool(draw_scene(task)[1]) == task.built


def test_multipolygons_and_courtyards_occur(wide):
    geometries = [feature["geometry"] for _, label in pairs(wide) for feature in features(label)]
    assert sum(geometry["type"] == "MultiPolygon" for geometry in geometries) >= 2
    assert sum(geometry["type"] == "Polygon" and len(geometry["coordinates"]) > 1 for geometry in geometries) >= 2
    assert sum(geometry["type"] == "Polygon" for geometry in geometries) > 0.8 * len(geometries)


def test_sizes_and_directions_of_buildings_vary(wide):
    outlines = [
        shapely.from_geojson(json.dumps(feature["geometry"])) for _, label in pairs(wide) for feature in features(label)
    ]
    areas = shapely.area(outlines) / 2.7e-6**2
    assert np.percentile(areas, 90) > 2.5 * np.percentile(areas, 10) > 0
    directions = [
        np.degrees(np.arctan2(*np.diff(shapely.get_coordinates(shapely.oriented_envelope(o))[:2], axis=0)[0])) % 90
        for o in outlines
    ]
    assert np.count_nonzero(np.histogram(directions, bins=9, range=(0, 90))[0]) >= 6


def test_label_is_exactly_the_roofs_as_drawn(wide, monkeypatch):
    """Drawing the same scene with roofs of other colours changes the label's pixels: all of them and no others."""
    dimmed = {name: tuple(0.5 * band for band in colour) for name, colour in painting._ROOFS.items()}
    monkeypatch.setattr(painting, "_ROOFS", dimmed)
    for index in range(5):
        task = SceneTask(out=str(wide), split="train", index=index, size=400, seed=0)
        image, label = task.path(DataConfig().image), task.path(DataConfig().label)
        changed = (draw_scene(task)[0] != rasterio.open(image).read()).any(0)
        assert np.array_equal(changed, label_hw(label, image) > 0)
        assert changed.any() == task.built


def test_roofs_differ_from_their_surroundings(wide):
    """Bands alone do not tell roofs from all the rest, but the rest is mostly darker: there is something to learn."""
    roofs, rest = [], []
    for image, label in pairs(wide):
        pixels, roof = rasterio.open(image).read(), label_hw(label, image) > 0
        roofs.append(pixels[:, roof])
        rest.append(pixels[:, ~roof])
    roofs, rest = np.concatenate(roofs, 1), np.concatenate(rest, 1)
    assert 0.1 < roofs.shape[1] / (roofs.shape[1] + rest.shape[1]) < 0.4
    assert np.all(roofs.mean(1) > 1.3 * rest.mean(1))
    assert np.all(roofs.std(1) > 1.3 * rest.std(1))
    best = max(
        np.mean([(roofs[band] > level).mean(), (rest[band] <= level).mean()])
        for band in range(3) for level in range(300, 1200, 50)
    )  # fmt: skip
    assert 0.75 < best < 0.97


def test_shadows_fall_away_from_the_sun():
    heights = np.zeros((20, 20), np.uint8)
    heights[8:12, 8:12] = 4
    shaded = cast_shadows(heights, (1.0, 0.0))
    assert shaded[8:12, 4:8].all()
    assert not shaded[:, :4].any()
    assert not shaded[:, 11:].any()
    assert not shaded[:8].any()
    assert not shaded[12:].any()


def test_no_two_scenes_overlap_on_the_ground(small):
    boxes = [shapely.box(*rasterio.open(image).bounds) for image in small.rglob("*.tif")]
    boxes += [
        shapely.box(*rasterio.transform.array_bounds(128, 128, task.transform))
        for split in SPLITS for index in range(40, 90)
        for task in [SceneTask(out="", split=split, index=index, size=128, seed=0)]
    ]  # fmt: skip
    one, other = shapely.STRtree(boxes).query(boxes, predicate="intersects")
    assert len(boxes) == sum(COUNTS.values()) + 150
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--train=-1"], "--train: -1 is not allowed: must be at least 0 scenes"),
        (["--val=-2"], "--val: -2 is not allowed: must be at least 0 scenes"),
        (["--test=many"], "--test: 'many' is not allowed: must be a whole number"),
        (["--size=63"], "--size: 63 is not allowed: must be 64 to 4096 pixels"),
        (["--size=4097"], "--size: 4097 is not allowed: must be 64 to 4096 pixels"),
        (["--seed=-1"], "--seed: -1 is not allowed: must be at least 0"),
        (["--workers=0"], "--workers: 0 is not allowed: must be at least 1"),
        (
            ["--train=0", "--val=0", "--test=0"],
            "--train, --val, --test: all are 0, so there is nothing to draw; ask for at least one scene",
        ),
        (["--trian=3"], "unrecognized arguments: --trian=3; --help lists the arguments"),
    ],
)
def test_bad_arguments_are_one_clear_line(tmp_path, capsys, flags, text):
    assert run_command(main, [str(tmp_path / "set"), *flags]) == 2
    assert capsys.readouterr().err == f"geochip: error: {text}\n"
    assert not (tmp_path / "set").exists()


def test_the_directory_must_be_named():
    with pytest.raises(InputError, match="the following arguments are required: out; --help lists the arguments"):
        main([])


def test_a_directory_with_files_is_refused_unless_overwritten(tmp_path):
    out = draw(tmp_path / "set", "--size=64", "--seed=1", train=2)
    (out / "notes.txt").write_text("mine")
    before = tree_hash(out)
    with pytest.raises(InputError) as refusal:
        draw(out, "--size=64", train=1)
    assert str(refusal.value) == (
        f"{out} already holds files, and scenes of two data sets would mix; choose another directory, remove it, or "
        "give --overwrite to replace files of the same names"
    )
    assert tree_hash(out) == before
    second = (out / "train" / IMAGE.format(4)).read_bytes()
    draw(out, "--size=64", "--overwrite", train=1)
    fresh = draw(tmp_path / "fresh", "--size=64", train=1)
    for name in (IMAGE, LABEL):
        name = name.format(1)
        assert (out / "train" / name).read_bytes() == (fresh / "train" / name).read_bytes()
    assert (out / "train" / IMAGE.format(4)).read_bytes() == second
    assert (out / "notes.txt").read_text() == "mine"


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "set").write_text("")
    with pytest.raises(InputError, match=r"set cannot hold the data set \(.*\); choose another directory"):
        draw(tmp_path / "set", train=1)


def test_a_scene_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "train" / LABEL.format(1)).mkdir(parents=True)
    with pytest.raises(WorkError) as failure:
        draw(tmp_path, "--size=64", "--overwrite", train=1)
    assert str(failure.value) == (
        f"scene 1 could not be written to {tmp_path / 'train'} (Is a directory); make room there or choose another "
        "directory, then run the command again (with --overwrite in the same directory)"
    )
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture
def long_run(tmp_path):
    """A long run that has begun to write: (the process, its drawing processes)."""
    flags = ["--train=5000", "--val=0", "--test=0", "--size=200", "--workers=2"]
    command = [sys.executable, "-m", "geochip.synthetic", str(tmp_path / "set"), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        while not list(tmp_path.rglob("*.geojson")):
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.05)
        children = psutil.Process(driver.pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        yield driver, workers
        driver.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def test_a_killed_drawing_process_ends_the_run_with_its_reason(long_run):
    driver, workers = long_run
    workers[0].kill()
    assert driver.wait(60) == 1
    assert driver.stderr.read().splitlines()[-1] == (
        "geochip: error: a drawing process was killed, for want of memory perhaps; remove what was drawn, or give "
        "--overwrite, and run the command again with fewer --workers"
    )


def test_drawing_processes_end_with_a_killed_driver(long_run):
    driver, workers = long_run
    assert len(workers) == 2
    driver.kill()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_the_command_as_a_person_runs_it(tmp_path):
    out = tmp_path / "a set"
    finished = run("geochip.synthetic", out, "--train", 5, "--val", 1, "--test", 1, "--size", 96)
    assert (finished.returncode, finished.stderr) == (0, "")
    buildings = sum(len(features(label)) for _, label in pairs(out))
    assert (
        finished.stdout
        == f"{out}: 7 scenes (5 train, 1 val, 1 test) with {buildings} buildings; scenes without any: 1\n"
    )
    assert run("geochip.synthetic", out).returncode == 2
