"""Slurm's own commands, typed: what they print as values, what they refuse as errors with a remedy.

Nothing here needs accounting (`sacct`) or JSON output, which many a site lacks.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from geochip.errors import InputError, WorkError
from geochip.slurm._words import Explained, explain, remedy, words_of

__all__ = [
    "ENDED",
    "Explained",
    "JobState",
    "Partition",
    "SlurmError",
    "cancel",
    "clean_environment",
    "explain",
    "find_slurm",
    "inside_a_job",
    "job_states",
    "parse_partitions",
    "parse_scontrol",
    "parse_squeue",
    "partitions",
    "remedy",
    "run_slurm",
    "words_of",
]

_COMMANDS = ("sbatch", "squeue", "scontrol", "scancel")
# An inherited SLURM_CPU_BIND or SBATCH_MEM would shape the jobs that are submitted; SQUEUE_* and SINFO_* hide lines.
_OF_A_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_")
_OF_SLURM = ("SLURM_CONF", "SLURM_JWT")
_OF_LISTS = ("SQUEUE_", "SINFO_", "SCONTROL_", "SCANCEL_")
_IDS_AT_ONCE = 200
_NO_ANSWER = ("timed out", "unable to contact", "zero bytes were transmitted", "connection refused")

ENDED = frozenset((
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
))  # fmt: skip
"""States of jobs that have ended. From NODE_FAIL and PREEMPTED a job that is requeued comes back within seconds."""


class SlurmError(WorkError):
    """A Slurm command failed; the text holds what it wrote to standard error."""

    def __init__(self, text: str, stderr: str = "") -> None:
        super().__init__(text)
        self.stderr = stderr
        """What the command itself said."""

    @property
    def unanswered(self) -> bool:
        """Whether Slurm's controller gave no answer, so that what was asked for may have been done all the same."""
        return not self.stderr or any(words in self.stderr.lower() for words in _NO_ANSWER)


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What Slurm says of one job."""

    job_id: str
    state: str
    """PENDING, RUNNING, COMPLETED, CANCELLED, FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, PREEMPTED, ..."""
    reason: str = ""
    """Slurm's reason code for a job that does not run; see `explain`."""
    expected_start: str | None = None
    """When Slurm expects a pending job to start, such as 2026-03-01T14:00:00; None where it does not know."""
    started: str | None = None
    """When a job that runs or ran was started last."""
    exit_code: str | None = None
    """EXIT:SIGNAL of a job that ended, such as 1:0."""
    nodes: str = ""
    """Nodes that it runs or ran on."""
    restarts: int = 0
    """How often it was requeued."""

    @property
    def ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition, and the largest values that any of its nodes has."""

    name: str
    up: bool
    max_time: str
    """Longest walltime, as Slurm writes it: UNLIMITED or D-HH:MM:SS."""
    nodes: int
    cpus_per_node: int
    memory_per_node: int
    """MB."""
    gres: str
    """Generic resources of its nodes, such as gpu:a100:4,gpu:v100:2; those of other nodes after ";". Empty for none."""
    default: bool
    allow_accounts: str
    """ALL, or account names with commas between them."""


def inside_a_job(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process runs in a Slurm job."""
    return "SLURM_JOB_ID" in (os.environ if environ is None else environ)


