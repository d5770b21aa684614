"""The label of one scene, window by window."""

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import shapely

from geochip.config import IGNORE
from geochip.labels.classes import LabelRules
from geochip.labels.drawing import Canvas, Tiles
from geochip.labels.grid import Grid, gathered, is_raster, whole_window
from geochip.labels.raster import RasterLabel, nearest
from geochip.labels.vector import read_shapes
from geochip.windows import Window


class SceneLabel:
    """Reads windows of one scene's label. Use it as a context manager, in the thread that opened it.

    A pixel belongs to a geometry when its centre lies within (with labels.all_touched: when it is touched). Which
    windows are read, and in which order, changes no pixel.

    Args:
        path: a vector file that GDAL reads, in any CRS, or a raster of class values on the scene's own pixels. A
            GeoJSON without a "crs" member is in degrees of longitude and latitude (RFC 7946, section 4). Z coordinates
            are dropped; features without a geometry are skipped.
        grid: the scene's pixels.
        rules: what the label's values mean.
        aoi: area of interest in pixel coordinates (see `read_aoi`); pixels whose centre lies outside become 255.
        near: the windows that will be read; of a large vector file only what can touch them is read. None: any.

    Attributes:
        mended: number of features with an invalid polygon, which was mended, among those read.
        unvalued: number of features without a value of labels.class_property, among those read.
        read_pixels: pixels of a raster label that were read so far.
        hidden_pixels: those of them that have the value of a class and are 255 all the same, since the file declares
            that value as nodata and labels.class_map does not name it.
        missed: whether a vector file has features and none of them meets the scene.

    Raises:
        LabelError: on entering, for a file that cannot be read, an unknown CRS, coordinates that do not fit it, a CRS
            on one side only, a missing class property or a value that is no class; for a raster that does not have the
            scene's pixels.
    """

    mended: int = 0
    unvalued: int = 0
    missed: bool = False

    def __init__(
        self,
        path: str,
        grid: Grid,
        rules: LabelRules,
        *,
        aoi: shapely.Geometry | None = None,
        near: Sequence[Window] | None = None,
    ) -> None:
        self._path, self._grid, self._rules, self._near = path, grid, rules, near
        self._whole, self._y_up = whole_window(grid), grid.transform.determinant < 0
        self._rectangles = gathered(grid, near)
        self._aoi = None
        if aoi is not None:
            parts = shapely.get_parts([aoi])
            self._aoi = Canvas(parts, np.ones(len(parts), np.uint8), y_up=self._y_up)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        near, grid = self._near, self._grid
        # As many pixels as the scene has: then it is cheaper to make each of them once than to save memory.
        all_needed = near is not None and sum(one.height * one.width for one in near) >= grid.height * grid.width
        self._tiles = Tiles(grid, self._draw, keep_all=all_needed)
        self._source: Canvas | RasterLabel
        if is_raster(self._path):
            self._source = self._stack.enter_context(RasterLabel(self._path, grid, self._rules))
            self._in_tiles = all_needed
        else:
            shapes = read_shapes(self._path, grid, self._rules, self._rectangles)
            self.mended, self.unvalued, self.missed = shapes.mended, shapes.unvalued, shapes.missed
            self._source = Canvas(
                shapes.geometries, shapes.values, y_up=self._y_up, all_touched=self._rules.labels.all_touched
            )
            self._in_tiles = True
        return self

    @property
    def read_pixels(self) -> int:
        """Pixels of a raster label that were read."""
        return self._source.pixels if isinstance(self._source, RasterLabel) else 0

    @property
    def hidden_pixels(self) -> int:
        """Those of them that the file's nodata value takes from a class."""
        return self._source.hidden if isinstance(self._source, RasterLabel) else 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        # The tiles know how to draw themselves from this label: a circle, which would keep both until the next sweep.
        del self._tiles, self._source

    def read(self, window: Window, size: int | None = None) -> npt.NDArray[np.uint8]:
        """Read one window.

        Args:
            window: it may hang over the scene's lower and right edge.
            size: rows and columns to resample the window to: geometries are drawn on these pixels, a raster label's are
                each taken from the nearest pixel. None: the window's own.

        Returns:
            uint8 array (height, width), or (size, size), of class ids, the caller's own; 0 where no geometry is, 255
            outside the scene and the area of interest and where the label says to ignore.

        Raises:
            LabelError: for a raster label that cannot be read there, or has a value that is no class.
            ValueError: for a window outside of those named in `near`.
        """
        inside = window.intersection(self._whole)
        if inside is not None and not any(inside.intersection(one) == inside for one in self._rectangles):
            raise ValueError(f"{window} lies outside of the windows that label {self._path} was opened for")
        if size is not None and (window.height, window.width) != (size, size):
            label = self._draw(window, size)
            label[nearest(window.height, size) >= self._grid.height - window.row_off] = IGNORE
            label[:, nearest(window.width, size) >= self._grid.width - window.col_off] = IGNORE
        elif self._in_tiles:
            label = self._tiles.read(window)
        else:
            label = np.full((window.height, window.width), IGNORE, np.uint8)
            if inside is not None:
                label[: inside.height, : inside.width] = self._draw(inside)
        return label

    def _draw(self, window: Window, size: int | None = None) -> npt.NDArray[np.uint8]:
        label = self._source.draw(window, size)
        if self._aoi is not None:
            label[self._aoi.draw(window, size) == 0] = IGNORE
        return label
