"""What killed writers of GeoTIFFs leave is removed, and nothing else."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from bundles import identity_bundle
from geochip.infer import main
from geochip.store import PredictionStore
from geochip.store.cog import sweep_cogs
from helpers import data_flags, position_coded, write_scene


@pytest.fixture
def run(tmp_path, dask_address):
    """A finished run of one scene; its flags."""
    identity_bundle(tmp_path / "run/model")
    write_scene(tmp_path / "data", "test", "1", position_coded(20, 20, 1).astype("uint16"))
    flags = [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "test"), "--train.split=test",
        "--train.val_split=null", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip
    main(flags)
    return flags


def leftover_name(tmp_path):
    store = PredictionStore(tmp_path / "run/predictions.zarr")
    return f".writing-{store.attrs['fingerprint'][:12]}-abc"


def test_a_link_is_not_followed(tmp_path, run):
    (tmp_path / "mine").mkdir()
    for name in ("plain.tif", "file"):
        (tmp_path / "mine" / name).write_text("mine")
    link = tmp_path / "run/predictions" / leftover_name(tmp_path)
    link.symlink_to(tmp_path / "mine")
    (tmp_path / "run/predictions/.writing-anything").symlink_to(tmp_path / "mine")
    main(run)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["file", "plain.tif"]
    assert link.is_symlink()


def test_what_geochip_did_not_make_stays(tmp_path, run):
    cogs = tmp_path / "run/predictions"
    other = cogs / ".writing-notes"
    deeper = cogs / "deeper" / leftover_name(tmp_path)
    mixed = cogs / leftover_name(tmp_path)
    for directory in (other, deeper, mixed):
        directory.mkdir(parents=True)
        (directory / "plain.tif").write_text("half a file")
    (mixed / "notes.txt").write_text("mine")
    (mixed / "cog.tif").symlink_to(other / "plain.tif")
    main(run)
    assert (other / "plain.tif").exists()
    assert (deeper / "plain.tif").exists()
    assert [path.name for path in mixed.iterdir()] == ["notes.txt"]


def test_what_a_killed_writer_left_goes(tmp_path, run):
    left = tmp_path / "run/predictions" / leftover_name(tmp_path)
    left.mkdir()
    for name in ("plain.tif", "plain.tif.aux.xml", "cog.tif", "cog.tif.ovr.tmp"):
        (left / name).write_text("half a file")
    main(run)
    assert not left.exists()
    sweep_cogs(tmp_path / "there is none", PredictionStore(tmp_path / "run/predictions.zarr"))


def writing(directory):
    """The worker that is writing a GeoTIFF now, stopped; None when none is."""
    for left in directory.glob(".writing-*"):
        for process in psutil.Process().children(recursive=True):
            try:
                held = [file.path for file in process.open_files()]
            except psutil.Error:
                continue
            if any(path.startswith(f"{left}/") for path in held):
                process.send_signal(signal.SIGSTOP)
                if left.exists():
                    return process
                process.send_signal(signal.SIGCONT)
    return None


def test_a_worker_that_is_killed_while_it_writes_leaves_nothing(tmp_path, run):
    for number in range(2, 8):
        write_scene(tmp_path / "data", "test", str(number), position_coded(1500, 1500, 1).astype("uint16"))
    flags = [flag for flag in run if "--cluster" not in flag and "--run_dir" not in flag]
    more = [f"--run_dir={tmp_path / 'new'}", f"--model.bundle={tmp_path / 'run/model'}", "--cluster.workers=1"]
    process = subprocess.Popen([sys.executable, "-m", "geochip.infer", *flags, *more], env=os.environ)
    directory = tmp_path / "new/predictions"
    while (worker := writing(directory)) is None:
        assert process.poll() is None, "it ended before a worker was caught"
        time.sleep(0.001)
    left = list(directory.glob(".writing-*"))
    assert left
    worker.send_signal(signal.SIGKILL)
    assert process.wait(200) == 0
    assert sorted(path.name for path in directory.iterdir()) == [f"{number}.tif" for number in range(1, 8)]
