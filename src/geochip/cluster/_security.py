"""TLS between the driver and its workers: keys that are made for one run and read by its workers from the shared disk.

Whoever can talk to a Dask scheduler can run code as its owner, and a cluster's network is everybody's. With TLS both
sides show a certificate that only this run's processes have.
"""

import contextlib
import os
import platform
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from distributed.security import Security

from geochip.errors import InputError
from geochip.files import make_directory

DIRECTORY = ".keys"
# A driver on another machine shows that it is there by touching its keys' directory.
_TOUCH_SECONDS = 60
_OLD_SECONDS = 5 * 60
# The kernel's idea of when a process began moves when the clock is set.
_SAME_START = 2


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of one run."""

    security: Security
    """For scheduler and client, in this process."""
    directory: Path
    """Where the workers find them."""

    @property
    def options(self) -> list[tuple[str, str]]:
        """Options of Dask's worker, with their values."""
        return [
            ("--protocol", "tls://"),
            ("--tls-ca-file", str(self.directory / "ca.pem")),
            ("--tls-cert", str(self.directory / "cert.pem")),
            ("--tls-key", str(self.directory / "key.pem")),
        ]


@contextlib.contextmanager
def keys_in(run_dir: Path) -> Iterator[Keys]:
    """Make keys and write them below `run_dir`, readable by this user alone; they are removed in the end.

    Those that a killed process left there are removed as well.

    Raises:
        InputError: when they cannot be written.
    """
    parent = run_dir / DIRECTORY
    sweep(parent)
    security = Security.temporary()
    directory = parent / _name(psutil.Process())
    try:
        make_directory(run_dir, "run_dir")
        parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700)
        worker = security.get_tls_config_for_role("worker")
        for name, text in (("ca", worker["ca_file"]), ("cert", worker["cert"]), ("key", worker["key"])):
            handle = os.open(directory / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(text)
    except OSError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise InputError(
            f"run_dir: the workers' keys cannot be written to {directory}: {error.strerror}; choose another run_dir"
        ) from None
    ended = threading.Event()
    sign_of_life = threading.Thread(target=_touch, args=(directory, ended), name="geochip-keys", daemon=True)
    sign_of_life.start()
    try:
        yield Keys(security=security, directory=directory)
    finally:
        ended.set()
        shutil.rmtree(directory, ignore_errors=True)
        # A driver on a node that was lost may have been too young to be taken for dead when this one began.
        sweep(parent)
        with contextlib.suppress(OSError):
            # Another run may have its own there.
            parent.rmdir()


def _touch(directory: Path, ended: threading.Event) -> None:
    while not ended.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(directory)


def _name(process: psutil.Process) -> str:
    return f"{platform.node()}-{process.pid}-{process.create_time():.0f}"


def sweep(parent: Path) -> None:
    """Remove the keys of processes that are gone."""
    found = list(parent.glob("*-*-*"))
    if not found:
        return
    # Of the file server's clock, which may not be this machine's.
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=parent, prefix=".now_") as fresh:
        now = Path(fresh).stat().st_mtime
        for directory in found:
            if _left(directory, now):
                shutil.rmtree(directory, ignore_errors=True)


def _left(directory: Path, now: float) -> bool:
    host, pid, started = directory.name.rsplit("-", 2)
    if host != platform.node() or not (pid.isdigit() and started.isdigit()):
        with contextlib.suppress(OSError):
            return now - directory.stat().st_mtime > _OLD_SECONDS
        return False
    try:
        return bool(abs(psutil.Process(int(pid)).create_time() - int(started)) > _SAME_START)
    except psutil.NoSuchProcess:
        return True
