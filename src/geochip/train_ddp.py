"""Train a segmentation model on the chips of a store, on one process or on many (PyTorch DDP).

One CPU or one GPU:
    python -m geochip.train_ddp --config run.yaml
Four GPUs, or four processes that share the CPUs, of one machine:
    torchrun --standalone --nproc-per-node=4 -m geochip.train_ddp --config run.yaml
Two machines with four GPUs each, run on both (HOST is one of them; run_dir and the chip store are on a shared disk):
    torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-id=1 --rdzv-endpoint=HOST:29500 \
        -m geochip.train_ddp --config run.yaml

Each process is a rank. train.batch_size chips pass through each rank a step, so the global batch is that times the
number of ranks; the first line printed says it. Losses are sums over pixels divided by the number of valid pixels of
the whole global batch: what ranks there are does not show in them.

After each epoch a row of train/log.csv, TensorBoard's scalars and a checkpoint are written. The same command again goes
on after the newest whole checkpoint and ends with the same weights as a training that was never stopped (bit for bit on
one rank on a CPU; GPUs add up in no fixed order). At the end the model's bundle is written: weights and data contract,
for geochip.infer.

Columns of log.csv: epoch; train_loss and val_loss, cross entropy a valid pixel, in nats; lr, of the epoch's last step;
seconds, of the epoch with its validation; chips_per_second, of all ranks while training; avg_precision, avg_recall and
avg_f1, means over the classes weighted by their pixels; and precision, recall, f1 and iou of each class. A field is
empty where there is nothing to say, for a class that is nowhere, say.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from geochip.checkpoint import Checkpoint, load_newest, require_same_settings, save_checkpoint
from geochip.config import IGNORE, RunConfig, TrainConfig, available_cpus
from geochip.dataset import Batch, BatchReader, TrainingData, find_data, training_batches, validation_batches
from geochip.errors import GeochipError, InputError, WorkError, run_command
from geochip.files import make_directory
from geochip.metrics import confusion_matrix
from geochip.model import (
    Contract,
    SegmentationModel,
    build_model,
    check_bundle_dir,
    fetch_encoder_weights,
    load_bundle,
    rehearse,
    save_bundle,
)
from geochip.progress import ProgressReport
from geochip.ranks import Ranks, ToldElsewhereError
from geochip.run_file import parse_run_config
from geochip.training_log import Row, TrainingLog, in_one_line, score_columns


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    ranks = Ranks.join()
    try:
        train(argv, ranks)
    except (GeochipError, SystemExit) as error:
        # All ranks come here, none is inside a collective (see `Ranks.alike`); SystemExit is that of --print_config. A
        # process group that is not ended may abort the process on its way out, which would hide the exit code.
        ranks.leave()
        if isinstance(error, ToldElsewhereError):
            # torchrun stops all ranks as soon as one has left with an error: the one that tells it leaves first.
            time.sleep(10)
        raise
    ranks.leave()


def train(argv: Sequence[str], ranks: Ranks) -> None:
    """Train, from the command line to the bundle. Every rank runs every line; `ranks` keeps them together."""
    # Everything that can be wrong with configuration and input, before anything is written.
    config = ranks.alike(read_config, argv)
    settings, rank, world = config.train, ranks.rank, ranks.world
    data = ranks.alike(find_data, config, world=world)
    device = ranks.alike(choose_device, settings, ranks)
    fixed = what_the_result_depends_on(config, data, ranks)
    saved = ranks.alike(find_checkpoint, config.train_dir, fixed, ranks)
    done = saved.epoch if saved else 0
    ranks.require_same("the newest checkpoint's epoch", done)
    ranks.alike(check_bundle_dir, config.bundle_dir)
    torch.set_num_threads(max(1, available_cpus() // ranks.local_world))
    global_batch = world * settings.batch_size
    steps = len(data.train) // global_batch
    ranks.say(
        f"global batch {global_batch} = {world} rank{'s' if world > 1 else ''} x {settings.batch_size} chips; "
        f"{len(data.train)} chips of {settings.split}, {steps} steps an epoch; on {device.type}"
    )

    torch.manual_seed(settings.seed)
    model = ranks.alike(make_model, config, data.contract, load_weights=rank == 0 and saved is None)
    history: list[Row] = []
    if saved is not None:
        model.load_state_dict(saved.model)
        history = list(saved.history)
    if done >= settings.epochs:
        ranks.say(f"the training had already finished: {done} of {settings.epochs} epochs")
        ranks.alike(finish, config.bundle_dir, model, data.contract, history, ranks)
        return
    training_mode(model, settings)
    ranks.alike(rehearse, model, batch_size=settings.batch_size, chip_size=data.contract.chip_size)
    ranks.alike(make_directory, config.train_dir, "run_dir")

    model.to(device)
    ddp: nn.Module = model
    if world > 1:
        ddp = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=settings.lr)
    if saved is not None:
        optimizer.load_state_dict(saved.optimizer)
        ranks.say(f"going on after epoch {done} of {settings.epochs}, from {config.train_dir}")
        del saved  # it holds the weights once more
    with (
        BatchReader(
            data.store, settings.split, batch_size=settings.batch_size, device=device,
            augment_seed=settings.seed if settings.augment else None,
        ) as chips,
        BatchReader(
            data.store, settings.val_split or settings.split, batch_size=settings.batch_size, device=device
        ) as val_chips,
        TrainingLog(config.train_dir, history, steps, enabled=rank == 0) as log,
    ):  # fmt: skip
        for epoch in range(done, settings.epochs):
            started = time.perf_counter()
            torch.manual_seed(key_of(settings.seed, epoch, rank))  # for dropout, which differs between ranks
            training_mode(model, settings)
            batches = chips.read(
                training_batches(
                    data.train,
                    seed=settings.seed, epoch=epoch, batch_size=settings.batch_size, rank=rank, world=world,
                ),
                epoch=epoch,
            )  # fmt: skip
            loss_sums: list[Tensor] = []  # of each step, over this rank's pixels
            valid: list[int] = []  # of each step: how many pixels count, over all ranks
            with ProgressReport(f"epoch {epoch + 1} of {settings.epochs}", steps, enabled=rank == 0) as progress:
                for step in range(epoch * steps, (epoch + 1) * steps):
                    batch, valid_pixels = next_batch(batches, ranks)
                    lr = learning_rate(step, settings.epochs * steps, settings)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    loss_sum = summed_loss(ddp(batch.image_bchw), batch.label_bhw)
                    # DDP averages gradients over ranks: times their number and divided by all pixels that count, each
                    # pixel of the global batch weighs the same. Where none counts the loss is 0, not 0/0.
                    loss = loss_sum * (world / max(valid_pixels, 1))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    loss_sums.append(loss_sum.detach())
                    valid.append(valid_pixels)
                    progress.advance()
            summed = ranks.sum(torch.stack(loss_sums).double().cpu()).numpy()
            train_loss = float(summed.sum()) / max(sum(valid), 1)
            chips_per_second = steps * global_batch / (time.perf_counter() - started)
            ranks.alike(require_finite, train_loss, epoch, config)

            val_loss, scored = None, Row()
            if settings.val_split is not None:
                for buffer in model.buffers():
                    ranks.from_first(buffer)  # BatchNorm's statistics: each rank's are its own after a step
                val_loss, scored = validate(model, val_chips, data, settings, ranks)
            history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    "lr": lr,
                    "seconds": round(time.perf_counter() - started, 3),
                    "chips_per_second": round(chips_per_second, 2),
                    **scored,
                }
            )
            # The log first: what it holds beyond the newest checkpoint is dropped when the training goes on from there.
            ranks.alike(write_log, log, history, summed / np.maximum(valid, 1))
            checkpoint = Checkpoint(
                epoch=epoch + 1,
                step=(epoch + 1) * steps,
                settings=fixed,
                history=history,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            ranks.alike(save, config.train_dir, checkpoint, ranks)
            ranks.say(in_one_line(history[-1], settings.epochs, data.contract.class_names))
    ranks.alike(finish, config.bundle_dir, model, data.contract, history, ranks)


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


def key_of(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def next_batch(batches: Iterator[Batch], ranks: Ranks) -> tuple[Batch, int]:
    """The rank's next batch and the valid pixels of the global batch; a chip that cannot be read ends all ranks."""
    batch, error = None, None
    try:
        batch = next(batches)
    except WorkError as caught:
        error = caught
    # One small sum a step tells all ranks both, before any of them begins to compute.
    valid, failed = ranks.sum(torch.tensor([batch.valid if batch else 0, error is not None])).tolist()
    if error is not None:
        raise error
    if failed or batch is None:
        raise ToldElsewhereError(WorkError.exit_code)
    return batch, valid


