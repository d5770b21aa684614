"""What a disk loses or spoils of a chip store: named by --verify, and made again by the run that its text advises."""

import json
import os
import re
import shutil

import pytest

from geochip.chipping import main
from geochip.dataset import find_data
from geochip.errors import run_command
from geochip.run_file import parse_run_config
from geochip.store import ChipStore, chip_records, journal_path, read_journal
from helpers import data_flags, tree_hash
from told import told


@pytest.fixture
def run_dir(varied_run, tmp_path):
    return shutil.copytree(varied_run, tmp_path / "run")


@pytest.fixture
def flags(run_dir, varied_run, dask_address):
    return [
        f"--run_dir={run_dir}", *data_flags(varied_run.parent / "data", "train", "val"), "--data.max_bad_scenes=1",
        "--data.classes=[background,building,main road]", "--labels.class_property=kind", "--chips.size=24",
        "--chips.per_scene=20", "--chips.min_valid=0.5", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


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
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("nowhere")


ROOT, GROUP, IMAGE = "zarr.json", "train/zarr.json", "train/image/zarr.json"
KINDS = {
    "root empty": (ROOT, lambda path: path.write_bytes(b""), "zarr.json is damaged (it is empty)"),
    "root a list": (ROOT, lambda path: path.write_bytes(b"[]"), "zarr.json is damaged (Expected `object`"),
    "root no UTF-8": (ROOT, lambda path: path.write_bytes(b"\xff\xfe{}"), "zarr.json is damaged ("),
    "root gone": (ROOT, lambda path: path.unlink(), "zarr.json is not there"),
    "root a pipe": (ROOT, pipe, "it is a named pipe, not a regular file"),
    "root deep": (ROOT, lambda path: path.write_bytes(b"[" * 100_000), "zarr.json is damaged ("),
    "no attributes": (ROOT, lambda path: edited(path, lambda d: d.pop("attributes")), "the attributes in "),
    "classes a number": (
        ROOT, lambda path: edited(path, lambda d: d["attributes"].update(class_names=3)), "$.class_names"
    ),
    "another fingerprint": (
        ROOT, lambda path: edited(path, lambda d: d["attributes"].update(fingerprint="f")), "fingerprint is 'f', by"
    ),
    "group gone": ("train", shutil.rmtree, "train/zarr.json is not there"),
    "group's metadata": (GROUP, lambda path: path.write_bytes(b"{}"), "train/zarr.json is damaged ("),
    "image's metadata": (IMAGE, lambda path: edited(path, lambda d: d.update(shape=[-1, 3, 24, 24])), "$.shape"),
    "chunks beyond memory": (
        "val/label/zarr.json",
        lambda path: edited(
            path,
            lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[1, 3 * 10**9, 3 * 10**9]),
        ),
        "more than memory can hold",
    ),
    "an array gone": ("train/scene_id", shutil.rmtree, "train/scene_id/zarr.json is not there"),
    "a chunk gone": ("val/transform/c.0.0", lambda path: path.unlink(), "val/transform/c.0.0 is not there"),
    "a chunk flipped": ("val/scene_id/c.0", flip, "val/scene_id/c.0 is damaged ("),
    "a chunk of garbage": ("val/crs/c.0", lambda path: path.write_bytes(b"garbage"), "val/crs/c.0 is damaged ("),
    "a link for an array": ("val/row_off", nowhere, "val/row_off/zarr.json is not there"),
    "a pipe for a chunk": ("train/status/c.0", pipe, "it is a named pipe"),
    "a pipe for a shard": ("train/image/c.1.0.0.0", pipe, "train/image/c.1.0.0.0 not there"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_the_remedy_remedies(run_dir, flags, capsys, kind):
    where, spoil, text = KINDS[kind]
    store = run_dir / "chips.zarr"
    before = tree_hash(store)
    spoil(store / where)
    assert run_command(main, [*flags, "--verify"]) in (1, 2)
    err = capsys.readouterr().err
    assert text in err
    assert "run python -m geochip.chipping again" in err
    assert "Traceback" not in err
    # Training says the same of what it reads, and no more.
    config, _ = parse_run_config([*flags, "--train.batch_size=2"], command="train_ddp", description="")
    said = run_command(lambda _: find_data(config, world=1) and None, [])
    assert said in (0, 2)
    assert said == 0 or re.search("geochip.chipping again|copy it again", capsys.readouterr().err)
    assert run_command(main, flags) == 0
    assert run_command(main, [*flags, "--verify"]) == 0
    assert tree_hash(store) == before
    assert not list(run_dir.glob("*.creating"))


def test_a_directory_where_a_file_belongs_is_left_to_the_user(run_dir, flags, capsys):
    file = run_dir / "chips.zarr" / "val" / "zarr.json"
    content = file.read_bytes()
    file.unlink()
    (file / "of the user").mkdir(parents=True)
    assert run_command(main, flags) == 2
    told("directory in store", capsys.readouterr().err)
    assert (file / "of the user").is_dir()
    shutil.rmtree(file)
    assert run_command(main, flags) == 0
    assert file.read_bytes() == content


def lines_of(run_dir):
    return journal_path(run_dir / "chips.zarr").read_text().splitlines(keepends=True)


def edited_record(line, change):
    record = json.loads(line)
    change(record)
    return json.dumps(record) + "\n"


RECORDS = {
    "garbage": lambda line: "garbage\n",
    "a list": lambda line: "[]\n",
    "negative counts": lambda line: edited_record(line, lambda r: r["class_pixels"].__setitem__(0, [-1, 0, 0])),
    "no numbers": lambda line: edited_record(line, lambda r: r["class_pixels"].__setitem__(0, [float("nan"), 0, 0])),
    "a text for a list": lambda line: edited_record(line, lambda r: r.update(status="written")),
    "other lengths": lambda line: edited_record(line, lambda r: r["status"].pop()),
    "no such statistics": lambda line: edited_record(line, lambda r: r.update(statistics=[[1, 2]])),
    "no such task": lambda line: edited_record(line, lambda r: r.update(key="shard")),
    "a number for a key": lambda line: edited_record(line, lambda r: r.update(key=5)),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_damaged_record_is_named_and_its_task_done_anew(run_dir, flags, capsys, kind):
    store, lines = run_dir / "chips.zarr", lines_of(run_dir)
    before = tree_hash(store)
    # Not the last one: what stands behind it is not lost with it.
    lines[1:] = sorted(lines[1:])
    lines[1] = RECORDS[kind](lines[1])
    journal_path(store).write_text("".join(lines))
    assert run_command(main, [*flags, "--verify"]) == 1
    err = capsys.readouterr().err
    told("journal line", err)
    assert "line 2 is damaged" in err
    assert run_command(main, flags) == 0
    out = capsys.readouterr().out
    told("journal line told", out)
    # And that of scene d, which cannot be read.
    assert "1 of 3 shards are there already" in out
    assert run_command(main, [*flags, "--verify"]) == 0
    assert tree_hash(store) == before
    assert read_journal(journal_path(store), chip_records)[1].damaged == {}


def test_a_record_of_other_chips_or_of_no_task_is_done_anew(run_dir, flags, capsys):
    store, lines = run_dir / "chips.zarr", sorted(lines_of(run_dir), key=lambda line: "settings" not in line)
    before = tree_hash(store)

    def shorter(record):
        for name in ("windows", "status", "written", "class_pixels"):
            record[name].pop()

    # Twice the same key: the last one counts. And a record of a shard that there is none of.
    whole = next(line for line in lines if '"val/0"' in line)
    lines += [edited_record(whole, shorter), edited_record(lines[1], lambda r: r.update(key="train/6000"))]
    journal_path(store).write_text("".join(lines))
    assert run_command(main, flags) == 0
    assert "1 of 3 shards are there already" in capsys.readouterr().out
    assert run_command(main, [*flags, "--verify"]) == 0
    assert tree_hash(store) == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{}\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe\n"),
        lambda path: path.write_text(path.read_text().replace('"layout"', '"l"', 1).replace('"settings"', '"s"', 1)),
        lambda path: path.write_text(path.read_text().replace('"shard":', '"shard":-', 1)),
        pipe,
        nowhere,
    ],
)
def test_a_damaged_journal_is_named_and_its_remedy_remedies(run_dir, flags, capsys, spoil):
    store = run_dir / "chips.zarr"
    before, path = tree_hash(store), journal_path(store)
    spoil(path)
    for more in (["--verify"], ["--dry_run"], []):
        assert run_command(main, [*flags, *more]) == 2
        told("journal", capsys.readouterr().err)
    assert tree_hash(store) == before
    shutil.rmtree(store)
    path.unlink()
    assert run_command(main, flags) == 0
    assert tree_hash(store) == before


def test_a_store_without_damage_is_left_alone(run_dir, flags):
    store = run_dir / "chips.zarr"
    # The shard of scene d, which cannot be read, is tried again.
    files = [store / ROOT, store / IMAGE, store / GROUP, store / "val" / "image" / "c.0.0.0.0", store / "val" / ROOT]
    times = [file.stat().st_mtime_ns for file in files[1:]]
    before = tree_hash(store)
    main(flags)
    assert tree_hash(store) == before
    assert [file.stat().st_mtime_ns for file in files[1:]] == times
    assert ChipStore(store).attrs["complete"] is True
