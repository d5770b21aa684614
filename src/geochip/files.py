"""Files that are there whole or not at all, also after a kill or a power cut."""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from geochip.errors import InputError, WorkError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS = {
    stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}  # fmt: skip


class NotRegularError(OSError):
    """What was to be read is no regular file: a named pipe would make its reader wait for ever."""


def require_regular(path: Path | str) -> os.stat_result:
    """See that a path leads to a regular file, before anything opens it.

    Args:
        path: the file; symbolic links are followed.

    Returns:
        Its facts.

    Raises:
        NotRegularError: when it is a directory, a named pipe, a socket or a device; `strerror` says which.
        FileNotFoundError, PermissionError: when it cannot be reached.
    """
    facts = Path(path).stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "no regular file")
        number = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL
        raise NotRegularError(number, f"it is {kind}, not a regular file", str(path))
    return facts


def refuse_foreign(path: Path, option: str) -> None:
    """Refuse what geochip does not make under a name that it keeps to itself: a symbolic link leads to another's files.

    Args:
        path: of a directory; there may be none.
        option: the key of the run file that says where it is, for the error.

    Raises:
        InputError: when it is a link, or a file.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(
            f"{option}: {path} is a {'symbolic link' if path.is_symlink() else 'file'} where geochip makes a directory "
            f"of its own; remove it, or choose another {option}"
        )


def remove_leftover(path: Path, option: str) -> None:
    """Remove a directory that a killed run left under a name of geochip's own, never through a link.

    Args:
        path: the directory; there may be none.
        option: the key of the run file that says where it is, for the error.

    Raises:
        InputError: when it is something that geochip does not make.
    """
    refuse_foreign(path, option)
    shutil.rmtree(path, ignore_errors=True)


def is_there(path: Path | str) -> bool:
    """Whether something is at a path; not where no name can be so long, of which `Path.exists` raises an error.

    Raises:
        PermissionError: when it may not be known.
    """
    try:
        Path(path).stat()
    except PermissionError:
        raise
    except OSError:
        return False
    return True


def read_regular(path: Path | str) -> bytes:
    """All bytes of a regular file; see `require_regular`.

    Opened without waiting and looked at afterwards: what stands at the path may be another thing a moment later.
    """
    require_regular(path)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise NotRegularError(errno.EINVAL, "it is no regular file", str(path))
        return file.read()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of a file that is open the name that it lacks: "No space left on device", but on which?"""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def writing_durably(path: Path) -> Iterator[BinaryIO]:
    """Write a whole file: to a temporary one beside it, flushed to the disk, then renamed over `path`.

    Args:
        path: the file; its directory is made when it is missing. What was there stays until the new one is complete.

    Yields:
        The temporary file; nothing becomes of it when the block ends with an error.

    Raises:
        OSError: when the file system refuses, a full disk for example; it has a name, and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Named by the process, so that a leftover of a killed one is never mistaken for the work of this one.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file as `writing_durably` does.

    Args:
        path: the file.
        data: what it will hold.
    """
    with writing_durably(path) as file:
        file.write(data)


def make_directory(path: Path, option: str) -> None:
    """Make a directory, with those above it, and see that it can be written to.

    Args:
        path: the directory.
        option: the key of the run file that it comes from, for the error.

    Raises:
        InputError: when it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be written to: {error.strerror}; choose another {option}") from None


def sync(path: Path) -> None:
    """Flush a file, or a directory, to the disk: a rename in a directory is lasting only after that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: Exception) -> bool:
    """Whether an error, of any library, says that a disk or a quota is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def disk_full(path: Path) -> WorkError:
    """What to tell when writing to `path` found the disk full."""
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free / 2**20
    return WorkError(
        f"{path}: the disk or your quota on it is full ({free:.1f} MiB free); free some space and run the same command "
        "again: what is finished is kept"
    )
