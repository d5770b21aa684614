"""True areas of pixels: square metres on the ellipsoid, whatever the units and the distortion of a CRS.

A pixel of Web Mercator is four times as large on the map as on the ground at 60 degrees North; one of degrees has no
size in metres at all; UTM is off by 0.08 %. So pixels are measured on the ellipsoid (WGS 84): their corners become
points in space, and each pixel a quadrangle of straight edges, cut into parts small enough that the ellipsoid is flat
to 1e-6. That is exact for any CRS, at poles and across 180 degrees as well. Areas change smoothly over a scene: they
are measured on a grid that is refined until what lies between is known to the same 1e-6, and interpolated.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import xarray as xr
from affine import Affine

from geochip.config import IGNORE
from geochip.errors import InputError

Floats = npt.NDArray[np.float64]

# A quadrangle of this side is flat to (side / radius of the earth)² / 12.
_FLAT_METRES = 20_000.0
_EXACT = 1e-6
# Measured at once, and read at once.
_CELLS = 2**16
_BLOCK = 2048


class PixelAreas:
    """The areas of a grid's pixels, in square metres."""

    def __init__(self, crs: str, transform: Affine, height: int, width: int) -> None:
        """Measure a grid.

        Args:
            crs: as "EPSG:32611" or WKT.
            transform: from (column, row) to (x, y); rotated ones are allowed.
            height: rows.
            width: columns.

        Raises:
            InputError: when nothing relates the CRS to the earth.
        """
        self._transform = transform
        try:
            self._crs = pyproj.CRS(crs)
            self._to_lon_lat = pyproj.Transformer.from_crs(self._crs, "EPSG:4326", always_xy=True)
        except pyproj.exceptions.ProjError as error:
            raise InputError(
                f"nothing relates CRS {crs!r} to the earth ({error}), so its pixels have no area in square metres; "
                "multiply their number by what you know of them"
            ) from None
        self._rows, self._cols = _few(height), _few(width)
        while True:
            self._nodes = self._measure(self._rows, self._cols)
            rows, cols = _between(self._rows), _between(self._cols)
            down, across = self._misfit(rows, self._cols), self._misfit(self._rows, cols)
            if down:
                self._rows = np.union1d(self._rows, rows)
            if across:
                self._cols = np.union1d(self._cols, cols)
            if not down and not across:
                break

    def _misfit(self, rows: Floats, cols: Floats) -> bool:
        """Whether some pixels are measured as something else than what is interpolated there."""
        if not rows.size or not cols.size:
            return False
        measured = self._measure(rows, cols)
        apart = np.abs(measured - self._interpolate(rows, cols))
        return bool((apart > _EXACT * self._nodes.max()).any())

    def _measure(self, rows: Floats, cols: Floats) -> Floats:
        """Areas of the pixels of some rows and columns, (row, column)."""
        step = max(1, _CELLS // len(cols))
        parts = [self._measured(rows[start : start + step], cols) for start in range(0, len(rows), step)]
        return np.concatenate(parts)

    def _measured(self, rows: Floats, cols: Floats) -> Floats:
        corners = self._space(rows, cols, np.array([0.0, 1.0]))
        side = max(float(np.max(np.linalg.norm(np.diff(corners, axis=axis), axis=-1))) for axis in (2, 3))
        parts = int(np.clip(np.ceil(side / _FLAT_METRES), 1, 64))
        if parts > 1:
            corners = self._space(rows, cols, np.linspace(0, 1, parts + 1))
        # Half the cross product of its diagonals is the area of any quadrangle.
        one = corners[:, :, 1:, 1:] - corners[:, :, :-1, :-1]
        other = corners[:, :, 1:, :-1] - corners[:, :, :-1, 1:]
        areas: Floats = np.linalg.norm(np.cross(one, other), axis=-1).sum(axis=(2, 3)) / 2
        return areas

    def _space(self, rows: Floats, cols: Floats, at: Floats) -> Floats:
        """Points in pixels, at some shares of their height and width: (row, column, down, across, xyz) in metres."""
        row, col, down, across = np.meshgrid(rows, cols, at, at, indexing="ij", copy=False)
        a, b, c, d, e, f = tuple(self._transform)[:6]
        row, col = row + down, col + across
        lon, lat = self._to_lon_lat.transform(a * col + b * row + c, d * col + e * row + f)
        if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
            raise InputError(
                f"some pixels lie where CRS {self._crs.name!r} has no place on the earth, and so have no area; cut "
                "them off (scene.isel(x=..., y=...))"
            )
        lon, lat = np.radians(lon), np.radians(np.clip(lat, -90, 90))
        ellipsoid = pyproj.Geod(ellps="WGS84")
        normal = ellipsoid.a / np.sqrt(1 - ellipsoid.es * np.sin(lat) ** 2)
        return np.stack(
            [
                normal * np.cos(lat) * np.cos(lon),
                normal * np.cos(lat) * np.sin(lon),
                normal * (1 - ellipsoid.es) * np.sin(lat),
            ],
            axis=-1,
        )

    def _interpolate(self, rows: Floats, cols: Floats) -> Floats:
        areas: Floats = _weights(rows, self._rows) @ self._nodes @ _weights(cols, self._cols).T
        return areas

    def window(self, rows: slice, cols: slice) -> Floats:
        """Areas of a window, (row, column)."""
        return self._interpolate(
            np.arange(rows.start, rows.stop, dtype=np.float64), np.arange(cols.start, cols.stop, dtype=np.float64)
        )


def _weights(places: Floats, nodes: Floats) -> Floats:
    """The share of each node in what is interpolated linearly at some places, (place, node)."""
    return np.stack([np.interp(places, nodes, one) for one in np.eye(len(nodes))], axis=1)


def _few(length: int) -> Floats:
    """Where measuring begins: the ends and the middle."""
    return np.unique(np.array([0, (length - 1) // 2, length - 1], np.float64))


def _between(places: Floats) -> Floats:
    """The pixels halfway between those that are measured."""
    middle = (places[1:] + places[:-1]) // 2
    found: Floats = np.setdiff1d(middle, places)
    return found


@xr.register_dataset_accessor("geochip")  # type: ignore[no-untyped-call]
class GeochipAccessor:
    """What geochip knows of a predicted scene, as `scene.geochip` on what `geochip.open_scene` gives."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def area(self) -> dict[str, float]:
        """Measure the ground that each predicted class covers.

        Returns:
            Square metres on the ellipsoid by class name; pixels without data count for none. Exact to 1e-5, at any
            latitude and in any CRS. A part of a scene that was cut out along x and y is measured as it is.

        Raises:
            InputError: for a scene without a CRS.
        """
        names = list(self._dataset.attrs["class_names"])
        total = np.zeros(IGNORE + 1)
        values = self._dataset["class"].transpose("y", "x")
        # Block by block: memory does not grow with the scene.
        for rows, cols in _blocks(*values.shape):
            weights = self._areas.window(rows, cols)
            total += np.bincount(values[rows, cols].values.ravel(), weights.ravel(), minlength=len(total))
        return dict(zip(names, total.tolist(), strict=False))

    def pixel_area(self) -> xr.DataArray:
        """Measure each pixel.

        Returns:
            (y, x) float64, square metres on the ellipsoid: for sums of your own, such as of probabilities. Held in
            memory whole; `area` is not.
        """
        values = self._dataset["class"].transpose("y", "x")
        height, width = values.shape
        areas = self._areas.window(slice(0, height), slice(0, width))
        coords = {name: values.coords[name] for name in ("y", "x") if name in values.coords}
        return xr.DataArray(areas, coords, ("y", "x"), "pixel_area", {"long_name": "area of a pixel", "units": "m2"})

    @cached_property
    def _areas(self) -> PixelAreas:
        # Registers the .rio accessor.
        import rioxarray  # noqa: F401

        crs = self._dataset.rio.crs
        if crs is None:
            raise InputError(
                f"scene {self._dataset.attrs.get('scene_id', '')!r} has no CRS, so its pixels have no area in square "
                "metres; multiply their number by what you know of them, or assign a CRS to the image "
                "(gdal_edit.py -a_srs) and predict it again"
            )
        values = self._dataset["class"].transpose("y", "x")
        return PixelAreas(crs.to_wkt(), _transform_of(self._dataset), *values.shape)


def _transform_of(dataset: xr.Dataset) -> Affine:
    """Where the pixels are: by their coordinates where they have some, since a part may have been cut out."""
    transform: Affine = dataset.rio.transform(recalc=False)
    if "x" not in dataset.coords or "y" not in dataset.coords:
        return transform
    (left, a), (top, e) = (
        _first_edge(dataset[name].values, size) for name, size in (("x", transform.a), ("y", transform.e))
    )
    return Affine(a, 0, left, 0, e, top)


def _first_edge(centres: npt.NDArray[Any], size: float) -> tuple[float, float]:
    if len(centres) > 1:
        size = float(centres[-1] - centres[0]) / (len(centres) - 1)
    return float(centres[0]) - size / 2, size


def _blocks(height: int, width: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, height, _BLOCK):
        for col in range(0, width, _BLOCK):
            yield slice(row, min(row + _BLOCK, height)), slice(col, min(col + _BLOCK, width))
