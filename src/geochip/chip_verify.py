"""Does a chip store hold what its journal says? Every shard is read again, on the workers, and counted anew.

No reader of Zarr misses a shard that is gone: what it held reads as nodata. A damaged chip is told by its checksum; one
that is whole but another one than the run made, by what it counts to.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geochip.config import IGNORE
from geochip.errors import DamagedError
from geochip.statistics import PERCENTILES, BandCounter, BandStatistics
from geochip.store import CHIP_WRITTEN, ChipStore, shard_files

Record = Mapping[str, Any]

_CUT_AGAIN = "run python -m geochip.chipping again"
_ANEW = f"{_CUT_AGAIN}, which writes it anew"
_SHOWN = 3
# Pixels that a chip may be off.
_MISPLACED = 1e-3
# Floating-point sums may be added up in another order.
_CLOSE = 1e-9


def faults_of_splits(store: ChipStore) -> dict[str, str]:
    """Splits whose metadata or small arrays are lost or damaged, and what is wrong: they cannot be verified further."""
    faults = {}
    for split in store.splits:
        try:
            store.check(split)
        except DamagedError as error:
            faults[split] = str(error)
    return faults


def shards_to_verify(store: ChipStore, but: Collection[str] = ()) -> list[tuple[str, str, int, int]]:
    """Every shard as (key in the journal, split, first position, the one after its last), in the order of the plan.

    Args:
        store: the store.
        but: splits to leave out.
    """
    return [
        (f"{split}/{positions.start}", split, positions.start, positions.stop)
        for split in store.splits
        if split not in but
        for positions in store.shards(split)
    ]


def verify_shard(path: str, split: str, start: int, stop: int, classes: int) -> dict[str, Any]:
    """Read one shard and count what it holds; runs on a Dask worker.

    Args:
        path: the store.
        split: its split.
        start: position of the first chip.
        stop: position after the last one.
        classes: number of classes.

    Returns:
        What `faults_of_shard` compares with the journal, by position where it is a list: "scene_id"; "class_pixels",
        None for a chip that cannot be read; "strange", pixels of the label that are no class and not 255; "statistics"
        of each band, as JSON, empty for a split that the normalisation does not look at. "files" are the shard's two,
        "missing" those that are not there, "damaged" texts by position.
    """
    store = ChipStore(path)
    statistics = store.attrs.get("statistics")
    counting = statistics is None or statistics["split"] == split
    number = start // len(store.shards(split)[0])
    files = [str(file) for file in shard_files(Path(path), split, number)]
    found: dict[str, Any] = {
        "split": split,
        "start": start,
        "scene_id": _scene_ids(path, split, _stamp(path, split))[start:stop],
        "files": files,
        "missing": [file for file in files if not Path(file).is_file()],
        "damaged": {},
        "class_pixels": [],
        "strange": [],
        "statistics": [],
    }
    if found["missing"]:
        return found
    bands = [BandCounter() for _ in store.attrs["band_names"]]
    for position, chip in _read_chips(store, split, start, stop):
        if isinstance(chip, str):
            # As text: the keys of JSON and of MessagePack documents.
            found["damaged"][str(position)] = chip
            found["class_pixels"].append(None)
            found["strange"].append(0)
            continue
        image, label = chip
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)
        found["class_pixels"].append(counts[:classes].tolist())
        found["strange"].append(int(counts[classes:IGNORE].sum()))
        if counting:
            valid = label != IGNORE if counts[IGNORE] else None
            for band, values in zip(bands, image, strict=True):
                band.add(values, valid)
    if counting and not found["damaged"]:
        found["statistics"] = [band.statistics().to_json() for band in bands]
    return found


def _read_chips(store: ChipStore, split: str, start: int, stop: int) -> list[tuple[int, Any]]:
    """(position, (image_bhw, label_hw)) of some chips; in place of the pixels a text for one that cannot be read."""
    positions = np.arange(start, stop)
    try:
        images, labels = store.read(split, positions)
        return list(zip(range(start, stop), zip(images, labels, strict=True), strict=True))
    except ValueError:
        chips: list[tuple[int, Any]] = []
    for position in positions:
        try:
            image, label = store.read(split, np.array([position]))
            chips.append((int(position), (image[0], label[0])))
        except ValueError as error:
            chips.append((int(position), str(error)))
    return chips


def _stamp(path: str, split: str) -> int:
    return (Path(path) / split / "scene_id" / "zarr.json").stat().st_mtime_ns


@lru_cache(maxsize=4)
def _scene_ids(path: str, split: str, _stamp: int) -> list[str]:
    """Scene ids of a split, read once by each worker and not once by each task."""
    ids: list[str] = ChipStore(path).arrays(split, "scene_id")["scene_id"].tolist()
    return ids


def faults_of_shard(journal: Record | None, found: Record) -> list[str]:
    """What is wrong with a shard, in words.

    Args:
        journal: the shard's record in the journal; None when there is none, which `faults_of_store` tells.
        found: of `verify_shard`.
    """
    split, start = found["split"], found["start"]
    chips = _Chips(split, found["scene_id"], start)
    remedy = f"delete {' and '.join(found['files'])} and {_CUT_AGAIN}"
    if found["missing"]:
        return [f"{chips.all()}: {' and '.join(found['missing'])} not there; {_CUT_AGAIN}"]
    faults = []
    if damaged := found["damaged"]:
        bad = sorted(int(position) for position in damaged)
        faults.append(f"{chips.named(bad)} cannot be read ({damaged[str(bad[0])]}); {remedy}")
    if strange := [start + at for at, count in enumerate(found["strange"]) if count]:
        faults.append(f"{chips.named(strange)}: the label holds values that are no class and not {IGNORE}; {remedy}")
    if journal is None:
        return faults
    expected = journal["class_pixels"]
    if len(expected) != len(found["class_pixels"]):
        faults.append(
            f"{chips.all()}: the journal speaks of {len(expected)} chips and the store has "
            f"{len(found['class_pixels'])}; {remedy}"
        )
    elif other := [
        start + at
        for at, counts in enumerate(found["class_pixels"])
        if counts is not None and counts != list(expected[at])
    ]:
        at = other[0] - start
        faults.append(
            f"{chips.named(other)}: the classes have {found['class_pixels'][at]} pixels, by the journal "
            f"{list(expected[at])}; {remedy}"
        )
    elif found["statistics"] and not _same_statistics(journal["statistics"], found["statistics"]):
        faults.append(f"{chips.all()}: the image holds other values than the journal says; {remedy}")
    return faults


class _Chips:
    """Names chips of one shard to a person."""

    def __init__(self, split: str, scene_ids: Sequence[str], start: int) -> None:
        self._split, self._scene_ids, self._start = split, scene_ids, start

    def named(self, positions: Sequence[int]) -> str:
        return _named(self._split, positions, [self._scene_ids[position - self._start] for position in positions])

    def all(self) -> str:
        last = self._start + len(self._scene_ids) - 1
        return f"{self._split}: chips {self._start} to {last} (scenes {self._scene_ids[0]} to {self._scene_ids[-1]})"


def _named(split: str, positions: Sequence[int], scene_ids: Sequence[str]) -> str:
    shown = ", ".join(f"{at} (scene {name})" for at, name in list(zip(positions, scene_ids, strict=True))[:_SHOWN])
    more = f" and {len(positions) - _SHOWN} more" if len(positions) > _SHOWN else ""
    return f"{split}: chip{'s' if len(positions) > 1 else ''} {shown}{more}"


def _same_statistics(expected: Sequence[Any], found: Sequence[Any]) -> bool:
    bands = [[BandStatistics.from_json(list(band)) for band in both] for both in (expected, found)]
    if len(bands[0]) != len(bands[1]):
        return False
    return all(
        (was.count, was.minimum, was.maximum, was.bins) == (now.count, now.minimum, now.maximum, now.bins)
        and math.isclose(was.total, now.total, rel_tol=_CLOSE)
        and math.isclose(was.total_of_squares, now.total_of_squares, rel_tol=_CLOSE)
        for was, now in zip(*bands, strict=True)
    )


def faults_of_store(
    store: ChipStore, journal: Mapping[str, Record], checked: Collection[str], but: Collection[str] = ()
) -> list[str]:
    """What is wrong with all that is no pixels: the small arrays, the statistics, and the journal itself.

    Args:
        store: a finished store.
        journal: the records of its journal, by key.
        checked: keys of the shards that were read.
        but: splits that are left out, whose faults are told already.
    """
    shards = shards_to_verify(store, but)
    keys = {key for key, *_ in shards}
    faults = [f"{key}: not in the journal; {_CUT_AGAIN}" for key, *_ in shards if key not in journal]
    faults += [
        f"{key}: in the journal, but the store has no such shard; {_CUT_AGAIN}"
        for key in journal
        if key not in keys and key.rpartition("/")[0] not in but
    ]
    faults += [f"{key}: was not read" for key, *_ in shards if key in journal and key not in checked]
    for split in (one for one in store.splits if one not in but):
        faults += _faults_of_arrays(store, split, [journal.get(key) for key, of, *_ in shards if of == split])
    statistics = store.attrs.get("statistics")
    if statistics is not None and statistics["split"] not in but:
        records = [journal[key] for key, split, *_ in shards if split == statistics["split"] and key in journal]
        faults += _faults_of_statistics(statistics, records, store.attrs["class_names"])
    return faults


def _faults_of_arrays(store: ChipStore, split: str, records: Sequence[Record | None]) -> list[str]:
    """Compare a split's small arrays with the records of its shards, in order; None for one without a record."""
    shards, size = store.shards(split), store.attrs["chip_size"]
    expected, known = _expected_arrays(shards, records, size, len(store.attrs["class_names"]))
    held = store.arrays(split, "scene_id", "transform", "x0", "y0", *expected)
    short = [f"{name} has {len(values)}" for name, values in held.items() if len(values) != len(known)]
    if short:
        return [f"{split}: the image has {len(known)} chips, {', '.join(short)}; {_ANEW}"]

    def named(positions: npt.NDArray[np.int64]) -> str:
        return _named(split, positions.tolist(), held["scene_id"][positions].tolist())

    faults, scene_ids = [], held["scene_id"].tolist()
    for shard, record in zip(shards, records, strict=True):
        if record is not None:
            faults += _faults_of_order(split, shard, scene_ids, record)
    for name, values in expected.items():
        differ = ~np.isclose(held[name], values, rtol=0, atol=1e-6)
        positions = np.flatnonzero(differ.reshape(len(known), -1).any(axis=1) & known)
        if len(positions):
            first = positions[0]
            faults.append(f"{named(positions)}: {name} is {held[name][first]}, by the journal {values[first]}; {_ANEW}")
    astray = _astray(held, expected["written"] & known, size)
    if len(astray):
        faults.append(f"{named(astray)}: transform, x0 and y0 do not fit row_off, col_off and window_size; {_ANEW}")
    return faults


