"""Workers of this machine: who can talk to them, and what is told when they do not come."""

import asyncio
import urllib.error
import urllib.request

import dask
import psutil
import pytest
from distributed import Client
from distributed.core import rpc
from distributed.security import Security

from geochip.chipping import main
from geochip.cluster import _local, dask_client
from geochip.config import ClusterConfig
from geochip.errors import WorkError
from helpers import data_flags, write_scene
from told import told


async def _identity(address, security):
    arguments = security.get_connection_args("client") if security else {}
    async with rpc(address, timeout=3, connection_args=arguments) as remote:
        return await remote.identity()


def identity(address, security=None):
    """What a scheduler, nanny or worker says of itself to whoever it talks to."""
    return asyncio.run(_identity(address, security))


def listening():
    """Ports on which this process and its children listen."""
    me = psutil.Process()
    return {
        (one.laddr.ip, one.laddr.port)
        for process in (me, *me.children(recursive=True))
        for one in process.net_connections()
        if one.status == psutil.CONN_LISTEN
    }


def answers_http(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as page:
            return page.status == 200
    except urllib.error.HTTPError:
        return False
    except OSError:
        return None  # it does not speak HTTP


def test_a_stranger_without_keys_can_talk_to_none_of_the_processes():
    before = listening()
    with dask_client(ClusterConfig(workers=2)) as client:
        opened = listening() - before
        workers = client.scheduler_info()["workers"]
        named = {client.scheduler.address, *workers, *(one["nanny"] for one in workers.values())}
        assert len(named) == 5
        assert all(address.startswith("tls://127.0.0.1:") for address in named)
        for address in named:
            for stranger in (
                {"address": address.replace("tls://", "tcp://")},
                {"address": address, "security": Security.temporary()},
            ):
                with pytest.raises(OSError):  # in several words; what a friend gets is below
                    identity(**stranger)
            assert identity(address, client.security)["id"]
        # Nothing else is there than what is named, and pages that say no more than that somebody is there.
        assert {ip for ip, _ in opened} == {"127.0.0.1"}
        others = {port for _, port in opened} - {int(address.rsplit(":", 1)[1]) for address in named}
        assert len(others) == 3  # of scheduler and workers
        assert [answers_http(port, "/health") for port in others] == [True] * 3
        pages = ("/info/main/workers.html", "/json/counts.json", "/metrics", "/status")
        assert not [(port, path) for port in others for path in pages if answers_http(port, path)]


def test_the_keys_are_in_no_file_and_no_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with dask_client(ClusterConfig(workers=1), run_dir=tmp_path) as client:
        me = psutil.Process()
        texts = [" ".join([*one.cmdline(), *one.environ().values()]) for one in me.children(recursive=True)]
        texts += [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
        assert not [text for text in texts if "PRIVATE KEY" in text]
        assert "PRIVATE KEY" in client.security.tls_client_key


def test_without_tls_only_by_word():
    with dask_client(ClusterConfig(workers=1, insecure=True)) as client:
        assert client.scheduler.address.startswith("tcp://")
        assert identity(client.scheduler.address)["id"]


def test_the_dashboard_is_there_when_it_is_asked_for(capsys):
    with dask_client(ClusterConfig(workers=1, dashboard=True)) as client:
        port = client.dashboard_link.rsplit(":", 1)[1].split("/")[0]
        assert answers_http(port, "/status")
    assert "Dask's dashboard: http://127.0.0.1:" in capsys.readouterr().err


def chip(tmp_path):
    write_scene(tmp_path / "data", "train", "a")
    main([
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--train.val_split=null",
        "--infer.split=train", "--chips.size=24", "--chips.per_scene=4", "--cluster.workers=1",
    ])  # fmt: skip


def test_a_worker_killed_while_it_starts_is_told_in_words_and_the_same_command_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(_local, "FREEZE", "import os; os.kill(os.getpid(), 9)")
        with pytest.raises(WorkError) as error:
            chip(tmp_path)
    told("local_worker_died", str(error.value))
    chip(tmp_path)
    assert (tmp_path / "run" / "chips.parquet").is_file()


def test_what_the_machine_refuses_a_local_cluster_is_named(tmp_path):
    gone = tmp_path / "file" / "scratch"
    gone.parent.touch()
    with (
        dask.config.set({"temporary-directory": str(gone)}),
        pytest.raises(WorkError) as error,
        dask_client(ClusterConfig(workers=1)),
    ):
        pass
    told("local_not_started", str(error.value))
    assert f"Not a directory: {gone}" in str(error.value)
    with Client(processes=False, dashboard_address=None) as client:  # nothing of the failed one is left
        assert client.submit(int, 1).result() == 1
