"""Progress of long work: a bar on a terminal, a line a minute in a log, or on one that takes no colours."""

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 60.0


def counted(number: int, noun: str) -> str:
    """A number and what it counts: 1 chip, 20 chips.

    Args:
        number: how many.
        noun: one of them; its plural takes an s.
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plain() -> bool:
    """Whether a terminal shall get nothing but text: no colour, no bold, no moving about."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") in ("dumb", "unknown")


def console(*, stderr: bool = False) -> Console:
    """Standard output, or standard error, for tables and the like; what is `plain` gets no escape codes."""
    # Without colours alone rich would still make things bold.
    return Console(stderr=stderr, highlight=False, color_system=None if plain() else "auto")


class _Fitted:
    """One line that says how far a piece of work is, in the width that there is.

    What it is about and the numbers come first; times, the note and the bar share what is left, in this order.
    """

    _BAR, _LEAST = 40, 8

    def __init__(self, what: str, numbers: str, times: Text, note: str, task: Task) -> None:
        self._what, self._numbers, self._times, self._note, self._task = what, numbers, times, note, task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A piece takes its width and a column before the next one.
        left = options.max_width - len(self._numbers) - 1
        what = _cut(self._what, left)
        left -= what.cell_len
        times = self._times if left > self._times.cell_len else Text()
        left -= times.cell_len + bool(times)
        # A note that would be cut to a few letters says nothing; a long one leaves the bar a little.
        room = left - 1 - (self._LEAST + 1 if left > 4 * self._LEAST else 0)
        note = _cut(self._note, room) if room >= min(self._LEAST, len(self._note)) else Text()
        left -= note.cell_len + bool(note)
        bar = None
        if left > self._LEAST:
            bar = ProgressBar(total=self._task.total, completed=self._task.completed, width=min(self._BAR, left - 1))
        line = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        pieces = [piece for piece in (what, bar, Text(self._numbers), times, note) if piece]
        for _ in pieces:
            line.add_column(no_wrap=True)
        line.add_row(*pieces)
        yield line


def _cut(text: str, width: int) -> Text:
    found = Text(text)
    found.truncate(max(width, 0), overflow="ellipsis")
    return found


class _Line(ProgressColumn):
    """The only column of the bar, which is as wide as the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._elapsed, self._remaining = TimeElapsedColumn(), TimeRemainingColumn()

    def render(self, task: Task) -> _Fitted:
        done, total = int(task.completed), int(task.total or 0)
        numbers = f"{done:>{len(str(total))}}/{total} {task.percentage:>3.0f}%"
        times = Text.assemble(self._elapsed(task), " left ", self._remaining(task))  # type: ignore[arg-type]
        return _Fitted(task.description, numbers, times, task.fields["note"], task)


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
        if self._enabled and sys.stderr.isatty() and not plain():
            self._bar = Progress(_Line(), console=console(stderr=True))
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
