"""One scene, and reading windows of it.

A `Scene` is plain data: it travels to Dask workers, and whoever needs pixels opens a `SceneReader` where they are
needed. GDAL handles never leave the thread that opened them.
"""

import contextlib
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import rasterio
import rasterio.windows
import shapely
from affine import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning

from geochip.errors import WorkError
from geochip.files import require_regular
from geochip.gdal import GDAL_ERRORS
from geochip.scenes.notices import Notice
from geochip.scenes.resample import resample
from geochip.windows import Window

# Of a scene's pixels, in the memory of whoever reads it.
_MAPPED_BYTES = 64 * 2**20
_FLOAT32_MAX = float(np.finfo(np.float32).max)
Validity = Literal["all", "nodata", "mask"]
_FLOATS = ("float32", "float64")
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
    """What pixels without data hold, if a chosen band declares a value that the pixels' type holds: the first that
    does. Which pixels those are is another question: each band is held against its own value (`SceneReader.read`)."""
    band_nodata: tuple[float | None, ...] = ()
    """The nodata value of each band of each file, where those of one file differ; empty where they agree."""
    alpha: Literal["mask", "band"] = "mask"
    """What alpha bands are that are not among `bands`: they say where data is, or nothing (`data.alpha`)."""
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
    unused_georeference: str = ""
    """What else than a geotransform relates the image to the earth, such as "9 ground control points"; geochip does not
    use it. Empty for nothing."""
    notices: tuple[Notice, ...] = ()
    """What a person should know of how its files were taken."""
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
                    require_regular(path)
                    dataset = self._stack.enter_context(quiet_open(path, mapped=scene.image_bytes <= _MAPPED_BYTES))
                except GDAL_ERRORS as error:
                    raise SceneError(
                        f"scene {scene.scene_id}: {path} could not be opened ({gdal_reason(error)})"
                    ) from error
                if (dataset.height, dataset.width) != (scene.height, scene.width):
                    raise SceneError(f"scene {scene.scene_id}: {path} changed its size since it was catalogued")
                self._files += _chosen_of(dataset, path, first, scene)
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
                or 0 where the scene declares none. Pixels that are not valid hold what the file holds; in a stack,
                where bands have nodata values of their own, and where the window is resampled, they are as those
                outside.
            valid_hw: (height, width) bool, True where there is data: inside the scene, NaN or infinite in no chosen
                band, and no file says otherwise. A file does by a mask band, or without one when every chosen band
                holds its own nodata value (a band that declares none always has data), and besides by an alpha band
                of 0, unless that is chosen as a band, or `Scene.alpha` is "band".

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
            except GDAL_ERRORS as error:
                raise SceneError(
                    f"scene {self.scene.scene_id}: {file.path} could not be read at rows {window.row_off} to "
                    f"{window.row_stop - 1}, columns {window.col_off} to {window.col_stop - 1} ({gdal_reason(error)})"
                ) from error
            if valid is not None:
                valid_hw = valid if valid_hw is None else valid_hw & valid
        if valid_hw is None:
            return np.ones((window.height, window.width), np.bool_)
        if (len(self._files) > 1 or self.scene.band_nodata) and not valid_hw.all():
            # There may be several nodata values; what stands there must not look like data to anyone.
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
    alike: bool
    """They are of one type."""
    place: slice | list[int]
    """Where they stand among the scene's."""
    kind: Validity
    """What tells which pixels have data."""
    nodata: tuple[float | None, ...]
    """Of each of `bands`, as its pixels hold it."""
    alpha: tuple[int, ...]
    """Its own numbers of the bands that are 0 where there is no data."""

    def read_into(self, image_bhw: npt.NDArray[Any], place: rasterio.windows.Window) -> npt.NDArray[np.bool_] | None:
        """Read the bands into their places; returns where there is data, None for everywhere."""
        image = image_bhw[self.place]
        if self.alike:
            self.dataset.read(self.bands, window=place, out=image)
        else:
            # rasterio reads bands of several types one by one alone.
            for band, pixels in zip(self.bands, image, strict=True):
                self.dataset.read(band, window=place, out=pixels)
        if isinstance(self.place, list):
            image_bhw[self.place] = image
        parts: list[npt.NDArray[np.bool_]] = []
        if self.kind == "nodata":
            # One band at nodata may be a legitimate black; all of them are not.
            parts.append(_any(band != nodata for band, nodata in zip(image, self.nodata, strict=True)))
        elif self.kind == "mask":
            parts.append(self.dataset.read_masks(self.bands, window=place).any(axis=0))
        parts += [self.dataset.read(band, window=place) != 0 for band in self.alpha]
        if image.dtype.kind == "f":
            parts.append(np.isfinite(image).all(axis=0))
        return np.logical_and.reduce(parts) if len(parts) > 1 else next(iter(parts), None)


