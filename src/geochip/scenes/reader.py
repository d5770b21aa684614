"""One scene, and reading windows of it.

A `Scene` is plain data: it travels to Dask workers, and whoever needs pixels opens a `SceneReader` where they are
needed. GDAL handles never leave the thread that opened them.
"""

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
import shapely
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from geochip.errors import WorkError
from geochip.scenes.resample import resample
from geochip.windows import Window

# Of a scene's pixels, in the memory of whoever reads it.
_MAPPED_BYTES = 64 * 2**20
_LARGEST_WHOLE_BYTES = 512 * 2**20


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
    stack: tuple[str, ...] = ()
    """Paths of more images on the same grid, whose bands follow the image's; what is said of the pixels below is said
    of all files together."""
    label: str | None
    """Path of the label; None when there is none."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    count: int
    """Bands in all files."""
    dtype: str
    """NumPy name of the pixels' type: the one that holds the values of all chosen bands."""
    crs: str | None
    """Coordinate reference system as "EPSG:4326" or as WKT; None when the image has none."""
    transform: Affine
    """From (column, row) to (x, y), pixel corners."""
    nodata: float | None
    """Value of pixels without data, if a file declares one that the pixels' type holds: the first that does."""
    bands: tuple[int, ...]
    """Bands to read, counted from 1 and on through the files, in this order."""
    band_names: tuple[str, ...]
    """A name for each of `bands`: the file's description, or band_1, band_2, ..."""
    pixel_size: float | None
    """Side of a pixel on the ground at the scene's centre, in metres (geometric mean); None without a CRS."""
    image_bytes: int
    """Size of the image files, in bytes."""
    image_stamp: str = ""
    """Digest of the names, sizes and times of change of the files that pixels and masks come from: images, masks beside
    them, the sources of a VRT. With the same one they are taken for the same; with another one they are compared."""
    label_bytes: int
    """Size of the label file, in bytes; 0 without one."""
    region: shapely.Geometry | None = None
    """The part of it that belongs to `split`, in pixel coordinates (x = column, y = row), where squares of ground
    divide it; None: all of it."""

    @property
    def draws_as(self) -> str:
        """What random windows are drawn from, besides the seed; the parts of a divided scene draw others."""
        return self.scene_id if self.region is None else f"{self.scene_id}/{self.split}"


