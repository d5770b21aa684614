"""cluster/pipeline.sh on a real Slurm: from scenes to scores, and a training that is told to stop."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import ROOT, run, tree_hash
from slurm.runs import left_by

pytestmark = pytest.mark.usefixtures("slurm")

STEPS = ("chip", "train", "infer", "evaluate")

SITE = f"""
GEOCHIP_KIND=slurm
GEOCHIP_PYTHON='{sys.executable}'
GEOCHIP_INTERFACE=lo
GEOCHIP_CHIP_WORKERS=2
GEOCHIP_INFER_WORKERS=2
GEOCHIP_CPU_MEMORY=1G
GEOCHIP_GPU_PARTITION=gpu
GEOCHIP_GPU_GRES=gpu:1
GEOCHIP_GPU_CORES=1
GEOCHIP_GPU_MEMORY=2G
GEOCHIP_DRIVER_MEMORY=1G
"""

RUN_FILE = """
data:
  root: "{data}"
chips:
  size: 64
  per_scene: 8
  {chips}
model:
  architecture: linear
train:
  epochs: {epochs}
  batch_size: 2
  lr: 0.01
  device: cpu
infer:
  device: cpu
  block: 256
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    done = run("geochip.synthetic", directory, "--train=10", "--val=2", "--test=3", "--size=128", "--overwrite")
    assert done.returncode == 0, done.stderr
    # Real scenes among them, where a checkout has some beside it.
    for file in (ROOT.parent / "shared" / "data" / "vegas").glob("*/*"):
        (directory / file.parent.name / file.name).symlink_to(file)
    return directory


@pytest.fixture(scope="module")
def quiet_chips(tmp_path_factory, data):
    """The chips, from one process of this machine."""
    directory = tmp_path_factory.mktemp("quiet")
    (directory / "run.yaml").write_text(RUN_FILE.format(data=data, epochs=2, chips=""))
    quietly("geochip.chipping", directory / "run.yaml", directory)
    return directory / "chips.zarr"


