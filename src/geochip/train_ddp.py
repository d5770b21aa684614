"""Train a segmentation model on the chips of a store, on one process or on many (PyTorch DDP).

One CPU or one GPU:
    python -m geochip.train_ddp --config run.yaml
Four GPUs, or four processes that share the CPUs, of one machine:
    torchrun --nproc-per-node=4 --master-port=29500 -m geochip.train_ddp --config run.yaml
Two machines with four GPUs each (HOST is the first; on the second --node-rank=1; run_dir and the chip store are on a
shared disk):
    torchrun --nnodes=2 --node-rank=0 --nproc-per-node=4 --master-addr=HOST --master-port=29500 \
        -m geochip.train_ddp --config run.yaml
The port is any free one. With a port given torchrun uses a static rendezvous; with --standalone or
--rdzv-backend=c10d it unpickles what anyone who reaches its port puts there, see docs/security.md.

Each process is a rank. train.batch_size chips pass through each rank a step, so the global batch is that times the
number of ranks; the first line printed says it. Losses are sums over pixels divided by the number of valid pixels of
the whole global batch: what ranks there are does not show in them.

After each epoch a row of train/log.csv, TensorBoard's scalars and a checkpoint are written. The same command again goes
on after the newest whole checkpoint and ends with the weights and the log of a training that was never stopped (bit for
bit on one or two ranks on CPUs; GPUs, and more ranks, add up in no fixed order). At the end the model's bundle is
written: weights and data contract, for geochip.infer.

One training at a time writes a run_dir; train.lock in it names the process, and is gone when it ends.

SIGUSR2 or SIGTERM to any rank, or a file train/stop, asks the training to stop. At the next step, or batch of
validation, a checkpoint within the epoch is saved and all ranks leave together, with exit code 130 (torchrun makes it
1). train/interrupted then holds a line that says why and where; the next start removes it and goes on at that step. So
a batch script submits its job again if and only if that file is there. Mind when sending signals:
  - torchrun passes SIGTERM on to its ranks, and kills them 30 s later. SIGUSR2 would end torchrun itself: start it from
    a shell that ignores it (trap '' USR2) and signal a rank, or make train/stop.
  - Ranks whose torchrun is gone, killed say, are asked as by SIGTERM, and are gone a minute later at most.
  - A SIGTERM that comes more than 5 s after the first one ends a rank at once.
Who is killed without being asked loses what was done since the last checkpoint; see train.save_minutes.

Columns of log.csv: epoch; train_loss and val_loss, cross entropy a valid pixel, in nats; lr, of the epoch's last step;
seconds, of the epoch with its validation; chips_per_second, of all ranks while training; avg_precision, avg_recall and
avg_f1, means over the classes weighted by their pixels; and precision, recall, f1 and iou of each class. A field is
empty where there is nothing to say, for a class that is nowhere, say.
"""

if __name__ == "__main__":
    # Before PyTorch's import, which takes seconds: a signal meanwhile is kept for the first step.
    from geochip.interruption import end_with_torchrun, take_note_of_signals

    take_note_of_signals()
    end_with_torchrun()

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from geochip.checkpoint import (
    Checkpoint,
    Place,
    load_newest,
    require_history,
    require_same_settings,
    restore,
    save_checkpoint,
)
from geochip.config import RunConfig, available_cpus
from geochip.dataset import BatchReader, TrainingData, find_data, training_batches
from geochip.errors import GeochipError, InputError, WorkError, run_command
from geochip.files import make_directory
from geochip.interruption import (
    Requests,
    StoppedError,
    take_no_more_notes,
    take_note_of_signals,
    time_of_start,
)
from geochip.model import (
    Contract,
    SegmentationModel,
    build_model,
    check_bundle_dir,
    fetch_encoder_weights,
    load_bundle,
    not_finite,
    rehearse,
    save_bundle,
)
from geochip.progress import ProgressReport
from geochip.ranks import Ranks, ToldElsewhereError, choose_device
from geochip.run_file import parse_run_config
from geochip.store import StoreLock
from geochip.train_steps import learning_rate, next_batch, summed_loss, training_mode, validate
from geochip.training_log import EpochLosses, Row, TrainingLog, columns, in_one_line, make_places


