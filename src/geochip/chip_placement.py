"""Whether labels and areas of interest lie where their scenes lie.

Bounds tell most of it before anything is written; the rest is known when the labels have been drawn.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import shapely

from geochip.config import RunConfig
from geochip.errors import InputError, WorkError
from geochip.labels import Grid, LabelRules, Placed, describe_miss, find_misses, listed
from geochip.plan import ChipPlan, Name
from geochip.progress import counted
from geochip.scenes import Scene, aoi_path

Missed = dict[Name, str]
"""What to say of each scene that is missed, by split and id."""


def grid_of(scene: Scene) -> Grid:
    """The pixel grid of a scene, for its labels."""
    return Grid(height=scene.height, width=scene.width, transform=scene.transform, crs=scene.crs)


def _placed(scene: Scene, path: str, config: RunConfig) -> Placed:
    reach = LabelRules(classes=config.data.classes, labels=config.labels).largest_buffer
    if config.labels.buffer_units == "metres":
        reach /= scene.pixel_size or 1.0
    return Placed(path=path, image=scene.image, grid=grid_of(scene), reach=reach, layer=config.labels.layer)


def missed_by_labels(scenes: Iterable[Scene], config: RunConfig) -> Missed:
    """Scenes whose label has features, all of them elsewhere, as far as bounds tell.

    Raises:
        InputError: when these are all scenes of a split.
    """
    named = {(scene.split, scene.scene_id): scene for scene in scenes if scene.label is not None}
    places = {name: _placed(scene, str(scene.label), config) for name, scene in named.items()}
    missed = {name: str(miss) for name, miss in find_misses(places).items()}
    refuse_missed_splits(missed, named, InputError)
    return missed


def missed_by_areas(aois: Mapping[Name, shapely.Geometry], scenes: Mapping[Name, Scene], config: RunConfig) -> Missed:
    """Scenes with an area of interest that lies elsewhere; of one that several share, as long as it meets none of them.

    Raises:
        InputError: when an area meets no scene of a split.
    """
    path_of = {name: str(aoi_path(config, *name)) for name in aois}
    empty = [name for name, aoi in aois.items() if shapely.is_empty(aoi)]
    for split in dict.fromkeys(name[0] for name in empty):
        members = [name for name in aois if name[0] == split]
        if all(shapely.is_empty(aois[name]) for name in members):
            first = describe_miss(_place_of_area(scenes[members[0]], path_of[members[0]], config), what="chips.aoi")
            raise InputError(
                f"{first}\nchips.aoi: no area of interest meets a scene of split {split} (see above; "
                f"{counted(len(members), 'scene')}), which would have no chip; correct the area, leave the split out "
                "of data.splits, or set chips.aoi to null"
            )
    met = {path_of[name] for name, aoi in aois.items() if not shapely.is_empty(aoi)}
    return {
        name: describe_miss(_place_of_area(scenes[name], path_of[name], config), what="chips.aoi")
        for name in empty
        if path_of[name] not in met
    }


def _place_of_area(scene: Scene, path: str, config: RunConfig) -> Placed:
    return Placed(path=path, image=scene.image, grid=grid_of(scene), layer=config.chips.aoi_layer)


def missed_when_drawn(
    plan: ChipPlan, records: Iterable[Mapping[str, Any]], config: RunConfig, known: Collection[Name]
) -> Missed:
    """Scenes that no feature of their label met when it was drawn.

    Args:
        plan: the scenes.
        records: of all tasks.
        config: the run file.
        known: scenes of which it was told before.

    Raises:
        WorkError: when these are all scenes of a split.
    """
    names = {name for record in records for name in record.get("missed", ())}
    scenes = {
        (one.split, one.scene_id): one.scene
        for split in plan.splits
        for one in split.scenes
        if one.usable and one.places and one.scene is not None and one.scene.label is not None
    }
    met = {scene.label for name, scene in scenes.items() if "/".join(name) not in names}
    missed = {
        name: str(scene.label) if name in known else describe_miss(_placed(scene, str(scene.label), config))
        for name, scene in scenes.items()
        if "/".join(name) in names and scene.label not in met
    }
    refuse_missed_splits(missed, scenes, WorkError)
    return {name: text for name, text in missed.items() if name not in known}


def refuse_missed_splits(missed: Missed, scenes: Collection[Name], error: type[InputError] | type[WorkError]) -> None:
    """Raise an error when no scene of a split is met by a feature of its label."""
    for split in dict.fromkeys(name[0] for name in missed):
        members = [name for name in scenes if name[0] == split]
        if all(name in missed for name in members):
            raise error(
                f"{listed([missed[name] for name in members])}\nsplit {split}: no label meets its scene (see above; "
                f"{counted(len(members), 'scene')}), and all chips would be background; correct the labels or "
                "data.label, and give scenes without objects an empty label"
            )


def describe_missed(missed: Missed, scenes: int) -> None:
    """Print which scenes are missed."""
    if missed:
        print(
            f"{listed(missed.values())}\n{len(missed)} of {counted(scenes, 'scene')} missed by their files (see above)"
        )
