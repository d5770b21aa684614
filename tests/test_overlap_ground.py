"""Whether scenes share ground, where the same place has several longitudes: overlaps, tables and blocks."""

import pyproj
import pytest
from affine import Affine

from geochip.chip_audit import audit_overlap
from geochip.config import ChipsConfig, DataConfig, RunConfig, SplitConfig
from geochip.plan import plan_chips
from geochip.scenes import Catalogue, Scene, catalogue_frame
from geochip.scenes.blocks import divide
from geochip.windows import Window

SIDE = 100
CHIPS = ChipsConfig(size=SIDE, method="grid")


def scene(split, scene_id, x, y, pixel=10.0, crs="EPSG:32601"):
    """A scene of one chip, whose upper left corner is at (x, y)."""
    return Scene(
        scene_id=scene_id, split=split, image=f"{scene_id}.tif", label=None, height=SIDE, width=SIDE, count=1,
        dtype="uint8", crs=crs, transform=Affine(pixel, 0, x, 0, -pixel, y), nodata=None, bands=(1,),
        band_names=("band_1",), pixel_size=pixel if pixel > 0.1 else pixel * 111_000, image_bytes=1, label_bytes=0,
    )  # fmt: skip


def placed(split, scene_id, lon, lat, crs, pixel=10.0):
    """The same at degrees of longitude and latitude."""
    x, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    return scene(split, scene_id, x, y, pixel, crs)


def overlap(*scenes):
    by_name = {(one.split, one.scene_id): one for one in scenes}
    plan = plan_chips(list(by_name), by_name, CHIPS)
    whole = [Window(row_off=0, col_off=0, height=SIDE, width=SIDE)]
    return audit_overlap(plan, "train", lambda _: whole).pairs


# About 3.3 km around 180 degrees, at 17 degrees south: 0.03 degrees.
FIJI = ("train", "fiji", 179.995, -17.0, "EPSG:32760")


@pytest.mark.parametrize(
    ("other", "pairs"),
    [
        # Namibia, at the same latitude, and the Pacific in between.
        (("val", "b", 17.0, -17.0, "EPSG:32733"), 0), (("val", "b", -90.0, -17.0, "EPSG:32716"), 0),
        # East and west of 180 degrees, from the other zone, and in degrees of both ways to count.
        (("val", "b", -179.998, -17.002, "EPSG:32701"), 1), (("val", "b", 179.99, -17.003, "EPSG:32701"), 1),
        (("val", "b", 180.0, -17.0, "EPSG:4326", 1e-5), 1), (("val", "b", -180.0, -17.0, "EPSG:4326", 1e-5), 1),
        (("val", "b", -179.98, -17.0, "EPSG:4326", 1e-5), 0), (("val", "b", 180.02, -17.0, "EPSG:4326", 1e-5), 0),
    ],
)  # fmt: skip
def test_a_scene_over_180_degrees_shares_its_own_ground_alone(other, pairs):
    assert overlap(placed(*FIJI), placed(*other)) == pairs


@pytest.mark.parametrize(
    ("first", "second", "crs", "pixel", "pairs"),
    [
        (190.0, -170.0, "EPSG:4326", 1e-5, 1), (190.0, -169.9985, "EPSG:4326", 1e-5, 0), (179.9995, -180.0005, "EPSG:4326", 1e-5, 1),
        (20_037_508.0, -20_037_508.0, "EPSG:3857", 10.0, 1), (20_037_508.0, -20_036_000.0, "EPSG:3857", 10.0, 0),
        # Neighbours that touch.
        (180 - 1e-3, -180.0, "EPSG:4326", 1e-5, 0),
    ],
)  # fmt: skip
def test_scenes_that_share_a_crs_share_ground_however_it_is_counted(first, second, crs, pixel, pairs):
    assert overlap(scene("train", "a", first, 0, pixel, crs), scene("val", "b", second, 0, pixel, crs)) == pairs


def test_scenes_at_a_pole():
    pole = scene("train", "pole", -500, 500, crs="EPSG:3413")
    # In another polar projection, there and elsewhere.
    assert overlap(pole, scene("val", "b", -400, 400, crs="EPSG:3995")) == 1
    assert overlap(pole, scene("val", "b", 40_000, 500, crs="EPSG:3995")) == 0
    assert overlap(pole, placed("val", "b", 17.0, -17.0, "EPSG:32733")) == 0


def test_the_catalogue_s_footprints_are_cut():
    frame = catalogue_frame(Catalogue(scenes=(placed(*FIJI), placed("val", "b", 17.0, -17.0, "EPSG:32733"))))
    cut, whole = frame.geometry
    assert (cut.geom_type, whole.geom_type) == ("MultiPolygon", "Polygon")
    assert all(piece.bounds[2] - piece.bounds[0] < 0.02 for piece in cut.geoms)


@pytest.mark.parametrize(("crs", "pixel"), [("EPSG:32760", 10.0), ("EPSG:4326", 1e-4), ("EPSG:3857", 10.0)])
def test_squares_of_ground_around_180_degrees(crs, pixel):
    """Scenes side by side, from the west of 180 degrees to its east."""
    step = SIDE * pixel
    start, y = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(179.97, -5.0)
    scenes = [scene("", f"{k}", start + k * step, y, pixel, crs) for k in range(8)]
    if crs == "EPSG:4326":
        # Each as a file would have it.
        scenes = [scene("", f"{k}", (start + k * step + 180) % 360 - 180, y, pixel, crs) for k in range(8)]
    config = RunConfig(
        data=DataConfig(image="{id}.tif", label="{id}.geojson", splits=("train", "val")), chips=CHIPS,
        split=SplitConfig(by="blocks", block=2.0 * SIDE * 11.1 if crs == "EPSG:4326" else 2000.0, buffer=100.0),
    )  # fmt: skip
    division = divide(scenes, config)
    split_of = {one.scene_id: one.split for one in division.members}
    # Those of train that touch a scene of val are left out, over 180 degrees too.
    assert division.buffered
    kept = [number for number in range(8) if split_of.get(str(number)) == "train"]
    others = [number for number in range(8) if split_of.get(str(number)) == "val"]
    assert kept
    assert others
    assert min(abs(one - other) for one in kept for other in others) > 1
    for item in division.buffered:
        assert "it lies 0 m from scene" in item.reason or "e-" in item.reason
