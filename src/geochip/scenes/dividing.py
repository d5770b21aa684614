"""Dividing scenes by squares of ground: whole scenes, or the scenes themselves, and which squares would do."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import shapely

from geochip.config import RunConfig
from geochip.errors import InputError
from geochip.scenes.blocks import (
    Division,
    DivisionError,
    Ground,
    buffer_of,
    divide,
    ground_of,
    in_words,
    owners_of,
    recorded_division,
    shares_of,
)
from geochip.scenes.header import SetAside
from geochip.scenes.reader import Scene
from geochip.scenes.recorded import recorded_scenes
from geochip.scenes.regions import Square, Squares, boxes_of, count_around, pixel_polygons, squares_around

_MOST_SQUARES = 200_000
# Pixels need not be square, nor as large everywhere: squares so much narrower than a chip have no room for it.
_NARROW = 0.5
# Sides of squares that are tried for a remedy: each so much smaller than the one before.
_STEP = 0.8
# The squares that are good to have in each split, and the chips that are good to have side by side in a square.
_BLOCKS_EACH, _CHIPS_ACROSS = 4, 3
# A square is taken for fitting when a window of this much less fits: borders may lie on pixels' edges.
_INSET = 0.5

Described = Sequence[Scene | SetAside]


def division_of(described: Described, config: RunConfig) -> Division:
    """Divide all scenes, as the chip store was divided if there is one.

    Args:
        described: all scenes, whose `split` does not count.
        config: `split`, `data.splits`, `train.split`, `chips`, and where the store is.

    Raises:
        InputError: when they cannot be divided; it names what would do.
    """
    recorded = _recorded(described, config)
    if recorded is not None:
        return recorded
    ground = ground_of([item for item in described if isinstance(item, Scene)])
    try:
        return _divide(described, config, ground)
    except DivisionError as error:
        raise InputError(f"{error}; {_remedy(described, config, ground)}") from None


def recorded_squares(config: RunConfig) -> Squares | None:
    """The squares that divide the scenes of the chip store; None without a store, and where every scene is whole.

    Raises:
        DamagedError: when the table that says so does not hold what geochip wrote.
    """
    recorded = recorded_scenes(config)
    return None if recorded is None else recorded.squares


def _recorded(described: Described, config: RunConfig) -> Division | None:
    """The division that the chip store was made with; None without a store."""
    recorded = recorded_scenes(config)
    if recorded is None:
        return None
    if recorded.squares is None:
        return recorded_division(described, config, recorded.scenes)
    if not set(recorded.squares.owners) <= set(config.data.splits):
        # Of a store with other splits, which whoever opens it will be told.
        return None
    known: dict[str, dict[str, str]] = {}
    for one in recorded.scenes:
        if one.split in recorded.squares.owners:
            known.setdefault(one.scene_id, {})[one.split] = one.status
    return _parts(described, config, recorded.squares, known)


def _divide(described: Described, config: RunConfig, ground: Ground) -> Division:
    if not _divides_scenes(config, ground):
        return divide(described, config, ground)
    scenes = [item for item in described if isinstance(item, Scene)]
    squares = _squares(scenes, config, ground)
    division = _parts(described, config, squares, {})
    if not any(_has_room(item, config) for item in division.members if item.split == squares.home):
        raise DivisionError(
            f"split.buffer: in {squares.home} no chip of {config.chips.largest_window} pixels lies farther than "
            f"{buffer_of(scenes, config):g} m from the blocks of other splits, none is left"
        )
    return division


def _divides_scenes(config: RunConfig, ground: Ground) -> bool:
    if config.split.scenes != "auto":
        return config.split.scenes == "divided" and len(ground.outlines) > 0
    return bool((shapely.area(ground.outlines) > config.split.block**2).any())


def _squares(scenes: Sequence[Scene], config: RunConfig, ground: Ground) -> Squares:
    """Give each square with ground of some scene to a split, by that ground's area."""
    side, shares = config.split.block, shares_of(config)
    count = sum(count_around(scene, ground.crs, side) for scene in scenes)
    if all(side < _NARROW * ground.scale * _metres_of_window(scene, config) for scene in scenes):
        # Sooner told than cut into a million pieces.
        raise _no_room(scenes, config, count, 0)
    if count > _MOST_SQUARES:
        raise DivisionError(
            f"split.block: squares of {side:g} m divide {in_words(scenes)} into {count} blocks, of which geochip takes "
            f"at most {_MOST_SQUARES}"
        )
    areas: dict[Square, float] = {}
    roomy: set[Square] = set()
    for scene in scenes:
        numbers, parts = _pieces(scene, ground.crs, side)
        pixel = (scene.pixel_size or 0.0) ** 2
        for square, area, fits in zip(numbers, shapely.area(parts), _windows_fit(parts, scene, config), strict=True):
            if area:
                areas[square] = areas.get(square, 0.0) + float(area) * pixel
            if fits:
                roomy.add(square)
    if len(roomy) < len(shares):
        raise _no_room(scenes, config, len(areas), len(roomy))
    owner = owners_of({square: area for square, area in areas.items() if square in roomy}, config)
    home = config.train.split if config.train.split in shares else next(iter(shares))
    owners: dict[str, list[Square]] = {split: [] for split in shares}
    for square in sorted(areas):
        # What is cut off at the edge of an image and too small for a chip may at least enlarge its neighbour.
        owners[owner.get(square, home)].append(square)
    buffer = buffer_of(scenes, config) if home == config.train.split else 0.0
    # Of pixels, whose edges the squares' borders are moved to.
    rounding = max(scene.pixel_size or 0.0 for scene in scenes)
    apart = (buffer + rounding) * ground.scale if buffer else 0.0
    return Squares(crs=ground.crs, side=side, home=home, apart=apart, owners=owners)


