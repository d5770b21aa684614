"""The development Slurm (cluster/dev), for every test of this directory."""

import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from helpers import ROOT

HERE = Path(__file__).parent
ENDED = frozenset({
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
})  # fmt: skip


def pytest_collection_modifyitems(items):
    """Mark this directory's tests, and run them after all others: no other test sees a Slurm in its environment."""
    own = [item for item in items if HERE in item.path.parents]
    for item in own:
        item.add_marker(pytest.mark.slurm)
    items[:] = [item for item in items if HERE not in item.path.parents] + own


class DevSlurm:
    """A running development Slurm: nodes node1 and node2 with 4 CPUs, 8000 MB and 1 GPU each.

    Partitions: batch (the default), gpu, short (10 minutes at most), members (which refuses every job, for its account)
    and preempt (whose jobs are requeued when one of another partition needs their place).
    """

    def __init__(self, directory):
        """`conf` is for SLURM_CONF, `temporary` a directory that goes with the cluster."""
        self.directory = Path(directory)
        self.conf = self.directory / "etc" / "slurm.conf"
        self.temporary = self.directory / "tmp"
        self.temporary.mkdir()

    def run(self, *command):
        """A Slurm command's output."""
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
        return done.stdout

    def submit(self, *arguments):
        """sbatch with these arguments; returns the job's id."""
        return self.run("sbatch", "--parsable", *arguments).strip().split(";")[0]

    def show(self, job_id):
        """What `scontrol show job` says of a job, ended ones too, by name."""
        line = self.run("scontrol", "show", "job", "--oneliner", job_id)
        return dict(re.findall(r"(?:^| )([\w/:]+)=(.*?)(?= [\w/:]+=|\s*$)", line))

    def wait(self, job_id, states=ENDED, timeout=120):
        """Wait until a job is in one of the states; returns it."""
        states = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout
        while (state := self.show(job_id)["JobState"]) not in states:
            assert time.monotonic() < end, f"job {job_id} is {state} after {timeout} s, not one of {sorted(states)}"
            time.sleep(0.2)
        return state

    def states(self):
        """State of every job that is in the queue, by id."""
        lines = self.run("squeue", "--noheader", "--states=all", "--format=%A %T").splitlines()
        found = dict(line.split() for line in lines)
        return {job_id: state for job_id, state in found.items() if state not in ENDED}

    def jobs(self):
        """Ids of the jobs that are in the queue."""
        return list(self.states())

    def clean_up(self):
        """Cancel what a test has left and make all nodes usable; returns what there was.

        A job that has been cancelled is in the queue until its processes have ended: that is no fault.
        """
        end = time.monotonic() + 10
        while left := self.states():
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        if left:
            self.run("scancel", "--full", *left)
        end = time.monotonic() + 30
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.2)
        for line in self.run("sinfo", "--noheader", "--Node", "--partition=batch", "--format=%N %T").splitlines():
            node, state = line.split()
            if state.startswith(("down", "drain")):
                self.run("scontrol", "update", f"nodename={node}", "state=resume")
        return left


def _missing():
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian packages slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "the development Slurm has to be started by root"
    return None


@pytest.fixture(scope="session")
def slurm():
    """A Slurm of its own for these tests; SLURM_CONF is set in this process."""
    if reason := _missing():
        if os.environ.get("GEOCHIP_REQUIRE_SLURM") == "1":
            pytest.fail(f"no Slurm, though GEOCHIP_REQUIRE_SLURM=1 asks for one: {reason}")
        pytest.skip(f"no Slurm: {reason}")
    # The path of a socket is limited: pytest's own directories are too deep.
    directory = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    scripts = ROOT / "cluster" / "dev"
    settings = {"NODES": 2, "CPUS": 4, "MEM": 8000, "GPUS": 1, "GRACE": 0}
    environment = {**os.environ, **{f"SLURM_DEV_{name}": str(value) for name, value in settings.items()}}
    with pytest.MonkeyPatch.context() as patch:
        # This process may itself be in a job of another Slurm.
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            patch.delenv(name)
        up = subprocess.run(
            [scripts / "up.sh", directory], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        try:
            assert up.returncode == 0, up.stderr
            cluster = DevSlurm(directory)
            patch.setenv("SLURM_CONF", str(cluster.conf))
            yield cluster
        finally:
            down = subprocess.run(
                [scripts / "down.sh", directory], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                check=False,
            )  # fmt: skip
            shutil.rmtree(directory, ignore_errors=True)
    assert down.stderr == "", "down.sh found what a test had left behind"


@pytest.fixture(autouse=True)
def nothing_left(slurm):
    """No test leaves a job in the queue."""
    yield
    left = slurm.clean_up()
    assert not left, f"left in the queue: {left}"
