"""Scenes of several files whose bands are stacked."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError
from geochip.scenes import SceneError, SceneReader, catalogue_frame, describe_files, find_scenes, scene_digest
from geochip.windows import Window
from helpers import IMAGE, LABEL, UTM, position_coded, write_image, write_label, write_scene

HEIGHT = "{split}/height_{id}.tif"
THERMAL = "{split}/thermal_{id}.tif"


def config(root, *stack, **data):
    return RunConfig(data=DataConfig(root=str(root), image=IMAGE, label=LABEL, stack=stack, splits=("train",), **data))


def write_stack(root, image, height, thermal=None, **profile):
    """Scene 1 with its height and, if given, its thermal image; returns the run's configuration for them."""
    write_image(root / "train" / "scene_1.tif", image)
    write_label(root / "train" / "label_1.geojson", [])
    write_image(root / "train" / "height_1.tif", height, **profile)
    if thermal is not None:
        write_image(root / "train" / "thermal_1.tif", thermal)
    return (HEIGHT,) if thermal is None else (HEIGHT, THERMAL)


def only(catalogue):
    (scene,) = catalogue.scenes
    return scene


def reason(catalogue):
    (item,) = catalogue.bad
    return item.reason


def read(scene, size=None):
    with SceneReader(scene) as reader:
        return reader.read(Window(row_off=0, col_off=0, height=scene.height, width=scene.width), size)


def coded(bands, dtype, start=0):
    """(bands, 6, 7): the value says band, row and column, within what a byte holds."""
    rows, cols = np.indices((6, 7))
    return np.stack([(start + band) * 42 + rows * 7 + cols for band in range(bands)]).astype(dtype)


def test_bands_of_all_files_follow_each_other(tmp_path):
    stack = write_stack(tmp_path, coded(3, "uint8"), coded(1, "float32", 3), coded(2, "uint16", 4))
    with rasterio.open(tmp_path / "train" / "height_1.tif", "r+") as dataset:
        dataset.descriptions = ("height",)
    scene = only(find_scenes(config(tmp_path, *stack)))
    assert (scene.count, scene.dtype, scene.bands) == (6, "float32", (1, 2, 3, 4, 5, 6))
    assert scene.band_names == ("band_1", "band_2", "band_3", "height", "band_5", "band_6")
    assert scene.stack == tuple(str(tmp_path / "train" / f"{name}_1.tif") for name in ("height", "thermal"))
    files = (tmp_path / "train" / f"{name}_1.tif" for name in ("scene", "height", "thermal"))
    assert scene.image_bytes == sum(path.stat().st_size for path in files)
    image, valid = read(scene)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, coded(6, "float32"))
    assert valid.all()
    assert catalogue_frame(find_scenes(config(tmp_path, *stack)))["stack"][0] == ",".join(scene.stack)


@pytest.mark.parametrize("bands", [(4, 1, 5, 2), (6, 5, 4), (2, 3), (5, 1, 6, 2, 4, 3)])
def test_bands_are_chosen_from_all_files_in_any_order(tmp_path, bands):
    stack = write_stack(tmp_path, coded(3, "uint16"), coded(1, "uint16", 3), coded(2, "uint16", 4))
    scene = only(find_scenes(config(tmp_path, *stack, bands=bands)))
    expected = coded(6, "uint16")[[band - 1 for band in bands]]
    with SceneReader(scene) as reader:
        image, _ = reader.read(Window(row_off=2, col_off=1, height=4, width=5))
        np.testing.assert_array_equal(image, expected[:, 2:6, 1:6])
        over, valid = reader.read(Window(row_off=3, col_off=4, height=4, width=5))
    np.testing.assert_array_equal(over[:, :3, :3], expected[:, 3:, 4:])
    assert (over[:, ~valid] == 0).all()
    assert valid.sum() == 9


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        ("uint8", "uint16", "uint16"),
        ("uint8", "int8", "int16"),
        ("uint16", "float32", "float32"),
        ("int32", "float32", "float64"),
    ],
)
def test_the_type_holds_every_value(tmp_path, first, second, together):
    stack = write_stack(tmp_path, coded(1, first), coded(1, second, 1))
    scene = only(find_scenes(config(tmp_path, *stack)))
    assert scene.dtype == together
    np.testing.assert_array_equal(read(scene)[0], np.concatenate([coded(1, first), coded(1, second, 1)]))
    # Only the bands that are chosen have a say.
    assert only(find_scenes(config(tmp_path, *stack, bands=(1,)))).dtype == first


