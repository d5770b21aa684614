"""Ranks of a training among other processes: who can reach them, who trains where they do, and who started them."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from geochip import ranks
from geochip.errors import InputError, WorkError
from geochip.store import StoreLock
from geochip.train_ddp import main
from helpers import run
from told import told
from training import flags, table

TESTS = Path(__file__).parent


def free_port():
    with socket.create_server(("localhost", 0)) as one:
        return one.getsockname()[1]


def test_ranks_of_one_machine_listen_on_it_alone_and_unpickle_nothing(chips, tmp_path):
    """But for torchrun's own store, which holds numbers and addresses: docs/security.md says who may be at it."""
    port, file = free_port(), tmp_path / "ports.json"
    done = run(
        "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", TESTS / "rank_ports.py", file,
        *flags(chips, tmp_path / "run", batch_size=3, epochs=1),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert set(found["rank"]) in ({"127.0.0.1"}, {"::1"})
    assert found["parent"] == ["::"]  # one store; c10d would have two
    assert f"--master-port={port}" in found["command"]


def test_one_process_alone_listens_nowhere(chips, tmp_path):
    file = tmp_path / "ports.json"
    command = [sys.executable, TESTS / "rank_ports.py", file, *flags(chips, tmp_path / "run", epochs=1)]
    subprocess.run(command, check=True, timeout=280)
    assert json.loads(file.read_text())["rank"] == []


def test_an_interface_that_was_named_is_kept(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    ranks._listen_on_this_machine_only()
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("ib0", "lo")


# --- two trainings on one run_dir


def test_a_second_training_is_refused_and_leaves_the_first_alone(chips, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "train").mkdir(parents=True)
    arguments = flags(chips, run_dir, epochs=1)
    with StoreLock(run_dir / "train", "run_dir"):
        (run_dir / "train" / "stop").touch()
        before = sorted(run_dir.rglob("*"))
        with pytest.raises(InputError) as error:
            main(arguments)
        # Neither the request to stop, meant for the first one, nor anything else is touched.
        assert sorted(run_dir.rglob("*")) == before
    told("second_training", str(error.value))
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(error.value)
    assert "--run_dir" not in str(error.value)
    (run_dir / "train" / "stop").unlink()
    main(arguments)
    assert len(table(run_dir)) == 1
    assert not (run_dir / "train.lock").exists()


def test_two_ranks_are_one_training_and_a_second_one_is_told_once(chips, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with StoreLock(run_dir / "train", "run_dir"):
        done = run(
            "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "geochip.train_ddp",
            *flags(chips, run_dir, batch_size=3, epochs=1),
        )  # fmt: skip
        assert done.returncode == 1
    assert done.stderr.count("geochip: error:") == 1
    told("second_training", done.stderr)
    assert not (run_dir / "train").exists()


def test_a_training_that_cannot_begin_leaves_no_directory_behind(chips, tmp_path):
    with pytest.raises(InputError, match="batch"):
        main(flags(chips, tmp_path / "a" / "run", batch_size=10_000))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_was_lost_ends_the_training_before_it_saves(chips, tmp_path, monkeypatch):
    def lost(_lock):
        raise WorkError("lost")

    monkeypatch.setattr(StoreLock, "check", lost)
    with pytest.raises(WorkError, match="lost"):
        main(flags(chips, tmp_path / "run", epochs=1))
    assert not list((tmp_path / "run" / "train").glob("epoch-*"))


# --- ranks whose torchrun is gone


def test_ranks_whose_torchrun_was_killed_save_and_end(chips, tmp_path):
    run_dir = tmp_path / "run"
    arguments = flags(chips, run_dir, batch_size=3, epochs=1000)
    with (tmp_path / "said").open("w") as said:
        torchrun = subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}",
             "-m", "geochip.train_ddp", *arguments], stdout=said, stderr=said,
        )  # fmt: skip
    began = []
    try:
        began = wait_for_ranks(torchrun, run_dir)
        torchrun.kill()
        torchrun.wait()
        # A minute at most; what else runs on this machine may double it.
        _, alive = psutil.wait_procs(began, timeout=120)
        assert not alive
    finally:
        for process in (one for one in began if one.is_running()):
            process.kill()
    assert (run_dir / "train" / "interrupted").read_text().startswith("interrupted by SIGTERM in epoch ")
    assert "geochip: torchrun is gone; this rank stops" in (tmp_path / "said").read_text()
    assert not (run_dir / "train.lock").exists()


def wait_for_ranks(torchrun, run_dir):
    """The ranks, when the first epoch is saved."""
    deadline = time.monotonic() + 200
    while not list((run_dir / "train").glob("epoch-0001-*")):
        assert torchrun.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return psutil.Process(torchrun.pid).children()
