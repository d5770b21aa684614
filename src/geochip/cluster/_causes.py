"""What is told of workers on Slurm, and why one did not come, read from its log."""

import contextlib
import re
import sys
from pathlib import Path
from typing import Protocol

from geochip.errors import as_named_here
from geochip.slurm import JobState

_TAIL_BYTES = 8192
_TAIL_LINES = 12


class Described(Protocol):
    """What the jobs are called in the run file."""

    key: str
    address: str


# What a log holds, why that is, what to do. {key} is cluster.cpu or cluster.gpu, {address} the scheduler's.
_CAUSES = (
    (
        r"geochip: this line of \S+ failed",
        "a line of {key}.prologue failed on the node (see the log); correct it",
    ),
    (
        r"not a valid network interface|doesn't have an IPv4 address",
        "the network interface {key}.interface is not there on the node, or has no address; name one that the nodes "
        "have (`ip address` lists them there), or leave it out",
    ),
    (
        r"\.pem.*does not exist|No such file.*\.pem",
        "the node cannot read the keys in run_dir; choose a run_dir on a disk that the nodes share with this machine",
    ),
    (
        r"No module named|ModuleNotFoundError|ImportError",
        "Python on the node lacks a module (see the log); use an environment that the nodes see, by {key}.python or a "
        "line of {key}.prologue",
    ),
    (
        r"SSL|[Cc]ertificate|[Hh]andshake",
        "worker and scheduler do not agree on TLS; run the same versions of Python and Dask on the nodes as here",
    ),
    (
        r"[Tt]imed out|TimeoutError|refused|No route to host|Network is unreachable|Name or service not known",
        "the worker could not reach the scheduler at {address}; name a network interface that nodes and this machine "
        "share ({key}.interface for the nodes, cluster.scheduler_interface for this machine), or run this command in a "
        "job on a compute node",
    ),
    (r"[Oo]ut [Oo]f [Mm]emory|oom[-_ ]kill|MemoryError|Cannot allocate memory", "memory ran out; raise {key}.memory"),
    (r"No space left|quota exceeded", "a disk of the node is full; name another {key}.local_directory"),
    (
        r"not found|No such file or directory|cannot execute|Permission denied",
        "Python could not be started on the node (see the log); correct {key}.python or {key}.prologue, and use paths "
        "that the nodes see",
    ),
)


def end_of(log: Path) -> str:
    """The last lines of a log without the insides of tracebacks; empty when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line for line in lines if line.strip() and not line.startswith("  "))


def say(text: str) -> None:
    """Tell a person a line about the jobs."""
    # Where nobody listens any more (a closed terminal, head), the jobs are looked after all the same.
    with contextlib.suppress(OSError):
        print(f"Slurm: {as_named_here(text)}", file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Show the end of a log to a person."""
    with contextlib.suppress(OSError):  # as above
        for line in text.splitlines()[-_TAIL_LINES:]:
            print(f"  | {line}", file=sys.stderr, flush=True)


def cause_of(text: str, state: JobState | None, jobs: Described) -> str:
    """The cause that the end of a log shows, and what to do.

    Args:
        text: the log's last lines.
        state: how the job ended.
        jobs: what they are called.
    """
    if state is not None and state.state == "OUT_OF_MEMORY":
        return f"memory ran out; raise {jobs.key}.memory"
    if state is not None and state.state == "CANCELLED":
        return "somebody cancelled them (scancel, or the site's rules); ask the site's staff if it was not you"
    for pattern, words in _CAUSES:
        if re.search(pattern, text):
            return words.format(key=jobs.key, address=jobs.address)
    if not text:
        return (
            f"they wrote no log; see that {jobs.key}.log_directory is on a disk that the nodes share with this "
            "machine, and that the nodes can write there"
        )
    return f"see the log for why; what starts the worker is {jobs.key}.python, after the lines of {jobs.key}.prologue"
