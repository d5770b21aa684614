"""Running many small tasks, a few at a time, with an eye on the workers.

Handing out all of a large run at once costs the scheduler a second for every thousand tasks before the first one
starts, and memory for as long as the run lasts.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from distributed import Client, secede
from distributed.client import FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from geochip.errors import WorkError

_TASKS_IN_FLIGHT_PER_THREAD = 3
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_COUNTS = 2.0
# Without a result, until it is asked whether workers take tasks at all; and until it is not hoped any longer.
_SILENT_SECONDS = 20.0
_PAUSED_SECONDS = 60.0

WHAT_IS_KEPT = "what is finished is kept, and the same command goes on from there"


class Watch(Protocol):
    """Watches over the workers of a client while it waits for them."""

    advice: str
    """What to do when workers die of a task."""

    def look(self) -> None:
        """Called every second or so, in the thread that waits.

        Raises:
            WorkError: when waiting longer makes no sense.
        """


class Patience:
    """Tells, every few seconds, that there is no worker, and gives up in the end."""

    advice = "use fewer workers, or smaller chips or blocks"

    def __init__(self, client: Client, *, seconds: float = 15.0, wait_minutes: float = float("inf")) -> None:
        self._client, self._seconds, self._wait_minutes = client, seconds, wait_minutes
        self._begin()

    def _begin(self) -> None:
        self._since = self._next_count = time.monotonic()
        self._told = 0

    def look(self) -> None:
        """See `Watch`."""
        now = time.monotonic()
        if now < self._next_count:
            return
        self._next_count = now + min(self._seconds, _SECONDS_BETWEEN_COUNTS)
        if worker_count(self._client):
            self._begin()
            return
        waited = now - self._since
        if waited >= 60 * self._wait_minutes:
            raise WorkError(
                f"no Dask worker has come to {_address(self._client)} for {self._wait_minutes:g} minutes "
                f"(cluster.wait_minutes); start some and run the same command again: {WHAT_IS_KEPT}"
            )
        if waited // self._seconds > self._told:
            self._told = int(waited // self._seconds)
            print(
                f"waiting for a Dask worker: none has come to {_address(self._client)} for {waited:.0f} s",
                file=sys.stderr,
                flush=True,
            )


_watches: dict[str, Watch] = {}


@contextlib.contextmanager
def watched(client: Client, watch: Watch) -> Iterator[None]:
    """Let `watch` look after the workers of a client."""
    _watches[client.id] = watch
    try:
        yield
    finally:
        del _watches[client.id]


def _threads(client: Client) -> list[int]:
    """Threads of each worker that is there now."""
    try:
        return list(client.nthreads().values())
    except OSError:
        # The scheduler is gone: what was submitted tells.
        return []


def worker_count(client: Client) -> int:
    """Workers that are there now."""
    return len(_threads(client))


def _address(client: Client) -> str:
    return str(client.scheduler.address) if client.scheduler else "?"


class _Silence:
    """Looks, while no result comes, whether the workers are full: those get no tasks, and only their logs say so."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.broken()

    def broken(self) -> None:
        """A result has come."""
        self._since = self._next_look = time.monotonic()
        self._full_since: float | None = None
        self._next_look += _SILENT_SECONDS

    def look(self, advice: str) -> None:
        """Called while none comes.

        Raises:
            WorkError: when no worker takes tasks, nor will.
        """
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + _SILENT_SECONDS / 2
        full = self._full()
        if full is None:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
            print(f"no worker takes tasks: {full}", file=sys.stderr, flush=True)
        elif now - self._full_since >= _PAUSED_SECONDS:
            raise WorkError(f"no worker takes tasks: {full}; {advice}; {WHAT_IS_KEPT}")

    def _full(self) -> str | None:
        """How full the workers are, if all of them are, and none has a task that might end."""
        try:
            workers = list(self._client.scheduler_info(n_workers=-1)["workers"].values())
        except OSError:
            return None
        if not workers or any(one["status"] != "paused" or _at_work(one) for one in workers):
            return None
        fullest = max(workers, key=lambda one: one["metrics"]["memory"])
        return (
            f"each is nearly full, with up to {fullest['metrics']['memory'] / 2**20:.0f} of "
            f"{fullest['memory_limit'] / 2**20:.0f} MiB, and waits until memory is freed"
        )


