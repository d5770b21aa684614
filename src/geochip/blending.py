"""Predicting a piece of a scene from overlapping windows: pure geometry and arithmetic on NumPy.

The windows stand on a grid that belongs to the whole scene (`windows.sliding_windows`). Whoever predicts a block of the
scene runs every window of the grid that touches it, in the grid's order, and adds them up with weights that fall off
towards a window's edge. So every pixel of the scene is the sum of the same windows in the same order, whatever block it
is predicted in: the same bytes come from one block or from a thousand, in any order, by any number of workers.

Legend: b band, k class, h row, w column, n window of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from geochip.config import IGNORE, PROBABILITY_STEPS
from geochip.errors import WorkError
from geochip.windows import Blend, Window, blend_weights, sliding_offsets

Read = Callable[[Window], tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]
"""Reads a window as (image_bhw, valid_hw). It may hang over the scene's lower and right edge: not valid there."""

Network = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""Turns a batch, image_nbhw in the scene's own units, into probability_nkhw: at least 0, and 1 in sum over k."""


@dataclass(frozen=True, kw_only=True)
class Sliding:
    """How windows slide over a scene and how they are blended."""

    size: int
    """Rows and columns of a window."""
    stride: int
    """Pixels from one window to the next, 1 to `size`."""
    blend: Blend
    """How the pixels of a window are weighted (see `windows.blend_weights`)."""
    batch_size: int
    """Windows that the network gets at once."""
    classes: int
    """Classes that it tells apart."""

    def count(self, height: int, width: int) -> int:
        """Number of windows that a scene of this many rows and columns is predicted from."""
        rows, cols = (len(sliding_offsets(length, self.size, self.stride)) for length in (height, width))
        return rows * cols

    def touching(self, block: Window, height: int, width: int) -> list[Window]:
        """The windows of a scene's grid that hold a pixel of `block`, row by row.

        Args:
            block: a part of the scene.
            height: rows of the scene.
            width: columns of the scene.
        """
        rows, cols = (
            [off for off in sliding_offsets(length, self.size, self.stride) if off < stop and off + self.size > start]
            for length, start, stop in (
                (height, block.row_off, block.row_stop),
                (width, block.col_off, block.col_stop),
            )
        )
        return [Window(row_off=row, col_off=col, height=self.size, width=self.size) for row in rows for col in cols]


def read_block(
    block: Window, height: int, width: int, sliding: Sliding, read: Read
) -> tuple[list[Window], Window, npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Read what one block of a scene is predicted from.

    Args:
        block: a part of the scene.
        height: rows of the scene.
        width: columns of the scene.
        sliding: the scene's windows.
        read: reads the scene.

    Returns:
        windows: those that touch the block, row by row.
        halo: the part of the scene that they cover.
        image_bhw: (band, height, width) pixels of the halo, in the scene's dtype and units.
        valid_hw: bool (height, width), True where the halo has data.
    """
    windows = sliding.touching(block, height, width)
    # Row by row: the first window begins the region and the last one ends it.
    row_off, col_off = windows[0].row_off, windows[0].col_off
    halo = Window(
        row_off=row_off, col_off=col_off, height=windows[-1].row_stop - row_off, width=windows[-1].col_stop - col_off
    )
    return windows, halo, *read(halo)


def predict_block(
    block: Window, height: int, width: int, sliding: Sliding, read: Read, network: Network
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Predict one block of a scene.

    What is read and held in memory is the block and its halo, at most a window's size less one pixel on each side.

    The network always gets `batch_size` windows, the last batch filled up with zeros: libraries choose their algorithm
    by the shape of a batch, and another algorithm rounds differently. Windows without any valid pixel are left out.

    Args:
        block: a part of the scene.
        height: rows of the scene.
        width: columns of the scene.
        sliding: the scene's windows.
        read: reads the scene.
        network: predicts windows.

    Returns:
        probability_khw: float32 (class, height, width) of the block, Σ weight · probability / Σ weight over the windows
            that hold a pixel; 0 where no window has a valid pixel.
        valid_hw: bool (height, width), True where the scene has data.

    Raises:
        WorkError: when the network's answer is not a number.
    """
    windows, halo, image_bhw, valid_hw = read_block(block, height, width, sliding, read)
    windows = [window for window in windows if valid_hw[window.relative_to(halo).slices].any()]
    weight_hw = blend_weights(sliding.size, sliding.blend)
    sums_khw = np.zeros((sliding.classes, block.height, block.width), np.float32)
    weights_hw = np.zeros((block.height, block.width), np.float32)
    for start in range(0, len(windows), sliding.batch_size):
        batch = windows[start : start + sliding.batch_size]
        image_nbhw = np.zeros((sliding.batch_size, len(image_bhw), sliding.size, sliding.size), image_bhw.dtype)
        for place, window in enumerate(batch):
            image_nbhw[place] = image_bhw[:, *window.relative_to(halo).slices]
        probability_nkhw = network(image_nbhw)
        if not np.isfinite(probability_nkhw[: len(batch)]).all():
            raise WorkError(
                "the model's probabilities are not numbers (NaN): its weights are damaged or its training diverged; "
                "train it again with a lower --train.lr"
            )
        for probability_khw, window in zip(probability_nkhw, batch, strict=False):
            _add(sums_khw, weights_hw, block, probability_khw, weight_hw, window)
    sums_khw /= np.where(weights_hw > 0, weights_hw, np.float32(1))
    return sums_khw, valid_hw[block.relative_to(halo).slices]


def _add(
    sums_khw: npt.NDArray[np.float32],
    weights_hw: npt.NDArray[np.float32],
    block: Window,
    probability_khw: npt.NDArray[np.float32],
    weight_hw: npt.NDArray[np.float32],
    window: Window,
) -> None:
    """Add that part of a window that lies in the block."""
    part = window.intersection(block)
    assert part is not None, f"{window} does not touch {block}"
    to, of = part.relative_to(block).slices, part.relative_to(window).slices
    sums_khw[:, *to] += probability_khw[:, *of] * weight_hw[of]
    weights_hw[to] += weight_hw[of]


def pack(
    probability_khw: npt.NDArray[np.float32], valid_hw: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Turn probabilities into what is stored.

    Args:
        probability_khw: float32 (class, height, width), 0 to 1.
        valid_hw: True where the scene has data.

    Returns:
        class_hw: uint8, the most probable class (of equals the first), 255 where nothing is valid; and
        packed_khw: uint8, probability times 254, rounded, 255 where nothing is valid.
    """
    class_hw = np.where(valid_hw, probability_khw.argmax(axis=0), IGNORE).astype(np.uint8)
    # Rounding may have carried a blended probability a bit above 1.
    steps = np.rint(np.clip(probability_khw, 0, 1) * np.float32(PROBABILITY_STEPS))
    return class_hw, np.where(valid_hw, steps, IGNORE).astype(np.uint8)
