import shutil
import warnings

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from affine import Affine
from rio_cogeo import cog_validate

import geochip
from geochip.errors import InputError
from geochip.store import PredictionStore, SceneGrid, sweep_locks, write_block
from geochip.store.cog import cog_path, write_cog
from geochip.windows import blocks
from helpers import UTM
from told import told

# rioxarray multiplies transforms in a way that affine means to give up some day.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

CLASSES = ("background", "new building", "road")
ATTRIBUTES = {
    "geochip_version": "0.1.0", "model_sha256": "abc", "window": 64, "stride": 32, "blend": "hann", "fingerprint": "f",
}  # fmt: skip


def grid(scene_id, height, width, *, transform=UTM, crs="EPSG:32611", split="test"):
    return SceneGrid(
        scene_id=scene_id, split=split, height=height, width=width, crs=crs, transform=tuple(transform)[:6]
    )


def coded(scene_id, height, width):
    """Class ids that say where they are: no two shifts of them agree; the upper left corner is nodata."""
    values = np.random.default_rng(int(scene_id)).integers(0, len(CLASSES), (height, width)).astype(np.uint8)
    values[:3, :2] = 255
    return values


def probabilities(class_hw):
    values = np.where(np.arange(len(CLASSES))[:, None, None] == class_hw, 200, 27).astype(np.uint8)
    return np.where(class_hw == 255, np.uint8(255), values)


def make(path, grids, *, block=50, probability=True, finish=True):
    store = PredictionStore.create(
        path, grids, class_names=CLASSES, block=block, probability=probability, attributes=ATTRIBUTES
    )
    for scene in store.scenes.values():
        class_hw = coded(scene.scene_id, scene.height, scene.width)
        for one in blocks(scene.height, scene.width, block):
            values = class_hw[one.slices]
            write_block(path, scene, one, values, probabilities(values) if probability else None)
    if finish:
        store.finish(store.scenes)
    return PredictionStore(path)


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "p.zarr", [grid("1", 117, 83), grid("2", 40, 40), grid("3", 117, 83)])


def test_blocks_come_back_where_they_were_written(store):
    assert list(store.scenes) == ["2", "1", "3"]
    for scene in store.scenes.values():
        expected = coded(scene.scene_id, scene.height, scene.width)
        for block in blocks(scene.height, scene.width, 33):
            np.testing.assert_array_equal(store.read(scene, block), expected[block.slices])


