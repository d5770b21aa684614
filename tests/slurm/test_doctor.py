import re
import subprocess
import sys

import pytest

from geochip import doctor
from geochip.doctor import workers
from geochip.errors import WorkError
from helpers import data_flags, tree_hash, write_scene

pytestmark = pytest.mark.usefixtures("slurm")


@pytest.fixture
def examine(tmp_path, capsys):
    """Runs the command with kind: slurm; returns its lines of one level ("ok", "warn", "FAIL") by what they are about.

    And where it does not fail, its last line, as "last".
    """
    for split, scene_id in (("train", "1"), ("val", "2"), ("test", "3")):
        write_scene(tmp_path / "data", split, scene_id)
    before = tree_hash(tmp_path)

    def run_main(*flags):
        failed = False
        try:
            doctor.main(
                [
                    f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train", "val", "test"), "--chips.size=32",
                    "--model.architecture=linear", "--cluster.kind=slurm", *map(str, flags),
                ]
            )  # fmt: skip
        except WorkError:
            failed = True
        found = {"ok": {}, "warn": {}, "FAIL": {}}
        lines = capsys.readouterr().out.splitlines()
        if not failed:
            found["last"] = lines.pop()
        for line in lines:
            level, what, text = re.fullmatch(r"(ok|warn|FAIL) +([^:]+): (.*)", line).groups()
            found[level][what] = f"{found[level].get(what, '')}{text}\n"
        assert failed == bool(found["FAIL"])
        assert tree_hash(tmp_path) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
        return found

    return run_main


def test_a_run_on_slurm_that_would_work(examine, tmp_path):
    found = examine(
        "--cluster.gpu.partition=gpu",
        "--cluster.cpu.interface=lo",
        "--cluster.gpu.interface=lo",
    )
    assert not found["FAIL"]
    good = found["ok"]
    assert re.search(r"slurm\S* \d+\.\d+.*; partitions batch, gpu, members", good["slurm"])
    assert re.search(r"partition batch, up, 2 nodes of 4 CPUs and 7.8 GiB, gpu:1; at most UNLIMITED", good["cpu job"])
    assert re.search(r"Slurm takes it: one submitted now would start at 20\S+ on node\d", good["cpu job"])
    assert "partition gpu, up, 2 nodes" in good["gpu job"]
    assert "cluster.cpu.interface: lo, cluster.gpu.interface: lo" in good["interface"]
    for worker in ("cpu worker", "gpu worker"):
        assert re.search(r"started on node\d after \d+ s", good[worker])
        assert f"{tmp_path}: each sees the other's file" in good[worker]
    assert "as here on node" in good["versions"]
    assert re.search(r"dask-scratch-space.* on node\d", good["scratch"])
    assert re.search(r"none on node\d: computes on the CPU", good["gpu"])
    assert found["last"].startswith("nothing was found that would make a run fail")


def test_a_job_whose_gpu_cannot_be_used(examine):
    """The development Slurm's GPUs are names without a device behind them."""
    asked = ["--cluster.gpu.gres=gpu:1", "--cluster.gpu.partition=gpu", "--infer.device=cpu"]
    found = examine(*asked)
    assert re.search(
        r"none that PyTorch can use on node\d, in spite of gres gpu:1: with train.device: auto a run ends there; ",
        found["FAIL"]["gpu"],
    )
    assert list(found["FAIL"]) == ["gpu"]
    assert not examine(*asked, "--train.device=cpu")["FAIL"]


@pytest.mark.parametrize(
    ("flags", "job", "text"),
    [
        (["--cluster.cpu.partition=gpuu"], "cpu job", r"cluster.cpu.partition: there is no partition 'gpuu'; there are batch, gpu"),
        (["--cluster.gpu.memory=100GiB"], "gpu job", r"cluster.gpu.memory: 100.0 GiB is more than any node of partition batch has, 7.8 GiB"),
        (["--cluster.cpu.partition=short", "--cluster.cpu.walltime=00:30:00"], "cpu job", r"cluster.cpu.walltime: 00:30:00 is more than partition short allows, 00:10:00; lower it"),
        (["--cluster.cpu.cores=64"], "cpu job", r"cluster.cpu.cores: 64 are more than any node of partition batch has, 4"),
        (["--cluster.gpu.partition=members"], "gpu job", r"Slurm refuses it: .*Invalid account .*\(cluster.gpu.account"),
        (["--cluster.cpu.directives=[--constraint=a100]"], "cpu job", r"Slurm refuses it: .*Invalid feature.*cluster.cpu.directives"),
        (["--cluster.cpu.profile=nix"], "slurm", r"cluster.cpu.profile: there is no profile 'nix'"),
        (["--cluster.scheduler_interface=ib9"], "interface", r"cluster.scheduler_interface: ib9 is not up here; \S+ has .*lo \(127.0.0.1\)"),
        (["--cluster.gpu.python=apptainer exec no.sif python"], "gpu job", r"there is no image no.sif"),
    ],
)  # fmt: skip
def test_what_slurm_would_not_take(examine, flags, job, text):
    found = examine(*flags, "--no_probe")
    assert re.search(text, found["FAIL"].get(job, "")), found
    assert list(found["FAIL"]) == [job]


