"""The chip store: a Zarr v3 hierarchy with a group for each split, made by many writers and read by many ranks.

    /            attributes: what it was made from, class and band names, statistics of the train split, `complete`
    /{split}     image (chip, band, y, x) in the scenes' own dtype, label (chip, y, x) uint8 with 255 = ignore, and
                 small arrays along `chip` that say where each chip comes from and what it holds

Chips stand in shards; a shard is one file and is written once, whole, by one task. What a position holds is fixed by
the plan, so a shard that is written again gets the same bytes.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import tensorstore

from geochip.config import IGNORE
from geochip.errors import DamagedError, InputError
from geochip.files import disk_full, is_disk_full, remove_leftover, sync
from geochip.store import _mending
from geochip.store._arrays import (
    FORMAT_VERSION,
    class_flags,
    consolidate,
    create_array,
    open_tensorstore,
    read_root,
    read_small,
    write_small,
)
from geochip.store._metadata import ArrayDocument, GroupDocument, RootDocument, make_way_for, read_metadata

if TYPE_CHECKING:
    import zarr

REMEDY = "run python -m geochip.chipping again, which writes it anew"
"""For what is no pixels."""

CHIP_WRITTEN, CHIP_UNREAD, CHIP_DROPPED = 0, 1, 2
"""Status of a chip: it holds pixels; its scene could not be read; no window fitted the conditions on its content."""


# Of the small arrays along `chip`: NumPy's letter for their kind, and their shape after that axis.
_SMALL: dict[str, tuple[str, tuple[int | None, ...]]] = {
    "scene_id": ("T", ()), "crs": ("T", ()), "row_off": ("i", ()), "col_off": ("i", ()), "window_size": ("i", ()),
    "x0": ("f", ()), "y0": ("f", ()), "transform": ("f", (6,)), "valid_fraction": ("f", ()),
    "class_fraction": ("f", (None,)), "written": ("b", ()), "status": ("u", ()),
}  # fmt: skip
_RESULTS = frozenset(_SMALL) - {"scene_id"}

_Positive = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


@dataclass(frozen=True, kw_only=True)
class _DataSection:
    splits: list[str]


@dataclass(frozen=True, kw_only=True)
class _Config:
    data: _DataSection


@dataclass(frozen=True, kw_only=True)
class _Statistics:
    split: str
    mean: list[float | None]
    std: list[float | None]
    min: list[float | None]
    max: list[float | None]
    percentiles: dict[str, list[float | None]]
    class_pixels: dict[str, int]
    valid_pixels: int

    def __post_init__(self) -> None:
        if len({len(self.mean), *map(len, (self.std, self.min, self.max, *self.percentiles.values()))}) > 1:
            raise ValueError("statistics of different numbers of bands")


@dataclass(frozen=True, kw_only=True)
class ChipAttributes:
    """What the attributes of a chip store's root must hold."""

    format_version: int
    complete: bool
    config: _Config
    seed: int
    class_names: list[str]
    bands: list[_Positive]
    band_names: list[str]
    dtype: str
    nodata: float | str | None
    chip_size: _Positive
    pixel_size_range: tuple[float, float] | None
    fingerprint: str
    geochip_version: str
    statistics: _Statistics | None = None
    overlap: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """See that the parts go together."""
        if not self.class_names or not self.bands or len(self.bands) != len(self.band_names):
            raise ValueError(
                f"{len(self.class_names)} classes, {len(self.bands)} bands of {len(self.band_names)} names"
            )
        if self.statistics is not None and len(self.statistics.mean) != len(self.bands):
            raise ValueError(f"statistics of {len(self.statistics.mean)} bands, of {len(self.bands)}")
        if self.overlap is not None and type(self.overlap.get("pairs")) is not int:
            raise ValueError("overlap: without a number of pairs")
        try:
            size = np.dtype(self.dtype).itemsize
            float(0 if self.nodata is None else self.nodata)
        except (TypeError, ValueError):
            raise ValueError(f"dtype {self.dtype!r}, nodata {self.nodata!r}") from None
        if size * len(self.bands) * self.chip_size**2 > 2**31:
            raise ValueError(f"chips of {self.chip_size} x {self.chip_size} pixels with {len(self.bands)} bands")


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """What a store is created with."""

    layouts: Sequence["SplitLayout"]
    """The splits."""
    bands: int
    """Bands of a chip."""
    size: int
    """Rows and columns of a chip."""
    dtype: str
    """NumPy name of the image's type."""
    fill_value: float
    """What image pixels read as that were never written."""
    classes: Sequence[str]
    """Class names."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Of the root; `format_version` and `complete` are added."""


