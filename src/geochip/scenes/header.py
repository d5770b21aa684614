"""What the headers of a scene's files say, and whether they go together."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
from affine import Affine

from geochip.config import DataConfig
from geochip.files import require_regular
from geochip.gdal import GDAL_ERRORS
from geochip.geodesy import to_lon_lat
from geochip.names import RASTER_FAMILY, composed, fault_of_path, shown
from geochip.scenes.facts import BandFacts, band_facts, band_notices
from geochip.scenes.georeference import fault_of_transform, georeference_notice, unused_georeference
from geochip.scenes.missing import WRITE_AGAIN, uncounted_share, unwritten
from geochip.scenes.notices import Notice
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
    driver: str
    height: int
    width: int
    transform: Affine
    crs: Any
    """None without a geotransform: it tells nothing then."""
    dtypes: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    bands: tuple[BandFacts, ...]
    unused: str
    """Of `unused_georeference`."""
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


def describe(source: Source, data: DataConfig) -> Scene | SetAside:
    """Read the headers of a scene's files.

    Args:
        source: the files.
        data: which bands to use, what alpha bands are, and how many pixels may be missing.

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
        _require_degrees(headers[0])
        return _scene(source, headers, data)
    except _MisfitError as misfit:
        return source.aside(str(misfit))


def _header(path: str, option: str = "") -> _Header:
    _require_file(path, option)
    try:
        with quiet_open(path) as dataset:
            if not dataset.count:
                raise _MisfitError(f"{path} holds no band{_held_instead(dataset)}")
            _require_one(dataset, path)
            if fault := fault_of_transform(dataset.transform):
                raise _MisfitError(f"{path} has {fault}")
            return _Header(
                path=path,
                driver=dataset.driver,
                height=dataset.height,
                width=dataset.width,
                transform=dataset.transform,
                crs=None if dataset.transform == Affine.identity() else dataset.crs,
                dtypes=dataset.dtypes,
                descriptions=dataset.descriptions,
                bands=band_facts(dataset),
                unused=unused_georeference(dataset),
                bytes=Path(path).stat().st_size,
                stamp=tuple(_stamps(dataset, path)),
            )
    except GDAL_ERRORS as error:
        raise _MisfitError(
            f"{path} is no raster that GDAL can read, such as a GeoTIFF ({gdal_reason(error)})"
        ) from None


def _require_one(dataset: Any, path: str) -> None:
    """Refuse a file of several rasters, such as the pages of a TIFF, of which GDAL takes the first."""
    if len(parts := dataset.subdatasets) > 1:
        some = ", ".join(parts[:_PARTS_SHOWN]) + (", ..." if len(parts) > _PARTS_SHOWN else "")
        raise _MisfitError(
            f"{path} holds {len(parts)} rasters ({some}), and an image must be one; write the one that is meant into "
            "a file of its own (gdal_translate, with that name)"
        )


def _held_instead(dataset: Any) -> str:
    """Where to look for the pixels of a file without a band, such as a netCDF of several variables."""
    if not dataset.subdatasets:
        return "; leave it out"
    others = f", and {len(dataset.subdatasets) - 1} others" if len(dataset.subdatasets) > 1 else ""
    return f" of its own, but {dataset.subdatasets[0]}{others}; make a GeoTIFF of the one meant (gdal_translate)"


def _require_file(path: str, option: str) -> None:
    """See that there is a file that GDAL can be asked for.

    Raises:
        _MisfitError: when there is none; names one whose name is nearly the same.
    """
    try:
        if fault := fault_of_path(path):
            raise _MisfitError(f"{shown(path)} cannot be a file: {fault}")
        require_regular(path)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "" if gone else f" ({error.strerror})"
        beside = similar_file(path) if gone else None
        hint = "" if beside is None else f"; there is {beside}, so correct the name"
        asked = f", and {option} asks for it" if option else ""
        raise _MisfitError(f"{shown(path)} is no file{asked}{reason}{hint}") from None


def similar_file(path: str) -> str | None:
    """A file beside one that is not there whose name is the same but for case, suffix or Unicode's composition."""
    wanted = Path(path)
    same = _similar_names(str(wanted.parent)).get(_likeness(wanted.name), ())
    return str(wanted.with_name(same[0])) if same else None


@lru_cache(maxsize=16)
def _similar_names(directory: str) -> dict[str, tuple[str, ...]]:
    """Names of a directory's files, by what is left of them without case and suffix."""
    names: dict[str, tuple[str, ...]] = {}
    with contextlib.suppress(OSError):
        for path in sorted(Path(directory).iterdir()):
            if path.suffix.lower() in RASTER_FAMILY:
                names[_likeness(path.name)] = (*names.get(_likeness(path.name), ()), path.name)
    return names


def _likeness(name: str) -> str:
    return composed(Path(name).stem).casefold()


