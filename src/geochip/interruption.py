"""Being asked to stop, by a signal or by a file, and leaving word of having stopped.

Slurm warns a job before its time is up (SIGUSR2, with sbatch --signal) and before it takes its nodes away (SIGTERM). A
signal may come between any two instructions, so its handler does nothing but take note of it; the training looks at the
notes of all ranks between two steps, where it can be stopped and saved. A batch script that cannot send a signal to the
ranks makes the file `stop` in the directory of the training instead.

The file `interrupted` in that directory is the answer: it is there if and only if the last training stopped because it
was asked to, and saved. torchrun hides exit codes, so this is what a batch script requeues by.

Nothing here imports PyTorch: signals are noted from before that, since it takes seconds.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from geochip.errors import GeochipError, WorkError
from geochip.files import write_durably

STOP_FILE, INTERRUPTED_FILE = "stop", "interrupted"

SAME_REQUEST_S = 5.0
"""A SIGTERM that follows the first one within so many seconds is taken for the same: Slurm sends it to every process of
a job step, torchrun among them, which passes it on. A later one ends the process at once."""

CLOCKS_DIFFER_S = 60.0

ORPHAN_LOOKS_S = 2.0
"""How often a rank looks whether its torchrun is there."""
ORPHAN_ENDS_S = 30.0
"""Seconds in which a rank without its torchrun may save; then it is ended."""

_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
_noted: dict[int, float] = {}
"""When each signal came first, by time.monotonic."""
_handlers_before: dict[int, Any] = {}


class StoppedError(GeochipError):
    """A training stopped because it was asked to; it is saved, and what there is to say has been said."""

    exit_code = 130


def take_note_of_signals() -> None:
    """Take note of SIGUSR2 and SIGTERM from now on, instead of ending by them; only the main thread can."""
    if _handlers_before or threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        _handlers_before[number] = signal.signal(number, _take_note)
        # Libraries' system calls go on: not all of them are written for calls that a signal breaks off.
        signal.siginterrupt(number, False)


def take_no_more_notes() -> None:
    """Forget what was noted, and let the signals do what they did before."""
    while _handlers_before:
        number, handler = _handlers_before.popitem()
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _noted.clear()


def _take_note(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if number == signal.SIGTERM and now - _noted.get(number, now) > SAME_REQUEST_S:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _noted.setdefault(number, now)


def end_with_torchrun() -> None:
    """Stop when the torchrun that started this process is gone without having ended it: killed, for example.

    Its ranks would otherwise go on, with run_dir and the GPUs, and nobody to end them. They are asked to stop as by
    SIGTERM; one that waits for another rank in vain is ended.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=_watch_parent, args=(os.getppid(),), name="geochip-parent", daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_LOOKS_S)
    with contextlib.suppress(OSError):  # nobody may be listening any more
        print("geochip: torchrun is gone; this rank stops", file=sys.stderr, flush=True)
    # Not sent: a second one, after that which torchrun passed on before it went, would end this process at once.
    _noted.setdefault(signal.SIGTERM, time.monotonic())
    time.sleep(ORPHAN_ENDS_S)
    os._exit(1)


def time_of_start() -> float:
    """When this process began, in seconds since the epoch; earlier by what a file server's clock may differ."""
    return float(psutil.Process().create_time()) - CLOCKS_DIFFER_S


class Requests:
    """What the ranks are asked to do besides training; all of them learn it at the same step.

    A rank's `votes` are added up over all ranks, together with what else they add up at a step; `count` takes the sums.
    """

    def __init__(self, directory: Path, *, first: bool, save_minutes: float | None) -> None:
        """Begin.

        Args:
            directory: of the training, where the files are.
            first: whether this is the first rank, which looks at the stop file and at the clock.
            save_minutes: as `train.save_minutes`.
        """
        self.stop: str | None = None
        """Who asks to stop, in words; None while nobody does."""
        self.save = False
        """Whether it is time to save."""
        self._directory, self._first, self._save_minutes = directory, first, save_minutes
        self._saved = time.monotonic()

    def votes(self) -> list[int]:
        """What this rank knows: 1 or 0 for SIGUSR2, SIGTERM, the stop file, and the time to save."""
        due = self._save_minutes is not None and time.monotonic() - self._saved >= 60 * self._save_minutes
        signals = [int(number in _noted) for number in _SIGNALS]
        return [*signals, int(self._first and self._stop_file.exists()), int(self._first and due)]

    def count(self, votes: Sequence[int]) -> None:
        """Take the votes of all ranks, added up."""
        *stop, save = votes
        asking = zip((*(number.name for number in _SIGNALS), f"the file {self._stop_file}"), stop, strict=True)
        self.stop = next((name for name, count in asking if count), None)
        self.save = save > 0

    def has_saved(self) -> None:
        """The time to save again counts from now."""
        self._saved = time.monotonic()

    def forget(self, *, since: float | None = None) -> None:
        """Remove the files of an earlier interruption: the request was meant for that training, and so was the answer.

        Args:
            since: keep a stop file that was made after this time (seconds since the epoch): it is meant for this one.

        Raises:
            WorkError: when the file system refuses.
        """
        if not self._first or not self._directory.is_dir():
            return
        paths = [self._directory / INTERRUPTED_FILE]
        if since is None or not self._stop_file.exists() or self._stop_file.stat().st_mtime < since:
            paths.append(self._stop_file)
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise WorkError(
                    f"{path} cannot be removed: {error.strerror}; remove it and run the same command again"
                ) from error

    def answer(self, where: str) -> None:
        """Leave word of having stopped; after the training is saved.

        Args:
            where: the place in the training, such as "in epoch 2 of 3, after 5 of 80 steps".

        Raises:
            OSError: when the file system refuses.
        """
        if self._first:
            self._stop_file.unlink(missing_ok=True)
            line = f"interrupted by {self.stop} {where}"
            write_durably(self._directory / INTERRUPTED_FILE, f"{line}\n".encode())
            print(
                f"geochip: {line}; saved in {self._directory}, and the same command goes on from there",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    @property
    def _stop_file(self) -> Path:
        return self._directory / STOP_FILE