def _expected_arrays(
    shards: Sequence[range], records: Sequence[Record | None], size: int, classes: int
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[np.bool_]]:
    """What a split's arrays must hold by the journal, by name, and (chip,) for which chips it says so."""
    chips = shards[-1].stop if shards else 0
    windows, status = np.zeros((chips, 3), np.int64), np.zeros(chips, np.uint8)
    pixels, known = np.zeros((chips, classes), np.int64), np.zeros(chips, np.bool_)
    for positions, record in zip(shards, records, strict=True):
        # One that speaks of another number of chips is told with its shard.
        if record is not None and len(record["status"]) == len(record["class_pixels"]) == len(positions):
            part = slice(positions.start, positions.stop)
            windows[part], status[part] = record["windows"], record["status"]
            pixels[part], known[part] = record["class_pixels"], True
    valid = pixels.sum(axis=1)
    return {
        "row_off": windows[:, 0],
        "col_off": windows[:, 1],
        "window_size": windows[:, 2],
        "status": status,
        "written": status == CHIP_WRITTEN,
        "valid_fraction": valid / size**2,
        "class_fraction": pixels / np.maximum(valid, 1)[:, None],
    }, known


def _faults_of_order(split: str, shard: range, scene_ids: Sequence[str], record: Record) -> list[str]:
    """Whether the chips of a shard are those of the scenes that its record names, in this order."""
    there = [f"{split}/{name}" for name, _ in groupby(scene_ids[shard.start : shard.stop])]
    if there == list(record["scenes"]):
        return []
    wrong = next((pair for pair in zip(there, record["scenes"], strict=False) if pair[0] != pair[1]), None)
    what = (
        f"scene {wrong[0]} stands where the journal has scene {wrong[1]}"
        if wrong
        else f"chips of {len(there)} scenes stand where the journal has {len(record['scenes'])} scenes"
    )
    return [f"{split}: chips {shard.start} to {shard.stop - 1}: {what}; {_ANEW}"]


