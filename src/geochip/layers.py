"""Which layers of a vector file are meant: a GeoPackage, a geodatabase or a KML may hold several.

GDAL takes the first one in silence. Here the one that a key of the run file names is taken, or the only one that holds
geometries; of several without a key none is.
"""

import functools
import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyogrio
import pyogrio.errors

from geochip.files import require_regular
from geochip.names import for_ogr

UNREADABLE = (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, OSError, ValueError, zipfile.BadZipFile)
"""What pyogrio, and what is here, raises for a file that cannot be read."""

FOLDERS = (".kml", ".kmz")
"""Formats whose layers are folders for a reader's eye: all of them together are what the author drew."""

# Formats that declare all of their layers whatever they hold.
_DECLARES_ALL = (".gpx",)
# Files of a shapefile that GDAL opens beside it.
_BESIDE_SHP = (".shx", ".dbf", ".prj", ".cpg", ".qix", ".sbn", ".sbx")
# GDAL's own descriptions of other files and services to read instead, whatever the file itself is called.
_POINTER = re.compile(rb"<OGR\w*DataSource")
_POINTER_DRIVERS = ("OGR_VRT", "GDALG")
_HEAD_BYTES = 4096
_SHOWN = 12


class LayerError(Exception):
    """Which layer is meant cannot be told, or the file must not be opened; the text follows on the file's name."""

    @classmethod
    def no_layers(cls, key: str) -> "LayerError":
        """What to say of a layer that is asked for in a format without layers."""
        return cls(f"is a GeoParquet, which holds one table and no layers; set {key} to null")


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a file."""

    name: str
    index: int
    spatial: bool
    """Whether it holds geometries; a table such as QGIS's layer_styles does not."""


def require_vector(path: str) -> None:
    """See that GDAL can open a vector file without waiting for ever and without reading another one instead.

    Args:
        path: a file, or a directory of files (a geodatabase, a folder of shapefiles).

    Raises:
        NotRegularError: for named pipes, sockets and devices, beside a shapefile or in a directory too.
        OSError: when it cannot be reached.
        LayerError: for a file that only points to other files (an OGR VRT).
    """
    where = Path(path)
    if where.is_dir():
        for entry in os.scandir(where):
            if not entry.is_dir():
                require_regular(entry.path)
        return
    require_regular(where)
    if where.suffix.lower() == ".shp":
        for suffix in _BESIDE_SHP:
            if (beside := where.with_suffix(suffix)).exists():
                require_regular(beside)
    with where.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if _POINTER.search(head):
        raise _points_elsewhere()


def _points_elsewhere() -> LayerError:
    return LayerError(
        "does not hold its features but says where GDAL finds them (an OGR VRT), and that may be any file or service; "
        "copy the features into a file of their own (ogr2ogr -f GPKG) and name that"
    )


def open_options(path: str) -> dict[str, Any]:
    """What to tell GDAL as it opens a file: that it shall write nothing beside it."""
    return {"WRITE_GFS": "NO"} if Path(path).suffix.lower() == ".gml" else {}


def layers_of(path: str) -> tuple[Layer, ...]:
    """The layers of a vector file, in its order.

    Raises:
        LayerError, or one of `UNREADABLE`: when it cannot be told.
    """
    require_vector(path)
    facts = Path(path).stat()
    return _layers(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=64)
def _layers(path: str, _mtime: int, _size: int) -> tuple[Layer, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if Path(path).suffix.lower() == ".zip" and pyogrio.read_info(for_ogr(path))["driver"] in _POINTER_DRIVERS:
            raise _points_elsewhere()
        found = (
            _gml_layers(path)
            if open_options(path)
            else [(name, kind) for name, kind in pyogrio.list_layers(for_ogr(path))]
        )
    if not found:
        raise ValueError("it holds no layer")
    return tuple(
        Layer(name=str(name), index=index, spatial=kind is not None) for index, (name, kind) in enumerate(found)
    )


def _gml_layers(path: str) -> list[tuple[str, str | None]]:
    """Of a file that GDAL must be told how to open, which only asking for one layer after the other allows."""
    found: list[tuple[str, str | None]] = []
    try:
        while True:
            info = pyogrio.read_info(for_ogr(path), layer=len(found), **open_options(path))
            found.append((info["layer_name"], info["geometry_type"]))
    except pyogrio.errors.DataLayerError:
        return found


def chosen_layers(path: str, named: str | None, *, key: str, tables: bool = False) -> tuple[Layer, ...]:
    """The layers of a file that are to be read.

    Args:
        path: the file.
        named: what the run file says; None: nothing.
        key: where it says so, such as "labels.layer".
        tables: whether layers without geometries are wanted as well.

    Returns:
        One layer; of a KML all, since its folders are no layers to its author.

    Raises:
        LayerError, or one of `UNREADABLE`: when several may be meant, or none is there of that name.
    """
    layers = layers_of(path)
    wanted = [layer for layer in layers if tables or layer.spatial] or list(layers)
    if named is not None:
        return (_named_layer(layers, wanted, named, key),)
    if len(wanted) > 1 and Path(path).suffix.lower() in _DECLARES_ALL:
        wanted = [layer for layer in wanted if _holds_features(path, layer)] or wanted[:1]
    if len(wanted) > 1 and Path(path).suffix.lower() not in FOLDERS:
        raise LayerError(
            f"holds {len(wanted)} layers, {_listed(wanted)}, and nothing says which is meant; name it with {key}"
        )
    return tuple(wanted)


def _holds_features(path: str, layer: Layer) -> bool:
    return bool(pyogrio.read_info(for_ogr(path), layer=layer.index, force_feature_count=True)["features"])


def _named_layer(layers: Sequence[Layer], wanted: Sequence[Layer], named: str, key: str) -> Layer:
    meant = [layer for layer in layers if layer.name == named]
    if len(meant) == 1 and meant[0] in wanted:
        return meant[0]
    if len(meant) == 1:
        found = f"holds no geometries in layer {named!r}, which {key} asks for"
    else:
        found = f"has {f'{len(meant)} layers' if meant else 'no layer'} {named!r}, which {key} asks for"
    raise LayerError(
        f"{found}; it has {_listed(wanted)}: name one of them{', or set it to null' if len(wanted) == 1 else ''}"
    )


def _listed(layers: Sequence[Layer]) -> str:
    shown = ", ".join(layer.name for layer in layers[:_SHOWN])
    return shown + (f", ... ({len(layers)} in all)" if len(layers) > _SHOWN else "")


def size_of(path: str) -> int:
    """Bytes of a vector file; of a geodatabase, of all files in it."""
    where = Path(path)
    if where.is_dir():
        return sum(file.stat().st_size for file in where.rglob("*") if file.is_file())
    return where.stat().st_size
