"""What a disk loses or spoils of a prediction store: named by --verify, evaluate and open_scene, and made again."""

import json
import os
import shutil

import numpy as np
import pytest

import geochip
from bundles import MEAN, STD, identity_bundle
from geochip.errors import DamagedError, InputError, run_command
from geochip.evaluate import main as evaluate
from geochip.infer import main
from geochip.store import PredictionStore, journal_path
from helpers import data_flags, tree_hash, write_scene
from told import told

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

SHAPES = {"1": (90, 70), "2": (40, 30), "3": (90, 70)}


def image(shape, seed):
    classes = np.random.default_rng(seed).integers(0, 2, shape)
    return (MEAN + STD * classes[None]).astype(np.uint16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dask_address):
    """Three scenes, two of one shape, predicted with probabilities; treat it as read-only."""
    directory = tmp_path_factory.mktemp("finished")
    identity_bundle(directory / "run" / "model", classes=2, class_names=("background", "building"))
    for scene_id, shape in SHAPES.items():
        write_scene(directory / "data", "test", scene_id, image(shape, int(scene_id)))
    flags = [
        *data_flags(directory / "data", "test"), "--train.split=test", "--train.val_split=null", "--infer.split=test",
        "--infer.block=50", "--infer.probability=true", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    main([f"--run_dir={directory / 'run'}", *flags])
    return directory / "run", flags


@pytest.fixture
def run_dir(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def flags(finished, run_dir):
    return [f"--run_dir={run_dir}", *finished[1]]


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def edited(path, change):
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def nowhere(path):
    path.unlink()
    path.symlink_to("nowhere")


def directory(path):
    path.unlink()
    path.mkdir()


BLOCK, OTHER, SMALL = "90x70/class/c.1.1.0", "90x70/probability/c.0.0.0.0", "90x70/transform/c.0.0"
KINDS = {
    "block gone": (BLOCK, lambda path: path.unlink(), "blocks of scene 3 are lost: "),
    "block empty": (BLOCK, lambda path: path.write_bytes(b""), "blocks of scene 3 are lost: "),
    "block flipped": (BLOCK, flip, "a block of scene 3, is damaged ("),
    "block cut short": (BLOCK, lambda path: path.write_bytes(path.read_bytes()[:-9]), "a block of scene 3, is damaged"),
    "block a pipe": (BLOCK, pipe, "blocks of scene 3 are lost: "),
    "block a link": (BLOCK, nowhere, "blocks of scene 3 are lost: "),
    "probability gone": (OTHER, lambda path: path.unlink(), "blocks of scene 1 are lost: "),
    "probability flipped": (OTHER, flip, "a block of scene 1, is damaged ("),
    "block of another": (BLOCK, lambda path: shutil.copy(path.with_name("c.0.1.0"), path), "is another file than the"),
    "chunk gone": (SMALL, lambda path: path.unlink(), "transform/c.0.0 is not there"),
    "chunk flipped": (SMALL, flip, "transform/c.0.0 is damaged ("),
    "chunk a pipe": ("90x70/complete/c.0", pipe, "it is a named pipe"),
    "array gone": ("40x30/crs", shutil.rmtree, "crs/zarr.json is not there"),
    "array's metadata": ("90x70/class/zarr.json", lambda path: path.write_bytes(b"[]"), "class/zarr.json is damaged ("),
    "another shape": (
        "90x70/class/zarr.json", lambda path: edited(path, lambda d: d.update(shape=[2, 91, 70])), "for 2 scenes of 90"
    ),
    "group gone": ("40x30", shutil.rmtree, "is not there"),
    "group's metadata": ("40x30/zarr.json", lambda path: path.write_bytes(b"\xff"), "40x30/zarr.json is damaged ("),
    "root empty": ("zarr.json", lambda path: path.write_bytes(b""), "zarr.json is damaged (it is empty)"),
    "root gone": ("zarr.json", lambda path: path.unlink(), "zarr.json is not there"),
    "root a pipe": ("zarr.json", pipe, "it is a named pipe"),
    "no attributes": ("zarr.json", lambda path: edited(path, lambda d: d.pop("attributes")), "the attributes in "),
    "block of text": ("zarr.json", lambda path: edited(path, lambda d: d["attributes"].update(block="50")), "$.block"),
    "other scenes": (
        "zarr.json", lambda path: edited(path, lambda d: d["attributes"]["scenes"]["90x70"].reverse()),
        "the root names other scenes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_the_remedy_remedies(run_dir, flags, capsys, kind):
    where, spoil, text = KINDS[kind]
    store = run_dir / "predictions.zarr"
    before, cogs = tree_hash(store), tree_hash(run_dir / "predictions")
    spoil(store / where)
    assert run_command(main, [*flags, "--verify"]) in (1, 2)
    err = capsys.readouterr().err
    assert text in err
    assert "run python -m geochip.infer again" in err
    # What evaluate reads of it, it tells; and it scores no scene that lacks a block.
    code = run_command(evaluate, flags)
    err = capsys.readouterr().err
    unread = "probability" in where or kind == "block of another"
    assert code == (0 if unread else 1 if where == BLOCK else 2)
    assert code == 0 or "geochip.infer again" in err
    assert run_command(main, flags) == 0
    capsys.readouterr()
    assert run_command(main, [*flags, "--verify"]) == 0
    assert "9 blocks and 3 GeoTIFFs read" in capsys.readouterr().out
    assert (tree_hash(store), tree_hash(run_dir / "predictions")) == (before, cogs)
    assert run_command(evaluate, flags) == 0
    assert not list(run_dir.glob("*.creating"))


def test_a_lost_block_is_told_by_evaluate_and_open_scene(run_dir, flags, capsys):
    store = run_dir / "predictions.zarr"
    (store / BLOCK).unlink()
    assert run_command(evaluate, flags) == 1
    told("lost block", capsys.readouterr().err)
    with pytest.raises(DamagedError, match=r"blocks of scene 3 are lost: .*c\.1\.1\.0 not there; run .*infer again"):
        geochip.open_scene(store, "3")
    geochip.open_scene(store, "1")
    assert run_command(main, flags) == 0
    told("blocks again", capsys.readouterr().out)
    geochip.open_scene(store, "3")["class"].load()


def test_a_flipped_block_of_the_old_time_is_found_by_who_reads_it(run_dir, flags, capsys):
    store = run_dir / "predictions.zarr"
    file, before = store / BLOCK, tree_hash(store)
    written = file.stat().st_mtime_ns
    flip(file)
    os.utime(file, ns=(written, written))
    assert run_command(evaluate, flags) == 1
    told("damaged block", capsys.readouterr().err)
    assert run_command(main, [*flags, "--verify"]) == 1
    assert "remove it and run python -m geochip.infer again" in capsys.readouterr().err
    file.unlink()
    main(flags)
    assert tree_hash(store) == before


def test_lost_and_other_geotiffs(run_dir, flags, capsys):
    before = tree_hash(run_dir / "predictions")
    file = run_dir / "predictions" / "1.tif"
    for spoil in (
        lambda: file.unlink(),
        lambda: file.write_bytes(b"no TIFF"),
        lambda: shutil.copy(file.with_name("3.tif"), file),
        lambda: shutil.copy(file.with_name("2.tif"), file),
        lambda: file.write_bytes(file.read_bytes()[:-700]),
    ):
        spoil()
        assert run_command(main, [*flags, "--verify"]) == 1
        told("geotiff", capsys.readouterr().err)
        file.unlink(missing_ok=True)
        main(flags)
        assert tree_hash(run_dir / "predictions") == before


def test_a_store_without_damage_is_left_alone(run_dir, flags):
    before = tree_hash(run_dir)
    times = {file: file.stat().st_mtime_ns for file in (run_dir / "predictions.zarr").rglob("*")}
    main(flags)
    assert tree_hash(run_dir) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_a_copy_of_another_time_is_compared(run_dir, flags, capsys):
    for file in (run_dir / "predictions.zarr").rglob("c.*"):
        os.utime(file)
    main(flags)
    out = capsys.readouterr().out
    assert "another time of change than when they were written: 18 files of blocks, read again" in out
    assert "all of them are predicted already" in out


def test_a_store_and_a_journal_of_an_older_geochip_stay_usable(run_dir, flags, capsys):
    store = run_dir / "predictions.zarr"
    path, before = journal_path(store), tree_hash(store)
    header, *records = map(json.loads, path.read_text().splitlines())
    del header["grids"]
    for record in records:
        record.pop("files", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *records)))
    edited(store / "zarr.json", lambda document: document["attributes"].pop("scenes"))
    assert geochip.open_scene(store, "3").attrs["scene_id"] == "3"
    assert run_command(main, [*flags, "--verify"]) == 0
    (store / BLOCK).unlink()
    assert run_command(main, [*flags, "--verify"]) == 1
    main(flags)
    assert "8 of 9 blocks are there already" in capsys.readouterr().out
    assert tree_hash(store) == before
    # And what was stacked is known from now on.
    shutil.rmtree(store / "90x70" / "transform")
    main(flags)
    assert tree_hash(store) == before


RECORDS = {
    "garbage": lambda record: "garbage",
    "negative": lambda record: {**record, "class_pixels": [-1, 5]},
    "no number": lambda record: {**record, "class_pixels": [float("nan"), 5]},
    "other classes": lambda record: {**record, "class_pixels": [5]},
    "no checksum": lambda record: {**record, "pixels": "crc"},
    "no task": lambda record: {**record, "key": "block/1/0"},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_damaged_record_is_named_and_its_block_done_anew(run_dir, flags, capsys, kind):
    store = run_dir / "predictions.zarr"
    path, before = journal_path(store), tree_hash(store)
    header, first, *others = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, json.dumps(RECORDS[kind](json.loads(first))) + "\n", *others]))
    assert run_command(main, [*flags, "--verify"]) == 1
    assert "geochip.infer again" in capsys.readouterr().err
    main(flags)
    assert "8 of 9 blocks are there already" in capsys.readouterr().out
    assert run_command(main, [*flags, "--verify"]) == 0
    assert tree_hash(store) == before


