"""What a worker does for the doctor: it looks at its machine and at the disks, and leaves nothing behind.

Small and without PyTorch at the top: a worker that is only to chip imports it.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from geochip.doctor.facts import Facts, gather
from geochip.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a worker saw."""

    facts: Facts
    unseen: tuple[str, ...]
    """Directories in which the driver's file does not appear."""
    unwritable: dict[str, str]
    """Directories that take no file of the worker's, with the reason."""
    unreadable: dict[str, str]
    """Files that cannot be read, with the reason."""
    no_weights: str | None = None
    """Why an encoder's pretrained weights cannot be had; "" where they can; None where they were not asked for."""


def file_of(directory: str | Path, nonce: str, who: str) -> Path:
    """The file by which driver and worker show each other that they see the same directory."""
    return Path(directory) / f".geochip-doctor-{nonce}-{who}"


def write_mark(directory: str | Path, nonce: str, who: str) -> None:
    """Write that file."""
    with file_of(directory, nonce, who).open("w") as file:
        file.write(nonce)
        file.flush()
        os.fsync(file.fileno())


def without_mark(directories: Iterable[str | Path], nonce: str, who: str, wait: float) -> list[str]:
    """The directories in which the other one's file does not appear, after a while."""
    missing, end = [str(one) for one in directories], time.monotonic() + wait
    while True:
        missing = [one for one in missing if not _is_there(file_of(one, nonce, who), nonce)]
        if not missing or time.monotonic() > end:
            return missing
        time.sleep(0.5)


def _is_there(path: Path, nonce: str) -> bool:
    try:
        # Has network disks look anew.
        list(path.parent.iterdir())
        return path.read_text() == nonce
    except OSError:
        return False


def remove_marks(directories: Sequence[str | Path], nonce: str) -> None:
    """Remove the files of both, where they are seen."""
    for directory in directories:
        for who in ("driver", "worker"):
            with contextlib.suppress(OSError):
                file_of(directory, nonce, who).unlink()


def look_from_worker(
    directories: Sequence[str],
    files: Sequence[str],
    nonce: str,
    scratch: str,
    gpus: bool,
    weights: tuple[str, str] | None,
    wait: float,
) -> Seen:
    """Look at the machine, at the driver's marks and at some files, and leave marks for the driver.

    Args:
        directories: that a run writes to, or will make something in.
        files: that a run reads.
        nonce: names the marks.
        scratch: the worker's directory for temporary files.
        gpus: look for GPUs as well.
        weights: encoder and name of the pretrained weights to look for; None for none.
        wait: seconds to wait for the driver's marks.
    """
    unwritable, unreadable = {}, {}
    unseen = without_mark(directories, nonce, "driver", wait)
    for directory in directories:
        try:
            write_mark(directory, nonce, "worker")
        except OSError as error:
            unwritable[directory] = error.strerror or str(error)
    for name in files:
        try:
            with Path(name).open("rb") as file:
                file.read(1)
        except OSError as error:
            unreadable[name] = error.strerror or str(error)
    return Seen(
        facts=gather(scratch, gpus=gpus),
        unseen=tuple(unseen),
        unwritable=unwritable,
        unreadable=unreadable,
        no_weights=None if weights is None else why_no_weights(*weights),
    )


def why_no_weights(encoder: str, encoder_weights: str) -> str:
    """Why pretrained weights are not on this machine, and where they were looked for; "" where they are."""
    from huggingface_hub import constants

    from geochip.model import require_cached_weights

    try:
        require_cached_weights(encoder, encoder_weights)
    except InputError as error:
        return f"{error} (looked for in {constants.HF_HUB_CACHE})"
    return ""
