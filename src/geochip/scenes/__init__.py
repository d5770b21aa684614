"""Scenes: finding them, describing them, reading their pixels. The only part of geochip that reads rasters."""

from geochip.scenes.catalogue import (
    Catalogue,
    odd_ones,
    scene_digest,
    set_aside,
    settle_bad_scenes,
)
from geochip.scenes.find import describe_files, find_scenes
from geochip.scenes.header import SetAside
from geochip.scenes.reader import Scene, SceneError, SceneReader
from geochip.scenes.resample import resample
from geochip.scenes.sources import aoi_path, label_path, require_shared_label
from geochip.scenes.table import catalogue_frame, corners

__all__ = [
    "Catalogue",
    "Scene",
    "SceneError",
    "SceneReader",
    "SetAside",
    "aoi_path",
    "catalogue_frame",
    "corners",
    "describe_files",
    "find_scenes",
    "label_path",
    "odd_ones",
    "require_shared_label",
    "resample",
    "scene_digest",
    "set_aside",
    "settle_bad_scenes",
]
