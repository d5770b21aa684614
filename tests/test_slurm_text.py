"""Slurm without a Slurm: job scripts, reasons in words, what its commands print, what the run file refuses."""

import getpass
import json
import os
import platform
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import dask
import psutil
import pytest

from geochip import slurm
from geochip.cluster import job_script, require_cluster
from geochip.cluster._causes import cause_of, end_of
from geochip.cluster._scheduler import SchedulerHere
from geochip.cluster._security import keys_in
from geochip.cluster._slurm import job_script as full_script
from geochip.cluster._srun import srun_command, worker_script
from geochip.config import ClusterConfig, SlurmJobConfig, memory_mib, walltime_seconds
from geochip.errors import InputError, Terminated, run_command
from geochip.run_file import parse_run_config
from geochip.slurm import JobState, SlurmError

HEAVY = SlurmJobConfig(
    account="forest", partition="gpu-a100-mig7", qos="long", gres="gpu:a100_1g.10gb:1", cores=6, memory="20GB",
    walltime="1-12", interface="ib0", local_directory="$TMPDIR/dask", prologue=("module load apptainer", "export A='x y'"),
    python="apptainer exec --nv /img/geo.sif python", directives=("--constraint=a100", '--comment="two words"'),
)  # fmt: skip


def script_of(tmp_path, jobs="cpu", *, profiles=None, insecure=False, **keys):
    config = SlurmJobConfig(**keys)
    cluster = ClusterConfig(kind="slurm", profiles=profiles, insecure=insecure, cpu=config, gpu=config)
    return job_script(cluster, jobs, tmp_path)


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


def worker_words(script):
    (line,) = (line for line in script.splitlines() if "distributed.cli.dask_worker" in line)
    return shlex.split(line)


def option(words, name):
    return words[words.index(name) + 1]


# --- job scripts


def test_the_job_of_a_bare_run_file(tmp_path):
    script = script_of(tmp_path)
    # A login shell: `module` is known there.
    assert script.startswith("#!/bin/bash -l\n")
    assert directives(script) == [
        "-J chip-worker-geochip", "-n 1", "--cpus-per-task=1", "--mem=4G", "-t 01:00:00",
        f'--output="{tmp_path}/logs/chip-worker-geochip-%j.out"', "--nodes=1", "--requeue", "--open-mode=append",
    ]  # fmt: skip
    words = worker_words(script)
    assert words[:4] == [sys.executable, "-m", "distributed.cli.dask_worker", "tls://ADDRESS:PORT"]
    assert option(words, "--nthreads") == "1"
    assert option(words, "--memory-limit") == "4.00GiB"
    assert option(words, "--death-timeout") == "300"
    # An hour, less nine minutes, more or less three: never beyond the walltime.
    assert (option(words, "--lifetime"), option(words, "--lifetime-stagger")) == ("3060s", "180s")
    assert "--no-dashboard" in words
    assert "--nworkers" not in words
    for line in ("export OMP_NUM_THREADS=1", "export MALLOC_ARENA_MAX=2"):
        assert line in script.splitlines()
    # Nothing is started or written for a look at the script.
    assert list(tmp_path.iterdir()) == []


def test_the_job_of_a_full_run_file(tmp_path):
    script = job_script(ClusterConfig(kind="slurm", gpu=HEAVY), "gpu", tmp_path)
    assert directives(script) == [
        "-J infer-worker-geochip", "-p gpu-a100-mig7", "-A forest", "-n 1", "--cpus-per-task=6", "--mem=20G", "-t 1-12",
        f'--output="{tmp_path}/logs/infer-worker-geochip-%j.out"', "--nodes=1", "--requeue", "--open-mode=append", "--qos=long",
        "--gres=gpu:a100_1g.10gb:1", "--constraint=a100", '--comment="two words"',
    ]  # fmt: skip
    words = worker_words(script)
    assert words[:6] == ["apptainer", "exec", "--nv", "/img/geo.sif", "python", "-m"]
    assert option(words, "--interface") == "ib0"
    # One thread a worker, however many cores its job has.
    assert option(words, "--nthreads") == "1"
    lines = script.splitlines()
    (mine,) = (line for line in lines if line.startswith("eval 'module load apptainer' || "))
    assert lines.index(mine) > lines.index("export OMP_NUM_THREADS=1")
    assert (option(words, "--lifetime"), option(words, "--lifetime-stagger")) == (f"{36 * 3600 - 600}s", "240s")


