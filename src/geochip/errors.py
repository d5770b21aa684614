"""What can go wrong, told to a person, and the exit code that it ends with.

Exit codes of every command: 0 done; 1 the work failed (what failed is named); 2 bad configuration or input, found
before anything was written; 130 interrupted from the keyboard. torchrun makes 1 of whatever a rank ends with.
"""

import errno
import gc
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


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function and turn its end into an exit code.

    Args:
        main: takes the command line's arguments (without the program's name); raises `GeochipError` for what a person
            can mend. Any other exception is a defect of geochip and keeps its traceback.
        argv: the arguments; those of this process when None.

    Returns:
        0, or the exit code of the `GeochipError`, or 130 after Ctrl-C.
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
    except KeyboardInterrupt:
        print(
            "geochip: interrupted; what is finished is kept, and the same command goes on from there", file=sys.stderr
        )
        return 130
    finally:
        gc.unfreeze()
    return 0