def _no_room(scenes: Sequence[Scene], config: RunConfig, blocks: int, roomy: int) -> DivisionError:
    return DivisionError(
        f"split.block: squares of {config.split.block:g} m divide {in_words(scenes)} into {blocks} blocks, of which "
        f"{roomy} have room for a chip of {config.chips.largest_window} pixels, too few for the "
        f"{len(shares_of(config))} splits with a share"
    )


def _metres_of_window(scene: Scene, config: RunConfig) -> float:
    return min(_window_of(scene, config)) * (scene.pixel_size or 0.0)


def _pieces(scene: Scene, crs: str, side: float) -> tuple[list[Square], npt.NDArray[np.object_]]:
    """What the squares cut a scene into, in pixel coordinates."""
    numbers = squares_around(scene, crs, side)
    polygons = pixel_polygons(scene, crs, boxes_of(numbers, side))
    return numbers, shapely.intersection(polygons, shapely.box(0, 0, scene.width, scene.height))


def _window_of(scene: Scene, config: RunConfig) -> tuple[float, float]:
    """Height and width of the largest window, as far as it lies in the scene, a little smaller than they are."""
    size = config.chips.largest_window
    return min(size, scene.height) - _INSET, min(size, scene.width) - _INSET


def _windows_fit(parts: npt.NDArray[np.object_], scene: Scene, config: RunConfig) -> npt.NDArray[np.bool_]:
    """Whether a window fits into each of some convex polygons: there is a place for all of its four corners."""
    height, width = _window_of(scene, config)
    places = parts
    for corner in ((width, 0.0), (0.0, height), (width, height)):
        places = shapely.intersection(places, _moved(parts, corner))
    fits: npt.NDArray[np.bool_] = shapely.area(places) > 0
    return fits


def _moved(parts: npt.NDArray[np.object_], by: tuple[float, float]) -> npt.NDArray[np.object_]:
    """Polygons moved up and to the left."""
    moved: npt.NDArray[np.object_] = shapely.transform(parts, lambda points: points - np.array(by))
    return moved


def _has_room(item: Scene | SetAside, config: RunConfig) -> bool:
    """Whether a window fits into a scene's region."""
    if isinstance(item, SetAside):
        return False
    if item.region is None:
        return True
    height, width = _window_of(item, config)
    for part in shapely.get_parts(item.region):
        left, top, right, bottom = shapely.bounds(part)
        if right - left < width or bottom - top < height:
            continue
        # A window fits where none of its pixels is crossed by the outline: all places but those that an edge reaches.
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_rings(part)]
        edges = np.concatenate([np.stack((ring[:-1], ring[1:]), axis=1) for ring in rings])
        corners = np.array([(0, 0), (width, 0), (0, height), (width, height)])
        swept = (edges[:, :, None] - corners).reshape(len(edges), -1, 2)
        taken = shapely.union_all(shapely.convex_hull(shapely.multipoints(shapely.points(swept))))
        if shapely.area(shapely.difference(part, taken)) > 0:
            return True
    return False


def _parts(
    described: Described, config: RunConfig, squares: Squares, known: Mapping[str, Mapping[str, str]]
) -> Division:
    """The scenes, each once for every split that has ground of it.

    Args:
        described: all scenes.
        config: `data.splits`.
        squares: which ground is whose.
        known: by id the splits of scenes that are in the catalogue of the store, which keep to these, and what it says
            of them (see `catalogue_frame`).
    """
    members: dict[str, list[Scene | SetAside]] = {split: [] for split in config.data.splits}
    buffered: list[SetAside] = []
    for item in described:
        if isinstance(item, SetAside):
            for split, status in known.get(item.scene_id, {squares.home: "bad"}).items():
                (buffered if status == "buffered" else members[split]).append(replace(item, split=split))
            continue
        before = known.get(item.scene_id)
        here = before or squares.inside(item)
        for split in config.data.splits:
            if split not in here:
                continue
            region = squares.region(item, split, buffered=True)
            if not _is_empty(region) or (before and before[split] != "buffered"):
                # Empty: the header could not be read when the division was made, and its places stay.
                members[split].append(replace(item, split=split, region=region))
            elif split == squares.home and not _is_empty(squares.region(item, split)):
                buffered.append(_left_out(item, squares))
    return Division(
        members=tuple(item for split in members.values() for item in split),
        buffered=tuple(buffered),
        squares=squares,
    )


def _is_empty(region: shapely.Geometry | None) -> bool:
    return region is not None and bool(shapely.is_empty(region))


def _left_out(scene: Scene, squares: Squares) -> SetAside:
    return SetAside(
        scene_id=scene.scene_id,
        split=squares.home,
        path=scene.image,
        reason=f"all that {squares.home} has of it lies within {squares.apart:.4g} m of the blocks of other splits "
        "(split.buffer, and a pixel)",
    )


def _remedy(described: Described, config: RunConfig, ground: Ground) -> str:
    """What to change; each of these settings was tried, and gives a division."""
    split = config.split
    found = []
    if block := next(_that_do(described, config, ground, _sides(described, config, ground)), None):
        found.append(f"split.block to {block:g}")
    buffer = buffer_of([item for item in described if isinstance(item, Scene)], config)
    for factor in (0.5, 0.25, 0.1, 0.0):
        smaller = replace(config, split=replace(split, buffer=float(f"{buffer * factor:.2g}")))
        if buffer and _does(described, smaller, ground):
            found.append(f"split.buffer to {smaller.split.buffer:g}")
            break
    if split.scenes == "whole" and not found:
        divided = replace(config, split=replace(split, scenes="divided"))
        if block := next(_that_do(described, divided, ground, _sides(described, divided, ground)), None):
            found.append(f"split.scenes to divided with split.block {block:g}")
    if not found:
        found += _smaller_chips(described, config, ground)
    others = "divide the scenes by split.by: manifest" if len(ground.outlines) > 1 else ""
    if found:
        return f"set {' or '.join(found)}{f', or {others}' if others else ''}"
    return others or "the image is too small to be divided: name fewer data.splits"


def _smaller_chips(described: Described, config: RunConfig, ground: Ground) -> Iterator[str]:
    chips = config.chips
    while chips.size >= 32 and (chips.size_range is None or chips.size_range[0] >= 32):
        low_high = chips.size_range and (chips.size_range[0] // 2, chips.size_range[1] // 2)
        chips = replace(chips, size=chips.size if low_high else chips.size // 2, size_range=low_high)
        smaller = replace(config, chips=chips, split=replace(config.split, buffer=None))
        block = next(_that_do(described, smaller, ground, _sides(described, smaller, ground)), None)
        if block:
            named = f"chips.size to {chips.size}" if low_high is None else f"chips.size_range to {list(low_high)}"
            yield f"{named} with split.block {block:g}"
            return


def _sides(described: Described, config: RunConfig, ground: Ground) -> list[float]:
    """Sides of squares that are worth a trial, the best first.

    Those are the ones most like the configured side where whole scenes are to be divided. An image is best cut into
    some squares for each split, in which a few chips lie side by side.
    """
    scenes = [item for item in described if isinstance(item, Scene)]
    west, south, east, north = shapely.total_bounds(ground.outlines)
    chip = config.chips.largest_window * min(scene.pixel_size or 1.0 for scene in scenes)
    best, shares = config.split.block, shares_of(config)
    if _divides_scenes(config, ground) or len(scenes) < len(shares):
        squares = _BLOCKS_EACH / min(shares.values())
        best = max(np.sqrt((east - west) * (north - south) / squares), _CHIPS_ACROSS * chip)
    side, sides = max(east - west, north - south), list[float]()
    while side > chip:
        sides.append(float(f"{side:.2g}"))
        side *= _STEP
    return sorted(sides, key=lambda one: abs(np.log(one / best)))


def _that_do(described: Described, config: RunConfig, ground: Ground, sides: Collection[float]) -> Iterator[float]:
    for side in sides:
        if _does(described, replace(config, split=replace(config.split, block=side)), ground):
            yield side


def _does(described: Described, config: RunConfig, ground: Ground) -> bool:
    try:
        _divide(described, config, ground)
    except DivisionError:
        return False
    return True
