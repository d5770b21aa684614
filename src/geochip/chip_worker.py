"""What a Dask worker does to fill a shard: read scenes, draw labels, choose windows, cut, write once.

Shapes in names: c = chip, b = band, h = row, w = column.
"""

import math
import resource
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from geochip.cluster import make_way
from geochip.config import IGNORE, ChipsConfig
from geochip.errors import WorkError
from geochip.labels import Grid, LabelError, LabelRules, SceneLabel
from geochip.plan import ChipTask, Cut, PlannedScene, windows_in
from geochip.sampling import scene_generator
from geochip.scenes import Scene, SceneError, SceneReader
from geochip.statistics import BandCounter
from geochip.store import CHIP_DROPPED, CHIP_UNREAD, CHIP_WRITTEN, ChipStore, shard_files, sync_shard, write_shard
from geochip.windows import Window

Record = dict[str, Any]

_COUNTED_ONE_BY_ONE = 12
_spare: list[npt.NDArray[np.uint8]] = []
_spare_lock = threading.Lock()

NO_WINDOW = (0, 0, 0)
"""What a chip without pixels has for row_off, col_off and the size of its window."""


@dataclass(frozen=True, kw_only=True)
class ChipJob:
    """What all tasks of a run share."""

    store: str
    """Path of the store."""
    chips: ChipsConfig
    rules: LabelRules
    labels: tuple[tuple[str, str], ...]
    """(label, what to read instead): copies with a spatial index, of labels that are too large to be read whole."""
    bands: int
    dtype: str
    nodata: float | None
    """The store's nodata value, for pixels that are invalid in a scene with another one."""
    statistics_of: str
    """Split whose band values are counted, for the normalisation."""


def fill_shards(job: ChipJob, tasks: Sequence[ChipTask]) -> list[Record]:
    """Fill some shards, one after the other, and wait until they are on the disk.

    While this waits, the worker goes on with the next task.

    Returns:
        A record for the journal of each shard under its "key", by position where it is a list:

        - "windows": [row_off, col_off, size] of each chip in its scene, `NO_WINDOW` for one without pixels;
        - "status" and "written", "class_pixels" (pixels of each class);
        - "statistics" of each band, as JSON; empty for a split that the normalisation does not look at;
        - "bad": scenes that could not be read; "scenes": all scenes, "unread": those of them without pixels, by name;
        - "unvalued": features without a value of the class property; "label_pixels" read of raster labels, and those
          "hidden" among them: of a class whose value the file declares as nodata;
        - "missed": scenes that no feature of their label meets, by name;
        - "mended": invalid geometries; "met": chips for which `chips.max_tries` windows did not suffice;
        - "bytes" on disk and "seconds", where they went in "spent", and the most memory that the process ever had.
    """
    filled = [fill_shard(job, task) for task in tasks]
    make_way()
    for task, (record, number) in zip(tasks, filled, strict=True):
        started = time.perf_counter()
        record["bytes"] = sync_shard(Path(job.store), task.split, number)
        record["spent"]["sync"] = round(time.perf_counter() - started, 4)
    return [record for record, _ in filled]


def fill_shard(job: ChipJob, task: ChipTask) -> tuple[Record, int]:
    """Fill one shard.

    Returns:
        The record of `fill_shards`, as far as it is known before the shard is on the disk, and the shard's number.
    """
    shard = _Shard(job, task)
    started = time.perf_counter()
    bad: list[Record] = []
    at = 0
    for cut in task.cuts:
        stop = at + cut.stop - cut.first
        try:
            if cut.scene.usable:
                shard.cut_scene(cut, at)
        except (SceneError, LabelError) as error:
            shard.give_up(at, stop)
            scene = cut.scene.scene
            assert scene is not None
            bad.append(
                {"scene_id": scene.scene_id, "split": scene.split, "path": scene.image, "reason": _reason(error, scene)}
            )
        except Exception as error:
            error.add_note(f"while cutting scene {cut.scene.name} ({cut.scene.scene})")
            raise
        at = stop
    shard.blank_the_rest()
    counted = time.perf_counter()
    number = write_shard(Path(job.store), task.split, task.start, shard.image_cbhw, shard.label_chw)
    ended = time.perf_counter()
    shard.release()
    failed = {f"{one['split']}/{one['scene_id']}" for one in bad}
    record = {
        "key": task.key,
        **shard.record(),
        "bad": bad,
        "scenes": [cut.scene.name for cut in task.cuts],
        "unread": [cut.scene.name for cut in task.cuts if cut.scene.name in failed or not cut.scene.usable],
        "seconds": round(ended - started, 3),
        # Kilobytes, on Linux.
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "spent": {**{name: round(value, 4) for name, value in shard.spent.items()}, "write": round(ended - counted, 4)},
    }
    return record, number


