"""Whether chips to train on show the same ground as chips to validate or test on.

The windows of both are compared on the ground: in the scenes' own CRS where all share one, else in longitude and
latitude, cut at 180 degrees. Windows that touch, or overlap by less than half a pixel, do not count: that much the
rounding of two georeferences makes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import pyproj.exceptions
import shapely

from geochip.geodesy import outlines, period_of
from geochip.plan import ChipPlan, PlannedScene
from geochip.scenes import Scene, corners
from geochip.windows import Window

_INSET = 0.25
"""Pixels that a window is drawn in from each side."""
_NAMED = 5
"""Pairs that are kept by name."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What the audit found."""

    pairs: int = 0
    """Pairs of chips, one of the train split and one of another, that show some of the same ground."""
    examples: tuple[str, ...] = ()
    """Some of them, in words."""
    chips: int = 0
    """Chips of the train split that are in a pair."""
    unplaced: int = 0
    """Scenes without a CRS, or with a local one, which cannot be compared."""

    def to_json(self) -> dict[str, Any]:
        """For the attributes of the store."""
        return {"pairs": self.pairs, "train_chips": self.chips, "examples": list(self.examples)}


def audit_overlap(plan: ChipPlan, train_split: str, windows_of: Callable[[PlannedScene], Sequence[Window]]) -> Overlap:
    """Compare the windows of the train split with those of all other splits.

    Args:
        plan: the scenes.
        train_split: the split that is trained on.
        windows_of: the windows of a scene; asked only of scenes that share ground with one of another split.

    Returns:
        What overlaps; scenes that nothing relates to the earth are left out and counted.
    """
    scenes = [scene for split in plan.splits for scene in split.scenes if scene.usable and scene.places]
    if all(scene.split == train_split for scene in scenes) or all(scene.split != train_split for scene in scenes):
        return Overlap()
    placed = [scene for scene in scenes if _is_placed(_header(scene).crs)]
    unplaced = len(scenes) - len(placed)
    train, other = ([one for one in placed if (one.split == train_split) == flag] for flag in (True, False))
    if not train or not other:
        return Overlap(unplaced=unplaced)
    common = _common_crs(placed)
    close = _pairs(_outlines(train, _whole, common), _outlines(other, _whole, common))
    if not len(close):
        return Overlap(unplaced=unplaced)
    sides = []
    for members, which in ((train, 0), (other, 1)):
        chosen = [members[index] for index in np.unique(close[:, which])]
        windows = [(scene, window) for scene in chosen for window in windows_of(scene)]
        sides.append((windows, _outlines(chosen, windows_of, common)))
    (train_windows, train_outlines), (other_windows, other_outlines) = sides
    pairs = _pairs(train_outlines, other_outlines)
    return Overlap(
        pairs=len(pairs),
        examples=tuple(
            f"{_words(*train_windows[first])} and {_words(*other_windows[second])}" for first, second in pairs[:_NAMED]
        ),
        chips=len(np.unique(pairs[:, 0])),
        unplaced=unplaced,
    )


def _header(scene: PlannedScene) -> Scene:
    assert scene.scene is not None
    return scene.scene


def _common_crs(scenes: Iterable[PlannedScene]) -> str | None:
    """The CRS of all scenes, if they share one in which places can be compared by their numbers."""
    found = {_header(scene).crs for scene in scenes}
    crs = found.pop()
    # The same place has several numbers where longitude goes around.
    return crs if not found and crs is not None and period_of(crs) is None else None


@lru_cache(maxsize=64)
def _is_placed(crs: str | None) -> bool:
    """Whether a CRS is related to the earth, which a local grid is not."""
    try:
        return crs is not None and bool(pyproj.Transformer.from_crs(crs, "EPSG:4326"))
    except pyproj.exceptions.ProjError:
        return False


def _whole(planned: PlannedScene) -> list[Window]:
    scene = _header(planned)
    return [Window(row_off=0, col_off=0, height=scene.height, width=scene.width)]


def _outlines(
    scenes: Iterable[PlannedScene], windows_of: Callable[[PlannedScene], Sequence[Window]], common: str | None
) -> npt.NDArray[Any]:
    """Polygons of all windows of all scenes, in the order of both."""
    by_crs: dict[str, list[npt.NDArray[np.float64]]] = {}
    places: dict[str, list[int]] = {}
    count = 0
    for planned in scenes:
        scene, windows = _header(planned), windows_of(planned)
        if not windows:
            continue
        assert scene.crs is not None
        # What hangs over a scene's edge shows no ground.
        inside = [window.intersection(_whole(planned)[0]) or window for window in windows]
        by_crs.setdefault(scene.crs, []).append(corners(scene, inside, inset=_INSET))
        places.setdefault(scene.crs, []).extend(range(count, count + len(windows)))
        count += len(windows)
    found = np.empty(count, dtype=object)
    for crs, pieces in by_crs.items():
        rings = np.concatenate(pieces)
        found[places[crs]] = shapely.polygons(rings) if crs == common else outlines(rings, crs)
    return found


def _pairs(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(n, 2): indices of outlines of the two sides that share ground, in ascending order."""
    found: npt.NDArray[np.int64] = shapely.STRtree(second).query(first, predicate="intersects").T
    return found[np.lexsort((found[:, 1], found[:, 0]))]


def _words(scene: PlannedScene, window: Window) -> str:
    return (
        f"{scene.name} (rows {window.row_off} to {window.row_stop - 1}, columns {window.col_off} to "
        f"{window.col_stop - 1})"
    )
