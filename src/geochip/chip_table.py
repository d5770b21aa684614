"""The chips of a store as a table for GIS: where each one is on the map, and what it holds."""

from collections.abc import Mapping
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from geochip.geodesy import outlines
from geochip.store import CHIP_DROPPED, CHIP_UNREAD, CHIP_WRITTEN, ChipStore

_STATUS = {CHIP_WRITTEN: "written", CHIP_UNREAD: "unread", CHIP_DROPPED: "dropped"}
_ARRAYS = ("scene_id", "row_off", "col_off", "window_size", "status", "valid_fraction", "class_fraction", "transform")


def chips_frame(store: ChipStore, reasons: Mapping[str, str] | None = None) -> gpd.GeoDataFrame:
    """One row a chip, split by split, in the order of the positions.

    Args:
        store: a finished store.
        reasons: why scenes could not be read, by "split/scene_id".

    Returns:
        Columns split, position, scene_id, row_off, col_off, window_size, status ("written", "unread" or "dropped"),
        reason (of an unread one, else empty), valid_fraction, and a "fraction_" column for each class, shares of the
        valid pixels. The geometry is the chip's footprint in EPSG:4326; none for a chip without pixels or without a
        CRS.
    """
    names = store.attrs["class_names"]
    tables = [_table_of_split(store, split, names, reasons or {}) for split in store.splits]
    return gpd.GeoDataFrame(pd.concat(tables, ignore_index=True), geometry="geometry", crs="EPSG:4326")


def _table_of_split(store: ChipStore, split: str, names: list[str], reasons: Mapping[str, str]) -> pd.DataFrame:
    held = store.arrays(split, *_ARRAYS, "crs")
    chips = len(held["scene_id"])
    columns: dict[str, Any] = {"split": split, "position": np.arange(chips)}
    columns |= {name: held[name] for name in ("scene_id", "row_off", "col_off", "window_size")}
    columns["status"] = np.array([_STATUS[status] for status in held["status"].tolist()], object)
    columns["reason"] = np.array(
        [
            reasons.get(f"{split}/{scene_id}", "") if status == CHIP_UNREAD else ""
            for scene_id, status in zip(held["scene_id"], held["status"].tolist(), strict=True)
        ],
        object,
    )
    columns["valid_fraction"] = held["valid_fraction"]
    columns |= {f"fraction_{name}": held["class_fraction"][:, index] for index, name in enumerate(names)}
    columns["geometry"] = footprints(held["transform"], held["crs"], store.attrs["chip_size"])
    return pd.DataFrame(columns)


def footprints(transform: npt.NDArray[np.float64], crs: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """The outlines of chips on the map.

    Args:
        transform: (chip, 6) affine coefficients of each chip's grid; NaN for a chip that has none.
        crs: (chip,) each chip's CRS as text; empty without one.
        size: rows and columns of a chip.

    Returns:
        (chip,) polygons in EPSG:4326, cut into MultiPolygons at 180 degrees; None for a chip without a place on the
        earth.
    """
    found = np.full(len(crs), None, object)
    cols, rows = np.array([0, size, size, 0]), np.array([0, 0, size, size])
    a, b, c, d, e, f = transform.T[:, :, None]
    corners = np.stack([a * cols + b * rows + c, d * cols + e * rows + f], axis=-1)
    for text in sorted(set(crs) - {""}):
        of_crs = np.flatnonzero(crs == text)
        found[of_crs] = outlines(corners[of_crs], text)
    return found
