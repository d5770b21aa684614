"""Which formats of vector files are read: those that hold their features, and none that fetches them from elsewhere.

GDAL goes by what a file holds, whatever its name: a "label.geojson" may be a description of any other file of this
machine, of a service on the network, or of a command to run.
"""

import re
from pathlib import Path

from geochip.files import require_regular
from geochip.labels.errors import LabelError
from geochip.labels.geojson import document

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


def require_driver(path: str, driver: str) -> None:
    """Raise `LabelError` when what GDAL reads a file as is no format that holds its features itself."""
    if driver not in _DRIVERS:
        raise _elsewhere(path, f"GDAL reads it as {driver}")


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
