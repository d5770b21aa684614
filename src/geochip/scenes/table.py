"""Scenes and windows on the map: corners, footprints, and the catalogue as a table for GIS."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geochip.geodesy import cut_at_180, outlines, to_lon_lat
from geochip.scenes.catalogue import Catalogue
from geochip.scenes.reader import Scene
from geochip.scenes.regions import RECORD
from geochip.windows import Window


def corners(scene: Scene, windows: Sequence[Window], inset: float = 0.0) -> npt.NDArray[np.float64]:
    """The corners of windows on the ground.

    Args:
        scene: the scene.
        windows: its windows; a part that hangs over its edge counts.
        inset: so many pixels are taken off at every side.

    Returns:
        (window, 4, 2) x and y in the scene's CRS; upper left, upper right, lower right, lower left of the image.
    """
    edges = np.array(
        [(window.row_off, window.col_off, window.row_stop, window.col_stop) for window in windows], np.float64
    ).reshape(-1, 4)
    edges += (inset, inset, -inset, -inset)
    cols, rows = edges[:, [1, 3, 3, 1]], edges[:, [0, 0, 2, 2]]
    a, b, c, d, e, f = tuple(scene.transform)[:6]
    return np.stack([a * cols + b * rows + c, d * cols + e * rows + f], axis=-1)


def footprint(scene: Scene) -> shapely.Geometry | None:
    """The outline of a scene, or of its region, in EPSG:4326, cut at 180 degrees.

    Returns:
        None when nothing relates the scene to the earth.
    """
    if scene.crs is None:
        return None
    if scene.region is not None:
        return _region_on_earth(scene, scene.region)
    whole = Window(row_off=0, col_off=0, height=scene.height, width=scene.width)
    outline: shapely.Geometry | None = outlines(corners(scene, [whole]), scene.crs)[0]
    return outline


def _region_on_earth(scene: Scene, region: shapely.Geometry) -> shapely.Geometry | None:
    a, b, c, d, e, f = tuple(scene.transform)[:6]

    def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        cols, rows = points.T
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        return np.column_stack(to_lon_lat(str(scene.crs)).transform(x, y))

    return cut_at_180(shapely.transform(region, place))


def catalogue_frame(catalogue: Catalogue) -> gpd.GeoDataFrame:
    """The catalogue as a table for GIS: one row a scene, its footprint in EPSG:4326 as the geometry.

    Where squares of ground divide the scenes, there is a row for each split's part of a scene, the geometry is that of
    the part, and the table's `attrs["squares"]` say whose ground is whose.

    Columns: the fields of `Scene` as far as they are numbers or text, `status` ("ok", "unlabelled", "buffered" or
    "bad") and `reason`; `notices`, the texts of what was told of it. Scenes without a CRS, and those set aside, have no
    geometry.
    """
    rows: list[dict[str, Any]] = []
    for scene in catalogue.scenes:
        row = asdict(scene) | {"status": "ok", "reason": "", "geometry": footprint(scene)}
        row |= {"bands": ",".join(map(str, scene.bands)), "band_names": ",".join(scene.band_names)}
        row |= {"band_nodata": ",".join(map(str, scene.band_nodata))}
        row |= {"notices": "; ".join(notice.text for notice in scene.notices)}
        # When files were written is nothing to see on a map, and makes no other table.
        del row["image_stamp"], row["unused_georeference"], row["region"]
        row |= {"transform": ",".join(repr(value) for value in scene.transform[:6]), "stack": ",".join(scene.stack)}
        rows.append(row)
    left_out = {"unlabelled": catalogue.unlabelled, "buffered": catalogue.buffered, "bad": catalogue.bad}
    for status, items in left_out.items():
        rows += [
            {
                "scene_id": item.scene_id,
                "split": item.split,
                "image": item.path,
                "status": status,
                "reason": item.reason,
                "geometry": None,
            }
            for item in items
        ]
    frame = gpd.GeoDataFrame(rows, geometry="geometry", crs="EPSG:4326")
    if catalogue.squares is not None:
        frame.attrs[RECORD] = catalogue.squares.to_json()
    return frame
