"""The prediction store: class ids and probabilities of whole scenes, in one Zarr hierarchy that xarray opens.

Layout of predictions.zarr (Zarr v3, consolidated metadata):

    /                       attrs: format_version, geochip_version, model_sha256, window, stride, class_names, ...,
                            scenes: the ids of each group's scenes, so that one of them is found without reading all
    /{height}x{width}       the scenes of one shape, stacked
        class               (scene, y, x) uint8, 255 = nodata               one chunk = one block of one scene
        probability         (scene, class_name, y, x) uint8, optional       1/254 of a probability, 255 = nodata
        class_name          (class_name) str
        scene_id, split, crs                (scene) str
        transform           (scene, coefficient) float64: a to f in x = a col + b row + c, y = d col + e row + f
        complete            (scene) bool: every block of the scene is written

Stacking keeps the number of groups small: a thousand groups take ten seconds to open. The dimension of the classes is
called class_name because `class` is a variable, and xarray takes a variable with a dimension's name for its coordinate.

A block is one chunk, written once, by one task, atomically: no writer ever touches what another one wrote. Scenes that
are added later stand behind those that are there: the scene axis comes first, so no block of theirs is touched.
"""

import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from geochip.config import IGNORE, PROBABILITY_STEPS
from geochip.errors import DamagedError, InputError
from geochip.files import remove_leftover
from geochip.store import _mending
from geochip.store._arrays import (
    FORMAT_VERSION,
    class_flags,
    consolidate,
    create_array,
    in_short,
    open_tensorstore,
    read_root,
    read_small,
    write_small,
)
from geochip.store._metadata import ArrayDocument, GroupDocument, is_file, make_way_for, read_metadata
from geochip.windows import Window, blocks

if TYPE_CHECKING:
    import xarray as xr
    import zarr


REMEDY = "run python -m geochip.infer again, which writes it anew"

_GROUP = re.compile(r"[1-9]\d{0,9}x[1-9]\d{0,9}")
_SMALL = {"scene_id": "T", "split": "T", "crs": "T", "transform": "f", "complete": "b"}


@dataclass(frozen=True, kw_only=True)
class PredictionAttributes:
    """What the attributes of a prediction store's root must hold."""

    format_version: int
    complete: bool
    model_sha256: str
    geochip_version: str
    class_names: list[str]
    block: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    probability: bool
    window: Annotated[int, msgspec.Meta(ge=1)]
    stride: Annotated[int, msgspec.Meta(ge=1)]
    blend: str
    fingerprint: str
    scenes: dict[str, list[str]] | None = None
    """None in a store of an older geochip."""
    split_overlap: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """See that there are classes, and that groups are called as they are."""
        if not self.class_names:
            raise ValueError("no class names")
        if wrong := [name for name in self.scenes or () if not _GROUP.fullmatch(name)]:
            raise ValueError(f"scenes: a group called {wrong[0]!r:.60}")


@dataclass(frozen=True, kw_only=True)
class SceneGrid:
    """A scene as far as a prediction of it needs to know: its name and its pixel grid."""

    scene_id: str
    split: str
    """Empty for a scene that belongs to none."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    transform: tuple[float, float, float, float, float, float]
    """a, b, c, d, e, f: from (column, row) of a pixel's upper left corner to (x, y)."""
    crs: str
    """As "EPSG:4326" or WKT; empty for a scene without one."""


@dataclass(frozen=True, kw_only=True)
class PredictedScene(SceneGrid):
    """A scene and its place in the store."""

    group: str
    """Name of the group that holds the scenes of its shape."""
    index: int
    """Position along the group's scene axis."""
    complete: bool
    """Every block of it is written."""


def stacked(grids: Iterable[SceneGrid], complete: Collection[str] = ()) -> list[PredictedScene]:
    """Give scenes their places in a store.

    Args:
        grids: the scenes, in the order in which they were added.
        complete: ids of those that are complete.

    Returns:
        Each with its group and its position there, in the same order.
    """
    held: dict[str, int] = {}
    places = []
    for grid in grids:
        group = f"{grid.height}x{grid.width}"
        held[group] = held.get(group, -1) + 1
        places.append(
            PredictedScene(
                scene_id=grid.scene_id, split=grid.split, height=grid.height, width=grid.width,
                transform=grid.transform, crs=grid.crs, group=group, index=held[group],
                complete=grid.scene_id in complete,
            )
        )  # fmt: skip
    return places


