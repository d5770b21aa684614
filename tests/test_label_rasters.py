import numpy as np
import pytest
import rasterio
from affine import Affine

from geochip.labels import LabelError
from geochip.windows import Window
from helpers import UTM, open_label, read_label, write_image

NAMES = ("background", "building", "road")


def window(row_off, col_off, height, width):
    return Window(row_off=row_off, col_off=col_off, height=height, width=width)


def ids(height=60, width=50, classes=3):
    """Class ids that differ from pixel to pixel."""
    rows, cols = np.indices((height, width))
    return ((7 * rows + 5 * cols + rows * cols) % classes).astype(np.uint8)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_values_are_class_ids_and_nodata_counts_for_nothing(tmp_path, dtype):
    values = ids()
    stored = values.astype(dtype)
    stored[10:20, 10:20] = 99
    path = write_image(tmp_path / "a.tif", stored[None], nodata=99)
    values[10:20, 10:20] = 255
    np.testing.assert_array_equal(read_label(path, height=60, width=50, classes=NAMES), values)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float64"])
def test_class_map_ignore_and_negative_values(tmp_path, dtype):
    stored = np.array([[-5, -1, 7, 40], [40, 7, -1, -5]], dtype)
    path = write_image(tmp_path / "a.tif", stored[None])
    label = read_label(
        path, height=2, width=4, classes=NAMES, ignore=("-1", "clouds"),
        class_map={"-5": "road", "7": "building", "40": "background", "house": "road"},
    )  # fmt: skip
    np.testing.assert_array_equal(label, [[2, 255, 1, 0], [0, 1, 255, 2]])


def test_nan_and_a_mask_band_are_no_class(tmp_path):
    stored = ids().astype(np.float32)
    stored[0, 0] = np.nan
    label = read_label(write_image(tmp_path / "a.tif", stored[None]), height=60, width=50, classes=NAMES)
    assert label[0, 0] == 255
    assert (label == 255).sum() == 1
    path = write_image(tmp_path / "b.tif", ids()[None])
    with rasterio.open(path, "r+") as dataset:
        mask = np.full((60, 50), 255, np.uint8)
        mask[5:7, 8:10] = 0
        dataset.write_mask(mask)
    label = read_label(path, height=60, width=50, classes=NAMES)
    assert (label == 255).sum() == 4
    assert (label[5:7, 8:10] == 255).all()


@pytest.mark.parametrize("near", [None, [window(3, 4, 9, 8)], [window(0, 0, 60, 50)]])
def test_windows_are_slices(tmp_path, near):
    path = write_image(tmp_path / "a.tif", ids()[None])
    with open_label(path, height=60, width=50, classes=NAMES, near=near) as label:
        np.testing.assert_array_equal(label.read(window(3, 4, 9, 8)), ids()[3:12, 4:12])
        assert label.mended == 0
    with open_label(path, height=60, width=50, classes=NAMES) as label:
        found = label.read(window(50, 45, 20, 20))
    np.testing.assert_array_equal(found[:10, :5], ids()[50:, 45:])
    assert (found == 255).sum() == 400 - 50


@pytest.mark.parametrize("size", [7, 20, 33])
def test_resampled_from_the_nearest_pixel(tmp_path, size):
    path = write_image(tmp_path / "a.tif", ids()[None])
    with open_label(path, height=60, width=50, classes=NAMES) as label:
        found = label.read(window(45, 35, 20, 20), size)
    padded = np.full((80, 80), 255)
    padded[:60, :50] = ids()
    centres = [int((k + 0.5) * 20 / size) for k in range(size)]
    np.testing.assert_array_equal(found, padded[45:65, 35:55][np.ix_(centres, centres)])


def test_a_very_large_window_is_made_smaller_in_parts(tmp_path):
    rows = np.arange(5000) * 3 // 5000
    values = np.repeat(rows[:, None], 5000, axis=1).astype(np.uint8)
    path = write_image(tmp_path / "a.tif", values[None], compress="lzw")
    with open_label(path, height=5000, width=5000, classes=NAMES) as label:
        found = label.read(window(0, 0, 5000, 5000), 50)
    np.testing.assert_array_equal(found, values[50::100, 50::100])