@dataclass(frozen=True, kw_only=True)
class SplitLayout:
    """Which scenes the chips of one split come from, by position, and how many share a shard."""

    name: str
    scene_id: Sequence[str]
    """(chip,) the scene of each chip."""
    shard: int
    """Chips in a shard."""


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """Where the chips of one split were cut and what they turned out to hold, by position."""

    crs: Sequence[str]
    """(chip,) CRS of each chip, as "EPSG:4326" or WKT; empty without one."""
    row_off: npt.NDArray[np.int64]
    """(chip,) first row in the scene."""
    col_off: npt.NDArray[np.int64]
    """(chip,) first column in the scene."""
    window_size: npt.NDArray[np.int64]
    """(chip,) rows and columns of the scene that became the chip; 0 for a chip without pixels."""
    transform: npt.NDArray[np.float64]
    """(chip, 6) affine coefficients a, b, c, d, e, f of each chip's own grid; (c, f) is its upper left corner. NaN for
    a chip without pixels."""
    valid_fraction: npt.NDArray[np.float32]
    """(chip,) share of the pixels whose label is not 255, 0 to 1."""
    class_fraction: npt.NDArray[np.float32]
    """(chip, class) share of each class in those pixels, 0 to 1; 0 where there are none."""
    status: npt.NDArray[np.uint8]
    """(chip,) CHIP_WRITTEN, CHIP_UNREAD or CHIP_DROPPED."""

    @classmethod
    def empty(cls, chips: int, classes: int) -> "SplitResult":
        """Of chips that are still to be cut."""
        return cls(
            crs=[""] * chips,
            row_off=np.zeros(chips, np.int64),
            col_off=np.zeros(chips, np.int64),
            window_size=np.zeros(chips, np.int64),
            transform=np.full((chips, 6), np.nan),
            valid_fraction=np.zeros(chips, np.float32),
            class_fraction=np.zeros((chips, classes), np.float32),
            status=np.full(chips, CHIP_UNREAD, np.uint8),
        )


def create_chip_store(path: Path, plan: StorePlan) -> None:
    """Create a store with its plan and without pixels, all or nothing.

    Args:
        path: where; must not exist.
        plan: what it is created with.
    """
    with _laid_out(path, plan) as building:
        building.rename(path)


def restore_chip_store(path: Path, plan: StorePlan, *, whole: bool = True) -> None:
    """Give a store back what its creation wrote and a disk has lost or spoilt; no pixels.

    What only the end of the work can tell is written anew by `finish_chip_store` in any case.

    Args:
        path: the store.
        plan: what it was created with.
        whole: also attributes of the root that can be read and are others; with False a store that is refused yet
            keeps them.

    Raises:
        InputError: when something stands where a file belongs that cannot be replaced.
        WorkError: when the disk is full.
    """
    with _laid_out(path, plan) as building:
        _mending.replace(building, path, _mending.differing(building, path, _RESULTS))
        if whole:
            good = _mending.same_root(building, path, ("statistics", "overlap", "complete"))
        else:
            try:
                good = ChipStore(path).attrs is not None
            except DamagedError:
                good = False
        if not good:
            _mending.replace(building, path, [_mending.ROOT])


@contextmanager
def _laid_out(path: Path, plan: StorePlan) -> Iterator[Path]:
    """A store beside `path` as it is created; what is left of it in the end is removed."""
    import zarr

    building = _mending.building_path(path)
    remove_leftover(building, "chips.store")
    building.parent.mkdir(parents=True, exist_ok=True)
    try:
        root = zarr.create_group(
            str(building),
            zarr_format=3,
            attributes={"format_version": FORMAT_VERSION, **plan.attributes, "complete": False},
        )
        for layout in plan.layouts:
            _create_split(root.create_group(layout.name), layout, plan)
        consolidate(building)
        yield building
    finally:
        _mending.remove(building)


