"""One scene, and reading windows of it.

A `Scene` is plain data: it travels to Dask workers, and whoever needs pixels opens a `SceneReader` where they are
needed. GDAL handles never leave the thread that opened them.
"""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geochip.errors import WorkError
from geochip.windows import Window


class SceneError(WorkError):
    """A scene's pixels could not be read; the text names the scene, the file and the window."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One georeferenced image, with what its header says. Picklable; holds no open file."""

    scene_id: str
    """What {id} stands for in the templates; the file's stem for a file that fits no template."""
    split: str
    """The split that it belongs to; empty for a file named on the command line."""
    image: str
    """Path of the image."""
    label: str | None
    """Path of the label; None when there is none."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    count: int
    """Bands in the file."""
    dtype: str
    """NumPy name of the pixels' type."""
    crs: str | None
    """Coordinate reference system as "EPSG:4326" or as WKT; None when the image has none."""
    transform: Affine
    """From (column, row) to (x, y), pixel corners."""
    nodata: float | None
    """Value of pixels without data, if the image declares one."""
    bands: tuple[int, ...]
    """Bands to read, counted from 1, in this order."""
    band_names: tuple[str, ...]
    """A name for each of `bands`: the file's description, or band_1, band_2, ..."""
    pixel_size: float | None
    """Side of a pixel on the ground at the scene's centre, in metres (geometric mean); None without a CRS."""
    image_bytes: int
    """Size of the image file, in bytes."""
    label_bytes: int
    """Size of the label file, in bytes; 0 without one."""


def quiet_open(path: str) -> Any:
    """Open a raster for reading, without rasterio's warning about a missing georeference."""
    with warnings.catch_warnings():
        # An image without georeference is judged where a label asks for it, in words of our own.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def gdal_reason(error: BaseException) -> str:
    """The innermost text: GDAL's own, under rasterio's 'see previous exception'."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


class SceneReader:
    """Reads windows of one scene. Use it as a context manager, in the thread that opened it."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._dataset = self._stack.enter_context(quiet_open(self.scene.image))
        except (RasterioError, OSError) as error:
            raise SceneError(
                f"scene {self.scene.scene_id}: {self.scene.image} could not be opened ({gdal_reason(error)})"
            ) from error
        if (self._dataset.height, self._dataset.width) != (self.scene.height, self.scene.width):
            self._stack.close()
            raise SceneError(
                f"scene {self.scene.scene_id}: {self.scene.image} changed its size since it was catalogued"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Read the chosen bands of one window.

        Args:
            window: it may hang over the scene's lower and right edge, and must hold at least one of its pixels.

        Returns:
            image_bhw: (band, height, width) in the scene's dtype, never rescaled; outside the scene the nodata value,
                or 0 where the scene declares none.
            valid_hw: (height, width) bool, True where there is data: inside the scene, not nodata in every chosen
                band, not masked by an alpha or mask band, not NaN or infinite in any chosen band.

        Raises:
            SceneError: when the file cannot be read there.
        """
        scene = self.scene
        whole = Window(row_off=0, col_off=0, height=scene.height, width=scene.width)
        inside = window.intersection(whole)
        if inside is None:
            raise ValueError(f"{window} holds no pixel of scene {scene.scene_id} ({scene.height} x {scene.width})")
        image, valid = self._read_inside(inside)
        if inside == window:
            return image, valid
        fill = 0 if scene.nodata is None else scene.nodata
        padded = np.full((len(scene.bands), window.height, window.width), fill, image.dtype)
        padded_valid = np.zeros((window.height, window.width), np.bool_)
        padded[:, : inside.height, : inside.width] = image
        padded_valid[: inside.height, : inside.width] = valid
        return padded, padded_valid

    def _read_inside(self, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        bands = list(self.scene.bands)
        place = rasterio.windows.Window(window.col_off, window.row_off, window.width, window.height)
        try:
            image = self._dataset.read(bands, window=place)
            valid = self._valid(image, bands, place)
        except (RasterioError, OSError) as error:
            raise SceneError(
                f"scene {self.scene.scene_id}: {self.scene.image} could not be read at rows {window.row_off} to "
                f"{window.row_stop - 1}, columns {window.col_off} to {window.col_stop - 1} ({gdal_reason(error)})"
            ) from error
        return image, valid

    def _valid(
        self, image: npt.NDArray[Any], bands: list[int], place: rasterio.windows.Window
    ) -> npt.NDArray[np.bool_]:
        flags = {flag for band in bands for flag in self._dataset.mask_flag_enums[band - 1]}
        if flags <= {MaskFlags.all_valid}:
            valid = np.ones(image.shape[1:], np.bool_)
        elif flags <= {MaskFlags.nodata, MaskFlags.all_valid}:
            # One band at nodata may be a legitimate black; all of them are not.
            valid = (image != self.scene.nodata).any(axis=0)
        else:
            valid = self._dataset.read_masks(bands, window=place).any(axis=0)
        if image.dtype.kind == "f":
            valid &= np.isfinite(image).all(axis=0)
        return valid

    def read_many(self, windows: Sequence[Window]) -> list[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]:
        """Read several windows, each as `read` would, touching every pixel of the file at most about once."""
        scene = self.scene
        wanted = sum(window.height * window.width for window in windows)
        # Strips and tiles are decoded whole: many windows that together cover the scene are cheaper cut from one read.
        if len(windows) < 2 or wanted < scene.height * scene.width:
            return [self.read(window) for window in windows]
        whole = Window(
            row_off=0,
            col_off=0,
            height=max(scene.height, *(window.row_stop for window in windows)),
            width=max(scene.width, *(window.col_stop for window in windows)),
        )
        image, valid = self.read(whole)
        return [(image[:, *window.slices], valid[window.slices]) for window in windows]
