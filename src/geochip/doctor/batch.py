"""Checks of Slurm: what the workers' jobs ask for, held against what the cluster has, and against Slurm's own word."""

import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from geochip.chip_report import megabytes
from geochip.cluster import Jobs, export_lines, require_slurm, submission_environment
from geochip.config import memory_mib, walltime_seconds
from geochip.doctor.findings import Case, Finding, fail, fails, listed, not_made, ok, warn
from geochip.doctor.machine import worker_bytes
from geochip.errors import GeochipError, InputError
from geochip.slurm import Partition, SlurmError, partitions, remedy, run_slurm, words_of

_SHORT = {"-p": "partition", "-A": "account", "-q": "qos", "-t": "time", "-c": "cpus-per-task", "-n": "ntasks",
          "-N": "nodes", "-C": "constraint", "-G": "gpus"}  # fmt: skip

IN_A_JOB = "run this command again in a Slurm job"
"""How to make the checks that cluster.kind: srun allows in a job only."""
_GPUS = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_IMAGES = (".sif", ".simg", ".sqsh")
# MiB, for a worker that predicts. Python with a CUDA build of PyTorch was seen at 830 MiB before the first block.
_LEAST_TO_PREDICT = 1536


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job script asks for, read from the script itself: profiles and directives are in it already."""

    directives: Mapping[str, str]
    """Values of its #SBATCH lines by their long names, such as {"partition": "gpu", "mem": "8G"}."""
    launcher: tuple[str, ...]
    """The words that start Python, such as ("apptainer", "exec", "image.sif", "python")."""
    interface: str | None
    """The worker's network interface."""
    prologue: bool
    """Whether lines other than geochip's own run before the worker starts, which may change PATH."""


def read_script(script: str) -> Job:
    """What a worker's job script asks for."""
    directives: dict[str, str] = {}
    words: list[str] = []
    lines, own = 0, export_lines()
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            name, _, value = line.removeprefix("#SBATCH").strip().partition(" ")
            if name.startswith("--") and "=" in name:
                name, _, value = name.partition("=")
            directives[_SHORT.get(name, name.lstrip("-"))] = value.strip()
        elif "dask_worker" in line or "dask-worker" in line:
            words = shlex.split(line)
        elif line.strip() and not words and not line.startswith("#") and line not in own:
            lines += 1
    launcher = words[: words.index("-m")] if "-m" in words else words[:1]
    interface = words[words.index("--interface") + 1] if "--interface" in words else None
    return Job(directives=directives, launcher=tuple(launcher), interface=interface, prologue=lines > 0)


def asked_gpus(job: Job) -> str:
    """The option by which a job asks for GPUs, such as "gres gpu:a100:1" or "gpus-per-node 2"; "" where none does."""
    for name, value in job.directives.items():
        # Those of Slurm that begin so take a number, or a type and a number.
        requests = [f"gpu:{one}" if name.startswith("gpus") else one for one in value.split(",")]
        if (name == "gres" or name in _GPUS) and any(
            kind == "gpu" and count > 0 for kind, _, count in map(split_gres, requests)
        ):
            return f"{name} {value}"
    return ""


def jobs(case: Case) -> list[Finding]:
    """Slurm's commands, and whether it would take the jobs of the run file."""
    cluster = case.config.cluster
    if case.elsewhere:
        case.refused |= {"cpu", "gpu"}
        return [
            not_made(
                "slurm",
                "cluster.kind: srun starts workers inside a Slurm job only, and SLURM_JOB_ID is not set: workers and "
                "their network can be judged in a job only; run this command again in one (salloc, or a script for "
                "sbatch)",
                IN_A_JOB,
            )
        ]
    try:
        require_slurm(cluster)
        if cluster.kind == "srun":
            return [inside()]
        if cluster.kind != "slurm":
            return []
        known = partitions()
    except (InputError, SlurmError) as error:
        case.refused |= {"cpu", "gpu"}
        return fails("slurm", error)
    scripts = case.scripts
    if isinstance(scripts, GeochipError):
        case.refused |= {"cpu", "gpu"}
        return fails("slurm", scripts)
    found = [ok("slurm", f"{version()}; partitions {listed(sorted(known))}")]
    for name, script in scripts.items():
        job = read_script(script)
        faults = [
            *judge_partition(name, job, known),
            *judge_memory(case, name, job),
        ]
        if not any(one.level == "FAIL" for one in faults):
            # After the checks of our own, which say more exactly what to change.
            faults += ask_slurm(name, script)
        faults += launcher(name, job)
        if any(one.level == "FAIL" for one in faults):
            case.refused.add(name)
        found += faults
    return [*found, *account(scripts)]


