"""What a vector file holds, whatever its format: features of the layers that are meant, and a property of them."""

import contextlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyogrio
import pyogrio.raw
import shapely
import shapely.errors

from geochip.labels.cyclic import Geometries
from geochip.labels.damage import require_drawable, require_whole
from geochip.labels.errors import LabelError, one_line
from geochip.labels.formats import require_driver, require_features
from geochip.labels.grid import Bounds, declared_crs, is_geojson
from geochip.labels.parquet import batches as parquet_batches
from geochip.labels.parquet import is_parquet, parquet_crs, read_parquet
from geochip.layers import UNREADABLE as OF_LAYERS
from geochip.layers import LayerError, chosen_layers, open_options, require_vector, size_of
from geochip.names import composed, for_ogr

ORDER = "geochip_order"
"""Column of an index (see `indexed_label`) that holds each feature's place in the file that it was made from."""
INDEX_SUFFIX = ".fgb"
"""FlatGeobuf, what an index is written as."""

_INDEX_NAME = re.compile(r".*\.[0-9a-f]{16}\.fgb")

UNREADABLE = (*OF_LAYERS, LayerError, shapely.errors.ShapelyError)
"""What reading a vector file raises when the file is to blame."""

# Smaller files are read whole: that is quicker than asking them where their features are.
_FILTERED_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Features:
    """What was read of a vector file."""

    geometries: Geometries
    column: npt.NDArray[Any] | None
    """The values of the property that was asked for; None when there is none of that name."""
    columns: tuple[str, ...]
    """All properties, where the one that was asked for is not among them."""
    numbers: npt.NDArray[np.int64] | None
    """Each feature's number in the file, for errors; None where only some were read of a file that does not say."""
    crs: str | None
    filtered: bool = False
    """Whether only some features were read."""
    bounds: Bounds | None = None
    """Of all features, where none of them lies near."""


def no_geometries(path: str) -> LabelError:
    """What to say of a table."""
    return LabelError(f"label {path} holds no geometries; it must be a vector file such as GeoJSON")


def is_index(path: str) -> bool:
    """Whether a file is a copy that `indexed_label` made, by its name."""
    return _INDEX_NAME.fullmatch(Path(path).name) is not None


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what goes wrong in reading a vector file into a `LabelError` that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LayerError as error:
        raise LabelError(f"label {path} {error}") from None
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise LabelError(f"label {path} could not be read ({error.strerror})") from None
        hint = "; unpack it and name the file in it" if Path(path).suffix.lower() == ".zip" else "; mend or remove it"
        raise LabelError(f"label {path} could not be read as a vector file ({one_line(error)}){hint}") from None


