"""Checkpoints of a training: saved whole or not at all, loaded only when they are what was saved.

A checkpoint is one file, `epoch-0003-step-000040-<first 16 hex digits of its SHA-256>.pt`, that torch.load opens: three
epochs are finished, and 40 steps of the next, so that names sort as the training went. Whether a file is torn or
altered shows in its own name. It is never unpickled freely (`weights_only`).
"""

import hashlib
import inspect
import io
import math
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geochip.documents import as_document
from geochip.errors import DamagedError, InputError, WorkError
from geochip.files import read_regular, write_durably
from geochip.model import not_finite

KEEP = 2

Place = tuple[int, int]
"""(epochs that are finished, steps of the next that are)"""

# What remedies the newest one: `load_newest` then takes the one before it.
_REMOVE = (
    "remove it and run the same command again, which goes on after the checkpoint before it, or begins anew without one"
)

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

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.step < 0:
            raise ValueError(f"epoch {self.epoch} and step {self.step} must be at least 0")
        for name, values, wanted in (
            ("loss_sums", self.loss_sums, self.step),
            ("valid", self.valid, self.step),
            ("history", self.history, self.epoch),
        ):
            if len(values) != wanted:
                raise ValueError(f"{name} has {len(values)} items where there should be {wanted}")
        if not all(map(math.isfinite, (*self.loss_sums, self.seconds))) or min((*self.valid, self.seconds)) < 0:
            raise ValueError("losses must be finite, and pixels and seconds at least 0")
        if not all(value is None or math.isfinite(value) for row in self.history for value in row.values()):
            raise ValueError("history must hold finite numbers")
        if name := not_finite(self.model):
            raise ValueError(f"the model's {name} holds NaN or infinity")

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
        InputError: when another version of geochip saved it, or something else altogether did.
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
        data = read_regular(path)
    except OSError as error:
        # Not passed over: an older one would be gone on from, and this one removed, for a disk's bad moment.
        raise WorkError(
            f"{path} cannot be read: {error.strerror}; nothing is lost: see to the disk and run the same command again"
        ) from error
    match = _NAME.fullmatch(path.name)
    if match is None or hashlib.sha256(data).hexdigest()[:16] != match[3]:
        return "it is not the file that was saved: its checksum is not the one in its name", None
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DamagedError(
            f"{path} holds something else than the numbers of a training, and loading it could run code: it is not "
            f"what geochip saved; {_REMOVE}"
        ) from None
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, OSError) as error:
        raise DamagedError(f"{path} is damaged ({' '.join(str(error).split())[:300]}); {_REMOVE}") from None
    if isinstance(content, dict) and set(content) != {known.name for known in fields(Checkpoint)}:
        raise InputError(
            f"{path} was saved by another version of geochip; go on with that version, or begin another training with "
            f"another run_dir or by removing {path.parent}"
        )
    checkpoint = as_document(content, Checkpoint, str(path), _REMOVE)
    named = (int(match[1]), int(match[2] or 0))
    if checkpoint.place != named:
        raise DamagedError(f"{path} is damaged (it holds epoch and step {checkpoint.place}, not {named}); {_REMOVE}")
    return "", checkpoint


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


def require_history(checkpoint: Checkpoint, columns: Collection[str], directory: Path) -> None:
    """See that the log of a training can go on.

    Args:
        checkpoint: of `load_newest`.
        columns: of the training log.
        directory: where the checkpoint is, for the error.

    Raises:
        DamagedError: when a row of its history has others.
    """
    for number, row in enumerate(checkpoint.history, 1):
        if differing := sorted(set(row) ^ set(columns)):
            path = _path_of(checkpoint, directory)
            fault = f"its history of epoch {number} lacks or adds {', '.join(differing)}"
            raise DamagedError(f"{path} is damaged ({fault}); {_REMOVE}")


def _path_of(checkpoint: Checkpoint, directory: Path) -> Path:
    return next((path for path, place in _files(directory) if place == checkpoint.place), directory)


def restore(checkpoint: Checkpoint, directory: Path, what: nn.Module | Optimizer) -> None:
    """Put a model, or its optimizer, back to where it was.

    Args:
        checkpoint: of `load_newest`.
        directory: where it is, for the error.
        what: the network that was trained, or the optimizer of its weights as new.

    Raises:
        DamagedError: when what is saved does not fit it.
    """
    path = _path_of(checkpoint, directory)
    try:
        if isinstance(what, Optimizer):
            _restore_optimizer(what, checkpoint.optimizer)
        else:
            what.load_state_dict(checkpoint.model)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        fault = " ".join(str(error).split())[:300]
        raise DamagedError(f"{path} does not fit the network of this training ({fault}); {_REMOVE}") from None


def _restore_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, and see that its next step will find what it needs: torch only counts the weights.

    Raises:
        ValueError and others of torch's: when it is not this optimizer's.
    """
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, as_new in zip(optimizer.param_groups, fresh, strict=True):
        for key, value in as_new.items():
            # The learning rate is set at every step.
            if key != "lr" and group.get(key) != value:
                raise ValueError(f"the optimizer's {key} is {group.get(key)!r}, should be {value!r}")
    wanted = _state_names(optimizer)
    for group in optimizer.param_groups:
        for weight in group["params"]:
            state_of = optimizer.state.get(weight, {})
            if state_of and set(state_of) != wanted:
                raise ValueError(f"the optimizer's state is of {', '.join(map(str, state_of))}")
            for name, value in state_of.items():
                if not isinstance(value, Tensor) or value.shape not in (weight.shape, torch.Size()):
                    raise ValueError(f"the optimizer's {name} has the wrong shape or type for a weight")


def _state_names(optimizer: Optimizer) -> set[str]:
    """What an optimizer of this kind keeps for each weight, found out by a step of another one."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.zeros(1)
    taken = inspect.signature(type(optimizer)).parameters
    another = type(optimizer)([weight], **{key: value for key, value in optimizer.defaults.items() if key in taken})
    another.step()
    return set(another.state[weight])


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
