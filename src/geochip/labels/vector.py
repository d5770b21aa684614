"""Vector files: the features that a scene can show, as shapes on its pixels."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geochip.labels.classes import LabelRules, class_ids, drawing_order
from geochip.labels.cyclic import Geometries, shown_in
from geochip.labels.errors import LabelError
from geochip.labels.grid import Bounds, Grid, extent, ground_metres, scene_transform, whole_window
from geochip.labels.source import Features, VectorSource, joined, reading
from geochip.windows import Window

# GEOS: Point 0, LineString 1, LinearRing 2, Polygon 3, MultiPoint 4, and after it the other collections.
_POLYGON, _FIRST_COLLECTION = 3, 4


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Points, lines and polygons in pixel coordinates (x is the column, y the row), in the order of drawing."""

    geometries: Geometries
    """(n,) of dtype object."""
    values: npt.NDArray[np.uint8]
    """(n,) what each is drawn with."""
    mended: int
    """How many features held an invalid polygon, which was mended."""
    unvalued: int
    """How many features have no value of the class property."""
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
    found = _read(
        path,
        rules.labels.class_property,
        lambda crs: _extents(grid, rectangles, crs, reach),
        layer=rules.labels.layer,
        key="labels.layer",
    )
    # Features without a geometry are drawn nowhere: nothing about them can be wrong.
    drawn = np.flatnonzero(~(shapely.is_missing(found.geometries) | shapely.is_empty(found.geometries)))
    geometries, owner = _simple_parts(found.geometries[drawn])
    geometries, owner = _in_pixels(path, geometries, owner, found, grid, reach)
    values, unvalued = class_ids(path, found.column, found.columns, drawn, found.numbers, rules)
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
    return Shapes(geometries=geometries, values=values, mended=mended, unvalued=unvalued, missed=missed)


def _meets(geometries: Geometries, grid: Grid) -> bool:
    """Whether any of some shapes, in pixels, meets the scene."""
    low_x, low_y, high_x, high_y = shapely.bounds(geometries).reshape(-1, 4).T
    near = (low_x <= grid.width) & (high_x >= 0) & (low_y <= grid.height) & (high_y >= 0)
    return bool(shapely.intersects(geometries[near], shapely.box(0, 0, grid.width, grid.height)).any())


def _has_features(found: Features, drawn: int) -> bool:
    """Whether a file holds any feature that could be drawn, read or not."""
    return drawn > 0 or (found.bounds is not None and bool(np.isfinite(found.bounds).all()))


def read_aoi(path: str, grid: Grid, layer: str | None = None) -> shapely.Geometry:
    """The area of interest of a scene: the union of a vector file's polygons.

    Args:
        path: a vector file that GDAL reads, in any CRS; lines and points in it are passed over.
        grid: the scene's.
        layer: chips.aoi_layer.

    Returns:
        A valid geometry in pixel coordinates (x is the column, y the row), cut off at the scene's edge; empty where
        the area lies elsewhere.

    Raises:
        LabelError: when the file cannot be read, holds no polygon, or does not fit the scene's CRS.
    """
    try:
        return _area(path, grid, layer)
    except LabelError as error:
        raise LabelError(f"chips.aoi: {str(error).removeprefix('label ')}") from None


def _area(path: str, grid: Grid, layer: str | None) -> shapely.Geometry:
    """What `read_aoi` returns; its errors speak of a label."""
    found = _read(path, None, lambda crs: extent(grid, whole_window(grid), crs, 0), layer=layer, key="chips.aoi_layer")
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


def _read(path: str, column: str | None, areas: Areas, *, layer: str | None, key: str) -> Features:
    """Read a vector file: whole when it is small, else the features within the areas."""
    with reading(path):
        source = VectorSource(path, layer, key)
        known = areas(source.crs()) if source.filtered else None
        if known is None:
            return source.read(column, None)
        if source.in_one_go:
            low, high = np.min(known, axis=0), np.max(known, axis=0)
            known = [(low[0], low[1], high[2], high[3])]
        found = joined([source.read(column, one) for one in known])
        if not len(found.geometries):
            # None is near: whether coordinates are of the declared CRS at all, the others tell.
            found = dataclasses.replace(found, bounds=source.bounds())
        return found


def _bounds(geometries: Geometries) -> Bounds:
    low_x, low_y, high_x, high_y = shapely.total_bounds(geometries).tolist() if len(geometries) else [math.nan] * 4
    return low_x, low_y, high_x, high_y


def _in_pixels(
    path: str, parts: Geometries, owner: npt.NDArray[np.int64], found: Features, grid: Grid, reach: float
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
