"""Chips to tensors, for one rank of many: which chips, in which order, turned how, and read ahead of their use.

Shapes in names: b = batch, c = band, h = row, w = column.

Everything random is keyed, not drawn in turn: the order of an epoch by (seed, epoch), a chip's turn by (seed, epoch,
position). So both are the same for any number of ranks, and a training that goes on after a stop needs no state of
them. Reading is done by one thread of the rank's own process, into a few buffers that are used again and again: worker
processes would spend more on handing chips over than tensorstore, which decodes in threads of its own, spends on them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import geochip
from geochip.config import IGNORE, RunConfig, check_batch
from geochip.errors import InputError, WorkError
from geochip.model import Contract
from geochip.progress import counted
from geochip.store import ChipStore

Positions = npt.NDArray[np.int64]

AHEAD = 2
"""Batches that are read ahead of the one in use."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What there is to train on."""

    store: ChipStore
    train: Positions
    """Positions of the chips to train on."""
    val: Positions
    """Likewise, to validate on; empty without a validation split."""
    contract: Contract
    """Of the model to be; its metrics are not known yet."""


def find_data(config: RunConfig, *, world: int) -> TrainingData:
    """Open the chip store and see that it can be trained on.

    Args:
        config: names store, splits, batch size and network.
        world: number of ranks.

    Raises:
        InputError: when it cannot.
    """
    settings, store = config.train, ChipStore(config.chip_store)
    attributes, remedy = store.attrs, "run python -m geochip.chipping"
    if not attributes["complete"]:
        raise InputError(f"chip store {store.path} is not complete: {remedy} again, which goes on where it stopped")
    train = store.written(settings.split)
    global_batch = world * settings.batch_size
    if len(train) < global_batch:
        raise InputError(
            f"split {settings.split!r} of {store.path} has {len(train)} chips, fewer than one global batch of "
            f"{global_batch} ({world} ranks x train.batch_size {settings.batch_size}); use a smaller "
            "--train.batch_size, fewer ranks, or more scenes or chips.per_scene"
        )
    check_batch("train.batch_size", settings.batch_size, attributes["chip_size"])
    val = store.written(settings.val_split) if settings.val_split in store.splits else np.empty(0, np.int64)
    if settings.val_split is not None and not len(val):
        raise InputError(
            f"train.val_split: {store.path} has no chips of split {settings.val_split!r}; put scenes into it, remove "
            f"the store and {remedy} again, or use --train.val_split null"
        )
    for split in (settings.split, *([settings.val_split] if settings.val_split else [])):
        if missing := store.missing_shards(split):
            raise InputError(
                f"chip store {store.path} lacks {counted(missing, 'shard')} of split {split!r}, and what they held "
                f"would read as nothing but nodata; copy it again, or remove it and {remedy} again"
            )
    statistics = attributes["statistics"]
    if not statistics or None in statistics["mean"] or not store.table(settings.split)["valid_fraction"].any():
        raise InputError(
            f"split {settings.split!r} of {store.path} has no valid pixel: all is nodata; check data.image and the "
            f"scenes' nodata values, then remove the store and {remedy} again"
        )
    if statistics["split"] != settings.split:
        raise InputError(
            f"train.split: {store.path} has the statistics of split {statistics['split']!r}, not {settings.split!r}; "
            f"remove the store and {remedy} with --train.split {settings.split}"
        )
    sizes = attributes["pixel_size_range"]
    contract = Contract(
        architecture=config.model.architecture,
        encoder=config.model.encoder,
        class_names=tuple(attributes["class_names"]),
        band_names=tuple(attributes["band_names"]),
        bands=tuple(attributes["bands"]),
        dtype=attributes["dtype"],
        nodata=attributes["nodata"],
        mean=tuple(statistics["mean"]),
        std=tuple(statistics["std"]),
        chip_size=attributes["chip_size"],
        pixel_size_range=(sizes[0], sizes[1]) if sizes else None,
        chip_store_fingerprint=attributes["fingerprint"],
        split_overlap=overlap if (overlap := attributes.get("overlap")) and overlap["pairs"] else None,
        geochip_version=geochip.__version__,
    )
    return TrainingData(store=store, train=train, val=val, contract=contract)


def training_batches(
    positions: Positions, *, seed: int, epoch: int, batch_size: int, rank: int, world: int
) -> list[Positions]:
    """The batches of one rank in one epoch.

    Every epoch has an order of its own, a permutation of all chips. Step s takes the next world x batch_size of them,
    the global batch, and each rank its part; chips that do not fill a last global batch are left out of this epoch.

    Args:
        positions: (n,) positions to train on.
        seed: of the training.
        epoch: counted from 0.
        batch_size: chips a rank and step.
        rank: 0 to world - 1.
        world: number of ranks.

    Returns:
        n // (world x batch_size) arrays (batch_size,).
    """
    order = positions[np.random.default_rng((seed, epoch)).permutation(len(positions))]
    steps = len(order) // (world * batch_size)
    return list(order[: steps * world * batch_size].reshape(steps, world, batch_size)[:, rank])


def validation_batches(positions: Positions, *, batch_size: int, rank: int, world: int) -> list[Positions]:
    """The batches that one rank validates: of all batches of `batch_size` chips in the given order, every world-th.

    No chip is left out or repeated, and which chips share a batch does not depend on the number of ranks.
    """
    return [
        positions[start : start + batch_size] for start in range(rank * batch_size, len(positions), world * batch_size)
    ]


