"""Checkpoints of a training: saved whole or not at all, loaded only when they are what was saved.

A checkpoint is one file, `epoch-0003-step-000040-<first 16 hex digits of its SHA-256>.pt`, that torch.load opens: three
epochs are finished, and 40 steps of the next, so that names sort as the training went. Whether a file is torn or
altered shows in its own name. It is never unpickled freely (`weights_only`).
"""

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geochip.errors import InputError, WorkError
from geochip.files import write_durably

KEEP = 2

Place = tuple[int, int]
"""(epochs that are finished, steps of the next that are)"""

# Those of earlier versions have no step in their names.
_NAME = re.compile(r"epoch-(\d+)(?:-step-(\d+))?-([0-9a-f]{16})\.pt")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that a training needs to go on after a step as if nothing had happened.

    Random numbers are not in it: the order of chips, augmentation and dropout follow from seed, epoch, step and rank.
    """

    epoch: int
    """Epochs that are finished, validation included."""
    step: int
    """Steps of the next epoch that are finished; when all are, its validation is still to be done."""
    loss_sums: list[float]
    """Of each of these steps, the loss summed over the valid pixels of all ranks."""
    valid: list[int]
    """Of each of these steps, the valid pixels of all ranks."""
    seconds: float
    """That these steps took."""
    settings: dict[str, Any]
    """What the result depends on, by name; text, numbers and None."""
    history: list[dict[str, float | int | None]]
    """A row of the training log for each finished epoch."""
    model: dict[str, Tensor]
    """The model's state_dict."""
    optimizer: dict[str, Any]
    """The optimizer's state_dict."""

    @property
    def place(self) -> Place:
        """How far the training is."""
        return self.epoch, self.step


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Save a checkpoint, then remove all but the newest two.

    Args:
        directory: of the checkpoints; made when missing.
        checkpoint: newer than those that are there. Files of the same or a later place were found unusable when the
            training began, and go.

    Returns:
        The file.

    Raises:
        OSError: when the file system refuses; what was there is as it was then.
    """
    buffer = io.BytesIO()
    torch.save({known.name: getattr(checkpoint, known.name) for known in fields(Checkpoint)}, buffer)
    data = buffer.getbuffer()
    checksum = hashlib.sha256(data).hexdigest()[:16]
    path = directory / f"epoch-{checkpoint.epoch:04d}-step-{checkpoint.step:06d}-{checksum}.pt"
    write_durably(path, data)
    older = [file for file, place in _files(directory) if place < checkpoint.place]
    for file, _ in _files(directory):
        if file != path and file not in older[: KEEP - 1]:
            file.unlink(missing_ok=True)
    for leftover in directory.glob(".epoch-*.tmp"):
        leftover.unlink(missing_ok=True)
    return path


def load_newest(directory: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Load the newest checkpoint that is whole.

    Args:
        directory: of the checkpoints; it may be missing.
        warn: gets a line for each newer one that is not.

    Returns:
        The checkpoint, its tensors on the CPU; None when there is none.

    Raises:
        WorkError: when the disk does not give it now.
        InputError: when another version of geochip saved it.
    """
    found = _files(directory)
    for path, _ in found:
        fault, checkpoint = _load(path)
        if checkpoint is not None:
            return checkpoint
        warn(f"{path} is unusable ({fault}) and is passed over")
    if found:
        warn(f"no checkpoint in {directory} is usable: the training begins anew")
    return None


def _load(path: Path) -> tuple[str, Checkpoint | None]:
    """(what is wrong, None) or ("", the checkpoint)."""
    try:
        data = path.read_bytes()
    except OSError as error:
        # Not passed over: an older one would be gone on from, and this one removed, for a disk's bad moment.
        raise WorkError(
            f"{path} cannot be read: {error.strerror}; nothing is lost: see to the disk and run the same command again"
        ) from error
    match = _NAME.fullmatch(path.name)
    if match is None or hashlib.sha256(data).hexdigest()[:16] != match[3]:
        return "it is not the file that was saved: its checksum is not the one in its name", None
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if set(content) != {known.name for known in fields(Checkpoint)}:
        raise InputError(
            f"{path} was saved by another version of geochip; go on with that version, or begin another training with "
            f"another run_dir or by removing {path.parent}"
        )
    return "", Checkpoint(**content)


def _files(directory: Path) -> list[tuple[Path, Place]]:
    """The checkpoints and their places, newest first."""
    if not directory.is_dir():
        return []
    found = [
        (path, (int(match[1]), int(match[2] or 0)))
        for path in directory.iterdir()
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found, key=lambda item: (item[1], item[0].name), reverse=True)


def require_same_settings(checkpoint: Checkpoint, settings: Mapping[str, Any], directory: Path) -> None:
    """Refuse to go on with a training under settings that would give another result.

    Args:
        checkpoint: that was found.
        settings: of the training that is to go on, as in `Checkpoint.settings`.
        directory: to name in the error.

    Raises:
        InputError: naming each setting that differs, and what to do.
    """
    old = checkpoint.settings
    names = [*settings, *(name for name in old if name not in settings)]
    differing = [
        f"{name}: {old.get(name, 'not set')} there, {settings.get(name, 'not set')} now"
        for name in names
        if old.get(name, "not set") != settings.get(name, "not set")
    ]
    if differing:
        epochs = f"{checkpoint.epoch} epoch{'s' if checkpoint.epoch != 1 else ''}"
        if checkpoint.step:
            epochs += f" and {checkpoint.step} step{'s' if checkpoint.step != 1 else ''}"
        raise InputError(
            "\n".join(
                [
                    f"{directory} holds a training of {epochs} with other settings:",
                    *(f"    {line}" for line in differing),
                    "it can only go on as it began: give these settings again, or begin another training with another "
                    f"run_dir or by removing {directory}",
                ]
            )
        )
