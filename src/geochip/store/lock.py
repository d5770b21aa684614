"""The lock beside a store: one process writes a store at a time, and the next one says which process that is.

A lock is a file that names its holder. Whether the holder still lives is told in one of two ways:

- Within one kernel and one PID namespace, by its PID and the time at which that process began.
- From anywhere else, by signs of life: a holder touches its file every few seconds. Whoever finds a lock watches it,
  refuses at the first sign of life, and takes the lock over when there was none for long enough. Ages are told by the
  file server's clock alone, the local one may be wrong.

Of several processes that take over the lock of one that is gone, one wins: it does so under a second lock, which
names the first.
"""

import contextlib
import errno
import getpass
import json
import os
import platform
import secrets
import stat
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec
import psutil

from geochip.documents import parse_document
from geochip.errors import DamagedError, InputError, WorkError
from geochip.files import NotRegularError, disk_full, is_disk_full, read_regular, write_durably

# The kernel's idea of when a process began moves when the clock is set.
_SAME_START = 2.0
# What the text of every lock begins with.
_BEGINS = b'{"host": '
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock, as its file says."""

    host: str
    user: str
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    started: float
    """When the process began, seconds since 1970."""
    since: str
    """When it took the lock, for people."""
    kernel: str
    """Within what its PID means something: the boot of a kernel and a PID namespace."""
    token: str
    """Unlike that of any other lock."""

    @classmethod
    def this_process(cls) -> Self:
        """This process, with a token of its own."""
        me = psutil.Process()
        return cls(
            host=platform.node(), user=_user(), pid=me.pid, started=me.create_time(),
            since=time.strftime("%Y-%m-%d %H:%M:%S"), kernel=_kernel(), token=secrets.token_hex(8),
        )  # fmt: skip

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The holder of the lock at `path`; None when there is no lock, or no text that geochip wrote."""
        try:
            return parse_document(read_regular(path), cls, str(path), "")
        except (FileNotFoundError, NotRegularError, DamagedError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (user {self.user}, since {self.since})"

    def lives_here(self) -> bool | None:
        """Whether the process runs on this machine; None when only its signs of life can tell."""
        if self.kernel != _kernel():
            return None
        try:
            same = abs(psutil.Process(self.pid).create_time() - self.started) < _SAME_START
        except psutil.NoSuchProcess:
            return False
        # Another process has its PID by now, or the clock was set: signs of life tell which.
        return True if same else None


class StoreLock:
    """Held while a store is written; a context manager.

    Raises on entry:
        InputError: when another process writes the store, or the lock cannot be made.
    """

    def __init__(self, store: Path, option: str = "chips.store", *, beat: float = 10.0, stale: float = 120.0) -> None:
        """Nothing happens before `acquire` or `with`.

        Args:
            store: the store, which need not exist; the directory that it is in must.
            option: the key of the run file that names the store, for the errors.
            beat: seconds between two signs of life.
            stale: seconds without one after which a holder that cannot be seen from here is taken for dead.
        """
        self.path = store.with_name(f"{store.name}.lock")
        self.store = store
        self.option = option
        self._elsewhere = "another run_dir" + ("" if option == "run_dir" else f" or --{option}")
        self.beat = beat
        self.stale = stale
        self._mine = Holder.this_process()
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, waiting only for a sign of life of a holder on another machine."""
        try:
            self._take(self.path)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path) from None
            raise InputError(
                f"{self.option}: the lock {self.path} cannot be made: {error.strerror}; choose {self._elsewhere}"
            ) from None
        self._lost, self._ended = None, threading.Event()
        self._thread = threading.Thread(target=self._show_life, args=(self._ended,), name="store-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back; one that is someone else's by now is left alone."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        with contextlib.suppress(OSError):
            self._remove(self.path)

    def check(self) -> None:
        """Raise `WorkError` when the lock was lost, as to a process that saw no sign of life of this one for long."""
        if self._lost is not None:
            raise WorkError(
                f"{self.option}: {self.store} is being written by {self._lost} now, which took its lock while this "
                "process showed no sign of life; this one stops, what is finished is kept"
            )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _take(self, path: Path) -> None:
        """Make the lock file at `path`, be it the place of one whose holder is gone."""
        while not _create(path, self._mine):
            self._require_lock(path)
            holder = Holder.read(path)
            if self._lives(path, holder):
                raise InputError(self._refusal(path, holder))
            claim = path.with_name(f"{path.name}.takeover")
            try:
                self._take(claim)
            except InputError:
                # Another process takes it over at this moment: it will be found alive.
                time.sleep(self.beat / 100)
                continue
            try:
                # Nobody else changes it now, but somebody may have before.
                if path.exists() and Holder.read(path) == holder:
                    write_durably(path, _text(self._mine))
                    return
            finally:
                self._remove(claim)

    def _require_lock(self, path: Path) -> None:
        """Raise `DamagedError` when what stands in a lock's place was never one, and so nobody's sign of life.

        An empty file, or the beginning of a text, may be that of a process that makes the lock at this moment.
        """
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                fault = "it is no regular file"
            else:
                text = read_regular(path)
                if _BEGINS.startswith(text) or (text.startswith(_BEGINS) and not text.rstrip().endswith(b"}")):
                    return
                parse_document(text, Holder, str(path), "")
                return
        except FileNotFoundError:
            return
        except NotRegularError as error:
            fault = str(error.strerror)
        except DamagedError as error:
            fault = str(error).removeprefix(f"{path} is damaged (").removesuffix("); ")
        raise DamagedError(
            f"{self.option}: {path}, which should name the process that writes {self.store}, is damaged ({fault}); if "
            "no process writes it, remove that lock and run the same command again"
        )

    def _lives(self, path: Path, holder: Holder | None) -> bool:
        """Whether the holder of a lock lives; watches for its signs of life where nothing else can tell."""
        here = holder.lives_here() if holder else None
        if here is not None:
            return here
        began, told = time.monotonic(), False
        first: int | None = None
        while True:
            try:
                touched = _touched(path)
            except FileNotFoundError:
                return False
            first = touched if first is None else first
            if touched != first or Holder.read(path) != holder:
                return True
            watched = time.monotonic() - began
            # Also when its last sign seems long ago: the machines that touch files may disagree about the time.
            if (_server_now(path) - touched) / 1e9 > self.stale and watched > 1.5 * self.beat:
                return False
            if watched > 1.5 * self.beat and not told:
                told = True
                print(
                    f"{self.option}: {self.store} was being written by {holder or 'another process'}; waiting for a "
                    f"sign of life of it, at most {self.stale:.0f} s",
                    file=sys.stderr,
                )
            time.sleep(self.beat / 10)

    def _refusal(self, path: Path, holder: Holder | None) -> str:
        who = f"{holder}" if holder else "a process that its lock does not name"
        end = f" or end it (kill {holder.pid} on {holder.host})" if holder else ""
        return (
            f"{self.option}: {self.store} is being written by {who}; wait for it{end}, or choose {self._elsewhere}; if "
            f"that process is gone, remove {path}"
        )

    def _show_life(self, ended: threading.Event) -> None:
        while not ended.wait(self.beat):
            # The file server may be away for a while: there is a next time.
            with contextlib.suppress(OSError):
                if not self.path.exists() and _create(self.path, self._mine):
                    continue
                holder = Holder.read(self.path)
                if holder != self._mine:
                    self._lost = str(holder or "another process")
                    return
                os.utime(self.path)

    def _remove(self, path: Path) -> None:
        if Holder.read(path) == self._mine:
            path.unlink(missing_ok=True)


def _create(path: Path, holder: Holder) -> bool:
    """Make a lock file, whole; False when there is one."""
    text = _text(holder)
    temporary = path.with_name(f".{path.name}.{holder.token}.tmp")
    try:
        temporary.write_bytes(text)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_without_links(path, text)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_without_links(path: Path, text: bytes) -> bool:
    """For file systems that know no hard links: another process may see the file before its text for a moment."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    try:
        os.write(handle, text)
    finally:
        os.close(handle)
    return True


def _text(holder: Holder) -> bytes:
    return (json.dumps(asdict(holder)) + "\n").encode()


def _touched(path: Path) -> int:
    """When a file was last touched, in nanoseconds. Opened first: NFS asks its server then and not its cache."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.fstat(handle).st_mtime_ns
    finally:
        os.close(handle)


def _server_now(path: Path) -> int:
    """What the clock says that stamps the files beside `path`, in nanoseconds."""
    probe = path.with_name(f".{path.name}.{secrets.token_hex(8)}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # In a container, a user may have no name.
        return str(os.getuid())


def _kernel() -> str:
    """Within what a PID means something; machines may share a host name, and containers a machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()
