"""What can go wrong, told to a person, and the exit code that it ends with.

Exit codes of every command: 0 done; 1 the work failed (what failed is named); 2 bad configuration or input, found
before anything was written; 130 interrupted, from the keyboard, or a training that was asked to stop and is saved; 143
ended by SIGTERM and 129 by SIGHUP, after Slurm jobs were cancelled. torchrun makes 1 of whatever a rank ends with.
"""

import contextlib
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


# What to do about a file that the system refuses; what is finished is kept in every case.
_REMEDIES = {
    errno.ENOENT: "put it back, or name another path", errno.EACCES: "see to its permissions, or choose another path",
    errno.EPERM: "see to its permissions, or choose another path", errno.EISDIR: "a file belongs there: move it away",
    errno.ENOTDIR: "a directory belongs in its place: move it away, or choose another path",
    errno.EEXIST: "move it away, or choose another path", errno.ENOTEMPTY: "move what it holds away",
    errno.EROFS: "choose a path on a disk that can be written to", errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "remove the symbolic link that leads back to itself", errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)", errno.ENFILE: "close other programs' files",
    errno.ENOSPC: "free some space", errno.EDQUOT: "free some space",
}  # fmt: skip


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and turn its end into an exit code.

    Args:
        main: takes the command line's arguments (without the program's name); raises `GeochipError` for what a person
            can mend. What the system refuses, a file or memory, is told as well. Any other exception is a defect of
            geochip and keeps its traceback.
        argv: the arguments; those of this process when None.

    Returns:
        0, or the exit code of the `GeochipError`, or 1 for what the system refuses, or 130 after Ctrl-C, or 128 and its
        number after another signal.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A scene's name that the terminal's encoding does not have is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    # What is imported by now stays: looking through all of it for garbage, again and again, takes a second of a run.
    gc.freeze()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding does not know is shown with escapes, as it is in errors.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except GeochipError as error:
        _tell(as_named_here(str(error)))
        return error.exit_code
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
    except Exception as error:
        told = _refused_by_system(error)
        if told is None:
            raise
        _tell(told)
        return WorkError.exit_code
    finally:
        gc.unfreeze()
    return 0


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()  # what was printed comes first
    for line in text.splitlines():
        print(f"geochip: error: {line}", file=sys.stderr)


def _refused_by_system(error: Exception) -> str | None:
    """What to tell of an error that is the system's: of a file, of standard output, of memory; None for all others."""
    again = " and run the same command again: what is finished is kept"
    # PyTorch's own are no MemoryError; it is not imported here.
    of_pytorch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    if isinstance(error, MemoryError) or of_pytorch:
        what = " ".join(str(error).split()).partition(". ")[0]
        return (
            f"there is not enough memory{f' ({what})' if what else ''}; run it on a machine with more, or ask for less "
            "at once: chips.size, train.batch_size, infer.batch_size, infer.window, infer.block, data.bands"
        )
    if not isinstance(error, OSError) or error.errno is None:
        return None
    path = error.filename
    if path is None and error.errno in (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO) and _stdout_is_broken():
        path = "standard output"
        if error.errno == errno.EPIPE:
            return f"{path}: what reads it has ended; let it read to the end (or write to a file){again}"
    if path is None:
        return None
    shown = path.decode(errors="backslashreplace") if isinstance(path, bytes) else str(path)
    if error.filename2 is not None:
        shown += f" -> {error.filename2}"
    remedy = _REMEDIES.get(error.errno, "see to it")
    return f"{shown}: {error.strerror or os.strerror(error.errno)}; {remedy}{again}"


def _stdout_is_broken() -> bool:
    """Whether standard output takes nothing any more; if so, what is still kept for it is dropped."""
    try:
        sys.stdout.flush()
        # Without a buffer there may be nothing to flush.
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as error:
        if isinstance(error, io.UnsupportedOperation):
            return False
        # Python flushes once more at its end, and would complain.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
        return True
    return False