def grids_of_header(header: Mapping[str, Any]) -> list[SceneGrid]:
    """The scenes of a store by the header of its journal, in the order in which they were added."""
    return [SceneGrid(**{**entry, "transform": tuple(entry["transform"])}) for entry in header.get("grids", ())]


class PredictionStore:
    """One predictions.zarr: its scenes, and their blocks. Opened by one read; a scene costs those of its group."""

    def __init__(self, path: Path | str) -> None:
        """Open a store that exists.

        Raises:
            InputError: when nothing is there, or something else, or a store of another format version.
            DamagedError: when its root does not hold what it must.
        """
        self.path = Path(path)
        attrs = read_root(self.path, PredictionAttributes, "model_sha256", REMEDY)
        if attrs is None:
            raise InputError(f"there is no prediction store at {self.path}; make one with python -m geochip.infer")
        if attrs["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"prediction store {self.path} has format version {attrs['format_version']}, this geochip reads "
                f"{FORMAT_VERSION}; make it anew with python -m geochip.infer"
            )
        self.attrs: dict[str, Any] = attrs
        self.class_names: tuple[str, ...] = tuple(attrs["class_names"])
        self.block: int = attrs["block"]
        self.probability: bool = attrs["probability"]
        self.complete: bool = attrs["complete"]
        self._index: dict[str, list[str]] | None = attrs.pop("scenes", None)

    @classmethod
    def create(
        cls,
        path: Path | str,
        scenes: Iterable[SceneGrid],
        *,
        class_names: Sequence[str],
        block: int,
        probability: bool,
        attributes: Mapping[str, Any],
    ) -> "PredictionStore":
        """Make a store without predictions; it appears under `path` at once and whole, or not at all.

        Args:
            path: where; nothing may be there.
            scenes: the scenes, each id once; those of one shape are stacked in this order.
            class_names: in the order of the class ids.
            block: rows and columns of a block, in pixels.
            probability: make room for probabilities as well.
            attributes: further attributes of the root, JSON-ready; model_sha256 must be among them.
        """
        path = Path(path)
        whole = _attributes(attributes, class_names, block, probability)
        with _laid_out(path, stacked(scenes), {**whole, "complete": False}) as building:
            building.rename(path)
        return cls(path)

    @classmethod
    def bring_up_to_date(
        cls,
        path: Path | str,
        scenes: Sequence[PredictedScene],
        *,
        class_names: Sequence[str],
        block: int,
        probability: bool,
        attributes: Mapping[str, Any],
        finished: bool,
    ) -> "PredictionStore":
        """Add the scenes that a store lacks, and give it back what a disk has lost or spoilt; no block is touched.

        While files are replaced, the root says that the store is not complete. Killed at any time, the same call
        ends what it began.

        Args:
            path: the store.
            scenes: all its scenes, those that it has and then the new ones; see `stacked`.
            class_names: see `create`.
            block: see `create`.
            probability: see `create`.
            attributes: see `create`.
            finished: whether no scene is left to predict.

        Raises:
            InputError: when something stands where a file belongs that cannot be replaced.
            WorkError: when the disk is full.
        """
        path = Path(path)
        whole = _attributes(attributes, class_names, block, probability)
        with _laid_out(path, scenes, {**whole, "complete": finished}) as building:
            others = _mending.differing(building, path)
            if others or not _mending.same_root(building, path):
                unfinished = _mending.unfinished_root(building)
                _mending.replace(building, path, [_mending.ROOT], unfinished)
                _mending.replace(building, path, others)
                if finished:
                    _mending.replace(building, path, [_mending.ROOT])
        return cls(path)

    @cached_property
    def scenes(self) -> dict[str, PredictedScene]:
        """Every scene by its id, group by group, in the order of the stack.

        Raises:
            DamagedError: when what says so is lost or damaged.
        """
        return {scene.scene_id: scene for name in self.groups for scene in self.scenes_of(name)}

    @property
    def groups(self) -> list[str]:
        """Names of the groups, smallest scenes first."""
        names = self._index or [
            entry.name for entry in self.path.iterdir() if _GROUP.fullmatch(entry.name) and entry.is_dir()
        ]
        return sorted(names, key=lambda name: tuple(map(int, name.split("x"))))

    def scenes_of(self, name: str) -> list[PredictedScene]:
        """The scenes of one group, in the order of the stack.

        Raises:
            DamagedError: when what says so is lost or damaged.
        """
        height, width = map(int, name.split("x"))
        directory = self.path / name
        count = None if self._index is None else len(self._index[name])
        held: dict[str, Any] = {}
        for variable, kind in _SMALL.items():
            shape = (count, 6) if variable == "transform" else (count,)
            held[variable] = read_small(directory / variable, REMEDY, shape=shape, kind=kind)
            count = len(held[variable])
        if self._index is not None and held["scene_id"].tolist() != self._index[name]:
            raise DamagedError(f"{directory / 'scene_id'} is damaged (the root names other scenes); {REMEDY}")
        if not np.isfinite(held["transform"]).all():
            raise DamagedError(f"{directory / 'transform'} is damaged (it holds no numbers); {REMEDY}")
        self._check_pixels(name, len(held["scene_id"]))
        return [
            PredictedScene(
                scene_id=str(held["scene_id"][i]), split=str(held["split"][i]), height=height, width=width,
                crs=str(held["crs"][i]), transform=tuple(map(float, held["transform"][i])),  # type: ignore[arg-type]
                group=name, index=i, complete=bool(held["complete"][i]),
            )
            for i in range(len(held["scene_id"]))
        ]  # fmt: skip

    def _check_pixels(self, name: str, count: int) -> None:
        """See that a group and its arrays of pixels are those of this many scenes of its shape."""
        height, width = map(int, name.split("x"))
        read_metadata(self.path / name / "zarr.json", GroupDocument, REMEDY)
        for variable in self.variables:
            file = self.path / name / variable / "zarr.json"
            document = read_metadata(file, ArrayDocument, REMEDY)
            between = [] if variable == "class" else [len(self.class_names)]
            block = [min(self.block, height), min(self.block, width)]
            if (
                document.shape != [count, *between, height, width]
                or document.chunk_shape != [1, *between, *block]
                or document.data_type != "uint8"
            ):
                raise DamagedError(
                    f"{file} is damaged ({document.data_type} of {document.shape} in chunks of {document.chunk_shape}, "
                    f"for {count} scenes of {height} x {width} pixels); {REMEDY}"
                )
        if self.probability:
            read_small(self.path / name / "class_name", REMEDY, shape=(len(self.class_names),), kind="T")

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the arrays of pixels."""
        return ("class", "probability") if self.probability else ("class",)

    def scene(self, scene_id: str) -> PredictedScene:
        """One scene by its id.

        Raises:
            InputError: when the store has no such scene; names some that it has.
            DamagedError: when what the store says of it is lost or damaged.
        """
        scene_id = str(scene_id)
        for name in self.groups:
            # Group by group, so that one scene of a store with many shapes is found without reading all of them.
            known = self._ids_of(name)
            if scene_id in known:
                return self.scenes_of(name)[known.index(scene_id)]
        there = [one for name in self.groups for one in self._ids_of(name)]
        close = get_close_matches(scene_id, there, n=3, cutoff=0.5) or there[:3]
        raise InputError(
            f"scene {scene_id!r} is not among the {len(there)} scenes of {self.path}; "
            f"there are {', '.join(close)}{', ...' if len(close) < len(there) else ''}"
        )

    def _ids_of(self, group: str) -> list[str]:
        if self._index is not None:
            return self._index[group]
        return [str(one) for one in read_small(self.path / group / "scene_id", REMEDY, shape=(None,), kind="T")]

    def files_of(self, scene: PredictedScene, block: Window) -> dict[str, Path]:
        """The file of each array of pixels that holds a block of a scene."""
        return block_files(self.path, scene, block, self.block, probability=self.probability)

    def missing_files(self, scene: PredictedScene) -> list[Path]:
        """Files of a scene's blocks that are not there."""
        return [
            file
            for block in blocks(scene.height, scene.width, self.block)
            for file in self.files_of(scene, block).values()
            if not is_file(file)
        ]

    def read(self, scene: PredictedScene, window: Window, variable: str = "class") -> npt.NDArray[np.uint8]:
        """Read one window that lies inside the scene.

        Args:
            scene: whose pixels.
            window: which of them.
            variable: what of them: "class" or "probability".

        Returns:
            Class ids as uint8 (height, width), 255 = nodata; or 254ths of probabilities, (class, height, width).

        Raises:
            DamagedError: when a block of it is lost or damaged.
        """
        rows, cols = window.slices
        files = [
            self.files_of(scene, block)[variable]
            for block in blocks(scene.height, scene.width, self.block)
            if block.row_off < window.row_stop and window.row_off < block.row_stop
            and block.col_off < window.col_stop and window.col_off < block.col_stop
        ]  # fmt: skip
        for file in files:
            if not is_file(file):
                raise DamagedError(f"{lost(scene, [file])}; {AGAIN}")
        array = open_tensorstore(self.path / scene.group / variable, REMEDY)
        place = (scene.index, rows, cols) if variable == "class" else (scene.index, slice(None), rows, cols)
        try:
            values: npt.NDArray[np.uint8] = array[place].read().result()
        except ValueError as error:
            bad = next((file for file in files if str(file.absolute()) in str(error)), files[0])
            raise DamagedError(
                f"{bad}, a block of scene {scene.scene_id}, is damaged ({in_short(error)}); remove it and {AGAIN}"
            ) from None
        return values

    def finish(self, complete_ids: Iterable[str]) -> None:
        """Note which scenes are complete, and that the run came to its end."""
        done = set(complete_ids)
        changed = {
            name for name in self.groups for scene in self.scenes_of(name) if scene.complete != (scene.scene_id in done)
        }
        if self.complete and not changed:
            return
        import zarr

        root = zarr.open_group(str(self.path), mode="r+", zarr_format=3, use_consolidated=False)
        # A chunk of nothing but False is kept as a file as well: the store's files are then the same after any rerun.
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name in sorted(changed):
                flags: Any = root[f"{name}/complete"]
                flags[...] = np.array([scene.scene_id in done for scene in self.scenes_of(name)], np.bool_)
        root.update_attributes({"complete": True})
        self.attrs["complete"] = self.complete = True
        consolidate(self.path)
        # What was read before is out of date now.
        self.__dict__.pop("scenes", None)


