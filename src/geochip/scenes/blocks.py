"""Splits made by geochip: the ground is divided into squares, and each square goes to one split with all its scenes.

Neighbouring scenes look alike: divided at random they would let a model be tested on what it was trained on. What is
decided here depends on the scenes' headers and the configuration alone. Once there is a chip store, the division is the
one that it was made with, which its catalogue tells: a scene that is mended or added later moves no other scene.
"""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyproj
import shapely

from geochip.config import RunConfig
from geochip.errors import InputError
from geochip.geodesy import period, rolled_together
from geochip.scenes.georeference import without_crs
from geochip.scenes.header import SetAside
from geochip.scenes.reader import Scene
from geochip.scenes.recorded import RecordedScene
from geochip.scenes.regions import Square, Squares
from geochip.scenes.table import footprint

# How far a CRS may be from true to scale: Web Mercator's metres are half as long in Oslo.
_SCALE_TOLERANCE = 0.1


class DivisionError(InputError):
    """Squares that give no division; the text ends before the remedy, which whoever divides looks for."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """Which scene belongs to which split."""

    members: tuple[Scene | SetAside, ...]
    """All scenes but those of `buffered`, each with its split; by split as configured, then in the order given."""
    buffered: tuple[SetAside, ...]
    """Scenes of train.split that lie too close to another split's."""
    squares: Squares | None = None
    """Which square belongs to which split, where squares divide the scenes themselves; None: each scene is whole."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where scenes lie, in one CRS in which a metre is about a metre on the ground."""

    crs: str
    outlines: npt.NDArray[Any]
    """(scene,) polygons."""
    scale: float
    """Units of the CRS that a metre on the ground has, where it has most."""


def divide(described: Sequence[Scene | SetAside], config: RunConfig, ground: Ground | None = None) -> Division:
    """Divide scenes by where they lie, each as a whole.

    Args:
        described: the scenes; those whose header could not be read lie nowhere and are counted to train.split.
        config: `split`, `data.splits`, `train.split`, and `chips` for the width of the buffer.
        ground: of the scenes among them, if it is known already.

    Raises:
        InputError: when a scene does not say where on the earth it lies.
        DivisionError: when there are fewer squares than splits, or when the buffer leaves nothing to train on.
    """
    scenes = [item for item in described if isinstance(item, Scene)]
    outlines = (ground or ground_of(scenes)).outlines
    split_of = dict(
        zip((scene.scene_id for scene in scenes), _assign(scenes, _squares(outlines, config), config), strict=True)
    )
    close = _too_close(scenes, outlines, [split_of[scene.scene_id] for scene in scenes], config)
    if scenes and len(close) == sum(split == config.train.split for split in split_of.values()) > 0:
        raise DivisionError(
            f"split.buffer: all {len(close)} scenes of {config.train.split} lie closer than "
            f"{buffer_of(scenes, config):g} m to scenes of other splits, none is left"
        )
    members = tuple(
        replace(item, split=split)
        for split in config.data.splits
        for item in described
        if split_of.get(item.scene_id, config.train.split) == split and item.scene_id not in close
    )
    return Division(members=members, buffered=tuple(close.values()))


def recorded_division(
    described: Sequence[Scene | SetAside], config: RunConfig, recorded: Sequence[RecordedScene]
) -> Division | None:
    """The division that the chip store was made with, in which every scene is whole.

    Args:
        described: the scenes; those that the store's catalogue does not know are counted to train.split.
        config: `data.splits` and `train.split`.
        recorded: the store's catalogue.

    Returns:
        None for a store with other splits.
    """
    known = {one.scene_id: one for one in recorded}
    members: dict[str, list[Scene | SetAside]] = {split: [] for split in config.data.splits}
    buffered = []
    for item in described:
        row = known.get(item.scene_id)
        if row is not None and row.status == "buffered":
            path = item.image if isinstance(item, Scene) else item.path
            buffered.append(SetAside(scene_id=item.scene_id, split=row.split, path=path, reason=row.reason))
            continue
        split = config.train.split if row is None else row.split
        if split not in members:
            # Whoever opens the store will be told.
            return None
        members[split].append(replace(item, split=split))
    return Division(members=tuple(item for split in members.values() for item in split), buffered=tuple(buffered))