def test_directives_can_be_left_out(tmp_path):
    script = script_of(tmp_path, skip_directives=("--mem", "--requeue"), directives=("--mem-per-gpu=8G",))
    assert "--mem=4G" not in directives(script)
    assert "--requeue" not in directives(script)
    assert directives(script)[-1] == "--mem-per-gpu=8G"


@pytest.mark.parametrize(
    ("skipped", "gone"),
    [
        ("--account", "-A forest"), ("-A", "-A forest"), ("--time", "-t 1-12"), ("-t", "-t 1-12"), ("--time=1", "-t 1-12"),
        ("--partition", "-p gpu-a100-mig7"), ("-p", "-p gpu-a100-mig7"), ("--ntasks", "-n 1"), ("-n", "-n 1"),
        ("--job-name", "-J infer-worker-geochip"), ("-c", "--cpus-per-task=6"), ("--cpus-per-task", "--cpus-per-task=6"),
        ("--mem", "--mem=20G"), ("--mem-per-cpu", "--mem=20G"), ("-N", "--nodes=1"), ("--nodes", "--nodes=1"),
        ("--qos", "--qos=long"), ("--gres", "--gres=gpu:a100_1g.10gb:1"),
    ],
)  # fmt: skip
def test_a_directive_is_left_out_by_any_of_its_names_and_no_other_with_it(tmp_path, skipped, gone):
    full = directives(job_script(ClusterConfig(kind="slurm", gpu=HEAVY), "gpu", tmp_path))
    config = ClusterConfig(kind="slurm", gpu=replace(HEAVY, skip_directives=(skipped,)))
    assert directives(job_script(config, "gpu", tmp_path)) == [one for one in full if one != gone]


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "100%", "a$b"])
def test_what_the_worker_is_called_with(tmp_path, name):
    # As Slurm runs the script: in a shell, with the job's variables.
    run_dir = tmp_path / name
    fake = tmp_path / name / "bin" / "python"
    fake.parent.mkdir(parents=True)
    fake.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))\n"
    )
    fake.chmod(0o755)
    config = SlurmJobConfig(
        python=shlex.quote(str(fake)),
        local_directory="$SCRATCH/a b",
        prologue=("export MINE='1 2'", "export OMP_NUM_THREADS=2"),
    )
    with keys_in(run_dir) as keys:
        script = full_script(
            ClusterConfig(kind="slurm", cpu=config),
            "cpu",
            run_dir,
            address="tls://10.0.0.1:7",
            name="geochip-x",
            keys=keys,
        )
        done = subprocess.run(
            ["bash"], input=script, capture_output=True, text=True, check=True, timeout=60,
            env={**os.environ, "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2", "SCRATCH": "/scratch/me"},
        )  # fmt: skip
        words, environ, _ = json.loads(done.stdout)
        assert words[:3] == ["-m", "distributed.cli.dask_worker", "tls://10.0.0.1:7"]
        assert option(words, "--name") == "77-2"
        assert option(words, "--local-directory") == "/scratch/me/a b"
        for name_, flag in (("ca", "--tls-ca-file"), ("cert", "--tls-cert"), ("key", "--tls-key")):
            assert option(words, flag) == str(keys.directory / f"{name_}.pem")
            assert Path(option(words, flag)).is_file()
        assert option(words, "--protocol") == "tls://"
    assert environ["MINE"] == "1 2"
    # A person's own lines have the last word.
    assert environ["OMP_NUM_THREADS"] == "2"
    (output,) = (line for line in directives(script) if line.startswith("--output"))
    assert output == f'--output="{str(run_dir).replace("%", "%%")}/logs/geochip-x-%j.out"'


@pytest.mark.parametrize("line", ["false", "false # at some sites", "it's-no-command", "exit 3"])
def test_a_line_of_the_prologue_that_fails_keeps_python_from_starting(tmp_path, line):
    script = script_of(tmp_path, prologue=("true", line), python="echo started")
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == (3 if line.startswith("exit") else 1)
    assert done.stdout == (
        "" if line.startswith("exit") else f"geochip: this line of cluster.cpu.prologue failed: {line}\n"
    )
    state = JobState(job_id="7", state="FAILED")
    if done.stdout:
        described = type("", (), {"key": "cluster.cpu", "address": ""})
        assert cause_of(done.stdout, state, described).startswith(
            "a line of cluster.cpu.prologue failed on the node (see"
        )


