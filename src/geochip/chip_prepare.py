"""What is known of a chipping run before its first byte is written: scenes, faults, plan, overlaps."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import shapely

import geochip
from geochip.chip_audit import Overlap, audit_overlap
from geochip.chip_labels import classes_never_named, hidden_classes, look_at_labels, unwritten_labels
from geochip.chip_placement import Missed, grid_of, missed_by_areas, missed_by_labels
from geochip.config import RunConfig
from geochip.errors import InputError, WorkError
from geochip.labels import LabelError, read_aoi
from geochip.plan import ChipPlan, Name, PlannedScene, chips_depend_on, places_in, plan_chips, windows_in
from geochip.sampling import wanted_of
from geochip.scenes import (
    Catalogue,
    Outputs,
    Scene,
    Squares,
    aoi_path,
    find_scenes,
    odd_ones,
    refuse_overwriting,
    set_aside,
)
from geochip.store import SplitResult, journal_path, make_header, read_header
from geochip.windows import Window

# Of one scene: a worker lists them all, at some hundred bytes each.
_MOST_WINDOWS = 5_000_000


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
    missed: Missed
    """What to say of scenes that no feature of their label meets, or that lie outside of their area of interest."""
    doubts: tuple[str, ...] = ()
    """What a person should know of the labels and may not have meant."""

    @property
    def first(self) -> Scene:
        """A scene with the store's bands and type."""
        return self.catalogue.scenes[0]


def prepare(config: RunConfig) -> Prepared:
    """Find the scenes, see what is wrong with them and plan the chips; nothing is written.

    Raises:
        InputError: when no scene can be used (see `find_scenes`), or when the labels of a split, or its areas of
            interest, lie elsewhere than its scenes.
    """
    found = find_scenes(config)
    refuse_overwriting(config, found, outputs_of(config))
    found = set_aside(found, [(scene, fault) for scene in found.scenes if (fault := size_fault(scene, config))])
    scenes = {(scene.split, scene.scene_id): scene for scene in found.scenes}
    looks, faults = look_at_labels(scenes, config)
    aois, area_faults = read_areas(scenes, config)
    faults |= area_faults
    catalogue = set_aside(found, [(scenes[name], fault) for name, fault in faults.items()])
    store = config.chip_store
    known = (read_header(store) if store.exists() else None) or {}
    # A store that is there decides: most scenes may have been others when it was made.
    layout = known.get("layout")
    like = (layout["dtype"], tuple(layout["band_names"])) if layout else None
    catalogue = set_aside(catalogue, odd_ones(catalogue.scenes, like))
    missed = missed_by_labels(catalogue.scenes, config) | missed_by_areas(aois, scenes, config)
    plan = plan_chips(
        catalogue.order,
        scenes,
        config.chips,
        unusable=frozenset((item.split, item.scene_id) for item in catalogue.bad),
        aois=aois,
        reserved={_name(key): places for key, places in known.get("places", {}).items()},
        uncertain=frozenset(area_faults),
        shard=layout["shard"] if layout else None,
    )
    if not plan.chips:
        raise InputError(
            "chips.aoi, chips.edge: no scene has room for a chip; choose a smaller chips.size, another chips.edge, or "
            "chips.aoi_within false"
        )
    if found.squares is not None and config.chips.method == "grid" and config.chips.aoi is None:
        require_grid_windows(plan, found.squares)
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
    divided = found.squares is not None
    header = make_header(*chips_depend_on(plan, config, divided=divided), places=places, layout=layout)
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
        missed=missed,
        doubts=(*classes_never_named(config), *hidden_classes(looks, config), *unwritten_labels(looks, scenes)),
    )


def require_grid_windows(plan: ChipPlan, squares: Squares) -> None:
    """Raise `InputError` when the grid has no window in any block of a split, as in one that is turned."""
    chips = {split.split: split.chips for split in plan.splits}
    if empty := [split for split in squares.owners if not chips.get(split)]:
        raise InputError(
            f"chips.method: no window of the grid lies inside the blocks of {' and '.join(empty)}, which are "
            f"{squares.side:g} m wide; choose chips.method random, a smaller chips.stride or a larger split.block"
        )


def size_fault(scene: Scene, config: RunConfig) -> str | None:
    """Why a scene has room for more windows than memory has; None when it has not."""
    chips = config.chips
    wanted = wanted_of(chips, height=scene.height, width=scene.width)
    if chips.method == "grid":
        stride = chips.stride or chips.size
        wanted = math.prod(-(-max(length - chips.size, 0) // stride) + 1 for length in (scene.height, scene.width))
    if wanted <= _MOST_WINDOWS:
        return None
    return (
        f"{scene.image} has {scene.height} x {scene.width} pixels, of which {wanted} chips are asked for, and one "
        f"scene may give {_MOST_WINDOWS}; ask for fewer (chips.stride, chips.per_area, chips.method random), or divide "
        "the image (gdal_translate -srcwin)"
    )


def outputs_of(config: RunConfig) -> Outputs:
    """What chipping writes."""
    store = config.chip_store
    return Outputs(
        option="chips.store" if config.chips.store else "run_dir",
        remedy="choose another --chips.store" if config.chips.store else "choose another run_dir, or set --chips.store",
        files={
            config.catalogue_path: "the table of scenes",
            config.chip_table_path: "the table of chips",
            journal_path(store): "the journal",
        },
        stores=(store, store.with_name(f"{store.name}.creating"), store.with_name(f"{store.name}.labels")),
    )


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


def _name(key: str) -> Name:
    split, _, scene_id = key.partition("/")
    return split, scene_id


def planned_windows(planned: PlannedScene, config: RunConfig) -> list[Window]:
    """The windows of a scene where what pixels hold does not decide."""
    scene = planned.scene
    assert scene is not None
    return [place[0] for place in windows_in(config.chips, scene, planned.aoi)[: planned.places]]


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
                count += max(0, places_in(config.chips, one.scene, one.aoi) - one.places)
    return count