def turned(pixels: npt.NDArray[Any], way: int) -> npt.NDArray[Any]:
    """A view of square pixels in one of the eight ways that a square can lie.

    Args:
        pixels: (..., h, w) with h = w.
        way: 0 (as it is) to 7: quarter turns, and from 4 on mirrored from left to right after them.
    """
    view = np.rot90(pixels, way % 4, axes=(-2, -1))
    return view[..., ::-1] if way >= 4 else view


class Batch(NamedTuple):
    """Chips on their device, until the next batch is asked for."""

    image_bchw: Tensor
    """In the store's dtype and units, uint16 included."""
    label_bhw: Tensor
    """uint8 class ids, 255 = ignore."""
    valid: int
    """Pixels whose label is not 255."""


class _Buffer:
    """Memory of one batch; page-locked when its chips go to a GPU, so that they can go while others are read."""

    def __init__(self, shape_bchw: tuple[int, int, int, int], dtype: str, *, for_gpu: bool) -> None:
        batch, _, height, width = shape_bchw
        self.image = torch.from_numpy(np.empty(shape_bchw, dtype))
        self.label = torch.from_numpy(np.empty((batch, height, width), np.uint8))
        self.copied: torch.cuda.Event | None = None
        if for_gpu:
            self.image, self.label = self.image.pin_memory(), self.label.pin_memory()
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]


class BatchReader:
    """Reads batches of one split ahead of their use. A context manager: leaving it ends its thread."""

    def __init__(
        self, store: ChipStore, split: str, *, batch_size: int, device: torch.device, augment_seed: int | None = None
    ) -> None:
        """Make the buffers.

        Args:
            store: to read from.
            split: of the store.
            batch_size: the most chips of a batch.
            device: where the tensors shall be.
            augment_seed: turn each chip one of eight ways, chosen by this seed, the epoch and its position; None:
                leave them as they are.
        """
        self.batch_size = batch_size
        """The most chips of a batch."""
        self._store, self._split, self._device, self._augment_seed = store, split, device, augment_seed
        size, bands, dtype = store.attrs["chip_size"], len(store.attrs["bands"]), store.attrs["dtype"]
        for_gpu = device.type == "cuda"
        self._buffers = [_Buffer((batch_size, bands, size, size), dtype, for_gpu=for_gpu) for _ in range(AHEAD + 1)]
        self._scratch_image = np.empty((bands, size, size), dtype)
        self._scratch_label = np.empty((size, size), np.uint8)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chips")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def read(self, batches: Sequence[Positions], *, epoch: int = 0) -> Iterator[Batch]:
        """Read batches in order.

        Args:
            batches: positions of each, at most `batch_size`.
            epoch: for the augmentation.

        Yields:
            Each batch; its memory is used again as soon as the next one is asked for.

        Raises:
            WorkError: when chips cannot be read, naming them.
        """
        todo = enumerate(batches)
        reading: deque[Future[tuple[_Buffer, int, int]]] = deque()

        def begin(count: int) -> None:
            for number, positions in islice(todo, count):
                # The buffer is that of the batch before the current one, which nobody uses any more.
                buffer = self._buffers[number % len(self._buffers)]
                reading.append(self._thread.submit(self._fill, buffer, positions, epoch))

        begin(AHEAD)
        while reading:
            buffer, chips, valid = reading.popleft().result()
            begin(1)
            yield self._on_device(buffer, chips, valid)

    def _fill(self, buffer: _Buffer, positions: Positions, epoch: int) -> tuple[_Buffer, int, int]:
        """Read one batch into a buffer, in the reading thread: the buffer, its chips and its valid pixels."""
        if buffer.copied is not None:
            buffer.copied.synchronize()  # its last content may still be on its way to the GPU
        chips = len(positions)
        image, label = buffer.image.numpy()[:chips], buffer.label.numpy()[:chips]
        try:
            self._store.read(self._split, positions, image, label)
        except Exception as error:  # tensorstore and the file system raise many kinds
            raise WorkError(
                f"chips {', '.join(map(str, positions))} of split {self._split!r} in {self._store.path} cannot be "
                f"read: {' '.join(str(error).split())}; the store is damaged: copy it again, or remove it and make it "
                "anew with python -m geochip.chipping"
            ) from error
        if self._augment_seed is not None:
            for index, position in enumerate(positions):
                way = int(np.random.default_rng((self._augment_seed, epoch, int(position))).integers(8))
                # A view cannot be copied onto its own memory: it goes through a scratch chip.
                np.copyto(self._scratch_image, turned(image[index], way))
                np.copyto(self._scratch_label, turned(label[index], way))
                image[index], label[index] = self._scratch_image, self._scratch_label
        return buffer, chips, int(np.count_nonzero(label != IGNORE))

    def _on_device(self, buffer: _Buffer, chips: int, valid: int) -> Batch:
        image, label = buffer.image[:chips], buffer.label[:chips]
        if buffer.copied is not None:
            image, label = (part.to(self._device, non_blocking=True) for part in (image, label))
            buffer.copied.record()
        return Batch(image, label, valid)
