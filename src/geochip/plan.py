"""Which chips stand where in the store, and which task cuts them: pure and deterministic.

Every scene has a number of places, which follow one another; where a scene's places begin is the position of its first
chip in the store. The plan depends on the scenes and the configuration alone: what a pixel holds never moves a
position, and a scene whose file cannot be read keeps its places for when it is mended.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geochip.config import ChipsConfig, LabelsConfig, RunConfig
from geochip.sampling import candidates_of, places_of, wanted_of
from geochip.scenes import Scene, scene_digest
from geochip.windows import Window

_CHIPS_PER_SHARD = 64
_LARGEST_SHARD_BYTES = 256 * 2**20
# Dask's scheduler spends up to a millisecond on a task: more of them than this would be what a run consists of.
_MOST_TASKS = 50_000

Name = tuple[str, str]
"""Split and id of a scene."""


@dataclass(frozen=True, kw_only=True)
class PlannedScene:
    """A scene with its places in the store."""

    split: str
    scene_id: str
    places: int
    """Chips that there is room for."""
    scene: Scene | None
    """What its header says; None when it could not be read."""
    aoi: shapely.Geometry | None = None
    """Area of interest in pixel coordinates; None: everything."""
    usable: bool = True
    """Whether it is to be cut; False for one that was set aside, whose places stay empty."""
    reserved: bool = False
    """Whether the number of places was fixed before header and area of interest could be read."""
    wanted: int = 0
    """Chips that were asked for; there may be less room."""

    @property
    def name(self) -> str:
        """Its name in the journal."""
        return f"{self.split}/{self.scene_id}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a scene's places: `first` to `stop` - 1."""

    scene: PlannedScene
    first: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class ChipTask:
    """What fills one shard: all of its chips."""

    split: str
    start: int
    """Position of its first chip."""
    cuts: tuple[Cut, ...]
    """Scenes in the order of positions."""

    @property
    def key(self) -> str:
        """Name of the task in the journal."""
        return f"{self.split}/{self.start}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return sum(cut.stop - cut.first for cut in self.cuts)


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The chips of one split."""

    split: str
    scenes: tuple[PlannedScene, ...]
    """In the order of positions."""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return sum(scene.places for scene in self.scenes)

    def scene_index(self) -> npt.NDArray[np.int64]:
        """(chip,) index into `scenes` for each position."""
        return np.repeat(np.arange(len(self.scenes)), [scene.places for scene in self.scenes])


@dataclass(frozen=True, kw_only=True)
class ChipPlan:
    """All chips of a store."""

    splits: tuple[SplitPlan, ...]
    shard: int
    """Chips in a shard: one file of images and one of labels."""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return sum(split.chips for split in self.splits)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return sum(-(-split.chips // self.shard) for split in self.splits)

    @property
    def shards_per_task(self) -> int:
        """Shards that one task fills, one after the other: 1 but for runs that are very large."""
        return max(1, math.ceil(self.shards / _MOST_TASKS))

    @property
    def images(self) -> int:
        """Number of scenes, of which each part of a divided one is none of its own."""
        scenes = [scene for split in self.splits for scene in split.scenes]
        divided = [scene.scene_id for scene in scenes if scene.scene is not None and scene.scene.region is not None]
        return len(scenes) - len(divided) + len(set(divided))

    def tasks(self) -> Iterator[ChipTask]:
        """One for each shard, split by split."""
        for split in self.splits:
            ends = np.cumsum([scene.places for scene in split.scenes])
            total = int(ends[-1]) if len(ends) else 0
            for start in range(0, total, self.shard):
                stop = min(start + self.shard, total)
                cuts = []
                index = int(np.searchsorted(ends, start, side="right"))
                while index < len(ends) and (begin := int(ends[index]) - split.scenes[index].places) < stop:
                    scene = split.scenes[index]
                    if scene.places:
                        first, last = max(start - begin, 0), min(stop - begin, scene.places)
                        cuts.append(Cut(scene=scene, first=first, stop=last))
                    index += 1
                yield ChipTask(split=split.split, start=start, cuts=tuple(cuts))


def plan_chips(
    order: Sequence[Name],
    scenes: Mapping[Name, Scene],
    chips: ChipsConfig,
    *,
    unusable: frozenset[Name] = frozenset(),
    aois: Mapping[Name, shapely.Geometry] | None = None,
    reserved: Mapping[Name, int] | None = None,
    uncertain: frozenset[Name] = frozenset(),
    shard: int | None = None,
) -> ChipPlan:
    """Give every scene its places and share them out over shards.

    Args:
        order: all scenes, split by split, in the order of chips.
        scenes: those whose header could be read; at least one.
        chips: size, number and seed.
        unusable: scenes that keep their places but are not to be cut.
        aois: areas of interest, in pixel coordinates.
        reserved: places that were fixed earlier, when header or area of interest could not be read.
        uncertain: scenes whose area of interest cannot be read, so that their places are a guess.
        shard: chips in a shard of the store that is there already; None: to be decided.

    Returns:
        The plan; splits in the order in which they first occur. A scene without a header gets as many places as most
        scenes have, or those that were reserved for it.
    """
    aois, reserved = aois or {}, reserved or {}
    counted = {name: places_in(chips, scene, aois.get(name)) for name, scene in scenes.items()}
    wanted = {
        name: wanted_of(chips, height=scene.height, width=scene.width, aoi=aois.get(name), region=scene.region)
        for name, scene in scenes.items()
    }
    # Ties go to the larger number, however the scenes are ordered.
    usual = max(Counter(counted.values()).items(), key=lambda item: (item[1], item[0]))[0]
    planned: dict[str, list[PlannedScene]] = {}
    for name in order:
        kept = reserved.get(name)
        planned.setdefault(name[0], []).append(
            PlannedScene(
                split=name[0],
                scene_id=name[1],
                places=counted.get(name, usual) if kept is None else kept,
                scene=scenes.get(name),
                aoi=aois.get(name),
                usable=name in scenes and name not in unusable,
                reserved=kept is not None or name not in scenes or name in uncertain,
                wanted=wanted.get(name, 0),
            )
        )
    splits = tuple(SplitPlan(split=split, scenes=tuple(members)) for split, members in planned.items())
    one = next(iter(scenes.values()))
    chip_bytes = chips.size**2 * (len(one.bands) * np.dtype(one.dtype).itemsize + 1)
    return ChipPlan(splits=splits, shard=shard or _chips_per_shard(usual, chip_bytes, sum(counted.values())))


def places_in(chips: ChipsConfig, scene: Scene, aoi: shapely.Geometry | None) -> int:
    """Number of chips that a scene has places for, in its region and area of interest."""
    return places_of(
        chips, scene_id=scene.draws_as, height=scene.height, width=scene.width, aoi=aoi, region=scene.region
    )


def windows_in(chips: ChipsConfig, scene: Scene, aoi: shapely.Geometry | None) -> list[list[Window]]:
    """For each of these places its candidate windows; see `candidates_of`."""
    return candidates_of(
        chips, scene_id=scene.draws_as, height=scene.height, width=scene.width, aoi=aoi, region=scene.region
    )


def _chips_per_shard(per_scene: int, chip_bytes: int, chips: int) -> int:
    most = max(1, _LARGEST_SHARD_BYTES // chip_bytes)
    aim = min(max(_CHIPS_PER_SHARD, math.ceil(chips / _MOST_TASKS)), most)
    if per_scene > aim or not per_scene:
        return aim
    # Whole scenes: a scene whose chips lie in two shards is read and rasterized twice.
    return round(aim / per_scene) * per_scene


def chips_depend_on(
    plan: ChipPlan, config: RunConfig, *, divided: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, str | None]]]:
    """What decides what the chips hold, to compare with what a rerun would make.

    Paths are left out: a data set that was moved gives the same chips.

    Args:
        plan: the plan.
        config: the run file.
        divided: whether squares of ground divide the scenes.

    Returns:
        The settings by their keys in the run file, and each scene's digests by its name. A digest is None where there
        is nothing to hold a rerun to: what could not be read may be mended.
    """
    data, chips = config.data, config.chips
    settings = {f"data.{name}": getattr(data, name) for name in ("splits", "bands", "classes")}
    if data.alpha != "mask":
        # Stores that were made before there was such a key hold nothing of it.
        settings["data.alpha"] = data.alpha
    settings |= {f"labels.{name}": value for name, value in asdict(config.labels).items()}
    settings |= {f"chips.{name}": value for name, value in asdict(chips).items()}
    # An overlap that is allowed changes no chip; what a layer holds is in the digests of areas of interest.
    for name in ("store", "allow_overlap", "aoi_layer"):
        del settings[f"chips.{name}"]
    # Stores that are older than these keys were made as they are by default.
    for name in ("layer", "no_value"):
        if getattr(config.labels, name) == getattr(LabelsConfig(), name):
            del settings[f"labels.{name}"]
    # What the files hold is in the scenes' digests, and they may lie elsewhere.
    settings["chips.aoi"] = chips.aoi is not None
    if config.split.by == "blocks":
        of_others = ("scenes", "manifest_layer")
        settings |= {f"split.{name}": value for name, value in asdict(config.split).items() if name not in of_others}
        # What auto has become, or what is asked for instead of what the store was made with.
        how = config.split.scenes if config.split.scenes != "auto" else "divided" if divided else "whole"
        if how == "divided":
            settings["split.scenes"] = how
    settings["train.split"] = config.train.split
    return settings, {scene.name: _digests(scene) for split in plan.splits for scene in split.scenes}


def _digests(planned: PlannedScene) -> dict[str, str | None]:
    if planned.scene is None:
        return {"header": None, "content": None, "stamp": None}
    digests: dict[str, str | None] = {**scene_digest(planned.scene, with_label=planned.usable)}
    if not planned.usable:
        digests |= {"content": None, "stamp": None}
        return digests
    for part in (planned.aoi, planned.scene.region):
        if part is not None:
            digests["content"] = f"{digests['content']}-{hashlib.sha256(shapely.to_wkb(part)).hexdigest()[:16]}"
    return digests
