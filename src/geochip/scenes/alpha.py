"""Whether a band that is declared to be alpha looks like one."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import rasterio.windows

from geochip.gdal import GDAL_ERRORS
from geochip.scenes.notices import Notice
from geochip.scenes.reader import Scene, alpha_bands, quiet_open

# Scenes that are looked at, evenly spread over all with such a band, and the sides of what is read of each.
_SCENES = 4
_SIDE = 256
# Nothing, and all, in the types that are used; the soft edge of a mosaic is a small part of it.
_OPAQUE = (0, 1, 255, 65535)
_SOFT = 0.05


def doubt_alpha(described: Sequence[Any]) -> list[Any]:
    """Add a warning to scenes whose alpha band, taken as a mask, holds more than nothing and all.

    Args:
        described: scenes, and what was set aside.

    Returns:
        The same, in this order; of the scenes with an alpha band some are looked at.
    """
    found = list(described)
    masked = [
        number
        for number, item in enumerate(found)
        if isinstance(item, Scene)
        and item.alpha == "mask"
        and any(notice.kind == "alpha" and "as a mask" in notice.text for notice in item.notices)
    ]
    for number in masked[:: max(1, len(masked) // _SCENES)][:_SCENES]:
        scene = found[number]
        if (share := _between(scene)) > _SOFT:
            text = (
                f"what is taken as a mask does not look like one: {share:.0%} of the alpha values that were looked at "
                "are neither nothing nor all (0, 255); if they are near infrared or another channel, name all bands "
                "(data.bands), or set data.alpha: band"
            )
            found[number] = replace(
                scene, notices=(*scene.notices, Notice(kind="alpha values", level="warning", text=text))
            )
    return found


def _between(scene: Scene) -> float:
    """Share of the pixels around the centre where an alpha band is neither nothing nor all; 0 when they do not read."""
    shares = [0.0]
    for path in (scene.image, *scene.stack):
        with contextlib.suppress(*GDAL_ERRORS), quiet_open(path) as dataset:
            row, col = (max(0, (length - _SIDE) // 2) for length in (dataset.height, dataset.width))
            place = rasterio.windows.Window(col, row, min(_SIDE, dataset.width), min(_SIDE, dataset.height))
            shares += [
                float(np.mean(~np.isin(dataset.read(band, window=place), _OPAQUE))) for band in alpha_bands(dataset)
            ]
    return max(shares)
