"""Where the streets, lots, buildings, pools, cars and trees of an invented neighbourhood lie."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely
import shapely.affinity
from shapely import LineString, MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from geochip.neighbourhood.plan import Building, Frame, Neighbourhood, Rectangle, RoofColour, RoofPart, Surface, Tree

# Of the roofs of a block, all have one colour or two: estates are built in one go.
_HOUSE_COLOURS: tuple[RoofColour, ...] = ("terracotta", "terracotta", "orange", "brown", "white", "slate")
_FLAT_COLOURS: tuple[RoofColour, ...] = ("white", "white", "slate")

_SMALLEST_BUILDING = 40.0
"""Square pixels that a building cut by the scene's edge must keep, else it is left out."""
_SMALLEST_ROOF = 120.0
"""Square pixels of roofs that a scene with buildings has at least, however small it is."""
_CLEARANCE = 3.0
"""Pixels between two buildings, and between a building and a tree, at least."""


class _Streets:
    """Parallel streets, gently bent, at v = k * pitch; cross streets join them. u runs along, v across the streets."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.reach = size * 0.75 + 150
        self.pitch = float(rng.uniform(228, 256))
        self.x, self.y = rng.uniform(0.3, 0.7, 2) * size
        # Half of the towns follow the compass, as Las Vegas does.
        self.angle = float(rng.uniform(-math.pi, math.pi) if rng.random() < 0.5 else rng.choice([0, math.pi / 2]))
        self.angle += float(rng.normal(0, 0.02))
        self.bend, self.wave = float(rng.uniform(0, 26)), 2 * math.pi / float(rng.uniform(700, 1100))
        self.phase = float(rng.uniform(0, 2 * math.pi))
        last = math.ceil(self.reach / self.pitch)
        self.half_width = {k: float(rng.uniform(16, 21)) for k in range(-last, last + 2)}
        if rng.random() < 0.4:
            self.half_width[int(rng.integers(-1, 2))] = 38.0
        spacing = float(rng.uniform(420, 760))
        self.crossings = np.arange(-self.reach + float(rng.uniform(0, spacing)), self.reach, spacing)

    def frame(self, u: float, v: float, *, turned: bool = False) -> Frame:
        """The place at (u, v), with a along the street; `turned` looks the other way."""
        swing = self.wave * u + self.phase
        across = v + self.bend * math.sin(swing)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        slope = math.atan(self.bend * self.wave * math.cos(swing))
        return Frame(
            x=self.x + u * cos - across * sin,
            y=self.y + u * sin + across * cos,
            angle=self.angle + slope + (math.pi if turned else 0),
        )

    def line(self, u: Sequence[float], v: Sequence[float]) -> LineString:
        """The line through points (u, v)."""
        frames = [self.frame(*place) for place in zip(u, v, strict=True)]
        return LineString([(frame.x, frame.y) for frame in frames])

    def draw(self, plan: Neighbourhood) -> BaseGeometry:
        """Add roads, pavements and lane markings; returns the ground that they take."""
        along = np.arange(-self.reach - 40, self.reach + 60, 20).tolist()
        roads = []
        for k, half_width in self.half_width.items():
            v = k * self.pitch
            roads.append(self.line(along, [v] * len(along)).buffer(half_width))
            lanes = (-0.5, 0.0, 0.5) if half_width > 30 else (0.0,)
            for lane in lanes:
                dashes = along[:: 1 if lane else 2]
                across = [v + lane * half_width] * 2
                plan.cover(
                    Surface.MARKING, *(self.line((u, u + 9), across).buffer(0.7, cap_style="flat") for u in dashes)
                )
        roads += [self.line([u, u], [-self.reach, self.reach]).buffer(17) for u in self.crossings]
        road = shapely.union_all(roads)
        pavement = road.buffer(5.5)
        plan.cover(Surface.ROAD, road)
        plan.cover(Surface.PAVEMENT, pavement)
        return pavement


class _Builder:
    """Puts buildings and what belongs to them into a plan, where there is room."""

    def __init__(self, plan: Neighbourhood, streets: _Streets, rng: np.random.Generator) -> None:
        self.plan, self.streets, self.rng = plan, streets, rng
        self.scene = shapely.box(0, 0, plan.size, plan.size)
        self.taken = streets.draw(plan)
        shapely.prepare(self.taken)
        self.outlines: list[BaseGeometry] = []

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def build(
        self,
        frame: Frame,
        parts: Sequence[Rectangle],
        *,
        colour: RoofColour,
        shadow: float,
        flat: bool = False,
        courtyard: Rectangle | None = None,
    ) -> bool:
        """Add a building of rectangular parts, cut at the scene's edge; False when something stands there already."""
        hipped = self.chance(0.5)
        brightness = 1 + 0.06 * float(np.clip(self.rng.normal(), -2, 2))
        whole = shapely.union_all([frame.polygon(part) for part in parts])
        if courtyard is not None:
            whole = whole.difference(frame.polygon(courtyard))
        if not whole.intersects(self.scene) or whole.intersects(self.taken):
            return False
        if self.outlines and bool(shapely.dwithin(np.array(self.outlines), whole, _CLEARANCE).any()):
            return False
        pieces = [
            piece for piece in shapely.get_parts(whole.intersection(self.scene))
            if isinstance(piece, Polygon) and piece.area >= _SMALLEST_BUILDING
        ]  # fmt: skip
        if not pieces:
            return False
        self.outlines.append(whole)
        self.plan.buildings.append(
            Building(
                outline=pieces[0] if len(pieces) == 1 else MultiPolygon(pieces),
                parts=tuple(_roof_part(frame, part, hipped) for part in parts),
                flat=flat,
                colour=colour,
                brightness=brightness,
                shadow=shadow,
            )
        )
        return True

    def fill_block(self, k: int) -> None:
        """Fill the ground between street k and street k + 1."""
        pitch, widths = self.streets.pitch, self.streets.half_width
        kind = self.rng.choice(["houses", "houses", "houses", "flats", "shops"])
        colours = [_HOUSE_COLOURS[index] for index in self.rng.integers(len(_HOUSE_COLOURS), size=2)]
        if kind == "houses":
            frontage = self.uniform(62, 80)
            middle = (k + (1 + (widths[k] - widths[k + 1]) / pitch) / 2) * pitch
            self.wall(middle)
            self.row_of_houses(k * pitch + widths[k], middle, frontage, colours)
            self.row_of_houses((k + 1) * pitch - widths[k + 1], middle, frontage, colours)
            return
        u = -self.streets.reach + self.uniform(0, 100)
        depth = (pitch - widths[k] - widths[k + 1]) / 2 - 10
        middle = (k + 0.5) * pitch + (widths[k] - widths[k + 1]) / 2
        while u < self.streets.reach:
            width = self.uniform(190, 240) if kind == "flats" else self.uniform(240, 340)
            frame = self.streets.frame(u + width / 2, middle)
            (self.flats if kind == "flats" else self.shops)(frame, width / 2 - 6, depth, colours[0])
            u += width

    def wall(self, v: float) -> None:
        """A garden wall between the lots of two streets."""
        along = np.arange(-self.streets.reach, self.streets.reach, 20).tolist()
        self.plan.cover(Surface.WALL, self.streets.line(along, [v] * len(along)).buffer(0.8))

    def row_of_houses(self, kerb: float, back: float, frontage: float, colours: Sequence[RoofColour]) -> None:
        """A row of lots from the kerb (v) to the back wall (v)."""
        setback, depth = self.uniform(27, 33), abs(back - kerb)
        for u in np.arange(-self.streets.reach, self.streets.reach, frontage):
            frame = self.streets.frame(float(u), kerb, turned=back < kerb)
            if self.chance(0.94):
                self.lot(frame, frontage / 2, setback + self.uniform(-2, 2), depth, colours[int(self.chance(0.25))])

    def lot(self, frame: Frame, half: float, setback: float, depth: float, colour: RoofColour) -> None:
        """One house with its garage, drive, yards and pool; b = 0 is the kerb."""
        side = half - self.uniform(5, 9)
        ridge = min(setback + self.uniform(40, 52), depth - 10)
        flip = 1 if self.chance(0.5) else -1
        garage = sorted((flip * side, flip * (side - self.uniform(22, 28))))
        parts: list[Rectangle] = [(-side, setback, side, ridge)]
        detached = self.chance(0.05) and ridge + 22 < depth
        if detached:
            # One building in two parts, as in the real labels: a MultiPolygon.
            parts.append((garage[0], ridge + 4, garage[1], ridge + 20))
        parts.append((garage[0], setback - self.uniform(8, 14), garage[1], setback + 16))
        if self.chance(0.35) and not detached:
            parts.append((-flip * side, ridge - 18, -flip * (side - 24), min(ridge + self.uniform(6, 14), depth - 4)))
        parts = [(min(a0, a1), b0, max(a0, a1), b1) for a0, b0, a1, b1 in parts]
        plan, yard = self.plan, (1 - half, setback, half - 1, depth - 1)
        plan.cover_rectangles(frame, Surface.LAWN if self.chance(0.3) else Surface.GRAVEL, yard)
        if self.chance(0.5):
            plan.cover_rectangles(frame, Surface.LAWN, (2 - half, 6, half - 2, setback))
        plan.cover_rectangles(frame, Surface.WALL, (half - 0.8, setback, half + 0.8, depth))
        if not self.build(frame, parts, colour=colour, shadow=self.uniform(8, 13)):
            return
        plan.cover_rectangles(frame, Surface.PAVEMENT, (garage[0] + 2, 0, garage[1] - 2, setback))
        if self.chance(0.3):
            self.car(frame, sum(garage) / 2, setback / 2 - 4, upright=True)
        if self.chance(0.22) and depth - ridge > 24:
            pool = frame.point(-flip * self.uniform(0, side / 2), (ridge + depth) / 2 + 4)
            oval = shapely.affinity.rotate(
                shapely.affinity.scale(shapely.Point(pool).buffer(7), self.uniform(0.9, 1.4), 0.8),
                math.degrees(frame.angle),
            )
            plan.cover(Surface.PAVEMENT, oval.buffer(3))
            plan.cover(Surface.POOL, oval)

    def flats(self, frame: Frame, half: float, depth: float, colour: RoofColour) -> None:
        """A block of flats around a courtyard, or two bars with parking between them."""
        self.plan.cover_rectangles(frame, Surface.LAWN, (-half, -depth, half, depth))
        if self.chance(0.4):
            a, b, wing = half - self.uniform(8, 16), depth - self.uniform(8, 20), self.uniform(26, 32)
            parts: list[Rectangle] = [
                (-a, -b, a, wing - b), (-a, b - wing, a, b), (-a, -b, wing - a, b), (a - wing, -b, a, b),
            ]  # fmt: skip
            hole = (wing - a, wing - b, a - wing, b - wing)
            if self.build(frame, parts, colour=colour, shadow=self.uniform(12, 18), courtyard=hole):
                self.plan.cover_rectangles(frame, Surface.PAVEMENT, (-12, hole[1], 12, hole[3]))
            return
        bar, a = self.uniform(38, 46), half - self.uniform(5, 14)
        for sign in (-1, 1):
            near, far = sorted((sign * depth, sign * (depth - bar)))
            notch = self.uniform(0.2, 0.6) * a
            parts = [(-a, near, a, far), (-notch, near - 3, notch, far + 3)]
            self.build(frame, parts, colour=colour, shadow=self.uniform(12, 18))
        lane = depth - bar - 10
        self.parking(frame, (-half, -lane, half, lane), lane > 24)

    def shops(self, frame: Frame, half: float, depth: float, colour: RoofColour) -> None:
        """A large flat roof behind a car park."""
        a, front = half - self.uniform(6, 40), self.uniform(-0.1, 0.3) * depth
        parts: list[Rectangle] = [(-a, front, a, depth - 4)]
        if self.chance(0.5):
            parts.append((-a, front - self.uniform(14, 30), -a + self.uniform(50, 90), front + 20))
        flat_colour = _FLAT_COLOURS[int(self.rng.integers(len(_FLAT_COLOURS)))] if self.chance(0.8) else colour
        if self.build(frame, parts, colour=flat_colour, shadow=self.uniform(12, 20), flat=True):
            self.plan.cover_rectangles(frame, Surface.ASPHALT, (-half, front - 6, half, depth))
            self.parking(frame, (-half, -depth, half, front - 8), False)

    def parking(self, frame: Frame, place: Rectangle, carports: bool) -> None:
        """A car park with marked bays, some taken, some under a carport."""
        a0, b0, a1, b1 = place
        if b1 - b0 < 30:
            return
        plan = self.plan
        plan.cover_rectangles(frame, Surface.ASPHALT, place)
        ports = carports and self.chance(0.7)
        for edge, inward in ((b0, 1), (b1, -1)):
            under = ports and self.chance(0.6)
            if under:
                low, high = sorted((edge + inward * 2, edge + inward * 17))
                self.build(frame, [(a0 + 30, low, a1 - 30, high)], colour="white", shadow=6, flat=True)
                continue
            for a in np.arange(a0 + 6, a1 - 12, 10.0):
                low, high = sorted((float(edge), edge + inward * 16))
                plan.cover_rectangles(frame, Surface.MARKING, (a - 0.5, low, a + 0.5, high))
                if self.chance(0.45):
                    self.car(frame, float(a) + 5, edge + inward * 9, upright=True)

    def car(self, frame: Frame, a: float, b: float, *, upright: bool) -> None:
        """A parked car, `upright` across the street's direction."""
        along, across = (3.0, 6.5) if upright else (6.5, 3.0)
        paint = (Surface.CAR_LIGHT, Surface.CAR_LIGHT, Surface.CAR_DARK, Surface.CAR_RED)[int(self.rng.integers(4))]
        self.plan.cover_rectangles(frame, paint, (a - along, b - across, a + along, b + across))

    def cars_on_streets(self) -> None:
        """Parked and driving cars."""
        for k, half_width in self.streets.half_width.items():
            for u in np.arange(-self.streets.reach, self.streets.reach, 60.0):
                if self.chance(0.3):
                    lane = float(self.rng.choice([-1, 1])) * (half_width - 6)
                    self.car(self.streets.frame(float(u), k * self.streets.pitch + lane), 0, 0, upright=False)


