"""Workers as one step of the Slurm job that this process runs in, for sites without sbatch on compute nodes."""

import contextlib
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distributed import Client

from geochip.cluster._causes import cause_of, end_of, say, show
from geochip.cluster._environment import export_lines, guarded
from geochip.cluster._profiles import in_quotes
from geochip.cluster._scheduler import SchedulerHere
from geochip.cluster._security import Keys, keys_in
from geochip.cluster._signals import ended_by_signals, undisturbed
from geochip.cluster._tasks import WHAT_IS_KEPT, watched
from geochip.config import ClusterConfig, SlurmJobConfig, memory_mib
from geochip.errors import WorkError
from geochip.files import make_directory
from geochip.progress import counted

_DEATH_TIMEOUT = 300
_DRIVER_MIB = 1024
_TELL_SECONDS = 60.0
_GOODBYE_SECONDS = 4.0
_END_SECONDS = 15.0
# What describes another step, or the job's own wishes where ours follow.
_NOT_FOR_THE_STEP = ("SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_MEM_PER_", "SLURM_DISTRIBUTION", "SRUN_")


class Step:
    """The step in which the workers run; as a context manager it is started and ended."""

    def __init__(
        self, cluster: ClusterConfig, jobs: str, run_dir: Path, *, here: SchedulerHere, keys: Keys | None
    ) -> None:
        config: SlurmJobConfig = getattr(cluster, jobs)
        self.key, self.address = f"cluster.{jobs}", here.address
        self.advice = "use fewer workers (cluster.workers), or smaller chips or blocks"
        self.count = cluster.workers or int(os.environ.get("SLURM_NTASKS", "1"))
        self._cluster, self._here = cluster, here
        directory = Path(config.log_directory or run_dir / "logs").expanduser().absolute()
        make_directory(directory, f"{self.key}.log_directory")
        self.log = directory / f"geochip-{jobs}-srun-{os.environ['SLURM_JOB_ID']}-{os.getpid()}.out"
        self._command = srun_command(
            config, self.count, worker_script(config, self.key, self.address, self.count, keys)
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._ever, self._restarts = False, 0
        self._last_worker = self._told_at = time.monotonic()
        self._told = -1

    def __enter__(self) -> "Step":
        self._start()
        return self

    def _start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_THE_STEP)}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environ,
                # Ctrl-C is the driver's, which ends the step.
                start_new_session=True,
            )  # fmt: skip
        say(f"started {counted(self.count, 'worker')} by srun; log: {self.log}")

    def __exit__(self, *_: object) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        # The workers end when they are told to, the step with them; one that is busy is not waited for.
        for end, seconds in (
            (self._here.close, _GOODBYE_SECONDS),
            (self._process.terminate, _END_SECONDS),
            (self._process.kill, _END_SECONDS),
        ):
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                return

    def look(self) -> None:
        """Say what has changed, and start the step again when it ended.

        Raises:
            WorkError: when that makes no sense.
        """
        assert self._process is not None
        now, here = time.monotonic(), len(self._here.names())
        if here:
            self._ever, self._last_worker = True, now
        if here != self._told or (not here and now - self._told_at >= _TELL_SECONDS):
            self._told, self._told_at = here, now
            say(f"{here} of {self.count} workers are there")
        if (code := self._process.poll()) is not None:
            self._has_ended(code)
        waited = now - self._last_worker
        if waited >= 60 * self._cluster.wait_minutes:
            raise WorkError(
                f"no worker for {self._cluster.wait_minutes:g} minutes (cluster.wait_minutes): "
                f"{cause_of(end_of(self.log), None, self)} (log: {self.log}); {WHAT_IS_KEPT}"
            )

    def _has_ended(self, code: int) -> None:
        text = end_of(self.log)
        say(f"srun ended with exit code {code} while there is work")
        show(text)
        if not self._ever or self._restarts >= self._cluster.max_replacements:
            why = cause_of(text, None, self)
            raise WorkError(f"srun ended with exit code {code}: {why} (log: {self.log}); {WHAT_IS_KEPT}")
        self._restarts += 1
        self._start()


def srun_command(config: SlurmJobConfig, count: int, script: str) -> list[str]:
    """The command that starts the workers within this job.

    Args:
        config: the section of the run file.
        count: how many workers.
        script: what each of them runs.
    """
    cores = config.cores or os.environ.get("SLURM_CPUS_PER_TASK")
    return [
        "srun",
        # Beside the step that this process may itself be, with the memory of the whole job.
        "--overlap",
        "--mem=0",
        f"--ntasks={count}",
        *([f"--cpus-per-task={cores}"] if cores else []),
        # One worker that is lost does not end the others.
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--no-kill",
        "--unbuffered",
        *([f"--gres={config.gres}"] if config.gres else []),
        *(word for directive in config.directives for word in shlex.split(directive)),
        "bash",
        "-c",
        script,
    ]


def worker_script(config: SlurmJobConfig, key: str, address: str, count: int, keys: Keys | None) -> str:
    """What each task of the step runs: environment, prologue, worker."""
    options = [
        "--name $SLURM_JOB_ID-$SLURM_STEP_ID-$SLURM_PROCID",
        "--nthreads 1",
        f"--memory-limit {_memory(config, count)}",
        "--nanny",
        f"--death-timeout {_DEATH_TIMEOUT}",
        "--no-dashboard",
        "--dashboard-address 127.0.0.1:0",
        *([f"--local-directory {in_quotes(config.local_directory)}"] if config.local_directory else []),
        *([f"--interface {shlex.quote(config.interface)}"] if config.interface else []),
        *(f"{option} {shlex.quote(value)}" for option, value in (keys.options if keys else ())),
    ]
    python = config.python or shlex.quote(sys.executable)
    worker = f"exec {python} -m distributed.cli.dask_worker {address} {' '.join(options)}"
    return "\n".join([*export_lines(), *guarded(config.prologue, f"{key}.prologue"), worker])


def _memory(config: SlurmJobConfig, count: int) -> str:
    """A worker's share of the job's memory, for Dask."""
    environ = os.environ
    if config.memory is not None:
        return f"{memory_mib(config.memory)}MiB"
    if each := environ.get("SLURM_MEM_PER_CPU"):
        return f"{int(each) * int(environ.get('SLURM_CPUS_PER_TASK', '1'))}MiB"
    if node := environ.get("SLURM_MEM_PER_NODE"):
        # The driver, and srun, are on one of the nodes.
        shared = max(int(node) - _DRIVER_MIB, int(node) // 2)
        return f"{shared // math.ceil(count / int(environ.get('SLURM_NNODES', '1')))}MiB"
    return "auto"


@contextlib.contextmanager
def srun_client(cluster: ClusterConfig, jobs: str, run_dir: Path) -> Iterator[Client]:
    """A client of a scheduler in this process, whose workers are a step of this Slurm job.

    Raises:
        InputError: when an interface is not there.
    """
    with contextlib.ExitStack() as stack, ended_by_signals():
        try:
            keys = None if cluster.insecure else stack.enter_context(keys_in(run_dir))
            interface = getattr(cluster, jobs).interface
            here = stack.enter_context(SchedulerHere(cluster, interface, keys.security if keys else None))
            step = stack.enter_context(Step(cluster, jobs, run_dir, here=here, keys=keys))
            stack.enter_context(watched(here.client, step))
            yield here.client
        finally:
            with undisturbed():
                stack.close()
