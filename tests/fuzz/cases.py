"""One case: a copy of the pristine run, one thing in it broken, one command, and a verdict."""

import contextlib
import faulthandler
import hashlib
import importlib
import io
import os
import random
import resource
import shutil
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from fuzz.pristine import cluster_flags
from fuzz.targets import KINDS, break_something
from geochip.errors import run_command

ALLOWED = (0, 1, 2, 130)
SECONDS = 60.0
"""A case that takes so long waits for something that never comes; none takes a tenth of it."""
MEMORY = 6 * 2**30
"""Bytes of address space that a case may add: what asks for more would end other processes too."""


class HungError(BaseException):
    """The watchdog's: no `except Exception` stops it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a case."""

    seed: int
    number: int
    kind: str
    what: str
    """What was broken, and the command that had to cope."""
    fault: str = ""
    """What is wrong with how it ended; empty: nothing."""
    where: str = ""
    """The line of geochip that it comes from, for grouping."""
    output: str = ""
    """The last of what was printed."""

    @property
    def reproducer(self) -> str:
        return f"python tests/fuzz --seed {self.seed} --only {self.number}"

    def __str__(self) -> str:
        return f"{self.reproducer}   # {self.kind}: {self.what}\n    {self.fault}\n    at {self.where or 'no line'}"


def kind_of(number: int, kinds: tuple[str, ...] = KINDS) -> str:
    return kinds[number % len(kinds)]


def run_case(pristine: Path, scratch: Path, address: str, *, seed: int, number: int, kind: str) -> Verdict:
    """Run a case; only `seed`, `number` and `kind` decide what it is.

    Args:
        pristine: of `pristine.make`.
        scratch: the copy is made below it, and removed unless the case fails.
        address: of a Dask scheduler.
        seed: of a whole run of cases.
        number: of this one.
        kind: one of `KINDS`.
    """
    rng = random.Random(f"{seed}/{number}/{kind}")
    # Its own path each time: workers remember what they read.
    directory = scratch / f"case-{seed}-{number}"
    shutil.copytree(pristine, directory, symlinks=True)
    what, (module, flags, removed) = break_something(rng, kind, directory)
    for name in removed:
        _remove(directory / name)
    argv = ["--config=run.yaml", *cluster_flags(address), *flags]
    before = outside(directory)
    code, where, output = _run(module, argv, directory, short_locks=kind == "locks")
    fault = _fault_of(code, output) or _difference(before, outside(directory), elsewhere=kind in ("run file", "flags"))
    if not fault:
        shutil.rmtree(directory, ignore_errors=True)
    return Verdict(
        seed=seed, number=number, kind=kind, what=f"{what}; {module} {' '.join(flags)}".strip(), fault=fault,
        where=where, output=output[-3000:],
    )  # fmt: skip


def outside(directory: Path) -> dict[str, str]:
    """What there is in a case's directory but for run_dir: kinds, contents and where links lead."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name.split("/")[0] == "run":
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[name] = f"link to {path.readlink()}"
        elif stat.S_ISREG(mode):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = str(stat.S_IFMT(mode))
    return found


def _difference(before: dict[str, str], after: dict[str, str], *, elsewhere: bool) -> str:
    """What changed; `elsewhere`: the run file may name another run_dir or store beside what there was."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    if elsewhere:
        there = {name.split("/")[0] for name in before}
        changed = {name for name in changed if name.split("/")[0] in there}
    return f"changed outside run_dir: {', '.join(sorted(changed))}" if changed else ""


def _fault_of(code: object, output: str) -> str:
    if isinstance(code, str):
        return code
    if code not in ALLOWED:
        return f"exit code {code}"
    if code in (1, 2) and "geochip: error: " not in output:
        return f"exit code {code} without a word"
    if "Traceback (most recent call last)" in output:
        return f"a traceback was printed: {output.strip().splitlines()[-1][:200]}"
    return ""


def _run(module: str, argv: list[str], directory: Path, *, short_locks: bool) -> tuple[int | str, str, str]:
    """(exit code or what went wrong, the line of geochip it comes from, what was printed)."""
    main = importlib.import_module(f"geochip.{module}").main
    # As a terminal's: what cannot be encoded is an error, on stderr it is escaped.
    out = io.TextIOWrapper(raw := io.BytesIO(), "utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(raw, "utf-8", errors="backslashreplace", write_through=True)
    where = ""
    code: int | str
    try:
        with (
            contextlib.chdir(directory), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
            warnings.catch_warnings(), _watched(), _bounded(), _patience_with_locks(short=short_locks),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            code = run_command(main, argv)
    except HungError as error:
        code, where = "hung: killed by the watchdog", _place(error)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException as error:
        code, where = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", _place(error)
        err.write("".join(traceback.format_exception(error))[-3000:])
    return code, where, raw.getvalue().decode("utf-8", "replace")


def _place(error: BaseException) -> str:
    """The innermost line of geochip's own in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/geochip/" in frame.filename]
    if not own:
        return ""
    return f"geochip/{own[-1].filename.rpartition('/geochip/')[2]}:{own[-1].lineno} {own[-1].name}"


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Raise `HungError` in this thread when it takes too long; end the process when not even that helps."""

    def bark(*_: object) -> None:
        raise HungError

    handler = signal.signal(signal.SIGALRM, bark)
    # pytest-timeout's timer is put back afterwards.
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, remaining)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let this process have so much more memory than it has, and no more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _patience_with_locks(*, short: bool) -> Iterator[None]:
    """A holder without a sign of life is taken for dead after a moment, not after two minutes."""
    if not short:
        yield
        return
    from geochip.store.lock import StoreLock

    with mock.patch.dict(StoreLock.__init__.__kwdefaults__, beat=0.05, stale=0.3):
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
