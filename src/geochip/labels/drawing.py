"""Drawing shapes on pixels, such that a pixel's class does not depend on the window that is asked for.

Where an edge passes through a pixel's centre, the last bit of a coordinate decides; drawn relative to another origin,
the pixel may fall to the other side. So the scene is divided into tiles that depend on its size alone, each is drawn as
a whole, and windows are put together from tiles. A small scene is one tile.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio.features
import shapely
from affine import Affine

from geochip.config import IGNORE
from geochip.labels.cyclic import Geometries
from geochip.labels.grid import Grid
from geochip.windows import Window

# A scene of up to so many pixels is one tile; of others, a tile has sides of _TILE.
_WHOLE_PIXELS = 2**20
_TILE = 256
# Tiles that are kept for the next window: 16 MiB.
_KEPT = 256
# Polygons of more vertices are cut off at the tile's edge, so that not every tile goes over all of them.
_LARGE = 2000
_POLYGON = 3

Tile = npt.NDArray[np.uint8]


class Tiles:
    """Windows of a raster that is made tile by tile.

    Args:
        grid: the scene's.
        make: what makes a tile of it.
        keep_all: whether all of the tiles will be needed, and may be kept.
    """

    def __init__(self, grid: Grid, make: Callable[[Window], Tile], *, keep_all: bool) -> None:
        self._height, self._width = grid.height, grid.width
        self._side = max(grid.height, grid.width) if grid.height * grid.width <= _WHOLE_PIXELS else _TILE
        self._make = make
        self._kept = None if keep_all else _KEPT
        self._tiles: OrderedDict[tuple[int, int], Tile] = OrderedDict()

    def read(self, window: Window) -> Tile:
        """A window's pixels; 255 outside the scene."""
        found = np.full((window.height, window.width), IGNORE, np.uint8)
        for tile in self._touching(window):
            shared = tile.intersection(window)
            assert shared is not None
            found[shared.relative_to(window).slices] = self._tile(tile)[shared.relative_to(tile).slices]
        return found

    def _touching(self, window: Window) -> Iterator[Window]:
        side, height, width = self._side, self._height, self._width
        for row in range(window.row_off // side * side, min(window.row_stop, height), side):
            for col in range(window.col_off // side * side, min(window.col_stop, width), side):
                yield Window(row_off=row, col_off=col, height=min(side, height - row), width=min(side, width - col))

    def _tile(self, tile: Window) -> Tile:
        key = (tile.row_off, tile.col_off)
        if key not in self._tiles:
            self._tiles[key] = self._make(tile)
            if self._kept is not None and len(self._tiles) > self._kept:
                self._tiles.popitem(last=False)
        self._tiles.move_to_end(key)
        return self._tiles[key]


class Canvas:
    """Draws the shapes of a scene.

    Args:
        geometries: (n,) in pixel coordinates (x is the column, y the row); a later one is drawn over an earlier one.
        values: (n,) what each is drawn with.
        y_up: whether y grows against the rows on the scene's map, as it mostly does. An edge that runs just through
            the centres of a row takes them in when it is the lower one on the map: so they are drawn as on the map.
        all_touched: whether a shape covers each pixel that it touches, and not those alone whose centre it holds.
    """

    def __init__(
        self, geometries: Geometries, values: npt.NDArray[np.uint8], *, y_up: bool, all_touched: bool = False
    ) -> None:
        self._geometries, self._values, self._all_touched = geometries, values, all_touched
        self._sign = -1 if y_up else 1
        self._tree = shapely.STRtree(geometries)

    def draw(self, window: Window, size: int | None = None) -> Tile:
        """Draw a window of the scene, on `size` x `size` pixels when that is given; 0 where no shape is."""
        label = np.zeros((window.height, window.width) if size is None else (size, size), np.uint8)
        tall, wide = window.height / label.shape[0], window.width / label.shape[1]
        # A pixel more: a shape that ends at the border may touch the pixels behind it.
        box = shapely.box(
            window.col_off - 1 - wide, window.row_off - 1 - tall, window.col_stop + 1 + wide, window.row_stop + 1 + tall
        )
        chosen = np.sort(self._tree.query(box))
        geometries, values = _cut_large(self._geometries[chosen], self._values[chosen], box)
        if len(geometries):
            rasterio.features.rasterize(
                zip(_as_geojson(geometries, self._sign), values.tolist(), strict=True),
                out=label,
                transform=Affine(wide, 0, window.col_off, 0, self._sign * tall, self._sign * window.row_off),
                all_touched=self._all_touched,
                skip_invalid=False,
            )
        return label


def _cut_large(
    geometries: Geometries, values: npt.NDArray[np.uint8], box: shapely.Geometry
) -> tuple[Geometries, npt.NDArray[np.uint8]]:
    """The same shapes, polygons with very many vertices only as far as they lie in the box."""
    large = (shapely.get_num_coordinates(geometries) > _LARGE) & (shapely.get_type_id(geometries) == _POLYGON)
    if not large.any():
        return geometries, values
    geometries = geometries.copy()
    geometries[large] = shapely.intersection(geometries[large], box)
    geometries, owner = shapely.get_parts(geometries, return_index=True)
    # Where a polygon only touches the box, lines and points are left.
    drawn = ~(large[owner] & (shapely.get_type_id(geometries) != _POLYGON)) & ~shapely.is_empty(geometries)
    return geometries[drawn], values[owner[drawn]]


def _as_geojson(geometries: Geometries, sign: int) -> list[dict[str, Any]]:
    """What rasterio draws, with each y times `sign`.

    Made at once: asking each shapely geometry for it takes as long as the drawing.
    """
    polygons = shapely.get_type_id(geometries) == _POLYGON
    found: list[Any] = [None] * len(geometries)
    rings, owner = shapely.get_rings(geometries[polygons], return_index=True)
    stops = np.cumsum(shapely.get_num_coordinates(rings)).tolist()
    points = (shapely.get_coordinates(rings) * (1, sign)).tolist()
    places = np.flatnonzero(polygons).tolist()
    start = 0
    for stop, number in zip(stops, owner.tolist(), strict=True):
        place = places[number]
        if found[place] is None:
            found[place] = {"type": "Polygon", "coordinates": []}
        found[place]["coordinates"].append(points[start:stop])
        start = stop
    for place in np.flatnonzero(~polygons).tolist():
        found[place] = shapely.geometry.mapping(shapely.transform(geometries[place], lambda xy: xy * (1, sign)))
    return found
