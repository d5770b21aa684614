"""Which windows of a scene may become chips: drawn from the seed, the scene's id and its shape alone.

A scene has a fixed number of places for chips. Every place has one candidate window, or several in rounds where the
pixels decide (`chips.min_valid`, `chips.target_classes`): the first that fits is cut. No window is a candidate of two
places, so no two chips of a scene are alike, and a place can be filled without knowing how another one was.
"""

import hashlib

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


def places_of(
    chips: ChipsConfig, *, scene_id: str, height: int, width: int, aoi: shapely.Geometry | None = None
) -> int:
    """Number of chips that a scene has places for.

    Args:
        chips: method, number, size and seed.
        scene_id: the scene's id.
        height: rows of the scene.
        width: columns of the scene.
        aoi: area of interest in pixel coordinates (x = column, y = row); None: everything.
    """
    if chips.method == "grid" or aoi is not None:
        return len(_rounds(chips, scene_id, height, width, aoi)[0])
    return min(_wanted(chips, height, width, aoi), _positions(chips, height, width))


def wanted_of(chips: ChipsConfig, *, height: int, width: int, aoi: shapely.Geometry | None = None) -> int:
    """Number of random chips that are asked for, whether there is room or not; 0 for a grid, which takes what fits."""
    return 0 if chips.method == "grid" else _wanted(chips, height, width, aoi)


def candidates_of(
    chips: ChipsConfig, *, scene_id: str, height: int, width: int, aoi: shapely.Geometry | None = None
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
    rounds = _rounds(chips, scene_id, height, width, aoi)
    return [
        [
            Window(row_off=int(row), col_off=int(col), height=int(size), width=int(size))
            for row, col, size in (boxes[place] for boxes in rounds if place < len(boxes))
        ]
        for place in range(len(rounds[0]))
    ]


def _wanted(chips: ChipsConfig, height: int, width: int, aoi: shapely.Geometry | None) -> int:
    if chips.per_area is None:
        return chips.per_scene
    pixels = height * width if aoi is None else float(shapely.area(aoi))
    return max(1, round(chips.per_area * pixels / 1e6)) if pixels else 0


def _sides(chips: ChipsConfig) -> tuple[int, int]:
    return chips.size_range or (chips.size, chips.size)


def _positions(chips: ChipsConfig, height: int, width: int) -> int:
    """How many different windows there are."""
    low, high = _sides(chips)
    sides = np.arange(low, high + 1)
    return int(((np.maximum(height - sides, 0) + 1) * (np.maximum(width - sides, 0) + 1)).sum())


def _rounds(chips: ChipsConfig, scene_id: str, height: int, width: int, aoi: shapely.Geometry | None) -> list[_Boxes]:
    """Candidates by round: row k of each round is for place k."""
    if chips.method == "grid":
        windows = grid_windows(height, width, chips.size, chips.stride or chips.size, chips.edge)
        boxes = np.array([(one.row_off, one.col_off, one.height) for one in windows], np.int64).reshape(-1, 3)
        return [boxes[_fits(boxes, chips, height, width, aoi)]]
    count = _wanted(chips, height, width, aoi)
    rounds = chips.max_tries if chips.depend_on_content else 1
    drawn = _draw(chips, scene_id, height, width, aoi, count * rounds)
    count = min(count, len(drawn))
    pieces = [drawn[start : start + count] for start in range(0, len(drawn), count)] if count else [drawn]
    # In reading order, but for those that are tried later: every place shall find what there is only in one corner.
    first = pieces[0][np.lexsort((pieces[0][:, 2], pieces[0][:, 1], pieces[0][:, 0]))]
    return [first, *pieces[1:]]


def _draw(
    chips: ChipsConfig, scene_id: str, height: int, width: int, aoi: shapely.Geometry | None, wanted: int
) -> _Boxes:
    """At most `wanted` different windows, uniform over sizes and, for each size, over positions."""
    rng = scene_generator(chips.seed, scene_id)
    low, high = _sides(chips)
    sides = np.arange(low, high + 1)
    left, top, right, bottom = (None,) * 4 if aoi is None else shapely.bounds(aoi).tolist()
    rows_from, rows_to = _span(sides, height, top, bottom, chips.aoi_within)
    cols_from, cols_to = _span(sides, width, left, right, chips.aoi_within)
    positions = np.maximum(rows_to - rows_from, 0) * np.maximum(cols_to - cols_from, 0)
    if not positions.sum():
        return np.empty((0, 3), np.int64)
    if positions.sum() <= max(_LISTED_AT_MOST, 2 * wanted):
        spans = zip(sides, rows_from, rows_to, cols_from, cols_to, strict=True)
        every = np.concatenate([_list_all(*map(int, span)) for span in spans])
        every = every[_fits(every, chips, height, width, aoi)]
        return every[rng.permutation(len(every))[:wanted]]
    found: dict[tuple[int, int, int], None] = {}
    draws_left = wanted * _DRAWS_PER_WINDOW
    while len(found) < wanted and draws_left > 0:
        many = max(64, 2 * (wanted - len(found)))
        draws_left -= many
        # Row, column and size of a window in turn: what is drawn does not depend on how many are drawn at once.
        draws = rng.random((many, 3))
        size = np.floor(draws[:, 2] * len(sides)).astype(np.int64)
        rows = rows_from[size] + np.floor(draws[:, 0] * (rows_to - rows_from)[size]).astype(np.int64)
        cols = cols_from[size] + np.floor(draws[:, 1] * (cols_to - cols_from)[size]).astype(np.int64)
        boxes = np.stack([rows, cols, sides[size]], axis=1)[positions[size] > 0]
        for box in boxes[_fits(boxes, chips, height, width, aoi)].tolist():
            found.setdefault(tuple(box))
    return np.array(list(found)[:wanted], np.int64).reshape(-1, 3)


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


def _fits(
    boxes: _Boxes, chips: ChipsConfig, height: int, width: int, aoi: shapely.Geometry | None
) -> npt.NDArray[np.bool_]:
    """Which windows lie in the area of interest, as far as they lie in the scene."""
    if aoi is None:
        return np.ones(len(boxes), np.bool_)
    rows, cols, sides = boxes.T
    right, bottom = np.minimum(cols + sides, width), np.minimum(rows + sides, height)
    shapely.prepare(aoi)
    squares = shapely.box(cols, rows, right, bottom)
    if chips.aoi_within:
        inside: npt.NDArray[np.bool_] = shapely.covers(aoi, squares)
        return inside
    # A shared edge is no shared pixel: the square is taken a little smaller.
    touched: npt.NDArray[np.bool_] = shapely.intersects(
        aoi, shapely.box(cols + 0.01, rows + 0.01, right - 0.01, bottom - 0.01)
    )
    return touched
