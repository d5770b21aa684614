"""Which formats of vector files are read: those that hold their features, and none that fetches them from elsewhere.

GDAL goes by what a file holds, whatever its name: a "label.geojson" may be a description of any other file of this
machine, of a service on the network, or of a command to run.
"""

import math
import re
from pathlib import Path
from typing import Any

import pyogrio

from geochip.files import require_regular
from geochip.labels.errors import LabelError
from geochip.labels.geojson import document
from geochip.names import for_ogr

_DRIVERS = frozenset({
    "AIVector", "Arrow", "AVCBin", "AVCE00", "CSV", "DGN", "DXF", "EDIGEO", "ESRI Shapefile", "ESRIJSON", "FlatGeobuf",
    "GeoJSON", "GeoJSONSeq", "GeoRSS", "GML", "GPKG", "GPX", "Idrisi", "JML", "JSONFG", "KML", "LIBKML", "LVBAG",
    "MapInfo File", "MapML", "MBTiles", "MiraMonVector", "MVT", "ODS", "OGR_GMT", "OpenFileGDB", "OSM", "Parquet",
    "PDS4", "PMTiles", "S57", "Selafin", "SQLite", "SXF", "TopoJSON", "VDV", "VFK", "WAsP", "XLSX",
})  # fmt: skip
# GDAL's own descriptions of data elsewhere. It knows them by these words, wherever they stand at a file's beginning: in
# a string of a GeoJSON too, which it then reads as the description.
_DESCRIPTION = re.compile(rb"<OGR\w*DataSource")
_COMMAND = "gdal_streamed_alg"
_HEAD_BYTES = 65_536


def vector_info(path: str) -> dict[str, Any]:
    """What GDAL says of a vector file, once it is known to be one that holds its features itself.

    Args:
        path: the file.

    Returns:
        As `pyogrio.read_info`.

    Raises:
        LabelError: when it describes data that lie elsewhere.
        OSError, pyogrio.errors.DataSourceError: when it cannot be read.
    """
    require_features(path)
    info: dict[str, Any] = pyogrio.read_info(for_ogr(path))
    if info["driver"] not in _DRIVERS:
        raise _elsewhere(path, f"GDAL reads it as {info['driver']}")
    return info


def vector_bounds(path: str) -> tuple[float, float, float, float] | None:
    """Bounds of all features; None when there are none, or one with a coordinate that is no number.

    Raises:
        LabelError, OSError, pyogrio.errors.DataSourceError: when it cannot be read.
    """
    require_features(path)
    found = pyogrio.read_info(for_ogr(path), force_total_bounds=True)["total_bounds"]
    if found is None or not all(map(math.isfinite, found)):
        return None
    west, south, east, north = map(float, found)
    return west, south, east, north


def require_features(path: str) -> None:
    """See, before GDAL opens it, that a file does not send GDAL elsewhere.

    Raises:
        LabelError: when it does.
    """
    where = Path(path)
    if where.is_dir():
        return  # a geodatabase
    require_regular(where)
    with where.open("rb") as file:
        if found := _DESCRIPTION.search(file.read(_HEAD_BYTES)):
            raise _elsewhere(path, f"it has {found[0].decode()}> at its beginning")
    top = document(path)
    if top is not None and top.type == _COMMAND:
        raise _elsewhere(path, f"its type is {_COMMAND}, a command of GDAL")


def _elsewhere(path: str, why: str) -> LabelError:
    return LabelError(
        f"label {path} does not hold its features but says where GDAL finds them ({why}), and that may be any file or "
        "service; copy the features into a file of their own (ogr2ogr -f GPKG) and name that"
    )
