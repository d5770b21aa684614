"""Sections of the run file about scenes, labels and splits."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geochip.config._rules import IGNORE, Rule, Value, check, compose, path_rules, seed, within

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".img", ".png", ".jp2")
"""A label whose file ends so is a raster of class values; any other is read as a vector file."""
NO_VALUE: dict[str, int | None] = {"ignore": IGNORE, "error": None}
"""What labels.no_value may be besides a class, with the label value of features without a value."""


@dataclass(frozen=True)
class DataConfig:
    """Where the scenes and their labels are."""

    root: str = "data"
    """Directory that the templates below are relative to."""
    image: str = "{split}/RGB-PanSharpen_AOI_2_Vegas_img{id}.tif"
    """Template of the images' paths: {split} is a split's name, {id} becomes the scene's id."""
    stack: tuple[str, ...] = ()
    """Templates of more images on the same pixel grid, filled with the image's split and id; their bands follow the
    image's, and all become one data type."""
    label: str = "{split}/buildings_AOI_2_Vegas_img{id}.geojson"
    """Template of the labels' paths, filled with the image's split and id: vector files, or rasters of class values.
    Without {id}: one vector file for all scenes, or one for each split, of which every scene has what lies on it."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Splits to look for; each becomes a group of the chip store."""
    bands: tuple[int, ...] | None = None
    """Bands to use, in this order, counted from 1 as GDAL does and on through data.stack; null: all but alpha bands
    (data.alpha)."""
    alpha: Literal["mask", "band"] = "mask"
    """What a band is that a file declares to be alpha. mask: 0 where there is no data, and no band of the chips unless
    data.bands names it. band: one like any other, for files whose near infrared is declared to be alpha by mistake."""
    max_missing: float = 0.05
    """Share of a scene's pixels, 0 to 1, that may never have been written (a writer was killed, a mosaic has gaps) in a
    file without nodata value and mask, where they count as zeros; a scene with more is set aside."""
    classes: tuple[str, ...] = ("background", "building")
    """Class names; a class's place in this list is its id, the first is what lies under no geometry."""
    max_bad_scenes: int = 0
    """So many scenes may be unreadable before a command ends with exit code 1; they are set aside and named anyway."""

    def __post_init__(self) -> None:
        compose(self, "classes")
        names, bands = [*self.splits, *self.classes], self.bands
        check(
            *path_rules("data.root", self.root),
            *_template_rules("data.image", self.image),
            *_brace_rules("data.label", self.label),
            *(rule for template in self.stack for rule in _template_rules("data.stack", template)),
            (bool(self.splits), "data.splits", self.splits, "must name at least one split"),
            (len(set(self.splits)) == len(self.splits), "data.splits", self.splits, "must not name a split twice"),
            (
                all(re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) for name in self.splits),
                "data.splits",
                self.splits,
                "a split's name is made of letters, digits, '_', '-' and '.'",
            ),
            (
                # Each is a directory of a Zarr store.
                all(len(name) <= 200 and name != "zarr.json" and not name.startswith("__") for name in self.splits),
                "data.splits",
                self.splits,
                "a split's name has at most 200 letters, does not begin with '__', and is not zarr.json",
            ),
            (2 <= len(self.classes) <= 255, "data.classes", self.classes, "must be 2 to 255 names, background first"),
            (len(set(self.classes)) == len(self.classes), "data.classes", self.classes, "must not name a class twice"),
            (all(names), "data.classes, data.splits", names, "a name must not be empty"),
            (
                all(name.isprintable() for name in self.classes),
                "data.classes",
                self.classes,
                "a class's name must not hold line breaks, tabs or other control characters: it heads tables and logs",
            ),
            (
                bands is None or (len(bands) > 0 and min(bands) >= 1),
                "data.bands",
                bands,
                "must be band numbers of at least 1, or null for all",
            ),
            (bands is None or len(set(bands)) == len(bands), "data.bands", bands, "must not name a band twice"),
            within("data.max_missing", self.max_missing, 0, 1),
            within("data.max_bad_scenes", self.max_bad_scenes, 0, 1_000_000_000),
        )

    @property
    def raster_labels(self) -> bool:
        """Whether the labels are rasters of class values."""
        return Path(self.label).suffix.lower() in RASTER_SUFFIXES

    @property
    def shared_label(self) -> bool:
        """Whether one label file is that of many scenes."""
        return "{id}" not in self.label


def _template_rules(key: str, template: str) -> list[Rule]:
    return [("{id}" in template, key, template, "must contain {id}"), *_brace_rules(key, template)]


def _brace_rules(key: str, template: str) -> list[Rule]:
    return [
        *path_rules(key, template),
        (
            not re.search(r"\{(?!split\}|id\})", template),
            key,
            template,
            "only {split} and {id} can be filled in, there is another opening brace",
        ),
    ]