def _create_split(group: "zarr.Group", layout: "SplitLayout", plan: StorePlan) -> None:
    # CF conventions 1.11, section 5: xarray carries these along with the pixels.
    origin = {"coordinates": "scene_id row_off col_off window_size x0 y0 crs"}
    label_attributes = {**origin, "long_name": "class", **class_flags(plan.classes, "ignore")}
    chips = len(layout.scene_id)
    image_shape, label_shape = (plan.bands, plan.size, plan.size), (plan.size, plan.size)
    create_array(
        group, "image", shape=(chips, *image_shape), dtype=plan.dtype, dims=("chip", "band", "y", "x"),
        chunks=(1, *image_shape), shards=(layout.shard, *image_shape), fill_value=plan.fill_value, attributes=origin,
    )  # fmt: skip
    create_array(
        group, "label", shape=(chips, *label_shape), dtype="uint8", dims=("chip", "y", "x"),
        chunks=(1, *label_shape), shards=(layout.shard, *label_shape), fill_value=IGNORE,
        attributes=label_attributes,
    )  # fmt: skip
    write_small(group, "scene_id", layout.scene_id, ("chip",))
    _write_result(group, SplitResult.empty(chips, len(plan.classes)))


def _write_result(group: "zarr.Group", result: SplitResult) -> None:
    along = ("chip",)
    write_small(group, "crs", result.crs, along)
    write_small(group, "row_off", result.row_off, along, {"long_name": "first row in the scene"})
    write_small(group, "col_off", result.col_off, along, {"long_name": "first column in the scene"})
    write_small(
        group, "window_size", result.window_size, along, {"long_name": "rows and columns of the scene", "units": "1"}
    )
    write_small(group, "x0", result.transform[:, 2].copy(), along, {"long_name": "x of the upper left corner"})
    write_small(group, "y0", result.transform[:, 5].copy(), along, {"long_name": "y of the upper left corner"})
    write_small(group, "transform", result.transform, ("chip", "coefficient"))
    write_small(group, "valid_fraction", result.valid_fraction, along)
    write_small(group, "class_fraction", result.class_fraction, ("chip", "class"))
    write_small(group, "written", result.status == CHIP_WRITTEN, along)
    # CF conventions 1.11, section 3.5.
    meanings = {"flag_values": [CHIP_WRITTEN, CHIP_UNREAD, CHIP_DROPPED], "flag_meanings": "written unread dropped"}
    write_small(group, "status", result.status, along, meanings)


