"""What can go wrong, told to a person, and the exit code that it ends with.

Exit codes of every command: 0 done; 1 the work failed (what failed is named); 2 bad configuration or input, found
before anything was written; 130 interrupted, from the keyboard, or a training that was asked to stop and is saved; 143
ended by SIGTERM and 129 by SIGHUP, after Slurm jobs were cancelled. torchrun makes 1 of whatever a rank ends with.
"""

import errno
import gc
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
    try:
        main(sys.argv[1:] if argv is None else argv)
    except GeochipError as error:
        for line in str(error).splitlines():
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
