"""What a label file's header tells, before anything is drawn of it."""

from dataclasses import dataclass

import pyproj

from geochip.labels.classes import LabelRules
from geochip.labels.formats import require_features
from geochip.labels.grid import Grid, is_geojson, is_raster, known_crs, label_crs
from geochip.labels.parquet import is_parquet, parquet_crs
from geochip.labels.raster import masking, open_raster, require_label_of
from geochip.labels.source import reading
from geochip.layers import LayerError, chosen_layers, require_vector


@dataclass(frozen=True, kw_only=True)
class LabelLook:
    """What is known of a label before its features or pixels are read."""

    crs: pyproj.CRS | None = None
    """The CRS that it declares, where that shows without opening it."""
    hidden: float | None = None
    """The nodata value of a raster that is the value of a class too, and hides it; None when there is none such."""


def look_at_label(path: str, grid: Grid, rules: LabelRules) -> LabelLook:
    """See whether a label can be opened, and which part of it is meant.

    Args:
        path: the label.
        grid: the scene's, which a raster must have.
        rules: what the run file says of labels.

    Raises:
        LabelError: for what is no regular file, an unknown CRS, layers of which nothing says which is meant, a layer
            that is not there, a raster that cannot be the label of its scene.
    """
    if is_raster(path):
        with open_raster(path) as dataset:
            require_label_of(dataset, path, grid)
            return LabelLook(hidden=dataset.nodata if masking(dataset, rules)[1] else None)
    with reading(path):
        require_features(path)
        if is_parquet(path):
            if rules.labels.layer is not None:
                raise LayerError.no_layers("labels.layer")
            key = parquet_crs(path)
            return LabelLook(crs=None if key is None else known_crs(key))
        if is_geojson(path) and rules.labels.layer is None:
            # One document has one layer.
            require_vector(path)
        else:
            chosen_layers(path, rules.labels.layer, key="labels.layer")
    return LabelLook(crs=label_crs(path))