def quiet_open(path: str, *, mapped: bool = False) -> Any:
    """Open a raster for reading, without rasterio's warning about a missing georeference.

    Args:
        path: the file.
        mapped: read an uncompressed GeoTIFF from where the system keeps the file in memory: a quarter of the CPU time.
            What was read counts as memory of this process, so not for files that are large.
    """
    with warnings.catch_warnings():
        # An image without georeference is judged where a label asks for it, in words of our own.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # GDAL would list the directory for every file in it; so it asks for the few companions that a file may have.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE", GTIFF_VIRTUAL_MEM_IO="YES" if mapped else "NO"):
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
        self._files: list[_File] = []

    def __enter__(self) -> Self:
        scene = self.scene
        try:
            first = 1
            for path in (scene.image, *scene.stack):
                try:
                    dataset = self._stack.enter_context(quiet_open(path, mapped=scene.image_bytes <= _MAPPED_BYTES))
                except (RasterioError, OSError) as error:
                    raise SceneError(
                        f"scene {scene.scene_id}: {path} could not be opened ({gdal_reason(error)})"
                    ) from error
                if (dataset.height, dataset.width) != (scene.height, scene.width):
                    raise SceneError(f"scene {scene.scene_id}: {path} changed its size since it was catalogued")
                self._files += _chosen_of(dataset, path, first, scene.bands)
                first += dataset.count
            if first - 1 != scene.count:
                raise SceneError(
                    f"scene {scene.scene_id}: {scene.image} changed its number of bands since it was catalogued"
                )
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, window: Window, size: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Read the chosen bands of one window.

        Args:
            window: it may hang over the scene's lower and right edge, and must hold at least one of its pixels.
            size: rows and columns to resample it to (see `resample`); None: those of the window.

        Returns:
            image_bhw: (band, height, width) in the scene's dtype, never rescaled; outside the scene the nodata value,
                or 0 where the scene declares none. Pixels that are not valid hold what the file holds; in a stack, and
                where the window is resampled, they are as those outside.
            valid_hw: (height, width) bool, True where there is data: inside the scene, not nodata in every chosen
                band of a file, not masked by an alpha or mask band, not NaN or infinite in any chosen band.

        Raises:
            SceneError: when the file cannot be read there.
        """
        shape = (window.height, window.width) if size is None else (size, size)
        image_bhw = np.empty((len(self.scene.bands), *shape), self.scene.dtype)
        return image_bhw, self.read_into(window, image_bhw)

    def read_into(self, window: Window, image_bhw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Read one window, as `read` does, into an array that is there already.

        Args:
            window: as of `read`.
            image_bhw: (band, rows, columns) in the scene's dtype, such as a chip's place in a batch; it is overwritten.
                Of another size than the window's, the window is resampled to it.

        Returns:
            valid_hw, as of `read`.
        """
        scene = self.scene
        if image_bhw.dtype != scene.dtype or len(image_bhw) != len(scene.bands):
            raise ValueError(
                f"scene {scene.scene_id} has {len(scene.bands)} bands of {scene.dtype}, the array to read into is "
                f"{image_bhw.shape} of {image_bhw.dtype}"
            )
        shape = (image_bhw.shape[1], image_bhw.shape[2])
        if shape == (window.height, window.width):
            return self._read_padded(window, image_bhw)
        native = np.empty((len(scene.bands), window.height, window.width), scene.dtype)
        valid_hw = self._read_padded(window, native)
        image_bhw[:], valid_hw = resample(native, valid_hw, shape, self.fill)
        return valid_hw

    @property
    def fill(self) -> float:
        """What pixels outside the scene hold: its nodata value, or 0."""
        return 0 if self.scene.nodata is None else self.scene.nodata

    def _read_padded(self, window: Window, image_bhw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        scene = self.scene
        inside = window.intersection(Window(row_off=0, col_off=0, height=scene.height, width=scene.width))
        if inside is None:
            raise ValueError(f"{window} holds no pixel of scene {scene.scene_id} ({scene.height} x {scene.width})")
        if inside == window:
            return self._read_inside(window, image_bhw)
        image_bhw[:, inside.height :] = self.fill
        image_bhw[:, :, inside.width :] = self.fill
        valid_hw = np.zeros((window.height, window.width), np.bool_)
        within = image_bhw[:, : inside.height, : inside.width]
        valid_hw[: inside.height, : inside.width] = self._read_inside(inside, within)
        return valid_hw

    def _read_inside(self, window: Window, image_bhw: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        place = rasterio.windows.Window(window.col_off, window.row_off, window.width, window.height)
        valid_hw: npt.NDArray[np.bool_] | None = None
        for file in self._files:
            try:
                valid = file.read_into(image_bhw, place)
            except (RasterioError, OSError) as error:
                raise SceneError(
                    f"scene {self.scene.scene_id}: {file.path} could not be read at rows {window.row_off} to "
                    f"{window.row_stop - 1}, columns {window.col_off} to {window.col_stop - 1} ({gdal_reason(error)})"
                ) from error
            if valid is not None:
                valid_hw = valid if valid_hw is None else valid_hw & valid
        if valid_hw is None:
            return np.ones((window.height, window.width), np.bool_)
        if len(self._files) > 1 and not valid_hw.all():
            # The files may declare different nodata values; what stands there must not look like data to anyone.
            image_bhw[:, ~valid_hw] = self.fill
        return valid_hw

    def reads_whole(self, windows: Sequence[Window]) -> bool:
        """Whether these windows are better cut from one read of the whole scene.

        Strips and tiles are decoded whole: many windows that together cover the scene would decode them several times.
        """
        scene = self.scene
        wanted = sum(window.height * window.width for window in windows)
        size = scene.height * scene.width * len(scene.bands) * np.dtype(scene.dtype).itemsize
        return len(windows) > 1 and wanted >= scene.height * scene.width and size <= _LARGEST_WHOLE_BYTES


@dataclass(frozen=True, kw_only=True)
class _File:
    """What is read from one file of a scene."""

    path: str
    dataset: Any
    bands: list[int]
    """Its own numbers of the bands to read."""
    place: slice | list[int]
    """Where they stand among the scene's."""
    kind: Literal["all", "nodata", "mask"]
    """What tells which pixels have data."""
    nodata: Any

    def read_into(self, image_bhw: npt.NDArray[Any], place: rasterio.windows.Window) -> npt.NDArray[np.bool_] | None:
        """Read the bands into their places; returns where there is data, None for everywhere."""
        image = image_bhw[self.place]
        self.dataset.read(self.bands, window=place, out=image)
        if isinstance(self.place, list):
            image_bhw[self.place] = image
        valid: npt.NDArray[np.bool_] | None = None
        if self.kind == "nodata":
            # One band at nodata may be a legitimate black; all of them are not.
            valid = (image != self.nodata).any(axis=0)
        elif self.kind == "mask":
            valid = self.dataset.read_masks(self.bands, window=place).any(axis=0)
        if image.dtype.kind == "f":
            finite: npt.NDArray[np.bool_] = np.isfinite(image).all(axis=0)
            valid = finite if valid is None else valid & finite
        return valid


def _chosen_of(dataset: Any, path: str, first: int, chosen: Sequence[int]) -> list[_File]:
    """What to read from a file whose bands are numbered from `first` on; nothing when none of them is chosen."""
    places = [place for place, band in enumerate(chosen) if first <= band < first + dataset.count]
    if not places:
        return []
    bands = [chosen[place] - first + 1 for place in places]
    flags = {flag for band in bands for flag in dataset.mask_flag_enums[band - 1]}
    nodata = dataset.nodata
    kind: Literal["all", "nodata", "mask"] = "mask"
    if flags <= {MaskFlags.all_valid}:
        kind = "all"
    elif flags <= {MaskFlags.nodata, MaskFlags.all_valid}:
        kind = "nodata"
        dtype = np.result_type(*(dataset.dtypes[band - 1] for band in bands))
        if dtype.kind == "f":
            # As a pixel of the file would hold it: 3.4028235e38 as text is not quite a float32.
            nodata = float(dtype.type(nodata))
    together = places == list(range(places[0], places[-1] + 1))
    place = slice(places[0], places[-1] + 1) if together else places
    return [_File(path=path, dataset=dataset, bands=bands, place=place, kind=kind, nodata=nodata)]
