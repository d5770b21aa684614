"""Reading into arrays, resampled windows, and where windows lie on the ground."""

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import Resampling

from geochip.config import DataConfig, RunConfig
from geochip.scenes import SceneReader, corners, describe_files, resample
from geochip.scenes.table import footprint
from geochip.windows import Window
from helpers import UTM, position_coded, write_image


def window(row_off, col_off, height, width=None):
    return Window(row_off=row_off, col_off=col_off, height=height, width=width or height)


def scene_of(path, **data):
    (scene,) = describe_files([str(path)], RunConfig(data=DataConfig(**data))).scenes
    return scene


def everything(*shape):
    return np.ones(shape, np.bool_)


# ------------------------------------------------------------------------------------------------------ into an array


def test_a_window_is_read_into_its_place_in_a_batch(tmp_path):
    image = position_coded(50, 40)
    scene = scene_of(write_image(tmp_path / "a.tif", image))
    batch = np.full((3, 3, 20, 30), 7, np.uint32)
    with SceneReader(scene) as reader:
        valid = reader.read_into(window(5, 6, 20, 30), batch[1])
        assert valid.shape == (20, 30)
        assert valid.all()
        # Every other column of a larger array: nothing between them is touched.
        wide = np.full((3, 20, 60), 7, np.uint32)
        reader.read_into(window(5, 6, 20, 30), wide[:, :, ::2])
    np.testing.assert_array_equal(batch[1], image[:, 5:25, 6:36])
    np.testing.assert_array_equal(wide[:, :, ::2], batch[1])
    assert (batch[[0, 2]] == 7).all()
    assert (wide[:, :, 1::2] == 7).all()


def test_an_array_that_does_not_fit_is_refused(tmp_path):
    scene = scene_of(write_image(tmp_path / "a.tif", position_coded(9, 9)))
    with SceneReader(scene) as reader:
        for wrong in (np.zeros((3, 9, 9), np.uint16), np.zeros((2, 9, 9), np.uint32)):
            with pytest.raises(
                ValueError, match=r"scene a has 3 bands of uint32, the array to read into is \([23], 9, 9"
            ):
                reader.read_into(window(0, 0, 9), wrong)


def test_a_scene_is_read_whole_where_its_windows_cover_it(tmp_path):
    scene = scene_of(write_image(tmp_path / "a.tif", position_coded(20, 30)))
    with SceneReader(scene) as reader:
        assert not reader.reads_whole([window(0, 0, 30)])
        assert not reader.reads_whole([window(0, 0, 10)] * 5)
        assert reader.reads_whole([window(0, 0, 10)] * 6)


def test_a_huge_scene_is_never_read_whole(tmp_path):
    path = tmp_path / "a.tif"
    # Sparse: the file takes no room, its pixels would take 588 MiB.
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=14_000, width=14_000, dtype="uint8", sparse_ok=True,
        tiled=True, crs="EPSG:32611", transform=UTM, nodata=0,
    ):  # fmt: skip
        pass
    with SceneReader(scene_of(path)) as reader:
        assert not reader.reads_whole([window(0, 0, 14_000)] * 2)


# ---------------------------------------------------------------------------------------------------------- resampled


@pytest.mark.parametrize(("side", "size"), [(40, 100), (100, 50), (30, 90)])
def test_a_resampled_pixel_is_where_it_was(side, size):
    # On a slope any shift of the pixels shows, half a pixel or less.
    slope = np.add.outer(1000.0 * np.arange(side), np.arange(side))[None]
    image, valid = resample(slope, everything(side, side), (size, size), 0)
    centre = (np.arange(size) + 0.5) * side / size - 0.5
    inner = (centre > 1) & (centre < side - 2)
    expected = np.add.outer(1000 * centre, centre)
    np.testing.assert_allclose(image[0][np.ix_(inner, inner)], expected[np.ix_(inner, inner)], atol=1e-6)
    assert valid.all()


@pytest.mark.parametrize(("side", "size"), [(40, 75), (64, 40), (90, 30), (50, 49)])
def test_pixels_are_those_of_gdal_within_a_window(tmp_path, side, size):
    image = np.random.default_rng(side).integers(0, 60_000, (3, 120, 110)).astype(np.uint16)
    path = write_image(tmp_path / "a.tif", image)
    with SceneReader(scene_of(path)) as reader, rasterio.open(path) as dataset:
        mine, _ = reader.read(window(9, 7, side), size)
        gdals = dataset.read(
            window=rasterio.windows.Window(7, 9, side, side), out_shape=(3, size, size), resampling=Resampling.bilinear
        )
    # At its edge GDAL looks at pixels beyond the window.
    edge = int(np.ceil(2 * max(1, size / side)))
    inner = (slice(None), slice(edge, -edge), slice(edge, -edge))
    assert np.abs(mine[inner].astype(int) - gdals[inner]).max() <= 1