class VectorSource:
    """A vector file with the layers of it that are read; use it within `reading`.

    Args:
        path: the file.
        layer: the layer to read; None: the only one.
        key: the key of the run file that names it, for errors.

    Raises:
        LayerError, LabelError, or one of `UNREADABLE`.
    """

    def __init__(self, path: str, layer: str | None, key: str) -> None:
        require_features(path)
        self.path = path
        self.is_parquet = is_parquet(path)
        self._layers: tuple[int, ...] = (0,)
        if self.is_parquet:
            require_vector(path)
            if layer is not None:
                raise LayerError.no_layers(key)
        elif not is_index(path):
            self._layers = tuple(one.index for one in chosen_layers(path, layer, key=key))
        require_whole(path)
        self._of_gdal: str | None = None
        if not (self.is_parquet or is_geojson(path)):
            info = self._info(self._layers[0])
            require_driver(path, info["driver"])
            self._of_gdal = info["crs"]

    @property
    def filtered(self) -> bool:
        """Whether it is worth reading only what lies near."""
        # Folders of a KML are gone through whole for every reading.
        return len(self._layers) == 1 and size_of(self.path) >= _FILTERED_BYTES

    @property
    def in_one_go(self) -> bool:
        """Whether each reading goes through the whole file, so that all areas are better read at once."""
        return is_geojson(self.path) or self.is_parquet

    def crs(self) -> str | None:
        """The CRS that it declares, as a key for `known_crs`."""
        if self.is_parquet:
            return parquet_crs(self.path)
        return declared_crs(self.path, self._of_gdal)

    def bounds(self) -> Bounds | None:
        """Bounds of all its features; None when there are none, or one with a coordinate that is no number."""
        if self.is_parquet:
            found = [shapely.total_bounds(read_parquet(self.path, None, None).geometries)]
        else:
            told = [self._info(layer, force_total_bounds=True, force_feature_count=True) for layer in self._layers]
            # A shapefile without features says that they lie at (0, 0).
            known = [info["total_bounds"] for info in told if info["features"]]
            found = [np.array(one, np.float64) for one in known if one is not None]
        # Folders may be empty.
        found = [one for one in found if not np.isnan(one).all()] or [np.full(4, np.nan)]
        west, south, *_ = np.min(found, axis=0).tolist()
        *_, east, north = np.max(found, axis=0).tolist()
        return (west, south, east, north) if np.isfinite([west, south, east, north]).all() else None

    def read(self, column: str | None, bounds: Bounds | None) -> Features:
        """Read features, with the values of one property.

        Args:
            column: the property; None: of none.
            bounds: those that touch these, in the file's CRS; None: all.
        """
        if self.is_parquet:
            found = read_parquet(self.path, column, bounds)
            return Features(
                geometries=found.geometries,
                column=found.column,
                columns=found.columns,
                numbers=None if found.filtered else np.arange(len(found.geometries)),
                crs=found.crs,
                filtered=found.filtered,
            )
        parts = [self._read_layer(layer, column, bounds) for layer in self._layers]
        return parts[0] if len(parts) == 1 else _together(parts)

    @contextlib.contextmanager
    def batches(self) -> Iterator[tuple[str, str | None, Iterable[pa.RecordBatch], pa.Schema]]:
        """All its features as record batches, for a copy of it.

        Yields:
            The name of the column of geometries (WKB), the CRS as a key for `known_crs`, the batches and their schema.
        """
        if self.is_parquet:
            geometry, batches, schema = parquet_batches(self.path)
            yield geometry, parquet_crs(self.path), batches, schema
            return
        if len(self._layers) > 1:
            yield self._all_folders()
            return
        with pyogrio.raw.open_arrow(
            for_ogr(self.path), layer=self._layers[0], use_pyarrow=True, **open_options(self.path)
        ) as (
            meta,
            reader,
        ):
            geometry = meta["geometry_name"] or "wkb_geometry"
            if geometry not in reader.schema.names:
                raise no_geometries(self.path)
            yield geometry, declared_crs(self.path, meta["crs"]), reader, reader.schema

    def _all_folders(self) -> tuple[str, str | None, Iterable[pa.RecordBatch], pa.Schema]:
        """The features of a KML, whose folders may differ in their properties."""
        tables = []
        for layer in self._layers:
            meta, table = pyogrio.raw.read_arrow(for_ogr(self.path), layer=layer)
            tables.append(
                table.rename_columns(
                    [
                        "wkb_geometry" if name == (meta["geometry_name"] or "wkb_geometry") else name
                        for name in table.column_names
                    ]
                )
            )
        table = pa.concat_tables(tables, promote_options="permissive")
        return "wkb_geometry", declared_crs(self.path, meta["crs"]), table.to_batches(), table.schema

    def _info(self, layer: int, **how: Any) -> dict[str, Any]:
        info: dict[str, Any] = pyogrio.read_info(for_ogr(self.path), layer=layer, **how, **open_options(self.path))
        return info

    def _read_layer(self, layer: int, column: str | None, bounds: Bounds | None) -> Features:
        path = self.path
        column = self._as_spelt(layer, column)
        wanted = [*([column] if column else []), *([ORDER] if is_index(path) else [])]
        meta, fids, wkb, fields = pyogrio.raw.read(
            for_ogr(path),
            layer=layer,
            columns=wanted,
            bbox=bounds,
            return_fids=bounds is not None,
            **open_options(path),
        )
        if wkb is None:
            raise no_geometries(path)
        geometries = shapely.from_wkb(wkb)
        if bounds is None and is_geojson(path):
            lost = np.flatnonzero(shapely.is_missing(geometries) | shapely.is_empty(geometries))
            require_drawable(path, lost, len(geometries))
        kinds = dict(zip(meta["fields"].tolist(), meta["ogr_subtypes"], strict=True))
        columns = dict(zip(meta["fields"].tolist(), fields, strict=True))
        missing = column is not None and column not in columns
        values = _as_declared(columns[column], kinds[column]) if column in columns and column is not None else None
        numbers = np.arange(len(geometries)) if fids is None else fids
        if ORDER in columns or (bounds is not None and not is_geojson(path)):
            # An index gives features in an order of its own; a GeoJSON's come as they stand, whatever their ids.
            numbers = columns.get(ORDER, numbers)
            places = np.argsort(numbers, kind="stable")
            numbers, geometries = numbers[places], geometries[places]
            values = None if values is None else values[places]
        names = self._names(layer) if missing else ()
        return Features(
            geometries=geometries,
            column=values,
            columns=names,
            numbers=numbers,
            crs=declared_crs(path, meta["crs"]),
            filtered=bounds is not None,
        )

    def _names(self, layer: int) -> tuple[str, ...]:
        return tuple(name for name in self._info(layer)["fields"].tolist() if name != ORDER)

    def _as_spelt(self, layer: int, column: str | None) -> str | None:
        """A property's name as the file has it, which may be composed otherwise than the run file's."""
        if column is None or column.isascii():
            return column
        return next((name for name in self._names(layer) if composed(name) == composed(column)), column)


def _as_declared(values: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    """Values of a property; of true and false with gaps in between pyogrio makes numbers."""
    if kind != "OFSTBoolean" or values.dtype.kind != "f":
        return values
    found = np.full(len(values), None, object)
    known = np.isfinite(values)
    found[known] = values[known].astype(bool)
    return found


def _together(parts: Sequence[Features]) -> Features:
    """The features of several layers, one after the other; a property that only some have is missing in the others."""
    column = None
    if any(part.column is not None for part in parts):
        column = np.concatenate(
            [
                np.full(len(part.geometries), None, object) if part.column is None else part.column.astype(object)
                for part in parts
            ]
        )
    geometries = np.concatenate([part.geometries for part in parts])
    return replace(
        parts[0],
        geometries=geometries,
        column=column,
        columns=tuple(dict.fromkeys(name for part in parts for name in part.columns)),
        numbers=np.arange(len(geometries)),
    )


def joined(parts: Sequence[Features]) -> Features:
    """What was read in several areas, each feature once."""
    if len(parts) == 1:
        return parts[0]
    numbers, first = np.unique(
        np.concatenate([part.numbers for part in parts if part.numbers is not None]), return_index=True
    )
    values = [part.column for part in parts if part.column is not None]
    return replace(
        parts[0],
        geometries=np.concatenate([part.geometries for part in parts])[first],
        column=np.concatenate(values)[first] if values else None,
        numbers=numbers,
    )
