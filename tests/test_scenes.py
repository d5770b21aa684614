import os
import pickle
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from affine import Affine

from geochip.chip_worker import scene_pixels
from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError
from geochip.scenes import (
    Catalogue,
    Scene,
    SceneError,
    SceneReader,
    catalogue_frame,
    describe_files,
    find_scenes,
    odd_ones,
    scene_digest,
    set_aside,
)
from geochip.windows import Window
from helpers import IMAGE, LABEL, UTM, position_coded, write_image, write_label, write_scene


def data(root, *splits, **more):
    section = DataConfig(root=str(root), image=IMAGE, label=LABEL, splits=splits or ("train",), **more)
    return RunConfig(data=section)


def only(catalogue):
    (scene,) = catalogue.scenes
    return scene


def test_scenes_are_found_by_template_in_the_order_of_numbers(tmp_path):
    for split, scene_id in (("val", "3"), ("train", "10"), ("train", "9"), ("train", "a_2")):
        write_scene(tmp_path, split, scene_id)
    (tmp_path / "train" / "unrelated.tif").touch()
    catalogue = find_scenes(data(tmp_path, "train", "val"))
    assert [(scene.split, scene.scene_id) for scene in catalogue.scenes] == [
        ("train", "9"), ("train", "10"), ("train", "a_2"), ("val", "3"),
    ]  # fmt: skip
    assert [scene.scene_id for scene in find_scenes(data(tmp_path, "train", "val"), ["val"]).scenes] == ["3"]


def test_special_characters_of_patterns_stand_for_themselves(tmp_path):
    root = tmp_path / "odd [dir] *"
    write_scene(root, "train", "1")
    assert only(find_scenes(data(root))).scene_id == "1"


def test_an_id_may_stand_twice_in_a_template(tmp_path):
    write_image(tmp_path / "train" / "7" / "scene_7.tif", position_coded(4, 5))
    write_image(tmp_path / "train" / "7" / "scene_8.tif", position_coded(4, 5))
    config = RunConfig(
        data=DataConfig(
            root=str(tmp_path), image="{split}/{id}/scene_{id}.tif", label="{split}/{id}.json", splits=("train",)
        )
    )
    assert [scene.scene_id for scene in find_scenes(config, need_labels=False).scenes] == ["7"]


def test_a_scene_says_what_its_header_says(tmp_path):
    transform = write_scene(tmp_path, "train", "1", position_coded(31, 17), nodata=99)
    scene = only(find_scenes(data(tmp_path)))
    assert (scene.height, scene.width, scene.count, scene.dtype) == (31, 17, 3, "uint32")
    assert (scene.crs, scene.transform, scene.nodata) == ("EPSG:32611", transform, 99)
    assert scene.bands == (1, 2, 3)
    assert scene.band_names == ("band_1", "band_2", "band_3")
    assert scene.image_bytes == (tmp_path / "train" / "scene_1.tif").stat().st_size
    assert scene.label_bytes == (tmp_path / "train" / "label_1.geojson").stat().st_size
    # Half a metre in UTM; near the middle of a zone the scale is 0.9996 to 1.0004.
    assert scene.pixel_size == pytest.approx(0.5, rel=1e-3)
    assert pickle.loads(pickle.dumps(scene)) == scene


def test_pixel_size_is_measured_on_the_ground(tmp_path):
    # Web Mercator stretches lengths by 1 / cos(latitude): 0.5 map units at 36.2 degrees North are 0.40 m.
    path = write_image(
        tmp_path / "a.tif",
        position_coded(8, 8),
        crs="EPSG:3857",
        transform=Affine(0.5, 0, -12_800_000, 0, -0.5, 4_330_000),
    )
    assert only(describe_files([path], data(tmp_path))).pixel_size == pytest.approx(0.404, abs=0.003)
    degrees = Affine(2.7e-6, 0, -115.3, 0, -2.7e-6, 36.13)
    path = write_image(tmp_path / "b.tif", position_coded(8, 8), crs="EPSG:4326", transform=degrees)
    assert only(describe_files([path], data(tmp_path))).pixel_size == pytest.approx(0.27, abs=0.001)


