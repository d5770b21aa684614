"""Damage of vector files that GDAL passes over: it reads what is left, and what is lost looks like background."""

import json
import struct
import xml.parsers.expat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from geochip.files import read_regular
from geochip.labels.errors import LabelError

# A shapefile's header: its length in 16-bit words stands at byte 24.
_SHP_HEADER = 100
_SHP_LENGTH = struct.Struct(">24xi")


def require_whole(path: str) -> None:
    """See that a file was not cut short, where GDAL reads what is left of one without a word.

    Args:
        path: the file; of formats for which GDAL tells itself nothing is looked at.

    Raises:
        LabelError: when a shapefile is shorter than its header says, or a GML ends before its last tag.
        OSError: when it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".shp":
        _require_length(path)
    elif suffix == ".gml":
        _require_xml(path)


def _require_length(path: str) -> None:
    where = Path(path)
    for file in (where, where.with_suffix(".shx")):
        if not file.exists():
            continue
        with file.open("rb") as opened:
            head = opened.read(_SHP_HEADER)
        size = file.stat().st_size
        if len(head) == _SHP_HEADER and size < (told := 2 * _SHP_LENGTH.unpack_from(head)[0]):
            raise LabelError(
                f"label {path} is cut short: {file.name} has {size} bytes, and its header says {told}; copy it again"
            )


def _require_xml(path: str) -> None:
    parser = xml.parsers.expat.ParserCreate()
    try:
        with Path(path).open("rb") as file:
            parser.ParseFile(file)
    except xml.parsers.expat.ExpatError as error:
        raise LabelError(f"label {path} is no whole XML ({error}), it may be cut short; copy it again") from None


def require_drawable(path: str, lost: Collection[int], count: int) -> None:
    """See that features of a GeoJSON without a geometry are meant to have none.

    GDAL makes none of a geometry without coordinates, or with text for numbers.

    Args:
        path: the GeoJSON.
        lost: numbers of the features that GDAL gives no geometry, or an empty one.
        count: how many features GDAL finds.

    Raises:
        LabelError: for a feature that has a geometry in the file and none that can be drawn.
    """
    if not len(lost) and count:
        return
    try:
        document = json.loads(read_regular(path))
    except (ValueError, RecursionError):
        # One feature a line, which GDAL reads too.
        return
    features = document.get("features") if isinstance(document, dict) else None
    if not isinstance(features, list):
        return
    wrong = [number for number, feature in enumerate(features) if not isinstance(feature, dict)]
    if len(features) == count:
        wrong += [number for number in lost if _has_coordinates(features[number].get("geometry"))]
    if wrong:
        raise LabelError(
            f"label {path}: feature {wrong[0]} has a geometry that cannot be drawn (coordinates are missing, or are no "
            "numbers); mend it, or set it to null"
        )


def _has_coordinates(geometry: Any) -> bool:
    """Whether a member `geometry` is more than null, or than a geometry that is declared empty."""
    if geometry is None:
        return False
    parts = geometry.get("coordinates", geometry.get("geometries")) if isinstance(geometry, dict) else None
    return not isinstance(parts, list) or _filled(parts)


def _filled(parts: Sequence[Any]) -> bool:
    return any(
        _filled(part) if isinstance(part, list) else not isinstance(part, dict) or _has_coordinates(part)
        for part in parts
    )
