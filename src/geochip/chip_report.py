"""What chipping says before, while and after it works, and the numbers behind it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely

from geochip.config import RunConfig
from geochip.plan import ChipPlan, SplitPlan
from geochip.progress import counted
from geochip.scenes import Catalogue, SetAside, notice_lines, settle_bad_scenes
from geochip.statistics import PERCENTILES, BandStatistics
from geochip.store import CHIP_DROPPED, CHIP_UNREAD, CHIP_WRITTEN, SplitResult

Record = Mapping[str, Any]

_NAMED = 5

_SMALL_ARRAYS = 12
"""Arrays beside image and label in a split's group."""
# Libraries, GDAL's cache, one scene: what a worker holds besides the shard that it makes.
_WORKER_BYTES = 600 * 2**20


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will take, as far as the plan tells."""

    raw_bytes: int
    """Of all chips, images and labels, before compression: the most that the store can take."""
    files: int
    """Files of the store, if no shard is missing."""
    worker_bytes: int
    """Memory of one worker: its libraries, and a shard with what it becomes when it is encoded."""
    tasks: int


def estimate(plan: ChipPlan, bands: int, dtype: str, size: int) -> Estimate:
    """What a run will take.

    Args:
        plan: the plan.
        bands: bands of a chip.
        dtype: NumPy name of their type.
        size: rows and columns of a chip.
    """
    chip = size**2 * (bands * np.dtype(dtype).itemsize + 1)
    # Of every array a zarr.json, and of a small one its only chunk; a zarr.json of the root and of each group.
    metadata = 1 + len(plan.splits) * (1 + 2 + 2 * _SMALL_ARRAYS)
    return Estimate(
        raw_bytes=plan.chips * chip,
        files=metadata + 2 * plan.shards,
        worker_bytes=_WORKER_BYTES + 2 * plan.shard * chip,
        tasks=-(-plan.shards // plan.shards_per_task),
    )


def megabytes(size: float) -> str:
    """A size in words."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def describe_plan(plan: ChipPlan, catalogue: Catalogue, config: RunConfig, expected: Estimate) -> None:
    """Print what is going to be done."""
    for text in catalogue.near:
        print(f"warning: {text}")
    for item in [*catalogue.unlabelled, *catalogue.buffered]:
        print(f"left out: {item}")
    for item in catalogue.bad:
        print(f"set aside: {item}")
    for line in notice_lines(catalogue.scenes):
        print(line)
    cramped = [one for split in plan.splits for one in split.scenes if one.usable and one.places < one.wanted]
    for one in cramped[:_NAMED]:
        print(f"scene {one.scene_id} ({one.split}): room for {one.places} of {one.wanted} different windows")
    if len(cramped) > _NAMED:
        print(f"... and {counted(len(cramped) - _NAMED, 'more scene')} with room for fewer windows than were asked for")
    if (division := describe_squares(catalogue)) is not None:
        print(division)
    size = config.chips.size
    counts = ", ".join(f"{split.chips} in {split.split}" for split in plan.splits)
    print(f"{counted(plan.images, 'scene')}, {counted(plan.chips, 'chip')} of {size} x {size} ({counts})")
    print(
        f"{counted(plan.shards, 'shard')} of {counted(plan.shard, 'chip')} in {counted(expected.tasks, 'task')}; at "
        f"most {megabytes(expected.raw_bytes)} on disk (imagery mostly shrinks to 0.6 of it) in "
        f"{counted(expected.files, 'file')}; "
        f"about {megabytes(expected.worker_bytes)} of memory for each worker"
    )


def describe_squares(catalogue: Catalogue) -> str | None:
    """How squares of ground divide the scenes, in words; None where each scene is whole."""
    squares = catalogue.squares
    if squares is None:
        return None
    parts = []
    for split, owned in squares.owners.items():
        regions = [
            (scene.height * scene.width if scene.region is None else shapely.area(scene.region), scene.pixel_size or 0)
            for scene in catalogue.scenes
            if scene.split == split
        ]
        area = sum(pixels * side**2 for pixels, side in regions) / 1e6
        parts.append(f"{len(owned)} in {split} ({area:.3g} km² to cut from)")
    apart = f"; {squares.home} keeps {squares.apart:.4g} m away from blocks of other splits" if squares.apart else ""
    return f"scenes are divided by blocks of {squares.side:g} m: {', '.join(parts)}{apart}"


class Rates:
    """Counts what comes back from the workers, for the line behind the progress bar."""

    def __init__(self, workers: Callable[[], int]) -> None:
        self._workers, self._count = workers, 0
        self._started = time.monotonic()
        self._asked = 0.0
        self._bytes = self._chips = 0
        self._scenes: set[str] = set()
        self._bad: set[str] = set()

    def note(self, record: Record) -> str:
        """Count one record; returns the rates since the start, in words."""
        now = time.monotonic()
        if now - self._asked > 5:
            self._count, self._asked = self._workers(), now
        self._chips += len(record["written"])
        self._bytes += record["bytes"]
        self._scenes.update(record["scenes"])
        self._bad.update(record["unread"])
        seconds = max(now - self._started, 1e-3)
        failures = f", {counted(len(self._bad), 'scene')} failed" if self._bad else ""
        return (
            f"{len(self._scenes) / seconds:.1f} scenes/s, {self._chips / seconds:.0f} chips/s, "
            f"{self._bytes / 2**20 / seconds:.1f} MB/s, {counted(self._count, 'worker')}{failures}"
        )