def _astray(held: Mapping[str, npt.NDArray[Any]], written: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.int64]:
    """Positions of the written chips whose place on the ground is not that of their window in their scene.

    The chips of a scene stand on one grid: each of them tells where the scene's upper left corner is.
    """
    positions = np.flatnonzero(written)
    if not len(positions):
        return positions
    a, b, c, d, e, f = held["transform"][positions].T
    scale = np.maximum(held["window_size"][positions], 1) / size
    row, col = held["row_off"][positions] / scale, held["col_off"][positions] / scale
    grid = np.stack([a / scale, b / scale, d / scale, e / scale, c - a * col - b * row, f - d * col - e * row])
    scene, _ = pd.factorize(held["scene_id"][positions])
    _, first = np.unique(scene, return_index=True)
    pixel = np.abs(grid[:4]).max(axis=0)
    fits = (np.abs(grid - grid[:, first[scene]]) <= _MISPLACED * pixel).all(axis=0)
    fits &= (held["x0"][positions] == c) & (held["y0"][positions] == f)
    astray: npt.NDArray[np.int64] = positions[~fits]
    return astray


def _faults_of_statistics(
    statistics: Mapping[str, Any], records: Sequence[Record], class_names: Sequence[str]
) -> list[str]:
    """Compare the statistics in the store's attributes with the sum of what the journal counted."""
    bands = [BandStatistics() for _ in statistics["mean"]]
    pixels = np.zeros(len(class_names), np.int64)
    for record in records:
        for band, counted in zip(bands, record["statistics"], strict=True):
            band.add(BandStatistics.from_json(list(counted)))
        pixels += np.array(record["class_pixels"], np.int64).reshape(-1, len(class_names)).sum(axis=0)
    percentiles = statistics["percentiles"]
    pairs: dict[str, tuple[list[float | None], list[float]]] = {
        "mean": (statistics["mean"], [band.mean() for band in bands]),
        "std": (statistics["std"], [band.std() for band in bands]),
        "min": (statistics["min"], [band.minimum for band in bands]),
        "max": (statistics["max"], [band.maximum for band in bands]),
        **{
            f"percentile {percent}": (percentiles[str(percent)], [band.percentile(percent) for band in bands])
            for percent in PERCENTILES
        },
    }
    split = statistics["split"]
    faults = []
    for name, (held, counted) in pairs.items():
        expected = [value if band.count else None for value, band in zip(counted, bands, strict=True)]
        was, now = (np.array(values, np.float64) for values in (expected, held))
        if not np.allclose(now, was, rtol=_CLOSE, atol=0, equal_nan=True):
            faults.append(
                f"statistics: the {name} of the bands is {held}, by the journal of split {split} {expected}; {_ANEW}"
            )
    counts = dict(zip(class_names, pixels.tolist(), strict=True))
    if statistics["class_pixels"] != counts or statistics["valid_pixels"] != sum(counts.values()):
        faults.append(
            f"statistics: the classes have {statistics['class_pixels']} pixels, by the journal of split {split} "
            f"{counts}; {_ANEW}"
        )
    return faults