def test_dask_understands_the_environment_of_the_script(tmp_path):
    exports = "\n".join(line for line in script_of(tmp_path).splitlines() if line.startswith("export"))
    shown = "import dask, json; print(json.dumps([dask.config.get(k) for k in ('distributed.worker.preload', 'distributed.worker.profile.enabled', 'distributed.admin.tick.interval')]))"
    script = f"{exports}\n{shlex.quote(sys.executable)} -c {shlex.quote('import distributed; ' + shown)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == [["import gc; gc.freeze()"], False, "1s"]


def test_without_tls_only_by_word(tmp_path):
    assert "--tls" not in script_of(tmp_path, insecure=True)
    assert "tcp://ADDRESS:PORT" in script_of(tmp_path, insecure=True)


def test_a_log_directory_that_slurm_cannot_write_to(tmp_path):
    with pytest.raises(
        InputError,
        match=r"whose name has a backslash, a quotation mark or a control character; name another log_directory",
    ):
        script_of(tmp_path, log_directory='/logs/a"b')


# --- profiles


@pytest.fixture
def profiles(tmp_path):
    path = tmp_path / "jobqueue.yaml"

    def write(text):
        path.write_text(text)
        return str(path)

    return write


def test_a_profile_is_dask_jobqueues_own_and_the_run_file_overrides_it(tmp_path, profiles):
    path = profiles(
        "jobqueue:\n  atlas:\n    queue: atlas\n    account: forest\n    cores: 2\n    memory: 6GiB\n    walltime: '02:00:00'\n"
        "    death-timeout: 60\n    job_extra_directives: ['--gres=gpu:1']\n    job-script-prologue: [module load a]\n"
        "    worker-extra-args: [--lifetime, 5m]\n    interface: ib0\n    log-directory: /logs\n    python: /opt/python\n"
    )
    script = script_of(tmp_path, profiles=path, profile="atlas", account="mine", prologue=("module load b",))
    assert directives(script) == [
        "-J chip-worker-geochip", "-p atlas", "-A mine", "-n 1", "--cpus-per-task=2", "--mem=6G", "-t 02:00:00",
        '--output="/logs/chip-worker-geochip-%j.out"', "--nodes=1", "--requeue", "--open-mode=append", "--gres=gpu:1",
    ]  # fmt: skip
    words = worker_words(script)
    assert words[0] == "/opt/python"
    assert option(words, "--interface") == "ib0"
    assert option(words, "--death-timeout") == "60"
    assert words.count("--lifetime") == 1
    assert option(words, "--lifetime") == "5m"
    lines = script.splitlines()
    (mine,) = (line for line in lines if line.startswith("eval 'module load b' || "))
    assert lines.index("module load a") < lines.index(mine)


def test_old_names_in_a_profile_are_understood(tmp_path, profiles):
    path = profiles(
        "jobqueue:\n  old:\n    project: forest\n    job-extra: ['--exclusive']\n    env-extra: [module load a]\n"
        "    header-skip: ['--mem']\n    extra: ['--resources=x=1']\n"
    )
    script = script_of(tmp_path, profiles=path, profile="old")
    assert {"-A forest", "--exclusive"} <= set(directives(script))
    assert not any(one.startswith("--mem") for one in directives(script))
    assert "module load a" in script.splitlines()
    assert "--resources=x=1" in worker_words(script)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobqueue:\n  atlas: {}\n  ceres: {}\n", r"cluster.cpu.profile: there is no profile 'altas' in .*jobqueue.yaml; there are: atlas, ceres"),
        ("jobqueue:\n  altas:\n    partition: x\n", r"altas in .* has partition, which dask-jobqueue does not know \(a partition is called queue\); known are account, "),
        ("jobqueue:\n  altas:\n    processes: 24\n", r"has processes: 24, but a job is one worker here: leave processes out, and divide cores and memory by it"),
        ("jobqueue:\n  altas:\n    walltime: 12:00:00\n", r"has walltime: 43200; put it in quotes and write a time such as 02:30:00"),
        ("jobqueue:\n  altas:\n    memory: lots\n", r"has memory: 'lots'; put it in quotes and write an amount such as 8GiB"),
        ("slurm: {}\n", r"cluster.profiles: .*jobqueue.yaml must hold profiles under the key jobqueue"),
        ("a: [\n", r"cluster.profiles: .* is no valid YAML"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_profile_is_told(tmp_path, profiles, text, words):
    with pytest.raises(InputError, match=words):
        script_of(tmp_path, profiles=profiles(text), profile="altas")


def test_a_file_of_profiles_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"cluster.profiles: /nowhere.yaml cannot be read: No such file"):
        script_of(tmp_path, profiles="/nowhere.yaml", profile="x")