def test_it_opens_with_xarray_without_a_warning(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(store.path)
        stack = tree["117x83"].to_dataset()
        flat = xr.open_zarr(store.path, group="117x83")
    assert set(tree.children) == {"117x83", "40x40"}
    assert tree.attrs["model_sha256"] == "abc"
    assert tree.attrs["complete"] is True
    assert stack["class"].dtype == flat["class"].dtype == np.uint8
    assert stack["class"].dims == ("scene", "y", "x")
    assert stack["class"].attrs["flag_values"] == [0, 1, 2, 255]
    assert stack["class"].attrs["flag_meanings"].split() == ["background", "new_building", "road", "nodata"]
    assert stack.probability.dims == ("scene", "class_name", "y", "x")
    assert list(stack["class"].scene_id.values) == ["1", "3"]
    assert stack.transform.dims == ("scene", "coefficient")
    np.testing.assert_array_equal(stack.transform[1], tuple(UTM)[:6])
    np.testing.assert_array_equal(stack["class"][1], coded("3", 117, 83))
    # A probability of 200/254 where the class is, 27/254 elsewhere, NaN for nodata.
    np.testing.assert_allclose(stack.probability.sel(class_name="road")[0].values[3:].max(), 200 / 254)
    assert np.isnan(stack.probability[:, :, :3, :2]).all()
    assert not np.isnan(stack.probability[:, :, 3:]).any()


def test_one_expression_asks_all_scenes(store):
    stack = xr.open_zarr(store.path, group="117x83")
    share = (stack["class"] == 1).sum(("y", "x")) / (stack["class"] != 255).sum(("y", "x"))
    by_id = dict(zip(share.scene_id.values, share.values, strict=True))
    for scene_id in ("1", "3"):
        expected = coded(scene_id, 117, 83)
        assert by_id[scene_id] == pytest.approx((expected == 1).sum() / (expected != 255).sum())


def test_a_chunk_is_one_block_of_one_scene(store):
    assert xr.open_zarr(store.path, group="117x83")["class"].data.chunksize == (1, 50, 50)
    # Clipped to scenes that are smaller than a block.
    assert xr.open_zarr(store.path, group="40x40").probability.data.chunksize == (1, 3, 40, 40)
    files = {path.name for path in (store.path / "117x83" / "class").glob("c.*")}
    assert files == {f"c.{scene}.{row}.{col}" for scene in (0, 1) for row in (0, 1, 2) for col in (0, 1)}


def test_probability_is_optional(tmp_path):
    make(tmp_path / "p.zarr", [grid("1", 20, 30)], probability=False)
    assert "probability" not in geochip.open_scene(tmp_path / "p.zarr", "1")


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32611", UTM),
        ("EPSG:4326", Affine(2.7e-06, 0, -115.30617, 0, -2.7e-06, 36.2123)),
        ("EPSG:32645", Affine(0.3, 0, 340_000.7, 0, 0.3, 3_060_000.1)),
    ],
)
def test_open_scene_has_the_source_images_coordinates(tmp_path, crs, transform):
    make(tmp_path / "p.zarr", [grid("7", 61, 44, crs=crs, transform=transform)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        scene = geochip.open_scene(tmp_path / "p.zarr", "7")
        assert scene.rio.crs == rasterio.CRS.from_string(crs)
    rows, cols = np.indices((61, 44))
    x, y = rasterio.transform.xy(transform, rows.ravel(), cols.ravel(), offset="center")
    np.testing.assert_allclose(np.broadcast_to(scene.x, (61, 44)).ravel(), x, rtol=1e-14)
    np.testing.assert_allclose(np.broadcast_to(scene.y.values[:, None], (61, 44)).ravel(), y, rtol=1e-14)
    np.testing.assert_allclose(tuple(scene.rio.transform()), tuple(transform), rtol=1e-9)
    np.testing.assert_array_equal(scene["class"], coded("7", 61, 44))
    assert scene["class"].dtype == np.uint8
    assert scene["class"].rio.nodata == 255
    assert scene.probability.dtype == np.float32
    assert scene.attrs["class_names"] == list(CLASSES)
    assert (scene.attrs["scene_id"], scene.attrs["split"], scene.attrs["model_sha256"]) == ("7", "test", "abc")


def test_open_scene_reads_pixels_when_they_are_used(store):
    scene = geochip.open_scene(store.path, "1")
    assert scene["class"].chunks is not None
    place = store.scenes["1"]
    shutil.rmtree(store.path / "117x83" / "class")
    with pytest.raises(InputError, match=r"blocks of scene 1 are lost: .*117x83/class/c\.0\.0\.0 not there; run "):
        PredictionStore(store.path).read(place, next(blocks(10, 10, 10)))


def test_a_rotated_scene_has_its_transform_alone(tmp_path):
    turned = UTM @ Affine.rotation(30)
    make(tmp_path / "p.zarr", [grid("1", 20, 30, transform=turned)])
    with pytest.warns(UserWarning, match="rotated") as caught:
        scene = geochip.open_scene(tmp_path / "p.zarr", "1")
    told("rotated scene", str(caught[0].message))
    assert "x" not in scene.coords
    np.testing.assert_allclose(tuple(scene.rio.transform()), tuple(turned), rtol=1e-12)


def test_a_scene_without_crs(tmp_path):
    make(tmp_path / "p.zarr", [grid("1", 20, 30, crs="", transform=Affine.identity())])
    assert geochip.open_scene(tmp_path / "p.zarr", "1").rio.crs is None


def test_what_open_scene_gives_can_be_saved(store, tmp_path):
    scene = geochip.open_scene(store.path, "1")
    # Nothing of how the store packs it is left to get in the way.
    assert all(set(variable.encoding) <= {"grid_mapping"} for variable in scene.variables.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        scene.to_zarr(tmp_path / "copy.zarr", consolidated=False)
        scene["class"].rio.to_raster(tmp_path / "copy.tif")
    with rasterio.open(tmp_path / "copy.tif") as copy:
        assert (copy.nodata, copy.crs.to_epsg(), copy.transform) == (255, 32611, UTM)
        np.testing.assert_array_equal(copy.read(1), coded("1", 117, 83))


def test_an_unknown_scene_is_named_with_those_there_are(store):
    with pytest.raises(InputError, match=r"scene '11' is not among the 3 scenes of .*p\.zarr; there are 1, \.\.\."):
        geochip.open_scene(store.path, "11")
    with pytest.raises(InputError, match=r"scene 'xyz' is not among the 3 scenes of .*; there are 2, 1, 3$"):
        geochip.open_scene(store.path, "xyz")


def test_an_incomplete_scene_says_so(tmp_path):
    make(tmp_path / "p.zarr", [grid("1", 20, 30)], finish=False)
    with pytest.warns(UserWarning, match="scene 1 of .* is not complete: what is missing reads as nodata"):
        geochip.open_scene(tmp_path / "p.zarr", "1")


def test_finish_notes_which_scenes_are_complete(tmp_path):
    store = make(tmp_path / "p.zarr", [grid("1", 20, 30), grid("2", 20, 30)], finish=False)
    assert not store.complete
    store.finish(["2"])
    again = PredictionStore(tmp_path / "p.zarr")
    assert again.complete
    assert {scene.scene_id: scene.complete for scene in again.scenes.values()} == {"1": False, "2": True}
    assert {scene.scene_id: scene.complete for scene in store.scenes.values()} == {"1": False, "2": True}
    assert zarr.open_group(str(again.path), mode="r").metadata.consolidated_metadata is not None


def test_no_store_another_store_another_version(tmp_path, store):
    with pytest.raises(InputError, match=r"there is no prediction store at .*none\.zarr; make one with .*infer"):
        PredictionStore(tmp_path / "none.zarr")
    zarr.create_group(str(tmp_path / "other.zarr"), attributes={"format_version": 1})
    with pytest.raises(InputError, match=r"there is no prediction store at .*other\.zarr"):
        geochip.open_scene(tmp_path / "other.zarr", "1")
    zarr.open_group(str(store.path), mode="r+").update_attributes({"format_version": 99})
    with pytest.raises(InputError, match="has format version 99, this geochip reads 1; make it anew"):
        PredictionStore(store.path)


def test_a_store_that_could_not_be_made_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        PredictionStore.create(
            tmp_path / "p.zarr", [grid("1", 20, 30)], class_names=CLASSES, block=50, probability=False,
            attributes={**ATTRIBUTES, "no JSON": object()},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_all_nodata_blocks_are_files_too(tmp_path):
    path = tmp_path / "p.zarr"
    store = PredictionStore.create(
        path, [grid("1", 20, 30)], class_names=CLASSES, block=50, probability=False, attributes=ATTRIBUTES
    )
    scene = store.scenes["1"]
    write_block(path, scene, next(blocks(20, 30, 50)), np.full((20, 30), 255, np.uint8))
    assert (path / "20x30" / "class" / "c.0.0.0").is_file()


def test_leftovers_of_killed_writers_are_swept(store):
    left = store.path / "117x83" / "class" / "c.0.0.0.__lock"
    left.write_bytes(b"half")
    sweep_locks(store.path)
    assert not left.exists()


def test_cog_is_valid_and_holds_the_classes(tmp_path):
    store = make(tmp_path / "p.zarr", [grid("1", 1100, 1300), grid("2", 40, 50)], block=300, probability=False)
    for scene in store.scenes.values():
        size = write_cog(store, scene, tmp_path / "cogs")
        path = cog_path(tmp_path / "cogs", scene.scene_id)
        assert path.stat().st_size == size
        valid, errors, problems = cog_validate(path, strict=True, quiet=True)
        assert (valid, errors, problems) == (True, [], [])
        with rasterio.open(path) as dataset:
            assert (dataset.crs.to_epsg(), dataset.transform, dataset.nodata) == (32611, UTM, 255)
            assert dataset.dtypes == ("uint8",)
            np.testing.assert_array_equal(dataset.read(1), coded(scene.scene_id, scene.height, scene.width))
            colours = dataset.colormap(1)
            assert len({colours[number] for number in (*range(len(CLASSES)), 255)}) == len(CLASSES) + 1
            assert dataset.tags()["CLASS_NAMES"] == "background,new building,road"
            assert dataset.tags()["MODEL_SHA256"] == "abc"
            assert dataset.tags(1)["CLASS_1"] == "new building"
            assert dataset.overviews(1) == ([2, 4] if scene.scene_id == "1" else [])
            assert dataset.is_tiled
    assert {path.name for path in (tmp_path / "cogs").iterdir()} == {"1.tif", "2.tif"}


def test_cog_overviews_hold_classes_and_no_means(tmp_path):
    path = tmp_path / "p.zarr"
    store = PredictionStore.create(
        path, [grid("1", 600, 600)], class_names=CLASSES, block=600, probability=False, attributes=ATTRIBUTES
    )
    values = np.full((600, 600), 2, np.uint8)
    values[::2, ::2] = 0
    write_block(path, store.scenes["1"], next(blocks(600, 600, 600)), values)
    write_cog(store, store.scenes["1"], tmp_path)
    with rasterio.open(tmp_path / "1.tif", overview_level=0) as overview:
        # Three of four pixels are of class 2; the fourth is the one that the nearest neighbour would be.
        assert set(np.unique(overview.read(1))) == {2}