AGAIN = "run python -m geochip.infer again, which makes anew what is lost"


def lost(scene: PredictedScene, files: Sequence[Path]) -> str:
    """Say that blocks of a scene are lost."""
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return f"blocks of scene {scene.scene_id} are lost: {files[0]}{more} not there"


def block_files(store: Path, scene: PredictedScene, block: Window, side: int, *, probability: bool) -> dict[str, Path]:
    """The file of each array of pixels that holds a block of a scene.

    Args:
        store: the store.
        scene: the scene.
        block: the block.
        side: rows and columns of the store's blocks.
        probability: whether the store holds probabilities as well.
    """
    at, group = f"{block.row_off // side}.{block.col_off // side}", store / scene.group
    files = {"class": group / "class" / f"c.{scene.index}.{at}"}
    return {**files, "probability": group / "probability" / f"c.{scene.index}.0.{at}"} if probability else files


def _attributes(
    attributes: Mapping[str, Any], class_names: Sequence[str], block: int, probability: bool
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        **attributes,
        "class_names": list(class_names),
        "block": block,
        "probability": probability,
    }


@contextmanager
def _laid_out(path: Path, scenes: Sequence[PredictedScene], attributes: dict[str, Any]) -> Iterator[Path]:
    """A store beside `path` as it is created; what is left of it in the end is removed."""
    building = _mending.building_path(path)
    remove_leftover(building, "infer.store")
    building.parent.mkdir(parents=True, exist_ok=True)
    try:
        _create(building, scenes, attributes)
        yield building
    finally:
        _mending.remove(building)


