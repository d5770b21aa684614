"""What a training says while it runs: log.csv, TensorBoard's scalars, a line an epoch for the terminal."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geochip.errors import InputError
from geochip.files import make_directory, naming, write_durably
from geochip.metrics import scores
from geochip.ranks import Ranks

_TABLE, _BOARD = "log.csv", "tensorboard"

Row = dict[str, float | int | None]
"""One epoch, by the columns of log.csv."""

_OF_EPOCH = ("epoch", "train_loss", "val_loss", "lr", "seconds", "chips_per_second")


class EpochLosses:
    """Losses of an epoch's steps, added up over ranks only when they are asked for."""

    def __init__(self, ranks: Ranks, loss_sums: Sequence[float] = (), valid: Sequence[int] = ()) -> None:
        """Begin an epoch, or go on after steps of which `over_ranks` and `valid` are known."""
        self.valid = list(valid)
        """Of each step: how many pixels count, over all ranks."""
        self._ranks, self._before = ranks, np.array(loss_sums, np.float64)
        self._own: list[Tensor] = []

    def add(self, loss_sum: Tensor, valid: int) -> None:
        """Add a step: the loss summed over this rank's pixels, and the number of all ranks' pixels that count."""
        self._own.append(loss_sum)
        self.valid.append(valid)

    @property
    def steps(self) -> int:
        """Steps that are done."""
        return len(self.valid)

    def over_ranks(self) -> npt.NDArray[np.float64]:
        """(steps,) the loss of each step, summed over the pixels of all ranks; a collective."""
        if not self._own:
            return self._before
        own = self._ranks.sum(torch.stack(self._own).double().cpu()).numpy()
        return np.concatenate([self._before, own])


def make_places(directory: Path) -> None:
    """Make a training's directory, and see that what it will write there has a place.

    Args:
        directory: of the training.

    Raises:
        InputError: when it cannot be written to, or something else stands where the log belongs.
    """
    make_directory(directory, "run_dir")
    make_directory(directory / _BOARD, "run_dir")
    table = directory / _TABLE
    if table.exists() and not table.is_file():
        raise InputError(f"run_dir: {table} is there and is no file, so no log can be written; remove it")


class TrainingLog:
    """Writes a table and TensorBoard's files. A context manager."""

    def __init__(self, directory: Path, history: Sequence[Row], steps: int, *, enabled: bool) -> None:
        """Begin, or go on after the epochs in `history`: what was logged of later ones is dropped.

        Args:
            directory: gets log.csv, a row an epoch, and tensorboard/, whose scalars stand against the number of steps
                done.
            history: rows of the epochs that are finished.
            steps: of an epoch.
            enabled: False writes nothing, on a rank that is not the first.
        """
        self._path, self._steps, self._enabled = directory / _TABLE, steps, enabled
        if enabled:
            # Imported here: the other ranks do without what TensorBoard brings along.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(directory / _BOARD), purge_step=len(history) * steps + 1)
            self._write_table(history)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            with naming(self._path.parent / "tensorboard"):
                self._board.close()

    def write(self, history: Sequence[Row], step_losses: npt.NDArray[np.float64]) -> None:
        """Log the newest epoch.

        Args:
            history: rows of all epochs, this one's last.
            step_losses: (steps,) its training losses.

        Raises:
            OSError: when the file system refuses.
        """
        if not self._enabled:
            return
        self._write_table(history)
        done = len(history) * self._steps
        with naming(self._path.parent / "tensorboard"):
            for number, loss in enumerate(step_losses, start=done - len(step_losses) + 1):
                self._board.add_scalar("step/train_loss", float(loss), number)
            for name, value in history[-1].items():
                if value is not None and name != "epoch":
                    self._board.add_scalar(f"epoch/{name}", value, done)
            self._board.flush()

    def _write_table(self, history: Sequence[Row]) -> None:
        text = io.StringIO(newline="")
        if history:
            writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(history)
        write_durably(self._path, text.getvalue().encode())


def columns(class_names: Sequence[str], *, validated: bool) -> tuple[str, ...]:
    """Name the columns of log.csv; without validation there are no scores."""
    count = len(class_names)
    scored = score_columns(np.zeros((count, count), np.int64), class_names) if validated else Row()
    return (*_OF_EPOCH, *scored)


def score_columns(confusion: npt.NDArray[np.int64], class_names: Sequence[str]) -> Row:
    """The columns of log.csv that follow from a confusion matrix (row = truth, column = prediction)."""
    result = scores(confusion)
    row: Row = {f"avg_{name}": getattr(result.average, name) for name in ("precision", "recall", "f1")}
    for class_name, one in zip(class_names, result.classes, strict=True):
        row |= {f"{class_name}_{name}": getattr(one, name) for name in ("precision", "recall", "f1", "iou")}
    return row


def in_one_line(row: Row, epochs: int, class_names: Sequence[str]) -> str:
    """An epoch for the terminal: with two classes the scores of the second one, with more their average."""

    def figure(key: str) -> str:
        value = row.get(key)
        return "-" if value is None else f"{value:.3f}"

    parts = [f"epoch {row['epoch']} of {epochs}", f"train loss {figure('train_loss')}"]
    if row["val_loss"] is not None:
        two = len(class_names) == 2
        of, names = (class_names[1], "precision recall f1 iou") if two else ("avg", "precision recall f1")
        parts.append(f"val loss {figure('val_loss')}")
        parts.append(" ".join([of, *(f"{name} {figure(f'{of}_{name}')}" for name in names.split())]))
    return "  ".join([*parts, f"{row['chips_per_second']:.1f} chips/s", f"{row['seconds']:.1f} s"])
