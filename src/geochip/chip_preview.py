"""A picture of some chips of a store with their labels over them: what a network is going to see."""

import colorsys
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from geochip.config import IGNORE
from geochip.errors import WorkError
from geochip.files import write_durably
from geochip.store import ChipStore

# Okabe and Ito's, told apart by everyone; more classes get darker ones, each as far as can be from those before it.
_COLOURS = ((86, 180, 233), (230, 159, 0), (240, 228, 66), (204, 121, 167), (0, 158, 115), (213, 94, 0), (0, 114, 178))
_CLEAR = "background"
_FILL = 0.35
_TILE, _GAP, _LINE, _FONT = 240, 10, 16, 12
_COLUMNS = 6
_TEXT, _PAPER = (20, 20, 20), (255, 255, 255)

Colours = Mapping[int, npt.NDArray[np.uint8]]


def contact_sheet(store: ChipStore, path: Path, chips: int = 24, seed: int = 0) -> int:
    """Draw chips of all splits and, as far as there are any, of all classes.

    Three bands are red, green and blue, fewer are grey; both from the 2nd to the 98th percentile of the training data.
    Each class but one called "background" is tinted and outlined in its colour, what is 255 in the label is hatched.

    Args:
        store: a finished store.
        path: PNG file to write.
        chips: most chips to draw.
        seed: which ones; the same seed draws the same picture.

    Returns:
        How many were drawn.

    Raises:
        WorkError: when no chip of the store was written, or one cannot be read.
    """
    chosen = choose_chips(store, chips, seed)
    if not chosen:
        raise WorkError(f"{store.path} holds no chip with pixels, so there is nothing to draw")
    names: list[str] = store.attrs["class_names"]
    colours = class_colours(names)
    tiles = [tile for split, positions in chosen.items() for tile in _tiles(store, split, positions, colours)]
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    width = _GAP + columns * (_TILE + _GAP)
    legend = _Legend(names, colours, width)
    sheet = Image.new("RGB", (width, _GAP + rows * (_TILE + 2 * _LINE + _GAP) + legend.height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, (picture, captions) in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = _GAP + column * (_TILE + _GAP), _GAP + row * (_TILE + 2 * _LINE + _GAP)
        sheet.paste(picture, (x, y))
        for line, text in enumerate(captions):
            draw.text((x, y + _TILE + line * _LINE), _shortened(text, _TILE), fill=_TEXT, font=_font())
    legend.draw(draw, sheet.height - legend.height)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_durably(path, buffer.getbuffer())
    return len(tiles)


def choose_chips(store: ChipStore, chips: int, seed: int) -> dict[str, list[int]]:
    """Positions to draw, by split: the splits in turn, and within one the classes in turn."""
    generator = np.random.default_rng(seed)
    turns = {split: _by_class(store, split, generator) for split in store.splits}
    chosen: dict[str, list[int]] = {split: [] for split in turns}
    while turns and sum(map(len, chosen.values())) < chips:
        for split in list(turns):
            position = next(turns[split], None)
            if position is None:
                del turns[split]
            elif sum(map(len, chosen.values())) < chips:
                chosen[split].append(position)
    return {split: sorted(positions) for split, positions in chosen.items() if positions}


def _by_class(store: ChipStore, split: str, generator: np.random.Generator) -> Iterator[int]:
    """Positions of a split's written chips, each once: with much of each class in turn, as long as there are any."""
    shares = store.arrays(split, "class_fraction")["class_fraction"]
    order = generator.permutation(store.written(split))
    queues = []
    for share in shares[order].T:
        # The upper half of those that have any: of a class that is rare, one pixel would not be seen.
        some = share > 0
        queues.append(order[some & (share >= np.median(share[some]))] if some.any() else order[:0])
    taken: set[int] = set()
    for position in chain(_in_turn(queues), order.tolist()):
        if position not in taken:
            taken.add(position)
            yield position


def _in_turn(queues: Sequence[npt.NDArray[np.int64]]) -> Iterator[int]:
    for at in range(max(map(len, queues), default=0)):
        yield from (int(queue[at]) for queue in queues if at < len(queue))


def class_colours(names: Sequence[str]) -> dict[int, npt.NDArray[np.uint8]]:
    """A colour for each class id, but for a class that is called background."""
    ids = [index for index, name in enumerate(names) if name.lower() != _CLEAR]
    further = (
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(0.618034 * k % 1, 1, 0.5)) for k in range(IGNORE)
    )
    return {index: np.array(colour, np.uint8) for index, colour in zip(ids, chain(_COLOURS, further), strict=False)}


def _tiles(
    store: ChipStore, split: str, positions: Sequence[int], colours: Colours
) -> Iterator[tuple[Image.Image, tuple[str, str]]]:
    """The picture and the two lines below it, of each chip."""
    names = store.attrs["class_names"]
    held = store.arrays(split, "scene_id", "class_fraction", "valid_fraction")
    try:
        images, labels = store.read(split, np.array(positions))
    except ValueError as error:
        raise WorkError(
            f"{store.path}: a chip of {split} cannot be read ({error}); python -m geochip.chipping --verify says more"
        ) from None
    low, high = _limits(store, images)
    for position, image_bhw, label_hw in zip(positions, images, labels, strict=True):
        rgb = chip_picture(image_bhw, label_hw, low, high, colours)
        side = max(rgb.shape[:2])
        kind = Image.Resampling.BOX if side > _TILE else Image.Resampling.NEAREST
        picture = Image.fromarray(rgb).resize((_TILE, _TILE), kind)
        # What is not drawn comes last: it is cut off first where there is no room.
        order = [*colours, *(index for index in range(len(names)) if index not in colours)]
        fractions = held["class_fraction"][position].tolist()
        shares = [f"{names[index]} {_percent(fractions[index])}" for index in order if fractions[index] > 0]
        if (valid := float(held["valid_fraction"][position])) < 1:
            shares.append(f"ignored {_percent(1 - valid)}")
        yield picture, (f"{split} {position}: scene {held['scene_id'][position]}", ", ".join(shares))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "<1 %"


def _limits(store: ChipStore, images: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(band,) values that become black and white."""
    percentiles = (store.attrs.get("statistics") or {}).get("percentiles")
    if percentiles is None or None in percentiles["2"]:
        # Without a training split, or valid pixels in it.
        flat = np.nan_to_num(images.swapaxes(0, 1).reshape(images.shape[1], -1).astype(np.float64))
        return np.percentile(flat, 2, axis=1), np.percentile(flat, 98, axis=1)
    return np.array(percentiles["2"], np.float64), np.array(percentiles["98"], np.float64)


def chip_picture(
    image_bhw: npt.NDArray[Any],
    label_hw: npt.NDArray[np.uint8],
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    colours: Colours,
) -> npt.NDArray[np.uint8]:
    """Draw one chip.

    Args:
        image_bhw: its bands; the first three are drawn, or the first.
        label_hw: its classes, and 255.
        low: (band,) values that become black.
        high: (band,) values that become white.
        colours: of the classes; one without a colour is not drawn.

    Returns:
        uint8 (height, width, 3) red, green, blue.
    """
    bands = [0, 1, 2] if len(image_bhw) >= 3 else [0, 0, 0]
    span = np.where(high > low, high - low, 1)[bands, None, None]
    grey = (np.nan_to_num(image_bhw[bands].astype(np.float64)) - low[bands, None, None]) / span
    rgb = (np.clip(grey, 0, 1) * 255).transpose(1, 2, 0)
    edge = _edges(label_hw)
    for index, colour in colours.items():
        there = label_hw == index
        rgb[there] = (1 - _FILL) * rgb[there] + _FILL * colour
        rgb[there & edge] = colour
    rows, cols = np.indices(label_hw.shape)
    hatch = np.where((rows + cols) // 4 % 2, 120, 170)
    rgb[label_hw == IGNORE] = hatch[label_hw == IGNORE, None]
    return rgb.round().astype(np.uint8)


def _edges(label_hw: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels with another class above, below, left or right of them."""
    edge = np.zeros(label_hw.shape, np.bool_)
    down, across = label_hw[1:] != label_hw[:-1], label_hw[:, 1:] != label_hw[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


class _Legend:
    """A patch and a name for each colour, in as many rows as it takes."""

    def __init__(self, names: Sequence[str], colours: Colours, width: int) -> None:
        entries = [(tuple(colour.tolist()), names[index]) for index, colour in colours.items()]
        entries.append(((145, 145, 145), f"{IGNORE}: ignored"))
        self._places = []
        x = y = 0
        for colour, name in entries:
            text = _shortened(name, width - 2 * _GAP - 2 * _LINE)
            wide = 2 * _LINE + round(_font().getlength(text)) + _GAP
            if x and x + wide > width - _GAP:
                x, y = 0, y + _LINE + 4
            self._places.append((x + _GAP, y, colour, text))
            x += wide
        self.height = y + _LINE + _GAP

    def draw(self, draw: ImageDraw.ImageDraw, top: int) -> None:
        """Draw it, with its first row at `top`."""
        for x, y, colour, text in self._places:
            draw.rectangle((x, top + y + 1, x + _LINE + 4, top + y + _LINE - 3), fill=colour)
            draw.text((x + _LINE + 10, top + y), text, fill=_TEXT, font=_font())


@lru_cache(maxsize=1)
def _font() -> Any:
    return ImageFont.load_default(_FONT)


def _shortened(text: str, width: int) -> str:
    """A text that is at most `width` pixels wide."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
