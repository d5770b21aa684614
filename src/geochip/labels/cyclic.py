"""Shapes on a map that repeats itself: each is drawn wherever it shows in the scene."""

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from geochip.labels.grid import MARGIN, Grid, crs_period, pixel_bounds, whole_window

Geometries = npt.NDArray[Any]
"""Shapely geometries, (n,) of dtype object."""

# Of a turn: a shape from one edge of the map to the other that is narrower than this when it is taken to go over the
# edge (10 degrees) and then lies at the scene, was not meant to go around the world.
_NARROW = 1 / 36


def shown_in(parts: Geometries, grid: Grid, reach: float) -> tuple[Geometries, npt.NDArray[np.int64]]:
    """Shapes where a scene shows them.

    A scene in degrees may go over 180, or count from 0 to 360, whatever its label does; and RFC 7946 (section 3.1.9)
    asks for shapes that are cut at 180 degrees.

    Args:
        parts: (n,) points, lines and polygons in the scene's CRS.
        grid: the scene's.
        reach: how far a shape may be drawn beyond itself, in pixels.

    Returns:
        The same, each followed by copies of it a turn further east or west, where they lie at the scene; and for each
        the index of the one that it is, (m,).
    """
    same = np.arange(len(parts))
    step = None if grid.crs is None else crs_period(grid.crs)
    if step is None or not len(parts):
        return parts, same
    west, south, east, north = pixel_bounds(grid, whole_window(grid), reach + MARGIN)
    bounds = shapely.bounds(parts)
    for number in np.flatnonzero(bounds[:, 2] - bounds[:, 0] > step / 2):
        over = _over_the_edge(parts[number], step)
        if over is not None and any(
            over.bounds[0] + turn <= east and over.bounds[2] + turn >= west for turn in (-step, 0, step)
        ):
            parts = parts.copy()
            parts[number], bounds[number] = over, over.bounds
    owners, shown = [same], [parts]
    beside = (bounds[:, 1] <= north) & (bounds[:, 3] >= south)
    for turn in (-step, step):
        there = np.flatnonzero(beside & (bounds[:, 0] + turn <= east) & (bounds[:, 2] + turn >= west))
        owners.append(there)
        shown.append(_moved(parts[there], turn))
    owner = np.concatenate(owners)
    # Each at its turn: later features are drawn over earlier ones.
    order = np.argsort(owner, kind="stable")
    return np.concatenate(shown)[order], owner[order]


def _moved(parts: Geometries, distance: float) -> Geometries:
    return shapely.transform(parts, lambda xy: xy + np.array([distance, 0.0]))


def _over_the_edge(part: Any, step: float) -> Any | None:
    """A shape from one edge of the map to the other, taken to go over the edge; None when it is wide then, too."""
    low, _, high, _ = part.bounds
    middle = (low + high) / 2
    over = shapely.transform(part, lambda xy: xy + np.outer(xy[:, 0] < middle, [step, 0.0]))
    low, _, high, _ = over.bounds
    return over if 0 < high - low < _NARROW * step else None