def in_words(scenes: Sequence[Scene]) -> str:
    """What is divided: how many scenes, or which image of what size."""
    if len(scenes) != 1:
        return f"the {len(scenes)} scenes"
    (scene,) = scenes
    # Of three digits that count, and no 1.5e+03.
    across, down = (float(f"{(scene.pixel_size or 0.0) * side:.3g}") for side in (scene.width, scene.height))
    return f"{scene.image} ({scene.width} x {scene.height} pixels, about {across:.10g} x {down:.10g} m)"


def ground_of(scenes: Sequence[Scene]) -> Ground:
    """Where scenes lie.

    Raises:
        InputError: when one does not say it, or when no CRS measures all of them in metres.
    """
    polygons = [footprint(scene) for scene in scenes]
    if lost := [scene for scene, polygon in zip(scenes, polygons, strict=True) if polygon is None]:
        reason, remedy = without_crs(lost[0])
        if lost[0].crs is not None:
            reason = f"{lost[0].image} is on a local grid"
        raise InputError(
            f"split.by: blocks needs to know where each scene lies, and {reason}"
            f"{f', nor have {len(lost) - 1} others' if len(lost) > 1 else ''}; {remedy}, or divide the scenes by "
            "split.by: manifest, or one large image by an area of interest for each split (chips.aoi with {split} in "
            "it)"
        )
    if not scenes:
        return Ground(crs="", outlines=np.array([], object), scale=1.0)
    on_earth = gpd.GeoSeries(np.array(polygons, object), crs="EPSG:4326")
    shared = _shared_crs(scenes)
    if shared is not None and period(shared) is not None and _over_180(on_earth):
        # Neighbours would lie at either end of such a map.
        shared = None
    found = _measured(scenes, on_earth, shared)
    if found is None:
        with contextlib.suppress(RuntimeError):  # no zone fits
            found = _measured(scenes, on_earth, _utm_of(on_earth))
    if found is None:
        raise InputError(
            f"split.by: blocks found no CRS in which all {len(scenes)} scenes can be measured in metres, they lie too "
            "far apart; divide them by split.by: manifest"
        )
    return found


def _shared_crs(scenes: Sequence[Scene]) -> pyproj.CRS | None:
    """The scenes' own CRS, if they share one whose unit is called a metre."""
    if len({scene.crs for scene in scenes}) > 1:
        return None
    crs = pyproj.CRS(scenes[0].crs)
    return crs if crs.is_projected and all(axis.unit_conversion_factor == 1 for axis in crs.axis_info) else None


def _over_180(on_earth: gpd.GeoSeries) -> bool:
    """Whether outlines lie on both sides of 180 degrees, and nearer to it than to Greenwich."""
    outlines = on_earth.to_numpy()
    return rolled_together(outlines) is not outlines


def _utm_of(on_earth: gpd.GeoSeries) -> pyproj.CRS:
    """The UTM zone of the middle of some outlines, which may lie around 180 degrees.

    Raises:
        RuntimeError: when no zone fits.
    """
    west, south, east, north = shapely.total_bounds(rolled_together(on_earth.to_numpy())).tolist()
    middle = shapely.Point(((west + east) / 2 + 180) % 360 - 180, (south + north) / 2)
    return gpd.GeoSeries([middle], crs="EPSG:4326").estimate_utm_crs()


def _measured(scenes: Sequence[Scene], on_earth: gpd.GeoSeries, crs: pyproj.CRS | None) -> Ground | None:
    """Outlines in a CRS; None when it is none in which a metre is a metre on the ground wherever a scene lies."""
    if crs is None:
        return None
    outlines = on_earth.to_crs(crs).to_numpy()
    pixels = np.array([scene.height * scene.width for scene in scenes])
    on_ground = np.array([scene.pixel_size for scene in scenes], np.float64)
    scale = np.sqrt(shapely.area(outlines) / pixels) / on_ground
    if not (np.abs(scale - 1) <= _SCALE_TOLERANCE).all():
        return None
    return Ground(crs=crs.to_string(), outlines=outlines, scale=float(scale.max()))