@pytest.mark.parametrize(
    "change",
    [
        {"height": 10**9}, {"width": 10**9, "height": 10**9}, {"transform": [1, 0, 5, 0, -1, 5]}, {"crs": "EPSG:32632"},
        {"split": "elsewhere"},
    ],
)  # fmt: skip
def test_a_journal_with_another_grid_of_a_scene_is_told(run_dir, flags, capsys, change):
    """Believed, the first would have asked for millions of blocks."""
    store = run_dir / "predictions.zarr"
    path, before = journal_path(store), tree_hash(store)
    header, *others = path.read_text().splitlines(keepends=True)
    document = json.loads(header)
    document["grids"][0] |= change
    path.write_text("".join([json.dumps(document) + "\n", *others]))
    assert run_command(main, [*flags, "--verify"]) == 1
    assert "geochip.infer again, which writes it anew" in capsys.readouterr().err
    assert run_command(main, flags) == 2
    text = capsys.readouterr().err
    told("journal", text)
    assert f"its grid of scene {document['grids'][0]['scene_id']} is not that of the image" in text
    path.unlink()
    shutil.rmtree(store)
    assert run_command(main, flags) == 0
    assert tree_hash(store) == before


@pytest.mark.parametrize("name", ["../../x", "other"])
def test_a_journal_that_lists_a_scene_of_no_image_is_told(run_dir, flags, capsys, name):
    path = journal_path(run_dir / "predictions.zarr")
    header, *others = path.read_text().splitlines(keepends=True)
    document = json.loads(header)
    document["grids"][0]["scene_id"] = name
    path.write_text("".join([json.dumps(document) + "\n", *others]))
    assert run_command(main, flags) == 2
    text = capsys.readouterr().err
    told("journal", text)
    assert "`grids` and `scenes` are not of the same scenes" in text


