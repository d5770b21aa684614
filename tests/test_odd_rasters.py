"""Odd and damaged rasters: each is one scene that is set aside with its reason, or works; none is a traceback."""

import os

import numpy as np
import pytest
import rasterio
from affine import Affine

from geochip.chip_prepare import prepare
from geochip.config import ChipsConfig, DataConfig, RunConfig, TrainConfig
from geochip.infer_plan import size_fault
from geochip.scenes import SceneError, SceneReader, describe_files, find_scenes
from geochip.windows import Window
from helpers import IMAGE, LABEL, UTM, write_image, write_label, write_scene
from told import told

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def vrt(path, *, source="a.tif", width=6, height=5, grid=f"{UTM.c},0.5,0,{UTM.f},0,-0.5", kind="Byte"):
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32611</SRS><GeoTransform>{grid}'
        f'</GeoTransform><VRTRasterBand dataType="{kind}" band="1"><SimpleSource><SourceFilename relativeToVRT="1">'
        f"{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    return path


def why(path, **data):
    """Why a file is set aside; "" when it is not."""
    good = write_image(path.parent / "good.tif", np.ones((1, 5, 6), np.uint8))
    catalogue = describe_files([str(good), str(path)], RunConfig(data=DataConfig(**data)))
    return catalogue.bad[0].reason if catalogue.bad else ""


def read(path, **data):
    (scene,) = describe_files([str(path)], RunConfig(data=DataConfig(**data))).scenes
    with SceneReader(scene) as reader:
        return reader.read(Window(row_off=0, col_off=0, height=scene.height, width=scene.width))


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        ("int64", "gdal_translate -ot Int32 or Float64"),
        ("uint64", "gdal_translate -ot UInt32 or Float64"),
        ("complex64", "such as the magnitude, into a file of its own (gdal_calc.py)"),
        ("complex_int16", "such as the magnitude, into a file of its own (gdal_calc.py)"),
    ],
)
def test_types_that_chips_cannot_have_are_told_with_the_remedy(tmp_path, dtype, advice):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=5, width=6, count=1, dtype=dtype, crs="EPSG:32611", transform=UTM
    ) as dataset:
        dataset.write(np.full((1, 5, 6), 3, "complex64" if dtype.startswith("complex") else dtype))
    text = why(path)
    told("pixel type", text)
    assert f"has pixels of type {dtype}" in text
    assert advice in text
    # The remedy.
    with rasterio.open(path) as dataset:
        pixels = dataset.read()
    write_image(path, np.abs(pixels).astype("float64" if "int" in dtype else "float32"))
    assert (read(path)[0] == 3).all()


def test_half_precision_is_read_as_gdal_gives_it(tmp_path):
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=5, width=6, count=1, dtype="float32", nbits=16, crs="EPSG:32611",
        transform=UTM,
    ) as dataset:  # fmt: skip
        dataset.write(np.full((1, 5, 6), 1.5, np.float32))
    image, _ = read(path)
    assert (image.dtype, image.max()) == (np.float32, 1.5)


@pytest.mark.parametrize(
    "grid", ["nan,nan,nan,nan,nan,nan", "0,1,0,0,0,nan", "0,inf,0,0,0,-1", "5,0,0,5,0,0", "0,1,1,0,1,1"]
)
def test_a_geotransform_that_gives_no_place(tmp_path, grid):
    write_image(tmp_path / "a.tif", np.ones((1, 5, 6), np.uint8))
    told("geotransform", why(vrt(tmp_path / "a.vrt", grid=grid)))
    # The remedy.
    assert why(vrt(tmp_path / "a.vrt")) == ""


def test_a_pixel_size_that_is_none(tmp_path):
    # Coordinates that UTM does not have.
    (scene,) = describe_files(
        [
            str(
                write_image(
                    tmp_path / "a.tif",
                    np.ones((1, 5, 6), np.uint8),
                    transform=Affine(1e300, 0, 1e300, 0, -1e300, 1e300),
                )
            )
        ],
        RunConfig(),
    ).scenes
    assert scene.pixel_size is None


def test_a_file_without_a_band(tmp_path):
    path = tmp_path / "a.vrt"
    path.write_text('<VRTDataset rasterXSize="6" rasterYSize="5"></VRTDataset>')
    text = why(path)
    assert text.startswith(f"{path} ")
    assert "holds no band" in text or "is no raster that GDAL can read" in text


