"""A small training: its chips, its command, what it leaves, and how to do something to it at a certain point."""

import csv
import os
import signal
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from affine import Affine

from geochip import interruption
from helpers import UTM, box, data_flags, run, write_scene

SIZE, PER_SCENE = 32, 13
GLOBAL_BATCH = 6
STEPS = 2 * PER_SCENE // GLOBAL_BATCH
SCORES = (
    "avg_precision",
    "avg_recall",
    "avg_f1",
    "building_precision",
    "building_recall",
    "building_f1",
    "building_iou",
)

# With BatchNorm and Dropout: both must go on as they were.
NETWORK = {"architecture": "deeplabv3plus", "encoder": "tu-mobilenetv3_small_050", "epochs": 6}


def make_chips(root):
    """A chip store made from GeoTIFFs: 26 chips to train on and 13, a prime number, to validate on.

    Buildings are brighter than the ground, the upper rows of each scene are nodata.
    """
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "val")):
        image = rng.integers(200, 400, (3, 96, 96)).astype(np.uint16)
        transform = UTM @ Affine.translation(1000 * number, 0)
        geometries = []
        for _ in range(5):
            (row, col), (height, width) = rng.integers(0, 76, 2), rng.integers(8, 20, 2)
            image[:, row : row + height, col : col + width] += np.array([60, 150, 40000], np.uint16)[:, None, None]
            geometries.append(box(transform, int(row), int(col), int(height), int(width)))
        image[:, : 40 - 10 * number] = 0
        write_scene(root, split, number, image, geometries=geometries, transform=transform, nodata=0)
    store = root / "chips.zarr"
    done = run(
        "geochip.chipping", *data_flags(root, "train", "val"), f"--chips.store={store}", f"--chips.size={SIZE}",
        f"--chips.per_scene={PER_SCENE}", "--infer.split=val", "--cluster.workers=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return store


def flags(chips, run_dir, *more, architecture="linear", encoder="resnet18", batch_size=GLOBAL_BATCH, epochs=2):
    return [
        "--data.splits=[train,val]", "--infer.split=val", f"--chips.store={chips}", f"--run_dir={run_dir}",
        f"--model.architecture={architecture}", f"--model.encoder={encoder}", "--model.encoder_weights=null",
        f"--train.epochs={epochs}", f"--train.batch_size={batch_size}", "--train.lr=0.01", *more,
    ]  # fmt: skip


def torchrun(ranks, *arguments):
    return run(
        "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "geochip.train_ddp", *arguments
    )


def table(run_dir):
    with (Path(run_dir) / "train" / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(run_dir):
    return safetensors.torch.load_file(Path(run_dir) / "model" / "model.safetensors")


def scalars(run_dir, tag):
    """[(step, value)] as TensorBoard shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        board = EventAccumulator(str(Path(run_dir) / "train" / "tensorboard"), purge_orphaned_data=True)
        board.Reload()
        return [(event.step, event.value) for event in board.Scalars(tag)]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def cpus(count):
    """Leave this thread, and the processes that it starts, so many CPUs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def at_call(count, function, act):
    """`function`, but its `count`-th call (from 1) begins with `act`."""
    calls = 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return function(*args, **kwargs)

    return counted


def asking(how, train_dir):
    """What asks this rank's training to stop: the name of a signal, or "stop" for the file; or "torchrun", which gets
    SIGTERM and passes it on: it is waited for."""

    def act():
        if how == "stop":
            (Path(train_dir) / "stop").touch()
        elif how != "torchrun":
            os.kill(os.getpid(), signal.Signals[how])
        else:
            os.kill(os.getppid(), signal.SIGTERM)
            deadline = time.monotonic() + 60
            while signal.SIGTERM not in interruption._noted and time.monotonic() < deadline:
                time.sleep(0.001)

    return act
