"""What a worker's Slurm job asks for: a profile in dask-jobqueue's format, with the run file's keys over it."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes

from geochip.cluster._environment import export_lines, guarded
from geochip.config import ClusterConfig, SlurmJobConfig, memory_mib, one_line, walltime_seconds
from geochip.errors import InputError

Section = dict[str, Any]
"""A section of jobqueue.yaml: dask-jobqueue's keys, with hyphens."""

# Options of sbatch by their other names, as the script has them.
_WRITTEN = {
    "--job-name": "-J ", "-J": "-J ", "--partition": "-p ", "-p": "-p ", "--account": "-A ", "-A": "-A ",
    "--ntasks": "-n ", "-n": "-n ", "--time": "-t ", "-t": "-t ", "-c": "--cpus-per-task=", "-N": "--nodes=",
    "--nodes": "--nodes=", "-q": "--qos=", "--qos": "--qos=", "--mem": "--mem=", "--mem-per-cpu": "--mem=",
}  # fmt: skip

_RENAMED = {
    "extra": "worker-extra-args", "job-extra": "job-extra-directives", "env-extra": "job-script-prologue",
    "header-skip": "job-directives-skip", "project": "account",
}  # fmt: skip


def full_section(cluster: ClusterConfig, jobs: str, defaults: Section) -> Section:
    """What a worker's job asks for: dask-jobqueue's defaults, the profile's values, those of the run file.

    Args:
        cluster: what the run file says.
        jobs: cpu or gpu.
        defaults: of all keys that there are.

    Raises:
        InputError: when the profile is not there, or asks for what a job cannot be here.
    """
    config: SlurmJobConfig = getattr(cluster, jobs)
    key = f"cluster.{jobs}"
    section = {**defaults, **_profile(cluster, config.profile, key, {*defaults, *_RENAMED})}
    extra = [f"--{name}={value}" for name in ("qos", "gres") if (value := getattr(config, name)) is not None]
    if config.memory is not None:
        # dask-jobqueue counts "20GB" as 10^9 bytes, and asks for 19 G.
        section |= {"memory": f"{memory_mib(config.memory)}MiB", "job-mem": None}
    section |= {
        name: value
        for name, value in {
            "queue": config.partition, "account": config.account, "walltime": config.walltime, "python": config.python,
            "interface": config.interface, "log-directory": config.log_directory, "job-cpu": config.cores,
        }.items()
        if value is not None
    }  # fmt: skip
    section["job-cpu"] = section["job-cpu"] or section["cores"] or 1
    section["memory"] = section["memory"] or "4GiB"
    section["python"] = section["python"] or shlex.quote(sys.executable)
    # A worker of one thread in one process: of more of them, one that dies is never seen to be gone.
    section |= {"cores": 1, "processes": 1}
    if config.local_directory is not None:
        section["local-directory"] = in_quotes(config.local_directory)
    # A profile's are dask-jobqueue's, which takes them for parts of lines; ours are options.
    skip = [*section["job-directives-skip"], *(_start_of_line(option) for option in config.skip_directives)]
    lines = {one: f"#SBATCH {one}" for one in ("--nodes=1", "--requeue", "--open-mode=append", *extra)}
    wanted = [one for one, line in lines.items() if not any(word in line for word in skip)]
    ours, extra = [one for one in wanted if one not in extra], [one for one in wanted if one in extra]
    section |= {
        "job-directives-skip": skip,
        "job-extra-directives": [*ours, *_listed(section["job-extra-directives"]), *extra, *config.directives],
        "job-script-prologue": [
            *export_lines(),
            *section["job-script-prologue"],
            *guarded(config.prologue, f"{key}.prologue"),
        ],
    }
    return section


def _start_of_line(option: str) -> str:
    """How the line of a job's script begins in which dask-jobqueue, or we, write an option of sbatch.

    As a part of a line, "--time" would be in none, and "-t" in "--cpus-per-task" as well.
    """
    name = re.split(r"[= ]", option.strip(), maxsplit=1)[0]
    return "#SBATCH " + _WRITTEN.get(name, name)


def _canonical(section: Mapping[str, Any]) -> Section:
    return {str(name).replace("_", "-"): value for name, value in section.items()}


def _listed(directives: Any) -> list[str]:
    """Directives, which a profile may also give as a mapping."""
    if isinstance(directives, Mapping):
        return [f"{name}={value}" for name, value in directives.items()]
    return list(directives)


def _profile(cluster: ClusterConfig, name: str | None, key: str, known: set[str]) -> Section:
    """What a profile says, from the file of the run file or from Dask's own configuration."""
    where = "Dask's configuration (jobqueue.yaml in ~/.config/dask)"
    # Without the defaults that packages bring along.
    profiles: Any = dask.config.collect().get("jobqueue") or {}
    if cluster.profiles is not None:
        where = cluster.profiles
        profiles = _profiles_in(Path(cluster.profiles))
    if name is None and "slurm" not in profiles:
        return {}
    found = profiles.get(name or "slurm")
    if not isinstance(found, dict):
        raise InputError(
            f"{key}.profile: there is no profile {name or 'slurm'!r} in {where}; there are: "
            f"{', '.join(sorted(profiles)) or 'none'}"
        )
    section, what = _canonical(found), f"{key}.profile: {name or 'slurm'} in {where}"
    if unknown := sorted(set(section) - known):
        raise InputError(
            f"{what} has {', '.join(unknown)}, which dask-jobqueue does not know "
            f"(a partition is called queue); known are {', '.join(sorted(known - set(_RENAMED)))}"
        )
    for old, new in _RENAMED.items():
        if (value := section.pop(old, None)) and not section.get(new):
            section[new] = value
    for field, value in section.items():
        # Lines of a shell are meant to be some there.
        if field != "job-script-prologue" and not all(map(one_line, _texts(value))):
            raise InputError(
                f"{what} has {field}: {value!r}, with a line break or another control character, by which a job's "
                "script would have lines of its own; write it in one line (commands belong into job_script_prologue)"
            )
    if (section.get("processes") or 1) != 1:
        raise InputError(
            f"{what} has processes: {section['processes']}, but a job is one worker here: "
            "leave processes out, and divide cores and memory by it"
        )
    for field, parse in (("memory", parse_bytes), ("walltime", walltime_seconds)):
        try:
            if section.get(field) is not None:
                parse(section[field])
        except (ValueError, TypeError):
            raise InputError(
                f"{what} has {field}: {section[field]!r}; put it in quotes and write "
                f"{'an amount such as 8GiB' if field == 'memory' else 'a time such as 02:30:00'}"
            ) from None
    return {name: value for name, value in section.items() if value is not None}


def _texts(value: Any) -> list[str]:
    """All texts within a value of a profile."""
    if isinstance(value, Mapping):
        return [text for pair in value.items() for one in pair for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [value] if isinstance(value, str) else []


def _profiles_in(path: Path) -> Mapping[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cluster.profiles: {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"cluster.profiles: {path} is no valid YAML: {' '.join(str(error).split())}") from None
    profiles = document.get("jobqueue") if isinstance(document, dict) else None
    if not isinstance(profiles, dict):
        raise InputError(f"cluster.profiles: {path} must hold profiles under the key jobqueue, as jobqueue.yaml does")
    return profiles


def in_quotes(text: str) -> str:
    """A word of a shell in which variables are still replaced, and nothing else: $TMPDIR is, $(command) is not."""
    return '"' + re.sub(r'(["\\`]|\$(?!\w|\{\w+\}))', r"\\\1", text) + '"'
