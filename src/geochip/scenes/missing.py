"""Pixels that a file has room for and no bytes of: what a writer that was killed did not come to, gaps of a mosaic.

GDAL reads them as nodata where the file declares a value, and as zeros where it does not.
"""

import contextlib
import struct
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import shapely

from geochip.config import DataConfig
from geochip.files import require_regular
from geochip.gdal import GDAL_ERRORS
from geochip.scenes.facts import BandFacts
from geochip.scenes.reader import quiet_open

# Files of a mosaic that are looked into, evenly spread over it, and mosaics of mosaics that are followed.
_LOOKED_INTO = 32
_NESTED = 3

# A file of nothing but pixels: cut short it reads as zeros.
_RAW_DRIVERS = ("ENVI", "EHdr")

# Of a TIFF: bytes of a value by its type, and the tags that say how long each strip or tile is.
_VALUE_BYTES = {3: 2, 4: 4, 13: 4, 16: 8, 18: 8}
_BYTE_COUNTS = (279, 325)
_PIXEL_SAMPLES, _PLANES = 277, 284


WRITE_AGAIN = "Write the file again, or, if zeros are no data, declare them (gdal_edit.py -a_nodata 0)"


def unwritten(share: float) -> str:
    """What a share of pixels without bytes means, in words."""
    return (
        f"{share:.2%} of its pixels were never written, as when the program that wrote it was killed, or a mosaic "
        "has gaps; it declares no nodata value, and so they count as zeros"
    )


def uncounted_share(path: str, driver: str, bands: Sequence[BandFacts], own: Sequence[int], data: DataConfig) -> float:
    """Share of the chosen bands' pixels that a file has no bytes of, and that count as data nevertheless.

    Where a mask says what is data, or each band has a value for what is not, nothing is missing.

    Args:
        path: the file.
        driver: GDAL's name of its format.
        bands: all of its bands.
        own: numbers of those that are chosen, from 1.
        data: says what alpha bands are.
    """
    alpha = {number for number, band in enumerate(bands, 1) if band.alpha}
    bare = [number for number in own if bands[number - 1].bare]
    if not bare or (data.alpha == "mask" and alpha and not alpha & set(own)):
        return 0.0
    return missing_share(path, driver, bare) * len(bare) / len(own)


def missing_share(path: str, driver: str, bands: Collection[int], depth: int = 0) -> float:
    """Share of the pixels of some bands that a file has no bytes of.

    Args:
        path: the file.
        driver: GDAL's name of its format.
        bands: its bands, counted from 1.
        depth: of mosaics that this one is part of.

    Returns:
        0 to 1; 0 for formats that do not tell.
    """
    with contextlib.suppress(*GDAL_ERRORS, ValueError, struct.error, ET.ParseError):
        if driver in ("GTiff", "COG"):
            return _missing_of_tiff(Path(path), bands)
        if driver == "VRT":
            with quiet_open(path) as dataset:
                return _missing_of_mosaic(dataset, path, bands, depth)
        if driver in _RAW_DRIVERS:
            with quiet_open(path) as dataset:
                return _missing_of_raw(dataset, Path(path))
    return 0.0