def result_of_split(split: SplitPlan, records: Iterable[Record], size: int, classes: int) -> SplitResult:
    """What became of the chips of a split.

    Args:
        split: the split.
        records: of its tasks, in the order of the plan.
        size: rows and columns of a chip.
        classes: number of classes.
    """
    crs = [(one.scene.crs if one.scene else None) or "" for one in split.scenes]
    result = replace(SplitResult.empty(split.chips, classes), crs=[crs[index] for index in split.scene_index()])
    at = 0
    for record in records:
        part = slice(at, at + len(record["status"]))
        windows = np.array(record["windows"], np.int64).reshape(-1, 3)
        result.row_off[part], result.col_off[part], result.window_size[part] = windows.T
        pixels = np.array(record["class_pixels"], np.int64).reshape(-1, classes)
        valid = pixels.sum(axis=1)
        result.valid_fraction[part] = valid / size**2
        result.class_fraction[part] = pixels / np.maximum(valid, 1)[:, None]
        result.status[part] = record["status"]
        at = part.stop
    grids = np.array(
        [tuple(one.scene.transform)[:6] if one.scene else (np.nan,) * 6 for one in split.scenes], np.float64
    ).reshape(-1, 6)
    a, b, c, d, e, f = grids[split.scene_index()].T
    scale = result.window_size / size
    corner = a * result.col_off + b * result.row_off + c, d * result.col_off + e * result.row_off + f
    result.transform[:] = np.stack([a * scale, b * scale, corner[0], d * scale, e * scale, corner[1]], axis=1)
    result.transform[result.status != CHIP_WRITTEN] = np.nan
    return result


def statistics_of_split(
    records: Iterable[Record], split: str, bands: int, classes: Sequence[str]
) -> dict[str, Any] | None:
    """Band and class statistics of the train split, added up in the order of the plan; None when it has no chips."""
    added = [BandStatistics() for _ in range(bands)]
    pixels = np.zeros(len(classes), np.int64)
    chips = 0
    for record in records:
        for band, of_record in zip(added, record["statistics"], strict=True):
            band.add(BandStatistics.from_json(of_record))
        pixels += np.array(record["class_pixels"], np.int64).sum(axis=0)
        chips += len(record["status"])
    if not chips:
        return None

    def each(value: Callable[[BandStatistics], float]) -> list[float | None]:
        return [value(band) if band.count else None for band in added]

    return {
        "split": split,
        "mean": each(BandStatistics.mean),
        "std": each(BandStatistics.std),
        "min": each(lambda band: band.minimum),
        "max": each(lambda band: band.maximum),
        "percentiles": {str(percent): each(lambda band, p=percent: band.percentile(p)) for percent in PERCENTILES},  # type: ignore[misc]
        "class_pixels": dict(zip(classes, pixels.tolist(), strict=True)),
        "valid_pixels": int(pixels.sum()),
    }


def describe_split(split: SplitPlan, result: SplitResult, classes: Sequence[str]) -> None:
    """Print what a split holds, and which of its chips are missing and why."""
    weights = result.valid_fraction.astype(np.float64)
    shares = (result.class_fraction * weights[:, None]).sum(axis=0) / max(float(weights.sum()), 1e-12)
    balance = ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(classes, shares, strict=True))
    gone = [
        f"{count} {why}"
        for status, why in (
            (CHIP_UNREAD, "not written: their scenes could not be read"),
            (CHIP_DROPPED, "dropped: no window fitted chips.min_valid and chips.target_classes"),
        )
        if (count := int((result.status == status).sum()))
    ]
    lacking = "".join(f"; {one}" for one in gone)
    print(f"{split.split}: {counted(split.chips, 'chip')} of {counted(len(split.scenes), 'scene')}; {balance}{lacking}")


def describe_bands(statistics: Mapping[str, Any] | None, band_names: Sequence[str]) -> None:
    """Print the range of each band."""
    if statistics is None:
        return
    for band, name in enumerate(band_names):
        low, high, mean = (statistics[key][band] for key in ("min", "max", "mean"))
        if mean is None:
            print(f"{name}: no valid pixel")
            continue
        second, last = (statistics["percentiles"][key][band] for key in ("2", "98"))
        print(f"{name}: {low:g} to {high:g}, mean {mean:.5g}, 2nd to 98th percentile {second:.5g} to {last:.5g}")


def describe_faults(
    config: RunConfig, catalogue: Catalogue, bad: Sequence[SetAside], *, mended: int, met: int, no_place: int
) -> None:
    """Print what else a person should know.

    Raises:
        WorkError: when more scenes are bad than `data.max_bad_scenes` allows.
    """
    if mended:
        print(f"{mended} invalid geometries were mended (shapely.make_valid) as they were read")
    if met:
        print(f"for {met} chips none of the chips.max_tries = {config.chips.max_tries} windows fitted")
    if no_place:
        print(
            f"{no_place} windows of scenes whose headers could not be read at first have no place: as many places as "
            "other scenes have were kept for them; to have them all, remove the store and run again"
        )
    for item in [*catalogue.unlabelled, *catalogue.buffered]:
        print(f"left out: {item}")
    settle_bad_scenes(
        bad,
        scenes=len(catalogue.scenes) + len(catalogue.bad),
        allowed=config.data.max_bad_scenes,
        what="used",
        rest="all other chips are there",
    )
