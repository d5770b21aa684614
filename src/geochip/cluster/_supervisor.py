"""Watches over the Slurm jobs of a run: says what they wait for, replaces those that are lost, gives up in words.

A thread of its own looks, so that results are taken in while Slurm's controller takes its time. What ends the run is
raised in the thread that waits for results, see `look`.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from geochip.cluster._causes import cause_of, end_of, say, show
from geochip.cluster._jobs import Job, end_in_words, groups, listed, of_those_not_there
from geochip.cluster._signals import undisturbed
from geochip.cluster._tasks import WHAT_IS_KEPT
from geochip.config import ClusterConfig
from geochip.errors import WorkError
from geochip.progress import counted
from geochip.slurm import JobState, SlurmError, cancel, explain, job_states, run_slurm

_TICK_SECONDS = 0.5
# Between two looks at the queue, which the controller serves for everybody: while something is going on, while jobs
# wait or are many, and while all workers are there.
_POLL_SECONDS, _POLL_SECONDS_WAITING, _POLL_SECONDS_AT_WORK = 2.0, 10.0, 30.0
_MANY = 50
_CALM_SECONDS = 60.0
_TELL_SECONDS = 60.0
_TELL_SECONDS_AT_WORK = 600.0
_SLOW_START_SECONDS = 60.0
_RETRY_SECONDS = 60.0
_TAILS = 3
_STILLBORN = 3
_GOODBYE_SECONDS = 4.0
_CANCELS = 3
# It may be submitting, for which sbatch is given 120 s.
_JOIN_SECONDS = 150.0
_CANCEL_AGAIN_SECONDS = 2.0
_END_SECONDS = 8.0
# A node could not start it; another job may be given another node. What the site's staff hold is not one of these.
_HELD = ("launch failed requeued held",)
# A job in one of these may be back in the queue a moment later.
_REQUEUED = ("NODE_FAIL", "PREEMPTED")


class Submitter(Protocol):
    """What submits the jobs."""

    key: str
    """Section of the run file that describes them."""
    name: str
    """Of all of them."""
    address: str
    """Of the scheduler."""
    start_seconds: float
    """In which a worker has to come once its job runs."""
    life_seconds: float
    """After which a worker ends by itself."""

    def submit(self) -> str:
        """Submit one job; returns its id."""

    def log(self, job_id: str) -> Path:
        """The log of a job."""


class Connected(Protocol):
    """The scheduler."""

    def names(self) -> list[str]:
        """Names of the workers that are connected: JOB-RESTART."""

    def close(self) -> None:
        """Tell the workers to end."""


class StillWaitingError(WorkError):
    """No worker came for cluster.wait_minutes, and nothing is known to be wrong with the jobs."""

    def __init__(self, text: str, standing: str) -> None:
        super().__init__(text)
        self.standing = standing
        """What the jobs do, in words."""


class Supervisor:
    """Keeps the jobs of a run; as a context manager it submits them and cancels what is left of them."""

    def __init__(self, submitter: Submitter, scheduler: Connected, cluster: ClusterConfig, count: int) -> None:
        """Prepare; nothing is submitted yet.

        Args:
            submitter: makes and submits a job.
            scheduler: to which the workers connect.
            cluster: what the run file says.
            count: how many jobs.
        """
        self.advice = f"give them more memory ({submitter.key}.memory), or use smaller chips or blocks"
        self._submitter, self._scheduler, self._cluster, self._count = submitter, scheduler, cluster, count
        self._jobs: dict[str, Job] = {}
        # Of all jobs that were ever there.
        self._seen: set[str] = set()
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="geochip-supervisor", daemon=True)
        self._ever = self._submitted = False
        self._lost = self._stillborn = self._tails = 0
        self._to_submit = self._to_renew = self._to_replace = self._replaced = 0
        self._retry_at = 0.0
        self._refused = ""
        self._told: Any = None
        self._limit_told = False
        self._told_at = self._last_worker = self._changed_at = time.monotonic()
        self._here: set[str] = set()
        self._next_poll = 0.0
        self._silent_since: float | None = None

    # --- in the run's own thread

    def __enter__(self) -> Self:
        try:
            refusal = self._submit_all()
            say(f"submitted {listed(list(self._jobs))} as {self._submitter.name}; logs: {self._log_of('JOB')}")
            if refusal is not None:
                say(
                    f"{refusal}; going on with {len(self._jobs)} of {self._count} workers, and trying again for the "
                    "others every minute"
                )
            self._next_poll = self._changed_at + _POLL_SECONDS
            self._thread.start()
        except BaseException:
            with undisturbed():
                self._stop.set()
                self._cancel_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)
        self._cancel_all()

    def look(self) -> None:
        """Raise what the supervisor found to be the end of the run.

        Raises:
            WorkError: with the cause and what to do.
        """
        if self._failure is not None:
            raise self._failure

    def _cancel_all(self) -> None:
        """End the jobs, and wait a little until they are gone; what fails keeps nothing else from being done."""
        if not self._submitted:
            return
        here = {name.split("-")[0] for name in self._scheduler.names()}
        with contextlib.suppress(SlurmError):
            cancel(job_id for job_id in list(self._jobs) if job_id not in here)
        # The others are told to end, so that they clear up after themselves; one that is busy is not waited for.
        self._scheduler.close()
        self._wait_for_end(_GOODBYE_SECONDS)
        for attempt in range(_CANCELS):
            try:
                # By name: also one that was submitted while this process was told to end, and whose id was never read.
                run_slurm("scancel", "--quiet", f"--name={self._submitter.name}", f"--user={os.getuid()}")
                cancel(self._jobs)
            except SlurmError as error:
                if attempt == _CANCELS - 1:
                    say(
                        f"jobs could not be cancelled ({error.stderr or error}): scancel "
                        f"--name={self._submitter.name}; their workers end by themselves without this process"
                    )
                    return
                time.sleep(_CANCEL_AGAIN_SECONDS)
            else:
                break
        self._wait_for_end(_END_SECONDS)

    def _wait_for_end(self, seconds: float) -> None:
        """Wait until the jobs have ended, as far as Slurm tells, but not for long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(SlurmError):
                states = job_states(self._submitter.name, self._jobs, details=False)
                if all(state.ended for state in states.values()):
                    return
            time.sleep(0.5)

    def _submit_all(self) -> SlurmError | None:
        """Submit the jobs; returns why some of them were refused, if one at least was not.

        Raises:
            SlurmError: when Slurm takes none.
        """
        for number in range(self._count):
            try:
                self._submit()
            except SlurmError as error:
                if not self._jobs:
                    raise
                # As Slurm takes the others, it has something against their number: a limit on submitted jobs. Or it did
                # not answer; what it took nevertheless is found long before the next try, see _adopt.
                self._to_submit = self._count - number
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                self._refused = str(error)
                return error
        return None

    # --- in the supervisor's thread

    def _watch(self) -> None:
        try:
            while not self._stop.wait(_TICK_SECONDS) and self._failure is None:
                self._tick()
        except Exception as error:
            self._failure = error

    def _tick(self) -> None:
        now, here = time.monotonic(), {name.split("-")[0] for name in self._scheduler.names()}
        for job_id in here & set(self._jobs):
            self._jobs[job_id].came = True
        if here:
            self._ever, self._last_worker = True, now
        if self._here - here:
            # Slurm may know why.
            self._next_poll = min(self._next_poll, now + _POLL_SECONDS)
        if here != self._here:
            self._here, self._changed_at = here, now
        if now >= self._next_poll:
            self._poll(now, here)
            self._next_poll = time.monotonic() + self._poll_seconds(now, here)
        if not here and now - self._last_worker >= 60 * self._cluster.wait_minutes:
            self._failure = StillWaitingError(
                f"no worker for {self._cluster.wait_minutes:g} minutes (cluster.wait_minutes): {self._in_words(here)}; "
                f"raise it, or {self._way_out()}; {WHAT_IS_KEPT}",
                "; ".join(of_those_not_there(self._jobs.values(), here)),
            )

    def _poll_seconds(self, now: float, here: set[str]) -> float:
        if here >= self._jobs.keys() and not self._to_submit + self._to_renew + self._to_replace:
            return _POLL_SECONDS_AT_WORK
        calm = now - self._changed_at >= _CALM_SECONDS
        return _POLL_SECONDS_WAITING if calm or len(self._jobs) > _MANY else _POLL_SECONDS

    def _poll(self, now: float, here: set[str]) -> None:
        try:
            states = job_states(self._submitter.name, self._jobs)
        except SlurmError as error:
            if self._silent_since is None or now - self._told_at >= _TELL_SECONDS:
                say(f"squeue: {error.stderr}; asking again" if error.stderr else f"{error}; asking again")
                self._told_at = now
            self._silent_since = self._silent_since or now
            return
        self._silent_since = None
        self._adopt(states)
        for job in list(self._jobs.values()):
            self._judge(job, states.get(job.job_id), now, here)
        if self._failure is None:
            self._refill(now, here)
            self._tell(now, here)

    def _adopt(self, states: dict[str, JobState]) -> None:
        """Take in jobs that Slurm took although sbatch said that it had no answer."""
        for job_id, state in states.items():
            if job_id not in self._seen and not state.ended:
                self._seen.add(job_id)
                self._jobs[job_id] = Job(job_id)
                self._one_less()
                say(f"job {job_id} was submitted, though sbatch had no answer; it is one of the workers")

    def _judge(self, job: Job, state: JobState | None, now: float, here: set[str]) -> None:
        """Take in what Slurm says of one job."""
        if state is None and job.job_id in here:
            return  # Slurm forgot it, or was not asked everything; its worker is there.
        if state is None or state.ended or state.reason in _HELD:
            job.doubts += 1
            if job.doubts > (state is None or state.state in _REQUEUED):
                self._has_ended(job, state, now)
            return
        job.doubts = 0
        pending, runs = state.state == "PENDING", state.state == "RUNNING"
        # Between two looks it may have gone and come back.
        again = runs and job.started not in (None, state.started)
        if job.running_since is not None and (pending or again):
            comes = "runs again" if again else "comes back by itself"
            say(f"job {job.job_id} was requeued (preempted, or its node failed); it {comes}")
            job.running_since, job.came, job.slow_told = None, False, False
        if runs and job.running_since is None:
            job.running_since, job.started = now, state.started
        same_reason = job.reason == state.reason
        job.state, job.reason, job.expected_start = state.state, state.reason, state.expected_start
        if job.state == "PENDING" and not here and same_reason and explain(job.reason).hopeless:
            found = explain(job.reason)
            self._give_up(f"job {job.job_id} will never start: {found.words}; {found.remedy} ({self._submitter.key})")
        elif job.running_since is not None and not job.came:
            self._slow_start(job, state, now)

    def _slow_start(self, job: Job, state: JobState, now: float) -> None:
        """A job that runs, and from which nothing is heard."""
        assert job.running_since is not None
        waited = now - job.running_since
        if waited > self._submitter.start_seconds + _SLOW_START_SECONDS:
            with contextlib.suppress(SlurmError):
                cancel([job.job_id])
            self._has_ended(job, state, now)
        elif waited > _SLOW_START_SECONDS and not job.slow_told:
            job.slow_told = True
            say(
                f"job {job.job_id} runs on {state.nodes} since {waited:.0f} s, but its worker has not come; it has "
                f"{self._submitter.start_seconds:.0f} s. The end of its log, {self._log_of(job.job_id)}:"
            )
            self._show_tail(job)

    def _has_ended(self, job: Job, state: JobState | None, now: float) -> None:
        """A job is gone while there is work: say so, and whether it is to be replaced."""
        del self._jobs[job.job_id]
        ran = now - job.running_since if job.running_since is not None else 0.0
        # Slurm forgets a job some minutes after its end; nobody may have asked in between.
        by_itself = state is None or state.state in ("COMPLETED", "TIMEOUT")
        if job.came and by_itself and ran >= self._submitter.life_seconds / 2:
            say(f"job {job.job_id} has reached the end of its time; another one takes its place")
            self._to_renew += 1
            self._retry_at = 0.0
            return
        self._lost += 1
        self._to_replace += 1
        # There may be room now, whatever was refused.
        self._retry_at = 0.0
        self._stillborn += not job.came
        say(f"job {job.job_id} {end_in_words(job, state)}")
        shown = self._show_tail(job)
        if not self._ever and self._stillborn >= min(max(self._count, 2), _STILLBORN):
            self._give_up(
                f"{self._stillborn} jobs ended before any worker came: "
                f"{cause_of(shown, state, self._submitter)} (log: {self._log_of(job.job_id)})"
            )

    def _refill(self, now: float, here: set[str]) -> None:
        """Submit the jobs that Slurm refused at first, and others in place of those that ended."""
        while self._to_submit + self._to_renew + self._to_replace and now >= self._retry_at:
            if self._stop.is_set():
                return
            # Those that ended in time do not count: only what was lost is bounded.
            if not (self._to_submit or self._to_renew) and self._replaced >= self._cluster.max_replacements:
                lost = f"{counted(self._lost, 'job')} {'was' if self._lost == 1 else 'were'} lost"
                if not self._jobs:
                    self._give_up(
                        f"{lost}, and cluster.max_replacements is "
                        f"{self._cluster.max_replacements}; see the logs, or raise it if nodes are preempted often"
                    )
                elif not self._limit_told:
                    self._limit_told = True
                    say(f"{lost}: no more are submitted (cluster.max_replacements); {len(self._jobs)} are left")
                return
            try:
                job_id = self._submit()
            except SlurmError as error:
                # Where nobody answers, cluster.wait_minutes says how long that is waited for.
                if not self._jobs and not here and not error.unanswered:
                    self._failure = error
                    return
                if str(error) != self._refused:
                    say(f"{error}; tried again every minute")
                self._refused = str(error)
                # From now on: sbatch may have taken its time.
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                return
            self._refused = ""
            instead = self._to_submit == 0
            self._one_less()
            say(f"submitted job {job_id}{' instead' if instead else ''}")

    def _one_less(self) -> None:
        """Count one that was submitted."""
        if self._to_submit:
            self._to_submit -= 1
        elif self._to_renew:
            self._to_renew -= 1
        elif self._to_replace:
            self._to_replace -= 1
            self._replaced += 1

    def _submit(self) -> str:
        self._submitted = True
        job_id = self._submitter.submit()
        self._seen.add(job_id)
        self._jobs[job_id] = Job(job_id)
        return job_id

    def _give_up(self, why: str) -> None:
        self._failure = WorkError(f"{why}; {WHAT_IS_KEPT}")

    # --- words

    def _tell(self, now: float, here: set[str]) -> None:
        """Say how things stand when that has changed, and every minute while jobs are waited for."""
        standing = groups(self._jobs.values(), here)
        waiting = any(kind not in ("there", "starting") for kind in standing)
        signature = {kind: len(jobs) for kind, jobs in standing.items()}
        every = _TELL_SECONDS_AT_WORK if here else _TELL_SECONDS
        if signature != self._told:
            self._changed_at = now
        if signature != self._told or ((waiting or not here) and now - self._told_at >= every):
            self._told, self._told_at = signature, now
            say(self._in_words(here))

    def _in_words(self, here: set[str]) -> str:
        jobs = self._jobs.values()
        there = len(groups(jobs, here).get("there", []))
        missing = self._to_submit + self._to_renew + self._to_replace if self._refused else 0
        refused = [f"{missing} more could not be submitted: {self._refused}"] if missing else []
        return "; ".join([f"{there} of {self._count} workers are there", *of_those_not_there(jobs, here), *refused])

    def _way_out(self) -> str:
        """What might bring workers."""
        waiting = [explain(job.reason) for job in self._jobs.values() if job.state == "PENDING"]
        if not waiting:
            return f"see the logs, {self._log_of('JOB')}"
        return (
            waiting[0].remedy
            if waiting[0].hopeless
            else f"ask for less ({self._submitter.key}: cores, memory, walltime), or for another partition"
        )

    def _show_tail(self, job: Job) -> str:
        """Show the end of a job's log, of the first few jobs; returns it."""
        text = end_of(self._submitter.log(job.job_id))
        self._tails += 1
        if self._tails <= _TAILS:
            show(text)
        return text

    def _log_of(self, job_id: str) -> str:
        return str(self._submitter.log(job_id))
