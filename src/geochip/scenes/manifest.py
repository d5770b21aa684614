"""The manifest: a table that says which scene belongs to which split."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyogrio

from geochip.config import DataConfig, SplitConfig
from geochip.errors import InputError
from geochip.files import require_regular
from geochip.layers import UNREADABLE, LayerError, chosen_layers
from geochip.scenes.templates import filled, id_in

_PARQUET = (".parquet", ".geoparquet")


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
        InputError: when it cannot be read, lacks a column, has a row without an id, or lists a scene twice.
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
    table = _table(path, layer)
    shown = ", ".join(map(str, table.columns)) or "none"
    if column not in table.columns:
        raise InputError(f"split.column: {path} has no column {column!r}; it has {shown}: name one of them")
    if not {"scene_id", "image"} & set(table.columns):
        raise InputError(
            f"split.manifest: {path} has neither a column scene_id nor a column image; it has {shown}: add the "
            "scenes' ids, or the paths of their images"
        )
    texts = {name: _texts(table[name]) for name in (column, "scene_id", "image", "label") if name in table.columns}
    columns = [texts.get(name) for name in ("image", "label", "scene_id")]
    entries: dict[tuple[str, str], Entry] = {}
    rows: dict[str, tuple[int, str]] = {}
    for number, split in enumerate(texts[column]):
        if split not in data.splits:
            continue
        image, label, given = (cells[number] if cells else "" for cells in columns)
        scene_id = given or _id_of(image, data, split)
        if not scene_id:
            empty = "scene_id" if "scene_id" in texts else "image"
            raise InputError(f"split.manifest: {path} has no {empty} in row {number + 1}; fill it in or remove the row")
        # The same image under two ids is one scene as well, and the same ground in two splits.
        where = os.path.abspath(Path(data.root) / image) if image else filled(data, data.image, split, scene_id)
        for key in (f"scene {scene_id!r} of {split}", f"image {where}"):
            if key in rows:
                first, of_split = rows[key]
                raise InputError(
                    f"split.manifest: {path} lists {key} twice, in row {first} ({of_split}) and in row {number + 1} "
                    f"({split}); a scene belongs to one split, once: remove a row"
                )
            rows[key] = (number + 1, split)
        entries[split, scene_id] = Entry(scene_id=scene_id, split=split, image=image, label=label)
    return entries


def _table(path: str, layer: str | None) -> pd.DataFrame:
    suffix = Path(path).suffix.lower()
    if layer is not None and (suffix == ".csv" or suffix in _PARQUET):
        raise InputError(
            f"split.manifest_layer: {path} holds one table and no layers; set split.manifest_layer to null"
        )
    try:
        if suffix == ".csv":
            # Everything as text: 007 is an id, not a number.
            return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
        if suffix in _PARQUET:
            return pd.read_parquet(path)
        (chosen,) = chosen_layers(path, layer, key="split.manifest_layer", tables=True)
        return pd.DataFrame(pyogrio.read_dataframe(path, layer=chosen.index, read_geometry=False))
    except LayerError as error:
        raise InputError(f"split.manifest: {path} {error}") from None
    except (*UNREADABLE, pd.errors.ParserError) as error:
        raise InputError(
            f"split.manifest: {path} could not be read ({' '.join(str(error).split())}); it must be a table such as "
            "CSV, GeoPackage or GeoParquet"
        ) from None


def _texts(column: "pd.Series[Any]") -> list[str]:
    """Cells as text; empty ones as "". A column of integers with gaps comes as floats."""
    return [
        "" if pd.isna(cell) else str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()
        for cell in column.tolist()
    ]


def _id_of(image: str, data: DataConfig, split: str) -> str:
    """The id in an image's path: what stands at {id} in the template, or the stem."""
    if not image:
        return ""
    return id_in(data, split, os.path.abspath(Path(data.root) / image)) or Path(image).stem
