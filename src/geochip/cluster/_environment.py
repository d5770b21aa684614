"""The environment of worker processes, whatever starts them."""

import shlex
from collections.abc import Iterable

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # What a task frees the next one takes again: giving it back to the system in between costs a twentieth of the work.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}

QUIET_DASK = {
    # Nobody looks at these, and together they take as long as starting the cluster does.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    # Dask's processes answer HTTP whether or not somebody wants its dashboard, to everybody who asks.
    "distributed.worker.http.routes": ["distributed.http.health"],
}

# The same for a scheduler without a dashboard; one that has it needs them.
NO_PAGES = {"distributed.scheduler.http.routes": ["distributed.http.health"]}

# Looking for garbage through what is there when a worker has started takes time.
FREEZE = "import gc; gc.freeze()"


def guarded(prologue: Iterable[str], key: str) -> list[str]:
    """Lines of a person's prologue, each of which ends the script when it fails, and says so in the log.

    Args:
        prologue: lines of a shell script.
        key: where the run file has them.
    """
    return [
        f"eval {shlex.quote(line)} || {{ echo {shlex.quote(f'geochip: this line of {key} failed: {line}')}; exit 1; }}"
        for line in prologue
    ]


def export_lines() -> list[str]:
    """The same as lines of a shell script, with Dask's settings in the form of its environment variables."""
    dask = {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value)
        for key, value in {**QUIET_DASK, "distributed.worker.preload": [FREEZE]}.items()
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in {**WORKER_ENVIRONMENT, **dask}.items()]