def changed_scenes(job: ChipJob, tasks: Sequence[ChipTask], names: Collection[str]) -> list[tuple[str, str | None]]:
    """Cut scenes again, and compare the chips with those in the store, which stays as it is.

    Args:
        job: as when the store was made.
        tasks: of shards that are in the store.
        names: the scenes.

    Returns:
        Those of `names` whose chips are others now, each with None, and those that cannot be read, with the reason.

    Raises:
        WorkError: when a chip of the store is damaged.
    """
    job = replace(job, statistics_of="")
    store, different = ChipStore(job.store), list[tuple[str, str | None]]()
    for task in tasks:
        at = task.start
        for cut in task.cuts:
            part = ChipTask(split=task.split, start=at, cuts=(cut,))
            at += part.chips
            if cut.scene.name not in names:
                continue
            try:
                if not _as_stored(store, job, part):
                    different.append((cut.scene.name, None))
            except (SceneError, LabelError) as error:
                assert cut.scene.scene is not None
                different.append((cut.scene.name, _reason(error, cut.scene.scene)))
    with _spare_lock:
        # Of many sizes, and for no shard that follows.
        _spare.clear()
    return different


def _as_stored(store: ChipStore, job: ChipJob, part: ChipTask) -> bool:
    """Whether the store holds what a part of one scene gives now."""
    shard = _Shard(job, part)
    try:
        shard.cut_scene(part.cuts[0], 0)
        shard.blank_the_rest()
        for place in range(part.chips):
            # One by one: a shard twice in memory would be more than cutting it took.
            (image,), (label,) = _read_chip(store, part.split, part.start + place, part.cuts[0].scene.name)
            # By their bits: NaN is like NaN.
            if not (
                np.array_equal(image.view(np.uint8), shard.image_cbhw[place].view(np.uint8))
                and np.array_equal(label, shard.label_chw[place])
            ):
                return False
        return True
    finally:
        shard.release()


