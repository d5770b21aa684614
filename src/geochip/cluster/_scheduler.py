"""The scheduler of kinds slurm and srun: it lives in this process, which is where the results go."""

import contextlib
import getpass
import logging
import os
import platform
import sys
from types import TracebackType
from typing import Any, Self

import dask
import psutil
from distributed import Client, Scheduler, SpecCluster
from distributed.security import Security

from geochip.cluster._environment import NO_PAGES, QUIET_DASK
from geochip.config import ClusterConfig
from geochip.errors import InputError
from geochip.slurm import inside_a_job

_SETTINGS = {
    **QUIET_DASK,
    # Preempted workers die of no fault of their tasks; a task on which really all die takes a while longer to tell.
    "distributed.scheduler.allowed-failures": 10,
    # A node whose disk stands still for minutes has not lost its worker.
    "distributed.scheduler.worker-ttl": "15 minutes",
    # Dask's own care for workers that it misses; jobs are followed by their ids here, so it has nothing to hurry for.
    "distributed.deploy.lost-worker-timeout": "15 minutes",
}


_CLOSE_SECONDS = 10


def interface_here(cluster: ClusterConfig, interface: str | None) -> str | None:
    """The network interface of this machine that the scheduler shall use; None: Dask's choice.

    Args:
        cluster: what the run file says.
        interface: that of the workers. Login and compute nodes may name theirs differently.

    Raises:
        InputError: when this machine does not have what the run file names.
    """
    here = psutil.net_if_addrs()
    named = cluster.scheduler_interface
    if named is None:
        return interface if interface in here else None
    if named not in here:
        raise InputError(
            f"cluster.scheduler_interface: {named!r} is no network interface of {platform.node()}; there are "
            f"{', '.join(sorted(here))}; use the one that the nodes reach, or leave it out"
        )
    return named


class SchedulerHere:
    """A scheduler without workers in this process, and its client; a context manager, which ends both."""

    def __init__(self, cluster: ClusterConfig, interface: str | None, security: Security | None) -> None:
        """Start it.

        Args:
            cluster: what the run file says.
            interface: network interface of the workers.
            security: TLS for scheduler and client; None: none.

        Raises:
            InputError: when it cannot listen there.
        """
        options: dict[str, Any] = {
            "interface": interface_here(cluster, interface),
            "protocol": "tls://" if security else "tcp://",
            "security": security,
            "port": 0,
            "dashboard": cluster.dashboard,
            # Plain HTTP, whatever the rest speaks.
            "dashboard_address": "127.0.0.1:0",
        }
        self._settings = dask.config.set({**_SETTINGS, **({} if cluster.dashboard else NO_PAGES)})
        try:
            spec: Any = SpecCluster(
                scheduler={"cls": Scheduler, "options": options}, workers={}, security=security,
                # What goes wrong on a worker comes back here as an exception, and is told once.
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
            self.client = Client(spec)
        except (OSError, RuntimeError, ValueError) as error:
            self._settings.__exit__(None, None, None)
            raise InputError(
                f"cluster.scheduler_interface: no scheduler can be started on {options['interface'] or 'this machine'} "
                f"({' '.join(str(error).split())}); name a network interface that the nodes reach"
            ) from None
        self._spec, scheduler = spec, spec.scheduler
        self.address: str = scheduler.contact_address or scheduler.address
        self._open = True
        if cluster.dashboard:
            print(_dashboard(self.client.dashboard_link), file=sys.stderr, flush=True)

    def names(self) -> list[str]:
        """Names of the workers that are connected."""
        # The scheduler works in a thread of its own. The values() of its sorted dictionary is a loop in which a worker
        # may leave; that of dict takes them in one go.
        return [str(worker.name) for worker in list(dict.values(self._spec.scheduler.workers))]

    def close(self) -> None:
        """Tell the workers to end, and end; a second time does nothing."""
        if self._open:
            self._open = False
            for end in (self.client.close, self._spec.close):
                # Bounded: a peer that does not answer must not keep the jobs from being cancelled.
                with contextlib.suppress(TimeoutError, OSError, RuntimeError):
                    end(timeout=_CLOSE_SECONDS)
            self._settings.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _dashboard(link: str) -> str:
    port = link.rsplit(":", 1)[-1].split("/")[0]
    user, over = getpass.getuser(), ""
    # Compute nodes are reached from outside by way of the login node, if at all.
    if inside_a_job() and (login := os.environ.get("SLURM_SUBMIT_HOST")) and login != platform.node():
        over = f"-J {user}@{login} "
    return (
        f"Dask's dashboard: {link} on {platform.node()}; from your own machine: "
        f"ssh {over}-L {port}:127.0.0.1:{port} {user}@{platform.node()}, then open that address there"
    )