@dataclass(frozen=True)
class LabelsConfig:
    """How labels become class ids."""

    layer: str | None = None
    """Layer of the label files that holds the labels; null: the only one with geometries, of a KML all folders."""
    class_property: str | None = None
    """Property of a label's features that holds the class; null: every geometry is of the second class."""
    class_map: dict[Value, str] | None = None
    """Class name for each value of class_property, or of a raster label's pixels: {residential: building, "2": road}.
    null: the values are the class names; a raster's values are the class ids. A value that stands here is that class
    even where it is the raster's nodata value."""
    ignore: tuple[Value, ...] = ()
    """Values of class_property, or of a raster label's pixels, whose pixels become 255 and count for nothing."""
    no_value: str = "error"
    """What features are that have no value of class_property (null, missing, not a number, or blank text): ignore:
    their pixels become 255; error: their scene is set aside; or a class name: they are of that class. The same as null
    in ignore or class_map."""
    priority: tuple[str, ...] = ()
    """Class names, the most important first: where geometries overlap, the more important one wins; classes that are
    not named come last. Among geometries of one class, and by default, the later one in the file wins."""
    buffer: float | dict[str, float] = 0.0
    """How far points and lines reach to either side, in buffer_units; one number for all, or one for each class:
    {road: 3, path: 1}. 0: a line is one pixel wide."""
    buffer_units: Literal["pixels", "metres"] = "pixels"
    """Units of buffer; metres are metres on the ground, whatever the units of the CRS."""
    all_touched: bool = False
    """A pixel belongs to a geometry that touches it anywhere; false: to one that its centre lies in."""

    def __post_init__(self) -> None:
        # YAML reads 10 as a number, a GeoJSON may hold it as either: values are compared as text.
        object.__setattr__(self, "ignore", tuple(map(_value_text, self.ignore)))
        if self.class_map is not None:
            object.__setattr__(self, "class_map", by_text(self.class_map))
        compose(self, "ignore", "class_map", "priority", "buffer")
        ignore, class_map = self.ignore, self.class_map
        widths = self.buffer.values() if isinstance(self.buffer, dict) else [self.buffer]
        both = sorted({*map(str, ignore)} & {*map(str, class_map or {})})
        named_twice = self.no_value != "error" and "" in {*ignore, *(class_map or {})}
        check(
            (
                all(0 <= width <= 1_000_000 for width in widths),
                "labels.buffer",
                self.buffer,
                "must be 0 to 1000000",
            ),
            (
                self.class_map is None or bool(self.class_map),
                "labels.class_map",
                self.class_map,
                "must map at least one value, or be null",
            ),
            (
                not named_twice,
                "labels.no_value",
                self.no_value,
                "labels.ignore or labels.class_map says already what null, or empty text, is; leave one of them out",
            ),
            (not both, "labels.ignore", tuple(both), "also stands in labels.class_map; a value is one or the other"),
            (
                len(set(self.priority)) == len(self.priority),
                "labels.priority",
                self.priority,
                "must not name a class twice",
            ),
        )


def _value_text(value: object) -> str:
    """A value as text: true and false as JSON has them; null is like empty text, no value."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def by_text(class_map: Mapping[Value, str]) -> dict[Value, str]:
    """The map with texts for keys.

    Raises:
        InputError: when two keys are one value and mean different classes: 1 and "1", or 1 and 1.0.
    """
    found: dict[Value, str] = {}
    seen: dict[str | float, tuple[object, str]] = {}
    for key, name in class_map.items():
        text = _value_text(key)
        value = float(text) if is_number(text) else text
        if value in seen and seen[value][1] != name:
            first, other = seen[value]
            check(
                (
                    False,
                    "labels.class_map",
                    {first: other, key: name},
                    "both keys are one value, which is of one class; leave one of them out",
                )
            )
        seen[value] = (key, name)
        found[text] = name
    return found


def is_number(text: str) -> bool:
    """Whether a text is a number as it is written down, and no code such as 007 or 1e5."""
    return re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?", text) is not None and len(text) < _LONGEST_NUMBER


_LONGEST_NUMBER = 300


@dataclass(frozen=True)
class SplitConfig:
    """Which scene belongs to which split."""

    by: Literal["directories", "manifest", "blocks"] = "directories"
    """directories: {split} in data.image; manifest: a column of a table; blocks: geochip divides the ground into
    squares and gives each, with the scenes or parts of scenes in it, to a split."""
    manifest: str | None = None
    """The table: CSV, GeoPackage or GeoParquet with a row a scene. Columns: the split's, and `scene_id` to fill the
    templates with (a plain name: it names files), or `image` (and `label`) with paths relative to data.root."""
    manifest_layer: str | None = None
    """Layer, or sheet, of the manifest that holds the table; null: the only one."""
    column: str = "split"
    """The manifest's column that names the split; scenes whose value is not among data.splits are left out."""
    fractions: dict[str, float] | None = None
    """For blocks: share of the blocks that each of data.splits gets; null: 0.8 for train.split, the others alike."""
    block: float = 1000.0
    """For blocks: side of a square, in metres."""
    scenes: Literal["auto", "whole", "divided"] = "auto"
    """For blocks: whole: a scene belongs to the square of its centre; divided: the squares divide the scenes too, and
    windows keep to the squares of their split; auto: divided as soon as a scene covers more ground than a square."""
    buffer: float | None = None
    """For blocks: what of train.split lies closer than this to another split is left out, in metres: whole scenes, or
    the ground of divided ones; null: a chip's width."""
    seed: int = 0
    """For blocks: seed of which square goes to which split."""

    def __post_init__(self) -> None:
        shares = (self.fractions if self.fractions is not None else {"train": 1}).values()
        check(
            (
                self.by != "manifest" or bool(self.manifest),
                "split.manifest",
                self.manifest,
                "must be the path of a table for split.by: manifest",
            ),
            *path_rules("split.manifest", self.manifest),
            (
                all(share >= 0 for share in shares) and math.isclose(sum(shares), 1),
                "split.fractions",
                self.fractions,
                "must be shares of at least 0 that add up to 1",
            ),
            within("split.block", self.block, 0.01, 10_000_000, "metres"),
            within("split.buffer", self.buffer, 0, 10_000_000, "metres", or_null=True),
            seed("split.seed", self.seed),
        )
