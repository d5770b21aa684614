"""Square metres of predicted classes, against areas that are known otherwise."""

import numpy as np
import pyproj
import pytest
import rioxarray  # noqa: F401
from affine import Affine

import geochip
from geochip.errors import InputError
from geochip.store import PredictionStore, SceneGrid, write_block
from geochip.store.areas import PixelAreas
from geochip.windows import blocks
from helpers import UTM
from told import told

pytestmark = [
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:the grid of scene 1 is rotated"),
]

EARTH_M2 = 510_065_621_724_088
"""The whole of the WGS 84 ellipsoid."""
CLASSES = ("background", "building", "road")
ATTRIBUTES = {
    "geochip_version": "0",
    "model_sha256": "abc",
    "window": 64,
    "stride": 32,
    "blend": "hann",
    "fingerprint": "f",
}

GRIDS = {
    "UTM": ("EPSG:32611", UTM),
    "UTM at the edge of its zone": ("EPSG:32633", Affine(10, 0, 166_000, 0, -10, 100_000)),
    "Web Mercator at 60 degrees North": ("EPSG:3857", Affine(0.4, 0, 1_000_000, 0, -0.4, 8_399_738)),
    "Web Mercator, large pixels": ("EPSG:3857", Affine(1000, 0, 1_000_000, 0, -1000, 8_399_738)),
    "degrees": ("EPSG:4326", Affine(2.7e-6, 0, -115.3, 0, -2.7e-6, 60.13)),
    "degrees, large pixels": ("EPSG:4326", Affine(0.05, 0, 10, 0, -0.05, 60)),
    "degrees, south up": ("EPSG:4326", Affine(1e-4, 0, 10, 0, 1e-4, -33)),
    "degrees across 180": ("EPSG:4326", Affine(1e-4, 0, 179.998, 0, -1e-4, -17)),
    "rotated": ("EPSG:32611", UTM @ Affine.rotation(30) @ Affine.scale(1, 2)),
    "rotated in Web Mercator": (
        "EPSG:3857",
        Affine.translation(1e6, 8.4e6) @ Affine.rotation(20) @ Affine.scale(5, -5),
    ),
    "equal area": ("EPSG:6933", Affine(30, 0, 1_000_000, 0, -30, 6_000_000)),
    "around the pole": ("EPSG:3413", Affine(500, 0, -20_000, 0, -500, 20_000)),
    "feet": ("EPSG:2225", Affine(1, 0, 6_000_000, 0, -1, 2_000_000)),
}


def on_ground(crs, transform, height, width, row=0, col=0):
    """Area of a rectangle of pixels by PROJ's geodesics, its outline followed pixel by pixel and finer."""
    steps = np.linspace(0, 1, 201)
    rows = np.concatenate([row + 0 * steps, row + height * steps, row + height + 0 * steps, row + height * (1 - steps)])
    cols = np.concatenate([col + width * steps, col + width + 0 * steps, col + width * (1 - steps), col + 0 * steps])
    a, b, c, d, e, f = tuple(transform)[:6]
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(a * cols + b * rows + c, d * cols + e * rows + f)
    return abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(lon, lat)[0])


def scene_of(tmp_path, crs, transform, class_hw, block=40):
    height, width = class_hw.shape
    grid = SceneGrid(scene_id="1", split="test", height=height, width=width, transform=tuple(transform)[:6], crs=crs)
    store = PredictionStore.create(
        tmp_path / "p.zarr", [grid], class_names=CLASSES, block=block, probability=False, attributes=ATTRIBUTES
    )
    place = store.scene("1")
    for one in blocks(height, width, block):
        write_block(store.path, place, one, class_hw[one.slices])
    store.finish(["1"])
    return geochip.open_scene(store.path, "1")


@pytest.mark.parametrize(("crs", "transform"), GRIDS.values(), ids=GRIDS.keys())
def test_areas_are_those_of_geodesics(tmp_path, crs, transform):
    # The upper left quarter building, the lower rows road, two columns without data.
    class_hw = np.zeros((80, 90), np.uint8)
    class_hw[:40, :45] = 1
    class_hw[60:] = 2
    class_hw[:, 88:] = 255
    area = scene_of(tmp_path, crs, transform, class_hw).geochip.area()
    assert list(area) == list(CLASSES)
    assert area["building"] == pytest.approx(on_ground(crs, transform, 40, 45), rel=1e-5)
    assert area["road"] == pytest.approx(on_ground(crs, transform, 20, 88, row=60), rel=1e-5)
    assert sum(area.values()) == pytest.approx(on_ground(crs, transform, 80, 88), rel=1e-5)


