"""Invented neighbourhoods: what lies where (`plan_neighbourhood`), and what it looks like from above."""

from geochip.neighbourhood.layout import plan_neighbourhood
from geochip.neighbourhood.painting import expose, paint_ground, paint_roofs
from geochip.neighbourhood.plan import Building, Neighbourhood, Surface

__all__ = ["Building", "Neighbourhood", "Surface", "expose", "paint_ground", "paint_roofs", "plan_neighbourhood"]
