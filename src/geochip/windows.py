"""Pixel windows: where chips are cut and where predictions are made. Integer geometry on NumPy alone.

Rows come before columns everywhere, as in NumPy; rasterio's own `Window` orders columns first, which is why this one
takes keywords only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Blend = Literal["hann", "average"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A rectangle of whole pixels.

    It may hang over the lower and the right edge of a scene that is smaller than it, never over the upper or left.
    """

    row_off: int
    """First row, counted from the scene's top; at least 0."""
    col_off: int
    """First column, counted from the scene's left; at least 0."""
    height: int
    """Number of rows; at least 1."""
    width: int
    """Number of columns; at least 1."""

    def __post_init__(self) -> None:
        if self.row_off < 0 or self.col_off < 0 or self.height < 1 or self.width < 1:
            raise ValueError(f"{self}: offsets must be at least 0 and sizes at least 1")

    @property
    def row_stop(self) -> int:
        """One past the last row."""
        return self.row_off + self.height

    @property
    def col_stop(self) -> int:
        """One past the last column."""
        return self.col_off + self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of this window's pixels in an array whose last two axes are (row, column)."""
        return slice(self.row_off, self.row_stop), slice(self.col_off, self.col_stop)

    def intersection(self, other: "Window") -> "Window | None":
        """The pixels that both windows hold, or None when they hold none in common."""
        row_off, col_off = max(self.row_off, other.row_off), max(self.col_off, other.col_off)
        height = min(self.row_stop, other.row_stop) - row_off
        width = min(self.col_stop, other.col_stop) - col_off
        if height < 1 or width < 1:
            return None
        return Window(row_off=row_off, col_off=col_off, height=height, width=width)

    def relative_to(self, outer: "Window") -> "Window":
        """This window counted from the first row and column of `outer`, which must not begin after it."""
        return Window(
            row_off=self.row_off - outer.row_off,
            col_off=self.col_off - outer.col_off,
            height=self.height,
            width=self.width,
        )


def sliding_offsets(length: int, size: int, stride: int) -> list[int]:
    """Offsets, along one axis, of windows that cover every pixel.

    Windows stand `stride` apart from 0 on; the last one is moved back so that it ends with the axis. An axis shorter
    than `size` gets the one offset 0.

    Args:
        length: pixels along the axis, at least 1.
        size: pixels of a window, at least 1.
        stride: 1 to `size`; a larger one would leave gaps.

    Returns:
        Ascending offsets, the first 0.

    Raises:
        ValueError: when `stride` is not within 1 to `size`.
    """
    if not 1 <= stride <= size:
        raise ValueError(f"stride {stride} must be at least 1 and at most the window's size {size}: no gaps")
    last = max(length - size, 0)
    offsets = list(range(0, last, stride))
    return [*offsets, last]


def sliding_windows(height: int, width: int, size: int, stride: int) -> list[Window]:
    """The window grid of a scene, row by row: square windows that cover every pixel (see `sliding_offsets`)."""
    return [
        Window(row_off=row, col_off=col, height=size, width=size)
        for row in sliding_offsets(height, size, stride)
        for col in sliding_offsets(width, size, stride)
    ]


def grid_windows(
    height: int, width: int, size: int, stride: int, edge: Literal["shift", "drop", "pad"]
) -> list[Window]:
    """Square windows in rows and columns, row by row, `stride` pixels apart, whatever is between them.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        size: rows and columns of each window.
        stride: pixels from one window to the next, at least 1; more than `size` leaves gaps.
        edge: what happens where the last window would not end with the scene: "shift" moves it back so that it does,
            "drop" leaves the rest out (a scene smaller than `size` then has no window), "pad" lets it hang over.

    Returns:
        The windows, no two alike.
    """

    def offsets(length: int) -> list[int]:
        last = length - size
        if edge == "drop":
            return list(range(0, last + 1, stride))
        if last <= 0:
            return [0]
        inside = list(range(0, last + 1, stride))
        if inside[-1] == last:
            return inside
        following = last if edge == "shift" else inside[-1] + stride
        # With a stride beyond the window, the next one may begin outside of the scene.
        return [*inside, following] if following < length else inside

    cols = offsets(width)
    return [Window(row_off=row, col_off=col, height=size, width=size) for row in offsets(height) for col in cols]


def blocks(height: int, width: int, size: int) -> Iterator[Window]:
    """Tile a scene, row by row, with blocks of `size` x `size` pixels; those at the lower and right edge are cut."""
    for row in range(0, height, size):
        for col in range(0, width, size):
            yield Window(row_off=row, col_off=col, height=min(size, height - row), width=min(size, width - col))


def blend_weights(size: int, blend: Blend) -> npt.NDArray[np.float32]:
    """Weight of each pixel of a window where windows overlap; sums are divided by the summed weights afterwards.

    Args:
        size: rows and columns of the window.
        blend: "average" weighs all pixels alike; "hann" trusts the middle of a window more than its edge, where the
            network saw less context: the outer product of sin²(π (i + ½) / size) with itself. The half-pixel shift
            keeps every weight above 0, so the division is always defined.

    Returns:
        float32 array (size, size), greater than 0 and at most 1.
    """
    if blend == "average":
        return np.ones((size, size), np.float32)
    axis = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return np.outer(axis, axis).astype(np.float32)