def find_slurm(*commands: str) -> None:
    """See that Slurm's commands can be called.

    Args:
        commands: which; none: those that submit and follow jobs.

    Raises:
        InputError: when one is not on PATH.
    """
    missing = [name for name in commands or _COMMANDS if shutil.which(name) is None]
    if not missing:
        return
    container = os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER")
    where = (
        f"this process runs inside the container {container}, where Slurm is not: run the command outside of it, and "
        "name the image in cluster.cpu.python and cluster.gpu.python"
        if container
        else "run the command on a login node of the cluster, or in a job (module load slurm, on some sites); on one "
        "machine use cluster.kind: local"
    )
    raise InputError(
        f"cluster.kind: {', '.join(missing)} is not on PATH, so no jobs can be submitted from here; {where}"
    )


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment to submit a job with from inside another one.

    Args:
        environ: the environment; that of this process when None.

    Returns:
        It without what describes the surrounding job. SLURM_CONF and SLURM_JWT stay: where Slurm is, and the key to it.
    """
    return {
        name: value
        for name, value in (os.environ if environ is None else environ).items()
        if name in _OF_SLURM or not name.startswith(_OF_A_JOB)
    }


def run_slurm(
    *command: str, timeout: float = 30, stdin: str | None = None, environ: Mapping[str, str] | None = None
) -> str:
    """Run one of Slurm's commands.

    Args:
        command: the command and its arguments.
        timeout: seconds to wait for it.
        stdin: text for its standard input.
        environ: its environment; when None that of this process, without what belongs to a surrounding job.

    Returns:
        What it printed.

    Raises:
        InputError: when there is no such command.
        SlurmError: when it fails or does not answer, with its own words and what to do.
    """
    environ = clean_environment() if environ is None else environ
    environ = {name: value for name, value in environ.items() if not name.startswith(_OF_LISTS)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=environ,
            input="" if stdin is None else stdin,
            # Ctrl-C is the driver's: a command that dies of it would leave a job that nobody knows.
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        find_slurm(command[0])
        raise
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {timeout:.0f} s; Slurm's controller may be busy or down: try "
            "`scontrol ping`, and run the same command again later"
        ) from None
    if done.returncode:
        said = words_of(command[0], done.stderr) or f"it ended with exit code {done.returncode}"
        raise SlurmError(f"{command[0]}: {said}; {remedy(said)}", said)
    return done.stdout


def job_states(name: str, ids: Iterable[str] = (), *, details: bool = True) -> dict[str, JobState]:
    """What Slurm says of this user's jobs of a name.

    Args:
        name: of the jobs. Their ids alone would not do: one that was submitted may have none that anybody read.
        ids: of those that are known. A site, or a person's directives, may have given them another name.
        details: ask for exit code and restarts of those of `ids` that have ended, each by a command of its own.

    Returns:
        By id. A job that Slurm has forgotten, some minutes after its end, is absent.

    Raises:
        SlurmError: when Slurm does not answer.
    """
    whose = (f"--name={name}", f"--user={os.getuid()}")
    squeue = ("squeue", "-h", "-a", "-t", "all", "-o", "%A|%T|%S|%N|%r")
    states, ids = parse_squeue(run_slurm(*squeue, *whose)), list(ids)
    missing = [job_id for job_id in ids if job_id not in states]
    for start in range(0, len(missing), _IDS_AT_ONCE):
        try:
            some = ",".join(missing[start : start + _IDS_AT_ONCE])
            # Numbers come again where a controller lost its state: a stranger's job is none of ours.
            states |= parse_squeue(run_slurm(*squeue, whose[1], "-j", some))
        except SlurmError as error:
            # What squeue says when it is asked for one job alone, and does not know that.
            if "invalid job id" not in str(error).lower():
                raise
    for job_id in ids:
        if details and job_id in states and states[job_id].ended:
            states[job_id] = _with_details(states[job_id])
    return states


def parse_squeue(text: str) -> dict[str, JobState]:
    """Lines of `squeue -o '%A|%T|%S|%N|%r'` by job id."""
    states = {}
    for line in text.splitlines():
        if line.count("|") < 4:
            continue
        job_id, state, start, nodes, reason = (part.strip() for part in line.split("|", 4))
        pending = state == "PENDING"
        when = start if start not in ("N/A", "Unknown", "") else None
        states[job_id] = JobState(
            job_id=job_id, state=state, nodes="" if nodes == "(null)" else nodes,
            reason="" if reason in ("None", "(null)") else reason,
            expected_start=when if pending else None, started=None if pending else when,
        )  # fmt: skip
    return states


def _with_details(state: JobState) -> JobState:
    try:
        shown = run_slurm("scontrol", "-o", "show", "job", state.job_id)
    except SlurmError:
        # Forgotten in between.
        return state
    found = parse_scontrol(shown)
    if not found:
        return state
    nodes = found.get("NodeList", "(null)")
    return replace(
        state,
        exit_code=found.get("ExitCode"),
        restarts=int(found.get("Restarts", "0")),
        nodes=state.nodes or ("" if nodes == "(null)" else nodes),
    )


def parse_scontrol(line: str) -> dict[str, str]:
    """The KEY=VALUE pairs of a line of `scontrol -o show ...`; a value may hold spaces, and other equals signs."""
    pairs = re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(.*?)(?=\s+[A-Za-z][\w:/]*=|\s*$)", line.strip())
    first: dict[str, str] = {}
    for key, value in pairs:
        first.setdefault(key, value)
    return first


def partitions() -> dict[str, Partition]:
    """The partitions that this user can see, by name.

    Raises:
        SlurmError: when Slurm does not answer.
    """
    return parse_partitions(
        run_slurm("scontrol", "-o", "show", "partition"),
        run_slurm("sinfo", "-h", "-a", "-e", "-o", "%R|%D|%c|%m|%G"),
    )


def parse_partitions(shown: str, listed: str) -> dict[str, Partition]:
    """Partitions from `scontrol -o show partition` and `sinfo -e -o '%R|%D|%c|%m|%G'`."""
    nodes: dict[str, list[list[str]]] = {}
    for line in listed.splitlines():
        if line.count("|") == 4:
            name, *values = (part.strip() for part in line.split("|"))
            nodes.setdefault(name, []).append(values)
    found = {}
    for line in shown.splitlines():
        pairs = parse_scontrol(line)
        if "PartitionName" not in pairs:
            continue
        name = pairs["PartitionName"]
        kinds = nodes.get(name, [])
        gres = {kind[3] for kind in kinds} - {"(null)", ""}
        found[name] = Partition(
            name=name,
            up=pairs.get("State", "UP") == "UP",
            max_time=pairs.get("MaxTime", "UNLIMITED"),
            nodes=sum(_number(kind[0]) for kind in kinds),
            cpus_per_node=max((_number(kind[1]) for kind in kinds), default=0),
            memory_per_node=max((_number(kind[2]) for kind in kinds), default=0),
            gres="; ".join(sorted(gres)),
            default=pairs.get("Default") == "YES",
            allow_accounts=pairs.get("AllowAccounts", "ALL"),
        )
    return found


def _number(text: str) -> int:
    """A whole number as sinfo prints it: 128, or 64+ where nodes differ."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def cancel(ids: Iterable[str]) -> None:
    """Cancel jobs; those that have ended already are passed over.

    Raises:
        SlurmError: when Slurm does not answer.
    """
    ids = list(ids)
    for start in range(0, len(ids), _IDS_AT_ONCE):
        try:
            run_slurm("scancel", "--quiet", *ids[start : start + _IDS_AT_ONCE])
        except SlurmError as error:
            if "invalid job id" not in str(error).lower():
                raise
