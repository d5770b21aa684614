"""What is known of a chipping run before its first byte is written: scenes, faults, plan, overlaps."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import shapely

import geochip
from geochip.chip_audit import Overlap, audit_overlap
from geochip.chip_report import map_of_ids
from geochip.config import RunConfig
from geochip.errors import InputError, WorkError
from geochip.labels import Grid, LabelError, LabelLook, LabelRules, look_at_label, read_aoi
from geochip.plan import ChipPlan, Name, PlannedScene, chips_depend_on, plan_chips
from geochip.progress import counted
from geochip.sampling import candidates_of, places_of
from geochip.scenes import Catalogue, Scene, aoi_path, find_scenes, odd_ones, set_aside
from geochip.store import SplitResult, make_header, read_header
from geochip.windows import Window


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that is known before the first byte is written."""

    catalogue: Catalogue
    plan: ChipPlan
    scenes: Mapping[Name, Scene]
    """Scenes whose headers could be read, usable or not."""
    overlap: Overlap | None
    """None where the windows are not known before the pixels are."""
    header: dict[str, Any]
    nodata: float | None
    """The store's nodata value."""
    doubts: tuple[str, ...] = ()
    """What a person should know of the labels and may not have meant."""

    @property
    def first(self) -> Scene:
        """A scene with the store's bands and type."""
        return self.catalogue.scenes[0]


def prepare(config: RunConfig) -> Prepared:
    """Find the scenes, see what is wrong with them and plan the chips; nothing is written.

    Raises:
        InputError: when no scene can be used; see `find_scenes`.
    """
    found = find_scenes(config)
    scenes = {(scene.split, scene.scene_id): scene for scene in found.scenes}
    looks, faults = look_at_labels(scenes, config)
    aois, area_faults = read_areas(scenes, config)
    faults |= area_faults
    uncertain = frozenset(area_faults)
    catalogue = set_aside(found, [(scenes[name], fault) for name, fault in faults.items()])
    store = config.chip_store
    known = (read_header(store) if store.exists() else None) or {}
    # A store that is there decides: most scenes may have been others when it was made.
    layout = known.get("layout")
    like = (layout["dtype"], tuple(layout["band_names"])) if layout else None
    catalogue = set_aside(catalogue, odd_ones(catalogue.scenes, like))
    plan = plan_chips(
        catalogue.order,
        scenes,
        config.chips,
        unusable=frozenset((item.split, item.scene_id) for item in catalogue.bad),
        aois=aois,
        reserved={_name(key): places for key, places in known.get("places", {}).items()},
        uncertain=uncertain,
        shard=layout["shard"] if layout else None,
    )
    if not plan.chips:
        raise InputError(
            "chips.aoi, chips.edge: no scene has room for a chip; choose a smaller chips.size, another chips.edge, or "
            "chips.aoi_within false"
        )
    if layout is None:
        first, nodata = catalogue.scenes[0], [one.nodata for one in scenes.values() if one.nodata is not None]
        layout = {
            "shard": plan.shard,
            "dtype": first.dtype,
            "band_names": list(first.band_names),
            # What the network may take for nodata is one value; scenes with another one get it in their chips. As
            # text: JSON has no NaN.
            "nodata": str(nodata[0]) if nodata else None,
        }
    places = {one.name: one.places for split in plan.splits for one in split.scenes if one.reserved}
    header = make_header(*chips_depend_on(plan, config), places=places, layout=layout)
    overlap = None
    if not config.chips.depend_on_content:
        overlap = audit_overlap(plan, config.train.split, lambda scene: planned_windows(scene, config))
    return Prepared(
        catalogue=catalogue,
        plan=plan,
        scenes=scenes,
        overlap=overlap,
        header=header,
        nodata=None if layout["nodata"] is None else float(layout["nodata"]),
        doubts=(*classes_never_named(config), *hidden_classes(looks, config)),
    )


def look_at_labels(scenes: Mapping[Name, Scene], config: RunConfig) -> tuple[dict[Name, LabelLook], dict[Name, str]]:
    """What the labels' headers say, and what is wrong with them."""
    rules = LabelRules(classes=config.data.classes, labels=config.labels)
    looks: dict[Name, LabelLook] = {}
    faults: dict[Name, str] = {}
    for name, scene in scenes.items():
        assert scene.label is not None
        try:
            looks[name] = look_at_label(scene.label, grid_of(scene), rules)
        except LabelError as error:
            faults[name] = f"{error}{_of_all_scenes(config)}"
            continue
        if scene.crs is None and (declared := looks[name].crs) is not None:
            faults[name] = (
                f"{scene.image} has no CRS while label {scene.label} is in {declared.to_string()}, so nothing tells "
                "where the label lies on the image; assign one to the image (gdal_edit.py -a_srs)"
            )
    return looks, faults


def _of_all_scenes(config: RunConfig) -> str:
    """What to add to what is wrong with a raster label that is meant for all scenes."""
    if not (config.data.raster_labels and config.data.shared_label):
        return ""
    return ". It is one raster for all scenes; cut it onto the grid of each, and write {id} into data.label"


def read_areas(scenes: Mapping[Name, Scene], config: RunConfig) -> tuple[dict[Name, shapely.Geometry], dict[Name, str]]:
    """Areas of interest, in pixel coordinates, and what is wrong with those that cannot be read."""
    aois: dict[Name, shapely.Geometry] = {}
    faults: dict[Name, str] = {}
    for name, scene in scenes.items():
        if (path := aoi_path(config, *name)) is None:
            continue
        try:
            aois[name] = read_aoi(str(path), grid_of(scene), config.chips.aoi_layer)
        except LabelError as error:
            faults[name] = str(error)
    return aois, faults


