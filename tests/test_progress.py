"""What a terminal shows of long work, at whatever width and without colours."""

import io
import re
import sys

import numpy as np
import pytest

from geochip import evaluate, progress
from geochip.progress import ProgressReport, console

NOTE = "412 chips/s, reading 31 MB/s, 3 of 4 workers are there, and a good deal more to be said about it"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    there = Terminal()
    monkeypatch.setattr(sys, "stderr", there)
    monkeypatch.setattr(sys, "stdout", there)
    return there


def last_line(terminal, width, monkeypatch, *, what="epoch 12 of 100", total=12345, done=678, note=NOTE):
    monkeypatch.setenv("COLUMNS", str(width))
    with ProgressReport(what, total) as report:
        report.advance(done, note)
    lines = [line.strip("\r") for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", terminal.getvalue()).split("\n")]
    text = re.sub(r"\x1b\[[0-9;?]*m", "", terminal.getvalue())
    return next(line for line in reversed([*lines, text]) if line.strip()), text


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("note", ["", "loss 0.123", NOTE, "広い" * 60])
def test_count_and_percentage_are_readable_at_every_width(terminal, monkeypatch, width, note):
    _, text = last_line(terminal, width, monkeypatch, note=note)
    shown = [line for line in re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-LN-Za-z]", text) if "678/12345   5%" in line]
    assert shown, text
    from rich.cells import cell_len

    assert all(cell_len(line) <= width for line in shown)
    # What it is about is cut only where there is no room for it.
    assert ("epoch 12 of 100" in shown[-1]) == (width >= 40)
    assert ("0:00:0" in shown[-1]) == (width >= 60)
    if note == "loss 0.123" and width >= 80:
        assert note in shown[-1]
    if width == 200:
        assert "━" in shown[-1]


def test_a_long_name_leaves_room_for_the_numbers(terminal, monkeypatch):
    _, text = last_line(terminal, 40, monkeypatch, what="comparing what was made of files that have changed since")
    assert "678/12345   5%" in text
    assert "comparing" in text


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "unknown")])
def test_without_colours_there_are_no_escape_codes_at_all(terminal, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    with ProgressReport("chipping", 10) as report:
        report.advance(7, "3 chips/s")
    confusion = np.array([[5, 1], [2, 3]], np.int64)
    evaluate.show(("background", "building"), {"a": confusion, "b": confusion})
    said = terminal.getvalue()
    assert "chipping: 7 of 10 after 0 s" in said
    assert "weighted average" in said
    assert "\x1b" not in said


def test_an_empty_no_color_is_none(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    console().print("title", style="bold")
    assert "\x1b[1mtitle" in terminal.getvalue()