@pytest.fixture
def submit(slurm, tmp_path, data):
    """Submit a run in `tmp_path / out` with pipeline.sh; returns the ids of its jobs, by step."""

    def submit(*options, epochs=2, chips="", site="", out="my run"):
        (tmp_path / "site.env").write_text(SITE + site)
        (tmp_path / "run.yaml").write_text(RUN_FILE.format(data=data, epochs=epochs, chips=chips))
        done = subprocess.run(
            [ROOT / "cluster" / "pipeline.sh", *options, tmp_path / out, tmp_path / "run.yaml"],
            env={
                "PATH": "/usr/bin:/bin", "SLURM_CONF": slurm.conf, "GEOCHIP_SITE": tmp_path / "site.env",
                # For what torchrun and Dask leave there; a short path, since sockets lie in it.
                "TMPDIR": slurm.temporary,
            },
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return dict(re.findall(r"^(\w+) +job (\d+)", done.stdout, re.MULTILINE))

    return submit


def logs(directory):
    return "\n".join(f"---- {file.name}\n{file.read_text()}" for file in sorted((directory / "logs").glob("*.out")))


def quietly(module, run_file, run_dir, *flags):
    """A command on this machine alone, undisturbed."""
    done = run(module, "--config", run_file, "--run_dir", run_dir, "--cluster.workers=1", *flags, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr


def quiet_training(run_file, run_dir):
    """A training of two ranks on this machine, undisturbed."""
    done = run(
        "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "geochip.train_ddp",
        "--config", run_file, "--run_dir", run_dir, OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def log_rows(directory):
    """The training log without what depends on the machine."""
    file = directory / "train" / "log.csv"
    rows = list(csv.DictReader(file.read_text().splitlines())) if file.exists() else []
    return [{key: value for key, value in row.items() if key not in ("seconds", "chips_per_second")} for row in rows]


def test_from_submission_to_scores(slurm, submit, tmp_path, data, quiet_chips):
    jobs = submit(site="GEOCHIP_TRAIN_NODES=2\n")
    out = tmp_path / "my run"
    assert tuple(jobs) == STEPS
    for step in STEPS:
        assert slurm.wait(jobs[step], timeout=200) == "COMPLETED", logs(out)
    assert slurm.show(jobs["train"])["NodeList"] == "node[1-2]"
    assert "global batch 4 = 2 ranks x 2 chips" in logs(out)
    scores = json.loads((out / "eval.json").read_text())
    assert len(scores["per_scene"]) == len(list((data / "test").glob("*.tif"))) >= 3
    assert (out / "logs").stat().st_mode & 0o777 == 0o700

    assert tree_hash(out / "chips.zarr") == tree_hash(quiet_chips)
    # The same by workers that are tasks of one job.
    alone = tmp_path / "in one job"
    shutil.copytree(out / "model", alone / "model")
    (job,) = submit("--steps=infer", site="GEOCHIP_KIND=srun\n", out="in one job").values()
    quietly("geochip.infer", tmp_path / "run.yaml", tmp_path / "quiet", "--model.bundle", out / "model")
    assert slurm.wait(job, timeout=100) == "COMPLETED", logs(alone)
    assert slurm.show(job)["NodeList"] == "node[1-2]"
    assert "Slurm: started 2 workers by srun" in logs(alone)
    predicted = [tree_hash(directory / "predictions.zarr") for directory in (out, alone, tmp_path / "quiet")]
    assert len(set(predicted)) == 1


def test_a_step_that_is_cancelled_takes_its_workers_along(slurm, submit, tmp_path):
    (job,) = submit("--steps=chip", chips="method: grid\n  stride: 2").values()
    out = tmp_path / "my run"
    journal = out / "chips.zarr.journal"
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 5, out)
    assert len(slurm.jobs()) == 3
    slurm.run("scancel", job)
    wait_until(lambda: not slurm.jobs(), out)
    assert "geochip: ended by SIGTERM; what is finished is kept" in logs(out)
    assert left_by(out) == ({"run.yaml"}, [])


def test_a_step_that_fails_ends_those_that_wait_for_it(slurm, submit, tmp_path):
    jobs = submit(site='GEOCHIP_PROLOGUE=("false")\n')
    assert [slurm.wait(jobs[step]) for step in STEPS] == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert "GEOCHIP_PROLOGUE: this line of site.env failed on node" in logs(tmp_path / "my run")


def test_a_batch_script_submitted_alone_from_anywhere(slurm, tmp_path, monkeypatch):
    """Slurm runs a copy of it: it finds site.env and lib.sh by the job's record."""
    cluster = tmp_path / "a copy" / "cluster"
    shutil.copytree(ROOT / "cluster", cluster)
    (cluster / "site.env").write_text(f"GEOCHIP_PYTHON={sys.executable}\n")
    (tmp_path / "run.yaml").write_text("data:\n  root: no scenes here\n")
    monkeypatch.chdir("/")
    log = tmp_path / "the log.out"
    job = slurm.submit(f"--output={log}", cluster / "evaluate.sbatch", tmp_path / "my run", tmp_path / "run.yaml")
    assert slurm.wait(job) == "FAILED"
    assert slurm.show(job)["ExitCode"] == "2:0"
    assert f"there is no prediction store at {tmp_path}/my run" in log.read_text()


def test_a_training_that_is_stopped_twice_goes_on_and_ends_as_if_it_had_not_been(slurm, submit, tmp_path, quiet_chips):
    out, quiet = tmp_path / "my run", tmp_path / "quiet"
    (job,) = submit(
        "--steps=train", chips=f"store: '{quiet_chips}'", epochs=12,
        site="GEOCHIP_GPU_PARTITION=preempt\nGEOCHIP_TRAIN_NODES=2\n",
    ).values()  # fmt: skip
    with ThreadPoolExecutor() as pool:
        undisturbed = pool.submit(quiet_training, tmp_path / "run.yaml", quiet)
        try:
            stop_twice(slurm, job, out)
            assert slurm.wait(job, timeout=200) == "COMPLETED", logs(out)
        finally:
            undisturbed.result()
    assert slurm.show(job)["Restarts"] == "2"
    assert not (out / "train" / "interrupted").exists()
    assert log_rows(out) == log_rows(quiet)
    weights = [directory / "model" / "model.safetensors" for directory in (out, quiet)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def stop_twice(slurm, job, out):
    """First as Slurm does it before the time is up, then as it does it for a job that goes first."""
    wait_until(lambda: len(log_rows(out)) >= 2, out)
    slurm.run("scancel", "--batch", "--signal=USR2", job)
    slurm.wait(job, "PENDING")
    assert re.search(r"interrupted by the file .* in epoch .*; put back into the queue", logs(out))

    wait_until(lambda: "going on after" in logs(out), out)
    other = slurm.submit("--partition=batch", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert slurm.wait(other) == "COMPLETED"
    # Slurm sends SIGTERM, and puts the job back by itself.
    assert "interrupted by SIGTERM in epoch" in logs(out)


def wait_until(condition, out):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, logs(out)
        time.sleep(0.05)
