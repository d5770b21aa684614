"""Dask's workers as Slurm jobs, on a real Slurm: what it refuses, takes away and breaks, and what is left afterwards."""

import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request

import psutil
import pytest
from distributed import Client
from distributed.security import Security

from geochip.chipping import main
from geochip.cluster import _supervisor, dask_client, run_tasks
from geochip.config import ClusterConfig, SlurmJobConfig
from geochip.errors import WorkError
from geochip.slurm import SlurmError
from helpers import data_flags, tree_hash, write_scene
from slurm.runs import finish, left_by, take_down, wait_for, wait_for_records

pytestmark = pytest.mark.usefixtures("slurm")

# Enough shards that a run can be disturbed in the middle of them.
MANY = ["--chips.per_scene=900", "--chips.size=24", "--train.val_split=null", "--infer.split=train"]
SLURM = ["--cluster.kind=slurm", "--cluster.workers=2", "--cluster.cpu.interface=lo", "--cluster.cpu.memory=1GiB"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    for scene_id in "123456789":
        write_scene(root, "train", scene_id)
    return root


@pytest.fixture(scope="module")
def quiet(data, tmp_path_factory):
    """Digest of the store of a run on this machine that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("quiet")
    main([f"--run_dir={run_dir}", *data_flags(data, "train"), *MANY, "--cluster.workers=2"])
    return tree_hash(run_dir / "chips.zarr")


def command(run_dir, data, *flags):
    return [sys.executable, "-m", "geochip.chipping", f"--run_dir={run_dir}", *data_flags(data, "train"), *MANY, *flags]


@pytest.fixture
def start(start_process, data):
    """Starts a run."""
    return lambda run_dir, *flags: start_process(command(run_dir, data, *SLURM, *flags))


def cluster(workers=1, *, jobs=None, **keys):
    return ClusterConfig(
        kind="slurm", workers=workers,
        cpu=SlurmJobConfig(**{"interface": "lo", "memory": "512MiB", **(jobs or {})}), **keys,
    )  # fmt: skip


# --- a run that goes well, and strangers


def test_two_jobs_give_the_bytes_of_a_local_run(tmp_path, data, quiet, slurm, start):
    run_dir = tmp_path / "it's a run"
    process = start(run_dir)
    wait_for_records(run_dir / "chips.zarr", 1, process)
    (keys,) = (run_dir / ".keys").iterdir()
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.iterdir()} == {0o600}
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    told = finish(process, run_dir, slurm)
    assert tree_hash(run_dir / "chips.zarr") == quiet
    assert re.search(
        r"^Slurm: submitted jobs \d+, \d+ as chip-worker-geochip-\w+; logs: .*/it's a run/logs/", told, re.MULTILINE
    )
    assert "Slurm: 2 of 2 workers are there" in told
    assert len(list((run_dir / "logs").iterdir())) == 2


def test_a_stranger_cannot_connect_and_a_job_is_no_part_of_another_one(tmp_path, slurm, monkeypatch, capsys):
    # As if this process ran in a job itself.
    for name, value in (("SLURM_JOB_ID", "1"), ("SLURM_CPU_BIND", "mask_cpu:1"), ("SBATCH_PARTITION", "nonsense")):
        monkeypatch.setenv(name, value)
    found = {}
    with dask_client(cluster(dashboard=True), run_dir=tmp_path) as client:
        address = client.scheduler.address
        assert address.startswith("tls://")
        names = ("SLURM_CPU_BIND", "SLURM_JOB_ID", "OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
        run_tasks(client, os.getenv, ((name, (name,)) for name in names), found.__setitem__)
        for stranger in (
            {"address": address.replace("tls://", "tcp://")},
            {"address": address, "security": Security.temporary()},
        ):
            with pytest.raises(OSError, match=r"(?i)closed|certificate|timed out"):
                Client(**stranger, timeout="2s")
        with Client(address, security=client.security, timeout="20s") as friend:
            assert friend.scheduler_info()["address"] == address
        told = capsys.readouterr().err
        (port,) = re.findall(r"from your own machine: ssh -L (\d+):127\.0\.0\.1:\1 \S+@\S+, then open", told)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=60) as page:
            assert page.status == 200
        listening = {
            one.laddr.ip for one in psutil.Process().net_connections() if one.laddr and one.laddr.port == int(port)
        }
        assert listening == {"127.0.0.1"}
    assert found["SLURM_CPU_BIND"] is None
    assert found["SLURM_JOB_ID"] not in (None, "1")
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["MALLOC_TRIM_THRESHOLD_"] == str(512 * 2**20)
    assert left_by(tmp_path) == (set(), [])


# --- jobs that are lost


def test_jobs_that_are_cancelled_and_nodes_that_go_down_cost_nothing_but_time(tmp_path, quiet, slurm, start):
    process = start(tmp_path)
    wait_for_records(tmp_path / "chips.zarr", 5, process)
    slurm.run("scancel", slurm.jobs()[0])
    wait_for_records(tmp_path / "chips.zarr", 40, process)
    node = take_down(slurm, process)
    try:
        told = finish(process, tmp_path, slurm)
    finally:
        # By itself it may have come back by now.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False)
    assert tree_hash(tmp_path / "chips.zarr") == quiet
    (lost,) = re.findall(r"^Slurm: job (\d+) was cancelled on ", told, re.MULTILINE)
    # The end of its log, once.
    assert told.count(f"JOB {lost} ON node") == 1
    assert len(re.findall(r"^Slurm: submitted job \d+ instead$", told, re.MULTILINE)) == 1
    assert re.search(
        r"^Slurm: job \d+ was requeued \(preempted, or its node failed\); it comes back by itself$", told, re.MULTILINE
    )


def test_workers_that_are_preempted_come_back(tmp_path, quiet, slurm, start):
    process = start(tmp_path, "--cluster.cpu.partition=preempt")
    wait_for_records(tmp_path / "chips.zarr", 5, process)
    # For longer than Dask remembers a worker.
    slurm.submit("-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 17")
    told = finish(process, tmp_path, slurm)
    assert tree_hash(tmp_path / "chips.zarr") == quiet
    assert told.count(" was requeued (preempted, or its node failed)") == 2
    assert re.search(
        r"^Slurm: 0 of 2 workers are there; .*jobs? \d+.* waits?: .* \((BeginTime|Resources|Priority)\)",
        told,
        re.MULTILINE,
    )
    assert " instead" not in told


def test_a_worker_at_the_end_of_its_time_is_followed_by_another_one(tmp_path, slurm, capsys):
    profiles = tmp_path / "jobqueue.yaml"
    profiles.write_text("jobqueue: {brief: {worker-extra-args: [--lifetime, 3s, --lifetime-stagger, 0s]}}")
    config = cluster(profiles=str(profiles), jobs={"profile": "brief"}, max_replacements=0)
    done = []
    with dask_client(config, run_dir=tmp_path) as client:
        run_tasks(client, time.sleep, ((str(n), (0.5,)) for n in range(9)), lambda key, _: done.append(key))
    assert sorted(map(int, done)) == list(range(9))
    told = capsys.readouterr().err
    assert re.search(
        r"^Slurm: job \d+ has reached the end of its time; another one takes its place$", told, re.MULTILINE
    )


def test_a_controller_that_is_gone_for_a_while_costs_nothing(tmp_path, slurm, monkeypatch, capsys):
    """Jobs go on without it, and what is asked for waits."""
    monkeypatch.setattr(_supervisor, "_POLL_SECONDS_AT_WORK", 2.0)
    done, told, back = [], [], threading.Event()

    def outage():
        try:
            slurm.restart_controller(gone)
        finally:
            back.set()

    def gone():
        wait_for(lambda: told.append(capsys.readouterr().err) or "asking again" in "".join(told))
        # The workers meanwhile:
        before = len(done)
        wait_for(lambda: len(done) > before + 5)

    def on_result(key, _):
        done.append(key)
        if len(done) == 3:
            controller.start()

    controller = threading.Thread(target=outage)
    calls = ((str(n), (0.25,)) for n in itertools.takewhile(lambda _: not back.is_set(), itertools.count()))
    with dask_client(cluster(2), run_dir=tmp_path) as client:
        run_tasks(client, time.sleep, calls, on_result)
        controller.join()
    assert sorted(map(int, done)) == list(range(len(done)))
    assert re.search(
        r"^Slurm: squeue: .*Unable to contact slurm controller \(connect failure\); asking again$",
        "".join(told),
        re.MULTILINE,
    )
    assert slurm.jobs() == []
    assert left_by(tmp_path) == (set(), [])


def test_a_job_that_sbatch_submits_without_saying_so_is_one_of_the_workers(tmp_path, slurm, monkeypatch, capsys):
    """As when the controller is busy: it has the job, and nobody has its answer."""
    programs, first = tmp_path / "bin", tmp_path / "first"
    programs.mkdir()
    (programs / "sbatch").write_text(
        f'#!/bin/sh\n{shutil.which("sbatch")} "$@" || exit\n[ -e {first} ] || {{ : >{first}; exit 0; }}\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2\nexit 1\n'
    )
    (programs / "sbatch").chmod(0o700)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    run_dir, told = tmp_path / "run", ""

    def listen(*_):
        nonlocal told
        told += capsys.readouterr().err

    with dask_client(cluster(2), run_dir=run_dir) as client:
        calls = itertools.takewhile(lambda n: "2 of 2 workers are there" not in told and n < 300, itertools.count())
        run_tasks(client, time.sleep, ((str(n), (0.2,)) for n in calls), listen)
        assert len(slurm.jobs()) == 2
    assert "Socket timed out on send/recv operation; " in told
    assert "going on with 1 of 2 workers, and trying again for the others every minute" in told
    assert re.search(r"^Slurm: job \d+ was submitted, though sbatch had no answer; it is one of", told, re.MULTILINE)
    assert left_by(run_dir) == (set(), [])


def test_jobs_to_which_a_person_gave_another_name_are_followed_and_ended(tmp_path, slurm, capsys):
    done = []
    with dask_client(cluster(2, jobs={"directives": ("--job-name=mine",)}), run_dir=tmp_path) as client:
        run_tasks(client, time.sleep, ((str(n), (0.5,)) for n in range(12)), lambda key, _: done.append(key))
        assert slurm.run("squeue", "-h", "-o", "%j").split() == ["mine"] * 2
    assert len(done) == 12
    assert slurm.jobs() == []
    assert " is gone" not in capsys.readouterr().err


def test_replacements_are_bounded(tmp_path, slurm):
    def lose(*_):
        for job_id in slurm.jobs():
            slurm.run("scancel", job_id)

    with (
        pytest.raises(WorkError, match=r"^1 job was lost, and cluster.max_replacements is 0; see the logs"),
        dask_client(cluster(max_replacements=0), run_dir=tmp_path) as client,
    ):
        run_tasks(client, time.sleep, ((str(n), (0.2,)) for n in range(1000)), lose)


# --- what cannot work


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"partition": "nonsense"}, r"sbatch: invalid partition specified: nonsense; .*; name another partition \(cluster.cpu.partition;"),
        ({"partition": "members"}, r"sbatch: .*Invalid account or account/partition combination specified; name an account that you may use there \(cluster.cpu.account;"),
        ({"memory": "900GiB"}, r"sbatch: Memory specification can not be satisfied; .*; ask for less memory \(cluster.cpu.memory;"),
        ({"partition": "short", "walltime": "1-0"}, r"sbatch: .*Requested time limit is invalid .*; ask for less time \(cluster.cpu.walltime;"),
        ({"gres": "gpu:7"}, r"sbatch: .*Requested node configuration is not available; no node has what is asked for: lower cores"),
        ({"directives": ("--nonsense",)}, r"sbatch: unrecognized option '--nonsense'; .*; correct cluster.cpu.directives;"),
    ],
)  # fmt: skip
def test_what_slurm_refuses_ends_the_run_at_once_in_its_words(tmp_path, slurm, jobs, words):
    with pytest.raises(SlurmError, match=words), dask_client(cluster(jobs=jobs), run_dir=tmp_path):
        pytest.fail("no job was submitted")
    assert left_by(tmp_path) == (set(), [])


def test_the_command_tells_a_refusal_without_a_traceback(tmp_path, slurm, start):
    told = finish(start(tmp_path, "--cluster.cpu.partition=nonsense"), tmp_path, slurm, code=1)
    (line,) = (line for line in told.splitlines() if "error" in line)
    assert line.startswith("geochip: error: sbatch: invalid partition specified: nonsense; ")


# A node from which this machine cannot be reached: its own network, in which only itself is.
APART = f"unshare --net sh -c 'ip link set lo up && exec {sys.executable} \"$@\"' sh"


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        ({"python": "/nowhere/python"}, r"^2 jobs ended before any worker came: Python could not be started on the node \(see the log\); correct cluster.cpu.python .* \(log: .*\.out\)"),
        ({"prologue": ("true", "module-of-nobody load # what")}, r"^2 jobs ended before any worker came: a line of cluster.cpu.prologue failed on the node \(see the log\); correct it"),
        ({"interface": "ib9"}, r"^2 jobs ended before any worker came: the network interface cluster.cpu.interface is not there on the node"),
        ({"python": APART}, r"^2 jobs ended before any worker came: the worker could not reach the scheduler at tls://127.0.0.1:\d+; name a network interface that nodes and this machine share"),
        ({"directives": ("--dependency=afterok:1",)}, r"^job \d+ will never start: it waits for a job that failed \(DependencyNeverSatisfied\); take the dependency out of the directives"),
        ({"directives": ("--hold",)}, r"^no worker for 0.1 minutes \(cluster.wait_minutes\): 0 of 2 workers are there; jobs \d+, \d+ wait: it is held \(JobHeldUser\)"),
        ({"prologue": ("sleep 100",)}, r"^no worker for 0.1 minutes \(cluster.wait_minutes\): 0 of 2 workers are there; jobs \d+, \d+ start; raise it, or see the logs"),
    ],
)  # fmt: skip
def test_workers_that_never_come_end_the_run_with_the_cause(tmp_path, slurm, capsys, jobs, words):
    profiles = tmp_path / "jobqueue.yaml"
    profiles.write_text("jobqueue: {hasty: {death-timeout: 5}}")
    patient = "python" in jobs or "interface" in jobs
    config = cluster(
        2,
        jobs={**jobs, "profile": "hasty"},
        profiles=str(profiles),
        wait_minutes=5 if patient else 0.1,
        scheduler_interface="lo",
    )
    if jobs.get("directives") == ("--dependency=afterok:1",):
        failed = slurm.submit("--output=/dev/null", "--wrap=false")
        slurm.wait(failed)
        jobs = {"directives": (f"--dependency=afterok:{failed}",), "profile": "hasty"}
        config = cluster(2, jobs=jobs, profiles=str(profiles), scheduler_interface="lo")
    with pytest.raises(WorkError, match=words), dask_client(config, run_dir=tmp_path) as client:
        run_tasks(client, time.sleep, [("a", (0,))], print)
    assert slurm.jobs() == []
    if patient:
        # The end of the log of each.
        assert "\n  | " in capsys.readouterr().err
    assert left_by(tmp_path) == ({"jobqueue.yaml"}, [])


# --- the end of the driver


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "geochip: interrupted; what is finished is kept"),
        (signal.SIGTERM, 143, "geochip: ended by SIGTERM; what is finished is kept"),
        (signal.SIGHUP, 129, "geochip: ended by SIGHUP; what is finished is kept"),
    ],
)
def test_nothing_is_left_of_a_run_that_is_stopped(tmp_path, slurm, start, number, code, words):
    process = start(tmp_path)
    wait_for_records(tmp_path / "chips.zarr", 3, process)
    process.send_signal(number)
    told = finish(process, tmp_path, slurm, code=code)
    assert words in told
    assert "Traceback" not in told


def test_workers_of_a_driver_that_is_killed_end_and_its_keys_are_swept(tmp_path, slurm):
    script = f"""if True:
        import sys, time
        from geochip.cluster import dask_client, wait_for_a_worker
        from geochip.config import ClusterConfig, SlurmJobConfig
        config = ClusterConfig(kind="slurm", workers=1, cpu=SlurmJobConfig(interface="lo", memory="512MiB"))
        with dask_client(config, run_dir={str(tmp_path)!r}) as client:
            wait_for_a_worker(client)
            print("ready", flush=True)
            time.sleep(300)
    """
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdout.readline() == "ready\n"
        driver.kill()
        driver.communicate()
    # One that computes takes the time that Dask gives a task to end, half a minute, besides.
    wait_for(lambda: slurm.jobs() == [], seconds=90)
    assert len(list((tmp_path / ".keys").iterdir())) == 1
    with pytest.raises(SlurmError), dask_client(cluster(jobs={"partition": "nonsense"}), run_dir=tmp_path):
        pass
    assert left_by(tmp_path) == (set(), [])


# --- within one allocation


def test_workers_within_one_allocation_of_which_one_is_lost(tmp_path, data, quiet, slurm):
    words = command(
        tmp_path / "run",
        data,
        "--cluster.kind=srun",
        "--cluster.cpu.interface=lo",
        "--cluster.cpu.prologue=[export A=1]",
    )
    script = tmp_path / "job"
    script.write_text("#!/bin/bash\nexec " + " ".join(f"'{word}'" for word in words) + "\n")
    # On sites that count memory for each CPU the step must not ask for it again.
    job_id = slurm.submit(
        "--nodes=2", "--ntasks=3", "--cpus-per-task=1", "--mem-per-cpu=900M", f"--output={tmp_path / 'out'}", script
    )
    slurm.wait(job_id, "RUNNING")
    wait_for_records(tmp_path / "run" / "chips.zarr", 5, None)
    # One of the tasks, with the worker below it.
    task = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if {"distributed.cli.dask_worker", f"{job_id}-0-1"} <= set(process.info["cmdline"] or ())
    )
    for process in (*task.children(recursive=True), task):
        process.kill()
    state = slurm.wait(job_id, timeout=150)
    told = (tmp_path / "out").read_text()
    assert state == "COMPLETED", told
    assert "Slurm: 2 of 3 workers are there" in told
    assert tree_hash(tmp_path / "run" / "chips.zarr") == quiet
    assert "Slurm: started 3 workers by srun; log: " in told
    assert left_by(tmp_path / "run") == (set(), [])
    assert slurm.show(job_id)["NodeList"] == "node[1-2]"


def test_a_step_that_cannot_start_is_told_with_what_srun_said(tmp_path, data, slurm):
    words = command(
        tmp_path / "run",
        data,
        "--cluster.kind=srun",
        "--cluster.cpu.interface=lo",
        "--cluster.cpu.python=/nowhere/python",
    )
    script = tmp_path / "job"
    script.write_text("#!/bin/bash\nexec " + " ".join(f"'{word}'" for word in words) + "\n")
    job_id = slurm.submit("--ntasks=2", "--mem-per-cpu=900M", f"--output={tmp_path / 'out'}", script)
    assert slurm.wait(job_id, timeout=150) == "FAILED"
    told = (tmp_path / "out").read_text()
    assert re.search(r"^  \| .*/nowhere/python: No such file or directory", told, re.MULTILINE)
    assert "geochip: error: srun ended with exit code 127: Python could not be started on the node" in told
    assert slurm.show(job_id)["ExitCode"] == "1:0"
    assert left_by(tmp_path / "run") == (set(), [])
