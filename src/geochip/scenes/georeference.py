"""What relates an image to the earth besides a geotransform, and why nothing does."""

from typing import Any

import numpy as np
from affine import Affine

from geochip.scenes.notices import Notice
from geochip.scenes.reader import Scene

_BARE_CRS = "the CRS "
_WARP = "gdalwarp; with -rpc or -geoloc where it is those"


def fault_of_transform(transform: Affine) -> str:
    """Why a geotransform does not give every pixel a place of its own; empty when it does."""
    numbers = tuple(transform)[:6]
    if np.isfinite(numbers).all() and transform.determinant != 0:
        return ""
    return (
        f"the geotransform ({', '.join(f'{number:.9g}' for number in numbers)}), which gives its pixels no place; "
        "write the right one into it (gdal_edit.py -a_ullr)"
    )


def unused_georeference(dataset: Any) -> str:
    """What relates a raster without a geotransform to the earth all the same, and is not used; empty for nothing."""
    if dataset.transform != Affine.identity():
        return ""
    points, crs = dataset.gcps
    if points:
        return f"{len(points)} ground control points" + (f" in {crs.to_string()}" if crs else "")
    if dataset.rpcs is not None:
        return "rational polynomial coefficients (RPCs)"
    if "GEOLOCATION" in dataset.tag_namespaces():
        return "geolocation arrays"
    return f"{_BARE_CRS}{dataset.crs.to_string()}" if dataset.crs else ""


def _remedy(unused: str) -> str:
    """What to do with an image that has something else than a geotransform."""
    if unused.startswith(_BARE_CRS):
        return "give it one (gdal_edit.py -a_ullr, or a world file beside it)"
    return f"warp it first ({_WARP})"


def georeference_notice(unused: str) -> Notice:
    """What is to be told of an image with a georeference that is not used."""
    return Notice(
        kind="georeference",
        level="warning",
        text=f"the image has {unused} and no geotransform, which is all that geochip uses: its chips, or predictions, "
        f"have no CRS and no place on the map; {_remedy(unused)}",
    )


def without_crs(scene: Scene) -> tuple[str, str]:
    """Why nothing relates a scene without a CRS to the earth, and what to do about it."""
    if scene.unused_georeference:
        return (
            f"{scene.image} has {scene.unused_georeference} and no geotransform, which is all that geochip uses,",
            _remedy(scene.unused_georeference),
        )
    return f"{scene.image} has no CRS", "assign one to the image (gdal_edit.py -a_srs)"