def validate(
    model: SegmentationModel, chips: BatchReader, data: TrainingData, settings: TrainConfig, ranks: Ranks
) -> tuple[float | None, Row]:
    """Loss and scores over the validation split, each chip once: the same for any number of ranks.

    The batches are fixed and each goes to one rank, so every chip meets the same company in it; what is added up are
    whole numbers and sums in float64. The model runs outside of DDP: ranks may have different numbers of batches.
    """
    classes = data.contract.class_names
    batches = validation_batches(data.val, batch_size=settings.batch_size, rank=ranks.rank, world=ranks.world)

    def own_part() -> tuple[float, int, npt.NDArray[np.int64]]:
        loss, valid, confusion = 0.0, 0, np.zeros((len(classes), len(classes)), np.int64)
        for batch in chips.read(batches):
            logits = model(batch.image_bchw)
            loss += float(summed_loss(logits, batch.label_bhw))
            valid += batch.valid
            predicted = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
            confusion += confusion_matrix(batch.label_bhw.cpu().numpy(), predicted, len(classes))
        return loss, valid, confusion

    model.eval()
    with torch.inference_mode():
        loss, valid, confusion = ranks.alike(own_part)
    total_loss, total_valid = ranks.sum(torch.tensor([loss, valid], dtype=torch.float64)).tolist()
    confusion = ranks.sum(torch.from_numpy(confusion)).numpy()
    return total_loss / total_valid if total_valid else None, score_columns(confusion, classes)


