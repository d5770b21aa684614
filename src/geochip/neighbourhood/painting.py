"""The pixels of an invented neighbourhood: ground, shadows, trees and roofs, in the sensor's counts.

Axes in names: b band (red, green, blue), h row, w column.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from geochip.neighbourhood.plan import Building, Neighbourhood, RoofPart, Surface, Tree

Pixels = npt.NDArray[np.float32]

# Colours are (red, green, blue) as the sensor counts them, 0 to 2047, haze included; taken after real scenes.
_HAZE = np.array([100, 215, 215], np.float32)
_GROUNDS = ((560, 665, 465), (490, 600, 435), (610, 745, 525), (430, 560, 410))
_COLOURS = {
    Surface.GROUND: _GROUNDS[0], Surface.GRAVEL: (505, 605, 440), Surface.LAWN: (235, 430, 305),
    Surface.SAND: (700, 830, 585), Surface.ASPHALT: (330, 470, 385), Surface.PAVEMENT: (680, 800, 570),
    Surface.POOL: (310, 900, 690), Surface.WALL: (430, 520, 400), Surface.ROAD: (275, 420, 355),
    Surface.MARKING: (700, 850, 630), Surface.CAR_LIGHT: (1050, 1300, 930), Surface.CAR_DARK: (170, 300, 285),
    Surface.CAR_RED: (720, 420, 330),
}  # fmt: skip
# How patchy a surface is at the scale of metres, and how grainy at that of pixels, as a factor.
_PATCHY = {Surface.GROUND: 0.17, Surface.GRAVEL: 0.13, Surface.LAWN: 0.15, Surface.SAND: 0.06, Surface.POOL: 0.04}
_GRAINY = {Surface.GROUND: 0.08, Surface.GRAVEL: 0.09, Surface.LAWN: 0.07}
_ROOFS = {
    "terracotta": (860, 760, 520), "orange": (1080, 960, 590), "brown": (650, 590, 430),
    "white": (1230, 1500, 1020), "slate": (545, 740, 610),
}  # fmt: skip
_TREE = (200, 375, 295)
_SHADE = 0.22
"""What a shadow leaves of the light that is not haze."""


def paint_ground(
    plan: Neighbourhood,
    cover_hw: npt.NDArray[np.uint8],
    roof_hw: npt.NDArray[np.int32],
    sun: tuple[float, float],
    rng: np.random.Generator,
) -> Pixels:
    """Paint all that is not a roof.

    Args:
        plan: what lies where.
        cover_hw: the `Surface` of each pixel.
        roof_hw: number of the building whose roof a pixel shows, from 1; 0 where there is none.
        sun: direction to the sun, as (x, y) of length 1.
        rng: the only source of randomness; it is advanced.

    Returns:
        float32 (band, row, column), in sensor counts.
    """
    size = plan.size
    colours = np.array([_COLOURS[surface] for surface in Surface], np.float32)
    colours[Surface.GROUND] = _GROUNDS[int(rng.integers(len(_GROUNDS)))]
    colours *= rng.normal(1, 0.05, (len(colours), 1)).astype(np.float32)
    patchy = np.array([_PATCHY.get(surface, 0.05) for surface in Surface], np.float32)
    grainy = np.array([_GRAINY.get(surface, 0.035) for surface in Surface], np.float32)
    texture_hw = patchy[cover_hw] * (
        0.6 * smooth_noise(size, 70, rng) + 0.6 * smooth_noise(size, 17, rng) + 0.4 * smooth_noise(size, 5, rng)
    )
    texture_hw += grainy[cover_hw] * rng.standard_normal((size, size), np.float32)
    image_bhw = np.stack([band[cover_hw] for band in colours.T])
    image_bhw *= 1 + texture_hw
    lengths = np.array([0, *(building.shadow for building in plan.buildings)], np.uint8)
    height_hw = np.where(cover_hw >= Surface.CAR_LIGHT, np.uint8(2), lengths[roof_hw])
    for tree in plan.trees:
        rows, cols, reach_hw = _disc(tree, size)
        np.maximum(height_hw[rows, cols], (reach_hw < 0.8) * np.uint8(tree.radius), out=height_hw[rows, cols])
    haze = _HAZE[:, None]
    shaded_hw = cast_shadows(height_hw, sun)
    image_bhw[:, shaded_hw] = haze + _SHADE * (image_bhw[:, shaded_hw] - haze)
    for tree in plan.trees:
        _paint_tree(image_bhw, tree, sun, rng)
    return _blur(image_bhw)


def cast_shadows(height_hw: npt.NDArray[np.uint8], sun: tuple[float, float]) -> npt.NDArray[np.bool_]:
    """Pixels that something of a given shadow length (in pixels), towards the sun from them, darkens."""
    size = len(height_hw)
    shaded_hw = np.zeros((size, size), bool)
    for length in range(1, int(height_hw.max()) + 1):
        dx, dy = round(-sun[0] * length), round(-sun[1] * length)
        casts = height_hw[max(-dy, 0) : size - max(dy, 0), max(-dx, 0) : size - max(dx, 0)] >= length
        shaded_hw[max(dy, 0) : size + min(dy, 0), max(dx, 0) : size + min(dx, 0)] |= casts
    return shaded_hw


def _disc(tree: Tree, size: int) -> tuple[slice, slice, Pixels]:
    """The pixels around a tree, and their distance from its middle in radii."""
    rows, cols = (
        slice(max(int(middle - tree.radius) - 1, 0), min(int(middle + tree.radius) + 2, size))
        for middle in (tree.y, tree.x)
    )
    y, x = np.ogrid[rows, cols]
    return rows, cols, np.hypot(y + 0.5 - tree.y, x + 0.5 - tree.x).astype(np.float32) / np.float32(tree.radius)


def _paint_tree(image_bhw: Pixels, tree: Tree, sun: tuple[float, float], rng: np.random.Generator) -> None:
    rows, cols, reach_hw = _disc(tree, image_bhw.shape[1])
    if not reach_hw.size:
        return
    y, x = np.ogrid[rows, cols]
    grain_hw = rng.standard_normal(reach_hw.shape, np.float32)
    crown_hw = reach_hw + 0.12 * grain_hw < 0.9
    lit_hw = ((x + 0.5 - tree.x) * sun[0] + (y + 0.5 - tree.y) * sun[1]).astype(np.float32) / np.float32(tree.radius)
    light_hw = np.clip(0.75 + 0.5 * lit_hw + 0.25 * grain_hw, 0.15, 1.9) * np.float32(rng.normal(1, 0.12))
    haze = _HAZE[:, None]
    green = np.array(_TREE, np.float32)[:, None] - haze
    image_bhw[:, rows, cols][:, crown_hw] = haze + green * light_hw[crown_hw]


def paint_roofs(
    image_bhw: Pixels,
    buildings: Sequence[Building],
    roof_hw: npt.NDArray[np.int32],
    sun: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Paint the roofs into an image, on exactly the pixels where `roof_hw` has their numbers."""
    size = image_bhw.shape[1]
    for number, building in enumerate(buildings, 1):
        x0, y0, x1, y1 = building.outline.bounds
        rows = slice(max(int(y0) - 1, 0), min(int(y1) + 2, size))
        cols = slice(max(int(x0) - 1, 0), min(int(x1) + 2, size))
        inside_hw = roof_hw[rows, cols] == number
        row, col = np.nonzero(inside_hw)
        x, y = (col + cols.start + 0.5).astype(np.float32), (row + rows.start + 0.5).astype(np.float32)
        light = _flat_light(building, x, y, rng) if building.flat else _pitched_light(building.parts, x, y, sun)
        light *= np.float32(building.brightness) * (1 + 0.035 * rng.standard_normal(len(light), np.float32))
        haze = _HAZE[:, None]
        colour = np.array(_ROOFS[building.colour], np.float32)[:, None] - haze
        image_bhw[:, rows, cols][:, inside_hw] = haze + colour * light


