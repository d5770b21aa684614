"""A label that is a raster of class values, on the pixels of its scene."""

import contextlib
import json
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from geochip.config import IGNORE
from geochip.files import NotRegularError, require_regular
from geochip.gdal import GDAL_ERRORS
from geochip.labels.classes import LabelRules, nodata_is_class, pixel_values, unknown_pixel
from geochip.labels.errors import LabelError, one_line
from geochip.labels.grid import Grid, same_crs
from geochip.windows import Window

# How far the corners of two grids may lie apart that are called the same, in pixels.
_SAME = 1e-3
_PARTS_SHOWN = 3
# A CRS that is named by a code, and not written out.
_SHORT = 20
# Pixels that are read at once for a window that is made smaller.
_AT_ONCE = 2**24


def open_raster(path: str) -> Any:
    """Open a raster label for reading.

    Raises:
        LabelError: when it cannot be opened.
    """
    try:
        require_regular(path)
    except NotRegularError as error:
        raise LabelError(f"label {path} could not be read ({error.strerror})") from None
    except OSError as error:
        raise LabelError(f"label {path} could not be read as a raster ({error.strerror}); mend or remove it") from None
    try:
        with warnings.catch_warnings():
            # Scene and label without a georeference have the same one.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return rasterio.open(path)
    except GDAL_ERRORS as error:
        raise LabelError(f"label {path} could not be read as a raster ({one_line(error)}); mend or remove it") from None


def require_label_of(dataset: Any, path: str, grid: Grid) -> None:
    """See that a raster can be the label of a scene.

    Raises:
        LabelError: for a file of several rasters, such as the pages of a TIFF, of which GDAL takes the first; for
            several bands; for other pixels than the scene's.
    """
    if len(parts := dataset.subdatasets) > 1:
        shown = ", ".join(parts[:_PARTS_SHOWN]) + (", ..." if len(parts) > _PARTS_SHOWN else "")
        raise LabelError(
            f"label {path} holds {len(parts)} rasters ({shown}), and a raster label must be one; write the one that is "
            "meant into a file of its own (gdal_translate, with that name)"
        )
    if dataset.count != 1:
        raise LabelError(
            f"label {path} has {dataset.count} bands, and a raster label must have one; write the class values alone "
            "into it (gdal_translate -b)"
        )
    found = Grid(
        height=dataset.height,
        width=dataset.width,
        transform=dataset.transform,
        # Without a geotransform a CRS says nothing.
        crs=dataset.crs.to_string() if dataset.crs and dataset.transform != Affine.identity() else None,
    )
    _require_place(path, found, grid)
    if not _same_pixels(found, grid):
        raise LabelError(
            f"label {path} does not have its image's pixels: it has {_described(found)}{_unused_points(dataset)}; the "
            f"image has {_described(grid)}; resample it onto those (gdalwarp -r near -t_srs -te -ts)"
        )


def _require_place(path: str, found: Grid, grid: Grid) -> None:
    """See that a label lies somewhere, where only that sets it apart from its image."""
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    if found.transform != Affine.identity() or grid.crs is None or b or d:
        return
    if (found.height, found.width) == (grid.height, grid.width):
        crs = grid.crs if len(grid.crs) < _SHORT else "CRS"
        raise LabelError(
            f"label {path} has no georeference, and its image has one: {_described(grid)}. If it was drawn on just "
            f"these pixels, give it that (gdal_translate -a_srs {crs} -a_ullr {c:.15g} {f:.15g} "
            f"{c + a * grid.width:.15g} {f + e * grid.height:.15g})"
        )


def masking(dataset: Any, rules: LabelRules) -> tuple[bool, bool]:
    """What the mask of a raster label is worth.

    A mask band says which pixels are none. A nodata value says it too, unless labels.class_map names the value.

    Returns:
        Whether masked pixels are 255; and whether they would be of a class if the file did not declare its value as
        nodata.
    """
    flags = dataset.mask_flag_enums[0]
    if MaskFlags.all_valid in flags:
        return False, False
    meant = nodata_is_class(dataset.nodata, rules) if MaskFlags.nodata in flags else None
    if meant is None:
        return True, False
    _, named = meant
    return not named, not named