def set_aside(root, catalogue_config):
    """The reason for which the stack is set aside; a second scene without a fault stands beside it."""
    write_scene(root, "train", "2", coded(1, "uint8"))
    with rasterio.open(root / "train" / "scene_2.tif") as source:
        write_image(root / "train" / "height_2.tif", coded(1, "uint8"), transform=source.transform)
    catalogue = find_scenes(catalogue_config)
    assert [scene.scene_id for scene in catalogue.scenes] == ["2"]
    assert catalogue.order == (("train", "1"), ("train", "2"))
    return reason(catalogue)


def test_types_that_no_known_one_holds_together(tmp_path):
    stack = write_stack(tmp_path, coded(1, "uint32"), coded(1, "int16"))
    directory = tmp_path / "train"
    assert set_aside(tmp_path, config(tmp_path, *stack)) == (
        f"{directory}/scene_1.tif and {directory}/height_1.tif hold bands of int16 and uint32, which only int64 has "
        "room for; known are uint8, int8, uint16, int16, uint32, int32, float32, float64: convert a file, or leave "
        "bands out with data.bands"
    )


OTHER_GRIDS = {
    "size": ({"height": coded(1, "uint8")[:, :5]}, "5 x 7 pixels of 0.5 x -0.5 from (664000, 4004000) on, EPSG:32611"),
    "place": (
        {"transform": UTM @ Affine.translation(0.01, 0)},
        "6 x 7 pixels of 0.5 x -0.5 from (664000.005, 4004000) on, EPSG:32611",
    ),
    "turn": (
        {"transform": UTM @ Affine.rotation(1)},
        "6 x 7 pixels of 0.499923848 x -0.499923848 turned by (-0.00872620322, -0.00872620322) from (664000, 4004000) on, EPSG:32611",
    ),
    "CRS": ({"crs": "EPSG:32612"}, "6 x 7 pixels of 0.5 x -0.5 from (664000, 4004000) on, EPSG:32612"),
    "no CRS": ({"crs": None}, "6 x 7 pixels of 0.5 x -0.5 from (664000, 4004000) on, no CRS"),
}


@pytest.mark.parametrize(("more", "other"), OTHER_GRIDS.values(), ids=OTHER_GRIDS.keys())
def test_another_grid_is_refused_and_both_are_named(tmp_path, more, other):
    stack = write_stack(tmp_path, coded(3, "uint8"), **{"height": coded(1, "uint8"), **more})
    text = set_aside(tmp_path, config(tmp_path, *stack))
    assert text.startswith(f"{tmp_path}/train/height_1.tif has another pixel grid ({other})")
    assert (
        f" than {tmp_path}/train/scene_1.tif (6 x 7 pixels of 0.5 x -0.5 from (664000, 4004000) on, EPSG:32611), and "
        "the files of a scene are stacked pixel on pixel; bring it to that grid (gdalwarp -t_srs -te -ts), or leave it "
        "out of data.stack"
    ) in text


def test_rounding_makes_no_other_grid(tmp_path):
    stack = write_stack(tmp_path, coded(1, "uint8"), coded(1, "uint8"), transform=UTM @ Affine.translation(5e-4, 5e-4))
    assert only(find_scenes(config(tmp_path, *stack))).transform == UTM


