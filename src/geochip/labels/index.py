"""Very large label files, copied once into a file that knows where its features are."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyogrio.raw
import shapely

from geochip.errors import WorkError
from geochip.files import refuse_foreign, sync
from geochip.labels.classes import as_text
from geochip.labels.damage import require_drawable
from geochip.labels.errors import LabelError, one_line
from geochip.labels.grid import is_geojson, is_raster, known_crs
from geochip.labels.parquet import has_bounds, is_parquet
from geochip.labels.source import INDEX_SUFFIX, ORDER, VectorSource, is_index, reading

LARGE = 4 * 2**20
"""Bytes of a label from which on a copy is worth it for one scene."""
# Of one that is shared by many.
_SMALLEST = 2**20

# Of these GDAL reads a part without going through the whole file.
_INDEXED = (".fgb", ".gpkg", ".shp", ".gdb", ".sqlite")

_UNFINISHED = ".index_"


def indexed_label(
    path: str, directory: Path, *, layer: str | None = None, key: str = "labels.layer", at_least: int = LARGE
) -> str:
    """The file to read in place of a label: a copy with a spatial index, when that is worth it.

    A GeoJSON must be gone through whole to find the features of one window. One of 10^6 polygons is copied into a
    FlatGeobuf instead, by one process, before many read it. The copy keeps the features' order, their properties (lists
    and dates as text), and the CRS that the file declares; heights and features without a geometry are left out.

    Args:
        path: the label.
        directory: where copies are kept; it is made when it is missing. A copy is named by its label's path, layer,
            size and time of change, and used again while those are the same.
        layer: the layer to copy; None: the only one, of a KML all folders.
        key: the key of the run file that names it, for errors.
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
    if facts.st_size < at_least or is_raster(path) or _has_index(source):
        return path
    layered = "" if layer is None else f"\0{layer}"
    digest = hashlib.sha256(f"{source}\0{facts.st_size}\0{facts.st_mtime_ns}{layered}".encode()).hexdigest()[:16]
    # Plain and short, whatever the label is called, for people and for GDAL; absolute, for workers elsewhere.
    target = directory.absolute() / f"{re.sub(r'[^A-Za-z0-9_-]', '_', source.stem[:50])}.{digest}{INDEX_SUFFIX}"
    if not target.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # Another process may make the same one: whole files take each other's place.
            with tempfile.TemporaryDirectory(dir=directory, prefix=_UNFINISHED) as name:
                copy = Path(name) / target.name
                _copy(path, copy, layer, key)
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
                copy.replace(target)
            sync(directory)
        except OSError as error:
            raise _unwritable(path, directory, error.strerror or str(error)) from None
    return str(target)


@contextlib.contextmanager
def indexed_labels(
    labels: Iterable[str], directory: Path, *, option: str, layer: str | None = None
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Copies with a spatial index of labels that are too large for every task to read whole, while the work lasts.

    Args:
        labels: the label of each scene; one that many scenes share is worth a copy sooner.
        directory: where copies are kept until the work is done.
        option: the key of the run file that says where that is, for errors.
        layer: labels.layer.

    Yields:
        (label, copy) of those that have one.

    Raises:
        InputError: when something else stands where the directory will be.
        WorkError: when a copy cannot be written.
    """
    refuse_foreign(directory, option)
    copies = []
    try:
        for label, scenes in sorted(Counter(labels).items()):
            # A label that cannot be read is told with its scene, by the worker that needs it.
            with contextlib.suppress(LabelError):
                at_least = max(_SMALLEST, LARGE // scenes)
                copies.append((label, indexed_label(label, directory, layer=layer, at_least=at_least)))
        yield tuple((label, copy) for label, copy in copies if copy != label)
    finally:
        remove_indexes(directory)


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
        elif is_index(path.name) and path.is_file():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _unwritable(path: str, directory: Path, reason: str) -> WorkError:
    return WorkError(
        f"label {path}: its index could not be written to {directory} ({reason}); make room there, or make it writable"
    )


def _has_index(source: Path) -> bool:
    """Whether a part of a file is read without going through the whole of it."""
    if is_parquet(str(source)):
        with reading(str(source)):
            return has_bounds(str(source))
    return source.suffix.lower() in _INDEXED


def _copy(path: str, target: Path, layer: str | None, key: str) -> None:
    with reading(path):
        source = VectorSource(path, layer, key)
        with source.batches() as (geometry, crs, batches, schema):
            drawn = _Batches(path, batches, schema, geometry)
            _write(drawn, target, None if crs is None else known_crs(crs).to_wkt())
        if is_geojson(path):
            require_drawable(path, drawn.lost, drawn.count)


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

    def __init__(self, path: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema, geometry: str) -> None:
        self.path, self.geometry = path, geometry
        self._batches = batches
        self._kept = [field for field in schema if field.name != geometry]
        self._binary = schema.field(geometry).type
        fields = [
            *(field if _simple(field.type) else pa.field(field.name, pa.string()) for field in self._kept),
            pa.field(geometry, self._binary),
            pa.field(ORDER, pa.int64()),
        ]
        self.schema = pa.schema([field.remove_metadata() for field in fields])
        self.failure: Exception | None = None
        self.count, self.lost = 0, list[int]()

    def __iter__(self) -> Iterator[Any]:
        try:
            for batch in self._batches:
                yield self._drawn(batch, self.count)
                self.count += batch.num_rows
        except Exception as error:
            self.failure = error
            raise

    def _drawn(self, batch: Any, start: int) -> Any:
        shapes = shapely.force_2d(shapely.from_wkb(batch.column(self.geometry).to_numpy(zero_copy_only=False)))
        points, owner = shapely.get_coordinates(shapes, return_index=True)
        if not np.isfinite(points).all():
            raise LabelError(f"label {self.path} holds a shape with a coordinate that is no number; mend it")
        drawn = np.unique(owner)
        self.lost += (np.setdiff1d(np.arange(len(shapes)), drawn) + start).tolist()
        columns = [_kept(batch.column(field.name).take(pa.array(drawn))) for field in self._kept]
        columns.append(pa.array(shapely.to_wkb(shapes[drawn]), self.schema.field(self.geometry).type))
        columns.append(pa.array(drawn + start, pa.int64()))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _kept(column: Any) -> Any:
    """A column as FlatGeobuf can hold it."""
    if _simple(column.type):
        return column
    return pa.array([None if value is None else as_text(value) for value in column.to_pylist()], pa.string())


def _simple(kind: Any) -> bool:
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )
