"""What can go wrong, told to a person, and the exit code that it ends with.

Exit codes of every command: 0 done; 1 the work failed (what failed is named); 2 bad configuration or input, found
before anything was written; 130 interrupted, from the keyboard, or a training that was asked to stop and is saved; 143
ended by SIGTERM and 129 by SIGHUP, after Slurm jobs were cancelled. torchrun makes 1 of whatever a rank ends with.
"""

import errno
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence


class GeochipError(Exception):
    """An error that its text explains completely: the commands print it without a traceback."""

    exit_code = 1


class InputError(GeochipError):
    """Bad configuration or bad input, found before anything was written."""

    exit_code = 2


class WorkError(GeochipError):
    """The work could not be done, or not all of it; what was finished is kept."""

    exit_code = 1


class DamagedError(InputError):
    """A file that geochip wrote does not hold what geochip writes; the text names it, what is wrong, and the remedy."""


# The keys below cluster that cluster/lib.sh sets from site.env, and the variables that it takes them from.
_OF_SITE = {
    "kind": "KIND", "workers": "CHIP_WORKERS or GEOCHIP_INFER_WORKERS", "wait_minutes": "WAIT_MINUTES",
    "scheduler_interface": "SCHEDULER_INTERFACE", "profiles": "PROFILES", "dashboard": "DASHBOARD",
    "cpu.interface": "INTERFACE", "gpu.interface": "GPU_INTERFACE", "gpu.gres": "GPU_GRES",
}  # fmt: skip
for _jobs in ("cpu", "gpu"):
    _own = {"partition": "PARTITION", "cores": "CORES", "memory": "MEMORY", "walltime": "TIME"}
    _shared = ("account", "qos", "python", "local_directory", "prologue", "directives", "skip_directives")
    _OF_SITE |= {_jobs: f"{_jobs.upper()}_..."}
    _OF_SITE |= {f"{_jobs}.{key}": f"{_jobs.upper()}_{name}" for key, name in _own.items()}
    _OF_SITE |= {f"{_jobs}.{key}": key.upper() for key in _shared}


def as_named_here(text: str) -> str:
    """A text in which settings are called as the person set them.

    Where a batch script of cluster/ started this process, site.env goes before the run file: who changed
    cluster.cpu.partition there, as a text advises, would change nothing.

    Args:
        text: that names keys of the run file.

    Returns:
        The text; with GEOCHIP_SITE_FILE in the environment, with variables of that file instead of keys.
    """
    file = os.environ.get("GEOCHIP_SITE_FILE")
    if not file:
        return text

    def variable(found: re.Match[str]) -> str:
        name = _OF_SITE.get(found[1])
        return f"GEOCHIP_{name}" if name else found[0]

    named = re.sub(r"(?<![\w./-])(?:--)?cluster\.(\w+(?:\.\w+)?)", variable, text)
    return text if named == text else f"{named} [GEOCHIP_... are set in {file}]"


class Terminated(KeyboardInterrupt):
    """A signal asks this process to end, as Ctrl-C does; see `geochip.cluster`."""

    def __init__(self, which: signal.Signals) -> None:
        super().__init__(which.name)
        self.which = which
        """The signal."""


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and turn its end into an exit code.

    Args:
        main: takes the command line's arguments (without the program's name); raises `GeochipError` for what a person
            can mend. Any other exception is a defect of geochip and keeps its traceback.
        argv: the arguments; those of this process when None.

    Returns:
        0, or the exit code of the `GeochipError`, or 130 after Ctrl-C, or 128 and its number after another signal.
    """
    # What is imported by now stays: looking through all of it for garbage, again and again, takes a second of a run.
    gc.freeze()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not know is shown with escapes, as it is in errors.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:] if argv is None else argv)
    except GeochipError as error:
        for line in as_named_here(str(error)).splitlines():
            print(f"geochip: error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"geochip: error: {error.filename or 'writing'}: {error.strerror}; free some space and run the same "
            "command again: what is finished is kept",
            file=sys.stderr,
        )
        return WorkError.exit_code
    except Terminated as ended:
        print(
            f"geochip: ended by {ended.which.name}; what is finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 128 + ended.which
    except KeyboardInterrupt:
        print(
            "geochip: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr
        )
        return 130
    finally:
        gc.unfreeze()
    return 0