def test_generic_resources_that_are_not_there_are_told_more_exactly_than_slurm_does(examine):
    found = examine("--cluster.gpu.gres=gpu:a100:1", "--no_probe")
    assert "Slurm refuses it: allocation failure: Requested node config" in found["FAIL"]["gpu job"]
    assert list(found["FAIL"]) == ["gpu job"]
    assert "cluster.gpu.gres: no node of partition batch has gpu:a100:1; they have gpu:1" in found["warn"]["gpu job"]


def test_a_job_that_would_be_refused_is_not_waited_for(examine, slurm):
    found = examine("--cluster.cpu.partition=gpuu", "--cluster.gpu.partition=members")
    for worker in ("cpu worker", "gpu worker"):
        assert "none was started: see above" in found["warn"][worker]
    assert slurm.jobs() == []


def test_a_walltime_and_memory_that_are_tight_are_told(examine):
    assert (
        "300.0 MiB is less than a worker that chips takes"
        in examine("--cluster.cpu.memory=300MiB", "--no_probe")["warn"]["cpu job"]
    )
    told = examine("--cluster.gpu.memory=1GiB", "--no_probe")["warn"]["gpu job"]
    assert "cluster.gpu.memory: 1.0 GiB is little: PyTorch alone takes up to 0.8 GiB" in told


def test_a_node_that_does_not_see_the_disks(examine, tmp_path, monkeypatch):
    """The workers start in a mount namespace in which the directory of data and chips is another one."""
    monkeypatch.setattr(workers, "SEEN_AFTER", 0.5)
    data = tmp_path / "data"
    python = f"unshare --mount sh -c 'mount -t tmpfs none {data} && exec {sys.executable} \"$@\"' sh"
    found = examine(
        f"--cluster.cpu.python={python}",
        f"--cluster.gpu.python={python}",
        f"--chips.store={data / 'chips.zarr'}",
        "--infer.device=cuda",
    )
    # Both kinds of jobs ask for the same: one worker stands for both.
    assert not any("cpu worker" in found[level] for level in found)
    text = found["FAIL"]["gpu worker"]
    assert re.search(rf"{data} is another one on node\d: neither sees the other's files; put run_dir on a disk", text)
    assert re.search(r"scene_1.tif cannot be read on node\d: No such file or directory", text)
    assert f"{tmp_path}: each sees the other's file" in found["ok"]["gpu worker"]
    assert re.search(r"none on node\d, but infer.device: cuda needs one", found["FAIL"]["gpu"])


def test_a_worker_whose_python_cannot_start(examine):
    """Both kinds of jobs are alike here: one is tried, and the log says why it fails."""
    prologue = "['echo no such python here', 'exit 3']"
    found = examine(f"--cluster.cpu.prologue={prologue}", f"--cluster.gpu.prologue={prologue}")
    text = found["FAIL"]["gpu worker"]
    # The log itself goes with the probe.
    assert re.search(r"2 jobs ended before any worker came: .*; its log ends: .*no such python here", text)
    assert "geochip-doctor" not in text
    assert "what is finished is kept" not in text


def test_a_job_that_waits_is_no_failure(examine, slurm, monkeypatch):
    monkeypatch.setattr(workers, "_MINUTES", 0.05)
    later = [f"--cluster.{jobs}.directives=[--begin=now+1hour]" for jobs in ("cpu", "gpu")]
    found = examine(*later)
    assert not found["FAIL"]
    assert re.search(
        r"none within a minute: job \d+ waits: .*; --wait waits as long as a run would", found["warn"]["gpu worker"]
    )
    assert re.match(
        r"1 check was not made \(gpu worker\), so a run may still fail: .* again with --wait;",
        found["last"],
    )
    # With --wait a run's own patience counts, and its end is a failure.
    found = examine(*later, "--wait", "--cluster.wait_minutes=0.05")
    text = found["FAIL"]["gpu worker"]
    assert re.search(r"no worker for 0.05 minutes \(cluster.wait_minutes\): .*job \d+ waits", text)
    assert slurm.jobs() == []


def test_inside_of_an_allocation(examine, slurm, tmp_path, monkeypatch):
    done = subprocess.run(
        ["salloc", "--no-shell", "-n2", "--mem=3000"], capture_output=True, text=True, timeout=60, check=True
    )
    job_id = re.search(r"Granted job allocation (\d+)", done.stderr)[1]
    try:
        # As salloc sets them in the shell that it starts.
        monkeypatch.setenv("SLURM_JOB_ID", job_id)
        monkeypatch.setenv("SLURM_NTASKS", "2")
        monkeypatch.setenv("SLURM_JOB_NODELIST", slurm.show(job_id)["NodeList"])
        good = examine("--cluster.kind=srun")["ok"]
    finally:
        subprocess.run(["scancel", job_id], check=True)
        slurm.wait(job_id)
    assert re.search(rf"inside job {job_id}: 2 tasks on node\d", good["slurm"])
    assert re.search(r"started on node\d", good["worker"])
    assert f"{tmp_path}: each sees the other's file" in good["worker"]
