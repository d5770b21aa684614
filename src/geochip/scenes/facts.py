"""What a file declares of each of its bands, and what a person should know of how that is taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from rasterio.enums import ColorInterp

from geochip.config import DataConfig
from geochip.scenes.notices import Notice
from geochip.scenes.reader import Validity, alpha_bands, own_nodata, validity_of


@dataclass(frozen=True, kw_only=True)
class BandFacts:
    """One band of one file."""

    dtype: str
    """NumPy name of its type."""
    nodata: float | None
    """Its own nodata value."""
    alpha: bool
    palette: bool
    """Its values are indices into a colour table."""
    validity: Validity
    """What of the file, alpha bands apart, tells which of its pixels have data."""
    scale: float
    offset: float

    @property
    def bare(self) -> bool:
        """Nothing tells which of its pixels have data."""
        return self.validity == "all"


def band_facts(dataset: Any) -> tuple[BandFacts, ...]:
    """The facts of each band of an open file."""
    alpha, colours = alpha_bands(dataset), dataset.colorinterp
    # Asked for once: each of them looks at all bands.
    dtypes, flags, values = dataset.dtypes, dataset.mask_flag_enums, dataset.nodatavals
    scales, offsets = dataset.scales, dataset.offsets
    nodata = [own_nodata(value, dtype) for value, dtype in zip(values, dtypes, strict=True)]
    return tuple(
        BandFacts(
            dtype=dtypes[band - 1],
            nodata=nodata[band - 1],
            alpha=band in alpha,
            palette=colours[band - 1] == ColorInterp.palette,
            validity=validity_of([flags[band - 1]], [nodata[band - 1]]),
            scale=scales[band - 1],
            offset=offsets[band - 1],
        )
        for band in range(1, dataset.count + 1)
    )


def band_notices(bands: Sequence[BandFacts], own: Sequence[int], start: int, data: DataConfig) -> Iterator[Notice]:
    """What is to be told of the chosen bands of one file.

    Args:
        bands: all of its bands.
        own: numbers of those that are chosen, from 1.
        start: number of its first band among all of the scene.
        data: the section of the run file.
    """
    chosen = [(number + start - 1, bands[number - 1]) for number in own]
    yield from _of_alpha(bands, own, start, data)
    yield from _of_nodata(chosen)
    if palette := [number for number, band in chosen if band.palette]:
        yield Notice(
            kind="palette",
            level="warning",
            text=f"the values of {_named(palette)} are indices into a colour table, not brightness, and are taken as "
            "they are; for colours expand the image (gdal_translate -expand rgb)",
        )
    if scaled := [(number, band) for number, band in chosen if (band.scale, band.offset) != (1, 0)]:
        of_first = scaled[0][1]
        yield Notice(
            kind="scale",
            text=f"{_named([number for number, _ in scaled])} declare{'s' * (len(scaled) == 1)} a scale or an offset "
            f"({of_first.scale:.9g}, {of_first.offset:.9g} for the first), which is not applied: pixels are taken as "
            "they are stored; where files differ in it, apply it first (gdal_translate -unscale -ot Float32)",
        )


def _of_alpha(bands: Sequence[BandFacts], own: Sequence[int], start: int, data: DataConfig) -> Iterator[Notice]:
    alpha = [number for number, band in enumerate(bands, 1) if band.alpha]
    if not alpha:
        return
    named, all_bands = _named([number + start - 1 for number in alpha]), list(range(start, start + len(bands)))
    declared = f"{named} {'is' if len(alpha) == 1 else 'are'} declared to be alpha"
    if set(alpha) & set(own):
        yield Notice(
            kind="alpha",
            text=f"{declared}, and taken as {'a band' if len(alpha) == 1 else 'bands'} like the others: pixels where "
            "it is 0 have data; to have it say where data is, leave it out of data.bands, and data.alpha at mask",
        )
    elif data.alpha == "band":
        yield Notice(kind="alpha", text=f"{declared}, which data.alpha: band says it is not: it is not used")
    else:
        yield Notice(
            kind="alpha",
            text=f"{declared}, and taken as a mask: pixels where it is 0 have no data, and it is no band of the chips "
            "(GDAL calls the fourth band of most files of four bytes a pixel alpha); if it is something else, such as "
            f"near infrared, name all bands that are meant (data.bands: {all_bands}), or set data.alpha: band, with "
            "which it is no mask either",
        )


def _of_nodata(chosen: Sequence[tuple[int, BandFacts]]) -> Iterator[Notice]:
    values = {str(band.nodata): band.nodata for _, band in chosen}
    masked = [number for number, band in chosen if band.validity == "mask"]
    bare = [number for number, band in chosen if band.bare]
    # NaN is no data whatever is declared of it.
    telling = [(number, band.nodata) for number, band in chosen if band.nodata is not None and not isnan(band.nodata)]
    if masked and not bare:
        besides = f", and not the nodata value ({telling[0][1]:.9g})" if telling else ""
        yield Notice(
            kind="mask",
            text=f"a mask, in the file or beside it (.msk), says which pixels have data{besides}; without it all have "
            "(gdal_translate -mask none)",
        )
    elif telling and bare:
        yield Notice(
            kind="nodata",
            level="warning",
            text=f"{_named([telling[0][0]])} has the nodata value {telling[0][1]:.9g} and {_named(bare)} none: a pixel "
            "has no data where all of its bands say so, and so these values count as data; declare one for each band "
            "(gdal_edit.py -a_nodata, <NoDataValue> in a VRT), or choose other bands with data.bands",
        )
    elif len(values) > 1 and telling:
        each = ", ".join(f"{number}: {band.nodata:.9g}" for number, band in chosen if band.nodata is not None)
        yield Notice(
            kind="nodata",
            text=f"bands have nodata values of their own ({each}): a pixel has no data where each holds its own",
        )


def _named(numbers: Sequence[int]) -> str:
    return f"band{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
