"""Vector files: the features that a scene can show, as shapes on its pixels."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyogrio
import pyogrio.errors
import pyogrio.raw
import shapely
import shapely.errors

from geochip.labels.classes import LabelRules, class_ids, drawing_order
from geochip.labels.cyclic import Geometries, shown_in
from geochip.labels.errors import LabelError, one_line
from geochip.labels.formats import require_features, vector_info
from geochip.labels.grid import (
    Bounds,
    Grid,
    declared_crs,
    extent,
    ground_metres,
    is_geojson,
    scene_transform,
    whole_window,
)
from geochip.names import composed, for_ogr
from geochip.windows import Window

# GEOS: Point 0, LineString 1, LinearRing 2, Polygon 3, MultiPoint 4, and after it the other collections.
_POLYGON, _FIRST_COLLECTION = 3, 4

# Smaller files are read whole: that is quicker than asking them where their features are.
_FILTERED_BYTES = 2**20

ORDER = "geochip_order"
"""Column of an index (see `indexed_label`) that holds each feature's place in the file that it was made from."""
INDEX_SUFFIX = ".fgb"
"""FlatGeobuf, what an index is written as."""

UNREADABLE = (
    pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
    shapely.errors.ShapelyError,
    OSError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Points, lines and polygons in pixel coordinates (x is the column, y the row), in the order of drawing."""

    geometries: Geometries
    """(n,) of dtype object."""
    values: npt.NDArray[np.uint8]
    """(n,) what each is drawn with."""
    mended: int
    """How many features held an invalid polygon, which was mended."""
    missed: bool
    """Whether the file has features and none of them meets the scene."""


def read_shapes(path: str, grid: Grid, rules: LabelRules, rectangles: Sequence[Window]) -> Shapes:
    """Read the features that can touch some rectangles of a scene; all of them, when the file is small.

    Raises:
        LabelError: for a file that cannot be read, an unknown CRS, coordinates that do not fit it, a CRS on one side
            only, a missing class property or a value of it that is no class.
    """
    pixel, reach = np.eye(2), rules.largest_buffer
    if reach and rules.labels.buffer_units == "metres":
        pixel = ground_metres(grid)
        # Not the shorter side of a pixel but the least stretch of any direction: a grid may be sheared.
        reach /= float(np.linalg.svd(pixel, compute_uv=False)[-1])
    found = _read(path, rules.labels.class_property, lambda crs: _extents(grid, rectangles, crs, reach))
    # Features without a geometry are drawn nowhere: nothing about them can be wrong.
    drawn = np.flatnonzero(~(shapely.is_missing(found.geometries) | shapely.is_empty(found.geometries)))
    geometries, owner = _simple_parts(found.geometries[drawn])
    geometries, owner = _in_pixels(path, geometries, owner, found, grid, reach)
    values = class_ids(path, found.column, found.columns, drawn, found.numbers, rules)
    geometries, owner, mended = _mended(geometries, owner)
    values = values[owner]
    geometries = _buffered(geometries, values, rules, pixel)
    order = drawing_order(values, rules)
    if order is not None:
        geometries, values = geometries[order], values[order]
    missed = not _meets(geometries, grid) and _has_features(found, len(drawn))
    if missed and found.filtered and list(rectangles) != [whole_window(grid)]:
        # Only what is near the windows was read: is anything elsewhere in the scene?
        plain = dataclasses.replace(rules, labels=dataclasses.replace(rules.labels, class_property=None))
        missed = read_shapes(path, grid, plain, [whole_window(grid)]).missed
    return Shapes(geometries=geometries, values=values, mended=mended, missed=missed)


def _meets(geometries: Geometries, grid: Grid) -> bool:
    """Whether any of some shapes, in pixels, meets the scene."""
    low_x, low_y, high_x, high_y = shapely.bounds(geometries).reshape(-1, 4).T
    near = (low_x <= grid.width) & (high_x >= 0) & (low_y <= grid.height) & (high_y >= 0)
    return bool(shapely.intersects(geometries[near], shapely.box(0, 0, grid.width, grid.height)).any())


def _has_features(found: "_Found", drawn: int) -> bool:
    """Whether a file holds any feature that could be drawn, read or not."""
    return drawn > 0 or (found.bounds is not None and bool(np.isfinite(found.bounds).all()))


def read_aoi(path: str, grid: Grid) -> shapely.Geometry:
    """The area of interest of a scene: the union of a vector file's polygons.

    Args:
        path: a vector file that GDAL reads, in any CRS; lines and points in it are passed over.
        grid: the scene's.

    Returns:
        A valid geometry in pixel coordinates (x is the column, y the row), cut off at the scene's edge; empty where
        the area lies elsewhere.

    Raises:
        LabelError: when the file cannot be read, holds no polygon, or does not fit the scene's CRS.
    """
    try:
        return _area(path, grid)
    except LabelError as error:
        raise LabelError(f"chips.aoi: {str(error).removeprefix('label ')}") from None


def _area(path: str, grid: Grid) -> shapely.Geometry:
    """What `read_aoi` returns; its errors speak of a label."""
    found = _read(path, None, lambda crs: extent(grid, whole_window(grid), crs, 0))
    parts, owner = _simple_parts(found.geometries[~shapely.is_missing(found.geometries)])
    polygons = shapely.get_type_id(parts) == _POLYGON
    parts, owner = parts[polygons], owner[polygons]
    if not len(parts) and not found.filtered:
        raise LabelError(f"{path} holds no polygon, so no area of interest; draw one, or set chips.aoi to null")
    found = dataclasses.replace(found, bounds=found.bounds or _bounds(parts))
    within = extent(grid, whole_window(grid), found.crs, 0)
    if within is not None:
        # Polygons on another continent need not fit the scene's CRS.
        near = shapely.union_all([shapely.box(*one) for one in within])
        close = shapely.intersects(shapely.box(*shapely.bounds(parts).T), near)
        parts, owner = parts[close], owner[close]
    parts, owner = _in_pixels(path, parts, owner, found, grid, 0)
    parts, _, _ = _mended(parts, owner)
    scene = shapely.box(0, 0, grid.width, grid.height)
    return shapely.intersection(shapely.union_all(parts), scene)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a vector file holds."""

    geometries: Geometries
    column: npt.NDArray[Any] | None
    """The values of the property that was asked for; None when there is none of that name."""
    columns: tuple[str, ...]
    """All properties, where the one that was asked for is not among them."""
    numbers: npt.NDArray[np.int64]
    """Each feature's number in the file, for errors."""
    crs: str | None
    filtered: bool = False
    """Whether only some features were read."""
    bounds: Bounds | None = None
    """Of all features, where none of them lies near."""


Areas = Callable[[str | None], list[Bounds] | None]
"""Where features are wanted, given the file's CRS; None: everywhere."""


def _extents(grid: Grid, rectangles: Sequence[Window], crs: str | None, reach: float) -> list[Bounds] | None:
    """`extent` of all rectangles."""
    found: list[Bounds] = []
    for one in rectangles:
        areas = extent(grid, one, crs, reach)
        if areas is None:
            return None
        found += areas
    return found


def _read(path: str, column: str | None, areas: Areas) -> _Found:
    """Read a vector file: whole when it is small, else the features within the areas."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require_features(path)
            of_gdal = None if is_geojson(path) else vector_info(path)["crs"]
            if Path(path).stat().st_size < _FILTERED_BYTES:
                return _read_within(path, column, None)
            known = areas(declared_crs(path, of_gdal))
            if known is None:
                return _read_within(path, column, None)
            if is_geojson(path):
                # Each reading goes through the whole file.
                low, high = np.min(known, axis=0), np.max(known, axis=0)
                known = [(low[0], low[1], high[2], high[3])]
            parts = [_read_within(path, column, one) for one in known]
            found = parts[0] if len(parts) == 1 else _joined(parts)
            if not len(found.geometries):
                # None is near: whether coordinates are of the declared CRS at all, the others tell.
                bounds = pyogrio.read_info(for_ogr(path), force_total_bounds=True)["total_bounds"]
                found = dataclasses.replace(found, bounds=bounds)
            return found
    except FileNotFoundError as error:
        raise LabelError(f"label {path} could not be read ({error.strerror})") from None
    except UNREADABLE as error:
        raise LabelError(
            f"label {path} could not be read as a vector file ({one_line(error)}); mend or remove it"
        ) from None


def _read_within(path: str, column: str | None, bounds: Bounds | None) -> _Found:
    column = _as_spelt(path, column)
    wanted = [*([column] if column else []), *([ORDER] if Path(path).suffix == INDEX_SUFFIX else [])]
    meta, fids, wkb, fields = pyogrio.raw.read(
        for_ogr(path), columns=wanted, bbox=bounds, return_fids=bounds is not None
    )
    if wkb is None:
        raise LabelError(f"label {path} holds no geometries; it must be a vector file such as GeoJSON")
    geometries = shapely.from_wkb(wkb)
    columns = dict(zip(meta["fields"].tolist(), fields, strict=True))
    missing = column is not None and column not in columns
    values = columns.get(column)
    numbers = np.arange(len(geometries)) if fids is None else fids
    if ORDER in columns or (bounds is not None and not is_geojson(path)):
        # An index gives features in an order of its own; a GeoJSON's come as they stand, whatever their ids.
        numbers = columns.get(ORDER, numbers)
        places = np.argsort(numbers, kind="stable")
        numbers, geometries = numbers[places], geometries[places]
        values = None if values is None else values[places]
    return _Found(
        geometries=geometries,
        column=values,
        columns=tuple(name for name in pyogrio.read_info(for_ogr(path))["fields"] if name != ORDER) if missing else (),
        numbers=numbers,
        crs=declared_crs(path, meta["crs"]),
        filtered=bounds is not None,
    )


def _as_spelt(path: str, column: str | None) -> str | None:
    """A property's name as the file has it, which may be composed otherwise than the run file's."""
    if column is None or column.isascii():
        return column
    names = pyogrio.read_info(for_ogr(path))["fields"].tolist()
    return next((name for name in names if composed(name) == composed(column)), column)


def _joined(parts: Sequence[_Found]) -> _Found:
    """What was read in several areas, each feature once."""
    numbers, first = np.unique(np.concatenate([part.numbers for part in parts]), return_index=True)
    values = [part.column for part in parts if part.column is not None]
    return dataclasses.replace(
        parts[0],
        geometries=np.concatenate([part.geometries for part in parts])[first],
        column=np.concatenate(values)[first] if values else None,
        numbers=numbers,
    )


def _bounds(geometries: Geometries) -> Bounds:
    low_x, low_y, high_x, high_y = shapely.total_bounds(geometries).tolist() if len(geometries) else [math.nan] * 4
    return low_x, low_y, high_x, high_y


def _in_pixels(
    path: str, parts: Geometries, owner: npt.NDArray[np.int64], found: _Found, grid: Grid, reach: float
) -> tuple[Geometries, npt.NDArray[np.int64]]:
    """Parts in pixel coordinates, without heights, wherever the scene shows them; and the owner of each."""
    to_scene = scene_transform(path, found.crs, grid, found.bounds or _bounds(parts))

    def checked(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if not np.isfinite(xy).all():
            raise LabelError(f"label {path} holds a shape with a coordinate that is no number; mend it")
        return to_scene(xy)

    parts, which = shown_in(shapely.transform(parts, checked), grid, reach)
    return shapely.transform(parts, grid.to_pixels), owner[which]


def _simple_parts(geometries: Geometries) -> tuple[Geometries, npt.NDArray[np.int64]]:
    """Points, lines and polygons, flat, and for each the index of the geometry that it is a part of, in their order."""
    parts, owner = geometries, np.arange(len(geometries))
    while (shapely.get_type_id(parts) >= _FIRST_COLLECTION).any():
        parts, index = shapely.get_parts(parts, return_index=True)
        owner = owner[index]
    filled = ~shapely.is_empty(parts)
    return parts[filled], owner[filled]


def _mended(parts: Geometries, owner: npt.NDArray[np.int64]) -> tuple[Geometries, npt.NDArray[np.int64], int]:
    """Polygons made valid, with what is left of them that has no area dropped; and how many owners that concerned."""
    invalid = ~shapely.is_valid(parts) & (shapely.get_type_id(parts) == _POLYGON)
    if not invalid.any():
        return parts, owner, 0
    mended = len(np.unique(owner[invalid]))
    places = np.flatnonzero(invalid)
    pieces, index = _simple_parts(shapely.make_valid(parts[places]))
    polygons = shapely.get_type_id(pieces) == _POLYGON
    pieces, places = pieces[polygons], places[index[polygons]]
    # Where they stood: later features are drawn over them.
    order = np.argsort(np.concatenate((np.flatnonzero(~invalid), places)), kind="stable")
    parts, owner = np.concatenate((parts[~invalid], pieces)), np.concatenate((owner[~invalid], owner[places]))
    return parts[order], owner[order], mended


def _buffered(
    parts: Geometries, values: npt.NDArray[np.uint8], rules: LabelRules, pixel: npt.NDArray[np.float64]
) -> Geometries:
    """Points and lines made as wide as their class asks; a pixel measures `pixel` in the buffer's units."""
    if not rules.buffers:
        return parts
    widths = rules.buffer_of(values)
    wide = np.flatnonzero((shapely.get_type_id(parts) < _POLYGON) & (widths > 0))
    if len(wide):
        stretched = shapely.transform(parts[wide], lambda xy: xy @ pixel.T)
        stretched = shapely.buffer(stretched, widths[wide])
        back = np.linalg.inv(pixel)
        parts = parts.copy()
        parts[wide] = shapely.transform(stretched, lambda xy: xy @ back.T)
    return parts
