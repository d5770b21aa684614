"""A Dask cluster by one word of the run file, and running many small tasks on it.

kind "local" starts worker processes here, "address" joins a scheduler that runs already. With "slurm" the scheduler is
in this process and every worker is a Slurm job of its own, with "srun" the workers are one step of the Slurm job that
this process runs in; both are watched over, speak TLS, and end with this process, whatever ends it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from distributed import Client

from geochip.cluster._causes import end_of
from geochip.cluster._environment import export_lines
from geochip.cluster._local import address_client, local_client
from geochip.cluster._supervisor import StillWaitingError
from geochip.cluster._tasks import make_way, run_tasks, wait_for_a_worker, worker_count
from geochip.config import ClusterConfig
from geochip.errors import InputError
from geochip.progress import counted
from geochip.slurm import find_slurm, inside_a_job

Jobs = Literal["cpu", "gpu"]
"""Which section of the run file describes the workers' Slurm jobs: cluster.cpu or cluster.gpu."""

__all__ = [
    "Jobs",
    "StillWaitingError",
    "dask_client",
    "describe_jobs",
    "end_of",
    "export_lines",
    "job_script",
    "make_way",
    "require_cluster",
    "require_slurm",
    "run_tasks",
    "submission_environment",
    "wait_for_a_worker",
    "worker_count",
]


@contextlib.contextmanager
def dask_client(cluster: ClusterConfig, *, jobs: Jobs = "cpu", run_dir: str | Path = ".") -> Iterator[Client]:
    """Connect to the cluster that the run file names; all but kind "address" live as long as the context.

    Args:
        cluster: what the run file says.
        jobs: which Slurm jobs, for kind "slurm" and "srun".
        run_dir: for these kinds, where the logs of the workers go and their keys are while they work: on a disk that
            the nodes share with this machine.

    Raises:
        InputError: when no scheduler answers at the given address, or no Slurm is there.
        WorkError: when Slurm refuses the jobs.
    """
    require_slurm(cluster)
    if cluster.kind == "address":
        opened = address_client(cluster)
    elif cluster.kind == "local":
        opened = local_client(cluster)
    elif cluster.kind == "slurm":
        # Not needed, and not there perhaps, where Slurm is not used.
        from geochip.cluster._slurm import slurm_client

        opened = slurm_client(cluster, jobs, Path(run_dir).absolute())
    else:
        from geochip.cluster._srun import srun_client

        opened = srun_client(cluster, jobs, Path(run_dir).absolute())
    with opened as client:
        yield client


def require_slurm(cluster: ClusterConfig) -> None:
    """See that Slurm can be reached from here, where the kind of cluster needs it.

    Raises:
        InputError: when it cannot, with the kind that could be used instead.
    """
    if cluster.kind == "slurm":
        find_slurm()
    elif cluster.kind == "srun":
        if not inside_a_job():
            raise InputError(
                "cluster.kind: srun works inside a Slurm job only, and SLURM_JOB_ID is not set: start this command in "
                "one (salloc, or a script for sbatch), or use cluster.kind: slurm"
            )
        find_slurm("srun")


def require_cluster(cluster: ClusterConfig, *, jobs: Jobs = "cpu", run_dir: str | Path = ".") -> None:
    """See that a cluster can be had, as far as that shows before anything is written or submitted.

    Args:
        cluster: what the run file says.
        jobs: which Slurm jobs.
        run_dir: as for `dask_client`.

    Raises:
        InputError: when no scheduler answers at the given address, when Slurm's commands are missing, or when a profile
            or a network interface is not there.
    """
    require_slurm(cluster)
    if cluster.kind == "address":
        with dask_client(cluster):
            pass
    elif cluster.kind in ("slurm", "srun"):
        from geochip.cluster._scheduler import interface_here

        interface = getattr(cluster, jobs).interface
        if cluster.kind == "slurm":
            from geochip.cluster._slurm import section_of

            interface = section_of(cluster, jobs)["interface"]
            job_script(cluster, jobs, run_dir)
        interface_here(cluster, interface)


def job_script(cluster: ClusterConfig, jobs: Jobs, run_dir: str | Path) -> str:
    """The batch script of one worker, as it would be submitted; nothing is started or written.

    Args:
        cluster: what the run file says, of kind "slurm".
        jobs: which jobs.
        run_dir: as for `dask_client`.

    Raises:
        InputError: when the profile is not there or not good.
    """
    from geochip.cluster._slurm import job_script as script

    return script(cluster, jobs, Path(run_dir).absolute())


def submission_environment(script: str) -> dict[str, str]:
    """What sbatch is called with for a job script."""
    from geochip.cluster._slurm import environment_for

    return environment_for(script)


def describe_jobs(cluster: ClusterConfig, jobs: Jobs, run_dir: str | Path) -> None:
    """Print the batch script of the workers, for a dry run; nothing for kinds without one.

    Raises:
        InputError: as `job_script`.
    """
    if cluster.kind == "slurm":
        from geochip.cluster._slurm import DEFAULT_WORKERS

        print(f"{counted(cluster.workers or DEFAULT_WORKERS, 'job')} with this script would be submitted:\n")
        print(job_script(cluster, jobs, run_dir))
