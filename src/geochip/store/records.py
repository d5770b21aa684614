"""What a journal must hold: its header, and a record for each kind of task.

A record that holds something else is not believed: what it speaks of is done anew.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from geochip.documents import as_document, parse_json

Count = Annotated[int, msgspec.Meta(ge=0)]
Checksum = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
Stamp = tuple[Count, Checksum, int]
"""Of a file: its bytes, their CRC-32, and when it was written, in nanoseconds since 1970."""
Kinds = Callable[[str], type | None]
"""What the record of a task must hold, by the task's key; None when there is no such task."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Of a scene, by which a later run knows it; None for what could not be read."""

    header: str | None
    content: str | None
    stamp: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Of a chip store; see `geochip.chip_prepare`."""

    shard: Annotated[int, msgspec.Meta(ge=1)]
    dtype: str
    band_names: list[str]
    nodata: str | None

    def __post_init__(self) -> None:
        if self.nodata is not None:
            float(self.nodata)


@dataclass(frozen=True, kw_only=True)
class GridEntry:
    """A scene of a prediction store, in the order in which scenes were added."""

    scene_id: str
    split: str
    height: Annotated[int, msgspec.Meta(ge=1)]
    width: Annotated[int, msgspec.Meta(ge=1)]
    transform: tuple[float, float, float, float, float, float]
    crs: str

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.transform)):
            raise ValueError(f"transform of scene {self.scene_id}: {self.transform}")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line of a journal; see `geochip.store.origin`."""

    settings: dict[str, Any]
    scenes: dict[str, Digests]
    fingerprint: str
    places: dict[str, Count] = field(default_factory=dict)
    layout: _Layout | None = None
    grids: list[GridEntry] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [grid.scene_id for grid in self.grids]
        if len(set(names)) < len(names):
            raise ValueError("a scene stands twice in `grids`")
        # A journal of an older geochip has none.
        if names and set(names) != set(self.scenes):
            raise ValueError(
                f"`grids` and `scenes` are not of the same scenes: {sorted(set(names) ^ set(self.scenes))[0]!r}"
            )


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What every record holds."""

    key: str
    scenes: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _BadScene:
    scene_id: str
    split: str
    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ShardRecord(TaskRecord):
    """Of a shard of chips; see `geochip.chip_worker.fill_shards`."""

    windows: list[tuple[int, int, Count]]
    status: list[Annotated[int, msgspec.Meta(ge=0, le=2)]]
    written: list[bool]
    class_pixels: list[list[Count]]
    statistics: list[list[Any]]
    bad: list[_BadScene]
    mended: Count
    met: Count
    bytes: Count
    peak_bytes: Count

    def __post_init__(self) -> None:
        lengths = {len(self.windows), len(self.status), len(self.written), len(self.class_pixels)}
        if len(lengths) > 1 or not self.status:
            raise ValueError("windows, status, written and class_pixels of different numbers of chips")
        if len({len(counts) for counts in self.class_pixels}) > 1:
            raise ValueError("class_pixels of different numbers of classes")
        if not all(map(_are_statistics, self.statistics)):
            raise ValueError("statistics that are not those of a band")


def _are_statistics(band: list[Any]) -> bool:
    """Whether a list is of `BandStatistics.to_json`. Its sums may be larger than what msgspec takes for a number."""
    if not band:
        return True
    if len(band) != 7 or not all(isinstance(one, list) and all(type(n) is int for n in one) for one in band[5:]):
        return False
    numbers = [type(one) in (int, float) and not math.isnan(one) for one in band[:5]]
    return all(numbers) and type(band[0]) is int and band[0] > 0 and len(band[5]) == len(band[6])


@dataclass(frozen=True, kw_only=True)
class BlockRecord(TaskRecord):
    """Of a block of predictions; see `geochip.infer_worker.predict_pieces`."""

    class_pixels: list[Count] = field(default_factory=list)
    pixels: Checksum | None = None
    error: str | None = None
    files: dict[str, Stamp] = field(default_factory=dict)
    """Of its files, by the array; empty in a journal of an older geochip."""

    def __post_init__(self) -> None:
        if (self.error is None) == (self.pixels is None):
            raise ValueError("either `pixels` or `error`")
        if self.error is None and not self.class_pixels:
            raise ValueError("no `class_pixels`")


@dataclass(frozen=True, kw_only=True)
class CogRecord(TaskRecord):
    """Of a GeoTIFF of a predicted scene."""

    bytes: Count


def chip_records(key: str) -> type | None:
    """Kinds of the records of a chip store's journal."""
    return ShardRecord if re.fullmatch(r".+/\d{1,18}", key, re.DOTALL) else None


def prediction_records(key: str) -> type | None:
    """Kinds of the records of a prediction store's journal."""
    if re.fullmatch(r"block/.+/\d{1,18}/\d{1,18}", key, re.DOTALL):
        return BlockRecord
    return CogRecord if re.fullmatch(r"cog/.+", key, re.DOTALL) else None


def any_records(_: str) -> type | None:
    """For who wants to know no more than which tasks there are."""
    return TaskRecord


def parse_header(line: bytes, where: str, remedy: str) -> dict[str, Any]:
    """The header of a journal.

    Raises:
        DamagedError: when the line is none.
    """
    document = parse_json(line, where, remedy)
    as_document(document, Header, where, remedy)
    header: dict[str, Any] = document
    return header


def parse_record(line: bytes, kinds: Kinds) -> dict[str, Any]:
    """A record of a journal, with its "key".

    Raises:
        ValueError: when the line is none; says why.
    """
    document = json.loads(line)
    try:
        key = msgspec.convert(document, TaskRecord).key
        if (kind := kinds(key)) is None:
            raise ValueError(f"there is no task {key!r:.60}")
        msgspec.convert(document, kind)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    record: dict[str, Any] = document
    return record
