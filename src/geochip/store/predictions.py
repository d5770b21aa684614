"""The prediction store: class ids and probabilities of whole scenes, in one Zarr hierarchy that xarray opens.

Layout of predictions.zarr (Zarr v3, consolidated metadata):

    /                       attrs: format_version, geochip_version, model_sha256, window, stride, class_names, ...
    /{height}x{width}       the scenes of one shape, stacked
        class               (scene, y, x) uint8, 255 = nodata               one chunk = one block of one scene
        probability         (scene, class_name, y, x) uint8, optional       1/254 of a probability, 255 = nodata
        class_name          (class_name) str
        scene_id, split, crs                (scene) str
        transform           (scene, coefficient) float64: a to f in x = a col + b row + c, y = d col + e row + f
        complete            (scene) bool: every block of the scene is written

Stacking keeps the number of groups small: a thousand groups take ten seconds to open. The dimension of the classes is
called class_name because `class` is a variable, and xarray takes a variable with a dimension's name for its coordinate.

A block is one chunk, written once, by one task, atomically: no writer ever touches what another one wrote.
"""

import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geochip.config import IGNORE, PROBABILITY_STEPS
from geochip.errors import InputError
from geochip.files import remove_leftover
from geochip.store._arrays import (
    FORMAT_VERSION,
    class_flags,
    consolidate,
    create_array,
    open_tensorstore,
    read_attributes,
    write_small,
)
from geochip.windows import Window

if TYPE_CHECKING:
    import xarray as xr
    import zarr


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


class PredictionStore:
    """One predictions.zarr: its scenes, and their blocks."""

    def __init__(self, path: Path | str) -> None:
        """Open a store that exists.

        Raises:
            InputError: when nothing is there, or something else, or a store of another format version.
        """
        self.path = Path(path)
        attrs = read_attributes(self.path)
        if attrs is None or "model_sha256" not in attrs:
            raise InputError(f"there is no prediction store at {self.path}; make one with python -m geochip.infer")
        if attrs["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"prediction store {self.path} has format version {attrs['format_version']}, this geochip reads "
                f"{FORMAT_VERSION}; make it anew with python -m geochip.infer"
            )
        import zarr

        self._root = zarr.open_group(str(self.path), mode="r", zarr_format=3)
        self.attrs: dict[str, Any] = attrs
        self.class_names: tuple[str, ...] = tuple(attrs["class_names"])
        self.block: int = attrs["block"]
        self.probability: bool = attrs["probability"]
        self.complete: bool = attrs["complete"]

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
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.creating")
        remove_leftover(unfinished, "infer.store")
        try:
            _create(
                unfinished,
                list(scenes),
                tuple(class_names),
                block,
                {
                    "format_version": FORMAT_VERSION,
                    **attributes,
                    "class_names": list(class_names),
                    "block": block,
                    "probability": probability,
                    "complete": False,
                },
            )
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return cls(path)

    @cached_property
    def scenes(self) -> dict[str, PredictedScene]:
        """Every scene by its id, group by group, in the order of the stack."""
        return {scene.scene_id: scene for name in self.groups for scene in self._scenes_of(name)}

    @property
    def groups(self) -> list[str]:
        """Names of the groups, smallest scenes first."""
        return sorted(self._root.group_keys(), key=lambda name: tuple(map(int, name.split("x"))))

    def _scenes_of(self, name: str) -> list[PredictedScene]:
        height, width = map(int, name.split("x"))
        ids, splits, crs, transforms, complete = (
            self._array(name, variable)[...] for variable in ("scene_id", "split", "crs", "transform", "complete")
        )
        return [
            PredictedScene(
                scene_id=str(ids[i]), split=str(splits[i]), height=height, width=width, crs=str(crs[i]),
                transform=tuple(map(float, transforms[i])),  # type: ignore[arg-type]
                group=name, index=i, complete=bool(complete[i]),
            )
            for i in range(len(ids))
        ]  # fmt: skip

    def _array(self, group: str, variable: str) -> Any:
        return self._root[f"{group}/{variable}"]

    def scene(self, scene_id: str) -> PredictedScene:
        """One scene by its id.

        Raises:
            InputError: when the store has no such scene; names some that it has.
        """
        scene_id = str(scene_id)
        for name in self.groups:
            # Group by group, so that one scene of a store with many shapes is found without reading all of them.
            known = [str(one) for one in self._array(name, "scene_id")[...]]
            if scene_id in known:
                return self._scenes_of(name)[known.index(scene_id)]
        close = get_close_matches(scene_id, self.scenes, n=3, cutoff=0.5) or list(self.scenes)[:3]
        raise InputError(
            f"scene {scene_id!r} is not among the {len(self.scenes)} scenes of {self.path}; "
            f"there are {', '.join(close)}{', ...' if len(close) < len(self.scenes) else ''}"
        )

    def read(self, scene: PredictedScene, window: Window) -> npt.NDArray[np.uint8]:
        """Class ids of one window that lies inside the scene: uint8 (height, width), 255 = nodata."""
        rows, cols = window.slices
        array = self._tensorstore(scene.group, "class")
        values: npt.NDArray[np.uint8] = array[scene.index, rows, cols].read().result()
        return values

    def _tensorstore(self, group: str, variable: str) -> Any:
        return open_tensorstore(self.path / group / variable)

    def finish(self, complete_ids: Iterable[str]) -> None:
        """Note which scenes are complete, and that the run came to its end."""
        done = set(complete_ids)
        import zarr

        root = zarr.open_group(str(self.path), mode="r+", zarr_format=3, use_consolidated=False)
        # A chunk of nothing but False is kept as a file as well: the store's files are then the same after any rerun.
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name in self.groups:
                flags: Any = root[f"{name}/complete"]
                flags[...] = np.array([scene.scene_id in done for scene in self._scenes_of(name)], np.bool_)
        root.update_attributes({"complete": True})
        self.attrs["complete"] = self.complete = True
        consolidate(self.path)
        # What was read before is out of date now.
        self.__dict__.pop("scenes", None)


