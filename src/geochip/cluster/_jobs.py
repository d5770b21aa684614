"""The Slurm jobs of a run: what is known of each, and how they stand, in words."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from geochip.slurm import JobState, explain


@dataclass
class Job:
    """What is known of one job."""

    job_id: str
    state: str = "PENDING"
    reason: str = ""
    expected_start: str | None = None
    running_since: float | None = None
    started: str | None = None
    """When it was started last, as Slurm writes it."""
    came: bool = False
    """Whether its worker ever connected, since the job last started."""
    slow_told: bool = False
    doubts: int = 0
    """How many times in a row it looked gone."""


def groups(jobs: Iterable[Job], here: Collection[str]) -> dict[str, list[Job]]:
    """Jobs by what they do: "there", "starting", or the reason for which they wait."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        if job.job_id in here:
            kind = "there"
        elif job.state == "PENDING":
            kind = f"PENDING {job.reason}"
        else:
            kind = "starting" if job.state in ("RUNNING", "CONFIGURING", "COMPLETING") else job.state
        found.setdefault(kind, []).append(job)
    return found


def of_those_not_there(jobs: Iterable[Job], here: Collection[str]) -> list[str]:
    """What the jobs do whose workers are not there."""
    found = groups(jobs, here)
    found.pop("there", None)
    parts = []
    if starting := found.pop("starting", []):
        parts.append(f"{listed([job.job_id for job in starting])} {_verb(starting, 'start')}")
    for some in found.values():
        reason = explain(some[0].reason)
        part = f"{listed([job.job_id for job in some])} {_verb(some, 'wait')}: {reason.words}"
        starts = sorted(job.expected_start for job in some if job.expected_start)
        parts.append(part + (f", expected start {starts[0].replace('T', ' ')}" if starts else ""))
    return parts


_ENDS = {
    "BOOT_FAIL": "could not be started: its node did not boot",
    "CANCELLED": "was cancelled",
    "COMPLETED": "ended",
    "DEADLINE": "reached its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "lost its node",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "was preempted",
    "TIMEOUT": "reached its walltime",
}


def end_in_words(job: Job, state: JobState | None) -> str:
    """How a job ended, as Slurm tells it; None when it has forgotten it."""
    if state is None:
        return "is gone, and Slurm knows no more of it"
    words = _ENDS.get(state.state)
    if words is None:
        words = f"is held: {explain(state.reason).words}" if state.state == "PENDING" else "was ended: no worker came"
    where = f" on {state.nodes}" if state.nodes else ""
    code = f" with exit code {state.exit_code}" if state.exit_code not in (None, "0:0") else ""
    return f"{words}{where}{code}{'' if job.came else ' before its worker came'}"


def _verb(jobs: Sequence[object], verb: str) -> str:
    return f"{verb}s" if len(jobs) == 1 else verb


def listed(ids: Sequence[str]) -> str:
    """Job 7, or jobs 7, 8, 9, 10, 11 and 3 more."""
    if len(ids) == 1:
        return f"job {ids[0]}"
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"jobs {', '.join(ids[:5])}{more}"