def plan_neighbourhood(size: int, rng: np.random.Generator, *, built: bool) -> Neighbourhood:
    """Invent a neighbourhood.

    Args:
        size: rows and columns of the scene, in pixels.
        rng: the only source of randomness; it is advanced.
        built: False for open ground without any building.

    Returns:
        The plan; with buildings whose outlines lie within the scene when `built`, else with none.
    """
    if not built:
        return _open_ground(size, rng)
    # A small scene can fall between the houses, into a road: then another is invented.
    while True:
        plan = Neighbourhood(size=size)
        builder = _Builder(plan, _Streets(size, rng), rng)
        for k in sorted(builder.streets.half_width)[:-1]:
            builder.fill_block(k)
        builder.cars_on_streets()
        if sum(building.outline.area for building in plan.buildings) >= _SMALLEST_ROOF:
            break
    _plant(plan, rng, float(rng.uniform(150, 450)), keep_off=builder.taken)
    return plan


def _roof_part(frame: Frame, rectangle: Rectangle, hipped: bool) -> RoofPart:
    a0, b0, a1, b1 = rectangle
    x, y = frame.point((a0 + a1) / 2, (b0 + b1) / 2)
    length, width = (a1 - a0) / 2, (b1 - b0) / 2
    turned = width > length
    return RoofPart(
        x=x, y=y, angle=frame.angle + (math.pi / 2 if turned else 0),
        half_length=max(length, width), half_width=min(length, width), hipped=hipped,
    )  # fmt: skip