def _squares(outlines: npt.NDArray[Any], config: RunConfig) -> list[Square]:
    """The square that each scene's centre lies in, by its number east and north."""
    bounds = shapely.bounds(outlines).reshape(-1, 4)
    centres = (bounds[:, :2] + bounds[:, 2:]) / 2
    return [(int(east), int(north)) for east, north in np.floor(centres / config.split.block)]


def shares_of(config: RunConfig) -> dict[str, float]:
    """The share of each split that has one."""
    return {split: share for split, share in _fractions(config).items() if share > 0}


def _fractions(config: RunConfig) -> dict[str, float]:
    splits = config.data.splits
    if config.split.fractions is not None:
        return {split: config.split.fractions[split] for split in splits}
    if len(splits) == 1:
        return {splits[0]: 1.0}
    return {split: 0.8 if split == config.train.split else 0.2 / (len(splits) - 1) for split in splits}


def _assign(scenes: Sequence[Scene], squares: Sequence[Square], config: RunConfig) -> list[str]:
    """The split of each scene, by the square that it is in."""
    shares, held = shares_of(config), Counter(squares)
    if squares and len(held) < len(shares):
        raise DivisionError(
            f"split.block: squares of {config.split.block:g} m put {in_words(scenes)} into {len(held)} of them, too "
            f"few for the {len(shares)} splits with a share"
        )
    owner = owners_of(held, config)
    return [owner[square] for square in squares]


def owners_of(held: Mapping[Square, float], config: RunConfig) -> dict[Square, str]:
    """Give each square to a split: in an order that the seed draws, each to the split that lacks most.

    The last squares are kept for the splits that have none yet.

    Args:
        held: what each square holds of what is to be shared out: scenes, or their ground; at least as many squares as
            there are splits with a share.
        config: the shares and the seed.
    """
    shares, order = shares_of(config), sorted(held)
    total = sum(held.values())
    lacking = {split: share * total for split, share in shares.items()}
    empty = set(shares)
    owner: dict[Square, str] = {}
    for done, index in enumerate(np.random.Generator(np.random.PCG64(config.split.seed)).permutation(len(order))):
        candidates = empty if len(order) - done <= len(empty) else set(shares)
        # The first in data.splits among those that lack as much.
        split = max((name for name in shares if name in candidates), key=lambda name: lacking[name])
        owner[order[index]] = split
        lacking[split] -= held[order[index]]
        empty.discard(split)
    return owner


def buffer_of(scenes: Sequence[Scene], config: RunConfig) -> float:
    """Metres that scenes of train.split must keep from others: by default the width of the largest chip."""
    if config.split.buffer is not None:
        return config.split.buffer
    return config.chips.largest_window * max(scene.pixel_size or 0.0 for scene in scenes)


def _too_close(
    scenes: Sequence[Scene], outlines: npt.NDArray[Any], splits: Sequence[str], config: RunConfig
) -> dict[str, SetAside]:
    """Scenes of train.split within the buffer of another split's, by id."""
    train = [number for number, split in enumerate(splits) if split == config.train.split]
    others = [number for number, split in enumerate(splits) if split != config.train.split]
    if not train or not others or not (buffer := buffer_of(scenes, config)):
        return {}
    pairs = shapely.STRtree(outlines[others]).query(outlines[train], predicate="dwithin", distance=buffer)
    close: dict[str, SetAside] = {}
    for at, beside in sorted(pairs.T.tolist()):
        scene, other = scenes[train[at]], others[beside]
        apart = shapely.distance(outlines[train[at]], outlines[other])
        close.setdefault(
            scene.scene_id,
            SetAside(
                scene_id=scene.scene_id,
                split=config.train.split,
                path=scene.image,
                reason=f"it lies {apart:.4g} m from scene {scenes[other].scene_id} of {splits[other]}, and "
                f"split.buffer keeps {buffer:g} m between {config.train.split} and other splits",
            ),
        )
    return close