def _create(
    path: Path, scenes: Sequence[SceneGrid], class_names: tuple[str, ...], block: int, attributes: dict[str, Any]
) -> None:
    import zarr

    root = zarr.create_group(str(path), zarr_format=3, attributes=attributes)
    by_shape: dict[tuple[int, int], list[SceneGrid]] = {}
    for scene in scenes:
        by_shape.setdefault((scene.height, scene.width), []).append(scene)
    for (height, width), stack in by_shape.items():
        group = root.create_group(f"{height}x{width}")
        _create_pixels(group, len(stack), height, width, class_names, block, attributes["probability"])
        for name, values in (
            ("scene_id", [scene.scene_id for scene in stack]),
            ("split", [scene.split for scene in stack]),
            ("crs", [scene.crs for scene in stack]),
        ):
            write_small(group, name, values, dims=("scene",))
        transforms = np.array([scene.transform for scene in stack], np.float64)
        write_small(group, "transform", transforms, dims=("scene", "coefficient"))
        write_small(group, "complete", np.zeros(len(stack), np.bool_), dims=("scene",))
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
    if probability_khw is not None:
        open_tensorstore(group / "probability")[scene.index, :, rows, cols].write(probability_khw).result()
    open_tensorstore(group / "class")[scene.index, rows, cols].write(class_hw).result()


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

        `ds.rio.crs` and `ds.rio.transform()` are the source image's. `ds.attrs` holds scene_id, split, class_names and
        what is known of the model and the run.

    Raises:
        InputError: for a store that cannot be opened, or a scene that it does not have.

    Warns:
        UserWarning: when blocks of the scene are missing; they read as nodata.
    """
    # Registers the .rio accessor, and takes a second: whoever only writes predictions is spared it.
    import rioxarray  # noqa: F401
    import xarray as xr
    from affine import Affine

    opened = PredictionStore(store)
    scene = opened.scene(scene_id)
    if not scene.complete:
        warnings.warn(
            f"scene {scene_id} of {store} is not complete: what is missing reads as nodata; run geochip.infer again",
            stacklevel=2,
        )
    stack = xr.open_zarr(opened.path, group=scene.group)
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
    if scene.crs:
        dataset = dataset.rio.write_crs(scene.crs)
    dataset = dataset.rio.write_transform(Affine(*scene.transform))
    dataset["class"] = dataset["class"].rio.write_nodata(IGNORE)
    # Flat ones alone, which every file format can hold.
    kept = ("geochip_version", "model_sha256", "class_names", "window", "stride", "blend")
    about = {"scene_id": scene.scene_id, "split": scene.split, **{name: opened.attrs[name] for name in kept}}
    return dataset.assign_attrs(about)
