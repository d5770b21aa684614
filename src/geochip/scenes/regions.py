"""Squares of ground that divide scenes: which pixels of a scene belong to which split.

The squares are those of one CRS in metres, counted from its origin, so that neighbouring and overlapping images share
them. In a scene whose rows and columns run along them their borders are moved to the nearest pixel; in any other one,
as a rotated grid or one in degrees, a square is a polygon and a pixel belongs to the square that its centre lies in.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyproj
import pyproj.exceptions
import shapely
from affine import Affine

from geochip.documents import as_document

Square = tuple[int, int]
"""Number of a square, east and north."""

RECORD = "squares"
"""Name of the attribute, of a table or a store, that keeps a division."""

# A straight border on the ground is a bent one in another CRS: it is drawn in so many pieces.
_PIECES = 8
_POLYGON = 3
_WHOLE = 1 - 1e-9


class PixelGrid(Protocol):
    """The pixels of a scene, and where they are."""

    @property
    def height(self) -> int:
        """Rows."""

    @property
    def width(self) -> int:
        """Columns."""

    @property
    def transform(self) -> Affine:
        """From (column, row) to (x, y), pixel corners."""

    @property
    def crs(self) -> str | None:
        """Coordinate reference system."""


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Which square of ground belongs to which split: what is kept of a division, in scenes.parquet and elsewhere."""

    crs: str
    """CRS of the squares; its unit is a metre."""
    side: float
    """Side of a square, in metres."""
    home: str
    """Split of all ground that is no other split's: the one that is trained on."""
    apart: float
    """Ground of `home` within so many metres of another split's squares is left out of training."""
    owners: dict[str, list[Square]]
    """The squares of each split."""

    def __post_init__(self) -> None:
        numbers = [square for squares in self.owners.values() for square in squares]
        if not (0 < self.side < np.inf and 0 <= self.apart < np.inf):
            raise ValueError("side must be greater than 0, apart at least 0")
        if self.home not in self.owners or len(set(numbers)) != len(numbers):
            raise ValueError("each square must belong to one split, and home must be one of them")
        try:
            pyproj.CRS(self.crs)
        except pyproj.exceptions.CRSError:
            raise ValueError(f"crs is {self.crs!r}, which PROJ does not know") from None

    def to_json(self) -> dict[str, Any]:
        """For attributes of tables and stores."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str, remedy: str) -> "Squares":
        """What `to_json` gave.

        Raises:
            DamagedError: when it is something else.
        """
        return as_document(value, cls, where, remedy)

    @cached_property
    def _owner(self) -> dict[Square, str]:
        return {square: split for split, squares in self.owners.items() for square in squares}

    def inside(self, grid: PixelGrid) -> dict[str, list[Square]]:
        """The squares of each split that reach into a scene's bounds."""
        found: dict[str, list[Square]] = {}
        for square in squares_around(grid, self.crs, self.side):
            found.setdefault(self._owner.get(square, self.home), []).append(square)
        return found

    def count(self, grid: PixelGrid, split: str) -> int:
        """How many of a split's squares have pixels of a scene."""
        polygons = pixel_polygons(grid, self.crs, self._boxes(self.inside(grid).get(split, [])))
        parts = shapely.intersection(polygons, shapely.box(0, 0, grid.width, grid.height))
        return int(np.count_nonzero(shapely.area(parts)))

    def region(self, grid: PixelGrid, split: str, *, buffered: bool = False) -> shapely.Geometry | None:
        """The part of a scene that belongs to a split.

        Args:
            grid: the scene's pixels.
            split: the split.
            buffered: for `home`, without what lies within `apart` of other splits' squares.

        Returns:
            Polygons in pixel coordinates, x = column, y = row; empty when the split has nothing of the scene, None when
            it has all of it.
        """
        whole = shapely.box(0, 0, grid.width, grid.height)
        if split != self.home:
            own = self.inside(grid).get(split, [])
            region = shapely.intersection(whole, shapely.union_all(pixel_polygons(grid, self.crs, self._boxes(own))))
        else:
            reach = self.apart if buffered else 0.0
            around = squares_around(grid, self.crs, self.side, reach)
            others = [square for square in around if self._owner.get(square, split) != split]
            boxes = self._boxes(others) + np.array([-reach, -reach, reach, reach])
            region = shapely.difference(whole, shapely.union_all(pixel_polygons(grid, self.crs, boxes)))
        return None if shapely.area(region) >= whole.area * _WHOLE else _polygons_of(region)

    def _boxes(self, squares: Sequence[Square]) -> npt.NDArray[np.float64]:
        return boxes_of(squares, self.side)


def boxes_of(squares: Sequence[Square], side: float) -> npt.NDArray[np.float64]:
    """Squares as (n, 4) bounds: x and y smallest, x and y largest."""
    numbers = np.array(squares, np.float64).reshape(-1, 2)
    return np.hstack((numbers * side, (numbers + 1) * side))