def _create(path: Path, scenes: Sequence[PredictedScene], attributes: dict[str, Any]) -> None:
    import zarr

    by_group: dict[str, list[PredictedScene]] = {}
    # By shape, whatever order they came in.
    for scene in sorted(scenes, key=lambda scene: (scene.height, scene.width)):
        by_group.setdefault(scene.group, []).append(scene)
    index = {group: [scene.scene_id for scene in stack] for group, stack in by_group.items()}
    root = zarr.create_group(str(path), zarr_format=3, attributes={**attributes, "scenes": index})
    for name, stack in by_group.items():
        group, (height, width) = root.create_group(name), map(int, name.split("x"))
        _create_pixels(
            group, len(stack), height, width, tuple(attributes["class_names"]), attributes["block"],
            attributes["probability"],
        )  # fmt: skip
        for variable, values in (
            ("scene_id", [scene.scene_id for scene in stack]),
            ("split", [scene.split for scene in stack]),
            ("crs", [scene.crs for scene in stack]),
        ):
            write_small(group, variable, values, dims=("scene",))
        transforms = np.array([scene.transform for scene in stack], np.float64)
        write_small(group, "transform", transforms, dims=("scene", "coefficient"))
        write_small(group, "complete", np.array([scene.complete for scene in stack], np.bool_), dims=("scene",))
    consolidate(path)