def test_one_pixel(tmp_path):
    image, valid = read(write_image(tmp_path / "a.tif", np.full((3, 1, 1), 9, np.uint8)))
    assert (image.ravel().tolist(), valid.tolist()) == ([9, 9, 9], [[True]])


def test_what_is_no_file(tmp_path):
    pipe = tmp_path / "a.tif"
    os.mkfifo(pipe)
    write_scene(tmp_path, "train", "1")
    os.mkfifo(tmp_path / "train" / "scene_2.tif")
    (tmp_path / "train" / "scene_3.tif").mkdir()
    for scene_id in "23":
        write_label(tmp_path / "train" / f"label_{scene_id}.geojson", [])
    catalogue = find_scenes(RunConfig(data=DataConfig(root=str(tmp_path), image=IMAGE, label=LABEL, splits=("train",))))
    reasons = [item.reason for item in catalogue.bad]
    assert reasons == [
        f"{tmp_path}/train/scene_2.tif is no file (it is a named pipe, not a regular file)",
        f"{tmp_path}/train/scene_3.tif is no file (it is a directory, not a regular file)",
    ]
    # A mosaic of one would be waited for as well.
    text = why(vrt(tmp_path / "b.vrt", source="a.tif"))
    assert "is a named pipe, not a regular file" in text


def test_what_became_a_pipe_meanwhile(tmp_path):
    path = write_image(tmp_path / "a.tif", np.ones((1, 5, 6), np.uint8))
    (scene,) = describe_files([str(path)], RunConfig()).scenes
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SceneError, match=r"scene a: .*a.tif could not be opened .*named pipe"), SceneReader(scene):
        pass


def test_mosaics_of_themselves_and_of_nothing(tmp_path):
    for name, source in (("a.vrt", "a.vrt"), ("b.vrt", "c.vrt"), ("c.vrt", "b.vrt"), ("d.vrt", "gone.tif")):
        vrt(tmp_path / name, source=source)
    for name in "abcd":
        with pytest.raises(SceneError, match="could not be read at rows 0 to 4, columns 0 to 5"):
            read(tmp_path / f"{name}.vrt")


@pytest.mark.parametrize("chips", [{"method": "grid"}, {"per_area": 12.0}])
def test_a_scene_larger_than_any_list_of_windows(tmp_path, chips):
    write_scene(tmp_path, "train", "1")
    (tmp_path / "train" / "scene_1.tif").rename(tmp_path / "train" / "scene_1.vrt")
    with rasterio.open(tmp_path / "train" / "scene_1.vrt") as dataset:
        grid = dataset.transform
    write_image(tmp_path / "train" / "a.tif", np.ones((1, 9, 9), np.uint8))
    write_image(tmp_path / "train" / "scene_2.vrt", np.ones((1, 90, 90), np.uint8), transform=grid)
    write_label(tmp_path / "train" / "label_2.geojson", [])
    place = f"{grid.c},0.5,0,{grid.f},0,-0.5"
    vrt(tmp_path / "train" / "scene_1.vrt", width=10**9, height=10**9, grid=place)

    def config(**more):
        return RunConfig(
            run_dir=str(tmp_path / "run"),
            data=DataConfig(
                root=str(tmp_path), image="{split}/scene_{id}.vrt", label=LABEL, splits=("train",), max_missing=1
            ),
            chips=ChipsConfig(size=30, **more),
            train=TrainConfig(val_split=None),
        )

    bad = prepare(config(**chips)).catalogue.bad
    assert [item.scene_id for item in bad] == ["1"]
    told("too large to chip", bad[0].reason)
    # The remedy: fewer, which fit.
    assert prepare(config(per_scene=3)).catalogue.bad == ()


def test_a_scene_larger_than_any_list_of_blocks(tmp_path):
    write_image(tmp_path / "a.tif", np.ones((1, 5, 6), np.uint8))
    path = vrt(tmp_path / "a.vrt", width=2_000_000_000, height=1_000_000_000)
    (scene,) = describe_files([str(path)], RunConfig(data=DataConfig(max_missing=1))).scenes
    text = size_fault(scene, 2048)
    told("too large to predict", text)
    assert "976563 blocks" not in text
    assert size_fault(scene, 2_000_000) is None
