"""Which windows of a scene may become chips: drawn from the seed, the scene's id and its shape alone.

A scene has a fixed number of places for chips. Every place has one candidate window, or several in rounds where the
pixels decide (`chips.min_valid`, `chips.target_classes`): the first that fits is cut. No window is a candidate of two
places, so no two chips of a scene are alike, and a place can be filled without knowing how another one was.

Where squares of ground divide a scene between splits, the windows of each keep to its region; the parts of a region are
sampled, or covered by a grid, each for itself.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from geochip.config import ChipsConfig
from geochip.windows import Window, grid_windows

_Boxes = npt.NDArray[np.int64]
"""(n, 3): row_off, col_off, size."""

# So many positions are listed and shuffled rather than drawn: exact however many of them are wanted.
_LISTED_AT_MOST = 16_384
# Windows drawn for each one that is wanted, before a small area of interest is given up.
_DRAWS_PER_WINDOW = 200


def scene_generator(seed: int, scene_id: str) -> np.random.Generator:
    """The random numbers of one scene: they depend on the seed and the scene's id, on nothing else."""
    digest = hashlib.sha256(f"{seed}/{scene_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


@dataclass(frozen=True, kw_only=True)
class _Ground:
    """Where windows may be, in pixel coordinates."""

    inside: shapely.Geometry | None = None
    """What they must lie in; None: the scene."""
    touched: shapely.Geometry | None = None
    """What they must touch."""
    in_parts: bool = False
    """The polygons of `inside` may lie far apart."""

    @property
    def around(self) -> shapely.Geometry | None:
        """What holds all windows, or is touched by them."""
        return self.touched if self.inside is None else self.inside

    def parts(self) -> list[shapely.Geometry | None]:
        """What to look for windows in, one after the other; a window that lies inside lies in one of them."""
        if not self.in_parts or self.inside is None:
            return [self.around]
        return [part for part in shapely.get_parts(self.inside) if part.area]


def _ground(chips: ChipsConfig, aoi: shapely.Geometry | None, region: shapely.Geometry | None) -> _Ground:
    within = chips.aoi_within
    if region is None:
        return _Ground(inside=aoi if within else None, touched=None if within else aoi)
    if aoi is None or not within:
        return _Ground(inside=region, touched=aoi, in_parts=True)
    return _Ground(inside=shapely.intersection(region, aoi), in_parts=True)


def places_of(
    chips: ChipsConfig,
    *,
    scene_id: str,
    height: int,
    width: int,
    aoi: shapely.Geometry | None = None,
    region: shapely.Geometry | None = None,
) -> int:
    """Number of chips that a scene has places for.

    Args:
        chips: method, number, size and seed.
        scene_id: the scene's id, or what else its windows are drawn from (`Scene.draws_as`).
        height: rows of the scene.
        width: columns of the scene.
        aoi: area of interest in pixel coordinates (x = column, y = row); None: everything.
        region: the part of the scene that windows keep to, in pixel coordinates; None: all of it.
    """
    if chips.method == "grid" or aoi is not None or region is not None:
        return len(_rounds(chips, scene_id, height, width, aoi, region)[0])
    return min(_wanted(chips, height, width, None), _positions(chips, height, width))


def wanted_of(
    chips: ChipsConfig,
    *,
    height: int,
    width: int,
    aoi: shapely.Geometry | None = None,
    region: shapely.Geometry | None = None,
) -> int:
    """Number of random chips that are asked for, whether there is room or not; 0 for a grid, which takes what fits."""
    return 0 if chips.method == "grid" else _wanted(chips, height, width, _common(aoi, region))


def candidates_of(
    chips: ChipsConfig,
    *,
    scene_id: str,
    height: int,
    width: int,
    aoi: shapely.Geometry | None = None,
    region: shapely.Geometry | None = None,
) -> list[list[Window]]:
    """For each place of a scene its candidate windows, in the order in which they are to be tried.

    First candidates are in reading order, row by row, so that neighbouring places lie close together in the file.
    Windows lie inside the scene; where it is smaller than a window they begin at 0 and hang over the lower or right
    edge.

    Args: see `places_of`.

    Returns:
        A list for each place, the first candidate first; at most `chips.max_tries` long, and 1 long where pixels do not
        decide.
    """
    rounds = _rounds(chips, scene_id, height, width, aoi, region)
    return [
        [
            Window(row_off=int(row), col_off=int(col), height=int(size), width=int(size))
            for row, col, size in (boxes[place] for boxes in rounds if place < len(boxes))
        ]
        for place in range(len(rounds[0]))
    ]


def _common(aoi: shapely.Geometry | None, region: shapely.Geometry | None) -> shapely.Geometry | None:
    return aoi if region is None else region if aoi is None else shapely.intersection(region, aoi)


def _wanted(chips: ChipsConfig, height: int, width: int, ground: shapely.Geometry | None) -> int:
    if chips.per_area is None:
        return chips.per_scene
    pixels = height * width if ground is None else float(shapely.area(ground))
    return max(1, round(chips.per_area * pixels / 1e6)) if pixels else 0


def _sides(chips: ChipsConfig) -> tuple[int, int]:
    return chips.size_range or (chips.size, chips.size)


def _positions(chips: ChipsConfig, height: int, width: int) -> int:
    """How many different windows there are."""
    low, high = _sides(chips)
    sides = np.arange(low, high + 1)
    return int(((np.maximum(height - sides, 0) + 1) * (np.maximum(width - sides, 0) + 1)).sum())


def _rounds(
    chips: ChipsConfig,
    scene_id: str,
    height: int,
    width: int,
    aoi: shapely.Geometry | None,
    region: shapely.Geometry | None,
) -> list[_Boxes]:
    """Candidates by round: row k of each round is for place k."""
    ground = _ground(chips, aoi, region)
    if chips.method == "grid":
        boxes = _grid(chips, height, width, ground)
        return [boxes[_fits(boxes, height, width, ground)]]
    count = _wanted(chips, height, width, _common(aoi, region))
    rounds = chips.max_tries if chips.depend_on_content else 1
    drawn = _draw(chips, scene_id, height, width, ground, count * rounds)
    count = min(count, len(drawn))
    pieces = [drawn[start : start + count] for start in range(0, len(drawn), count)] if count else [drawn]
    # In reading order, but for those that are tried later: every place shall find what there is only in one corner.
    first = pieces[0][np.lexsort((pieces[0][:, 2], pieces[0][:, 1], pieces[0][:, 0]))]
    return [first, *pieces[1:]]


def _grid(chips: ChipsConfig, height: int, width: int, ground: _Ground) -> _Boxes:
    """The windows of a grid over the scene, or over each part of the ground, in reading order."""
    found = []
    for part in ground.parts():
        top, left, bottom, right = 0, 0, height, width
        if ground.in_parts:
            x0, y0, x1, y1 = shapely.bounds(part).tolist()
            top, left, bottom, right = math.ceil(y0), math.ceil(x0), math.floor(y1), math.floor(x1)
        # A part that is smaller than a window has none, unless that may hang over the scene's edge, or must.
        least = 1 if chips.edge == "pad" else chips.size
        if bottom - top < min(least, height) or right - left < min(least, width):
            continue
        for one in grid_windows(bottom - top, right - left, chips.size, chips.stride or chips.size, chips.edge):
            found.append((one.row_off + top, one.col_off + left, one.height))  # noqa: PERF401
    boxes = np.array(found, np.int64).reshape(-1, 3)
    return boxes[np.lexsort((boxes[:, 1], boxes[:, 0]))]


def _draw(chips: ChipsConfig, scene_id: str, height: int, width: int, ground: _Ground, wanted: int) -> _Boxes:
    """At most `wanted` different windows, uniform over sizes and, for each size, over positions."""
    rng = scene_generator(chips.seed, scene_id)
    low, high = _sides(chips)
    sides = np.arange(low, high + 1)
    within, spans = ground.inside is not None, []
    for part in ground.parts():
        left, top, right, bottom = (None,) * 4 if part is None else shapely.bounds(part).tolist()
        spans.append((*_span(sides, height, top, bottom, within), *_span(sides, width, left, right, within)))
    # Each (part, side).
    rows_from, rows_to, cols_from, cols_to = np.array(spans, np.int64).reshape(-1, 4, len(sides)).transpose(1, 0, 2)
    positions = np.maximum(rows_to - rows_from, 0) * np.maximum(cols_to - cols_from, 0)
    if not positions.sum():
        return np.empty((0, 3), np.int64)
    if positions.sum() <= max(_LISTED_AT_MOST, 2 * wanted):
        each = zip(np.tile(sides, len(spans)), *map(np.ravel, (rows_from, rows_to, cols_from, cols_to)), strict=True)
        every = np.concatenate([_list_all(*map(int, span)) for span in each])
        every = every[_fits(every, height, width, ground)]
        return every[rng.permutation(len(every))[:wanted]]
    found: dict[tuple[int, int, int], None] = {}
    draws_left = wanted * _DRAWS_PER_WINDOW
    while len(found) < wanted and draws_left > 0:
        many = max(64, 2 * (wanted - len(found)))
        draws_left -= many
        # Row, column and size of a window in turn, and its part where there are several: what is drawn does not depend
        # on how many are drawn at once.
        draws = rng.random((many, 3 if len(spans) == 1 else 4))
        size = np.floor(draws[:, 2] * len(sides)).astype(np.int64)
        at = (_drawn_parts(draws[:, 3], size, positions) if len(spans) > 1 else 0 * size, size)
        rows = rows_from[at] + np.floor(draws[:, 0] * (rows_to - rows_from)[at]).astype(np.int64)
        cols = cols_from[at] + np.floor(draws[:, 1] * (cols_to - cols_from)[at]).astype(np.int64)
        boxes = np.stack([rows, cols, sides[size]], axis=1)[positions[at] > 0]
        for box in boxes[_fits(boxes, height, width, ground)].tolist():
            found.setdefault(tuple(box))
    return np.array(list(found)[:wanted], np.int64).reshape(-1, 3)


def _drawn_parts(
    draws: npt.NDArray[np.float64], size: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Which part each draw falls to: by the positions that windows of its size have there."""
    parts = np.zeros_like(size)
    for one in np.unique(size):
        upto = np.cumsum(positions[:, one])
        of_size = size == one
        parts[of_size] = np.searchsorted(upto, draws[of_size] * upto[-1], side="right")
    # Of a size for which there is no place at all.
    return np.minimum(parts, len(positions) - 1)


def _span(
    sides: npt.NDArray[np.int64], length: int, lowest: float | None, highest: float | None, within: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First offset, and the one after the last, of windows of each size along one axis.

    The bounds of the area of interest leave room for no others; whether it covers a window is another question.
    """
    first, stop = np.zeros_like(sides), np.maximum(length - sides, 0) + 1
    if lowest is None or highest is None:
        return first, stop
    if np.isnan(lowest):
        return first, first
    low, high = int(np.floor(lowest)), int(np.ceil(highest))
    if within:
        # What hangs over the scene's edge need not be covered.
        return np.maximum(first, low), np.minimum(stop, np.where(sides > length, 1, high - sides + 1))
    return np.maximum(first, low - sides), np.minimum(stop, high + 1)


def _list_all(side: int, rows_from: int, rows_to: int, cols_from: int, cols_to: int) -> _Boxes:
    """All windows of one size."""
    rows, cols = np.indices((max(rows_to - rows_from, 0), max(cols_to - cols_from, 0))).reshape(2, -1)
    return np.stack([rows + rows_from, cols + cols_from, np.full_like(rows, side)], axis=1)


def _fits(boxes: _Boxes, height: int, width: int, ground: _Ground) -> npt.NDArray[np.bool_]:
    """Which windows lie where they may be, as far as they lie in the scene."""
    fits = np.ones(len(boxes), np.bool_)
    if ground.around is None:
        return fits
    rows, cols, sides = boxes.T
    right, bottom = np.minimum(cols + sides, width), np.minimum(rows + sides, height)
    if ground.inside is not None:
        shapely.prepare(ground.inside)
        fits &= shapely.covers(ground.inside, shapely.box(cols, rows, right, bottom))
    if ground.touched is not None:
        shapely.prepare(ground.touched)
        # A shared edge is no shared pixel: the square is taken a little smaller.
        squares = shapely.box(cols + 0.01, rows + 0.01, right - 0.01, bottom - 0.01)
        fits &= shapely.intersects(ground.touched, squares)
    return fits
