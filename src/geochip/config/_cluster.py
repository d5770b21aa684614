"""Where Dask runs, and what its workers' Slurm jobs ask for."""

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from geochip.config._rules import ONE_LINE, Rule, check, one_line, within

# As Slurm counts them: 8G, 8GB and 8GiB are all 8 x 1024 MiB.
_MEMORY = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?([KMGT])(?:i?B)?")
_MIB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
# What a shell would take for more than a name is in none.
_INTERFACE = re.compile(r"[A-Za-z0-9_.:@-]+")
_WALLTIME = re.compile(r"(?:(?P<days>\d{1,6})-)?(?P<first>\d{1,9})(?::(?P<second>\d\d?))?(?::(?P<third>\d\d?))?")
# Options of sbatch by which a job would no longer be one worker, or its log would be elsewhere.
_NOT_ONE_WORKER = ("-N", "--nodes", "-n", "--ntasks", "--ntasks-per-node", "-a", "--array")
_OF_THE_LOG = ("-o", "--output", "-e", "--error")


def memory_mib(text: str) -> int:
    """MiB in a text such as 8GiB.

    Raises:
        ValueError: when it is no such text.
    """
    if not (found := _MEMORY.fullmatch(text)):
        raise ValueError(text)
    return int(float(found[1]) * _MIB[found[2]])


def walltime_seconds(text: str) -> int:
    """Seconds in a walltime as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: when it is no such text.
    """
    if not (found := _WALLTIME.fullmatch(text)):
        raise ValueError(text)
    days, *parts = (None if part is None else int(part) for part in found.groups())
    first, second, third = parts
    if days is None and third is None:
        return (first or 0) * 60 + (second or 0)
    return (days or 0) * 86400 + (first or 0) * 3600 + (second or 0) * 60 + (third or 0)


@dataclass(frozen=True)
class SlurmJobConfig:
    """What the Slurm job of one worker asks for."""

    profile: str | None = None
    """Section of cluster.profiles, or of Dask's own configuration, that these keys override; null: slurm, if any."""
    account: str | None = None
    """Account that is charged."""
    partition: str | None = None
    """Partition; null: the site's default."""
    qos: str | None = None
    """Quality of service."""
    gres: str | None = None
    """Generic resources, such as gpu:1 or gpu:a100_1g.10gb:1."""
    cores: int | None = None
    """CPUs a job; null: the profile's, else 1. A worker computes with one; more help only where the site wants them."""
    memory: str | None = None
    """Memory a job, such as 8GiB; null: the profile's, else 4GiB. Units are powers of 1024, as Slurm's are."""
    walltime: str | None = None
    """Time limit a job, as Slurm writes it, in quotes: "02:30:00", "1-12"; null: the profile's, else one hour."""
    interface: str | None = None
    """Network interface of the nodes, such as ib0; null: the profile's, else Dask's choice."""
    local_directory: str | None = None
    """Directory on the nodes for what does not fit into memory; may hold $TMPDIR and the like; null: Dask's choice."""
    log_directory: str | None = None
    """Directory of the jobs' logs, on the shared disk; null: logs in run_dir."""
    prologue: tuple[str, ...] = ()
    """Shell lines before the worker starts, such as module load gdal."""
    python: str | None = None
    """What starts Python on a node, such as apptainer exec --nv image.sif python; null: the Python of this command."""
    directives: tuple[str, ...] = ()
    """More options of sbatch, such as --constraint=a100."""
    skip_directives: tuple[str, ...] = ()
    """Directives that shall not be written, such as --mem where a site forbids it."""

    def rules(self, key: str) -> list[Rule]:
        """What the values may be; `key` is this section's own, such as cluster.cpu."""
        names = {_option(directive) for directive in self.directives}
        words = {name: getattr(self, name) for name in ("profile", "account", "partition", "qos", "gres")}
        lines = {name: getattr(self, name) for name in ("local_directory", "log_directory", "python")}
        return [
            *(
                (
                    value is None or (bool(re.fullmatch(r"\S+", value)) and one_line(value)),
                    f"{key}.{name}",
                    value,
                    "must be one word, or null",
                )
                for name, value in words.items()
            ),
            *((one_line(value), f"{key}.{name}", value, ONE_LINE) for name, value in lines.items()),
            (
                self.interface is None or bool(_INTERFACE.fullmatch(self.interface)),
                f"{key}.interface",
                self.interface,
                "must be the name of a network interface, such as ib0, or null",
            ),
            (
                all(one_line(re.sub(r"[\n\t]", " ", line)) for line in self.prologue),
                f"{key}.prologue",
                list(self.prologue),
                "must be lines of a shell script, without control characters",
            ),
            within(f"{key}.cores", self.cores, 1, 100_000, or_null=True),
            (
                self.memory is None or (bool(_MEMORY.fullmatch(self.memory)) and memory_mib(self.memory) >= 256),
                f"{key}.memory",
                self.memory,
                "must be an amount of memory of at least 256MiB, such as 8GiB",
            ),
            (
                self.walltime is None or (bool(_WALLTIME.fullmatch(self.walltime)) and self.seconds_at_least(60)),
                f"{key}.walltime",
                self.walltime,
                'must be a time of at least a minute as Slurm writes it, such as "02:30:00" or "1-12"',
            ),
            (
                all(re.match(r"--?\w", one) and one_line(one) and _quotes_close(one) for one in self.directives),
                f"{key}.directives",
                list(self.directives),
                "must be options of sbatch, each in one line, such as --constraint=a100",
            ),
            (
                not names & set(_NOT_ONE_WORKER),
                f"{key}.directives",
                list(self.directives),
                f"must not hold {', '.join(_NOT_ONE_WORKER)}: a job is one worker; cluster.workers says how many",
            ),
            (
                not names & set(_OF_THE_LOG),
                f"{key}.directives",
                list(self.directives),
                f"must not hold {', '.join(_OF_THE_LOG)}: use {key}.log_directory",
            ),
            (
                all(directive.strip() and one_line(directive) for directive in self.skip_directives),
                f"{key}.skip_directives",
                list(self.skip_directives),
                "must be names of directives, such as --mem",
            ),
        ]

    def seconds_at_least(self, seconds: int) -> bool:
        """Whether the walltime is at least so long."""
        return self.walltime is not None and walltime_seconds(self.walltime) >= seconds