def _any(parts: Iterable[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    first, *others = parts
    for part in others:
        first |= part
    return first


def _chosen_of(dataset: Any, path: str, first: int, scene: Scene) -> list[_File]:
    """What to read from a file whose bands are numbered from `first` on; nothing when none of them is chosen."""
    chosen = scene.bands
    places = [place for place, band in enumerate(chosen) if first <= band < first + dataset.count]
    if not places:
        return []
    bands = [chosen[place] - first + 1 for place in places]
    together = places == list(range(places[0], places[-1] + 1))
    place = slice(places[0], places[-1] + 1) if together else places
    flags, values, dtypes = dataset.mask_flag_enums, dataset.nodatavals, dataset.dtypes
    nodata = tuple(own_nodata(values[band - 1], dtypes[band - 1]) for band in bands)
    return [
        _File(
            path=path,
            dataset=dataset,
            bands=bands,
            alike=len({dtypes[band - 1] for band in bands}) == 1,
            place=place,
            kind=validity_of([flags[band - 1] for band in bands], nodata),
            nodata=nodata,
            alpha=alpha_masks(dataset, bands) if scene.alpha == "mask" else (),
        )
    ]


def validity_of(flags: Sequence[Sequence[MaskFlags]], nodata: Sequence[float | None]) -> Validity:
    """What of a file, alpha bands apart, tells which pixels of some of its bands have data.

    A pixel has data when any of the bands has: so one band that always has decides it.

    Args:
        flags: what GDAL says of each of the bands.
        nodata: of each of the bands, as of `own_nodata`.
    """
    kinds = {_validity_of_band(set(one), value) for one, value in zip(flags, nodata, strict=True)}
    if "all" in kinds:
        return "all"
    return "nodata" if kinds == {"nodata"} else "mask"


def _validity_of_band(flags: Collection[MaskFlags], nodata: float | None) -> Validity:
    if flags == {MaskFlags.nodata}:
        return "nodata"
    if flags == {MaskFlags.all_valid} or MaskFlags.alpha in flags:
        # To GDAL -3.4028235e38, as some programs write it, lies beyond float32; the lowest value of all is meant.
        return "nodata" if nodata is not None and abs(nodata) == _FLOAT32_MAX else "all"
    # Without any flag a band has a mask of its own, as in a VRT.
    return "mask"


def own_nodata(nodata: float | None, dtype: str) -> float | None:
    """A band's nodata value as its pixels hold it: 3.4028235e38 as text is not quite a float32."""
    kind = np.dtype(dtype) if dtype in _FLOATS else None
    if nodata is None or kind is None:
        return nodata
    with np.errstate(over="ignore"):
        return float(kind.type(nodata))


def alpha_bands(dataset: Any) -> tuple[int, ...]:
    """The bands that a file declares to be alpha."""
    return tuple(band for band, colour in enumerate(dataset.colorinterp, 1) if colour == ColorInterp.alpha)


def alpha_masks(dataset: Any, bands: Sequence[int]) -> tuple[int, ...]:
    """The alpha bands that say where some bands have data: none when one of them is taken as a band."""
    alpha = alpha_bands(dataset)
    return () if set(alpha) & set(bands) else alpha