def test_overviews_change_nothing(tmp_path):
    path = write_image(tmp_path / "a.tif", position_coded(256, 256))
    with SceneReader(scene_of(path)) as reader:
        before, _ = reader.read(window(0, 0, 256), 64)
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2, 4], Resampling.nearest)
    with SceneReader(scene_of(path)) as reader:
        after, _ = reader.read(window(0, 0, 256), 64)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("uint8", 255), ("int8", -128), ("int16", -7), ("uint32", 2**32 - 1), ("int32", -(2**31)), ("float64", 1e300)],
)
@pytest.mark.parametrize("size", [13, 40])
def test_a_constant_stays_what_it_is(dtype, value, size):
    image, _ = resample(np.full((2, 20, 20), value, dtype), everything(20, 20), (size, size), 0)
    assert image.dtype == dtype
    np.testing.assert_allclose(image.astype(float), float(value), rtol=1e-12)


HOLES = {
    "nodata": {"image": 9999, "nodata": 9999},
    "mask": {"image": 9999, "mask": True},
    "nan": {"image": np.nan},
    "nan in one band": {"image": np.nan, "bands": [1]},
}


@pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES.keys())
@pytest.mark.parametrize("size", [17, 30, 64])
def test_pixels_without_data_bleed_into_no_others(tmp_path, hole, size):
    image = np.full((2, 30, 30), 100, np.float32)
    gone = np.zeros((30, 30), np.bool_)
    gone[8:19, 11:30] = True
    for band in hole.get("bands", [0, 1]):
        image[band, gone] = hole["image"]
    path = write_image(tmp_path / "a.tif", image, nodata=hole.get("nodata"))
    if "mask" in hole:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
            dataset.write_mask(~gone)
    # The window hangs over the edge by a quarter of its side.
    place = window(0, 0, 40)
    with SceneReader(scene_of(path)) as reader:
        pixels, valid = reader.read(place, size)
    source = ((np.arange(size) + 0.5) * 40 / size).astype(int)
    expected = np.pad(~gone, (0, 10))[np.ix_(source, source)]
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_allclose(pixels[:, valid], 100, rtol=1e-6)
    assert (pixels[:, ~valid] == hole.get("nodata", 0)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_resampling_stays_within_what_is_there(side, size, data):
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 2**16, (2, side, side)).astype(np.uint16)
    valid = rng.random((side, side)) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    pixels, where = resample(image, valid, (size, size), 5)
    assert pixels.shape == (2, size, size)
    for band, resampled in zip(image, pixels, strict=True):
        if where.any():
            assert band[valid].min() <= resampled[where].min()
            assert resampled[where].max() <= band[valid].max()
        assert (resampled[~where] == 5).all()
    if side == size:
        np.testing.assert_array_equal(where, valid)
        np.testing.assert_array_equal(pixels[:, valid], image[:, valid])


def test_a_window_of_the_size_asked_for_is_not_resampled(tmp_path):
    image = position_coded(40, 50)
    path = write_image(tmp_path / "a.tif", image)
    # What stands under a mask is not touched either.
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.arange(2000).reshape(40, 50) % 3 > 0)
    with SceneReader(scene_of(path)) as reader:
        pixels, _ = reader.read(window(3, 4, 20), 20)
    np.testing.assert_array_equal(pixels, image[:, 3:23, 4:24])


# ------------------------------------------------------------------------------------------------------ on the ground


def test_corners_go_round_a_window_as_the_image_does(tmp_path):
    turned = UTM @ Affine.rotation(30) @ Affine.scale(2, 3)
    scene = scene_of(write_image(tmp_path / "a.tif", position_coded(50, 60), transform=turned))
    windows = [window(0, 0, 10, 20), window(7, 5, 1, 2), window(45, 50, 10, 20)]
    found = corners(scene, windows)
    assert found.shape == (3, 4, 2)
    for place, ring in zip(windows, found, strict=True):
        top, left, bottom, right = place.row_off, place.col_off, place.row_stop, place.col_stop
        expected = [turned @ point for point in ((left, top), (right, top), (right, bottom), (left, bottom))]
        np.testing.assert_allclose(ring, expected, rtol=1e-12)
    smaller = corners(scene, windows, inset=0.25)
    np.testing.assert_allclose(smaller[0, 0], turned @ (0.25, 0.25), rtol=1e-12)
    np.testing.assert_allclose(smaller[0, 2], turned @ (19.75, 9.75), rtol=1e-12)
    assert corners(scene, []).shape == (0, 4, 2)


def test_a_footprint_is_the_outline_in_degrees(tmp_path):
    scene = scene_of(write_image(tmp_path / "a.tif", position_coded(50, 60)))
    (back,) = gpd.GeoSeries([footprint(scene)], crs="EPSG:4326").to_crs(scene.crs)
    west, north = UTM @ (0, 0)
    east, south = UTM @ (60, 50)
    assert shapely.hausdorff_distance(back, shapely.box(west, south, east, north)) < 1e-3
    assert footprint(scene_of(write_image(tmp_path / "b.tif", position_coded(5, 6), crs=None))) is None
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]'
    assert footprint(scene_of(write_image(tmp_path / "c.tif", position_coded(5, 6), crs=local))) is None