def _require_degrees(header: _Header) -> None:
    """See that coordinates of an image in degrees are degrees.

    Raises:
        _MisfitError: when they are not.
    """
    if not header.crs or not header.crs.is_geographic:
        return
    corners = [header.transform @ point for point in ((0, 0), (header.width, 0), (0, header.height))]
    # Half a pixel over the pole is usual; twice around the world nothing is.
    beyond = 90 + abs(header.transform.e)
    for x, y in corners:
        if abs(x) > 720 or abs(y) > beyond:
            raise _MisfitError(
                f"{header.path} has coordinates such as ({x:.9g}, {y:.9g}), which are no degrees, but is in "
                f"{header.crs.to_string()}; assign its true CRS (gdal_edit.py -a_srs)"
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
        # GDAL would wait for ever for what comes out of a named pipe.
        with contextlib.suppress(FileNotFoundError):
            require_regular(file)
        for one in (file, f"{file}.msk"):
            if any(facts := file_facts(one)):
                yield Path(one).name, *facts
        # A mosaic of mosaics.
        if dataset.driver == "VRT" and file.endswith(".vrt") and Path(file) != Path(path) and depth < _NESTED:
            with contextlib.suppress(*GDAL_ERRORS), quiet_open(file) as inner:
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


def _scene(source: Source, headers: Sequence[_Header], data: DataConfig) -> Scene:
    first = headers[0]
    file_of = [header for header in headers for _ in header.bands]
    bands = [band for header in headers for band in header.bands]
    chosen = data.bands or _bands_by_default(bands, data)
    if missing := [number for number in chosen if number > len(bands)]:
        have = f"{first.path} has" if len(headers) == 1 else f"{first.path} and the files stacked on it have"
        raise _MisfitError(f"data.bands asks for band {missing[0]}, {have} bands 1 to {len(bands)}")
    # By path: of a file of which no band is chosen nothing counts but its grid.
    used = {file_of[number - 1].path: file_of[number - 1] for number in sorted(chosen)}
    dtype = _common_dtype([bands[number - 1].dtype for number in chosen], list(used))
    crs = first.crs.to_string() if first.crs else None
    names = _band_names([name for header in headers for name in header.descriptions])
    values = [bands[number - 1].nodata for number in sorted(chosen)]
    return Scene(
        scene_id=source.scene_id,
        split=source.split,
        image=source.image,
        stack=source.stack,
        label=source.label,
        height=first.height,
        width=first.width,
        count=len(bands),
        dtype=dtype,
        crs=crs,
        transform=first.transform,
        nodata=next((value for value in values if value is not None and _fits(value, dtype)), None),
        band_nodata=_nodata_by_band(headers, chosen),
        alpha=data.alpha,
        bands=chosen,
        band_names=tuple(names[number - 1] for number in chosen),
        pixel_size=_ground_pixel_size(crs, first.transform, first.height, first.width),
        image_bytes=sum(header.bytes for header in headers),
        image_stamp=sha256(repr([header.stamp for header in headers]).encode()).hexdigest()[:16],
        label_bytes=_size(source.label),
        unused_georeference=first.unused,
        notices=tuple(_notices(headers, chosen, data)),
    )


def _bands_by_default(bands: Sequence[BandFacts], data: DataConfig) -> tuple[int, ...]:
    """All bands but those that are masks; an image of nothing but alpha is meant as it is."""
    every = tuple(range(1, len(bands) + 1))
    if data.alpha == "band":
        return every
    return tuple(number for number, band in zip(every, bands, strict=True) if not band.alpha) or every


def _chosen_of(headers: Sequence[_Header], chosen: Collection[int]) -> Iterator[tuple[_Header, int, list[int]]]:
    """Each file of which a band is chosen, the number of its first band in the scene, and its own numbers of them."""
    start = 1
    for header in headers:
        if own := sorted(number - start + 1 for number in chosen if start <= number < start + len(header.bands)):
            yield header, start, own
        start += len(header.bands)


def _nodata_by_band(headers: Sequence[_Header], chosen: Collection[int]) -> tuple[float | None, ...]:
    for header, _, own in _chosen_of(headers, chosen):
        # By their text: NaN is like NaN.
        if len({str(header.bands[number - 1].nodata) for number in own}) > 1:
            return tuple(band.nodata for one in headers for band in one.bands)
    return ()


def _notices(headers: Sequence[_Header], chosen: Collection[int], data: DataConfig) -> Iterator[Notice]:
    """What is to be told of how a scene's files are taken.

    Raises:
        _MisfitError: when more pixels are missing than `data.max_missing` allows.
    """
    if headers[0].unused:
        yield georeference_notice(headers[0].unused)
    for header, start, own in _chosen_of(headers, chosen):
        yield from band_notices(header.bands, own, start, data)
        share = uncounted_share(header.path, header.driver, header.bands, own, data)
        if share > data.max_missing:
            raise _MisfitError(
                f"{header.path}: {unwritten(share)}; data.max_missing allows {data.max_missing:.2%}. {WRITE_AGAIN}, "
                "or, if they are meant, allow it with --data.max_missing 1"
            )
        if share:
            yield Notice(kind="missing", level="warning", text=f"{unwritten(share)}. {WRITE_AGAIN}")


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
    if unknown := [dtype for dtype in dtypes if dtype not in SUPPORTED_DTYPES]:
        raise _MisfitError(f"{' or '.join(paths)} has pixels of type {unknown[0]}; {known}: {_conversion(unknown[0])}")
    common = np.result_type(*dtypes).name
    if common not in SUPPORTED_DTYPES:
        raise _MisfitError(
            f"{' and '.join(paths)} hold bands of {' and '.join(sorted(set(dtypes)))}, which only {common} has room "
            f"for; {known}: convert a file, or leave bands out with data.bands"
        )
    return common


def _conversion(dtype: str) -> str:
    """How to come from a type that chips cannot have to one that they can."""
    if dtype.startswith("complex"):
        return "write the part that is meant, such as the magnitude, into a file of its own (gdal_calc.py)"
    wanted = {"int64": "Int32 or Float64", "uint64": "UInt32 or Float64"}.get(dtype, "Float32")
    return f"convert it (gdal_translate -ot {wanted}), or choose other bands with data.bands"


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
    size = float(np.sqrt(across * down))
    return size if np.isfinite(size) else None