# --- the run file


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--cluster.cpu.acount=x", "cluster.cpu.acount: there is no such key; did you mean cluster.cpu.account?"),
        ("--cluster.cpu.memory=lots", "cluster.cpu.memory: 'lots' is not allowed: must be an amount of memory of at least 256MiB, such as 8GiB"),
        ("--cluster.cpu.memory=8", "cluster.cpu.memory: '8' is not allowed: must be an amount of memory"),
        ("--cluster.gpu.walltime=soon", "cluster.gpu.walltime: 'soon' is not allowed: must be a time of at least a minute as Slurm writes it"),
        ("--cluster.gpu.walltime=0:30", "must be a time of at least a minute"),
        ("--cluster.gpu.cores=0", "cluster.gpu.cores: 0 is not allowed: must be 1 to 100000, or null"),
        ("--cluster.cpu.partition=a b", "cluster.cpu.partition: 'a b' is not allowed: must be one word, or null"),
        ("--cluster.cpu.directives=[constraint=a]", "cluster.cpu.directives: ['constraint=a'] is not allowed: must be options of sbatch, each in one line, such as --constraint=a100"),
        ("--cluster.cpu.directives=[--array=1-3]", "a job is one worker; cluster.workers says how many"),
        ("--cluster.cpu.directives=[-N2]", "a job is one worker; cluster.workers says how many"),
        ("--cluster.cpu.directives=[--output=x]", "must not hold -o, --output, -e, --error: use cluster.cpu.log_directory"),
        ("--cluster.cpu.skip_directives=['']", "cluster.cpu.skip_directives: [''] is not allowed: must be names of directives, such as --mem"),
        ("--cluster.wait_minutes=0", "cluster.wait_minutes: 0.0 is not allowed: must be greater than 0 and at most 1000000"),
        ("--cluster.max_replacements=-1", "cluster.max_replacements: -1 is not allowed: must be 0 to 1000000"),
    ],
)  # fmt: skip
def test_impossible_values_are_named(flag, words):
    with pytest.raises(InputError) as caught:
        parse_run_config([flag], command="chipping", description="")
    assert words in str(caught.value)


def test_faults_deep_in_a_run_file_are_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("cluster:\n  cpu:\n    acount: x\n  gpu: 3\n  kinds: slurm\n")
    with pytest.raises(InputError) as caught:
        parse_run_config([f"--config={path}"], command="chipping", description="")
    lines = str(caught.value).splitlines()
    assert lines[0] == "cluster.cpu.acount: there is no such key; did you mean cluster.cpu.account?"
    assert lines[1] == "cluster.kinds: there is no such key; did you mean cluster.kind?"
    assert lines[2].startswith("cluster.gpu: 3 is not allowed: must be a section with the keys profile, account, ")


def test_what_yaml_makes_a_number_of_is_told(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("cluster:\n  cpu:\n    walltime: 90\n")
    with pytest.raises(
        InputError, match=r"cluster.cpu.walltime: 90 is not allowed: must be text or null; put it in quotes"
    ):
        parse_run_config([f"--config={path}"], command="chipping", description="")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("02:30:00", 9000), ("1-12", 129600), ("1-02:30", 95400), ("2-00:00:01", 172801)],
)
def test_walltimes_are_slurms(text, seconds):
    assert walltime_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "mib"), [("8GiB", 8192), ("8G", 8192), ("8 GB", 8192), ("1.5TiB", 1572864), ("512M", 512)]
)
def test_memory_is_counted_as_slurm_does(text, mib):
    assert memory_mib(text) == mib


# --- before anything is submitted


def fake_commands(directory, **scripts):
    directory.mkdir(exist_ok=True)
    for name, body in scripts.items():
        path = directory / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
    return str(directory)


