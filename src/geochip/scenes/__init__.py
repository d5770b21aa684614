"""Scenes: finding them, describing them, reading their pixels. The only part of geochip that reads rasters."""

from geochip.gdal import bound_cache
from geochip.scenes.catalogue import (
    Catalogue,
    odd_ones,
    scene_digest,
    set_aside,
    settle_bad_scenes,
)
from geochip.scenes.dividing import recorded_squares
from geochip.scenes.find import describe_files, find_scenes
from geochip.scenes.georeference import without_crs
from geochip.scenes.guard import Outputs, refuse_overwriting, refuse_read_later
from geochip.scenes.header import SetAside
from geochip.scenes.missing import missing_share
from geochip.scenes.notices import Notice, notice_lines
from geochip.scenes.reader import Scene, SceneError, SceneReader
from geochip.scenes.regions import RECORD, PixelGrid, Squares
from geochip.scenes.resample import resample
from geochip.scenes.sources import aoi_path, label_path, labels_of_stranger, require_shared_label
from geochip.scenes.table import catalogue_frame, corners

bound_cache()

__all__ = [
    "RECORD",
    "Catalogue",
    "Notice",
    "Outputs",
    "PixelGrid",
    "Scene",
    "SceneError",
    "SceneReader",
    "SetAside",
    "Squares",
    "aoi_path",
    "catalogue_frame",
    "corners",
    "describe_files",
    "find_scenes",
    "label_path",
    "labels_of_stranger",
    "missing_share",
    "notice_lines",
    "odd_ones",
    "recorded_squares",
    "refuse_overwriting",
    "refuse_read_later",
    "require_shared_label",
    "resample",
    "scene_digest",
    "set_aside",
    "settle_bad_scenes",
    "without_crs",
]
