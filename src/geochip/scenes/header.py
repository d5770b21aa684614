"""What the headers of a scene's files say, and whether they go together."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError

from geochip.scenes.reader import Scene, gdal_reason, quiet_open

SUPPORTED_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")

# Of a pixel: grids that differ by less are the same.
_GRID_TOLERANCE = 1e-3

# Of the rasters in one file, in a message.
_PARTS_SHOWN = 3

# VRTs of VRTs that are followed.
_NESTED = 4


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A scene that is left out, and why."""

    scene_id: str
    split: str
    path: str
    reason: str

    def __str__(self) -> str:
        return f"scene {self.scene_id}{f' ({self.split})' if self.split else ''}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A scene's files, of which nothing has been read yet."""

    scene_id: str
    split: str
    image: str
    stack: tuple[str, ...]
    label: str | None
    """None when there is none."""

    def aside(self, reason: str) -> SetAside:
        """This scene, left out."""
        return SetAside(scene_id=self.scene_id, split=self.split, path=self.image, reason=reason)


class _MisfitError(Exception):
    """Why a scene's files cannot be used."""


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What geochip takes from the header of one file."""

    path: str
    height: int
    width: int
    transform: Affine
    crs: Any
    dtypes: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    alpha: tuple[bool, ...]
    nodata: float | None
    bytes: int
    stamp: tuple[tuple[str, int, int], ...]
    """Of `_stamps`."""

    @property
    def grid(self) -> str:
        """Its pixel grid, for a person."""
        a, b, c, d, e, f = tuple(self.transform)[:6]
        turned = f" turned by ({b:.9g}, {d:.9g})" if b or d else ""
        return (
            f"{self.height} x {self.width} pixels of {a:.9g} x {e:.9g}{turned} from ({c:.12g}, {f:.12g}) on, "
            f"{self.crs.to_string() if self.crs else 'no CRS'}"
        )


def describe(source: Source, bands: tuple[int, ...] | None) -> Scene | SetAside:
    """Read the headers of a scene's files.

    Args:
        source: the files.
        bands: `data.bands`.

    Returns:
        The scene, or why it cannot be used.
    """
    try:
        headers = [_header(source.image), *(_header(path, "data.stack") for path in source.stack)]
        for other in headers[1:]:
            if not _same_grid(headers[0], other):
                raise _MisfitError(
                    f"{other.path} has another pixel grid ({other.grid}) than {headers[0].path} ({headers[0].grid}), "
                    "and the files of a scene are stacked pixel on pixel; bring it to that grid (gdalwarp -t_srs -te "
                    "-ts), or leave it out of data.stack"
                )
        return _scene(source, headers, bands)
    except _MisfitError as misfit:
        return source.aside(str(misfit))


def _header(path: str, option: str = "") -> _Header:
    if not Path(path).is_file():
        raise _MisfitError(f"{path} is no file" + (f", and {option} asks for it" if option else ""))
    try:
        with quiet_open(path) as dataset:
            _require_one(dataset, path)
            return _Header(
                path=path,
                height=dataset.height,
                width=dataset.width,
                transform=dataset.transform,
                crs=dataset.crs,
                dtypes=dataset.dtypes,
                descriptions=dataset.descriptions,
                alpha=tuple(colour == ColorInterp.alpha for colour in dataset.colorinterp),
                nodata=dataset.nodata,
                bytes=Path(path).stat().st_size,
                stamp=tuple(_stamps(dataset, path)),
            )
    except (RasterioError, OSError) as error:
        raise _MisfitError(
            f"{path} is no raster that GDAL can read, such as a GeoTIFF ({gdal_reason(error)})"
        ) from None


def _require_one(dataset: Any, path: str) -> None:
    """Refuse a file of several rasters, such as the pages of a TIFF, of which GDAL takes the first, or none."""
    if len(parts := dataset.subdatasets) > 1:
        shown = ", ".join(parts[:_PARTS_SHOWN]) + (", ..." if len(parts) > _PARTS_SHOWN else "")
        raise _MisfitError(
            f"{path} holds {len(parts)} rasters ({shown}), and an image must be one; write the one that is meant into "
            "a file of its own (gdal_translate, with that name)"
        )


def file_facts(path: str) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; zeros for what is not there."""
    try:
        facts = Path(path).stat()
    except OSError:
        return 0, 0
    return facts.st_size, facts.st_mtime_ns