def test_no_sbatch_is_told_with_what_else_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", fake_commands(tmp_path / "bin", squeue="", scontrol=""))
    with pytest.raises(InputError) as caught:
        require_cluster(ClusterConfig(kind="slurm"), run_dir=tmp_path)
    assert str(caught.value) == (
        "cluster.kind: sbatch, scancel is not on PATH, so no jobs can be submitted from here; run the command on a login "
        "node of the cluster, or in a job (module load slurm, on some sites); on one machine use cluster.kind: local"
    )
    monkeypatch.setenv("APPTAINER_CONTAINER", "/img/geo.sif")
    with pytest.raises(
        InputError, match=r"runs inside the container /img/geo.sif, where Slurm is not: run the command outside of it"
    ):
        require_cluster(ClusterConfig(kind="slurm"), run_dir=tmp_path)


def test_srun_needs_a_job(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(
        InputError, match=r"cluster.kind: srun works inside a Slurm job only, and SLURM_JOB_ID is not set"
    ):
        require_cluster(ClusterConfig(kind="srun"), run_dir=tmp_path)


def test_an_interface_that_is_not_here_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", fake_commands(tmp_path / "bin", squeue="", scontrol="", sbatch="", scancel=""))
    with pytest.raises(InputError) as caught:
        require_cluster(ClusterConfig(kind="slurm", scheduler_interface="ib7"), run_dir=tmp_path)
    assert f"cluster.scheduler_interface: 'ib7' is no network interface of {platform.node()}; there are " in str(
        caught.value
    )
    # Those of the nodes may have other names than this machine's.
    require_cluster(ClusterConfig(kind="slurm", cpu=SlurmJobConfig(interface="ib7")), run_dir=tmp_path)


# --- Slurm's commands


def test_the_environment_of_a_surrounding_job_is_left_behind():
    environ = {
        "PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_CPU_BIND": "x", "SBATCH_MEM": "1", "SRUN_X": "1",
        "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1", "GDAL_DATA": "/d", "SLURM_JWT": "key",
    }  # fmt: skip
    assert slurm.clean_environment(environ) == {
        "PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "GDAL_DATA": "/d", "SLURM_JWT": "key",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("Batch job submission failed: Invalid partition name specified", "name another partition (cluster.gpu.partition"),
        ("Batch job submission failed: Invalid account or account/partition combination specified", "name an account that you may use there (cluster.gpu.account"),
        ("Invalid qos specification", "(cluster.gpu.qos), or leave it out"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "ask for less time (cluster.gpu.walltime"),
        ("Memory specification can not be satisfied", "ask for less memory (cluster.gpu.memory"),
        ("Requested node configuration is not available", "lower cores, memory or gres of cluster.gpu"),
        ("More processors requested than permitted", "ask for fewer cores (cluster.gpu.cores"),
        ("Invalid generic resource (gres) specification", "name generic resources that there are (cluster.gpu.gres"),
        ("Invalid feature specification", "--constraint in cluster.gpu.directives"),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "ask for less"),
        ("Unable to contact slurm controller (connect failure)", "try `scontrol ping`"),
        ("Batch job submission failed: Requested reservation is invalid", "name a reservation that you may use (--reservation in cluster.gpu.directives"),
        ("Access denied to requested reservation", "name a reservation that you may use"),
        ("Invalid Trackable RESource (TRES) specification", "name resources that there are (cluster.gpu.gres"),
        ("Invalid wckey specification", "correct --wckey in cluster.gpu.directives"),
        ("Job dependency problem", "correct --dependency in cluster.gpu.directives"),
        ("unrecognized option '--nonsense'", "correct cluster.gpu.directives"),
        ("something new", "see `man sbatch`, or ask the site's staff"),
    ],
)  # fmt: skip
def test_every_refusal_has_a_remedy(said, words):
    assert words in slurm.remedy(said, "cluster.gpu")


def test_a_command_that_fails_is_told_in_its_own_words(tmp_path, monkeypatch):
    sbatch = "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1"
    monkeypatch.setenv(
        "PATH", f"{fake_commands(tmp_path / 'bin', sbatch=sbatch, squeue='sleep 60')}:{os.environ['PATH']}"
    )
    with pytest.raises(SlurmError) as caught:
        slurm.run_slurm("sbatch")
    assert str(caught.value).startswith(
        "sbatch: Batch job submission failed: Invalid qos specification; name a quality"
    )
    assert caught.value.stderr == "Batch job submission failed: Invalid qos specification"
    with pytest.raises(SlurmError, match=r"squeue did not answer within 1 s; Slurm's controller may be busy or down"):
        slurm.run_slurm("squeue", timeout=1)


