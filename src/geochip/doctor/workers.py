"""Checks from a worker's side: it starts as in a run, sees the same disks and data, and has the same versions."""

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geochip.cluster import Jobs, StillWaitingError, dask_client, end_of, wait_for_a_worker
from geochip.doctor import batch, machine
from geochip.doctor.data import pretrained_weights_of_worker, wanted_weights
from geochip.doctor.disks import why_not_writable
from geochip.doctor.findings import DEVICES, Case, Finding, existing, fail, not_made, ok
from geochip.doctor.probe import Seen, file_of, look_from_worker, remove_marks, without_mark, write_mark
from geochip.errors import GeochipError, WorkError

_MINUTES = 1.0
"""How long a probe waits for its job, unless told to be patient."""
# Where an error says that the probe's logs are, which are removed: their last lines are told instead.
_LOGS = r" \(log: [^()]*/\.geochip-doctor-[^()]*\)|(?<=see the log)s, [^;]*/\.geochip-doctor-[^;]*"
_SECOND_TRIES = 1
"""One job that dies may be a node's fault; the second one tells."""
SEEN_AFTER = 10.0
"""Seconds after which a file of another machine must be seen."""
_LINES_OF_LOG = 4
_SECONDS_TO_LOOK = 240.0
"""How long a worker may take to look: a disk that hangs must not hang the doctor."""


def interfaces(case: Case) -> list[Finding]:
    """The network interfaces that driver and workers are told to use; those of this machine can be seen from here."""
    cluster = case.config.cluster
    if cluster.kind not in ("slurm", "srun") or case.elsewhere:
        return []
    names = {f"cluster.{jobs}.interface": getattr(cluster, jobs).interface for jobs in ("cpu", "gpu")}
    if not isinstance(case.scripts, GeochipError):
        # With what a profile says.
        for jobs, script in case.scripts.items():
            names[f"cluster.{jobs}.interface"] = batch.read_script(script).interface
    return machine.interface(case.facts, cluster.scheduler_interface, names)


def probe(case: Case) -> list[Finding]:
    """Start one worker of each kind that a run uses, and look from there."""
    if not case.probe:
        return [
            not_made(
                "worker",
                "none was started (--no_probe): whether workers see disks and data is not known",
                "run this command again without --no_probe",
            )
        ]
    of_slurm = case.config.cluster.kind == "slurm"
    found = []
    for jobs in alike(case.scripts) if of_slurm else ("cpu",):
        what = f"{jobs} worker" if of_slurm else "worker"
        if jobs in case.refused:
            how = batch.IN_A_JOB if case.elsewhere else "mend what is said above of its job"
            found.append(not_made(what, "none was started: see above what would keep its job from working", how))
        else:
            found += probe_one(case, what, jobs)
    return found


def alike(scripts: Mapping[Jobs, str] | GeochipError) -> tuple[Jobs, ...]:
    """The kinds of jobs to look at: one, where both ask for the same."""
    if isinstance(scripts, GeochipError):
        return ("cpu", "gpu")
    # But for the names of job and log.
    same = scripts["cpu"].replace("chip-worker-geochip", "infer-worker-geochip") == scripts["gpu"]
    return ("gpu",) if same else ("cpu", "gpu")


def probe_one(case: Case, what: str, jobs: Jobs) -> list[Finding]:
    """Start one worker and look from there.

    Args:
        case: the case.
        what: the worker, in words.
        jobs: which Slurm jobs it stands for.
    """
    # That others cannot be written to has been told.
    writable = (path for path in case.written.values() if why_not_writable(path) is None)
    directories = sorted({str(existing(path)) for path in writable})
    nonce = secrets.token_hex(8)
    started = time.monotonic()
    try:
        with marks(directories, nonce), worker(case, jobs, nonce) as client:
            seconds = time.monotonic() - started
            weights = wanted_weights(case) if trains(case, jobs) else None
            seen, back = look(client, directories, files_of(case), nonce, gpus=wants_gpu(case, jobs), weights=weights)
    except GeochipError as error:
        return [why_no_worker(case, what, error)]
    return [
        ok(what, f"started on {seen.facts.host} after {seconds:.0f} s"),
        *judge_disks(what, directories, seen, back),
        *judge_worker(case, jobs, seen),
    ]


def why_no_worker(case: Case, what: str, error: GeochipError) -> Finding:
    """What kept a worker from coming: only what waiting cannot heal would end a run."""
    log = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if not case.patient and isinstance(error, StillWaitingError):
        return not_made(
            what, f"none within a minute: {error.standing}; --wait waits as long as a run would{log}",
            "run this command again with --wait",
        )  # fmt: skip
    text = " ".join(re.sub(_LOGS, "", str(error)).split())
    return fail(what, re.sub(r"; what is finished is kept.*", "", text) + log)


@contextlib.contextmanager
def marks(directories: list[str], nonce: str) -> Iterator[None]:
    """The driver's marks in these directories, as long as the context lasts."""
    try:
        for directory in directories:
            write_mark(directory, nonce, "driver")
        yield
    finally:
        remove_marks(directories, nonce)