def _quotes_close(directive: str) -> bool:
    """Whether a directive can be divided into words, as srun's are."""
    try:
        return bool(shlex.split(directive))
    except ValueError:
        return False


def _option(directive: str) -> str:
    """The option's name in a directive: --nodes of --nodes=2, -N of -N 2 and of -N2."""
    name = re.split(r"[=\s]", directive.strip(), maxsplit=1)[0]
    return name if name.startswith("--") else name[:2]


@dataclass(frozen=True)
class ClusterConfig:
    """Where Dask runs: chipping and inference are spread over its workers."""

    kind: Literal["local", "slurm", "srun", "address"] = "local"
    """local: worker processes on this machine; slurm: a Slurm job for each worker; srun: workers within the Slurm job
    that this command runs in; address: a Dask scheduler that runs already."""
    workers: int | None = None
    """Worker processes; null: local: one for each CPU that this process may use; slurm: 4; srun: the job's tasks."""
    address: str | None = None
    """Address of the running scheduler, such as tcp://10.0.0.1:8786, for kind: address."""
    dashboard: bool = False
    """Serve Dask's dashboard on this machine's loopback interface, and say how to reach it."""
    insecure: bool = False
    """Do without TLS between this command and its workers (kind: local, slurm and srun): every user of this machine,
    and for slurm and srun whoever reaches it by network, can then run code as you."""
    profiles: str | None = None
    """File of profiles in dask-jobqueue's format (jobqueue.yaml), for cluster.cpu.profile and cluster.gpu.profile."""
    scheduler_interface: str | None = None
    """Network interface of the machine that runs this command; null: that of the workers where it is there, else Dask's
    choice."""
    wait_minutes: float = 60
    """Give up when there has been no worker for so long."""
    max_replacements: int = 10
    """How many lost jobs are submitted again in a run."""
    cpu: SlurmJobConfig = SlurmJobConfig()
    """The jobs of chipping."""
    gpu: SlurmJobConfig = SlurmJobConfig()
    """The jobs of infer."""

    def __post_init__(self) -> None:
        check(
            within("cluster.workers", self.workers, 1, 100_000, or_null=True),
            (
                self.kind != "address" or bool(self.address),
                "cluster.address",
                self.address,
                "must be given for cluster.kind: address, such as tcp://10.0.0.1:8786",
            ),
            (
                0 < self.wait_minutes <= 1_000_000,
                "cluster.wait_minutes",
                self.wait_minutes,
                "must be greater than 0 and at most 1000000",
            ),
            within("cluster.max_replacements", self.max_replacements, 0, 1_000_000),
            *self.cpu.rules("cluster.cpu"),
            *self.gpu.rules("cluster.gpu"),
        )
