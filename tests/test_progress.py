"""What a terminal shows of long work, at whatever width and without colours."""

import io
import re
import sys

import numpy as np
import pytest
from rich.cells import cell_len

from geochip import evaluate, progress
from geochip.progress import ProgressReport, console

NOTE = "412 chips/s, reading 31 MB/s, 3 of 4 workers are there, and a good deal more to be said about it"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard output and error a terminal, from within a test: pytest sets its own before it begins."""

    def attach(**environment):
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", **environment}.items():
            monkeypatch.setenv(name, str(value))
        there = Terminal()
        monkeypatch.setattr(sys, "stderr", there)
        monkeypatch.setattr(sys, "stdout", there)
        return there

    return attach


def lines_of(there, *, what="epoch 12 of 100", note=NOTE):
    """What a bar of 678 of 12345 pieces shows, without colours, line by line."""
    with ProgressReport(what, 12345) as report:
        report.advance(678, note)
    text = re.sub(r"\x1b\[[0-9;?]*m", "", there.getvalue())
    return [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", text) if line.strip()]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("note", ["", "loss 0.123", NOTE, "広い" * 60])
def test_count_and_percentage_are_readable_at_every_width(terminal, width, note):
    lines = lines_of(terminal(COLUMNS=width), note=note)
    assert "678/12345   5%" in lines[-1]
    assert all(cell_len(line) <= width for line in lines)
    # What it is about, and the times, are left out only where there is no room for them.
    assert ("epoch 12 of 100" in lines[-1]) == (width >= 40)
    assert ("0:00:0" in lines[-1]) == (width >= 60)
    if width >= 80:
        assert note[:10] in lines[-1]
    if width == 200:
        assert "━" in lines[-1]


def test_a_long_name_leaves_room_for_the_numbers(terminal):
    line = lines_of(terminal(COLUMNS=40), what="comparing what was made of files that have changed since")[-1]
    assert re.fullmatch(r"comparing what was \S*… *678/12345   5% *", line)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "unknown")])
def test_without_colours_there_are_no_escape_codes_at_all(terminal, monkeypatch, name, value):
    there = terminal(**{name: value})
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with ProgressReport("chipping", 10) as report:
        report.advance(7, "3 chips/s")
    confusion = np.array([[5, 1], [2, 3]], np.int64)
    evaluate.show(("background", "building"), {"a": confusion, "b": confusion})
    said = there.getvalue()
    assert "chipping: 7 of 10 after 0 s" in said
    assert "weighted average" in said
    assert "\x1b" not in said


def test_an_empty_no_color_is_none(terminal):
    there = terminal(NO_COLOR="")
    console().print("title", style="bold")
    assert "\x1b[1mtitle" in there.getvalue()