def main(argv: Sequence[str]) -> None:
    """Run the command; see the module's docstring."""
    take_note_of_signals()
    try:
        ranks = Ranks.join()
        try:
            train(argv, ranks)
        except (GeochipError, SystemExit) as error:
            # Who is asked to end after a failure, by torchrun say, shall end at once.
            take_no_more_notes()
            # All ranks come here, none is inside a collective (see `Ranks.alike`); SystemExit is that of
            # --print_config. A process group that is not ended may abort the process on its way out, which would hide
            # the exit code.
            ranks.leave()
            if isinstance(error, ToldElsewhereError):
                # torchrun stops all ranks as soon as one has left with an error: the one that tells it leaves first.
                time.sleep(10)
            raise
        ranks.leave()
    finally:
        take_no_more_notes()


def train(argv: Sequence[str], ranks: Ranks) -> None:
    """Train, from the command line to the bundle. Every rank runs every line; `ranks` keeps them together."""
    config = ranks.alike(read_config, argv)
    with only_training(config, ranks) as lock:
        train_alone(config, ranks, lock)


def train_alone(config: RunConfig, ranks: Ranks, lock: StoreLock) -> None:
    """Train, while no other process trains in run_dir."""
    # Everything that can be wrong with configuration and input, before anything is written.
    settings, rank, world = config.train, ranks.rank, ranks.world
    requests = Requests(config.train_dir, first=rank == 0, save_minutes=settings.save_minutes)
    ranks.alike(requests.forget, since=time_of_start())
    data = ranks.alike(find_data, config, world=world)
    device = ranks.alike(choose_device, settings.device, ranks)
    fixed = what_the_result_depends_on(config, data, ranks)
    saved = ranks.alike(find_checkpoint, config, fixed, ranks)
    done, newest = (saved.epoch, saved.place) if saved else (0, None)
    global_batch = world * settings.batch_size
    steps = len(data.train) // global_batch
    ranks.require_same("the newest checkpoint's step", saved.epoch * steps + saved.step if saved else 0)
    ranks.alike(check_bundle_dir, config.bundle_dir)
    # Not OMP_NUM_THREADS, which torchrun sets to 1, nor the machine's CPUs: those that Slurm or taskset left.
    torch.set_num_threads(max(1, available_cpus() // ranks.local_world))
    ranks.say(
        f"global batch {global_batch} = {world} rank{'s' if world > 1 else ''} x {settings.batch_size} chips; "
        f"{len(data.train)} chips of {settings.split}, {steps} steps an epoch; on {device.type}"
    )

    torch.manual_seed(settings.seed)
    model = ranks.alike(make_model, config, data.contract, load_weights=rank == 0 and saved is None)
    history: list[Row] = []
    if saved is not None:
        logged = columns(data.contract.class_names, validated=settings.val_split is not None)
        ranks.alike(require_history, saved, logged, config.train_dir)
        ranks.alike(restore, saved, config.train_dir, model)
        history = list(saved.history)
    if done >= settings.epochs:
        ranks.say(f"the training had already finished: {done} of {settings.epochs} epochs")
        ranks.alike(finish, config.bundle_dir, model, data.contract, history, ranks)
        return
    training_mode(model, settings)
    ranks.alike(rehearse, model, batch_size=settings.batch_size, chip_size=data.contract.chip_size)
    ranks.alike(make_places, config.train_dir)

    model.to(device)
    ddp: nn.Module = model
    if world > 1:
        ddp = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=settings.lr)
    losses, seconds = EpochLosses(ranks), 0.0  # of the steps of the epoch that is under way
    if saved is not None:
        ranks.alike(restore, saved, config.train_dir, optimizer)
        losses, seconds = EpochLosses(ranks, saved.loss_sums, saved.valid), saved.seconds
        within = f" and {saved.step} of {steps} steps" if saved.step else ""
        ranks.say(f"going on after epoch {done} of {settings.epochs}{within}, from {config.train_dir}")
        del saved  # it holds the weights once more

    def save(epoch: int, losses: EpochLosses, seconds: float) -> Place:
        """Save the training after `epoch` epochs and these steps; a collective."""
        summed = losses.over_ranks()
        ranks.alike(require_finite, float(summed.sum()), model, epoch, config)
        checkpoint = Checkpoint(
            epoch=epoch,
            step=losses.steps,
            loss_sums=summed.tolist(),
            valid=losses.valid,
            seconds=seconds,
            settings=fixed,
            history=history,
            model=model.state_dict(),  # BatchNorm's statistics too: DDP gives all ranks the first one's at every step
            optimizer=optimizer.state_dict(),
        )
        ranks.alike(lock.check)
        ranks.alike(write_checkpoint, config.train_dir, checkpoint, ranks)
        requests.has_saved()
        return checkpoint.place

    def stop(epoch: int, losses: EpochLosses, seconds: float) -> NoReturn:
        """Save, unless it is, and stop as it was asked for."""
        if newest != (epoch, losses.steps):
            save(epoch, losses, seconds)
        where = f"in epoch {epoch + 1} of {settings.epochs}, after {losses.steps} of {steps} steps"
        ranks.alike(answer_requests, requests, where)
        raise StoppedError

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
            started = time.perf_counter() - seconds
            training_mode(model, settings)
            planned = training_batches(
                data.train, seed=settings.seed, epoch=epoch, batch_size=settings.batch_size, rank=rank, world=world
            )
            batches = chips.read(planned[losses.steps :], epoch=epoch)
            with ProgressReport(
                f"epoch {epoch + 1} of {settings.epochs}", steps - losses.steps, enabled=rank == 0
            ) as progress:
                for step in range(epoch * steps + losses.steps, (epoch + 1) * steps):
                    batch, valid_pixels = next_batch(batches, ranks, requests)
                    assert batch is not None  # there are as many as steps
                    if requests.stop:
                        stop(epoch, losses, time.perf_counter() - started)
                    if requests.save:
                        newest = save(epoch, losses, time.perf_counter() - started)
                    torch.manual_seed(key_of(settings.seed, step, rank))  # for dropout, which differs between ranks
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
                    losses.add(loss_sum.detach(), valid_pixels)
                    progress.advance()
            summed = losses.over_ranks()
            train_loss = float(summed.sum()) / max(sum(losses.valid), 1)
            seconds = time.perf_counter() - started
            ranks.alike(require_finite, train_loss, model, epoch, config)

            val_loss, scored = None, Row()
            if settings.val_split is not None:
                for buffer in model.buffers():
                    ranks.from_first(buffer)  # BatchNorm's statistics: each rank's are its own after a step
                validated = validate(model, val_chips, data.val, data.contract.class_names, ranks, requests)
                if validated is None:
                    # What is validated by now is dropped: it says nothing about the model to be saved.
                    stop(epoch, losses, seconds)
                val_loss, scored = validated
                ranks.alike(require_finite, val_loss or 0.0, model, epoch, config, of="validation")
            history.append(
                {
                    "epoch": epoch + 1,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    "lr": learning_rate((epoch + 1) * steps - 1, settings.epochs * steps, settings),
                    "seconds": round(time.perf_counter() - started, 3),
                    "chips_per_second": round(steps * global_batch / seconds, 2),
                    **scored,
                }
            )
            # The log first: what it holds beyond the newest checkpoint is dropped when the training goes on from there.
            ranks.alike(write_log, log, history, summed / np.maximum(losses.valid, 1))
            losses, seconds = EpochLosses(ranks), 0.0
            newest = save(epoch + 1, losses, seconds)
            ranks.say(in_one_line(history[-1], settings.epochs, data.contract.class_names))
    ranks.alike(finish, config.bundle_dir, model, data.contract, history, ranks)
    ranks.alike(requests.forget)


@contextmanager
def only_training(config: RunConfig, ranks: Ranks) -> Iterator[StoreLock]:
    """Hold the lock of the training in run_dir, on the first rank.

    Raises:
        InputError: when another process trains there; the error names it.
    """
    lock = StoreLock(config.train_dir, "run_dir")
    made = ranks.alike(take_lock, lock, ranks)
    try:
        yield lock
    finally:
        lock.release()
        # Where it ends before it begins, nothing is left.
        for directory in made:
            with suppress(OSError):
                directory.rmdir()


def take_lock(lock: StoreLock, ranks: Ranks) -> list[Path]:
    """Take the lock, on the first rank; returns the directories that were made for it, innermost first."""
    if ranks.rank != 0:
        return []
    directory = lock.path.absolute().parent
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    make_directory(directory, "run_dir")
    lock.acquire()
    return missing


def key_of(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def read_config(argv: Sequence[str]) -> RunConfig:
    """Configuration from the command line."""
    return parse_run_config(argv, command="train_ddp", description="Train a segmentation model on chips.")[0]


def what_the_result_depends_on(config: RunConfig, data: TrainingData, ranks: Ranks) -> dict[str, Any]:
    """Settings that a training must go on with, by name; where it computes is not among them."""
    model = {name: value for name, value in asdict(config.model).items() if name != "bundle"}
    if config.model.architecture == "linear":
        model = {"architecture": "linear"}
    train = {name: value for name, value in asdict(config.train).items() if name not in ("device", "save_minutes")}
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


def find_checkpoint(config: RunConfig, fixed: dict[str, Any], ranks: Ranks) -> Checkpoint | None:
    """The checkpoint to go on from, if there is one.

    Raises:
        InputError: when it is of a training with other settings, or beyond the epochs that are asked for.
    """
    directory, epochs = config.train_dir, config.train.epochs
    saved = load_newest(directory, lambda line: print(line, file=sys.stderr) if ranks.rank == 0 else None)
    if saved is not None:
        require_same_settings(saved, fixed, directory)
        if saved.step and saved.epoch >= epochs:
            raise InputError(
                f"train.epochs: {epochs} is not possible: the training in {directory} is within epoch "
                f"{saved.epoch + 1}; use --train.epochs {saved.epoch + 1} or more, or another run_dir"
            )
    return saved


def answer_requests(requests: Requests, where: str) -> None:
    """Leave word that the training stopped as it was asked to."""
    with disk_errors("word of the interruption"):
        requests.answer(where)


def require_finite(loss: float, model: nn.Module, epoch: int, config: RunConfig, *, of: str = "training") -> None:
    """Raise `WorkError` when the training has diverged, before that is saved.

    The loss of a step is that of the weights before it: the last step of all shows in the weights alone.
    """
    fault = "" if math.isfinite(loss) else f"the {of} loss of epoch {epoch + 1} is {loss}"
    if not fault and (name := not_finite(model.state_dict())):
        fault = f"the weights {name} after a step of epoch {epoch + 1} are not finite"
    if fault:
        raise WorkError(
            f"{fault}: the training has diverged; begin another with a smaller --train.lr (this one has "
            f"{config.train.lr:g}) and another run_dir, or remove {config.train_dir}"
        )


def write_checkpoint(directory: Path, checkpoint: Checkpoint, ranks: Ranks) -> None:
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

    code = run_command(_main)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: now and then a library's thread aborts an interpreter that takes itself apart ("terminate called
    # without an active exception"), and a training that is finished, or saved, would be taken for one that failed.
    os._exit(code)
