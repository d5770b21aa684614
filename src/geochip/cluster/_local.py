"""Workers of this machine, and schedulers that run already."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import dask
from distributed import Client, LocalCluster
from distributed.security import Security

from geochip.cluster._environment import FREEZE, NO_PAGES, QUIET_DASK, WORKER_ENVIRONMENT
from geochip.cluster._tasks import WHAT_IS_KEPT, Patience, watched
from geochip.config import ClusterConfig, available_cpus
from geochip.errors import InputError, WorkError


@contextlib.contextmanager
def address_client(cluster: ClusterConfig) -> Iterator[Client]:
    """Connect to a scheduler that runs already; it is left running."""
    try:
        client = Client(cluster.address, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cluster.address: no Dask scheduler answers at {cluster.address!r} ({' '.join(str(error).split())}); "
            "start one, or use cluster.kind: local"
        ) from None
    # That the scheduler is gone is told once, by `run_tasks`.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with client, watched(client, Patience(client, wait_minutes=cluster.wait_minutes)):
        yield client


@contextlib.contextmanager
def local_client(cluster: ClusterConfig) -> Iterator[Client]:
    """Start workers of one thread here, which listen on the loopback interface only, and speak TLS.

    The loopback interface is that of every user of the machine. The keys are made for this cluster and passed on in
    memory; no file holds them.
    """
    with (
        dask.config.set(
            {
                "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
                **QUIET_DASK,
                **({} if cluster.dashboard else NO_PAGES),
                # Ctrl-C reaches every process of the terminal. The driver ends the workers; they need not speak of it.
                "distributed.worker.preload": [
                    f"{FREEZE}; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
                ],
            }
        ),
        _closing_quietly(
            n_workers=cluster.workers or available_cpus(),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            security=None if cluster.insecure else Security.temporary(),
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
    """A local cluster and its client; what goes wrong while they end does not hide why they end.

    Raises:
        WorkError: when the workers do not come.
    """
    try:
        cluster = LocalCluster(**options)
        client = Client(cluster)
    except (OSError, RuntimeError) as error:
        raise WorkError(f"{_why_none_started(error)}; run the same command again: {WHAT_IS_KEPT}") from error
    try:
        yield client
    finally:
        for end in (client.close, cluster.close):
            # A worker that is just being started anew may be waited for in vain; it ends with this process.
            with contextlib.suppress(TimeoutError, OSError, RuntimeError):
                end()


def _why_none_started(error: BaseException) -> str:
    """Why a local cluster did not come up, and what to do; Dask's own error says less than what caused it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            where = f": {cause.filename}" if cause.filename else ""
            return f"cluster.kind: local: the workers cannot be started: {cause.strerror}{where}; mend that"
        cause = cause.__cause__
    return (
        "cluster.kind: local: a worker process ended, or said nothing, before it was ready; most often memory ran out: "
        "use fewer workers (cluster.workers)"
    )