@contextlib.contextmanager
def worker(case: Case, jobs: Jobs, nonce: str) -> Iterator[Any]:
    """A client of a cluster with one worker, which leaves no log and no keys."""
    cluster, directory = case.config.cluster, file_of(existing(Path(case.config.run_dir)), nonce, "run_dir")
    if cluster.kind != "address":
        job = replace(getattr(cluster, jobs), log_directory=str(directory))
        minutes = cluster.wait_minutes if case.patient else min(cluster.wait_minutes, _MINUTES)
        cluster = replace(
            cluster, workers=1, dashboard=False, wait_minutes=minutes, max_replacements=_SECOND_TRIES, **{jobs: job}
        )
    try:
        with dask_client(cluster, jobs=jobs, run_dir=directory) as client:
            try:
                wait_for_a_worker(client)
                yield client
            except GeochipError as error:
                # Now: the log goes with the directory.
                if lines := last_lines(directory):
                    error.add_note(f"its log ends: {lines}")
                raise
    finally:
        remove_directory(directory)


def last_lines(directory: Path) -> str:
    """The last lines of the probe's latest log, in one; "" where there is none."""
    logs = sorted(directory.glob("*.out"), key=lambda path: path.stat().st_mtime)
    lines = end_of(logs[-1]).splitlines()[-_LINES_OF_LOG:] if logs else []
    return " | ".join(" ".join(line.split()) for line in lines)


def remove_directory(directory: Path) -> None:
    """Remove the directory of a probe; a job that is just ending may write into it once more."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


def look(
    client: Any,
    directories: list[str],
    files: list[str],
    nonce: str,
    *,
    gpus: bool,
    weights: tuple[str, str] | None,
) -> tuple[Seen, list[str]]:
    """What a worker sees, and the directories in which its marks do not appear here."""
    one = next(iter(client.scheduler_info(n_workers=-1)["workers"].items()))
    address, scratch = one[0], one[1]["local_directory"]

    def call(function: Any, *arguments: Any) -> Any:
        future = client.submit(function, *arguments, pure=False, workers=[address])
        try:
            return future.result(timeout=_SECONDS_TO_LOOK)
        except (ImportError, AttributeError) as error:
            raise WorkError(
                f"it lacks what this geochip needs ({error}); install the same geochip for driver and workers"
            ) from None
        except TimeoutError:
            raise WorkError(
                f"it has not looked at its machine within {_SECONDS_TO_LOOK:.0f} s: it died, or a disk hangs "
                "there; see `df` on that machine, and the worker's log"
            ) from None

    # A worker that cannot import a task's function dies of reading the task, and only its log says why. This one comes
    # with Python.
    call(eval, "__import__('geochip.doctor.probe') and None")
    seen: Seen = call(look_from_worker, directories, files, nonce, scratch, gpus, weights, SEEN_AFTER)
    back = without_mark([one for one in directories if one not in seen.unwritable], nonce, "worker", SEEN_AFTER)
    if back:
        # On a disk of the worker's own, where only it can remove them.
        call(remove_marks, directories, nonce)
    return seen, back


def files_of(case: Case) -> list[str]:
    """Some files that workers read: the first scene's."""
    if isinstance(case.plan, GeochipError):
        return []
    first = case.plan.first
    return [str(Path(name).absolute()) for name in (first.image, first.label) if name is not None]


def trains(case: Case, jobs: Jobs) -> bool:
    """Whether a worker of this kind stands for the machines that train, of which this one is none."""
    # train.sbatch asks for what a gpu job asks for; within one job there is one kind of nodes.
    kind = case.config.cluster.kind
    return kind == "srun" or (kind == "slurm" and jobs == "gpu")


def computes_on(case: Case, jobs: Jobs) -> Sequence[str]:
    """The keys of the run file that say what a worker's machine, which is not this one, computes on."""
    if trains(case, jobs):
        return DEVICES
    return ("infer.device",) if case.config.cluster.kind == "address" else ()


def wants_gpu(case: Case, jobs: Jobs) -> bool:
    """Whether training or inference may compute on a GPU that this worker sees and this machine does not."""
    return case.devices("cuda", "auto", keys=computes_on(case, jobs)) != ""


def judge_disks(what: str, directories: list[str], seen: Seen, back: list[str]) -> list[Finding]:
    """Whether driver and worker see the same directories, and the worker the data."""
    found = []
    host = seen.facts.host
    remedy = "put run_dir on a disk that all machines share"
    for directory in directories:
        if directory in seen.unwritable:
            found.append(fail(what, f"{directory} takes no file on {host}: {seen.unwritable[directory]}; {remedy}"))
        elif directory in seen.unseen or directory in back:
            found.append(
                fail(
                    what,
                    f"{directory} is another one on {host}: neither sees the other's files; {remedy}",
                )
            )
        else:
            found.append(ok(what, f"{directory}: each sees the other's file"))
    for name, reason in seen.unreadable.items():
        found.append(fail(what, f"{name} cannot be read on {host}: {reason}; put the data on a disk that workers see"))
    return found


def judge_worker(case: Case, jobs: Jobs, seen: Seen) -> list[Finding]:
    """The worker's machine."""
    facts, where = seen.facts, f" on {seen.facts.host}"
    found = machine.same_versions(case.facts.versions, facts.versions, where)
    found.append(machine.scratch(facts, where))
    found += pretrained_weights_of_worker(case, seen.no_weights, where)
    if case.config.cluster.kind == "local":
        return found
    if facts.gpus is not None:
        found.append(machine.shared_memory(facts, where))
        asked = ""
        if not isinstance(case.scripts, GeochipError) and jobs in case.scripts:
            asked = batch.asked_gpus(batch.read_script(case.scripts[jobs]))
        found += machine.judge_gpus(case, facts.gpus, where, asked, computes_on(case, jobs))
        if trains(case, jobs):
            found += machine.judge_nccl(case, facts.gpus, where)
    return found