def _stamps(dataset: Any, path: str, depth: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name without its directory, size and time of change of each file that pixels or masks come from."""
    # To list them GDAL looks for some forty companions, of which a GeoTIFF has pixels in one.
    files = [path] if dataset.driver == "GTiff" else [str(Path(file)) for file in dataset.files]
    for file in files:
        for one in (file, f"{file}.msk"):
            if any(facts := file_facts(one)):
                yield Path(one).name, *facts
        # A mosaic of mosaics.
        if dataset.driver == "VRT" and file.endswith(".vrt") and Path(file) != Path(path) and depth < _NESTED:
            with contextlib.suppress(RasterioError, OSError), quiet_open(file) as inner:
                yield from _stamps(inner, file, depth + 1)


def _same_grid(one: _Header, other: _Header) -> bool:
    if (one.height, one.width) != (other.height, other.width) or bool(one.crs != other.crs):
        return False
    corners = [(0, 0), (one.width, 0), (0, one.height), (one.width, one.height)]
    back = ~one.transform
    apart = [
        abs(place - moved)
        for corner in corners
        for place, moved in zip(corner, back @ (other.transform @ corner), strict=True)
    ]
    return bool(max(apart) <= _GRID_TOLERANCE)


def _scene(source: Source, headers: Sequence[_Header], bands: tuple[int, ...] | None) -> Scene:
    first = headers[0]
    file_of = [header for header in headers for _ in header.dtypes]
    dtypes = [dtype for header in headers for dtype in header.dtypes]
    alpha = [is_alpha for header in headers for is_alpha in header.alpha]
    chosen = bands or tuple(number for number, is_alpha in enumerate(alpha, 1) if not is_alpha)
    if missing := [number for number in chosen if number > len(dtypes)]:
        have = f"{first.path} has" if len(headers) == 1 else f"{first.path} and the files stacked on it have"
        raise _MisfitError(f"data.bands asks for band {missing[0]}, {have} bands 1 to {len(dtypes)}")
    # By path: of a file of which no band is chosen nothing counts but its grid.
    used = {file_of[number - 1].path: file_of[number - 1] for number in sorted(chosen)}
    dtype = _common_dtype([dtypes[number - 1] for number in chosen], list(used) or [first.path])
    crs = first.crs.to_string() if first.crs else None
    names = _band_names([name for header in headers for name in header.descriptions])
    nodata = (header.nodata for header in used.values() if header.nodata is not None and _fits(header.nodata, dtype))
    return Scene(
        scene_id=source.scene_id,
        split=source.split,
        image=source.image,
        stack=source.stack,
        label=source.label,
        height=first.height,
        width=first.width,
        count=len(dtypes),
        dtype=dtype,
        crs=crs,
        transform=first.transform,
        nodata=next(nodata, None),
        bands=chosen,
        band_names=tuple(names[number - 1] for number in chosen),
        pixel_size=_ground_pixel_size(crs, first.transform, first.height, first.width),
        image_bytes=sum(header.bytes for header in headers),
        image_stamp=sha256(repr([header.stamp for header in headers]).encode()).hexdigest()[:16],
        label_bytes=_size(source.label),
    )


def _size(label: str | None) -> int:
    try:
        return Path(label).stat().st_size if label else 0
    except OSError as error:
        raise _MisfitError(f"label {label} could not be read ({error.strerror})") from None


def _common_dtype(dtypes: Sequence[str], paths: Sequence[str]) -> str:
    """The smallest type that holds the values of all bands.

    Raises:
        _MisfitError: when it is none that chips can have.
    """
    known = f"known are {', '.join(SUPPORTED_DTYPES)}"
    if unknown := [dtype for dtype in dtypes or ["none"] if dtype not in SUPPORTED_DTYPES]:
        raise _MisfitError(f"{' or '.join(paths)} has pixels of type {unknown[0]}; {known}")
    common = np.result_type(*dtypes).name
    if common not in SUPPORTED_DTYPES:
        raise _MisfitError(
            f"{' and '.join(paths)} hold bands of {' and '.join(sorted(set(dtypes)))}, which only {common} has room "
            f"for; {known}: convert a file, or leave bands out with data.bands"
        )
    return common


def _band_names(descriptions: Sequence[str | None]) -> list[str]:
    """A name for each band: its description unless another one has the same, else band_1, band_2, ..."""
    plain = [f"band_{number}" for number in range(1, len(descriptions) + 1)]
    times = Counter(descriptions)
    names = [
        description if description and times[description] == 1 else name
        for description, name in zip(descriptions, plain, strict=True)
    ]
    # A description may itself be the number of another band.
    return names if len(set(names)) == len(names) else plain


def _fits(nodata: float, dtype: str) -> bool:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return not np.isfinite(nodata) or abs(nodata) <= float(np.finfo(kind).max) * (1 + 1e-6)
    limits = np.iinfo(kind)
    return float(nodata).is_integer() and limits.min <= nodata <= limits.max


@lru_cache(maxsize=64)
def to_lon_lat(crs: str) -> pyproj.Transformer:
    """From x and y in a CRS to degrees of longitude and latitude."""
    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


def _ground_pixel_size(crs: str | None, transform: Affine, height: int, width: int) -> float | None:
    """Geometric mean of a pixel's two sides on the WGS 84 ellipsoid, at the scene's centre, in metres."""
    if crs is None:
        return None
    col, row = width / 2, height / 2
    corners = [transform @ point for point in ((col, row), (col + 1, row), (col, row + 1))]
    try:
        lon, lat = to_lon_lat(crs).transform([x for x, _ in corners], [y for _, y in corners], errcheck=True)
    except pyproj.exceptions.ProjError:
        return None
    geod = pyproj.Geod(ellps="WGS84")
    _, _, across = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, down = geod.inv(lon[0], lat[0], lon[2], lat[2])
    return float(np.sqrt(across * down))
