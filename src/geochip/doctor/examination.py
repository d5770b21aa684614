"""The list of what the doctor looks at, in order."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from geochip.doctor import batch, data, disks, machine, workers
from geochip.doctor.findings import Case, Finding, fail, not_allowed

Check = Callable[[Case], list[Finding]]

CHECKS: tuple[Check, ...] = (
    machine.driver,  # versions, CPUs, memory, /dev/shm, open files, umask of this machine
    machine.gpus_here,  # GPUs, MIG slices, NCCL, where this machine is the one to compute
    data.scenes,  # the plan of chipping, bad scenes, splits that share ground, a chip store that is there
    data.predicted,  # the scenes of inference, with the trained model if there is one
    data.network,  # architecture, encoder, batch and chip size; pretrained weights without a network
    disks.writable,  # run_dir and other directories that are written to
    disks.room,  # free space and files of their disks, against what the run takes
    batch.jobs,  # Slurm: commands, partitions and their limits, accounts, whether it takes the jobs
    workers.interfaces,  # network interfaces that are named
    workers.probe,  # a worker of each kind: starts, sees the disks and the data, has the same versions; its GPU
)


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Look at a case, check by check."""
    told = set()
    for check in checks:
        try:
            yield from check(case)
        except PermissionError as error:
            # One closed directory stops several checks.
            if (found := fail(named(case, error), not_allowed(error))) not in told:
                told.add(found)
                yield found


def named(case: Case, error: PermissionError) -> str:
    """The key of the run file that names the directory of what may not be looked at."""
    path = Path(os.fsdecode(error.filename)).absolute() if error.filename else None
    return next(
        (key for key, top in case.written.items() if path and path.is_relative_to(top.absolute())), "permission"
    )
