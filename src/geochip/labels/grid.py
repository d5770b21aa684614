"""The pixel grid of a scene, and coordinate reference systems in relation to it."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyproj
from affine import Affine

from geochip.config import RASTER_SUFFIXES
from geochip.geodesy import period
from geochip.labels.errors import LabelError, one_line
from geochip.labels.geojson import document
from geochip.windows import Window

Bounds = tuple[float, float, float, float]
"""(x smallest, y smallest, x largest, y largest)"""

# A straight edge in the label's CRS is a slightly bent one in the scene's: features so many pixels away are read too.
MARGIN = 64

# Windows whose corners lie in the same square of so many pixels are neighbours.
_CELL = 1024


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The pixels of a scene."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    transform: Affine
    """From (column, row) to (x, y), pixel corners."""
    crs: str | None
    """Coordinate reference system as PROJ understands it; None when the scene has none."""

    def to_pixels(self, xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Points (n, 2) x, y of the scene's CRS as (n, 2) column, row."""
        a, b, c, d, e, f = self.transform[:6]
        # The origin is taken off first: at 15 digits, that keeps a pixel's border where it is.
        x, y = xy[:, 0] - c, xy[:, 1] - f
        if b == d == 0:
            return np.column_stack((x / a, y / e))
        area = a * e - b * d
        return np.column_stack(((e * x - b * y) / area, (a * y - d * x) / area))


def label_crs(path: str) -> pyproj.CRS | None:
    """The CRS that a label file declares at its top.

    Returns:
        The CRS; None when the file declares that it has none ("crs": null), or when only GDAL can tell: for a raster,
        and for all vector files but GeoJSON.

    Raises:
        LabelError: when the file is missing or names a CRS that PROJ does not know.
    """
    if is_raster(path) or not is_geojson(path):
        return None
    key = declared_crs(path, None)
    return None if key is None else known_crs(key)


def is_geojson(path: str) -> bool:
    """Whether a file is one document of GeoJSON."""
    top = document(path)
    return top is not None and top.geojson


def is_raster(path: str) -> bool:
    """Whether a label is a raster of class values, by its name."""
    return Path(path).suffix.lower() in RASTER_SUFFIXES


def declared_crs(path: str, of_gdal: str | None) -> str | None:
    """The CRS of a vector file, as a key for `known_crs`.

    Args:
        path: the file; a GeoJSON says itself what it is in.
        of_gdal: what GDAL found, for all other files.

    Raises:
        LabelError: when the file is missing or names a CRS that PROJ does not know.
    """
    top = document(path)
    key = None if of_gdal is None else json.dumps(of_gdal)
    if top is not None and top.geojson:
        key = top.crs
    if key is None:
        return None
    try:
        known_crs(key)
    except (pyproj.exceptions.CRSError, TypeError, AttributeError):
        raise LabelError(
            f"label {path} is in an unknown CRS: {json.loads(key)!r}; write one that PROJ knows, such as EPSG:32611"
        ) from None
    return key


@functools.lru_cache
def known_crs(key: str) -> pyproj.CRS:
    """The CRS of a key of `declared_crs`; looking one up takes longer than drawing a label."""
    return pyproj.CRS.from_user_input(json.loads(key))


@functools.lru_cache
def same_crs(one: str, other: str) -> bool:
    """Whether two CRSs, each as a key of `declared_crs`, have the same coordinates, x before y."""
    return bool(known_crs(one).equals(known_crs(other), ignore_axis_order=True))


