"""Labels: geometries of a vector file, or a raster of class values, as class ids on a scene's own pixels."""

from geochip.labels.classes import LabelRules
from geochip.labels.errors import LabelError
from geochip.labels.grid import Grid, label_crs
from geochip.labels.index import indexed_label, indexed_labels
from geochip.labels.look import LabelLook, look_at_label
from geochip.labels.scene_label import SceneLabel
from geochip.labels.vector import read_aoi

__all__ = [
    "Grid",
    "LabelError",
    "LabelLook",
    "LabelRules",
    "SceneLabel",
    "indexed_label",
    "indexed_labels",
    "label_crs",
    "look_at_label",
    "read_aoi",
]