def _create_pixels(
    group: "zarr.Group",
    count: int,
    height: int,
    width: int,
    class_names: tuple[str, ...],
    block: int,
    probability: bool,
) -> None:
    classes = len(class_names)
    rows, cols = min(block, height), min(block, width)
    # The per-scene variables become coordinates, so that ds["class"] alone still says which scene is which.
    along = {"coordinates": "scene_id split crs complete"}
    create_array(
        group,
        "class",
        shape=(count, height, width),
        dtype="uint8",
        dims=("scene", "y", "x"),
        chunks=(1, rows, cols),
        fill_value=IGNORE,
        # CF conventions, section 3.5. No _FillValue: xarray would turn the class ids into floating-point numbers.
        attributes={
            "long_name": "predicted class",
            **class_flags(class_names, "nodata"),
            **along,
        },
    )
    if not probability:
        return
    create_array(
        group,
        "probability",
        shape=(count, classes, height, width),
        dtype="uint8",
        dims=("scene", "class_name", "y", "x"),
        chunks=(1, classes, rows, cols),
        fill_value=IGNORE,
        # CF conventions, section 8.1, packed data.
        attributes={
            "long_name": "probability of each class",
            "units": "1",
            "scale_factor": 1 / PROBABILITY_STEPS,
            "_FillValue": IGNORE,
            **along,
        },
    )
    write_small(group, "class_name", class_names, dims=("class_name",))


