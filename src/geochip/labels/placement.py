"""Whether a vector file lies where its scenes lie: axes the wrong way round, or a wrong CRS, draw nothing at all.

What is told here takes a look at bounds. That features within the bounds miss a scene all the same shows when they are
drawn (`SceneLabel.missed`).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyproj
import shapely
from affine import Affine

from geochip.labels.errors import LabelError
from geochip.labels.geojson import LON_LAT, first_features
from geochip.labels.grid import (
    Bounds,
    Grid,
    crs_name,
    extent,
    is_geojson,
    is_raster,
    known_crs,
    whole_window,
)
from geochip.labels.source import UNREADABLE, VectorSource

# In most data sets one of the first features meets its scene; of files up to so large they are looked at first.
_FIRST = 20
_SAMPLED_BYTES = 32 * 2**20
_SHOWN = 5
# Beyond these, numbers are no degrees, whoever counts them.
_DEGREES = 720

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A vector file, and the scene that it is to be drawn on."""

    path: str
    image: str
    grid: Grid
    reach: float = 0.0
    """How far a feature is drawn beyond itself, in pixels."""
    layer: str | None = None
    """Layer of the file that is drawn; None: the only one."""


@dataclass(frozen=True, kw_only=True)
class Miss:
    """A scene that no feature of its file meets."""

    what: str
    """What the file is: "label" or "chips.aoi"."""
    path: str
    image: str
    bounds: Bounds
    """Of all features."""
    scene: Bounds
    """Of the scene, in the same CRS."""
    crs: str
    """Its name; empty without one."""
    hint: str

    def __str__(self) -> str:
        return (
            f"{self.what} {self.path}: none of its features meets the image {self.image}: they lie within "
            f"{_shown(self.bounds)}, the image within {_shown(self.scene)} (x and y, "
            f"{f'in {self.crs}' if self.crs else 'without a CRS'}); {self.hint}"
        )


def find_misses(places: Mapping[K, Placed], *, what: str = "label") -> dict[K, Miss]:
    """Find the scenes that lie nowhere near their file's features.

    Args:
        places: each scene with its file. Of a file that several share, a scene that no feature meets is no miss as long
            as another one is met.
        what: what the files are, for the text.

    Returns:
        The misses, in the order of `places`. Files without features, rasters, files that cannot be read, and those that
        cannot be related to their scene are none: they are told where they are read.
    """
    files = {one.path: _File(one.path, one.layer) for one in places.values() if not is_raster(one.path)}
    near: dict[K, bool | None] = {
        key: files[one.path].is_near(one) if one.path in files else None for key, one in places.items()
    }
    met = {one.path for key, one in places.items() if near[key] is not False}
    return {
        key: files[one.path].miss(one, what)
        for key, one in places.items()
        if near[key] is False and one.path not in met
    }


def describe_miss(place: Placed, *, what: str = "label") -> str:
    """What to say of a scene that no feature met when they were drawn."""
    try:
        return str(_File(place.path, place.layer).miss(place, what))
    except (*UNREADABLE, LabelError):
        return f"{what} {place.path}: none of its features meets the image {place.image}"


def listed(misses: Iterable[Miss | str]) -> str:
    """Some misses, one a line."""
    texts = [str(one) for one in misses]
    more = [f"... and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else []
    return "\n".join([*texts[:_SHOWN], *more])


class _File:
    """A vector file, of which as little is read as will do."""

    def __init__(self, path: str, layer: str | None) -> None:
        self._path, self._layer = path, layer

    @cached_property
    def _source(self) -> VectorSource:
        return VectorSource(self._path, self._layer, "layer")

    @cached_property
    def crs(self) -> str | None:
        """Its CRS, as a key."""
        return self._source.crs()

    @cached_property
    def _first(self) -> list[Bounds]:
        if not is_geojson(self._path) or Path(self._path).stat().st_size > _SAMPLED_BYTES:
            return []
        return [tuple(one) for one in shapely.bounds(first_features(self._path, _FIRST)).tolist()]

    @cached_property
    def bounds(self) -> Bounds | None:
        """Of all features; None when there are none, or one that is nowhere."""
        return self._source.bounds()

    def is_near(self, place: Placed) -> bool | None:
        """Whether features may meet the scene; None when there are none, or when it cannot be told."""
        try:
            if (self.crs is None) != (place.grid.crs is None):
                return None
            areas = extent(place.grid, whole_window(place.grid), self.crs, place.reach)
            if areas is None:
                return None
            if any(_meet(one, area) for one in self._first for area in areas):
                return True
            return None if self.bounds is None else any(_meet(self.bounds, area) for area in areas)
        except (*UNREADABLE, LabelError):
            return None

    def miss(self, place: Placed, what: str) -> Miss:
        """What is to be said of a scene that lies elsewhere."""
        assert self.bounds is not None
        areas = extent(place.grid, whole_window(place.grid), self.crs, 0, margin=0)
        # Of the ways to count its longitudes, the one next to the features; where those are no degrees, the usual one.
        next_to = self.bounds[0] if max(map(abs, self.bounds)) <= _DEGREES else 0.0
        scene = min(areas or [(np.nan,) * 4], key=lambda area: abs(area[0] - next_to))
        return Miss(
            what=what,
            path=place.path,
            image=place.image,
            bounds=self.bounds,
            scene=scene,
            crs="" if self.crs is None else crs_name(self.crs),
            hint=self._hint(place),
        )

    def _hint(self, place: Placed) -> str:
        """What is probably wrong, as far as bounds tell."""
        west, south, east, north = self.bounds or (np.nan,) * 4
        if place.grid.transform == Affine.identity():
            return (
                "the image has no geotransform, its pixels count from (0, 0); give it one (gdal_edit.py -a_ullr), or a "
                "label in pixels"
            )
        if self._would_meet(place, self.crs, (south, west, north, east)):
            return "with x and y exchanged they would meet it; write x (longitude) before y (latitude)"
        own = None if place.grid.crs is None else json.dumps(place.grid.crs)
        for other in (LON_LAT, own):
            if other not in (None, self.crs) and self._would_meet(place, other, (west, south, east, north)):
                return f"taken as {crs_name(str(other))} they would meet it; name that as the file's CRS"
        return "correct its CRS, or name the file that belongs to the image; a scene without objects has an empty file"

    def _would_meet(self, place: Placed, crs: str | None, bounds: Bounds) -> bool:
        if crs is not None and known_crs(crs).is_geographic and np.abs(bounds).max() > 360:
            return False
        try:
            areas = extent(place.grid, whole_window(place.grid), crs, place.reach)
        except pyproj.exceptions.ProjError:
            return False
        return any(_meet(bounds, area) for area in areas or [])


def _meet(one: Any, other: Bounds) -> bool:
    return bool(one[0] <= other[2] and one[2] >= other[0] and one[1] <= other[3] and one[3] >= other[1])


def _shown(bounds: Bounds) -> str:
    west, south, east, north = bounds
    return f"({west:.9g}, {south:.9g}) to ({east:.9g}, {north:.9g})"
