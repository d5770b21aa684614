"""Scenes: finding them, describing them, reading their pixels. The only part of geochip that reads rasters."""

from geochip.scenes.catalogue import (
    Catalogue,
    SetAside,
    catalogue_frame,
    describe_files,
    find_scenes,
    label_path,
    odd_ones,
    scene_digest,
    set_aside,
    settle_bad_scenes,
)
from geochip.scenes.reader import Scene, SceneError, SceneReader

__all__ = [
    "Catalogue",
    "Scene",
    "SceneError",
    "SceneReader",
    "SetAside",
    "catalogue_frame",
    "describe_files",
    "find_scenes",
    "label_path",
    "odd_ones",
    "scene_digest",
    "set_aside",
    "settle_bad_scenes",
]