def test_open_scene_opens_nothing_of_other_shapes(run_dir, monkeypatch):
    import zarr

    from geochip.store import _metadata, predictions

    read, opened = [], []
    whole = _metadata.read_regular
    monkeypatch.setattr(_metadata, "read_regular", lambda path: (read.append(path), whole(path))[1])
    group = zarr.open_group
    monkeypatch.setattr(zarr, "open_group", lambda store, **more: (opened.append(str(store)), group(store, **more))[1])
    store = run_dir / "predictions.zarr"
    geochip.open_scene(store, "2")
    assert {path.relative_to(store).parts[0] for path in read} == {"zarr.json", "40x30"}
    assert not any(path == str(store) or "90x70" in path for path in opened)
    with pytest.raises(InputError, match="scene '9' is not among the 3 scenes"):
        predictions.PredictionStore(store).scene("9")


def test_verify_and_dry_run_at_once(flags, capsys):
    assert run_command(main, [*flags, "--verify", "--dry_run"]) == 2
    assert "--dry_run and --verify cannot be asked for at once" in capsys.readouterr().err


def test_what_cannot_be_verified(run_dir, flags, capsys):
    store = run_dir / "predictions.zarr"
    path = journal_path(store)
    content = path.read_bytes()
    path.unlink()
    assert run_command(main, [*flags, "--verify"]) == 2
    assert "is not there, which says what" in capsys.readouterr().err
    path.write_bytes(content)
    edited(store / "zarr.json", lambda document: document["attributes"].update(complete=False))
    assert run_command(main, [*flags, "--verify"]) == 2
    assert "is not complete; run python -m geochip.infer again" in capsys.readouterr().err
    assert PredictionStore(store).complete is False
