"""The manifest: a table that says which scene belongs to which split."""

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyogrio.errors

from geochip.config import DataConfig, SplitConfig
from geochip.errors import InputError
from geochip.files import require_regular
from geochip.layers import LayerError, chosen_layers
from geochip.names import composed, fault_of_id, fault_of_path, for_ogr, shown
from geochip.scenes.templates import filled, id_in

_PARQUET = (".parquet", ".geoparquet")
_ROWS = 100_000
_FILES = ("scene_id", "image", "label")
# pyarrow's own errors, GDAL's, and what pandas makes of a text that is no table.
_UNREADABLE = (
    OSError, ValueError, KeyError, OverflowError, MemoryError, pa.ArrowException, pyogrio.errors.DataSourceError,
    pyogrio.errors.DataLayerError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row."""

    scene_id: str
    split: str
    image: str
    """Path as the table has it; empty: by the template."""
    label: str
    """Path as the table has it; empty: by the template."""


def read_manifest(data: DataConfig, split: SplitConfig) -> dict[tuple[str, str], Entry]:
    """Read the table of `split.manifest`.

    Returns:
        Its rows whose split is among `data.splits`, by (split, scene id), in the order of the table.

    Raises:
        InputError: when it cannot be read, lacks a column, has a row without an id or with one that cannot name a file,
            or lists a scene twice.
    """
    path = Path(split.manifest or "")
    try:
        facts = require_regular(path)
    except OSError as error:
        raise InputError(
            f"split.manifest: {split.manifest} could not be read ({error.strerror}); give the path of the table of "
            "scenes"
        ) from None
    # A command asks for it once a scene.
    return _read(str(path.absolute()), facts.st_mtime_ns, facts.st_size, data, split.column, split.manifest_layer)


@lru_cache(maxsize=4)
def _read(
    path: str, mtime: int, size: int, data: DataConfig, column: str, layer: str | None
) -> dict[tuple[str, str], Entry]:
    cells = _cells(path, column, layer)
    entries: dict[tuple[str, str], Entry] = {}
    known: dict[str, tuple[int, str]] = {}
    named_after_images = "scene_id" not in cells
    for row, split in enumerate(cells[column]):
        if split not in data.splits:
            continue
        entry = _entry(path, row + 1, split, {name: cells[name][row] for name in _FILES if name in cells}, data)
        # The same image under two ids is one scene as well, and the same ground in two splits.
        image = os.path.abspath(Path(data.root) / entry.image) if entry.image else None
        where = composed(image or str(filled(data, data.image, split, entry.scene_id)))
        keys = [f"scene {entry.scene_id!r} of {split}", f"image {where}"]
        for key in reversed(keys) if image else keys:
            if key in known:
                first, of_split = known[key]
                both = f"in row {first} ({of_split}) and in row {row + 1} ({split})"
                raise InputError(_listed_twice(path, key, both, named_after_images=named_after_images))
            known[key] = (row + 1, split)
        entries[split, entry.scene_id] = entry
    return entries


def _listed_twice(path: str, key: str, both: str, *, named_after_images: bool) -> str:
    if key.startswith("image "):
        return f"split.manifest: {path} lists {key} twice, {both}; a scene belongs to one split, once: remove a row"
    if named_after_images:
        return (
            f"split.manifest: {path} lists images of one name, {key}, {both}, and without ids a scene is called by its "
            "image's name: add a column scene_id that gives each row a name of its own"
        )
    return (
        f"split.manifest: {path} lists {key} twice, {both}; a scene belongs to one split, once: give one of them "
        "another scene_id, with the path of its image in a column image, or remove a row that is too many"
    )


def _entry(path: str, number: int, split: str, row: Mapping[str, str], data: DataConfig) -> Entry:
    """One row, whose names have been looked at.

    Raises:
        InputError: when it has no id, or one that cannot name a file, or a path that cannot be one.
    """
    where = f"split.manifest: {path}"
    image, label, given = (row.get(name, "") for name in ("image", "label", "scene_id"))
    for name, value in (("image", image), ("label", label)):
        if fault := fault_of_path(value):
            raise InputError(f"{where} has {name} {shown(value)!r} in row {number}: {fault}; correct the row")
    scene_id = composed(given or _id_of(image, data, split))
    if not scene_id:
        empty = "scene_id" if "scene_id" in row else "image"
        raise InputError(f"{where} has no {empty} in row {number}; fill it in or remove the row")
    if fault := fault_of_id(scene_id):
        remedy = (
            "put paths into a column image, and a plain name into scene_id" if given else
            "add a column scene_id with a plain name, or rename the image"
        )  # fmt: skip
        raise InputError(
            f"{where} has scene_id {shown(scene_id)!r} in row {number}, which names files of the predictions and "
            f"{fault}: {remedy}"
        )
    return Entry(scene_id=scene_id, split=split, image=image, label=label)


def _cells(path: str, column: str, layer: str | None) -> dict[str, list[str]]:
    """The columns that count, as text.

    Raises:
        InputError: when the table cannot be read, or lacks what it needs.
    """
    try:
        number = _layer(path, layer)
        names = _columns(path, number)
        shown_names = ", ".join(names) or "none"
        # What a table calls Größe may be composed otherwise than what a run file calls so.
        spelt = {composed(name): name for name in reversed(names)}
        if composed(column) not in spelt:
            raise InputError(f"split.column: {path} has no column {column!r}; it has {shown_names}: name one of them")
        if not {"scene_id", "image"} & set(names):
            raise InputError(
                f"split.manifest: {path} has neither a column scene_id nor a column image; it has {shown_names}: add "
                "the scenes' ids, or the paths of their images"
            )
        wanted = {column: spelt[composed(column)], **{name: name for name in _FILES if name in names}}
        if doubled := [name for name in wanted.values() if names.count(name) > 1]:
            raise InputError(
                f"split.manifest: {path} has several columns {doubled[0]!r}; rename all but the one that counts"
            )
        table = _table(path, set(wanted.values()), number)
    except LayerError as error:
        raise InputError(f"split.manifest: {path} {error}") from None
    except _UNREADABLE as error:
        raise InputError(
            f"split.manifest: {path} could not be read ({' '.join(str(error).split())}); it must be a table such as "
            "CSV (in UTF-8), GeoPackage or GeoParquet"
        ) from None
    return {name: _texts(path, name, table[of_table]) for name, of_table in wanted.items()}


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()


def _layer(path: str, layer: str | None) -> int:
    """The number of the layer, or the sheet, that is meant; 0 for a format that has none.

    Raises:
        InputError, LayerError: when it cannot be told.
    """
    if _suffix(path) != ".csv" and _suffix(path) not in _PARQUET:
        return chosen_layers(path, layer, key="split.manifest_layer", tables=True)[0].index
    if layer is not None:
        raise InputError(
            f"split.manifest_layer: {path} holds one table and no layers; set split.manifest_layer to null"
        )
    return 0


def _columns(path: str, layer: int) -> list[str]:
    if _suffix(path) == ".csv":
        # Without a header, so that columns of one name keep it.
        for head in _csv(path, header=None, nrows=1):
            return [str(name).strip() for name in head.iloc[0]]
    if _suffix(path) in _PARQUET:
        return [str(name) for name in pq.read_schema(path).names]
    return [str(name) for name in pyogrio.read_info(for_ogr(path), layer=layer)["fields"]]


def _table(path: str, wanted: Collection[str], layer: int = 0) -> pd.DataFrame:
    """Some columns of it: a catalogue may hold many more, which would fill the memory."""
    if _suffix(path) == ".csv":
        parts = [part.rename(columns=str.strip)[list(wanted)] for part in _csv(path)]
        if any(not isinstance(part.index, pd.RangeIndex) for part in parts):
            # pandas takes the first column for row names then, and every cell for the one before it.
            raise ValueError("its rows have more cells than its first line has names")
        return pd.concat(parts, ignore_index=True)
    if _suffix(path) in _PARQUET:
        return pd.DataFrame(pq.read_table(path, columns=list(wanted)).to_pandas())
    return pd.DataFrame(pyogrio.read_dataframe(for_ogr(path), layer=layer, columns=list(wanted), read_geometry=False))


def _csv(path: str, **how: Any) -> Iterator[pd.DataFrame]:
    # Everything as text: 007 is an id, not a number. In parts, and not some columns alone: of a row with more cells
    # than names, which an unquoted comma makes, pandas would then say nothing.
    with pd.read_csv(
        path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True, chunksize=_ROWS, **how
    ) as parts:
        yield from parts


def _texts(path: str, name: str, column: "pd.Series[Any]") -> list[str]:
    """Cells as text; empty ones as "". A column of integers with gaps comes as floats.

    Raises:
        InputError: for a cell that is neither text nor a number.
    """
    texts = []
    for number, cell in enumerate(column.tolist(), 1):
        if isinstance(cell, (list, tuple, dict, set, bytes, np.ndarray)):
            raise InputError(
                f"split.manifest: {path} has a {type(cell).__name__} in its column {name!r}, row {number}, and only a "
                "text or a number names a scene or a file; correct the table"
            )
        whole = isinstance(cell, float) and cell.is_integer()
        texts.append("" if pd.isna(cell) else str(int(cell)) if whole else str(cell).strip())
    return texts


def _id_of(image: str, data: DataConfig, split: str) -> str:
    """The id in an image's path: what stands at {id} in the template, or the stem."""
    if not image:
        return ""
    return id_in(data, split, os.path.abspath(Path(data.root) / image)) or Path(image).stem