def _missing_of_raw(dataset: Any, path: Path) -> float:
    if dataset.tags(ns="ENVI").get("file_compression", "0") != "0":
        return 0.0
    item = max(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    whole: int = dataset.height * dataset.width * dataset.count * item
    return max(0.0, 1 - path.stat().st_size / whole)


def _missing_of_tiff(path: Path, bands: Collection[int]) -> float:
    """Share of strips or tiles of length 0.

    Read from the file itself: what GDAL calls blocks are parts of a strip where one strip is the whole image.
    """
    with path.open("rb") as file:
        tags = _first_directory(file, path.stat().st_size)
    counts = next((tags[tag] for tag in _BYTE_COUNTS if tag in tags), np.ones(1, np.uint64))
    if tags.get(_PLANES, [1])[0] == 2:
        # One band after the other.
        planes = int(tags.get(_PIXEL_SAMPLES, [1])[0])
        counts = counts[: len(counts) // planes * planes].reshape(planes, -1)[[band - 1 for band in sorted(bands)]]
    return float(np.mean(counts == 0)) if counts.size else 0.0


def _first_directory(file: BinaryIO, size: int) -> dict[int, npt.NDArray[np.uint64]]:
    """The tags of whole numbers of a TIFF's first directory, classic or BigTIFF."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack(f"{order}H", head[2:4])[0] == 43
    at = struct.unpack(f"{order}Q", head[8:16])[0] if big else struct.unpack(f"{order}I", head[4:8])[0]
    number, entry, place = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    file.seek(at)
    (entries,) = struct.unpack(f"{order}{number}", file.read(struct.calcsize(f"{order}{number}")))
    # No directory has as many as a damaged file may say.
    length = struct.calcsize(f"{order}{entry}") + place
    table = file.read(min(entries, 4096) * length)
    tags = {}
    for start in range(0, len(table) - length + 1, length):
        tag, kind, count = struct.unpack_from(f"{order}{entry}", table, start)
        each = _VALUE_BYTES.get(kind)
        if each is None or tag not in (*_BYTE_COUNTS, _PIXEL_SAMPLES, _PLANES) or count * each > size:
            continue
        values = table[start + length - place : start + length]
        if count * each > place:
            file.seek(struct.unpack(f"{order}{'Q' if big else 'I'}", values)[0])
            values = file.read(count * each)
        tags[tag] = np.frombuffer(values, f"{order}u{each}", min(count, len(values) // each)).astype(np.uint64)
    return tags


def _missing_of_mosaic(dataset: Any, path: str, bands: Collection[int], depth: int) -> float:
    """Share of a VRT that no file covers, or that is missing in those that do."""
    root = ET.fromstring(dataset.tags(ns="xml:VRT")["xml:VRT"])
    if root.get("subClass"):
        # Warped, pansharpened: computed, and not laid out from files.
        return 0.0
    whole = shapely.box(0, 0, dataset.width, dataset.height)
    shares = []
    for band in root.iterfind("VRTRasterBand"):
        if int(band.get("band", 0)) in bands and not band.get("subClass"):
            parts = [source for source in band if source.find("SourceFilename") is not None]
            places = [_place_of(source, whole) for source in parts]
            covered = shapely.intersection(shapely.union_all(places), whole).area / whole.area
            shares.append(1 - covered * (1 - _missing_of_parts(parts, places, path, depth)))
    return float(np.mean(shares)) if shares else 0.0


def _place_of(source: ET.Element, whole: shapely.Geometry) -> shapely.Geometry:
    place = source.find("DstRect")
    if place is None:
        return whole
    left, top, width, height = (float(place.get(name, 0)) for name in ("xOff", "yOff", "xSize", "ySize"))
    return shapely.box(left, top, left + width, top + height)


def _missing_of_parts(parts: Sequence[ET.Element], places: Sequence[Any], path: str, depth: int) -> float:
    """Share that is missing in the files of a mosaic, by the room that they take in it."""
    if depth >= _NESTED:
        return 0.0
    missing = room = 0.0
    step = -(-len(parts) // _LOOKED_INTO) or 1
    for source, place in list(zip(parts, places, strict=True))[::step]:
        named = source.find("SourceFilename")
        assert named is not None
        file = Path(named.text or "")
        if named.get("relativeToVRT") == "1":
            file = Path(path).parent / file
        with contextlib.suppress(*GDAL_ERRORS):
            require_regular(file)
            with quiet_open(str(file)) as inner:
                driver = inner.driver
            band = int(source.findtext("SourceBand", "1").removeprefix("mask,") or 1)
            # A nodata value that only the file declares is no nodata value of the mosaic.
            missing += place.area * missing_share(str(file), driver, [band], depth + 1)
            room += place.area
    return missing / room if room else 0.0