def write_shard(
    path: Path, split: str, start: int, image_cbhw: npt.NDArray[Any], label_chw: npt.NDArray[np.uint8]
) -> int:
    """Write the chips of one whole shard; each of its two files appears complete or not at all, whoever is killed.

    A power cut may still take them until `sync_shard` has returned: waiting for the disk is left to the caller, who can
    do better things meanwhile.

    Args:
        path: the store.
        split: its group.
        start: position of the first chip, a multiple of the shard's length.
        image_cbhw: (chip, band, height, width) in the store's dtype.
        label_chw: (chip, height, width) class ids and 255.

        Both may be used for the next shard when this has returned.

    Returns:
        The shard's number.

    Raises:
        WorkError: when the disk is full.
    """
    stop = start + len(image_cbhw)
    for name, pixels in (("image", image_cbhw), ("label", label_chw)):
        # A Dask worker is one of many on its machine.
        array = open_tensorstore(path / split / name, REMEDY, threads=1, sync=False)
        chips, shard = array.shape[0], array.chunk_layout.write_chunk.shape[0]
        if start % shard or stop != min(start + shard, chips):
            raise ValueError(
                f"chips {start} to {stop - 1} are no shard of {path}, whose shards have {shard} of {chips}"
            )
        make_way_for(shard_files(path, split, start // int(shard))[name == "label"])
        try:
            with tensorstore.Transaction() as transaction:
                # The pixels are encoded from where they are: a copy would cost a tenth of the encoding. "Indefinitely"
                # is until this function ends: then they are in files, and neither array nor cache are there any more.
                array.with_transaction(transaction)[start:stop].write(
                    pixels, can_reference_source_data_indefinitely=True
                ).result()
        except ValueError as error:
            if is_disk_full(error):
                raise disk_full(path) from None
            raise
    return start // int(shard)


def sync_shard(path: Path, split: str, number: int) -> int:
    """Wait until the shard with a number is on the disk.

    Returns:
        Its bytes there.

    Raises:
        WorkError: when the disk, or a quota on it, is full; some file systems tell it only now.
    """
    files = shard_files(path, split, number)
    try:
        for file in files:
            sync(file)
            sync(file.parent)
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from None
        raise
    return sum(file.stat().st_size for file in files)


def shard_files(path: Path, split: str, number: int) -> tuple[Path, Path]:
    """The two files of the shard with a number: of the image, of the label."""
    return path / split / "image" / f"c.{number}.0.0.0", path / split / "label" / f"c.{number}.0.0"


def shards_there(path: Path, split: str) -> set[int]:
    """Numbers of the split's shards both of whose files are on disk."""
    return _shards_of(path / split / "image", ".0.0.0") & _shards_of(path / split / "label", ".0.0")


def _shards_of(array: Path, end: str) -> set[int]:
    if not array.is_dir():
        return set()
    pattern = re.compile(rf"c\.(\d{{1,18}}){re.escape(end)}")
    with os.scandir(array) as entries:
        # A link to nothing, or a named pipe, is no shard.
        return {int(found[1]) for entry in entries if (found := pattern.fullmatch(entry.name)) and entry.is_file()}


def sweep_locks(path: Path) -> None:
    """Remove the lock files that killed writers left; call it only when nobody writes."""
    for group in _directories(path):
        for array in _directories(group):
            for lock in array.glob("*.__lock"):
                lock.unlink(missing_ok=True)


def _directories(path: Path) -> list[Path]:
    """Directories within one, without symbolic links: what these lead to belongs to somebody else."""
    with os.scandir(path) as entries:
        return [path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def reopen_chip_store(path: Path) -> None:
    """Mark a store as incomplete again, while it is being changed."""
    import zarr

    root = zarr.open_group(str(path), mode="r+", zarr_format=3, use_consolidated=False)
    if root.attrs["complete"]:
        root.update_attributes({"complete": False})
        consolidate(path)


def finish_chip_store(path: Path, results: Mapping[str, SplitResult], attributes: Mapping[str, Any]) -> None:
    """Write what only the whole of the work can tell, and mark the store complete."""
    import zarr

    root = zarr.open_group(str(path), mode="r+", zarr_format=3, use_consolidated=False)
    for split, result in results.items():
        group: Any = root[split]
        _write_result(group, result)
    root.update_attributes({**attributes, "complete": True})
    consolidate(path)


class ChipStore:
    """Read access to a chip store. Picklable; opens its arrays on first use, in the process that uses them."""

    def __init__(self, path: Path | str) -> None:
        """Open the store's metadata.

        Raises:
            InputError: when there is no chip store at `path`, or one of another format version.
        """
        self.path = Path(path)
        attributes = read_root(self.path, ChipAttributes, "chip_size", REMEDY)
        if attributes is None:
            raise InputError(f"there is no chip store at {self.path}; make one with python -m geochip.chipping")
        if attributes["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"chip store {self.path} has format version {attributes['format_version']}, this geochip reads "
                f"{FORMAT_VERSION}; make it anew with python -m geochip.chipping"
            )
        if attributes["nodata"] is not None:
            # JSON has no NaN: it is stored as text.
            attributes["nodata"] = float(attributes["nodata"])
        self.attrs = attributes
        """Attributes of the root: what the store was made from and what it holds."""
        self._arrays: dict[str, Any] = {}
        self._opened_by = 0

    @property
    def splits(self) -> list[str]:
        """The splits, as the store's configuration orders them; also one whose group is lost: its readers tell it."""
        root = read_metadata(self.path / "zarr.json", RootDocument, REMEDY).consolidated_metadata
        known = set(root.metadata) if root else set()
        return [
            name
            for name in self.attrs["config"]["data"]["splits"]
            if name in known or (self.path / name / "zarr.json").is_file()
        ]

    def _require(self, split: str) -> None:
        if split not in self.splits:
            raise InputError(f"chip store {self.path} has no split {split!r}; it has {', '.join(self.splits)}")

    def check(self, split: str) -> None:
        """See that all that is no pixels of a split can be read.

        Raises:
            InputError: when the store has no such split.
            DamagedError: when its metadata or one of its small arrays are lost or damaged.
        """
        read_metadata(self.path / split / "zarr.json", GroupDocument, REMEDY)
        self.arrays(split, *_SMALL)
        self._labels(split)

    def _labels(self, split: str) -> None:
        """See that there are as many labels as images."""
        chips, _ = self._image(split)
        if (labels := self._metadata(split, "label", (None,)).shape[0]) != chips:
            file = self.path / split / "label" / "zarr.json"
            raise DamagedError(f"{file} is damaged (there are {labels} labels of {chips} chips); {REMEDY}")

    def _image(self, split: str) -> tuple[int, int]:
        """Chips of a split, and chips in one of its shards."""
        self._require(split)
        image = self._metadata(split, "image", (None, len(self.attrs["bands"])))
        return image.shape[0], image.chunk_shape[0]

    def _metadata(self, split: str, name: str, shape: tuple[int | None, ...]) -> ArrayDocument:
        """The metadata of an array of pixels: of (chip, ...) of chips of the store's size."""
        file, size = self.path / split / name / "zarr.json", self.attrs["chip_size"]
        document = read_metadata(file, ArrayDocument, REMEDY)
        dtype = self.attrs["dtype"] if name == "image" else "uint8"
        rest = [*shape[1:], size, size]
        if document.shape[1:] != rest or document.chunk_shape[1:] != rest or document.data_type != dtype:
            raise DamagedError(
                f"{file} is damaged (it has chips of {document.shape[1:]} {document.data_type}, the store's are "
                f"{rest} {dtype}); {REMEDY}"
            )
        return document

    def written(self, split: str) -> npt.NDArray[np.int64]:
        """Positions, ascending, of the split's chips that hold pixels.

        Raises:
            InputError: when the store has no such split.
        """
        return np.flatnonzero(self.arrays(split, "written")["written"]).astype(np.int64)

    def missing_shards(self, split: str) -> int:
        """How many of the split's shards lack a file, as after a copy that was cut short.

        No reader of Zarr says so: what a missing shard held reads as the fill value.

        Raises:
            InputError: when the store has no such split.
        """
        return len(set(range(len(self.shards(split)))) - shards_there(self.path, split))

    def shards(self, split: str) -> list[range]:
        """The positions that each of the split's shards holds, in order; the last one may be shorter.

        Raises:
            InputError: when the store has no such split.
        """
        chips, shard = self._image(split)
        return [range(start, min(start + shard, chips)) for start in range(0, chips, shard)]

    def arrays(self, split: str, *names: str) -> dict[str, npt.NDArray[Any]]:
        """Some of the split's small arrays whole, by name; text as Python strings.

        Raises:
            InputError: when the store has no such split.
            DamagedError: when one of them is lost or damaged.
        """
        chips, _ = self._image(split)
        arrays = {}
        for name in names:
            kind, rest = _SMALL[name]
            rest = (len(self.attrs["class_names"]),) if rest == (None,) else rest
            arrays[name] = read_small(self.path / split / name, REMEDY, shape=(chips, *rest), kind=kind)
        if "status" in arrays and (arrays["status"] > CHIP_DROPPED).any():
            raise DamagedError(f"{self.path / split / 'status'} is damaged (it has values above 2); {REMEDY}")
        return {name: values.astype(object) if values.dtype.kind == "T" else values for name, values in arrays.items()}

    def table(self, split: str) -> pd.DataFrame:
        """One row a chip: where it is from, crs, valid_fraction, written and status; see `SplitResult`.

        Raises:
            InputError: when the store has no such split.
        """
        names = (
            "scene_id", "row_off", "col_off", "window_size", "x0", "y0", "crs", "valid_fraction", "written", "status"
        )  # fmt: skip
        return pd.DataFrame(self.arrays(split, *names))

    def read(
        self,
        split: str,
        positions: npt.NDArray[np.int64],
        image_out: npt.NDArray[Any] | None = None,
        label_out: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Read chips at any positions, in any order.

        Args:
            split: the split.
            positions: (n,) positions; the caller leaves out those that were not written.
            image_out: (n, band, size, size) C-contiguous array of the store's dtype to read into; a new one when None.
                Reading into the same memory again saves the operating system from clearing fresh pages, which costs
                half a millisecond a chip.
            label_out: (n, size, size) uint8 array to read into; a new one when None.

        Returns:
            image_nbhw: in the scenes' own dtype and units; label_nhw: class ids, 255 = ignore.

        Raises:
            ValueError: when a chip is damaged (its checksum does not fit).
        """
        image, label = self._open(split)
        size, count = self.attrs["chip_size"], len(positions)
        if image_out is None:
            image_out = np.empty((count, *image.shape[1:]), image.dtype.numpy_dtype)
        if label_out is None:
            label_out = np.empty((count, size, size), np.uint8)
        # One request each: tensorstore reads and decodes the chips of a request at once, in threads of its own.
        reads = [
            tensorstore.array(out, write=True, copy=False).write(array[positions])
            for array, out in ((image, image_out), (label, label_out))
        ]
        for read in reads:
            read.result()
        return image_out, label_out

    def _open(self, split: str) -> tuple[Any, Any]:
        if self._opened_by != os.getpid():
            # Handles that came along with a fork are unusable.
            self._arrays, self._opened_by = {}, os.getpid()
        if split not in self._arrays:
            self._labels(split)
            names = ("image", "label")
            self._arrays[split] = tuple(open_tensorstore(self.path / split / name, REMEDY) for name in names)
        arrays: tuple[Any, Any] = self._arrays[split]
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}, "_opened_by": 0}