def classes_never_named(config: RunConfig) -> list[str]:
    """What to say of classes that labels.class_map maps no value to, so that no pixel can be of them."""
    class_map = config.labels.class_map
    if class_map is None:
        return []
    # What lies under no geometry is of the first class anyway.
    possible = {
        *class_map.values(),
        config.labels.no_value,
        *([] if config.data.raster_labels else config.data.classes[:1]),
    }
    return [
        f"labels.class_map maps no value to class {name!r}, so no pixel will be of it; name its value there, or leave "
        "the class out of data.classes"
        for name in config.data.classes
        if name not in possible
    ]


def hidden_classes(looks: Mapping[Name, LabelLook], config: RunConfig) -> list[str]:
    """What to say of raster labels whose nodata value is the id of a class."""
    found = Counter(look.hidden for look in looks.values() if look.hidden is not None)
    return [
        f"{counted(times, 'raster label')} declare{'s' if times == 1 else ''} nodata {value:g}, which is the id of "
        f"class {config.data.classes[int(value)]!r}: such pixels count for nothing (255), as the file says; if they "
        f"are of that class, {map_of_ids(config.data.classes)}"
        for value, times in sorted(found.items())
    ]


def _name(key: str) -> Name:
    split, _, scene_id = key.partition("/")
    return split, scene_id


def grid_of(scene: Scene) -> Grid:
    """The pixel grid of a scene, for its labels."""
    return Grid(height=scene.height, width=scene.width, transform=scene.transform, crs=scene.crs)


def planned_windows(planned: PlannedScene, config: RunConfig) -> list[Window]:
    """The windows of a scene where what pixels hold does not decide."""
    scene = planned.scene
    assert scene is not None
    candidates = candidates_of(
        config.chips, scene_id=scene.scene_id, height=scene.height, width=scene.width, aoi=planned.aoi
    )
    return [place[0] for place in candidates[: planned.places]]


def judge_overlap(overlap: Overlap, config: RunConfig, error: type[InputError] | type[WorkError] = InputError) -> None:
    """Say what the audit found.

    Args:
        overlap: what it found.
        config: says whether it is allowed.
        error: `WorkError` when the chips are cut already.

    Raises:
        InputError, WorkError: when training and validation or test chips share ground and that is not allowed.
    """
    if overlap.unplaced:
        print(f"{overlap.unplaced} scenes have no CRS: whether they share ground with other splits cannot be told")
    if not overlap.pairs:
        return
    named = "; ".join(overlap.examples) + ("; ..." if overlap.pairs > len(overlap.examples) else "")
    found = (
        f"{overlap.pairs} pairs of chips show some of the same ground, one of each pair in split "
        f"{config.train.split} and one in another split: {named}"
    )
    if not config.chips.allow_overlap:
        raise error(
            f"{found}. Scores on such chips are better than the model is; divide the scenes anew (split.by: blocks), "
            "or go on with --chips.allow_overlap true, which the store, the model and eval.json then say"
        )
    print(f"allowed by chips.allow_overlap: {found}")


def store_attributes(ready: Prepared, config: RunConfig) -> dict[str, Any]:
    """Attributes of the store's root that do not depend on pixels."""
    first, size = ready.first, config.chips.size
    low, high = config.chips.size_range or (size, size)
    sizes = [scene.pixel_size for scene in ready.catalogue.scenes if scene.pixel_size is not None]
    nodata = ready.nodata
    return {
        "geochip_version": geochip.__version__,
        "config": {
            "data": asdict(config.data),
            "labels": asdict(config.labels),
            "split": asdict(config.split),
            "chips": {**asdict(config.chips), "store": None},
        },
        "seed": config.chips.seed,
        "class_names": list(config.data.classes),
        "bands": list(first.bands),
        "band_names": list(first.band_names),
        "dtype": first.dtype,
        # JSON has no NaN.
        "nodata": "NaN" if nodata is not None and np.isnan(nodata) else nodata,
        "chip_size": size,
        "pixel_size_range": [min(sizes) * low / size, max(sizes) * high / size] if sizes else None,
        "fingerprint": ready.header["fingerprint"],
    }


def windows_by_scene(plan: ChipPlan, results: Mapping[str, SplitResult]) -> dict[Name, list[Window]]:
    """The windows that became chips, of each scene."""
    windows: dict[Name, list[Window]] = {}
    for split in plan.splits:
        result, at = results[split.split], 0
        for scene in split.scenes:
            written = [at + place for place in range(scene.places) if result.window_size[at + place]]
            windows[scene.split, scene.scene_id] = [
                Window(
                    row_off=int(result.row_off[position]),
                    col_off=int(result.col_off[position]),
                    height=int(result.window_size[position]),
                    width=int(result.window_size[position]),
                )
                for position in written
            ]
            at += scene.places
    return windows


def windows_without_place(ready: Prepared, config: RunConfig) -> int:
    """Windows of scenes whose places were reserved before their headers could be read, that found none."""
    count = 0
    for split in ready.plan.splits:
        for one in split.scenes:
            if one.reserved and one.scene is not None:
                height, width = one.scene.height, one.scene.width
                wanted = places_of(config.chips, scene_id=one.scene_id, height=height, width=width, aoi=one.aoi)
                count += max(0, wanted - one.places)
    return count
