"""Bringing a window to another number of pixels.

Done here and not by GDAL: it would take a file's overviews where there are some, and let pixels without data bleed into
those beside them. A window that is cut from a larger read gives the same pixels as one that is read by itself.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

# These have more digits than float32 holds.
_LONG = ("uint32", "int32", "float64")


def resample(
    image_bhw: npt.NDArray[Any], valid_hw: npt.NDArray[np.bool_], shape: tuple[int, int], fill: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Bring a window to another size: pixel values bilinear, validity nearest.

    Enlarged, a pixel is a blend of the four around its centre; reduced, of all that it covers, weighted by their
    distance. Pixels that are not valid take no part in it.

    Args:
        image_bhw: (band, height, width), any dtype that a scene may have.
        valid_hw: (height, width), True where there is data.
        shape: rows and columns to bring it to.
        fill: value of pixels that are not valid in the result.

    Returns:
        (band, *shape) in the dtype that came in, integers rounded to the nearest; and shape bool.
    """
    dtype = image_bhw.dtype
    rows, cols = (
        _taps(length, wanted, np.float64 if dtype.name in _LONG else np.float32)
        for length, wanted in zip(valid_hw.shape, shape, strict=True)
    )
    if valid_hw.all():
        blended = _blend(image_bhw, rows, cols)
        valid = np.ones(shape, np.bool_)
    else:
        valid = valid_hw[np.ix_(_nearest(valid_hw.shape[0], shape[0]), _nearest(valid_hw.shape[1], shape[1]))]
        weight = _blend(valid_hw[None], rows, cols)
        blended = _blend(np.where(valid_hw, image_bhw, 0), rows, cols) / np.where(weight > 0, weight, 1)
        blended[:, ~valid] = fill
    if dtype.kind != "f":
        np.rint(blended, out=blended)
    return blended.astype(dtype), valid


_Taps = list[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]


def _taps(length: int, wanted: int, dtype: type[np.floating[Any]]) -> _Taps:
    """For each pixel of the result, along one axis, which pixels it is made of: a list of (indices, weights)."""
    reach = max(length / wanted, 1.0)
    centre = (np.arange(wanted) + 0.5) * (length / wanted) - 0.5
    index = np.floor(centre - reach).astype(np.int64)[:, None] + 1 + np.arange(int(np.ceil(2 * reach)))
    weight = np.maximum(1 - np.abs(index - centre[:, None]) / reach, 0)
    weight /= weight.sum(axis=1, keepdims=True)
    index = np.clip(index, 0, length - 1)  # at its edge a window goes on as it ends
    return [(index[:, k], weight[:, k].astype(dtype)) for k in range(index.shape[1])]


def _blend(image_bhw: npt.NDArray[Any], rows: _Taps, cols: _Taps) -> npt.NDArray[Any]:
    image = sum(np.take(image_bhw, index, axis=1) * weight[:, None] for index, weight in rows)
    blended: npt.NDArray[Any] = sum(np.take(image, index, axis=2) * weight for index, weight in cols)  # type: ignore[assignment]
    return blended


def _nearest(length: int, wanted: int) -> npt.NDArray[np.int64]:
    return ((np.arange(wanted) + 0.5) * (length / wanted)).astype(np.int64)
