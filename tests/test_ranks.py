"""Ranks of a training among other processes: who can reach them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from geochip import ranks
from helpers import run
from training import flags

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
