"""What clusters do to a run of chipping: kills, a full disk, a lost scheduler, two runs at once, damaged files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from geochip.chipping import main
from geochip.errors import InputError, WorkError
from geochip.store import ChipStore, journal_path
from helpers import data_flags, position_coded, run, tree_hash, write_scene

# Enough shards that a run can be stopped in the middle of them.
MANY = ["--chips.per_scene=500", "--chips.size=24", "--train.val_split=null", "--infer.split=train"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    for scene_id in "123456789":
        write_scene(root, "train", scene_id)
    return root


@pytest.fixture(scope="module")
def quiet(data, tmp_path_factory, dask_address):
    """Digest of the store of a run that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("quiet")
    main([f"--run_dir={run_dir}", *data_flags(data, "train"), *MANY, *on(dask_address)])
    return tree_hash(run_dir / "chips.zarr")


def on(address):
    return ["--cluster.kind=address", f"--cluster.address={address}"]


def start(run_dir, data, *flags):
    command = [
        sys.executable, "-m", "geochip.chipping", f"--run_dir={run_dir}", *data_flags(data, "train"), *MANY, *flags,
    ]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(condition, process=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)


def records(run_dir):
    journal = journal_path(run_dir / "chips.zarr")
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


def wait_for_records(run_dir, count, process):
    wait_for(lambda: records(run_dir) >= count, process)


def workers_of(process):
    """Worker processes of a local cluster: the driver's grandchildren that run Dask's worker."""
    return [
        child for child in psutil.Process(process.pid).children(recursive=True) if "spawn" in " ".join(child.cmdline())
    ]


def test_a_worker_that_is_killed_is_replaced_and_the_run_ends_right(tmp_path, data, quiet):
    process = start(tmp_path, data, "--cluster.workers=2")
    for count in (5, 30):
        wait_for_records(tmp_path, count, process)
        for worker in workers_of(process)[:1]:
            worker.kill()
    told = process.communicate(timeout=250)
    assert process.returncode == 0, told
    assert tree_hash(tmp_path / "chips.zarr") == quiet


def test_a_lost_scheduler_ends_the_run_and_another_one_goes_on(tmp_path, data, quiet, dask_address):
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard",
         f"--scheduler-file={tmp_path / 'scheduler.json'}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    file = tmp_path / "scheduler.json"
    wait_for(lambda: file.exists() and file.read_text().endswith("}"), scheduler)
    address = json.loads(file.read_text())["address"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads=1", "--no-dashboard", "--no-nanny",
         f"--local-directory={tmp_path / 'local'}", "--death-timeout=5"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process = start(tmp_path / "run", data, *on(address))
        wait_for_records(tmp_path / "run", 5, process)
        scheduler.kill()
        _, told = process.communicate(timeout=120)
    finally:
        for one in (scheduler, worker):
            one.kill()
            one.wait()
    assert process.returncode == 1
    assert told.startswith(f"geochip: error: the Dask scheduler at {address} was lost; ")
    assert "run the same command again" in told
    assert "Traceback" not in told
    assert ChipStore(tmp_path / "run" / "chips.zarr").attrs["complete"] is False
    main([f"--run_dir={tmp_path / 'run'}", *data_flags(data, "train"), *MANY, *on(dask_address)])
    assert tree_hash(tmp_path / "run" / "chips.zarr") == quiet


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; made by the test itself, in a mount namespace of its own where it may not otherwise."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_ends_the_run_and_freed_space_lets_it_go_on(small_disk, data, quiet, dask_address):
    flags = [f"--run_dir={small_disk / 'run'}", *data_flags(data, "train"), *MANY, *on(dask_address)]
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(9 * 2**19))
    with pytest.raises(WorkError) as caught:
        main(flags)
    assert "the disk or your quota on it is full" in str(caught.value)
    assert "free some space and run the same command again: what is finished is kept" in str(caught.value)
    store = small_disk / "run" / "chips.zarr"
    assert ChipStore(store).attrs["complete"] is False
    assert 0 < records(small_disk / "run") < 71
    ballast.unlink()
    main(flags)
    assert tree_hash(store) == quiet


def test_a_disk_that_is_full_from_the_start_is_told(small_disk, data, dask_address):
    def fill():
        with (small_disk / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**12))

    with pytest.raises(OSError, match="No space left"):
        fill()
    done = run(
        "geochip.chipping", f"--run_dir={small_disk / 'run'}", *data_flags(data, "train"), *MANY, *on(dask_address)
    )
    assert done.returncode == 1
    assert "the disk or your quota on it is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_run_at_the_same_time_is_refused_by_name(tmp_path, data, quiet, dask_address):
    first = start(tmp_path, data, "--cluster.workers=1")
    wait_for_records(tmp_path, 1, first)
    with pytest.raises(InputError) as caught:
        main([f"--run_dir={tmp_path}", *data_flags(data, "train"), *MANY, *on(dask_address)])
    assert f"process {first.pid} on {os.uname().nodename}" in str(caught.value)
    told = first.communicate(timeout=250)
    assert first.returncode == 0, told
    assert tree_hash(tmp_path / "chips.zarr") == quiet
    # Nothing of the lock, and no copy of a label, is left.
    assert {file.name for file in tmp_path.iterdir()} == {
        "chips.zarr", "chips.zarr.journal", "scenes.parquet", "chips.parquet",
    }  # fmt: skip


