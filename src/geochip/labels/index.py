"""Very large label files, copied once into a file that knows where its features are."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio.raw
import shapely

from geochip.errors import WorkError
from geochip.files import sync
from geochip.labels.errors import LabelError, one_line
from geochip.labels.formats import require_features
from geochip.labels.grid import declared_crs, is_raster, known_crs
from geochip.labels.vector import INDEX_SUFFIX, ORDER, UNREADABLE
from geochip.names import for_ogr

# Of these GDAL reads a part without going through the whole file.
_INDEXED = (".fgb", ".gpkg", ".shp", ".gdb", ".sqlite")

_UNFINISHED = ".index_"
_COPY = re.compile(rf".*\.[0-9a-f]{{16}}{re.escape(INDEX_SUFFIX)}", re.DOTALL)


def indexed_label(path: str, directory: Path, *, at_least: int = 4 * 2**20) -> str:
    """The file to read in place of a label: a copy with a spatial index, when that is worth it.

    A GeoJSON must be gone through whole to find the features of one window. One of 10^6 polygons is copied into a
    FlatGeobuf instead, by one process, before many read it. The copy keeps the features' order, properties of
    numbers and texts, and the CRS that the file declares; heights and features without a geometry are left out.

    Args:
        path: the label.
        directory: where copies are kept; it is made when it is missing. A copy is named by its label's path, size and
            time of change, and used again while those are the same.
        at_least: size in bytes from which on a label is copied.

    Returns:
        The absolute path of the copy; `path` itself for smaller files, rasters and formats with an index of their own.

    Raises:
        LabelError: when the label cannot be read.
        WorkError: when the copy cannot be written.
    """
    source = Path(path).absolute()
    try:
        facts = source.stat()
    except OSError as error:
        raise LabelError(f"label {path} could not be read ({error.strerror})") from None
    if facts.st_size < at_least or is_raster(path) or source.suffix.lower() in _INDEXED:
        return path
    digest = hashlib.sha256(f"{source}\0{facts.st_size}\0{facts.st_mtime_ns}".encode()).hexdigest()[:16]
    # Plain and short, whatever the label is called, for people and for GDAL; absolute, for workers elsewhere.
    target = directory.absolute() / f"{re.sub(r'[^A-Za-z0-9_-]', '_', source.stem[:50])}.{digest}{INDEX_SUFFIX}"
    if not target.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Another process may make the same one: whole files take each other's place.
            with tempfile.TemporaryDirectory(dir=directory, prefix=_UNFINISHED) as name:
                copy = Path(name) / target.name
                _copy(path, copy)
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
                copy.replace(target)
            sync(directory)
        except OSError as error:
            raise _unwritable(path, directory, error.strerror or str(error)) from None
    return str(target)


def remove_indexes(directory: Path) -> None:
    """Remove the copies that `indexed_label` made, and what killed ones left; nothing else, and through no link.

    Args:
        directory: where they are kept; it goes as well, unless it holds something else.
    """
    if directory.is_symlink() or not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir() and path.name.startswith(_UNFINISHED):
            shutil.rmtree(path, ignore_errors=True)
        elif _COPY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _unwritable(path: str, directory: Path, reason: str) -> WorkError:
    return WorkError(
        f"label {path}: its index could not be written to {directory} ({reason}); make room there, or make it writable"
    )


def _copy(path: str, target: Path) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require_features(path)
            with pyogrio.raw.open_arrow(for_ogr(path), use_pyarrow=True) as (meta, reader):
                crs = declared_crs(path, meta["crs"])
                geometry = meta["geometry_name"] or "wkb_geometry"
                if geometry not in reader.schema.names:
                    raise LabelError(f"label {path} holds no geometries; it must be a vector file such as GeoJSON")
                _write(_Batches(path, reader, geometry), target, None if crs is None else known_crs(crs).to_wkt())
    except UNREADABLE as error:
        raise LabelError(
            f"label {path} could not be read as a vector file ({one_line(error)}); mend or remove it"
        ) from None


def _write(batches: "_Batches", target: Path, crs: str | None) -> None:
    stream = pa.RecordBatchReader.from_batches(batches.schema, batches)
    try:
        pyogrio.raw.write_arrow(
            stream, target, driver="FlatGeobuf", geometry_name=batches.geometry, geometry_type="Unknown", crs=crs
        )
    except RuntimeError as error:
        # Of a failure in reading, the writer knows that it was one, and no more.
        raise batches.failure or _unwritable(batches.path, target.parent.parent, one_line(error)) from None


class _Batches:
    """Record batches of the features of a file that are drawn, with their places in the file."""

    def __init__(self, path: str, reader: Any, geometry: str) -> None:
        self.path, self.geometry = path, geometry
        self._reader = reader
        self._kept = [field for field in reader.schema if field.name != geometry and _simple(field.type)]
        fields = [*self._kept, reader.schema.field(geometry), pa.field(ORDER, pa.int64())]
        self.schema = pa.schema([field.remove_metadata() for field in fields])
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[Any]:
        start = 0
        try:
            for batch in self._reader:
                yield self._drawn(batch, start)
                start += batch.num_rows
        except Exception as error:
            self.failure = error
            raise

    def _drawn(self, batch: Any, start: int) -> Any:
        shapes = shapely.force_2d(shapely.from_wkb(batch.column(self.geometry).to_numpy(zero_copy_only=False)))
        points, owner = shapely.get_coordinates(shapes, return_index=True)
        if not np.isfinite(points).all():
            raise LabelError(f"label {self.path} holds a shape with a coordinate that is no number; mend it")
        drawn = np.unique(owner)
        columns = [batch.column(field.name).take(pa.array(drawn)) for field in self._kept]
        columns.append(pa.array(shapely.to_wkb(shapes[drawn]), self.schema.field(self.geometry).type))
        columns.append(pa.array(drawn + start, pa.int64()))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _simple(kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )
