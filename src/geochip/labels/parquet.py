"""GeoParquet, read through GeoPandas: GDAL mostly comes without what it needs for it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj

from geochip.files import require_regular
from geochip.labels.errors import LabelError, one_line
from geochip.labels.grid import Bounds
from geochip.names import composed

PARQUET_SUFFIXES = (".parquet", ".geoparquet")

_FAULTS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    pa.ArrowException,
    pyproj.exceptions.ProjError,
)
"""What GeoPandas raises for a damaged file: it takes the words of its metadata as they come."""


@dataclass(frozen=True, kw_only=True)
class ParquetFeatures:
    """What was read of a GeoParquet."""

    geometries: npt.NDArray[Any]
    """(n,) of dtype object."""
    column: npt.NDArray[Any] | None
    """The values of the property that was asked for; None when there is none of that name."""
    columns: tuple[str, ...]
    """All properties, where the one that was asked for is not among them."""
    crs: str | None
    """As a key for `known_crs`; longitude and latitude where the file does not say, as the format has it."""
    filtered: bool
    """Whether only what lies within the bounds was read."""


def is_parquet(path: str) -> bool:
    """Whether a file is GeoParquet, by its name."""
    return Path(path).suffix.lower() in PARQUET_SUFFIXES


def read_parquet(path: str, column: str | None, bounds: Bounds | None) -> ParquetFeatures:
    """Read features of a GeoParquet, in the order of its rows.

    Args:
        path: the file.
        column: the property to read with them; None: none.
        bounds: of what is wanted, in the file's CRS, where the file has a column of its features' bounds; others are
            read whole. None: everything.

    Raises:
        LabelError: for a Parquet file without geometries, and for a damaged one.
    """
    geometry, names, _, covered = _facts(path)
    if column is not None:
        # A name may be composed otherwise than the run file's.
        column = next((name for name in names if composed(name) == composed(column)), column)
    known = column is not None and column in names
    box = bounds if covered else None
    try:
        frame = gpd.read_parquet(
            path, columns=[geometry, *([column] if column is not None and known else [])], bbox=box
        )
        crs = frame.crs
        values = frame[column].to_numpy() if known else None
        geometries = np.asarray(frame.geometry.to_numpy(), object)
    except _FAULTS as error:
        raise _unreadable(path, error) from None
    return ParquetFeatures(
        geometries=geometries,
        column=None if values is None else np.asarray(values),
        columns=() if column is None or known else names,
        crs=None if crs is None else json.dumps(crs.to_string()),
        filtered=box is not None,
    )


def parquet_crs(path: str) -> str | None:
    """The CRS of a GeoParquet, as a key for `known_crs`.

    Raises:
        LabelError: as `read_parquet` does.
    """
    return _facts(path)[2]


def has_bounds(path: str) -> bool:
    """Whether a GeoParquet has a column of its features' bounds, so that a part of it can be read alone.

    Raises:
        LabelError: as `read_parquet` does.
    """
    return _facts(path)[3]


def batches(path: str) -> tuple[str, Iterator[pa.RecordBatch], pa.Schema]:
    """The rows of a GeoParquet, some at a time, with geometries as WKB.

    Returns:
        The name of the column of geometries, the batches and their schema.

    Raises:
        LabelError: as `read_parquet` does; the batches raise it too.
    """
    geometry, _, _, _ = _facts(path)
    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow.set(
            file.schema_arrow.get_field_index(geometry), pa.field(geometry, pa.binary())
        ).remove_metadata()
    except _FAULTS as error:
        raise _unreadable(path, error) from None

    def each() -> Iterator[pa.RecordBatch]:
        try:
            with file:
                for batch in file.iter_batches():
                    wkb = batch.column(geometry).cast(pa.binary())
                    columns = [wkb if name == geometry else batch.column(name) for name in schema.names]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)
        except _FAULTS as error:
            raise _unreadable(path, error) from None

    return geometry, each(), schema


def _facts(path: str) -> tuple[str, tuple[str, ...], str | None, bool]:
    """Name of the column of geometries, names of the properties, the CRS as a key, and whether bounds have a column.

    Raises:
        LabelError: as `read_parquet` does.
        OSError: when it is no regular file.
    """
    require_regular(path)
    try:
        metadata, schema = pq.read_metadata(path).metadata or {}, pq.read_schema(path)
        if b"geo" not in metadata:
            raise LabelError(
                f"label {path} is a Parquet table but no GeoParquet: its metadata has no 'geo', which says where the "
                "geometries are; write it with GeoDataFrame.to_parquet (GeoPandas), or as a GeoPackage"
            )
        geo = json.loads(metadata[b"geo"])
        geometry = geo["primary_column"]
        told = geo["columns"][geometry]
        names = tuple(name for name in schema.names if name not in geo["columns"])
        # Without a word of it, coordinates are longitude and latitude; null: nothing is known.
        crs = pyproj.CRS.from_user_input(told["crs"]) if told.get("crs") is not None else None
        declared = "OGC:CRS84" if "crs" not in told else None if crs is None else crs.to_string()
        covered = "covering" in told
    except _FAULTS as error:
        raise _unreadable(path, error) from None
    return geometry, names, None if declared is None else json.dumps(declared), covered


def _unreadable(path: str, error: Exception) -> LabelError:
    named = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
    return LabelError(f"label {path} could not be read as GeoParquet ({named[:300]}); mend or remove it")
