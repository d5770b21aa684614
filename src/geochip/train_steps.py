"""What a training does in a step and with a batch of its validation; `geochip.train_ddp` is the whole of it."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geochip.config import IGNORE, TrainConfig
from geochip.dataset import Batch, BatchReader, Positions, validation_batches
from geochip.errors import WorkError
from geochip.interruption import Requests
from geochip.metrics import confusion_matrix
from geochip.model import SegmentationModel
from geochip.ranks import Ranks, ToldElsewhereError
from geochip.training_log import Row, score_columns


def summed_loss(logits_bkhw: Tensor, label_bhw: Tensor) -> Tensor:
    """Cross entropy, summed over the pixels whose label is not 255; 0 when there is none."""
    return functional.cross_entropy(logits_bkhw, label_bhw.long(), ignore_index=IGNORE, reduction="sum")


def learning_rate(step: int, steps: int, settings: TrainConfig) -> float:
    """Adam's learning rate at a step.

    one_cycle is a triangle over the whole training, from lr/10 up to lr at its middle and down again, as Raster
    Vision's Learner does it: torch.optim.lr_scheduler.CyclicLR with base_lr = lr / 10, max_lr = lr and one cycle. The
    policy is that of Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, arXiv:1506.01186.

    Args:
        step: counted from 0, over all epochs.
        steps: of all epochs.
        settings: name schedule and peak.
    """
    if settings.schedule == "constant":
        return settings.lr
    height = 1 - abs(2 * step / steps - 1)
    return settings.lr * (0.1 + 0.9 * height)


def training_mode(model: nn.Module, settings: TrainConfig) -> None:
    """Set a model to training, its BatchNorm layers to evaluation when they are frozen."""
    model.train()
    if settings.freeze_batchnorm:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def next_batch(batches: Iterator[Batch], ranks: Ranks, requests: Requests) -> tuple[Batch | None, int]:
    """The rank's next batch and the valid pixels of those of all ranks, and whether it is asked for a stop or a save.

    A chip that cannot be read ends all ranks.

    Returns:
        None for a rank that has no more batches.
    """
    batch, error = None, None
    try:
        batch = next(batches, None)
    except WorkError as caught:
        error = caught
    # One small sum a step tells all ranks everything, before any of them begins to compute.
    own = [batch.valid if batch else 0, int(error is not None), *requests.votes()]
    valid, failed, *votes = ranks.sum(torch.tensor(own)).tolist()
    if error is not None:
        raise error
    if failed:
        raise ToldElsewhereError(WorkError.exit_code)
    requests.count(votes)
    return batch, valid


def validate(
    model: SegmentationModel,
    chips: BatchReader,
    positions: Positions,
    classes: Sequence[str],
    ranks: Ranks,
    requests: Requests,
) -> tuple[float | None, Row] | None:
    """Loss and scores over the validation split, each chip once: the same for any number of ranks.

    The batches are fixed and each goes to one rank, so every chip meets the same company in it; what is added up are
    whole numbers and sums in float64. The model runs outside of DDP: ranks may have different numbers of batches.

    Args:
        model: outside of DDP, with the same weights and buffers on all ranks.
        chips: reads the split.
        positions: of its chips.
        classes: their names.
        ranks: that share the work.
        requests: a stop among them ends the validation.

    Returns:
        Loss and the row's scores; None when it was asked to stop.

    Raises:
        WorkError: when chips cannot be read.
    """
    size, rank, world = chips.batch_size, ranks.rank, ranks.world
    batches = chips.read(validation_batches(positions, batch_size=size, rank=rank, world=world))
    loss, valid, confusion = 0.0, 0, np.zeros((len(classes), len(classes)), np.int64)
    model.eval()
    with torch.inference_mode():
        # As often on all ranks, for the last time perhaps without a batch.
        for _ in range(math.ceil(len(positions) / (size * world))):
            batch, _ = next_batch(batches, ranks, requests)
            if requests.stop:
                return None
            if batch is None:
                continue
            logits = model(batch.image_bchw)
            loss += float(summed_loss(logits, batch.label_bhw))
            valid += batch.valid
            predicted = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            confusion += confusion_matrix(batch.label_bhw.cpu().numpy(), predicted, len(classes))
    total_loss, total_valid = ranks.sum(torch.tensor([loss, valid], dtype=torch.float64)).tolist()
    confusion = ranks.sum(torch.from_numpy(confusion)).numpy()
    return total_loss / total_valid if total_valid else None, score_columns(confusion, classes)