def _at_work(worker: dict[str, Any]) -> bool:
    """Whether a worker has a task that may still end; one that has made way for others is "long-running"."""
    counts = worker["metrics"].get("task_counts", {})
    return any(counts.get(state) for state in ("executing", "long-running"))


def wait_for_a_worker(client: Client, *, seconds: float = 15.0) -> None:
    """Return when there is a worker; while there is none, say so every few seconds.

    Raises:
        WorkError: when there is none for as long as the run file allows, or none will come.
    """
    watch, silence = _watches.get(client.id) or Patience(client, seconds=seconds), _Silence(client)
    while True:
        try:
            client.wait_for_workers(1, timeout=min(seconds, _SECONDS_BETWEEN_LOOKS))
            return
        except TimeoutError:
            watch.look()
            # Workers that take no tasks are none, to Dask.
            silence.look(watch.advice)


def make_way() -> None:
    """Let the worker go on with its next task while this one waits, for a disk for example; elsewhere do nothing."""
    # Elsewhere: called by a test, or by someone who needs no cluster.
    with contextlib.suppress(ValueError):
        secede()


class _InFlight:
    """Tasks that were handed out and have not come back; more workers get more of them."""

    def __init__(
        self, client: Client, function: Callable[..., Any], tasks: Iterable[tuple[str, tuple[Any, ...]]]
    ) -> None:
        self._client, self._function, self._waiting = client, function, iter(tasks)
        self.keys: dict[Any, str] = {}
        self.finished: SimpleQueue[Any] = SimpleQueue()
        self._most = 1
        self._next_count = 0.0

    def fill(self) -> None:
        """Hand out as many as the workers that are there now shall have."""
        if (now := time.monotonic()) >= self._next_count:
            self._next_count = now + _SECONDS_BETWEEN_COUNTS
            self._most = max(sum(_threads(self._client)), 1) * _TASKS_IN_FLIGHT_PER_THREAD
        while len(self.keys) < self._most and (following := next(self._waiting, None)) is not None:
            key, arguments = following
            # Never remembered by Dask: a task that ran before, on another store of the same name, must run again.
            future = self._client.submit(self._function, *arguments, pure=False)
            self.keys[future] = key
            future.add_done_callback(self.finished.put)


def _result_of(future: Any, watch: Watch, silence: _Silence) -> Any:
    """The result of a task that has finished: again, perhaps, when its worker died before it could be fetched."""
    while True:
        try:
            return future.result(timeout=_SECONDS_BETWEEN_LOOKS)
        except TimeoutError:
            if future.status == "error":  # the task's own
                raise
            watch.look()
            silence.look(watch.advice)


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
        WorkError: when worker processes die on a task again and again, or when there are no workers and will be none.
        Exception: what the function raised, after the tasks in flight have been cancelled.
    """
    wait_for_a_worker(client)
    watch = _watches.get(client.id) or Patience(client)
    flight = _InFlight(client, function, tasks)
    silence = _Silence(client)
    next_look = time.monotonic() + _SECONDS_BETWEEN_LOOKS
    key = "?"
    try:
        flight.fill()
        while flight.keys:
            if (now := time.monotonic()) >= next_look:
                next_look = now + _SECONDS_BETWEEN_LOOKS
                watch.look()
            try:
                future = flight.finished.get(timeout=_SECONDS_BETWEEN_LOOKS)
            except Empty:
                flight.fill()
                silence.look(watch.advice)
                continue
            silence.broken()
            key = flight.keys.pop(future)
            on_result(key, _result_of(future, watch, silence))
            future.release()
            flight.fill()
    except (FutureCancelledError, CommClosedError) as error:
        # Nobody here cancels what is then waited for: the scheduler is gone, and with it what it knew of the tasks.
        raise WorkError(
            f"the Dask scheduler at {_address(client)} was lost; what is finished "
            "is kept: start a cluster again and run the same command again, which goes on from there"
        ) from error
    except KilledWorker as error:
        raise WorkError(
            f"task {key}: worker processes died on it again and again; most often memory ran out: {watch.advice}"
        ) from error
    finally:
        if flight.keys:
            client.cancel(list(flight.keys))
