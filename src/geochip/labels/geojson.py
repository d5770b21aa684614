"""GeoJSON: what stands at the top of a document, found by its structure.

GDAL takes a document whose "crs" it does not understand for longitude and latitude without a word, so what a document
says of it is read here. RFC 7946 knows no such member: without one, coordinates are longitude and latitude. GeoJSON of
2008, which GDAL and QGIS write to this day, names a CRS in it.
"""

import contextlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import shapely

from geochip.files import require_regular
from geochip.labels.errors import LabelError, one_line

_TYPES = (
    "FeatureCollection", "Feature", "Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon",
    "GeometryCollection",
)  # fmt: skip
_MARK = b"\xef\xbb\xbf"
# So much of a file shows whether it is JSON at all.
_HEAD_BYTES = 4096
LON_LAT = '"EPSG:4326"'
"""Key (see `geochip.labels.grid.declared_crs`) of the CRS that RFC 7946 means."""


class _Top(msgspec.Struct):
    """The members that matter; values of others are passed over, however much they hold."""

    type: msgspec.Raw = msgspec.Raw(b"null")
    crs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    reference: msgspec.Raw | msgspec.UnsetType = msgspec.field(name="coordRefSys", default=msgspec.UNSET)


class _Features(msgspec.Struct):
    features: list[msgspec.Raw] = msgspec.field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Document:
    """The top of a JSON document."""

    type: Any
    """Its "type" member; None without one."""
    crs: str | None
    """The key of its CRS; None where it says that it has none ("crs": null)."""
    geojson: bool
    """Whether it is GeoJSON, and not TopoJSON, Esri's JSON, JSON-FG, or something else."""


def document(path: str) -> Document | None:
    """What the top of a JSON document says; None for a file that is something else, or several documents.

    Raises:
        LabelError: when the file is missing, is no regular file, begins like JSON and is none, or has a crs member that
            is not understood.
    """
    if Path(path).is_dir():
        return None  # a geodatabase
    try:
        facts = require_regular(path)
    except OSError as error:
        raise LabelError(f"label {path} could not be read ({error.strerror})") from None
    return _document(path, facts.st_size, facts.st_mtime_ns)


def first_features(path: str, count: int) -> npt.NDArray[Any]:
    """The first features of a collection that have a geometry, without building any other; (n,), none for others."""
    with _bytes_of(path) as data:
        try:
            raw = msgspec.json.decode(data, type=_Features).features[:count]
        except (msgspec.MsgspecError, RecursionError):
            return np.array([], object)
        found = shapely.from_geojson([bytes(one) for one in raw], on_invalid="ignore")
        del raw
    geometries: npt.NDArray[Any] = found[~(shapely.is_missing(found) | shapely.is_empty(found))]
    return geometries


@lru_cache(maxsize=256)
def _document(path: str, _size: int, _changed: int) -> Document | None:
    with _bytes_of(path) as data:
        if bytes(data[:_HEAD_BYTES]).lstrip()[:1] != b"{":
            return None
        try:
            top = msgspec.json.decode(data, type=_Top)
            members = {"type": bytes(top.type)}
            members |= {} if isinstance(top.crs, msgspec.UnsetType) else {"crs": bytes(top.crs)}
            members |= {} if isinstance(top.reference, msgspec.UnsetType) else {"coordRefSys": bytes(top.reference)}
            del top
            return _described(path, {name: json.loads(value) for name, value in members.items()})
        except (msgspec.MsgspecError, RecursionError, ValueError):
            text = bytes(data).decode(errors="replace")
    try:
        # Slower, and less strict: GDAL too reads NaN.
        members, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError) as error:
        raise LabelError(
            f"label {path} could not be read as a vector file (it is no valid JSON: {one_line(error)}); mend or remove "
            "it"
        ) from None
    # One document after the other is a sequence of GeoJSON, which GDAL reads.
    return None if text.lstrip()[end:].strip() else _described(path, members)


@contextlib.contextmanager
def _bytes_of(path: str) -> Iterator[memoryview]:
    """A file's bytes without the mark that some editors begin it with; read as they are looked at."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) if size else b""
    except OSError as error:
        raise LabelError(f"label {path} could not be read ({error.strerror})") from None
    with memoryview(mapped) as whole, whole[len(_MARK) * (bytes(whole[: len(_MARK)]) == _MARK) :] as data:
        yield data


def _described(path: str, members: dict[str, Any]) -> Document:
    kind = members.get("type")
    known = isinstance(kind, str) and kind in _TYPES and "coordRefSys" not in members
    crs = _key(path, members["crs"]) if known and "crs" in members else LON_LAT
    return Document(type=kind, crs=crs, geojson=known)


def _key(path: str, member: Any) -> str | None:
    """What a crs member names, as a key; None for null."""
    if member is None:
        return None
    properties = member.get("properties") if isinstance(member, dict) else None
    if isinstance(properties, dict) and member.get("type") == "name" and properties.get("name"):
        return json.dumps(properties["name"])
    if isinstance(properties, dict) and member.get("type") == "EPSG" and properties.get("code"):
        return json.dumps(f"EPSG:{properties['code']}")
    if isinstance(member, dict) and properties is None and "type" in member and "name" in member:
        return json.dumps(member)  # a CRS written out, as PROJ does
    shown = json.dumps(member)
    raise LabelError(
        f"label {path} has a crs member that is not understood: {shown if len(shown) < 100 else shown[:97] + '...'}; "
        'write {"type": "name", "properties": {"name": "EPSG:32611"}} with its CRS, or leave the member out for '
        "longitude and latitude"
    )