def write_block(
    store: Path,
    scene: PredictedScene,
    window: Window,
    class_hw: npt.NDArray[np.uint8],
    probability_khw: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write one block: the pixels of `window`, which must be a block of the store's grid.

    Args:
        store: path of the prediction store.
        scene: whose block.
        window: which block.
        class_hw: uint8 (height, width) class ids, 255 = nodata.
        probability_khw: uint8 (class, height, width), probability times 254, 255 = nodata; None when not kept.
    """
    rows, cols = window.slices
    group = store / scene.group
    for name in ("class", "probability") if probability_khw is not None else ("class",):
        side = read_metadata(group / name / "zarr.json", ArrayDocument, REMEDY).chunk_shape[-2:]
        at = f"{window.row_off // side[0]}.{window.col_off // side[1]}"
        make_way_for(group / name / f"c.{scene.index}{'' if name == 'class' else '.0'}.{at}")
    if probability_khw is not None:
        open_tensorstore(group / "probability", REMEDY)[scene.index, :, rows, cols].write(probability_khw).result()
    open_tensorstore(group / "class", REMEDY)[scene.index, rows, cols].write(class_hw).result()


def open_scene(store: Path | str, scene_id: str) -> "xr.Dataset":
    """One predicted scene as an xarray Dataset on its own coordinates; pixels are read when they are used.

    Args:
        store: path of the prediction store.
        scene_id: the scene's id, such as "205".

    Returns:
        A Dataset of Dask arrays, one chunk a block:

        - class: (y, x) uint8 class ids, 255 = nodata, which rioxarray knows;
        - probability: (class_name, y, x) float32 in 0 to 1, NaN = nodata; only where the run kept it;
        - x, y: coordinates of the pixels' centres, in the units of the CRS. A rotated scene has no such axes: only
          `ds.rio.transform()` says where its pixels are.

        `ds.geochip.area()` gives the square metres on the ground of each class (see `geochip.store.areas`).

        `ds.rio.crs` and `ds.rio.transform()` are the source image's. `ds.attrs` holds scene_id, split, class_names and
        what is known of the model and the run.

    Raises:
        InputError: for a store that cannot be opened, or a scene that it does not have.
        DamagedError: when a block of a scene that was complete is lost, or what the store says of it.

    Warns:
        UserWarning: when blocks of the scene are not predicted yet, which read as nodata; when the scene is rotated.
    """
    # Registers the .rio accessor, and takes a second: whoever only writes predictions is spared it.
    import rioxarray  # noqa: F401
    import xarray as xr
    from affine import Affine

    import geochip.store.areas  # noqa: F401  registers the .geochip accessor

    opened = PredictionStore(store)
    scene = opened.scene(scene_id)
    missing = opened.missing_files(scene)
    # Whatever else stands in a block's place, a named pipe would be waited for.
    if missing and (scene.complete or any(map(os.path.lexists, missing))):
        raise DamagedError(f"{opened.path}: {lost(scene, missing)}; {AGAIN}")
    if not scene.complete:
        warnings.warn(
            f"scene {scene_id} of {store} is not complete: what is missing reads as nodata; run geochip.infer again",
            stacklevel=2,
        )
    # Of its group alone: what the root has gathered of a thousand groups takes seconds.
    stack = xr.open_zarr(opened.path / scene.group, consolidated=False)
    gone = ["transform", "crs", "split", "complete", "scene_id"]
    # How the store packs its arrays is of no use to whoever saves what they make of them.
    dataset: xr.Dataset = stack.isel(scene=scene.index).drop_vars(gone).drop_encoding()
    if "probability" in dataset:
        # Decoded as double precision, which holds no more than these steps and costs twice the memory.
        dataset["probability"] = dataset["probability"].astype(np.float32)
        dataset = dataset.assign_coords(class_name=np.array(opened.class_names, dtype=object))
    a, b, c, d, e, f = scene.transform
    if b == d == 0:
        dataset = dataset.assign_coords(
            x=("x", c + (np.arange(scene.width) + 0.5) * a, {"axis": "X"}),
            y=("y", f + (np.arange(scene.height) + 0.5) * e, {"axis": "Y"}),
        )
    else:
        warnings.warn(
            f"the grid of scene {scene_id} is rotated, and rioxarray does not know rotation: rio.bounds(), rio.clip() "
            "and rio.reproject() of it are wrong; only rio.transform() says where its pixels are. Warp the GeoTIFF "
            "that geochip.infer writes onto a grid along x and y first (gdalwarp)",
            stacklevel=2,
        )
    if scene.crs:
        dataset = dataset.rio.write_crs(scene.crs)
    dataset = dataset.rio.write_transform(Affine(*scene.transform))
    dataset["class"] = dataset["class"].rio.write_nodata(IGNORE)
    # Flat ones alone, which every file format can hold.
    kept = ("geochip_version", "model_sha256", "class_names", "window", "stride", "blend")
    about = {"scene_id": scene.scene_id, "split": scene.split, **{name: opened.attrs[name] for name in kept}}
    return dataset.assign_attrs(about)