def test_alpha_is_no_band_of_its_own(tmp_path):
    image = np.full((4, 6, 7), 200, np.uint8)
    image[3, 2, 3] = 0
    path = write_image(tmp_path / "rgba.tif", image, photometric="RGB", alpha="YES")
    scene = only(describe_files([path], data(tmp_path)))
    assert scene.bands == (1, 2, 3)
    with SceneReader(scene) as reader:
        pixels, valid = reader.read(Window(row_off=0, col_off=0, height=6, width=7))
    assert pixels.shape == (3, 6, 7)
    assert np.argwhere(~valid).tolist() == [[2, 3]]


def test_bands_are_read_in_the_chosen_order(tmp_path):
    write_scene(tmp_path, "train", "1", position_coded(9, 8, bands=8))
    with SceneReader(only(find_scenes(data(tmp_path, bands=(5, 2))))) as reader:
        pixels, _ = reader.read(Window(row_off=0, col_off=0, height=9, width=8))
    assert (pixels >> 28)[:, 0, 0].tolist() == [4, 1]


@pytest.mark.parametrize("profile", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_windows_hold_the_pixels_of_their_place(tmp_path, profile):
    image = position_coded(61, 47)
    write_scene(tmp_path, "train", "1", image, **profile)
    windows = [
        Window(row_off=row, col_off=col, height=height, width=width)
        for row, col, height, width in ((0, 0, 61, 47), (3, 5, 10, 20), (60, 46, 1, 1), (17, 0, 44, 47))
    ]
    with SceneReader(only(find_scenes(data(tmp_path)))) as reader:
        read = [reader.read(window) for window in windows]
        whole = scene_pixels(reader, windows, None)
        cut = [np.empty_like(pixels) for pixels, _ in read]
        assert all(whole.read_into(window, into).all() for window, into in zip(windows, cut, strict=True))
    for window, (pixels, valid), pixels_too in zip(windows, read, cut, strict=True):
        np.testing.assert_array_equal(pixels, image[:, *window.slices])
        np.testing.assert_array_equal(pixels_too, pixels)
        assert valid.all()


@pytest.mark.parametrize("nodata", [None, 7])
def test_a_window_over_the_edge_is_padded_and_not_valid_there(tmp_path, nodata):
    image = position_coded(6, 5)
    write_scene(tmp_path, "train", "1", image, nodata=nodata)
    window = Window(row_off=2, col_off=1, height=9, width=8)
    with SceneReader(only(find_scenes(data(tmp_path)))) as reader:
        pixels, valid = reader.read(window)
        pixels_too = np.empty_like(pixels)
        valid_too = scene_pixels(reader, [window, window], None).read_into(window, pixels_too)
    np.testing.assert_array_equal(pixels[:, :4, :4], image[:, 2:, 1:])
    assert valid.sum() == 16
    assert valid[:4, :4].all()
    assert (pixels[:, 4:] == (nodata or 0)).all()
    assert (pixels[:, :, 4:] == (nodata or 0)).all()
    np.testing.assert_array_equal(pixels_too, pixels)
    np.testing.assert_array_equal(valid_too, valid)
    with (
        SceneReader(only(find_scenes(data(tmp_path)))) as reader,
        pytest.raises(ValueError, match="holds no pixel of scene 1"),
    ):
        reader.read(Window(row_off=6, col_off=0, height=1, width=1))


def test_only_pixels_at_nodata_in_every_band_are_invalid(tmp_path):
    image = np.full((3, 4, 4), 50, np.uint16)
    image[:, 0, 0] = 0
    image[0, 1, 1] = 0
    write_scene(tmp_path, "train", "1", image, nodata=0)
    with SceneReader(only(find_scenes(data(tmp_path)))) as reader:
        _, valid = reader.read(Window(row_off=0, col_off=0, height=4, width=4))
    assert np.argwhere(~valid).tolist() == [[0, 0]]


def test_nan_and_infinity_are_invalid(tmp_path):
    image = np.ones((2, 4, 4), np.float32)
    image[0, 1, 2] = np.nan
    image[1, 3, 3] = np.inf
    write_scene(tmp_path, "train", "1", image, nodata=np.nan)
    with SceneReader(only(find_scenes(data(tmp_path)))) as reader:
        _, valid = reader.read(Window(row_off=0, col_off=0, height=4, width=4))
    assert np.argwhere(~valid).tolist() == [[1, 2], [3, 3]]


def test_a_mask_band_counts(tmp_path):
    path = tmp_path / "train" / "scene_1.tif"
    write_scene(tmp_path, "train", "1")
    mask = np.full((60, 70), 255, np.uint8)
    mask[5:9, 3] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(mask)
    with SceneReader(only(find_scenes(data(tmp_path)))) as reader:
        _, valid = reader.read(Window(row_off=0, col_off=0, height=60, width=70))
    np.testing.assert_array_equal(valid, mask == 255)


def test_scenes_without_label_are_listed_by_name(tmp_path):
    for scene_id in "123":
        write_scene(tmp_path, "train", scene_id)
    label = tmp_path / "train" / "label_2.geojson"
    label.unlink()
    catalogue = find_scenes(data(tmp_path))
    assert [scene.scene_id for scene in catalogue.scenes] == ["1", "3"]
    assert [str(item) for item in catalogue.unlabelled] == [f"scene 2 (train): there is no label file {label}"]
    assert len(find_scenes(data(tmp_path), need_labels=False).scenes) == 3


def test_one_bad_scene_is_set_aside_with_its_reason(tmp_path):
    for scene_id in "1234":
        write_scene(tmp_path, "train", scene_id)
    (tmp_path / "train" / "scene_2.tif").write_text("this is no GeoTIFF")
    write_image(tmp_path / "train" / "scene_3.tif", position_coded(9, 9, bands=2))
    write_image(tmp_path / "train" / "scene_4.tif", np.zeros((3, 9, 9), np.complex64))
    catalogue = find_scenes(data(tmp_path, bands=(1, 3)))
    assert [scene.scene_id for scene in catalogue.scenes] == ["1"]
    no_raster, no_band, no_dtype = (str(item) for item in catalogue.bad)
    assert no_raster.startswith(
        f"scene 2 (train): {tmp_path}/train/scene_2.tif is no raster that GDAL can read, such as a GeoTIFF ("
    )
    assert no_band == f"scene 3 (train): data.bands asks for band 3, {tmp_path}/train/scene_3.tif has bands 1 to 2"
    assert "has pixels of type complex64; known are uint8, int8" in no_dtype


def test_errors_of_the_catalogue(tmp_path):
    with pytest.raises(
        InputError, match=r"data.root: '.*none' is no directory; set it to the one that holds the scenes"
    ):
        find_scenes(data(tmp_path / "none"))
    write_scene(tmp_path, "train", "1")
    with pytest.raises(
        InputError, match=r"data.image: no file matches .*/val/scene_\*.tif \(split 'val'\); correct data.root"
    ):
        find_scenes(data(tmp_path, "train", "val"))
    (tmp_path / "train" / "label_1.geojson").unlink()
    with pytest.raises(
        InputError,
        match=r"data.label: none of the 1 scenes has a label file; the first one looked for is .*label_1.geojson",
    ):
        find_scenes(data(tmp_path))


def test_when_no_scene_can_be_used_the_reasons_are_shown(tmp_path):
    for scene_id in range(7):
        write_scene(tmp_path, "train", scene_id)
        (tmp_path / "train" / f"scene_{scene_id}.tif").write_text("no")
    with pytest.raises(InputError) as caught:
        find_scenes(data(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "no scene can be used"
    assert all("is no raster" in line for line in lines[1:6])
    assert lines[6:] == ["... and 2 more"]


def test_named_files_get_their_id_and_label_from_the_template_if_they_fit(tmp_path):
    write_scene(tmp_path, "train", "12")
    other = write_image(tmp_path / "other.tif", position_coded(5, 6))
    fitting, plain = describe_files([str(tmp_path / "train" / "scene_12.tif"), str(other)], data(tmp_path)).scenes
    assert (fitting.scene_id, fitting.split, fitting.label) == (
        "12",
        "train",
        str(tmp_path / "train" / "label_12.geojson"),
    )
    assert (plain.scene_id, plain.split, plain.label) == ("other", "", None)


def test_errors_of_named_files(tmp_path):
    for name in ("a/x.tif", "b/x.tif"):
        write_image(tmp_path / name, position_coded(5, 6))
    with pytest.raises(
        InputError, match="scene id 'x' belongs to more than one of the named files; name each scene once"
    ):
        describe_files([str(tmp_path / "a/x.tif"), str(tmp_path / "b/x.tif")], data(tmp_path))
    with pytest.raises(InputError, match=r".*y.tif is no file; name images that are there"):
        describe_files([str(tmp_path / "y.tif")], data(tmp_path))


def test_a_damaged_file_names_scene_file_and_window(tmp_path):
    write_scene(tmp_path, "train", "1", position_coded(200, 200), compress="deflate")
    scene = only(find_scenes(data(tmp_path)))
    path = tmp_path / "train" / "scene_1.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        SceneReader(scene) as reader,
        pytest.raises(
            SceneError, match=r"scene 1: .*scene_1.tif could not be read at rows 100 to 199, columns 0 to 199 \("
        ),
    ):
        reader.read(Window(row_off=100, col_off=0, height=100, width=200))
    path.unlink()
    with pytest.raises(SceneError, match=r"scene 1: .*scene_1.tif could not be opened \("), SceneReader(scene):
        pass
    write_image(path, position_coded(5, 5))
    with (
        pytest.raises(SceneError, match=r"scene 1: .*scene_1.tif changed its size since it was catalogued"),
        SceneReader(scene),
    ):
        pass


def test_odd_ones_are_those_unlike_most(tmp_path):
    for scene_id in "123":
        write_scene(tmp_path, "train", scene_id)
    write_scene(tmp_path, "train", "4", np.zeros((3, 9, 9), np.uint8))
    catalogue = find_scenes(data(tmp_path))
    ((scene, reason),) = odd_ones(catalogue.scenes)
    assert scene.scene_id == "4"
    assert (
        "has the bands band_1, band_2, band_3 of uint8 where most scenes have band_1, band_2, band_3 of uint32; chips"
        in reason
    )
    left = set_aside(catalogue, [(scene, reason)])
    assert [scene.scene_id for scene in left.scenes] == ["1", "2", "3"]
    assert [item.reason for item in left.bad] == [reason]


def test_the_catalogue_is_a_map(tmp_path):
    transform = write_scene(tmp_path, "train", "1", position_coded(40, 50))
    write_scene(tmp_path, "train", "2")
    (tmp_path / "train" / "label_2.geojson").unlink()
    write_scene(tmp_path, "train", "3", position_coded(4, 4), crs=None)
    write_label(tmp_path / "train" / "label_3.geojson", [], crs=None)
    file = tmp_path / "scenes.parquet"
    catalogue_frame(find_scenes(data(tmp_path))).to_parquet(file)
    frame = gpd.read_parquet(file).set_index("scene_id")
    assert frame.status.to_dict() == {"1": "ok", "3": "ok", "2": "unlabelled"}
    assert frame.geometry["3"] is None
    assert frame.crs == "EPSG:4326"
    west, south, east, north = frame.to_crs("EPSG:32611").geometry["1"].bounds
    assert (west, north) == pytest.approx(transform @ (0, 0), abs=1e-3)
    assert (east, south) == pytest.approx(transform @ (50, 40), abs=1e-3)


def test_scene_has_no_surprising_defaults():
    with pytest.raises(TypeError):
        Scene("1", "train")
    assert UTM.a == 0.5


def test_bands_in_another_order_are_odd(tmp_path):
    for scene_id, names in (("1", "rgb"), ("2", "rgb"), ("3", "bgr")):
        write_scene(tmp_path, "train", scene_id)
        with rasterio.open(tmp_path / "train" / f"scene_{scene_id}.tif", "r+") as dataset:
            dataset.descriptions = tuple(names)
    ((scene, reason),) = odd_ones(find_scenes(data(tmp_path)).scenes)
    assert scene.scene_id == "3"
    assert "has the bands b, g, r of uint32 where most scenes have r, g, b of uint32" in reason


def test_a_split_that_is_not_configured(tmp_path):
    write_scene(tmp_path, "train", "1")
    with pytest.raises(InputError, match=r"split 'test' is not among data.splits: train; name one of them"):
        find_scenes(data(tmp_path), ["test"])


def test_a_named_file_is_the_scene_that_it_is_however_its_path_is_spelt(tmp_path, monkeypatch):
    write_scene(tmp_path / "d", "train", "1")
    monkeypatch.chdir(tmp_path)
    spellings = ["d/train/scene_1.tif", str(tmp_path / "d/train/scene_1.tif"), "d/../d/train/scene_1.tif"]
    for root in ("d", str(tmp_path / "d"), "./d/../d"):
        for name in spellings:
            scene = only(describe_files([name], data(root)))
            assert (scene.scene_id, scene.split) == ("1", "train")
            assert scene.label is not None
    with pytest.raises(InputError, match="scene id '1' belongs to more than one of the named files"):
        describe_files(spellings, data("d"))


def test_paths_of_scenes_are_absolute(tmp_path, monkeypatch):
    write_scene(tmp_path / "d", "train", "1")
    monkeypatch.chdir(tmp_path)
    scene = only(find_scenes(data("d")))
    assert scene.image == str(tmp_path / "d" / "train" / "scene_1.tif")
    assert scene.label == str(tmp_path / "d" / "train" / "label_1.geojson")


def test_a_digest_tells_what_changed(tmp_path):
    write_scene(tmp_path, "train", "1")
    label = tmp_path / "train" / "label_1.geojson"
    scene = only(find_scenes(data(tmp_path)))
    before, without = scene_digest(scene, with_label=True), scene_digest(scene, with_label=False)
    label.write_text(label.read_text().replace("0", "1"))
    after = scene_digest(scene, with_label=True)
    assert after["header"] == before["header"]
    assert after["content"] != before["content"]
    assert scene_digest(scene, with_label=False) == without
    # Who reads the label says what is wrong with it.
    label.unlink()
    gone = scene_digest(scene, with_label=True)
    assert gone["content"] not in (before["content"], after["content"], without["content"])
    # A pipe would be waited for.
    os.mkfifo(label)
    assert scene_digest(scene, with_label=True)["content"] not in (before["content"], gone["content"])
    pipe = replace(scene, image=str(label))
    assert scene_digest(pipe, with_label=False)["content"] != without["content"]
    longer = scene_digest(replace(scene, image_bytes=scene.image_bytes + 1), with_label=False)
    assert (longer["header"], longer["content"] == without["content"]) == (without["header"], False)
    assert scene_digest(replace(scene, height=9), with_label=False)["header"] != without["header"]


def test_a_bad_scene_keeps_its_turn(tmp_path):
    for scene_id in "1234":
        write_scene(tmp_path, "train", scene_id)
    (tmp_path / "train" / "scene_2.tif").write_text("no image")
    (tmp_path / "train" / "label_3.geojson").unlink()
    catalogue = find_scenes(data(tmp_path))
    assert catalogue.order == (("train", "1"), ("train", "2"), ("train", "4"))
    assert set_aside(catalogue, [(catalogue.scenes[0], "of no use")]).order == catalogue.order


def test_a_local_grid_has_no_place_on_the_earth(tmp_path):
    local = 'LOCAL_CS["site",UNIT["metre",1],AXIS["E",EAST],AXIS["N",NORTH]]'
    scene = only(describe_files([write_image(tmp_path / "a.tif", position_coded(5, 6), crs=local)], data(tmp_path)))
    assert scene.pixel_size is None
    frame = catalogue_frame(Catalogue(scenes=(scene,)))
    assert frame.geometry[0] is None