def _local(part: RoofPart, x: Pixels, y: Pixels) -> tuple[Pixels, Pixels]:
    """Distance from a part's middle along and across its ridge, in pixels, with a sign."""
    cos, sin = np.float32(math.cos(part.angle)), np.float32(math.sin(part.angle))
    dx, dy = x - np.float32(part.x), y - np.float32(part.y)
    return dx * cos + dy * sin, dy * cos - dx * sin


def _pitched_light(parts: Sequence[RoofPart], x: Pixels, y: Pixels, sun: tuple[float, float]) -> Pixels:
    """Light on tiled slopes: the highest part is what is seen, and its slope turns to the sun or away from it."""
    top, light = np.full(len(x), -np.inf, np.float32), np.ones(len(x), np.float32)
    for part in parts:
        along, across = _local(part, x, y)
        to_eaves, to_end = part.half_width - np.abs(across), part.half_length - np.abs(along)
        at_end = (to_end < to_eaves) & part.hipped
        height = np.where(at_end, to_end, to_eaves) - 1000 * (to_end < 0)
        cos, sin = math.cos(part.angle), math.sin(part.angle)
        facing = np.where(
            at_end,
            np.sign(along) * np.float32(cos * sun[0] + sin * sun[1]),
            np.sign(across) * np.float32(cos * sun[1] - sin * sun[0]),
        )
        courses = np.sin(np.where(at_end, along, across) * np.float32(2 * np.pi / 4.2))
        ridge = (np.abs(np.where(at_end, to_end - to_eaves, across)) < 0.8) * np.float32(0.1)
        seen = height > top
        top = np.where(seen, height, top)
        light = np.where(seen, 0.92 + 0.3 * facing + 0.07 * courses + ridge, light).astype(np.float32)
    return light