def version() -> str:
    """Slurm's version, such as "slurm 22.05.8"."""
    try:
        return run_slurm("sbatch", "--version").strip()
    except SlurmError:
        return "slurm"


def judge_partition(name: str, job: Job, known: Mapping[str, Partition]) -> list[Finding]:
    """Whether the partition is there, is up, and has nodes like that."""
    what, key = f"{name} job", f"cluster.{name}"
    asked = job.directives.get("partition")
    there = [known[one] for one in (asked.split(",") if asked else ()) if one in known]
    if asked is None:
        there = [partition for partition in known.values() if partition.default]
        if not there:
            return [fail(what, f"{key}.partition: none is named and Slurm has no default; name one of {listed(known)}")]
    if not there:
        return [fail(what, f"{key}.partition: there is no partition {asked!r}; there are {listed(sorted(known))}")]
    # Of several that are named Slurm takes the first that can: judged by the largest.
    faults: list[Finding] = []
    for partition in there:
        if not (faults := faults_of_partition(what, key, job, partition)):
            shown = f"{partition.name}, up, {partition.nodes} nodes of {partition.cpus_per_node} CPUs and " + megabytes(
                partition.memory_per_node * 2**20
            )
            shown += f", {partition.gres}" if partition.gres else ""
            return [ok(what, f"partition {shown}; at most {partition.max_time}")]
    return faults


def faults_of_partition(what: str, key: str, job: Job, partition: Partition) -> list[Finding]:
    """What a partition cannot give."""
    asked, name = job.directives, partition.name
    faults = []
    if not partition.up:
        faults.append(fail(what, f"{key}.partition: {name} is not up; name another one (`sinfo` lists them), or wait"))
    time, most = seconds_of(asked.get("time", "")), seconds_of(partition.max_time)
    if time is not None and most is not None and time > most:
        faults.append(
            fail(what, f"{key}.walltime: {asked['time']} is more than partition {name} allows, {partition.max_time}; "
                       "lower it")
        )  # fmt: skip
    cores = int(asked["cpus-per-task"]) if asked.get("cpus-per-task", "").isdigit() else 1
    if cores > partition.cpus_per_node:
        faults.append(
            fail(what, f"{key}.cores: {cores} are more than any node of partition {name} has, "
                       f"{partition.cpus_per_node}; lower it, and use more workers")
        )  # fmt: skip
    memory = memory_of(asked.get("mem", ""))
    if memory is not None and memory > partition.memory_per_node:
        faults.append(
            fail(what, f"{key}.memory: {megabytes(memory * 2**20)} is more than any node of partition {name} has, "
                       f"{megabytes(partition.memory_per_node * 2**20)}; lower it")
        )  # fmt: skip
    # How sinfo writes them leaves room for doubt: whether it ends the run is Slurm's own word, see ask_slurm.
    faults += [
        warn(
            what,
            f"{key}.gres: no node of partition {name} has {request}; they have {partition.gres or 'none at all'}; name "
            "what there is",
        )
        for request in asked.get("gres", "").split(",")
        if request and not has_gres(partition.gres, request)
    ]
    return faults


def has_gres(there: str, request: str) -> bool:
    """Whether some node has what is asked for.

    Args:
        there: as sinfo writes it, such as gpu:a100:4(S:0-1),localtmp:1536G; gpu:v100:2 for two kinds of nodes.
        request: as --gres takes it, such as gpu, gpu:1, gpu:a100, gpu:a100:2 or localtmp:50G.
    """
    name, kind, count = split_gres(request)
    for node in re.sub(r"\([^)]*\)", "", there).split(";"):
        found = [split_gres(one.strip()) for one in node.split(",")]
        # A node's own ones of several types count together for a request without a type.
        counts = [has for has_name, has_kind, has in found if name == has_name and kind in ("", has_kind)]
        if counts and count <= sum(counts):
            return True
    return False


def split_gres(text: str) -> tuple[str, str, int]:
    """Name, type ("" for any) and number of a generic resource; 50G are 50 * 2**30."""
    name, *more = re.sub(r"^gres[:/]", "", text).split(":")
    # Of what is there without being used up, such as bandwidth:no_consume:4G.
    more = [one for one in more if one != "no_consume"]
    count = 1
    if more and (number := re.fullmatch(r"(\d+)([kmgtp]?)", more[-1], re.IGNORECASE)):
        count = int(number[1]) * 1024 ** " kmgtp".index(number[2].lower() or " ")
        more.pop()
    return name, more[0] if more else "", count