def test_files_of_a_stack_that_cannot_be_read(tmp_path):
    stack = write_stack(tmp_path, coded(1, "uint8"), coded(1, "uint8"))
    path = tmp_path / "train" / "height_1.tif"
    path.write_text("no image")
    assert set_aside(tmp_path, config(tmp_path, *stack)).startswith(f"{path} is no raster that GDAL can read")
    path.unlink()
    assert reason(find_scenes(config(tmp_path, *stack))) == f"{path} is no file, and data.stack asks for it"


def test_a_band_that_no_file_has(tmp_path):
    stack = write_stack(tmp_path, coded(3, "uint8"), coded(1, "uint8"))
    with pytest.raises(
        InputError,
        match=r"data.bands asks for band 5, .*/scene_1.tif and the files stacked on it have bands 1 to 4",
    ):
        find_scenes(config(tmp_path, *stack, bands=(1, 5)))


def test_a_pixel_is_valid_where_every_file_has_data(tmp_path):
    image, height = np.full((2, 6, 7), 50, np.uint8), np.full((1, 6, 7), 300, np.float32)
    image[:, 0, 0] = 0  # nodata in both bands of the first file
    image[0, 1, 1] = 0  # in one of them: a colour
    height[0, 2, 2] = -9999
    height[0, 3, 3] = np.nan
    (template,) = write_stack(tmp_path, image, height, nodata=-9999)
    with rasterio.open(tmp_path / "train" / "scene_1.tif", "r+") as dataset:
        dataset.nodata = 0
    scene = only(find_scenes(config(tmp_path, template)))
    assert scene.nodata == 0
    pixels, valid = read(scene)
    assert np.argwhere(~valid).tolist() == [[0, 0], [2, 2], [3, 3]]
    # What means nothing in one file must not look like data of the others.
    assert (pixels[:, ~valid] == 0).all()
    assert pixels[:, 1, 1].tolist() == [0, 50, 300]
    larger, where = read(scene, 21)
    assert np.isfinite(larger).all()
    assert larger[2, where] == pytest.approx(300)


def test_a_mask_of_any_file_counts(tmp_path):
    stack = write_stack(tmp_path, coded(3, "uint8"), coded(1, "uint8"))
    mask = np.full((6, 7), 255, np.uint8)
    mask[4, 5] = 0
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "train" / "height_1.tif", "r+") as dataset,
    ):
        dataset.write_mask(mask)
    scene = only(find_scenes(config(tmp_path, *stack)))
    np.testing.assert_array_equal(read(scene)[1], mask == 255)
    # A file of which no band is chosen has no say.
    assert read(only(find_scenes(config(tmp_path, *stack, bands=(1, 2)))))[1].all()


def test_nodata_is_the_first_that_fits_the_type(tmp_path):
    stack = write_stack(tmp_path, coded(1, "uint8"), coded(1, "float32"), nodata=-9999)
    assert only(find_scenes(config(tmp_path, *stack))).nodata == -9999
    assert only(find_scenes(config(tmp_path, *stack, bands=(1,)))).nodata is None
    stack = write_stack(tmp_path, coded(1, "uint8"), coded(1, "uint8"), nodata=5)
    assert only(find_scenes(config(tmp_path, *stack))).nodata == 5
    # A file of which no band is chosen has no say.
    assert only(find_scenes(config(tmp_path, *stack, bands=(1,)))).nodata is None


def test_a_nodata_value_that_no_pixel_can_hold_is_none(tmp_path):
    write_image(tmp_path / "a.tif", coded(2, "float32"))
    (tmp_path / "a.vrt").write_text(
        '<VRTDataset rasterXSize="7" rasterYSize="6"><SRS>EPSG:32611</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform>'
        + "".join(
            f'<VRTRasterBand dataType="{kind}" band="{band}"><NoDataValue>-9999</NoDataValue><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource>'
            "</VRTRasterBand>"
            for band, kind in ((1, "Float32"), (2, "Byte"))
        )
        + "</VRTDataset>"
    )
    scene = only(describe_files([str(tmp_path / "a.vrt")], RunConfig(data=DataConfig(bands=(2,)))))
    assert scene.nodata is None
    with SceneReader(scene) as reader:
        image, valid = reader.read(Window(row_off=3, col_off=0, height=6, width=7))
    assert (image[:, 3:] == 0).all()
    assert valid.sum() == 21