def _flat_light(building: Building, x: Pixels, y: Pixels, rng: np.random.Generator) -> Pixels:
    """Light on a flat roof with a parapet, seams and air conditioners."""
    part = building.parts[0]
    along, across = _local(part, x, y)
    seams = np.abs(np.mod(along, 18) - 9) < 0.8
    light = np.where(seams, 0.9, 1).astype(np.float32) * np.float32(rng.uniform(0.8, 1.05))
    for _ in range(int(part.half_length * part.half_width / 250)):
        a, b = rng.uniform(-0.85, 0.85, 2) * (part.half_length, part.half_width)
        half = float(rng.uniform(1.5, 4))
        near = np.maximum(np.abs(along - np.float32(a)), np.abs(across - np.float32(b)))
        light[near < half + 1.5] *= np.float32(0.6)
        light[near < half] = np.float32(rng.uniform(0.7, 1.2))
    edge = np.minimum(part.half_length - np.abs(along), part.half_width - np.abs(across))
    light[(edge > 0) & (edge < 1.6)] = 1.12
    return light


def smooth_noise(size: int, cell: int, rng: np.random.Generator) -> Pixels:
    """Normal noise at the corners of cells of `cell` pixels and smooth between them; float32 (size, size)."""
    corners = rng.standard_normal((size // cell + 2, size // cell + 2), np.float32)
    place = np.arange(size, dtype=np.float32) / cell
    first = place.astype(np.intp)
    part = place - first
    part = part * part * (3 - 2 * part)
    lines = corners[first] + part[:, None] * (corners[first + 1] - corners[first])
    blended: Pixels = lines[:, first] + part * (lines[:, first + 1] - lines[:, first])
    return blended


def _blur(image_bhw: Pixels) -> Pixels:
    """Soften as the sensor's optics do: 1-4-1 along rows and along columns."""
    padded = np.pad(image_bhw, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 4 * padded[:, 1:-1] + padded[:, 2:]
    blurred: Pixels = (rows[:, :, :-2] + 4 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 36
    return blurred


def expose(light_bhw: Pixels, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """What the sensor makes of it: a brighter or darker day, its noise, and whole counts of 11 bits."""
    haze = _HAZE[:, None, None]
    day = np.float32(rng.uniform(0.85, 1.15)) * rng.normal(1, 0.02, (3, 1, 1)).astype(np.float32)
    counts = haze + day * (light_bhw - haze) + 6 * rng.standard_normal(light_bhw.shape, np.float32)
    image_bhw: npt.NDArray[np.uint16] = np.clip(np.rint(counts), 1, 2047).astype(np.uint16)
    return image_bhw