def _open_ground(size: int, rng: np.random.Generator) -> Neighbourhood:
    """A golf course or a piece of desert: everything but buildings."""
    plan = Neighbourhood(size=size)
    streets = _Streets(size, rng)
    streets.half_width = {0: 38.0 if rng.random() < 0.5 else 19.0}
    streets.crossings = streets.crossings[:0]
    taken = streets.draw(plan)
    for _ in range(round(float(rng.uniform(1, 6)))):
        place = rng.uniform(0, size, 2)
        green = _blob(place, float(rng.uniform(40, 130)), rng)
        plan.cover(Surface.LAWN, green)
        if rng.random() < 0.7:
            plan.cover(Surface.SAND, *(_blob(place + rng.normal(0, 30, 2), 11, rng) for _ in range(2)))
    path = LineString(rng.uniform(0, size, (4, 2))).buffer(60).simplify(5)
    plan.cover(Surface.PAVEMENT, path.boundary.buffer(4))
    _plant(plan, rng, float(rng.uniform(200, 600)), keep_off=taken)
    return plan


def _blob(place: npt.NDArray[np.float64], radius: float, rng: np.random.Generator) -> Polygon:
    """A round shape with a wavy edge."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    wave = sum(float(rng.normal(0, 0.16)) * np.cos(k * angle + float(rng.uniform(0, 6.3))) for k in (2, 3, 5))
    edge = radius * np.clip(1 + wave, 0.4, 1.8)
    return Polygon(place + np.column_stack([1.3 * edge * np.cos(angle), edge * np.sin(angle)]))


def _plant(plan: Neighbourhood, rng: np.random.Generator, density: float, *, keep_off: BaseGeometry) -> None:
    """Plant `density` trees to a 650 x 650 scene, off the streets and clear of the roofs."""
    count = max(4, round(density * plan.size**2 / 650**2))
    places = rng.uniform(-5, plan.size + 5, (count, 2))
    radii = np.clip(rng.gamma(2.5, 2.6, count), 2.5, 18)
    points = shapely.points(places)
    roofs = shapely.union_all([building.outline for building in plan.buildings])
    # What stands too near to a house has been cut back; shrubs go where no tree fits.
    room = np.full(count, np.inf) if roofs.is_empty else shapely.distance(points, roofs) - _CLEARANCE
    radii = np.minimum(radii, room)
    fits = (radii >= 2) & (shapely.distance(points, keep_off) > 0)
    plan.trees += [
        Tree(x=float(x), y=float(y), radius=float(radius))
        for (x, y), radius in zip(places[fits], radii[fits], strict=True)
    ]