def test_lines_of_squeue_become_states():
    states = slurm.parse_squeue(
        "12|PENDING|2026-03-01T14:00:00||Priority\n13|RUNNING|2026-03-01T13:00:00|node[1-2]|None\n"
        "14|PENDING|N/A||ReqNodeNotAvail, UnavailableNodes:a|b\n15|CANCELLED|N/A||None\nsqueue: error: noise\n"
    )
    assert states["12"] == JobState(
        job_id="12", state="PENDING", reason="Priority", expected_start="2026-03-01T14:00:00"
    )
    assert states["13"] == JobState(job_id="13", state="RUNNING", nodes="node[1-2]", started="2026-03-01T13:00:00")
    assert states["14"].reason == "ReqNodeNotAvail, UnavailableNodes:a|b"
    assert states["14"].expected_start is None
    assert [job_id for job_id, state in states.items() if state.ended] == ["15"]


def test_lines_of_scontrol_become_values():
    line = "JobId=7 JobName=a b UserId=me(1000) ExitCode=1:0 Restarts=2 NodeList=node1 Comment=k=v Command=/x y/z.sh WorkDir=/w"
    found = slurm.parse_scontrol(line)
    assert (found["JobName"], found["ExitCode"], found["Restarts"], found["Command"]) == (
        "a b",
        "1:0",
        "2",
        "/x y/z.sh",
    )


def test_partitions_are_read_with_the_most_that_a_node_has():
    shown = (
        "PartitionName=batch AllowGroups=ALL AllowAccounts=ALL Default=YES MaxTime=UNLIMITED State=UP TotalNodes=3\n"
        "PartitionName=gpu-a100-mig7 AllowAccounts=forest,soil Default=NO MaxTime=2-00:00:00 State=DOWN TotalNodes=1\n"
    )
    listed = (
        "batch|2|48|192000|(null)\nbatch|1|96|1536000+|(null)\ngpu-a100-mig7|1|128|1024000|gpu:a100_1g.10gb:7(S:0-1)\n"
    )
    found = slurm.parse_partitions(shown, listed)
    batch, gpu = found["batch"], found["gpu-a100-mig7"]
    assert (batch.nodes, batch.cpus_per_node, batch.memory_per_node, batch.gres) == (3, 96, 1536000, "")
    assert (batch.up, batch.default, batch.allow_accounts) == (True, True, "ALL")
    assert (gpu.up, gpu.default, gpu.max_time, gpu.allow_accounts) == (False, False, "2-00:00:00", "forest,soil")
    assert gpu.gres == "gpu:a100_1g.10gb:7(S:0-1)"


@pytest.mark.parametrize(
    ("reason", "words", "hopeless"),
    [
        ("Priority", "jobs with a higher priority are before it (Priority)", False),
        ("Resources", "it waits until enough nodes are free", False),
        ("BeginTime", "its begin time has not come", False),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "reserved (maintenance, often) or down (ReqNodeNotAvail, Unav", False),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "down, drained", False),
        ("PartitionTimeLimit", "asks for more time than the partition allows", True),
        ("PartitionNodeLimit", "it asks for more nodes than the partition has at the moment", False),
        ("BadConstraints", "no node has what it asks for", True),
        ("PartitionConfig", "no node of its partition has what it asks for", True),
        ("Job's account not permitted to use this partition (a allows b not c)", "it may not use the partition (Job's", True),
        ("MaxMemPerLimit", "it asks for more memory than one job may have there", True),
        ("ReservationDeleted", "its reservation is no more", True),
        ("AssocGrpWallLimit", "the budget of your account is used up", True),
        ("QOSGrpWallLimit", "the budget of the quality of service is used up", True),
        ("InvalidAccount", "its account is not valid", True),
        ("InvalidQOS", "its quality of service is not valid", True),
        ("AssocGrpCpuLimit", "your account has as much running as its limits allow", False),
        ("QOSMaxJobsPerUserLimit", "the quality of service has as much running as its limits allow", False),
        ("QOSMaxCpuPerJobLimit", "than one job may have by the limits of the quality of service", True),
        ("QOSMinGRES", "than one job may have", True),
        ("AssocMaxWallDurationPerJobLimit", "than one job may have by the limits of your account", True),
        ("AssocGrpCPUMinutesLimit", "the budget of your account is used up", True),
        ("AssocGrpCPURunMinutesLimit", "has as much running as its limits allow", False),
        ("DependencyNeverSatisfied", "it waits for a job that failed", True),
        ("SomethingNew", "Slurm does not start it (SomethingNew)", False),
        ("", "Slurm has not looked at it yet", False),
    ],
)  # fmt: skip
def test_reasons_in_words(reason, words, hopeless):
    found = slurm.explain(reason)
    assert words in found.words
    assert found.hopeless is hopeless
    assert found.remedy


