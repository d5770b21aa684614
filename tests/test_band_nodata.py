"""Nodata values that differ from band to band, and what else a file says of where data is."""

import hashlib
import json

import numpy as np
import pytest
import rasterio

from geochip.chipping import main
from geochip.config import DataConfig, RunConfig
from geochip.infer_worker import with_nodata
from geochip.scenes import SceneReader, describe_files, notice_lines, scene_digest
from geochip.store import ChipStore
from geochip.windows import Window
from helpers import UTM, box, write_image, write_label
from told import told

FIRST_FIELDS = (
    "scene_id", "split", "height", "width", "count", "dtype", "crs", "nodata", "bands", "band_names", "pixel_size",
)  # fmt: skip
GRID = f"{UTM.c},{UTM.a},0,{UTM.f},0,{UTM.e}"


def vrt(path, bands, *, size=(6, 7), more=""):
    """A VRT of bands (GDAL's type, nodata value or None, file, band of it)."""
    text = "".join(
        f'<VRTRasterBand dataType="{kind}" band="{number}">'
        + ("" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>")
        + f'<SimpleSource><SourceFilename relativeToVRT="1">{file}</SourceFilename><SourceBand>{band}</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for number, (kind, nodata, file, band) in enumerate(bands, 1)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}"><SRS>EPSG:32611</SRS>'
        f"<GeoTransform>{GRID}</GeoTransform>{text}{more}</VRTDataset>"
    )
    return path


def scene_of(path, **data):
    (scene,) = describe_files([str(path)], RunConfig(data=DataConfig(**data))).scenes
    return scene


def read(scene):
    with SceneReader(scene) as reader:
        return reader.read(Window(row_off=0, col_off=0, height=scene.height, width=scene.width))


def invalid_in(scene):
    return np.argwhere(~read(scene)[1]).tolist()


def lines_of(scene):
    return "\n".join(notice_lines([scene]))


@pytest.fixture
def two(tmp_path):
    """Two bands of uint16: (0, 0) at 65535 and 0; (1, 1) at 65535 in the first; (2, 2) at 0 in the second."""
    image = np.full((2, 6, 7), 150, np.uint16)
    image[0, 0, 0], image[1, 0, 0] = 65535, 0
    image[0, 1, 1], image[1, 2, 2] = 65535, 0
    return write_image(tmp_path / "two.tif", image)


def test_each_band_is_held_against_its_own_value(tmp_path, two):
    scene = scene_of(vrt(tmp_path / "a.vrt", [("UInt16", 65535, "two.tif", 1), ("UInt16", 0, "two.tif", 2)]))
    assert (scene.nodata, scene.band_nodata) == (65535, (65535, 0))
    image, valid = read(scene)
    assert np.argwhere(~valid).tolist() == [[0, 0]]
    with rasterio.open(scene.image) as dataset:
        np.testing.assert_array_equal(valid, dataset.read_masks().any(axis=0))
    # What stands where there is no data is one value for all bands; what looks like nodata elsewhere is a pixel.
    assert image[:, 0, 0].tolist() == [65535, 65535]
    assert (image[:, 1, 1].tolist(), image[:, 2, 2].tolist()) == ([65535, 150], [150, 0])
    told("nodata of each band", lines_of(scene))


def test_the_chosen_bands_decide(tmp_path, two):
    path = vrt(tmp_path / "a.vrt", [("UInt16", 65535, "two.tif", 1), ("UInt16", 0, "two.tif", 2)])
    first, second, turned = (scene_of(path, bands=bands) for bands in ((1,), (2,), (2, 1)))
    assert (first.nodata, second.nodata, first.band_nodata, second.band_nodata) == (65535, 0, (), ())
    assert (invalid_in(first), invalid_in(second)) == ([[0, 0], [1, 1]], [[0, 0], [2, 2]])
    assert invalid_in(turned) == [[0, 0]]
    assert lines_of(first) == ""


def test_a_band_without_a_value_always_has_data_and_that_is_told(tmp_path, two):
    scene = scene_of(vrt(tmp_path / "a.vrt", [("UInt16", 65535, "two.tif", 1), ("UInt16", None, "two.tif", 2)]))
    assert invalid_in(scene) == []
    with rasterio.open(scene.image) as dataset:
        assert dataset.read_masks().any(axis=0).all()
    told("nodata of some bands", lines_of(scene))
    # The remedies: a value for each band, or other bands.
    assert invalid_in(scene_of(scene.image, bands=(1,))) == [[0, 0], [1, 1]]
    vrt(tmp_path / "a.vrt", [("UInt16", 65535, "two.tif", 1), ("UInt16", 0, "two.tif", 2)])
    assert invalid_in(scene_of(scene.image)) == [[0, 0]]


def test_nan_in_one_float_band(tmp_path):
    image = np.full((2, 6, 7), 5, np.float32)
    image[0, 0, 0] = np.nan
    image[1, 1, 1] = -9999
    image[0, 2, 2], image[1, 2, 2] = np.nan, -9999
    write_image(tmp_path / "f.tif", image)
    scene = scene_of(vrt(tmp_path / "a.vrt", [("Float32", "nan", "f.tif", 1), ("Float32", -9999, "f.tif", 2)]))
    # NaN in any band is no data, whatever is declared; -9999 alone is not NaN in the other.
    assert invalid_in(scene) == [[0, 0], [2, 2]]
    pixels, valid = read(scene)
    assert np.isnan(pixels[:, ~valid]).all()


def test_a_value_that_a_bands_type_cannot_hold_is_none(tmp_path, two):
    image = np.full((2, 6, 7), 241, np.uint8)
    write_image(tmp_path / "b.tif", image)
    # 241 is what -9999 would be in a byte.
    scene = scene_of(vrt(tmp_path / "a.vrt", [("Byte", -9999, "b.tif", 1), ("Byte", 241, "b.tif", 2)]))
    assert invalid_in(scene) == []
    assert scene.nodata == 241
    told("nodata of some bands", lines_of(scene))


def test_bands_of_several_types(tmp_path):
    write_image(tmp_path / "u.tif", np.full((1, 6, 7), 65535, np.uint16))
    height = np.full((1, 6, 7), 300, np.float32)
    height[0, 3, 3] = np.float32(-3.4028235e38)
    write_image(tmp_path / "h.tif", height)
    bands = [("UInt16", 65535, "u.tif", 1), ("Float32", "-3.4028235e+38", "h.tif", 1)]
    scene = scene_of(vrt(tmp_path / "a.vrt", bands))
    assert scene.dtype == "float32"
    # The lowest value, as some programs write it, is more than float32 holds to GDAL, which takes it for none.
    assert invalid_in(scene) == [[3, 3]]
    assert read(scene)[0][:, 0, 0].tolist() == [65535, 300]
    assert invalid_in(scene_of(scene.image, bands=(2,))) == [[3, 3]]
    vrt(tmp_path / "a.vrt", [("UInt16", 7, "u.tif", 1), bands[1]])
    assert invalid_in(scene_of(scene.image)) == []
    write_image(tmp_path / "u.tif", np.full((1, 6, 7), 7, np.uint16))
    pixels, valid = read(scene_of(scene.image, bands=(2, 1)))
    assert np.argwhere(~valid).tolist() == [[3, 3]]
    assert pixels[:, 0, 0].tolist() == [300, 7]


def test_each_file_of_a_stack_has_its_own(tmp_path, two):
    height = np.full((1, 6, 7), 300, np.float32)
    height[0, 4, 4] = -9999
    write_image(tmp_path / "train" / "h_1.tif", height, nodata=-9999)
    (tmp_path / "train" / "two.tif").write_bytes(two.read_bytes())
    vrt(tmp_path / "train" / "1.vrt", [("UInt16", 65535, "two.tif", 1), ("UInt16", 0, "two.tif", 2)])
    data = {"root": str(tmp_path), "image": "{split}/{id}.vrt", "stack": ("{split}/h_{id}.tif",), "splits": ("train",)}
    scene = scene_of(tmp_path / "train" / "1.vrt", **data)
    assert scene.band_nodata == (65535, 0, -9999)
    assert invalid_in(scene) == [[0, 0], [4, 4]]
    # A nodata value of a file of which no band is chosen has no say.
    assert invalid_in(scene_of(tmp_path / "train" / "1.vrt", **data, bands=(1, 2))) == [[0, 0]]


def test_a_mask_of_one_band_alone(tmp_path, two):
    mask = np.full((1, 6, 7), 255, np.uint8)
    mask[0, 5, 5] = 0
    write_image(tmp_path / "m.tif", mask)
    own = (
        '<MaskBand><VRTRasterBand dataType="Byte"><SimpleSource><SourceFilename relativeToVRT="1">m.tif'
        "</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></MaskBand>"
    )
    path = vrt(tmp_path / "a.vrt", [("UInt16", None, "two.tif", 1)])
    path.write_text(path.read_text().replace("</VRTRasterBand>", f"{own}</VRTRasterBand>"))
    assert invalid_in(scene_of(path)) == [[5, 5]]
    told("mask", lines_of(scene_of(path)))


def test_a_mask_goes_before_nodata_as_in_gdal(tmp_path):
    image = np.full((2, 6, 7), 50, np.uint8)
    image[:, 0, 0] = 0
    path = write_image(tmp_path / "a.tif", image, nodata=0)
    mask = np.full((6, 7), 255, np.uint8)
    mask[1, 1] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    scene = scene_of(path)
    with rasterio.open(path) as dataset:
        assert np.argwhere(~dataset.read_masks().any(axis=0)).tolist() == invalid_in(scene) == [[1, 1]]
    assert "and not the nodata value (0); without it all have" in lines_of(scene)


def test_alpha_counts_beside_nodata(tmp_path):
    image = np.full((4, 6, 7), 50, np.uint8)
    image[3] = 255
    image[:3, 0, 0] = 0
    image[3, 1, 1] = 0
    path = write_image(tmp_path / "a.tif", image, photometric="RGB", alpha="YES", nodata=0)
    assert invalid_in(scene_of(path)) == [[0, 0], [1, 1]]
    # Taken as a band it is held against the file's nodata value like the others, and is no mask.
    assert invalid_in(scene_of(path, bands=(1, 2, 3, 4))) == []


def test_digests_of_scenes_whose_bands_agree_are_those_that_they_were(tmp_path):
    path = write_image(tmp_path / "a.tif", np.full((2, 6, 7), 50, np.uint8), nodata=0)
    scene = scene_of(path)
    assert (scene.band_nodata, scene.alpha) == ((), "mask")
    # With the fields of geochip 0.1.0 alone, so that stores that it made go on.
    header = {name: getattr(scene, name) for name in FIRST_FIELDS} | {"transform": tuple(scene.transform)[:6]}
    text = json.dumps(header, sort_keys=True).encode()
    assert scene_digest(scene, with_label=False)["header"] == hashlib.sha256(text).hexdigest()[:16]
    other = scene_of(vrt(tmp_path / "a.vrt", [("Byte", 0, "a.tif", 1), ("Byte", 9, "a.tif", 2)]))
    same = scene_of(vrt(tmp_path / "a.vrt", [("Byte", 0, "a.tif", 1), ("Byte", 0, "a.tif", 2)]))
    assert scene_digest(other, with_label=False)["header"] != scene_digest(same, with_label=False)["header"]


# ----------------------------------------------------------------------------------------------------- through chipping


def test_chips_and_statistics_hold_what_is_valid(tmp_path, dask_address, capsys):
    rng = np.random.default_rng(0)
    image = rng.integers(100, 200, (2, 64, 64)).astype(np.uint16)
    image[0, :20], image[1, :20] = 65535, 0
    data = tmp_path / "data"
    write_image(data / "two.tif", image)
    (data / "train").mkdir()
    vrt(data / "train" / "1.vrt", [("UInt16", 65535, "../two.tif", 1), ("UInt16", 0, "../two.tif", 2)], size=(64, 64))
    write_label(data / "train" / "1.geojson", [box(UTM, 30, 5, 9, 9)])
    main([
        f"--run_dir={tmp_path / 'run'}", f"--data.root={data}", "--data.image={split}/{id}.vrt",
        "--data.label={split}/{id}.geojson", "--data.splits=[train]", "--chips.method=grid", "--chips.size=32",
        "--train.val_split=null", "--infer.split=train", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ])  # fmt: skip
    told("nodata of each band", capsys.readouterr().out)
    store = ChipStore(tmp_path / "run" / "chips.zarr")
    images, labels = store.read("train", np.arange(4))
    invalid = labels == 255
    assert invalid.sum() == 20 * 64
    assert store.attrs["nodata"] == 65535
    # One value, which the network takes for nodata, in all bands.
    assert (images.swapaxes(0, 1)[:, invalid] == 65535).all()
    np.testing.assert_allclose(store.attrs["statistics"]["mean"], image[:, 20:].mean(axis=(1, 2)), rtol=1e-9)
    # Inference gives the network the same.
    scene = scene_of(data / "train" / "1.vrt")
    pixels, valid = read(scene)
    seen = with_nodata(pixels, valid, scene.nodata, store.attrs["nodata"])
    np.testing.assert_array_equal(seen[:, :32, :32], images[0])


def test_the_network_sees_in_prediction_what_it_saw_in_training_under_a_mask(tmp_path):
    image = np.full((2, 6, 7), 50, np.uint8)
    path = write_image(tmp_path / "a.tif", image, nodata=0)
    mask = np.full((6, 7), 255, np.uint8)
    mask[1, 1] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    scene = scene_of(path)
    pixels, valid = read(scene)
    # The file holds a colour there, the chips of it nodata.
    assert pixels[:, 1, 1].tolist() == [50, 50]
    assert with_nodata(pixels, valid, scene.nodata, 0.0)[:, 1, 1].tolist() == [0, 0]
