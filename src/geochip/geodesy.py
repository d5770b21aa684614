"""Going around the earth: longitude is cyclic, and a map of it has an edge where the earth has none.

Who compares places by their numbers alone finds 179.99 and -179.99 degrees a world apart. Outlines in degrees are
therefore cut at 180 degrees (RFC 7946, section 3.1.9), and what is drawn on a map that repeats itself is drawn wherever
it shows (see `period_of`).
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely

_TURN = 360.0
# Points along each side of an outline that goes over 180 degrees or around a pole; two of them lie less than 180
# degrees apart, even on a map of the whole earth.
_SIDE_POINTS = 32
# Pieces narrower than this, in degrees, are what rounding leaves: a tenth of a millimetre.
_SLIVER = 1e-9
# Where it is tried whether a step to the east is as long everywhere: (longitude, latitude), in 360ths of a turn.
_TRIED = np.array([(lon, lat) for lat in (0.0, 30.0) for lon in (-150.0, -90.0, -30.0, 30.0, 90.0, 150.0)])


@lru_cache(maxsize=64)
def to_lon_lat(crs: str) -> pyproj.Transformer:
    """From x and y in a CRS to degrees of longitude and latitude."""
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def outlines(corners: npt.NDArray[np.float64], crs: str) -> npt.NDArray[Any]:
    """Outlines on the earth.

    Args:
        corners: (n, 4, 2) x and y of each one's corners, in their order around it.
        crs: what they are in.

    Returns:
        (n,) polygons in EPSG:4326 with longitudes of -180 to 180 degrees; MultiPolygons where one goes over 180
        degrees, cut there; None where a CRS or a place in it has nothing to do with the earth.
    """
    found = np.full(len(corners), None, object)
    try:
        transformer = to_lon_lat(crs)
        lon, lat = transformer.transform(corners[..., 0], corners[..., 1])
    except pyproj.exceptions.ProjError:
        return found  # a local grid
    # NaN for an outline without a place, infinite where the projection has no meaning.
    known = np.flatnonzero((np.isfinite(lon) & np.isfinite(lat)).all(axis=1))
    lon, lat = lon[known], lat[known]
    found[known] = shapely.polygons(np.stack([lon, lat], axis=-1))
    around = (np.ptp(lon, axis=1) >= _TURN / 2) | (np.abs(lon).max(axis=1) > _TURN / 2)
    for number in known[around]:
        found[number] = _cut(_unrolled(corners[number], transformer))
    return found


def _unrolled(corners: npt.NDArray[np.float64], transformer: pyproj.Transformer) -> shapely.Polygon | None:
    """An outline whose longitudes go on beyond 180 degrees; one that holds a pole reaches up to it all around."""
    share = (np.arange(_SIDE_POINTS) / _SIDE_POINTS)[:, None]
    sides = [start + (stop - start) * share for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    lon, lat = transformer.transform(*np.concatenate(sides).T)
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        return None
    lon, lat = np.unwrap(np.append(lon, lon[0]), period=_TURN), np.append(lat, lat[0])
    if abs(lon[-1] - lon[0]) < _TURN / 2:
        return shapely.Polygon(np.column_stack([lon, lat])[:-1:_SIDE_POINTS])
    pole = math.copysign(90.0, lat.mean())
    return shapely.Polygon([*zip(lon, lat, strict=True), (lon[-1], pole), (lon[0], pole)])


def _cut(polygon: shapely.Polygon | None) -> shapely.Geometry | None:
    """The pieces of a polygon within -180 to 180 degrees, each brought there; None when there are none."""
    if polygon is None:
        return None
    low, south, high, north = polygon.bounds
    valid = shapely.make_valid(polygon)
    pieces = []
    for turn in range(math.floor((low + 180) / _TURN), math.ceil((high + 180) / _TURN)):
        strip = shapely.box(_TURN * turn - 180, south, _TURN * turn + 180, north)
        pieces += list(shapely.get_parts(_moved(shapely.intersection(valid, strip), -turn)))
    pieces = [piece for piece in pieces if piece.geom_type == "Polygon" and np.ptp(piece.bounds[::2]) > _SLIVER]
    # Together: what goes all the way around meets its own beginning.
    return shapely.union_all(pieces) if pieces else None


def cut_at_180(geometry: shapely.Geometry) -> shapely.Geometry | None:
    """A geometry in degrees, less than 180 wide, whose vertices lie on both sides of 180 degrees, cut there.

    Args:
        geometry: polygons, each vertex at -180 to 180 degrees.

    Returns:
        Polygons in EPSG:4326; the same when it does not go over 180 degrees.
    """
    low, _, high, _ = shapely.bounds(geometry).tolist()
    if high - low < _TURN / 2:
        return geometry
    rolled = shapely.transform(geometry, lambda xy: xy + np.column_stack([_TURN * (xy[:, 0] < 0), np.zeros(len(xy))]))
    pieces = [piece for part in shapely.get_parts(rolled) if (piece := _cut(part)) is not None]
    return shapely.union_all(pieces) if pieces else None


def rolled_together(on_earth: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Outlines in degrees, brought side by side where they lie around 180 degrees.

    Args:
        on_earth: (n,) outlines as of `outlines`, without None.

    Returns:
        (n,) the same, with longitudes up to 360 degrees if that makes the whole of them narrower.
    """
    parts, owner = shapely.get_parts(on_earth, return_index=True)
    bounds = shapely.bounds(parts)
    if not len(parts) or np.ptp(bounds[:, [0, 2]]) < _TURN / 2:
        return on_earth
    west = (bounds[:, 0] + bounds[:, 2]) / 2 < 0
    moved = bounds[:, [0, 2]] + _TURN * west[:, None]
    if np.ptp(moved) >= np.ptp(bounds[:, [0, 2]]):
        return on_earth
    parts = parts.copy()
    parts[west] = _moved(parts[west], 1)
    return np.asarray(shapely.multipolygons(parts, indices=owner), object)


def _moved(geometries: Any, turns: int) -> Any:
    """Geometries in degrees, so many turns further east."""
    return shapely.transform(geometries, lambda xy: xy + np.array([_TURN * turns, 0.0]))


def period(crs: pyproj.CRS) -> float | None:
    """After which step in x a CRS comes to the same place again.

    Returns:
        360 for degrees; the length of the equator on the map for a cylindrical projection such as Web Mercator, which
        is as wide everywhere; None for all others: they have an edge, or no repetition.
    """
    if crs.is_geographic:
        return round(math.tau / crs.axis_info[0].unit_conversion_factor, 9)
    geodetic = crs.geodetic_crs
    if not crs.is_projected or geodetic is None:
        return None
    degree = round(math.tau / geodetic.axis_info[0].unit_conversion_factor, 9) / _TURN
    try:
        transformer = pyproj.Transformer.from_crs(geodetic, crs, always_xy=True)
        lon, lat = degree * _TRIED.T
        start, stop = transformer.transform(lon, lat)[0], transformer.transform(lon + degree, lat)[0]
    except pyproj.exceptions.ProjError:
        return None
    if not (np.isfinite(start) & np.isfinite(stop)).all():
        return None
    steps = stop - start
    usual = float(np.median(steps))
    # The edge of the map lies between two of them, or nowhere.
    same = np.abs(steps - usual) <= 1e-9 * abs(usual)
    return abs(usual) * _TURN if same.sum() >= len(steps) - 2 else None


@lru_cache(maxsize=64)
def period_of(crs: str) -> float | None:
    """The same of a CRS as a scene names it; None for one that PROJ does not know."""
    try:
        return period(pyproj.CRS(crs))
    except pyproj.exceptions.CRSError:
        return None