def _read_chip(store: ChipStore, split: str, position: int, name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        return store.read(split, np.array([position]))
    except ValueError as error:
        image, label = shard_files(store.path, split, position // len(store.shards(split)[0]))
        raise WorkError(
            f"{store.path}: a chip of scene {name} is damaged ({error}); remove {image} and {label} and run the same "
            "command again, which makes them anew"
        ) from None


def _reason(error: Exception, scene: Scene) -> str:
    """What an error says, without the scene's id, which stands before it anyway."""
    return str(error).removeprefix(f"scene {scene.scene_id}: ")


class _Shard:
    """The chips of one shard while they are being made."""

    def __init__(self, job: ChipJob, task: ChipTask) -> None:
        self.job, self.with_statistics = job, task.split == job.statistics_of
        count, size = task.chips, job.chips.size
        self.classes = len(job.rules.classes)
        self.fill = 0 if job.nodata is None else job.nodata
        self._memory: list[npt.NDArray[np.uint8]] = []
        self.image_cbhw = self._reused((count, job.bands, size, size), job.dtype)
        self.label_chw = self._reused((count, size, size), "uint8")
        self.windows = np.zeros((count, 3), np.int64)
        self.status = np.full(count, CHIP_UNREAD, np.uint8)
        self.class_pixels = np.zeros((count, self.classes), np.int64)
        self.statistics = [BandCounter() for _ in range(job.bands)]
        self.mended = self.met = self.unvalued = self.label_pixels = self.hidden = 0
        self.missed: list[str] = []
        self.spent = {"read": 0.0, "rasterize": 0.0, "statistics": 0.0}
        self._instead = dict(job.labels)
        self._resampled = job.chips.size if job.chips.size_range else None

    def _reused(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """An array in memory that an earlier shard had: fresh memory has to be cleared page by page."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with _spare_lock:
            fitting = min((one.size for one in _spare if one.size >= size), default=None)
            at = next((index for index, one in enumerate(_spare) if one.size == fitting), None)
            memory = np.empty(size, np.uint8) if at is None else _spare.pop(at)
        self._memory.append(memory)
        return memory[:size].view(dtype).reshape(shape)

    def release(self) -> None:
        """Let the next shard have the memory of this one's pixels."""
        del self.image_cbhw, self.label_chw
        with _spare_lock:
            _spare.extend(self._memory)

    def give_up(self, start: int, stop: int) -> None:
        """Take back what was made of a scene that turned out to be unreadable."""
        self.windows[start:stop] = NO_WINDOW
        self.status[start:stop] = CHIP_UNREAD

    def blank_the_rest(self) -> None:
        """Give chips without pixels nodata, and 255 in the label."""
        self.image_cbhw[self.status != CHIP_WRITTEN] = self.fill
        self.label_chw[self.status != CHIP_WRITTEN] = IGNORE

    def cut_scene(self, cut: Cut, at: int) -> None:
        """Cut a scene's chips, the first of them to position `at` of the shard.

        The image holds the scene's own pixels, bit for bit unless it is resampled; only where it is not valid does it
        hold the store's nodata value instead of another one of the scene's. The label is 255 wherever the image is not
        valid. What is wrong with the scene shows before any chip of it has been counted in the statistics.
        """
        scene, chips = cut.scene.scene, self.job.chips
        assert scene is not None
        assert scene.label is not None
        places = windows_in(chips, scene, cut.scene.aoi)[cut.first : cut.stop]
        windows = [window for candidates in places for window in candidates]
        if not windows:
            self.status[at : at + cut.stop - cut.first] = CHIP_DROPPED
            return
        with ExitStack() as stack:
            clock = time.perf_counter()
            reader = stack.enter_context(SceneReader(scene))
            pixels = scene_pixels(reader, [candidates[0] for candidates in places], self._resampled)
            clock = self._spend("read", clock)
            label = stack.enter_context(
                SceneLabel(
                    self._instead.get(scene.label, scene.label),
                    Grid(height=scene.height, width=scene.width, transform=scene.transform, crs=scene.crs),
                    self.job.rules,
                    aoi=cut.scene.aoi,
                    near=windows,
                )
            )
            self._spend("rasterize", clock)
            chosen = list(self._choose(cut, pixels, label, places, at))
            self.mended += label.mended
            self.unvalued += label.unvalued
            self.label_pixels += label.read_pixels
            self.hidden += label.hidden_pixels
            self.missed += [cut.scene.name] if label.missed else []
        part = self.status[at : at + cut.stop - cut.first]
        part[part == CHIP_UNREAD] = CHIP_DROPPED
        self._count(chosen)

    def _spend(self, what: str, since: float) -> float:
        now = time.perf_counter()
        self.spent[what] += now - since
        return now

    def _choose(
        self,
        cut: Cut,
        pixels: "_Pixels",
        label: SceneLabel,
        places: Sequence[Sequence[Window]],
        at: int,
    ) -> Iterator[int]:
        """Fill the places of a scene; yields the positions that are filled."""
        chips = self.job.chips
        for number, candidates in enumerate(places):
            position = at + number
            negative = self._may_be_negative(cut.scene, cut.first + number)
            for window in candidates:
                image, chip_label = self.image_cbhw[position], self.label_chw[position]
                clock = time.perf_counter()
                chip_label[...] = label.read(window, self._resampled)
                clock = self._spend("rasterize", clock)
                # Without any target in sight the image, which takes the time, need not be read.
                if not negative and not self._targets(chip_label):
                    continue
                valid = pixels.read_into(window, image)
                if not valid.all():
                    chip_label[~valid] = IGNORE
                    if self.job.nodata is not None:
                        image[:, ~valid] = self.job.nodata
                self._spend("read", clock)
                if not chips.depend_on_content or self._fits(chip_label, negative):
                    self.windows[position] = window.row_off, window.col_off, window.height
                    self.status[position] = CHIP_WRITTEN
                    yield position
                    break
            else:
                self.met += chips.method == "random"

    def _may_be_negative(self, planned: PlannedScene, place: int) -> bool:
        """Whether the chip of a place may be without targets, drawn once for each place."""
        chips = self.job.chips
        if not chips.target_classes:
            return True
        assert planned.scene is not None
        return scene_generator(chips.seed, f"{planned.scene.draws_as}/negatives/{place}").random() < chips.negative_rate

    def _targets(self, label_hw: npt.NDArray[np.uint8]) -> int:
        """Number of pixels of the wanted classes."""
        ids = [self.job.rules.classes.index(name) for name in self.job.chips.target_classes]
        return int(np.isin(label_hw, ids).sum())

    def _fits(self, label_hw: npt.NDArray[np.uint8], negative: bool) -> bool:
        """Whether a chip has enough valid pixels, and enough of the wanted classes among them or is kept without."""
        chips = self.job.chips
        valid = np.count_nonzero(label_hw != IGNORE)
        if valid < chips.min_valid * label_hw.size:
            return False
        if negative:
            return True
        wanted = self._targets(label_hw)
        return wanted >= max(1, chips.min_target_fraction * valid)

    def _count(self, positions: Sequence[int]) -> None:
        """Count the pixels of some chips that are filled."""
        clock = time.perf_counter()
        for position in positions:
            label_hw = self.label_chw[position]
            self.class_pixels[position] = class_counts(label_hw, self.classes)
            if not self.with_statistics:
                continue
            valid = None if self.class_pixels[position].sum() == label_hw.size else label_hw != IGNORE
            for band_hw, statistics in zip(self.image_cbhw[position], self.statistics, strict=True):
                statistics.add(band_hw, valid)
        self._spend("statistics", clock)

    def record(self) -> Record:
        """What is known of the chips; see `fill_shard`."""
        return {
            "windows": self.windows.tolist(),
            "status": self.status.tolist(),
            "written": (self.status == CHIP_WRITTEN).tolist(),
            "class_pixels": self.class_pixels.tolist(),
            "statistics": [one.statistics().to_json() for one in self.statistics] if self.with_statistics else [],
            "missed": self.missed,
            "mended": self.mended,
            "unvalued": self.unvalued,
            "label_pixels": self.label_pixels,
            "hidden": self.hidden,
            "met": self.met,
        }


def class_counts(label_hw: npt.NDArray[np.uint8], classes: int) -> list[int]:
    """Pixels of each class; of few classes one by one, which is ten times as fast as counting all values at once."""
    if classes > _COUNTED_ONE_BY_ONE:
        return [int(count) for count in np.bincount(label_hw.ravel(), minlength=classes)[:classes]]
    return [int(np.count_nonzero(label_hw == number)) for number in range(classes)]


class _Pixels(Protocol):
    """Where the pixels of a scene come from."""

    def read_into(self, window: Window, image_bhw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Read a window; returns (height, width) True where valid."""


class _Whole:
    """Has read the scene whole, and cuts from that."""

    def __init__(self, reader: SceneReader, windows: Sequence[Window]) -> None:
        scene = reader.scene
        height = max(scene.height, *(window.row_stop for window in windows))
        width = max(scene.width, *(window.col_stop for window in windows))
        self._image, self._valid = reader.read(Window(row_off=0, col_off=0, height=height, width=width))

    def read_into(self, window: Window, image_bhw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        image_bhw[...] = self._image[:, *window.slices]
        return self._valid[window.slices]


def scene_pixels(reader: SceneReader, windows: Sequence[Window], resampled: int | None) -> _Pixels:
    """Read the windows, or the whole scene at once where that is less.

    Args:
        reader: of the scene.
        windows: that will most likely be read.
        resampled: height and width of the chips when they differ from those of the windows.
    """
    if resampled is None and reader.reads_whole(windows):
        return _Whole(reader, windows)
    return reader
