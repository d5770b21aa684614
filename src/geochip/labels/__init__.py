"""Labels: geometries of a vector file, or a raster of class values, as class ids on a scene's own pixels."""

from geochip.gdal import bound_cache
from geochip.labels.classes import LabelRules
from geochip.labels.errors import LabelError
from geochip.labels.grid import Grid, label_crs
from geochip.labels.index import indexed_label, indexed_labels, remove_indexes
from geochip.labels.look import LabelLook, look_at_label
from geochip.labels.placement import Miss, Placed, describe_miss, find_misses, listed
from geochip.labels.scene_label import SceneLabel
from geochip.labels.vector import read_aoi

bound_cache()

__all__ = [
    "Grid",
    "LabelError",
    "LabelLook",
    "LabelRules",
    "Miss",
    "Placed",
    "SceneLabel",
    "describe_miss",
    "find_misses",
    "indexed_label",
    "indexed_labels",
    "label_crs",
    "listed",
    "look_at_label",
    "read_aoi",
    "remove_indexes",
]
