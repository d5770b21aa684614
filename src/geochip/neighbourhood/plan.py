"""What an invented neighbourhood is made of: geometry alone, in pixels of the scene.

x counts columns to the right, y counts rows downward, (0, 0) is the outer corner of the first pixel. A pixel is about
0.3 m on the ground, so a house is some 50 wide.
"""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal

from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

RoofColour = Literal["terracotta", "orange", "brown", "white", "slate"]
Rectangle = tuple[float, float, float, float]


class Surface(IntEnum):
    """What covers the ground, in the order of painting: what comes later lies on what comes before."""

    GROUND = 0
    GRAVEL = 1
    LAWN = 2
    SAND = 3
    ASPHALT = 4
    PAVEMENT = 5
    POOL = 6
    WALL = 7
    ROAD = 8
    MARKING = 9
    CAR_LIGHT = 10
    CAR_DARK = 11
    CAR_RED = 12


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A place and a direction: the origin of local coordinates (a along the street, b away from it), in pixels."""

    x: float
    y: float
    angle: float
    """Direction of a, in radians from the x axis towards the y axis."""

    def point(self, a: float, b: float) -> tuple[float, float]:
        """Pixel coordinates (x, y) of a local point."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.x + a * cos - b * sin, self.y + a * sin + b * cos

    def polygon(self, rectangle: Rectangle) -> Polygon:
        """The local rectangle (a0, b0, a1, b1) in pixel coordinates."""
        a0, b0, a1, b1 = rectangle
        return Polygon([self.point(a0, b0), self.point(a1, b0), self.point(a1, b1), self.point(a0, b1)])


@dataclass(frozen=True, kw_only=True)
class RoofPart:
    """A rectangle of a roof with one ridge, along the longer side."""

    x: float
    y: float
    angle: float
    """Direction of the ridge, in radians from the x axis towards the y axis."""
    half_length: float
    half_width: float
    hipped: bool
    """Whether the ends slope too; else they are gables."""


@dataclass(frozen=True, kw_only=True)
class Building:
    """A building: its roof's outline and what the roof looks like."""

    outline: Polygon | MultiPolygon
    """Within the scene, in pixels; exactly the roof."""
    parts: tuple[RoofPart, ...]
    flat: bool
    colour: RoofColour
    brightness: float
    """Factor of the roof's colour, about 1."""
    shadow: float
    """Length of the shadow, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A tree from above."""

    x: float
    y: float
    radius: float


@dataclass(kw_only=True)
class Neighbourhood:
    """Everything that is drawn in one scene of `size` x `size` pixels."""

    size: int
    surfaces: list[tuple[Surface, BaseGeometry]] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)

    def cover(self, surface: Surface, *geometries: BaseGeometry) -> None:
        """Cover ground with something."""
        self.surfaces += [(surface, geometry) for geometry in geometries]

    def cover_rectangles(self, frame: Frame, surface: Surface, *rectangles: Rectangle) -> None:
        """Cover rectangles of a local frame with something."""
        self.cover(surface, *(frame.polygon(rectangle) for rectangle in rectangles))