def test_a_killed_driver_leaves_no_lock_in_the_way(tmp_path, data, quiet, dask_address):
    process = start(tmp_path, data, "--cluster.workers=1")
    wait_for_records(tmp_path, 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=60)
    assert (tmp_path / "chips.zarr.lock").exists()
    main([f"--run_dir={tmp_path}", *data_flags(data, "train"), *MANY, *on(dask_address)])
    assert tree_hash(tmp_path / "chips.zarr") == quiet


def test_a_file_that_vanishes_during_the_run_sets_its_scene_aside(tmp_path, dask_address):
    data = tmp_path / "data"
    for scene_id in "1234":
        write_scene(data, "train", scene_id)
    flags = [f"--run_dir={tmp_path / 'run'}", *data_flags(data, "train"), *MANY[1:], *on(dask_address)]
    flags += ["--chips.per_scene=5"]
    main([*flags, f"--run_dir={tmp_path / 'whole'}"])
    # Headers are read, then two files go before a worker opens them.
    from geochip import chipping

    def prepare_then_lose(config):
        ready = prepare(config)
        for name in ("scene_2.tif", "label_3.geojson"):
            shutil.move(data / "train" / name, tmp_path / name)
        return ready

    prepare = chipping.prepare
    chipping.prepare = prepare_then_lose
    try:
        with pytest.raises(WorkError) as caught:
            main(flags)
    finally:
        chipping.prepare = prepare
    assert "scene 2 (train): " in str(caught.value)
    assert "scene 3 (train): label " in str(caught.value)
    assert ChipStore(tmp_path / "run" / "chips.zarr").written("train").tolist() == [*range(5), *range(15, 20)]
    for name in ("scene_2.tif", "label_3.geojson"):
        shutil.move(tmp_path / name, data / "train" / name)
    main(flags)
    assert tree_hash(tmp_path / "run" / "chips.zarr") == tree_hash(tmp_path / "whole" / "chips.zarr")


def test_shards_that_were_lost_are_made_anew(tmp_path, data, quiet, dask_address, capsys):
    flags = [f"--run_dir={tmp_path}", *data_flags(data, "train"), *MANY, *on(dask_address)]
    main(flags)
    store = tmp_path / "chips.zarr"
    (store / "train" / "image" / "c.3.0.0.0").unlink()
    (store / "train" / "label" / "c.7.0.0").unlink()
    capsys.readouterr()
    main(flags)
    assert "69 of 71 shards are there already" in capsys.readouterr().out
    assert tree_hash(store) == quiet


# --- verify -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, dask_address):
    """A finished run of 15 chips in two splits."""
    root = tmp_path_factory.mktemp("finished")
    for split, ids in (("train", "12"), ("val", "3")):
        for scene_id in ids:
            write_scene(root / "data", split, scene_id, position_coded(50, 60).astype(np.uint16))
    main([*of(root), *on(dask_address)])
    return root


def of(root):
    return [f"--run_dir={root / 'run'}", *data_flags(root / "data", "train", "val"), "--chips.size=20"]


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path


def verify(root, address):
    main([*of(root), *on(address), "--verify"])


def test_a_good_store_is_verified(finished, dask_address, capsys):
    verify(finished, dask_address)
    assert capsys.readouterr().out == (
        f"{finished / 'run' / 'chips.zarr'}: 2 shards read; checksums, journal, positions and statistics are as they "
        "should be\n"
    )


def flip(path, where):
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)


def change_array(store, name, position, value):
    # As a program that goes past geochip would do it.
    array = zarr.open_array(str(store / name), mode="r+")
    array[position] = value


def change_journal(store):
    path = journal_path(store)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["class_pixels"][0][0] -= 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_statistics(store):
    path = store / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["statistics"]["mean"][1] += 1
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda store: flip(store / "train" / "image" / "c.0.0.0.0", 500), "train"),
        (lambda store: flip(store / "val" / "label" / "c.0.0.0", 40), "val"),
        (lambda store: (store / "train" / "image" / "c.0.0.0.0").unlink(), "c.0.0.0.0"),
        (lambda store: change_array(store, "train/row_off", 2, 29), "row_off"),
        (lambda store: change_array(store, "train/x0", 2, 1.0), "x0"),
        (lambda store: change_array(store, "val/written", 0, False), "written"),
        (lambda store: change_array(store, "val/valid_fraction", 0, 0.5), "valid_fraction"),
        (lambda store: change_array(store, "train/label", 3, 1), "class"),
        (change_journal, "class"),
        (change_statistics, "mean"),
    ],
)
def test_whatever_is_wrong_with_a_store_is_found(copy, dask_address, damage, words):
    damage(copy / "run" / "chips.zarr")
    with pytest.raises(WorkError) as caught:
        verify(copy, dask_address)
    text = str(caught.value)
    assert words in text
    count = len(text.splitlines()) - 1
    assert f"has {count} fault{'s' if count > 1 else ''} (see above)" in text


def test_an_unfinished_store_is_not_verified(tmp_path, data, dask_address):
    process = start(tmp_path, data, "--cluster.workers=1")
    wait_for_records(tmp_path, 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(InputError, match=r"is not complete; run python -m geochip.chipping again"):
        main([f"--run_dir={tmp_path}", *data_flags(data, "train"), *MANY, *on(dask_address), "--verify"])
    assert Path(tmp_path / "chips.zarr").exists()