@pytest.mark.parametrize(
    ("change", "has"),
    [
        ({"transform": UTM @ Affine.translation(0.01, 0)}, r"60 x 50 pixels of \(0.5, -0.5\) from \(664000.005, 4004000\) in EPSG:32611"),
        ({"transform": UTM @ Affine.scale(2)}, r"60 x 50 pixels of \(1, -1\) from"),
        ({"transform": UTM @ Affine.rotation(10)}, r"turned by \("),
        ({"crs": "EPSG:32612"}, r"in EPSG:32612;"),
        ({"crs": None}, r"in no CRS;"),
        ({"image": ids(61, 50)[None]}, r"61 x 50 pixels"),
    ],
)  # fmt: skip
def test_another_grid_than_the_image_s_is_an_error_that_names_both(tmp_path, change, has):
    path = write_image(tmp_path / "a.tif", **{"image": ids()[None], **change})
    with pytest.raises(
        LabelError,
        match=rf"label .*a.tif does not have its image's pixels: it has .*{has}.* the image has 60 x 50 pixels of \(0.5, -0.5\) from \(664000, 4004000\) in EPSG:32611; resample it onto those \(gdalwarp",
    ):
        read_label(path, height=60, width=50, classes=NAMES)


def test_a_thousandth_of_a_pixel_is_the_same_grid(tmp_path):
    path = write_image(tmp_path / "a.tif", ids()[None], transform=UTM @ Affine.translation(5e-4, 0))
    np.testing.assert_array_equal(read_label(path, height=60, width=50, classes=NAMES), ids())


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_without_a_georeference_on_both_sides(tmp_path):
    path = tmp_path / "a.png"
    with rasterio.open(path, "w", driver="PNG", count=1, height=60, width=50, dtype="uint8") as dataset:
        dataset.write(ids()[None])
    label = read_label(path, height=60, width=50, classes=NAMES, transform=Affine.identity(), crs=None)
    np.testing.assert_array_equal(label, ids())


def test_errors_of_raster_labels(tmp_path):
    how = {"height": 60, "width": 50, "classes": NAMES}
    values = ids().astype(np.uint16)
    values[3, 4] = 700
    path = write_image(tmp_path / "a.tif", values[None])
    with pytest.raises(
        LabelError,
        match=r"label .*a.tif has pixels of value 700, which is no class id \(0 to 2: background, building, road\); say what it is with labels.class_map or labels.ignore, or declare it as the raster's nodata value",
    ):
        read_label(path, **how)
    assert read_label(path, ignore=("700",), **how)[3, 4] == 255
    with pytest.raises(
        LabelError, match=r"value 0, which is not in labels.class_map \(1, 2, 700\); add it there or to labels.ignore"
    ):
        read_label(path, class_map={"1": "road", "2": "road", "700": "road"}, **how)
    path = write_image(tmp_path / "b.tif", (ids() + 0.5)[None])
    with pytest.raises(LabelError, match=r"has pixels of value 0\.5, which is no class id"):
        read_label(path, **how)
    path = write_image(tmp_path / "c.tif", np.stack([ids()] * 3))
    with pytest.raises(
        LabelError, match=r"c.tif has 3 bands, and a raster label must have one; write the class values"
    ):
        read_label(path, **how)
    with pytest.raises(LabelError, match=r"label .*none.tif could not be read as a raster \(.*\); mend or remove it"):
        read_label(tmp_path / "none.tif", **how)
    path = write_image(tmp_path / "d.tif", np.zeros((1, 600, 500), np.uint8))
    with path.open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(
        LabelError,
        match=r"d.tif could not be read at rows 0 to 599, columns 0 to 499 \(.*TIFFReadEncodedStrip.*\); mend or remove it",
    ):
        read_label(path, height=600, width=500, classes=NAMES)


def test_two_classes_need_no_map(tmp_path):
    path = write_image(tmp_path / "a.tif", ids(classes=2)[None])
    np.testing.assert_array_equal(read_label(path, height=60, width=50), ids(classes=2))
