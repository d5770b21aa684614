"""Scenes: finding them, describing them, reading their pixels. The only part of geochip that reads rasters."""

from geochip.scenes.catalogue import (
    Catalogue,
    SetAside,
    catalogue_frame,
    describe_files,
    find_scenes,
    odd_ones,
    set_aside,
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
    "odd_ones",
    "set_aside",
]