# --- why a worker did not come


class Described:
    key, address = "cluster.cpu", "tls://10.0.0.1:7"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ValueError: 'ib9' is not a valid network interface. Valid network interfaces are: ['lo']", "cluster.cpu.interface is not there on the node"),
        ("slurm_script: line 23: /x/python: No such file or directory", "Python could not be started on the node (see the log); correct cluster.cpu.python"),
        ("slurm_script: line 9: apptainer: command not found", "Python could not be started"),
        ("/usr/bin/python: No module named distributed.cli", "Python on the node lacks a module"),
        ("distributed.nanny - INFO - Closing Nanny. Reason: failure-to-start-<class 'TimeoutError'>", "could not reach the scheduler at tls://10.0.0.1:7; name a network interface"),
        ("Error: Invalid value for '--tls-ca-file': Path '/r/.keys/a/ca.pem' does not exist.", "the node cannot read the keys in run_dir"),
        ("ssl.SSLError: [SSL: CERTIFICATE_VERIFY_FAILED]", "do not agree on TLS"),
        ("slurmstepd: error: Detected 1 oom-kill event(s)", "memory ran out; raise cluster.cpu.memory"),
        ("OSError: [Errno 28] No space left on device", "name another cluster.cpu.local_directory"),
        ("", "they wrote no log; see that cluster.cpu.log_directory is on a disk that the nodes share"),
        ("hm", "see the log for why"),
    ],
)  # fmt: skip
def test_causes_are_read_from_the_log(text, words):
    assert words in cause_of(text, None, Described)


def test_a_jobs_state_may_say_more_than_its_log():
    assert (
        cause_of("hm", JobState(job_id="1", state="OUT_OF_MEMORY"), Described)
        == "memory ran out; raise cluster.cpu.memory"
    )
    assert "somebody cancelled them" in cause_of("hm", JobState(job_id="1", state="CANCELLED"), Described)


