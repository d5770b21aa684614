"""Progress of long work: a bar on a terminal, a line a minute in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 60.0


def counted(number: int, noun: str) -> str:
    """A number and what it counts: 1 chip, 20 chips.

    Args:
        number: how many.
        noun: one of them; its plural takes an s.
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


class ProgressReport:
    """Counts finished pieces of work and shows them on standard error, whatever standard error is.

    Use it as a context manager; `advance` may be called as often as you like.
    """

    def __init__(self, what: str, total: int, *, enabled: bool = True) -> None:
        """Prepare a report; nothing is shown before the context is entered.

        Args:
            what: one or two words in front of the count, such as "chipping".
            total: how many pieces there are.
            enabled: False shows nothing (a rank that is not the first, say).
        """
        self._what, self._total, self._done, self._note = what, total, 0, ""
        self._enabled = enabled
        self._bar: Progress | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        if self._enabled and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, note="")
        return self

    def advance(self, pieces: int = 1, note: str | None = None) -> None:
        """Add finished pieces; `note` (a few words, such as a loss) stands behind the count until the next one."""
        self._done += pieces
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, note=self._note)
        elif self._enabled and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._line()

    def _line(self) -> None:
        seconds = time.monotonic() - self._started
        left = seconds / self._done * (self._total - self._done) if self._done else float("nan")
        note = f", {self._note}" if self._note else ""
        print(
            f"{self._what}: {self._done} of {self._total} after {seconds:.0f} s, about {left:.0f} s left{note}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
