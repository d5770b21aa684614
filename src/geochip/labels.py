"""Labels: geometries of a vector file, drawn as class ids on a scene's own pixel grid."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyogrio.errors
import pyproj
import rasterio.features
import shapely
import shapely.errors
from affine import Affine

from geochip.errors import WorkError

# Of GEOS: MultiPoint, and after it the other collections.
_FIRST_COLLECTION_TYPE = 4

# A GeoJSON's "crs" member stands before or after the features: this much of either end is searched for it.
_HEAD_BYTES = 65_536


class LabelError(WorkError):
    """A label could not be read or does not fit its scene; the text names the file."""


def rasterize_label(
    path: str,
    *,
    height: int,
    width: int,
    transform: Affine,
    crs: str | None,
    classes: Sequence[str],
    class_property: str | None,
) -> npt.NDArray[np.uint8]:
    """Draw a label file on the grid of its scene.

    A pixel belongs to a geometry when its centre lies within; where geometries overlap, the later one in the file
    wins. Z coordinates are dropped; features without a geometry are skipped.

    Args:
        path: a vector file that GDAL reads, in any CRS; a GeoJSON without a "crs" member is in degrees of longitude and
            latitude (RFC 7946, section 4).
        height: rows of the scene.
        width: columns of the scene.
        transform: from (column, row) to (x, y) of the scene.
        crs: the scene's CRS; None when it has none, and then the label must have none either.
        classes: class names in the order of their ids.
        class_property: property that holds a feature's class name; None: every feature is of class 1.

    Returns:
        uint8 array (height, width) of class ids; 0 where no geometry is.

    Raises:
        LabelError: for a file that cannot be read, an unknown CRS, coordinates that do not fit it, a CRS on one side
            only, a missing class property or a class that `classes` does not hold.
    """
    frame = _read(path)
    frame = _in_crs_of_scene(frame, label_crs(path, frame), path, crs)
    # Features without a geometry are drawn nowhere: nothing about them can be wrong.
    geometries = frame.geometry.to_numpy()
    drawn = ~(shapely.is_missing(geometries) | shapely.is_empty(geometries))
    values = _class_ids(frame, drawn, path, classes, class_property)
    parts, owner = _simple_parts(geometries[drawn])
    if not len(parts):
        return np.zeros((height, width), np.uint8)
    try:
        label: npt.NDArray[np.uint8] = rasterio.features.rasterize(
            zip(parts, values[owner].tolist(), strict=True),
            out_shape=(height, width),
            transform=transform,
            fill=0,
            dtype="uint8",
            skip_invalid=False,
        )
    except ValueError as error:
        raise LabelError(f"label {path} holds a shape that cannot be drawn ({_one_line(error)}); mend it") from None
    return label


def _simple_parts(geometries: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Points, lines and polygons, flat, and for each the index of the geometry that it is a part of, in their order.

    rasterio draws nothing of a collection that holds one empty member.
    """
    parts, owner = shapely.force_2d(geometries), np.arange(len(geometries))
    while (shapely.get_type_id(parts) >= _FIRST_COLLECTION_TYPE).any():
        parts, index = shapely.get_parts(parts, return_index=True)
        owner = owner[index]
    filled = ~shapely.is_empty(parts)
    return parts[filled], owner[filled]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def label_crs(path: str, frame: gpd.GeoDataFrame | None = None) -> pyproj.CRS | None:
    """The CRS that a label file declares, read from its ends alone unless `frame` (the file, read) is given.

    GDAL takes a GeoJSON whose "crs" it does not know for longitude and latitude without a word, hence this.

    Returns:
        The CRS; None when the file declares that it has none ("crs": null), or when only reading it whole would tell.

    Raises:
        LabelError: when the file is missing or names a CRS that PROJ does not know.
    """
    if Path(path).suffix.lower() not in (".geojson", ".json"):
        return None if frame is None or frame.crs is None else pyproj.CRS(frame.crs)
    found = re.search(r'"crs"\s*:\s*(null|\{(?:[^{}]|\{[^{}]*\})*\})', _ends(path))
    if found is None:
        return pyproj.CRS("EPSG:4326")
    try:
        member = json.loads(found[1])
    except json.JSONDecodeError as error:
        raise LabelError(f"label {path} is no valid JSON in its crs member ({error}); mend the file") from None
    if member is None:
        return None
    name = (member.get("properties") or {}).get("name", member)
    try:
        return pyproj.CRS.from_user_input(name)
    except (pyproj.exceptions.CRSError, TypeError, AttributeError):
        raise LabelError(
            f"label {path} is in an unknown CRS: {name!r}; write one that PROJ knows, such as EPSG:32611"
        ) from None