def squares_around(grid: PixelGrid, crs: str, side: float, reach: float = 0.0) -> list[Square]:
    """The squares that meet a scene's bounds on the ground, widened by `reach` metres."""
    (east, north), (east_stop, north_stop) = _numbers(grid, crs, side, reach)
    return [(i, j) for i in range(east, east_stop) for j in range(north, north_stop)]


def count_around(grid: PixelGrid, crs: str, side: float) -> int:
    """How many squares `squares_around` lists."""
    (east, north), (east_stop, north_stop) = _numbers(grid, crs, side, 0.0)
    return (east_stop - east) * (north_stop - north)


def _numbers(grid: PixelGrid, crs: str, side: float, reach: float) -> tuple[Square, Square]:
    outline = shapely.segmentize(shapely.box(0, 0, grid.width, grid.height), max(grid.width, grid.height) / 16)
    cols_rows = shapely.get_coordinates(outline)
    a, b, c, d, e, f = grid.transform[:6]
    cols, rows = cols_rows.T
    xy = np.column_stack((a * cols + b * rows + c, d * cols + e * rows + f))
    if not _same(grid.crs, crs):
        xy = np.column_stack(_transformer(str(grid.crs), crs).transform(xy[:, 0], xy[:, 1]))
    # A border on a pixel's edge is rounded either way; a square too many does no harm.
    low = np.floor((xy.min(axis=0) - reach) / side - 1e-6).astype(int).tolist()
    high = np.floor((xy.max(axis=0) + reach) / side + 1e-6).astype(int).tolist()
    return (low[0], low[1]), (high[0] + 1, high[1] + 1)


def pixel_polygons(grid: PixelGrid, crs: str, boxes: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Rectangles on the ground as polygons of a scene's pixel coordinates, whether they lie in it or not.

    Args:
        grid: the scene's pixels.
        crs: of the rectangles.
        boxes: (n, 4) x and y smallest, x and y largest.
    """
    same = _same(grid.crs, crs)
    rings = _rings(boxes, 1 if same else _PIECES)
    to_pixels = _to_pixels(grid, None if same else crs)
    points = to_pixels(rings.reshape(-1, 2)).reshape(rings.shape)
    if same and grid.transform.b == grid.transform.d == 0:
        points = np.rint(points)
    return np.asarray(shapely.polygons(points), object)


def _rings(boxes: npt.NDArray[np.float64], pieces: int) -> npt.NDArray[np.float64]:
    """(n, 4 * pieces, 2): the outlines of boxes; where two share an edge they share its points, bit for bit."""
    x0, y0, x1, y1 = boxes.T[:, :, None]
    along = np.arange(pieces + 1) / pieces
    x, y = x0 * (1 - along) + x1 * along, y0 * (1 - along) + y1 * along
    sides = (
        (x[:, :-1], np.broadcast_to(y0, x[:, :-1].shape)),
        (np.broadcast_to(x1, y[:, :-1].shape), y[:, :-1]),
        (x[:, :0:-1], np.broadcast_to(y1, x[:, :0:-1].shape)),
        (np.broadcast_to(x0, y[:, :0:-1].shape), y[:, :0:-1]),
    )
    return np.concatenate([np.stack(side, axis=-1) for side in sides], axis=1)


def _to_pixels(grid: PixelGrid, crs: str | None) -> Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
    """What takes (n, 2) x, y in a CRS, None: the scene's, to (n, 2) column, row."""
    a, b, c, d, e, f = grid.transform[:6]
    area = a * e - b * d

    def convert(xy: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if crs is not None:
            xy = np.column_stack(_transformer(crs, str(grid.crs)).transform(xy[:, 0], xy[:, 1]))
            if _is_geographic(str(grid.crs)):
                # Longitudes are cyclic: those nearest to the scene are meant.
                middle = a * grid.width / 2 + b * grid.height / 2 + c
                xy[:, 0] += 360 * np.round((middle - xy[:, 0]) / 360)
        # The origin is taken off first: at 15 digits, that keeps a pixel's border where it is.
        x, y = xy[:, 0] - c, xy[:, 1] - f
        return np.column_stack(((e * x - b * y) / area, (a * y - d * x) / area))

    return convert


def _polygons_of(region: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a geometry, without the lines and points where polygons only touch."""
    parts = shapely.get_parts(shapely.get_parts([region]))
    polygons = parts[(shapely.get_type_id(parts) == _POLYGON) & ~shapely.is_empty(parts)]
    together: shapely.Geometry = shapely.normalize(shapely.multipolygons(polygons))
    return together


@lru_cache(maxsize=64)
def _same(one: str | None, other: str) -> bool:
    return one is not None and pyproj.CRS(one).equals(pyproj.CRS(other), ignore_axis_order=True)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(source, target, always_xy=True)


@lru_cache(maxsize=64)
def _is_geographic(crs: str) -> bool:
    return bool(pyproj.CRS(crs).is_geographic)