def test_an_equal_area_grid_has_the_pixels_of_its_units():
    areas = PixelAreas("EPSG:6933", Affine(30, 0, 1_000_000, 0, -30, 6_000_000), 500, 400)
    np.testing.assert_allclose(areas.window(slice(0, 500), slice(0, 400)), 900, rtol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(6, 12), (180, 360), (2160, 4320)])
def test_the_whole_earth(height, width):
    areas = PixelAreas("EPSG:4326", Affine(360 / width, 0, -180, 0, -180 / height, 90), height, width)
    total = sum(areas.window(slice(row, row + 1), slice(0, width)).sum() for row in range(height))
    assert total == pytest.approx(EARTH_M2, rel=2e-5)


def test_every_pixel_of_a_large_scene_is_known_without_measuring_each():
    transform = Affine(10, 0, 100_000, 0, -10, 7_000_000)
    areas = PixelAreas("EPSG:2154", transform, 20_000, 20_000)
    assert areas._nodes.size < 10_000
    for row, col in ((0, 0), (7777, 12_345), (19_999, 19_999)):
        (value,) = areas.window(slice(row, row + 1), slice(col, col + 1)).ravel()
        assert value == pytest.approx(on_ground("EPSG:2154", transform, 1, 1, row, col), rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (7, 1), (2, 2)])
def test_small_scenes(tmp_path, height, width):
    scene = scene_of(
        tmp_path, "EPSG:3857", GRIDS["Web Mercator at 60 degrees North"][1], np.ones((height, width), np.uint8)
    )
    expected = on_ground("EPSG:3857", GRIDS["Web Mercator at 60 degrees North"][1], height, width)
    assert scene.geochip.area() == {"background": 0, "building": pytest.approx(expected, rel=1e-5), "road": 0}


def test_a_part_of_a_scene_is_measured_where_it_is(tmp_path):
    crs, transform = "EPSG:4326", Affine(0.05, 0, 10, 0, -0.05, 60)
    scene = scene_of(tmp_path, crs, transform, np.ones((80, 90), np.uint8))
    part = scene.isel(y=slice(50, 60), x=slice(5, 25))
    assert part.geochip.area()["building"] == pytest.approx(on_ground(crs, transform, 10, 20, 50, 5), rel=1e-5)
    row = scene.isel(y=[50])
    assert row.geochip.area()["building"] == pytest.approx(on_ground(crs, transform, 1, 90, 50), rel=1e-5)
    # Every other pixel: each stands for four.
    thinned = scene.isel(y=slice(None, None, 2), x=slice(None, None, 2))
    assert thinned.geochip.area()["building"] == pytest.approx(on_ground(crs, transform, 80, 90), rel=2e-3)


def test_pixels_by_themselves(tmp_path):
    scene = scene_of(tmp_path, *GRIDS["UTM"], np.ones((80, 90), np.uint8))
    areas = scene.geochip.pixel_area()
    assert (areas.dims, areas.attrs["units"]) == (("y", "x"), "m2")
    assert float((areas * (scene["class"] == 1)).sum()) == pytest.approx(scene.geochip.area()["building"], rel=1e-12)
    # A quarter of a square metre, times the scale of UTM there.
    assert 0.2499 < float(areas[0, 0]) < 0.2502


def test_without_a_crs_there_is_no_area(tmp_path):
    scene = scene_of(tmp_path, "", Affine(2, 0, 7, 0, -2, 9), np.ones((8, 9), np.uint8))
    with pytest.raises(InputError) as caught:
        scene.geochip.area()
    told("no area", str(caught.value))
    # The remedy.
    whole = scene.rio.write_crs("EPSG:32611").rio.write_transform(UTM)
    assert whole.geochip.area()["building"] > 0


def test_a_crs_that_nothing_relates_to_the_earth():
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]'
    with pytest.raises(InputError, match=r"nothing relates CRS .* to the earth .* so its pixels have no area"):
        PixelAreas(local, UTM, 5, 5)
    with pytest.raises(InputError, match=r"some pixels lie where CRS .* has no place on the earth"):
        PixelAreas("ESRI:54030", Affine(1e6, 0, -3e7, 0, -1e6, 1.5e7), 30, 60)