def test_the_end_of_a_log_is_without_the_insides_of_tracebacks(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(
        b"x" * 20000 + b"\nTraceback (most recent call last):\n  File a, line 1\n    call()\nValueError: \xff no\n\n"
    )
    assert end_of(log).splitlines()[-2:] == ["Traceback (most recent call last):", "ValueError: \ufffd no"]
    assert len(end_of(log)) < 9000
    assert end_of(tmp_path / "none") == ""


# --- one allocation


def test_the_step_of_an_allocation(monkeypatch, tmp_path):
    for name, value in (("SLURM_CPUS_PER_TASK", "3"), ("SLURM_MEM_PER_NODE", "9000"), ("SLURM_NNODES", "2")):
        monkeypatch.setenv(name, value)
    script = worker_script(HEAVY, "cluster.gpu", "tcp://10.0.0.1:7", 6, None)
    assert "--memory-limit 20480MiB" in script
    assert "exec apptainer exec --nv /img/geo.sif python -m distributed.cli.dask_worker tcp://10.0.0.1:7" in script
    assert '--local-directory "$TMPDIR/dask"' in script
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0
    assert "eval 'module load apptainer' || " in script
    # A node's memory is for the three workers on it, but for what the driver takes on one of them.
    for given, each in (("9000", "2658"), ("1500", "250")):
        monkeypatch.setenv("SLURM_MEM_PER_NODE", given)
        bare = worker_script(SlurmJobConfig(), "cluster.gpu", "tcp://10.0.0.1:7", 6, None)
        assert f"--memory-limit {each}MiB" in bare
    command = srun_command(SlurmJobConfig(directives=('--comment="two words"',)), 6, "true")
    assert command[0] == "srun"
    assert {"--overlap", "--ntasks=6", "--cpus-per-task=3", "--kill-on-bad-exit=0", "--comment=two words"} <= set(
        command
    )


# --- the scheduler


def test_a_scheduler_is_patient_with_workers_that_come_and_go():
    cluster = ClusterConfig(kind="slurm", scheduler_interface="lo")
    with SchedulerHere(cluster, None, None) as here:
        scheduler = here.client.cluster.scheduler
        assert scheduler.allowed_failures == 10
        assert scheduler.worker_ttl == 15 * 60
        assert dask.config.get("distributed.deploy.lost-worker-timeout") == "15 minutes"
    assert dask.config.get("distributed.scheduler.allowed-failures") != 10


@pytest.mark.parametrize(
    ("environ", "over"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": "login1"}, "-J {user}@login1 "),
        ({"SLURM_JOB_ID": "7", "SLURM_SUBMIT_HOST": platform.node()}, ""),
    ],
)
def test_the_way_to_the_dashboard(monkeypatch, capsys, environ, over):
    for name in ("SLURM_JOB_ID", "SLURM_SUBMIT_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    cluster = ClusterConfig(kind="slurm", scheduler_interface="lo", dashboard=True)
    with SchedulerHere(cluster, None, None) as here:
        link = here.client.dashboard_link
        port, user = re.search(r":(\d+)/", link)[1], getpass.getuser()
        assert (
            f"from your own machine: ssh {over.format(user=user)}-L {port}:127.0.0.1:{port} {user}@{platform.node()}, then"
        ) in capsys.readouterr().err
        with urllib.request.urlopen(link, timeout=60) as page:
            # Without bokeh there would be a page as well, which says that it is missing.
            assert "bokeh.min.js" in page.read().decode()


# --- keys


def test_keys_are_for_this_user_alone_and_go_with_the_run(tmp_path):
    run_dir = tmp_path / "run"
    before = os.umask(0)
    try:
        with keys_in(run_dir) as keys:
            files = list(keys.directory.iterdir())
            assert {file.name for file in files} == {"ca.pem", "cert.pem", "key.pem"}
            assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
            assert {stat.S_IMODE(one.stat().st_mode) for one in (keys.directory, keys.directory.parent)} == {0o700}
    finally:
        os.umask(before)
    assert list(run_dir.iterdir()) == []


def test_keys_that_a_killed_run_left_are_swept(tmp_path):
    me = psutil.Process()
    host, now = platform.node(), f"{me.create_time():.0f}"
    gone = subprocess.Popen(["true"])
    gone.wait()
    names = {
        f"{host}-{gone.pid}-{now}": False,  # ended
        f"{host}-{me.pid}-1000": False,  # its number was given to another process
        f"{host}-{os.getppid()}-{psutil.Process(os.getppid()).create_time():.0f}": True,
        "another-host-77-1000": True,
        "another-host-79-1000": True,  # too young to tell
        "another-host-78-1000": False,  # for months
    }
    for name in names:
        (tmp_path / ".keys" / name).mkdir(parents=True)
        (tmp_path / ".keys" / name / "key.pem").write_text("secret")
    old = time.time() - 100 * 24 * 3600
    os.utime(tmp_path / ".keys" / "another-host-78-1000", (old, old))
    with keys_in(tmp_path) as keys:
        left = {path.name for path in (tmp_path / ".keys").iterdir()} - {keys.directory.name}
        assert left == {name for name, stays in names.items() if stays}
        os.utime(tmp_path / ".keys" / "another-host-79-1000", (old, old))
    assert {path.name for path in (tmp_path / ".keys").iterdir()} == left - {"another-host-79-1000"}


def test_keys_that_cannot_be_written(tmp_path):
    (tmp_path / ".keys").write_text("in the way")
    with (
        pytest.raises(InputError, match=r"run_dir: the workers' keys cannot be written to .*; choose another run_dir"),
        keys_in(tmp_path),
    ):
        pass


# --- signals


def test_a_signal_that_ends_a_run_has_its_exit_code(capsys):
    def main(_):
        raise Terminated(signal.SIGTERM)

    assert run_command(main, []) == 143
    assert capsys.readouterr().err == (
        "geochip: ended by SIGTERM; what is finished is kept, and the same command goes on from there\n"
    )