class RasterLabel:
    """Reads windows of a raster label. Use it as a context manager, in the thread that opened it.

    Attributes:
        pixels: how many pixels were read.
        hidden: how many of them have the value of a class, and are 255 since the file declares it as nodata.

    Raises:
        LabelError: on entering, when the file cannot be read, has several bands or not the scene's pixels.
    """

    def __init__(self, path: str, grid: Grid, rules: LabelRules) -> None:
        self._path, self._grid, self._rules = path, grid, rules
        self._stack = contextlib.ExitStack()
        self.pixels = self.hidden = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._dataset = stack.enter_context(open_raster(self._path))
            require_label_of(self._dataset, self._path, self._grid)
            self._stack = stack.pop_all()
        self._ids = pixel_values(self._rules)
        self._masked, self._hides_class = masking(self._dataset, self._rules)
        self._table = _table(np.dtype(self._dataset.dtypes[0]), self._ids)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def draw(self, window: Window, size: int | None = None) -> npt.NDArray[np.uint8]:
        """Read a window that lies inside the scene.

        With `size` it is read to `size` x `size` pixels, each from the nearest one, and may hang over; 255 there.

        Raises:
            LabelError: when the file cannot be read there, or has a value that is no class.
        """
        if size is None:
            return self._read(window)
        rows, cols = nearest(window.height, size), nearest(window.width, size)
        rows, cols = rows[rows < self._grid.height - window.row_off], cols[cols < self._grid.width - window.col_off]
        label = np.full((size, size), IGNORE, np.uint8)
        if not len(cols):
            return label
        step = max(1, _AT_ONCE * size // (window.height * window.width))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            part = Window(
                row_off=window.row_off + int(some[0]),
                col_off=window.col_off,
                height=int(some[-1] - some[0]) + 1,
                width=int(cols[-1]) + 1,
            )
            label[start : start + len(some), : len(cols)] = self._read(part)[np.ix_(some - some[0], cols)]
        return label

    def _read(self, window: Window) -> npt.NDArray[np.uint8]:
        place = rasterio.windows.Window(window.col_off, window.row_off, window.width, window.height)
        try:
            values = self._dataset.read(1, window=place)
            valid = None
            if self._masked:
                valid = self._dataset.read_masks(1, window=place) > 0
        except GDAL_ERRORS as error:
            raise LabelError(
                f"label {self._path} could not be read at rows {window.row_off} to {window.row_stop - 1}, columns "
                f"{window.col_off} to {window.col_stop - 1} ({one_line(error)}); mend or remove it"
            ) from None
        self.pixels += values.size
        if valid is not None and self._hides_class:
            self.hidden += int(values.size - np.count_nonzero(valid))
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            valid = finite if valid is None else valid & finite
        return self._as_classes(values, valid)

    def _as_classes(self, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.uint8]:
        ids: npt.NDArray[np.int16]
        if self._table is not None:
            ids = self._table[values.view(f"u{values.itemsize}")]
        else:
            distinct, place = np.unique(values, return_inverse=True)
            ids = np.array([self._ids.get(value, -1) for value in distinct.tolist()], np.int16)[
                place.reshape(values.shape)
            ]
        if valid is not None:
            ids[~valid] = IGNORE
        if ids.min() < 0:
            raise unknown_pixel(self._path, values[ids < 0][0], self._rules)
        return ids.astype(np.uint8)


def _table(kind: np.dtype[Any], ids: Mapping[float, int]) -> npt.NDArray[np.int16] | None:
    """The id of each value of an integer type of one or two bytes, -1 where there is none; None for other types."""
    if kind.kind not in "iu" or kind.itemsize > 2:
        return None
    table = np.full(2 ** (8 * kind.itemsize), -1, np.int16)
    limits = np.iinfo(kind)
    for value, number in ids.items():
        if value.is_integer() and limits.min <= value <= limits.max:
            # By the bits: a negative value counts from the table's end.
            table[int(value)] = number
    return table


def nearest(length: int, size: int) -> npt.NDArray[np.int64]:
    """For each of `size` pixels that share a window of `length`, the pixel of the window that its centre lies in."""
    return (2 * np.arange(size) + 1) * length // (2 * size)


def _same_pixels(one: Grid, other: Grid) -> bool:
    if (one.height, one.width, one.crs is None) != (other.height, other.width, other.crs is None):
        return False
    corners = np.array([(0, 0), (one.width, 0), (0, one.height)], np.float64)
    there = other.to_pixels(np.array([one.transform @ tuple(corner) for corner in corners]))
    if np.abs(there - corners).max() > _SAME:
        return False
    return one.crs is None or other.crs is None or same_crs(json.dumps(one.crs), json.dumps(other.crs))


def _unused_points(dataset: Any) -> str:
    """What else relates a label to the earth, and is not used."""
    points, _ = dataset.gcps
    return f" and {len(points)} ground control points, which geochip does not use" if points else ""


def _described(grid: Grid) -> str:
    a, b, c, d, e, f = Affine(*grid.transform)[:6]
    turned = f", turned by ({b:.9g}, {d:.9g})" if b or d else ""
    return (
        f"{grid.height} x {grid.width} pixels of ({a:.9g}, {e:.9g}){turned} from ({c:.12g}, {f:.12g}) in "
        f"{grid.crs or 'no CRS'}"
    )