def seconds_of(walltime: str) -> int | None:
    """Seconds of a walltime; None for no limit."""
    try:
        return walltime_seconds(walltime)
    except ValueError:
        return None


def memory_of(text: str) -> int | None:
    """MiB of a memory as --mem takes it; None where it says nothing, and for 0, which is all of a node."""
    try:
        return memory_mib(text) or None
    except ValueError:
        return int(text) or None if text.isdigit() else None


def judge_memory(case: Case, name: str, job: Job) -> list[Finding]:
    """Whether a worker has the memory that it takes."""
    given, needed = memory_of(job.directives.get("mem", "")), worker_bytes(case)
    if given is None:
        return []
    if name == "gpu" and given < _LEAST_TO_PREDICT:
        return [
            warn(
                f"{name} job",
                f"cluster.gpu.memory: {megabytes(given * 2**20)} is little: PyTorch alone takes up to 0.8 GiB, and a "
                "worker takes no tasks while it is 80 % full; raise it",
            )
        ]
    if name != "cpu" or needed is None or given * 2**20 >= needed:
        return []
    return [
        warn(
            f"{name} job",
            f"cluster.cpu.memory: {megabytes(given * 2**20)} is less than a worker that chips takes, about "
            f"{megabytes(needed)}; raise it, or use smaller chips",
        )
    ]


def ask_slurm(name: str, script: str) -> list[Finding]:
    """What Slurm itself says of a job, without submitting it."""
    what = f"{name} job"
    try:
        done = subprocess.run(
            ["sbatch", "--test-only"], input=script, capture_output=True, text=True, timeout=60, check=False,
            env=submission_environment(script), start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return [fail(what, "sbatch --test-only did not answer within 60 s; see `scontrol ping`, and try again later")]
    said = words_of("sbatch", done.stderr)
    if done.returncode:
        return [fail(what, f"Slurm refuses it: {said}; {remedy(said, f'cluster.{name}')}")]
    if start := re.search(r"to start at (\S+).*?(?:on nodes? (\S+))?(?: in partition \S+)?$", said):
        return [ok(what, f"Slurm takes it: one submitted now would start at {start[1]}" +
                   (f" on {start[2]}" if start[2] else ""))]  # fmt: skip
    return [ok(what, f"Slurm takes it: {said}")]


def launcher(name: str, job: Job) -> list[Finding]:
    """Whether the program that starts Python in a job is there, and the container's image."""
    if not job.launcher:
        return []
    what, key, program = f"{name} job", f"cluster.{name}.python", job.launcher[0]
    # A relative one is looked for in the directory that the command runs in, as a job does.
    found = [
        fail(what, f"{key}: there is no image {word}; build it, or give its path")
        for word in job.launcher
        if word.endswith(_IMAGES) and not Path(word).exists()
    ]
    if shutil.which(program) is None:
        text = f"{key}: {program} is not there, or not on PATH"
        if job.prologue:
            found.append(warn(what, f"{text} of this machine; a job finds it only if its prologue loads it"))
        else:
            advice = f"give its path, or load it in cluster.{name}.prologue (module load ...)"
            found.append(fail(what, f"{text}; {advice}"))
    if not found and len(job.launcher) > 1:
        found.append(ok(what, f"starts Python with {shlex.join(job.launcher)}"))
    return found


def account(scripts: Mapping[Jobs, str]) -> list[Finding]:
    """Which accounts this person may use, where the site's accounting tells."""
    asked = {read_script(script).directives.get("account") for script in scripts.values()} - {None}
    if shutil.which("sacctmgr") is None:
        return []
    try:
        # Slurm goes by the number, whatever the environment says.
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    try:
        listed_ = run_slurm("sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,qos", timeout=15)
    except SlurmError:
        return []  # No accounting here, or none for us: what Slurm itself said of the jobs must do.
    mine = sorted({line.split("|")[0] for line in listed_.splitlines() if line.strip()})
    if not mine:
        return []
    if strange := [name for name in asked if name not in mine]:
        return [warn("account", f"{listed(strange)} is not among yours, {listed(mine)}; name one of them")]
    return [ok("account", f"{listed(sorted(map(str, asked))) or 'the default one'}, of {listed(mine)}")]


def inside() -> Finding:
    """The job that workers are to be started in."""
    job_id, tasks, nodes = (
        os.environ.get(name, "?") for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NODELIST")
    )
    return ok("slurm", f"inside job {job_id}: {tasks} tasks on {nodes}")
