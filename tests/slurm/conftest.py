"""The development Slurm (cluster/dev), for every test of this directory."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from helpers import ROOT

HERE = Path(__file__).parent
PACKAGES = "Debian packages slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core"
ENDED = frozenset({
    "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
})  # fmt: skip


def pytest_collection_modifyitems(items):
    """Mark this directory's tests."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


def alive(pid):
    """Whether a process runs; one that has ended stays a zombie where nobody asks for it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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
        self._controllers = []

    def run(self, *command):
        """A Slurm command's output."""
        done = subprocess.run(
            [*map(str, command)], env={**os.environ, "SLURM_CONF": str(self.conf)}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
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

    def restart_controller(self, between):
        """Stop slurmctld, call `between`, and start it again."""
        pids = self.directory / "pids"
        old = re.search(r"^slurmctld (\d+)$", pids.read_text(), re.MULTILINE)[1]
        command = Path(f"/proc/{old}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        controller = psutil.Process(int(old))
        environment = controller.environ()
        controller.terminate()
        try:
            while alive(controller.pid):
                time.sleep(0.05)
            between()
        finally:
            with (self.directory / "log" / "slurmctld.again.out").open("ab") as log:
                new = subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True,
                )  # fmt: skip
            # For down.sh, which stops what stands there.
            pids.write_text(pids.read_text().replace(f"slurmctld {old}\n", f"slurmctld {new.pid}\n"))
        self._controllers.append(new)

    def reap(self):
        """Take leave of controllers that were started here, once they have been stopped."""
        for controller in self._controllers:
            controller.wait(30)


def _missing(programs):
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} ({PACKAGES})"
    if os.geteuid() != 0:
        return "the development Slurm has to be started by root"
    return None


@contextlib.contextmanager
def development_slurm(*programs, **settings):
    """A Slurm of its own; SLURM_CONF is set in this process meanwhile."""
    if reason := _missing(("munged", "slurmctld", "slurmd", "sbatch", "unshare", *programs)):
        if os.environ.get("GEOCHIP_REQUIRE_SLURM") == "1":
            pytest.fail(f"no Slurm, though GEOCHIP_REQUIRE_SLURM=1 asks for one: {reason}")
        pytest.skip(f"no Slurm: {reason}")
    # The path of a socket is limited: pytest's own directories are too deep.
    directory = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")
    scripts = ROOT / "cluster" / "dev"
    settings = {"NODES": 2, "CPUS": 4, "MEM": 8000, "GPUS": 1, "GRACE": 0, **settings}
    environment = {**os.environ, **{f"SLURM_DEV_{name}": str(value) for name, value in settings.items()}}
    with pytest.MonkeyPatch.context() as patch:
        # This process may itself be in a job of another Slurm.
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            patch.delenv(name)
        up = subprocess.run(
            [scripts / "up.sh", directory], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        cluster = DevSlurm(directory)
        try:
            assert up.returncode == 0, up.stderr
            patch.setenv("SLURM_CONF", str(cluster.conf))
            yield cluster
        finally:
            daemons = [int(line.split()[1]) for line in (Path(directory) / "pids").read_text().splitlines()]
            down = subprocess.run(
                [scripts / "down.sh", directory], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                check=False,
            )  # fmt: skip
            cluster.reap()
            shutil.rmtree(directory, ignore_errors=True)
    assert not [pid for pid in daemons if alive(pid)], "down.sh left daemons"
    assert down.stderr == "", "down.sh found what a test had left behind"


@pytest.fixture(scope="package")
def running_slurm():
    """The Slurm that most of these tests share; no test of another directory sees it in its environment."""
    with development_slurm() as cluster:
        yield cluster


@pytest.fixture
def slurm(running_slurm):
    """A Slurm; no test leaves a job in its queue."""
    yield running_slurm
    nothing_left(running_slurm)


@pytest.fixture
def start_process(slurm):
    """Starts a command; what a test leaves of it is killed."""
    started = []

    def begin(words):
        process = subprocess.Popen(
            [*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def nothing_left(slurm):
    """See that no job is left in the queue."""
    left = slurm.clean_up()
    assert not left, f"left in the queue: {left}"