def _ends(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(max(len(head), file.seek(0, 2) - _HEAD_BYTES))
            return (head + file.read()).decode("utf-8", "replace")
    except OSError as error:
        raise LabelError(f"label {path} could not be read ({error.strerror})") from None


def _read(path: str) -> gpd.GeoDataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = gpd.read_file(path)
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        shapely.errors.ShapelyError,
        OSError,
        ValueError,
    ) as error:
        raise LabelError(
            f"label {path} could not be read as a vector file ({_one_line(error)}); mend or remove it"
        ) from None
    if not isinstance(frame, gpd.GeoDataFrame):
        raise LabelError(f"label {path} holds no geometries; it must be a vector file such as GeoJSON")
    return frame


def _in_crs_of_scene(
    frame: gpd.GeoDataFrame, declared: pyproj.CRS | None, path: str, crs: str | None
) -> gpd.GeoDataFrame:
    if (declared is None) != (crs is None):
        has, lacks = ("the image", f"label {path}") if declared is None else (f"label {path}", "the image")
        named = crs if declared is None else declared.to_string()
        raise LabelError(
            f"{lacks} has no CRS while {has} is in {named}; assign one (gdal_edit.py -a_srs, or ogr2ogr -a_srs)"
        )
    if declared is None or crs is None or frame.empty:
        return frame
    bounds = frame.total_bounds
    if declared.is_geographic and np.abs(bounds[np.isfinite(bounds)]).max(initial=0) > 360:
        raise LabelError(
            f"label {path} has coordinates such as ({bounds[0]:.6g}, {bounds[1]:.6g}), which are no degrees, but is in "
            f"{declared.to_string()}; name its true CRS in the file"
        )
    if frame.crs is None or not pyproj.CRS(frame.crs).equals(declared, ignore_axis_order=True):
        frame = frame.set_crs(declared, allow_override=True)
    if pyproj.CRS(frame.crs).equals(pyproj.CRS(crs), ignore_axis_order=True):
        # Not even the rounding of a null transformation may move a vertex over a pixel's centre.
        return frame
    try:
        frame = frame.to_crs(crs)
    except pyproj.exceptions.ProjError as error:
        raise LabelError(
            f"label {path} is in {declared.to_string()}, which PROJ cannot relate to the image's CRS "
            f"({_one_line(error)}); give both one that it can"
        ) from None
    if not np.isfinite(frame.total_bounds[np.isfinite(bounds)]).all():
        raise LabelError(
            f"label {path} has coordinates outside of what {declared.to_string()} can be turned into {crs} for"
        )
    return frame


def _class_ids(
    frame: gpd.GeoDataFrame, drawn: npt.NDArray[np.bool_], path: str, classes: Sequence[str], class_property: str | None
) -> npt.NDArray[np.uint8]:
    """The class id of each feature that is drawn."""
    if class_property is None or not drawn.any():
        return np.ones(int(drawn.sum()), np.uint8)
    if class_property not in frame.columns:
        known = [str(name) for name in frame.columns if name != frame.geometry.name]
        raise LabelError(
            f"label {path} has no property {class_property!r}, which data.class_property asks for; it has "
            f"{', '.join(known) or 'none'}"
        )
    ids = {name: number for number, name in enumerate(classes)}
    found = []
    for number in np.flatnonzero(drawn):
        value = frame[class_property].iloc[number]
        # One missing value turns a whole column of integers into floats.
        name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if pd.isna(value) or name not in ids:
            shown = "no value" if pd.isna(value) else repr(name)
            raise LabelError(
                f"label {path}: feature {number} has {class_property} = {shown}, which is not in data.classes "
                f"({', '.join(classes)}); add it there, or mend the file"
            )
        found.append(ids[name])
    return np.array(found, np.uint8)