def read_config(argv: Sequence[str]) -> RunConfig:
    """Configuration from the command line."""
    return parse_run_config(argv, command="train_ddp", description="Train a segmentation model on chips.")[0]


def choose_device(settings: TrainConfig, ranks: Ranks) -> torch.device:
    """The rank's device.

    Raises:
        InputError: when there are fewer GPUs than ranks on this machine, or none where one was asked for.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cpu" or (settings.device == "auto" and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise InputError(
            "train.device: 'cuda' is not possible: PyTorch sees no GPU here; use auto or cpu, or see what nvidia-smi "
            "and CUDA_VISIBLE_DEVICES say"
        )
    if gpus < ranks.local_world:
        raise InputError(
            f"{ranks.local_world} ranks were started on a machine with {gpus} GPU{'s' if gpus > 1 else ''}, each "
            f"needs its own; use --nproc-per-node={gpus}, or --train.device cpu"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def what_the_result_depends_on(config: RunConfig, data: TrainingData, ranks: Ranks) -> dict[str, Any]:
    """Settings that a training must go on with, by name; where it computes is not among them."""
    model = {name: value for name, value in asdict(config.model).items() if name != "bundle"}
    if config.model.architecture == "linear":
        model = {"architecture": "linear"}
    train = {name: value for name, value in asdict(config.train).items() if name != "device"}
    if config.train.schedule == "constant":
        del train["epochs"]  # more of them change nothing about those that are done
    return {
        "number of ranks": ranks.world,
        "fingerprint of the chip store": data.contract.chip_store_fingerprint,
        "chips": f"{len(data.train)} + {len(data.val)}",
        **{f"model.{name}": value for name, value in model.items()},
        **{f"train.{name}": value for name, value in train.items()},
    }


def make_model(config: RunConfig, contract: Contract, *, load_weights: bool) -> SegmentationModel:
    """Build the model; pretrained weights are loaded on one rank, whose weights DDP sends to the others.

    Raises:
        InputError: when there is no such network, or no such weights.
    """
    weights = config.model.encoder_weights if load_weights and contract.architecture != "linear" else None
    if weights is not None:
        fetch_encoder_weights(contract.encoder, weights)
    return build_model(contract, encoder_weights=weights)


def find_checkpoint(directory: Path, fixed: dict[str, Any], ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        InputError: when it is of a training with other settings.
    """
    saved = load_newest(directory, lambda line: print(line, file=sys.stderr) if ranks.rank == 0 else None)
    if saved is not None:
        require_same_settings(saved, fixed, directory)
    return saved


def require_finite(train_loss: float, epoch: int, config: RunConfig) -> None:
    """Raise `WorkError` when the training has diverged, before that is saved."""
    if not math.isfinite(train_loss):
        raise WorkError(
            f"the training loss of epoch {epoch + 1} is {train_loss}: the training has diverged; begin another with a "
            f"smaller --train.lr (this one has {config.train.lr:g}) and another run_dir, or remove {config.train_dir}"
        )


def save(directory: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Save a checkpoint, on the first rank."""
    if ranks.rank == 0:
        with disk_errors(f"the checkpoint of epoch {checkpoint.epoch} in {directory}"):
            save_checkpoint(directory, checkpoint)


def write_log(log: TrainingLog, history: list[Row], step_losses: npt.NDArray[np.float64]) -> None:
    """Log an epoch."""
    with disk_errors("the training log"):
        log.write(history, step_losses)


def finish(directory: Path, model: SegmentationModel, contract: Contract, history: list[Row], ranks: Ranks) -> None:
    """Write the bundle, on the first rank, unless it is there already."""
    contract = replace(contract, metrics=history[-1])
    if ranks.rank != 0:
        return
    try:
        there = load_bundle(directory)[1] == contract
    except InputError:
        there = False
    if not there:
        with disk_errors(f"the model {directory}"):
            save_bundle(directory, model, contract)
    print(f"model: {directory}", flush=True)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what the file system refuses into a `WorkError`."""
    try:
        yield
    except OSError as error:
        raise WorkError(
            f"{what} could not be written: {error.strerror}; mend that and run the same command again, which goes on "
            "after the last checkpoint"
        ) from error


if __name__ == "__main__":
    # Run under its real name, so that what goes to other processes is found there by import.
    from geochip.train_ddp import main as _main

    sys.exit(run_command(_main))
