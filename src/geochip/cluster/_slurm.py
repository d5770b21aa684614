"""Workers as Slurm jobs: their script, made by dask-jobqueue from the run file and a profile, and its submission.

Only the script is dask-jobqueue's. Its clusters return normally when sbatch fails, take a job that died for one that
runs, and replace none of those: here a job is submitted by us, and followed by its id (see `_supervisor`).
"""

import contextlib
import os
import re
import secrets
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import dask
import yaml
from dask.utils import parse_timedelta
from distributed import Client

from geochip.cluster._profiles import Section, full_section
from geochip.cluster._scheduler import SchedulerHere
from geochip.cluster._security import Keys, keys_in
from geochip.cluster._signals import ended_by_signals, undisturbed
from geochip.cluster._supervisor import Supervisor
from geochip.cluster._tasks import watched
from geochip.config import ClusterConfig, one_line, walltime_seconds
from geochip.errors import InputError
from geochip.files import make_directory
from geochip.slurm import SlurmError, clean_environment, inside_a_job, remedy, run_slurm

# On import it makes Ctrl-C end the process with exit code 0, as if all were done.
_on_interrupt = signal.getsignal(signal.SIGINT)
import dask_jobqueue  # noqa: E402
from dask_jobqueue.slurm import SLURMJob  # noqa: E402

signal.signal(signal.SIGINT, _on_interrupt)

DEFAULT_WORKERS = 4
# Seconds in which a worker has to find the scheduler. Many that start at once from a shared disk take minutes.
_DEATH_TIMEOUT = 300
# A busy controller takes its time; sbatch itself tries again for about that long.
_SBATCH_SECONDS = 120
# The one whose section of Dask's configuration the script is made from.
_NAME = "geochip"
# squeue shows eight letters of a job's name: they tell which step its worker is of.
_OF_STEP = {"cpu": "chip", "gpu": "infer"}
# Defaults of the person who calls sbatch. In the environment they would override what the script says.
_OWN_DEFAULTS = {"SBATCH_ACCOUNT": "-A", "SBATCH_PARTITION": "-p", "SBATCH_QOS": "--qos"}


def worker_name(jobs: str) -> str:
    """What the jobs of workers are called, before what tells those of one run from those of another."""
    return f"{_OF_STEP[jobs]}-worker-geochip"


def section_of(cluster: ClusterConfig, jobs: str) -> Section:
    """What a worker's job asks for; see `geochip.cluster._profiles`."""
    # dask-jobqueue's own defaults, without what somebody's configuration has put over them, and better ones.
    path = Path(dask_jobqueue.__file__).with_name("jobqueue.yaml")
    defaults = yaml.safe_load(path.read_text())["jobqueue"]["slurm"]
    # A login shell, as in batch scripts by hand: in others `module` may not be known.
    better = {"shebang": "#!/bin/bash -l", "walltime": "01:00:00", "death-timeout": _DEATH_TIMEOUT}
    return full_section(cluster, jobs, {**defaults, **better})


def _log_pattern(directory: Path, name: str) -> str:
    """The path of a job's log for sbatch, which replaces %j by the job's id."""
    if "\\" in str(directory) or '"' in str(directory) or not one_line(str(directory)):
        raise InputError(
            f"cluster: Slurm's logs cannot be in {str(directory)!r}, whose name has a backslash, a quotation mark or a "
            "control character; name another log_directory in cluster.cpu and cluster.gpu, or another run_dir"
        )
    return f"{directory}/{name}-%j.out".replace("%", "%%").replace("%%j", "%j")


def log_directory(section: Section, run_dir: Path) -> Path:
    """Where the workers' logs go."""
    return Path(os.path.expandvars(section["log-directory"] or run_dir / "logs")).expanduser().absolute()


def job_script(
    cluster: ClusterConfig,
    jobs: str,
    run_dir: Path,
    *,
    address: str = "",
    name: str = "",
    keys: Keys | None = None,
) -> str:
    """The batch script of one worker.

    Args:
        cluster: what the run file says.
        jobs: cpu or gpu.
        run_dir: of the run.
        address: of the scheduler; empty for a look at the script, where there is none yet.
        name: of the job.
        keys: TLS keys; where there is an address, None means none.

    Raises:
        InputError: when the profile is not there or not good.
    """
    section, name = section_of(cluster, jobs), name or worker_name(jobs)
    secure = not cluster.insecure
    address = address or f"{'tls' if secure else 'tcp'}://ADDRESS:PORT"
    tls = [f"{option} {shlex.quote(value)}" for option, value in keys.options] if keys else []
    if secure and keys is None:
        tls = ["--protocol tls:// --tls-ca-file ... --tls-cert ... --tls-key ..."]
    section |= {
        "log-directory": None,
        "job-extra-directives": [
            f'--output="{_log_pattern(log_directory(section, run_dir), name)}"',
            *section["job-extra-directives"],
        ],
        "worker-extra-args": [*worker_options(section), *tls, *section["worker-extra-args"]],
        # That of a profile, too: dask-jobqueue writes it as it is.
        "interface": section["interface"] and shlex.quote(str(section["interface"])),
        "name": name,
    }
    with dask.config.set({f"jobqueue.{_NAME}": section}):
        # A job that is requeued comes back as another worker: its old name may not yet be free.
        worker = "${SLURM_JOB_ID}-${SLURM_RESTART_COUNT:-0}"
        job = SLURMJob(address, name=worker, config_name=_NAME)
        script: str = job.job_script()
    return script


