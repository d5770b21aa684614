"""A Dask cluster by one word of the run file, and running many small tasks on it.

Tasks are handed out a few at a time. Handing out all of a large run at once costs the scheduler a second for every
thousand tasks before the first one starts, and memory for as long as the run lasts.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dask
from distributed import Client, LocalCluster, as_completed, secede
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from geochip.config import ClusterConfig, available_cpus
from geochip.errors import InputError, WorkError

_TASKS_IN_FLIGHT_PER_THREAD = 3

# GDAL's default cache is 5 % of the machine for every process, which on a large shared node is more than a job's share.
_WORKER_ENVIRONMENT = {
    "GDAL_CACHEMAX": "128",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # What a task frees the next one takes again: giving it back to the system in between costs a twentieth of the work.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
}


@contextlib.contextmanager
def dask_client(cluster: ClusterConfig, *, threads_per_worker: int = 1) -> Iterator[Client]:
    """Connect to the cluster that the run file names; a local one lives as long as the context.

    Args:
        cluster: kind "local" starts worker processes on this machine, which listen on the loopback interface only; kind
            "address" connects to a scheduler that runs already and is left running.
        threads_per_worker: threads of each local worker.

    Raises:
        InputError: when no scheduler answers at the given address.
    """
    if cluster.kind == "address":
        try:
            client = Client(cluster.address, timeout="10s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"cluster.address: no Dask scheduler answers at {cluster.address!r} ({' '.join(str(error).split())}); "
                "start one, or use cluster.kind: local"
            ) from None
        # That the scheduler is gone is told once, by `run_tasks`.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        with client:
            yield client
        return
    with (
        dask.config.set(
            {
                "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
                # Nobody looks at these, and together they take as long as starting the cluster does.
                "distributed.worker.profile.enabled": False,
                "distributed.admin.tick.interval": "1s",
                "distributed.admin.system-monitor.interval": "5s",
                # Ctrl-C reaches every process of the terminal. The driver ends the workers; they need not speak of it.
                # And what is there when a worker has started stays: looking through it for garbage takes time.
                "distributed.worker.preload": [
                    "import gc, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); gc.freeze()"
                ],
            }
        ),
        _closing_quietly(
            n_workers=cluster.workers or available_cpus(),
            threads_per_worker=threads_per_worker,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": cluster.dashboard},
            # What goes wrong on a worker comes back here as an exception, and is told once.
            silence_logs=logging.CRITICAL,
        ) as client,
    ):
        if cluster.dashboard:
            print(f"Dask's dashboard: {client.dashboard_link}", file=sys.stderr, flush=True)
        yield client


@contextlib.contextmanager
def _closing_quietly(**options: Any) -> Iterator[Client]:
    """A local cluster and its client; what goes wrong while they end does not hide why they end."""
    cluster = LocalCluster(**options)
    client = Client(cluster)
    try:
        yield client
    finally:
        for end in (client.close, cluster.close):
            # A worker that is just being started anew may be waited for in vain; it ends with this process.
            with contextlib.suppress(TimeoutError, OSError, RuntimeError):
                end()


def require_cluster(cluster: ClusterConfig) -> None:
    """See that a scheduler answers, before anything is written; a local cluster is started when it is needed.

    Raises:
        InputError: when none does.
    """
    if cluster.kind == "address":
        with dask_client(cluster):
            pass


def worker_count(client: Client) -> int:
    """Workers that are there now."""
    return len(client.scheduler_info(n_workers=-1)["workers"])


def _address(client: Client) -> str:
    return str(client.scheduler.address) if client.scheduler else "?"


def wait_for_a_worker(client: Client, *, seconds: float = 15.0) -> None:
    """Return when there is a worker; while there is none, say so every few seconds."""
    waited = 0.0
    while True:
        try:
            client.wait_for_workers(1, timeout=seconds)
            return
        except TimeoutError:
            waited += seconds
            print(
                f"waiting for a Dask worker: none has come to {_address(client)} for {waited:.0f} s",
                file=sys.stderr,
                flush=True,
            )


def make_way() -> None:
    """Let the worker go on with its next task while this one waits, for a disk for example; elsewhere do nothing."""
    # Elsewhere: called by a test, or by someone who needs no cluster.
    with contextlib.suppress(ValueError):
        secede()


def run_tasks(
    client: Client,
    function: Callable[..., Any],
    tasks: Iterable[tuple[str, tuple[Any, ...]]],
    on_result: Callable[[str, Any], None],
) -> None:
    """Run `function(*arguments)` on the cluster for every (key, arguments), a bounded number at a time.

    Args:
        client: where to run.
        function: importable by the workers; returns something small.
        tasks: keys, each its own, with the arguments; consumed as work proceeds.
        on_result: called here, in this thread, with a key and its result, in the order in which tasks finish.

    Raises:
        WorkError: when worker processes die on a task again and again.
        Exception: what the function raised, after the tasks in flight have been cancelled.
    """
    waiting = iter(tasks)
    wait_for_a_worker(client)
    threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    keys: dict[Any, str] = {}

    def submit_next() -> Any:
        for key, arguments in waiting:
            # Never remembered by Dask: a task that ran before, on another store of the same name, must run again.
            future = client.submit(function, *arguments, pure=False)
            keys[future] = key
            return future
        return None

    first = [future for _ in range(max(threads, 1) * _TASKS_IN_FLIGHT_PER_THREAD) if (future := submit_next())]
    if not first:
        return
    running = as_completed(first)
    try:
        for future in running:
            key = keys.pop(future)
            on_result(key, future.result())
            future.release()
            if (following := submit_next()) is not None:
                running.add(following)
    except (FutureCancelledError, CommClosedError) as error:
        # Nobody here cancels what is then waited for: the scheduler is gone, and with it what it knew of the tasks.
        raise WorkError(
            f"the Dask scheduler at {_address(client)} was lost; what is finished "
            "is kept: start a cluster again and run the same command again, which goes on from there"
        ) from error
    except KilledWorker as error:
        raise WorkError(
            f"task {key}: worker processes died on it again and again; most often memory ran out: "
            "use fewer workers, or smaller chips or blocks"
        ) from error
    finally:
        if keys:
            client.cancel(list(keys))