def test_alpha_of_any_file_is_no_band(tmp_path):
    rgba = np.full((4, 6, 7), 200, np.uint8)
    rgba[3, 1, 2] = 0
    stack = write_stack(tmp_path, coded(1, "uint8"), rgba, photometric="RGB", alpha="YES")
    scene = only(find_scenes(config(tmp_path, *stack)))
    assert (scene.count, scene.bands) == (5, (1, 2, 3, 4))
    assert np.argwhere(~read(scene)[1]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (("red", None), ("red",), ("band_1", "band_2", "band_3")),
        (("red", "green"), ("red",), ("band_1", "green", "band_3")),
        (("band_3", None), ("height",), ("band_3", "band_2", "height")),
        (("band_2", None), ("height",), ("band_1", "band_2", "band_3")),
    ],
)
def test_no_two_bands_have_one_name(tmp_path, first, second, names):
    stack = write_stack(tmp_path, coded(2, "uint8"), coded(1, "uint8"))
    for name, descriptions in (("scene", first), ("height", second)):
        with rasterio.open(tmp_path / "train" / f"{name}_1.tif", "r+") as dataset:
            dataset.descriptions = descriptions
    assert only(find_scenes(config(tmp_path, *stack))).band_names == names


def test_errors_name_the_file_of_the_stack(tmp_path):
    stack = write_stack(tmp_path, position_coded(200, 200), position_coded(200, 200, 1), compress="deflate")
    scene = only(find_scenes(config(tmp_path, *stack)))
    path = tmp_path / "train" / "height_1.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SceneError, match=r"scene 1: .*height_1.tif could not be read at rows 0 to 199"):
        read(scene)
    write_image(path, position_coded(9, 9))
    with pytest.raises(SceneError, match=r"scene 1: .*height_1.tif changed its size since it was catalogued"):
        read(scene)
    write_image(path, position_coded(200, 200))
    with pytest.raises(SceneError, match=r"scene 1: .*scene_1.tif changed its number of bands since it was"):
        read(scene)
    path.unlink()
    with pytest.raises(SceneError, match=r"scene 1: .*height_1.tif could not be opened \("):
        read(scene)


def test_a_stack_is_another_scene_than_its_image_alone(tmp_path):
    stack = write_stack(tmp_path, coded(3, "uint8"), coded(1, "uint8"))
    alone = scene_digest(only(find_scenes(config(tmp_path, bands=(1, 2)))), with_label=True)
    stacked = scene_digest(only(find_scenes(config(tmp_path, *stack, bands=(1, 2)))), with_label=True)
    assert stacked["header"] != alone["header"]
    assert stacked["content"] != alone["content"]
    (tmp_path / "train").rename(tmp_path / "moved")
    (tmp_path / "new").mkdir()
    (tmp_path / "moved").rename(tmp_path / "new" / "train")
    moved = scene_digest(only(find_scenes(config(tmp_path / "new", *stack, bands=(1, 2)))), with_label=True)
    assert moved == stacked


def test_named_files_get_their_stack_from_the_template(tmp_path):
    stack = write_stack(tmp_path, coded(3, "uint8"), coded(1, "uint8", 3))
    stranger = write_image(tmp_path / "other.tif", coded(3, "uint8"))
    catalogue = describe_files([str(stranger), str(tmp_path / "train" / "scene_1.tif")], config(tmp_path, *stack))
    np.testing.assert_array_equal(read(only(catalogue))[0], coded(4, "uint8"))
    assert reason(catalogue) == (
        f"{stranger} does not fit data.image, and so nothing tells which files data.stack means for it; name images "
        "that fit, or leave data.stack out"
    )
    assert catalogue.order == (("", "other"), ("train", "1"))