def lifetime(section: Section) -> tuple[int, int]:
    """Seconds after which a worker ends by itself, before Slurm ends it, and by how much they shall differ.

    All workers that started together would otherwise end together.
    """
    walltime = walltime_seconds(section["walltime"])
    # The walltime begins before the worker does.
    return walltime - min(600, int(0.15 * walltime)), min(240, int(0.05 * walltime))


def worker_options(section: Section) -> list[str]:
    """Options of Dask's worker that all of ours have."""
    seconds, stagger = lifetime(section)
    options = ["--no-dashboard", "--dashboard-address 127.0.0.1:0"]
    if not any("--lifetime" in str(word) for word in section["worker-extra-args"]):
        options += [f"--lifetime {seconds}s", f"--lifetime-stagger {stagger}s"]
    return options


class SlurmJobs:
    """The jobs of one run: submits them and knows where their logs are."""

    def __init__(self, cluster: ClusterConfig, jobs: str, run_dir: Path, *, address: str, keys: Keys | None) -> None:
        section = section_of(cluster, jobs)
        self.key = f"cluster.{jobs}"
        self.name = f"{worker_name(jobs)}-{secrets.token_hex(3)}"
        """Of all these jobs, and of no other."""
        self.address = address
        self.logs = log_directory(section, run_dir)
        self.start_seconds = float(parse_timedelta(section["death-timeout"], default="s") or _DEATH_TIMEOUT)
        """In which a worker has to come once its job runs."""
        self.life_seconds = self._life(section)
        self._script = job_script(cluster, jobs, run_dir, address=address, name=self.name, keys=keys)
        self._environment = environment_for(self._script)
        make_directory(self.logs, f"{self.key}.log_directory")

    @staticmethod
    def _life(section: Section) -> float:
        """Seconds after which a worker ends by itself."""
        words = " ".join(map(str, section["worker-extra-args"]))
        named = re.search(r"--lifetime[= ](\S+)", words)
        return float(parse_timedelta(named[1])) if named else lifetime(section)[0]

    def submit(self) -> str:
        """Submit one job.

        Returns:
            Its id.

        Raises:
            SlurmError: when Slurm refuses it.
        """
        try:
            said = run_slurm(
                "sbatch", "--parsable", timeout=_SBATCH_SECONDS, stdin=self._script, environ=self._environment
            )
        except SlurmError as error:
            if not error.stderr:
                raise
            raise SlurmError(f"sbatch: {error.stderr}; {remedy(error.stderr, self.key)}", error.stderr) from None
        return said.strip().split(";")[0]

    def log(self, job_id: str) -> Path:
        """The log of a job."""
        return self.logs / f"{self.name}-{job_id}.out"


def environment_for(script: str) -> dict[str, str]:
    """What sbatch is called with for this script, and its job inherits."""
    environ = clean_environment()
    if not inside_a_job():
        # What somebody set to be the default; what the script says goes first.
        for name, option in _OWN_DEFAULTS.items():
            if name in os.environ and f"#SBATCH {option}" not in script:
                environ[name] = os.environ[name]
    return environ


@contextlib.contextmanager
def slurm_client(cluster: ClusterConfig, jobs: str, run_dir: Path) -> Iterator[Client]:
    """A client of a scheduler in this process, whose workers are Slurm jobs.

    Raises:
        InputError: when a profile or an interface is not there.
        SlurmError: when Slurm refuses the jobs.
    """
    section = section_of(cluster, jobs)
    with contextlib.ExitStack() as stack, ended_by_signals():
        try:
            keys = None if cluster.insecure else stack.enter_context(keys_in(run_dir))
            here = stack.enter_context(SchedulerHere(cluster, section["interface"], keys.security if keys else None))
            submitter = SlurmJobs(cluster, jobs, run_dir, address=here.address, keys=keys)
            supervisor = stack.enter_context(Supervisor(submitter, here, cluster, cluster.workers or DEFAULT_WORKERS))
            stack.enter_context(watched(here.client, supervisor))
            yield here.client
        finally:
            with undisturbed():
                stack.close()