@functools.lru_cache
def _transformer(source: str, target: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(known_crs(source), known_crs(target), always_xy=True)


@functools.lru_cache
def _period_of_key(key: str) -> float | None:
    return period(known_crs(key))


def crs_period(crs: str) -> float | None:
    """After which step in x a scene's CRS comes to the same place again; None for one that does not."""
    return _period_of_key(json.dumps(crs))


def crs_name(key: str) -> str:
    """A short name for a text: EPSG:4326 where there is one."""
    return known_crs(key).to_string()


def without_crs(path: str, scene: str) -> LabelError:
    """What to say of a vector file without a CRS whose scene is in one."""
    if is_geojson(path):
        how = 'leave its "crs": null out where it is in longitude and latitude, or name its CRS there'
    else:
        how = "assign the one that it was drawn in (ogr2ogr -a_srs)"
    return LabelError(f"label {path} has no CRS while the image is in {scene}; {how}")


def scene_transform(
    path: str, declared: str | None, grid: Grid, bounds: Bounds
) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """What takes points of a vector file to the CRS of a scene: (n, 2) x, y to (n, 2) x, y.

    Args:
        path: the file, for errors.
        declared: its CRS, as a key.
        grid: the scene's.
        bounds: of its coordinates; NaN or infinite when there are none.

    Raises:
        LabelError: for a CRS on one side only, coordinates that cannot be of the declared CRS, and CRSs that PROJ
            cannot relate.
    """
    if not np.isfinite(bounds).any():
        # Nothing is to be drawn, wherever it may be.
        return _unchanged
    if declared is None and grid.crs is not None:
        raise without_crs(path, grid.crs)
    if declared is not None and grid.crs is None:
        how = "gdal_edit.py -a_srs -a_ullr" if grid.transform == Affine.identity() else "gdal_edit.py -a_srs"
        raise LabelError(
            f"the image has no CRS while label {path} is in {crs_name(declared)}; assign one to the image ({how})"
        )
    if declared is None or grid.crs is None:
        return _unchanged
    if known_crs(declared).is_geographic and np.abs(bounds)[np.isfinite(bounds)].max(initial=0) > 360:
        raise LabelError(
            f"label {path} has coordinates such as ({bounds[0]:.6g}, {bounds[1]:.6g}), which are no degrees, but is in "
            f"{crs_name(declared)}; name its true CRS in the file"
        )
    key = json.dumps(grid.crs)
    if same_crs(declared, key):
        # Not even the rounding of a null transformation may move a vertex over a pixel's centre.
        return _unchanged
    try:
        transformer = _transformer(declared, key)
    except pyproj.exceptions.ProjError as error:
        raise LabelError(
            f"label {path} is in {crs_name(declared)}, which PROJ cannot relate to the image's CRS "
            f"({one_line(error)}); give both one that it can"
        ) from None

    def project(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        projected = np.column_stack(transformer.transform(xy[:, 0], xy[:, 1]))
        if not np.isfinite(projected).all():
            raise LabelError(
                f"label {path} has coordinates outside of what {crs_name(declared)} can be turned into {grid.crs} for"
            )
        return projected

    return project


def _unchanged(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return xy


def whole_window(grid: Grid) -> Window:
    """The window that a scene is."""
    return Window(row_off=0, col_off=0, height=grid.height, width=grid.width)


def gathered(grid: Grid, windows: Sequence[Window] | None) -> list[Window]:
    """A few rectangles of a scene that hold all of the windows, as far as those lie in it; None: the whole scene.

    Windows that lie scattered over a large scene are gathered with their neighbours; where that saves little, there is
    one rectangle.
    """
    if windows is None:
        return [whole_window(grid)]
    cells: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        inside = window.intersection(whole_window(grid))
        if inside is not None:
            cells.setdefault((inside.row_off // _CELL, inside.col_off // _CELL), []).append(inside)
    rectangles = [_around(members) for members in cells.values()]
    if len(rectangles) < 2:
        return rectangles or [whole_window(grid)]
    around = _around(rectangles)
    apart = sum(one.height * one.width for one in rectangles)
    return [around] if 2 * apart > around.height * around.width else rectangles


def _around(windows: Sequence[Window]) -> Window:
    row_off, col_off = min(window.row_off for window in windows), min(window.col_off for window in windows)
    return Window(
        row_off=row_off,
        col_off=col_off,
        height=max(window.row_stop for window in windows) - row_off,
        width=max(window.col_stop for window in windows) - col_off,
    )


def pixel_bounds(grid: Grid, window: Window, margin: float) -> Bounds:
    """Bounds of a window, so many pixels wider at each side, in the scene's CRS."""
    rows = (window.row_off - margin, window.row_stop + margin)
    cols = (window.col_off - margin, window.col_stop + margin)
    corners = np.array([grid.transform @ (col, row) for col in cols for row in rows])
    low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return low[0], low[1], high[0], high[1]


def extent(
    grid: Grid, window: Window, declared: str | None, reach: float, margin: float = MARGIN
) -> list[Bounds] | None:
    """Where in a vector file's CRS the features lie that a window can show.

    Args:
        grid: the scene's.
        window: of its pixels.
        declared: the file's CRS, as a key.
        reach: how far a feature may be drawn beyond itself, in pixels.
        margin: more of them, for straight edges that are bent ones in the scene's CRS.

    Returns:
        Bounds, drawn too large rather than too small, and once more wherever the file may count longitudes otherwise;
        None when it cannot be told: then everything is to be read.
    """
    bounds = pixel_bounds(grid, window, reach + margin)
    if declared is None or grid.crs is None:
        return [bounds]
    key, step = json.dumps(grid.crs), _period_of_key(declared)
    if not same_crs(declared, key):
        try:
            bounds = _transformer(key, declared).transform_bounds(*bounds)
        except pyproj.exceptions.ProjError:
            return None
        if not np.isfinite(bounds).all():
            return None
    west, south, east, north = bounds
    if step is None:
        return [bounds] if west < east else None
    if east < west:
        # Over the 180th meridian.
        east += step
    # From -180 to 180 degrees, or from 0 to 360: and beyond, where the scene itself lies there.
    turned = [(west + turn, south, east + turn, north) for turn in (-step, 0.0, step)]
    return [one for one in turned if one == (west, south, east, north) or (one[2] >= -step / 2 and one[0] <= step)]


def ground_metres(grid: Grid) -> npt.NDArray[np.float64]:
    """How long a step of one pixel is on the ground, in metres at the scene's centre.

    Returns:
        (2, 2) array that turns a column vector (columns, rows) into one of (east, north).

    Raises:
        LabelError: when the scene has no CRS, or one that PROJ cannot relate to the ground.
    """
    try:
        if grid.crs is None:
            raise LabelError("the image has no CRS")
        crs = known_crs(json.dumps(grid.crs))
        geodetic = crs.geodetic_crs
        if geodetic is None:
            raise LabelError(f"the image's CRS is a local one ({crs.name})")
        transformer = pyproj.Transformer.from_crs(crs, geodetic, always_xy=True)
        col, row = grid.width / 2, grid.height / 2
        points = [grid.transform @ point for point in ((col, row), (col + 1, row), (col, row + 1))]
        lon, lat = transformer.transform(*np.transpose(points))
        azimuth, _, metres = pyproj.Geod(ellps="WGS84").inv(lon[[0, 0]], lat[[0, 0]], lon[1:], lat[1:])
    except (LabelError, pyproj.exceptions.ProjError) as error:
        raise LabelError(
            f"labels.buffer_units: metres cannot be told in pixels here ({one_line(error)}); use pixels, or assign a "
            "CRS to the image (gdal_edit.py -a_srs)"
        ) from None
    azimuth = np.radians(azimuth)
    return np.stack((np.sin(azimuth) * metres, np.cos(azimuth) * metres))
