"""What a label file's header tells, before anything is drawn of it."""

import functools
from dataclasses import dataclass
from pathlib import Path

import pyproj
from rasterio.enums import MaskFlags

from geochip.labels.classes import LabelRules
from geochip.labels.formats import require_features
from geochip.labels.grid import Grid, declared_crs, is_geojson, is_raster, known_crs, without_crs
from geochip.labels.parquet import is_parquet, parquet_crs
from geochip.labels.raster import masking, open_raster, require_label_of
from geochip.labels.source import VectorSource, reading
from geochip.layers import LayerError, require_vector

_KEY = "labels.layer"


@dataclass(frozen=True, kw_only=True)
class LabelLook:
    """What is known of a label before its features or pixels are read."""

    crs: pyproj.CRS | None = None
    """The CRS that its features are in; None for a raster, and where there is neither."""
    hidden: float | None = None
    """The nodata value of a raster that is the value of a class too, and hides it; None when there is none such."""
    bare_driver: str | None = None
    """GDAL's name of the format of a raster that has neither a nodata value nor a mask: what was never written of it
    counts. None for others."""


def look_at_label(path: str, grid: Grid, rules: LabelRules) -> LabelLook:
    """See whether a label can be opened, and which part of it is meant.

    Args:
        path: the label.
        grid: the scene's, which a raster must have.
        rules: what the run file says of labels.

    Raises:
        LabelError: for what is no regular file, an unknown CRS, or none though the scene has one, layers of which
            nothing says which is meant, a layer that is not there, a raster that cannot be the label of its scene.
    """
    if is_raster(path):
        with open_raster(path) as dataset:
            require_label_of(dataset, path, grid)
            return LabelLook(
                hidden=dataset.nodata if masking(dataset, rules)[1] else None,
                bare_driver=dataset.driver if MaskFlags.all_valid in dataset.mask_flag_enums[0] else None,
            )
    with reading(path):
        declared = _declared_crs(path, rules.labels.layer)
        crs = None if declared is None else known_crs(declared)
        lies_elsewhere = (declared is None) != (grid.crs is None)
        # What holds no features lies nowhere, and need not say in which CRS.
        if lies_elsewhere and VectorSource(path, rules.labels.layer, _KEY).bounds() is None:
            return LabelLook()
        if declared is None and grid.crs is not None:
            raise without_crs(path, grid.crs)
    return LabelLook(crs=crs)


def _declared_crs(path: str, layer: str | None) -> str | None:
    """The CRS that the layer of a vector file that is meant declares, as a key for `known_crs`."""
    require_features(path)
    if is_parquet(path):
        if layer is not None:
            raise LayerError.no_layers(_KEY)
        return parquet_crs(path)
    if is_geojson(path) and layer is None:
        # One document has one layer.
        require_vector(path)
        return declared_crs(path, None)
    facts = Path(path).stat()
    return _told_by_gdal(path, layer, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=64)
def _told_by_gdal(path: str, layer: str | None, _mtime: int, _size: int) -> str | None:
    # Asked for once a scene, of a file for all scenes too.
    return VectorSource(path, layer, _KEY).crs()
