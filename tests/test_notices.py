"""What is taken for something else, or not taken, in an image: told once in a run, in every command."""

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.vrt import WarpedVRT

from bundles import identity_bundle
from geochip import chipping, infer
from geochip.config import DataConfig, RunConfig, SplitConfig
from geochip.doctor.data import notices as findings
from geochip.errors import InputError
from geochip.scenes import SceneReader, describe_files, find_scenes, notice_lines
from geochip.windows import Window
from helpers import IMAGE, LABEL, UTM, box, data_flags, write_image, write_label, write_scene
from told import told

pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
]


def scene_of(path, **data):
    (scene,) = describe_files([str(path)], RunConfig(data=DataConfig(**data))).scenes
    return scene


def read(scene):
    with SceneReader(scene) as reader:
        return reader.read(Window(row_off=0, col_off=0, height=scene.height, width=scene.width))


def lines_of(*scenes):
    return "\n".join(notice_lines(scenes))


def rgbn(seed=0, dtype="uint8"):
    """Red, green, blue and near infrared, which is 0 on water: the first two rows."""
    image = np.random.default_rng(seed).integers(1, 255, (4, 40, 50)).astype(dtype)
    image[3, :2] = 0
    return image


def rgba(seed=0):
    image = rgbn(seed)
    image[3] = 255
    image[3, :2] = 0
    return image


# ---------------------------------------------------------------------------------------------------------------- alpha


def test_near_infrared_that_gdal_calls_alpha(tmp_path):
    path = write_image(tmp_path / "a.tif", rgbn())
    scene = scene_of(path)
    assert scene.bands == (1, 2, 3)
    assert (~read(scene)[1]).sum() == 100
    text = lines_of(scene)
    told("alpha as mask", text)
    told("alpha values", text)
    assert text.startswith("note: scene a: band 4 is declared to be alpha")
    assert "name all bands that are meant (data.bands: [1, 2, 3, 4]), or set data.alpha: band" in text
    # Each remedy.
    for remedy in ({"bands": (1, 2, 3, 4)}, {"alpha": "band"}):
        scene = scene_of(path, **remedy)
        assert scene.bands == (1, 2, 3, 4)
        image, valid = read(scene)
        np.testing.assert_array_equal(image, rgbn())
        assert valid.all()
        told("alpha as band", lines_of(scene))
    # Without near infrared, and without it as a mask.
    scene = scene_of(path, bands=(1, 2, 3), alpha="band")
    assert read(scene)[1].all()
    told("alpha unused", lines_of(scene))
    assert (~read(scene_of(path, bands=(1, 2, 3)))[1]).sum() == 100


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_an_alpha_band_that_is_one_is_not_doubted(tmp_path, dtype):
    image = rgba().astype(dtype)
    image[3] = (image[3] > 0) * np.iinfo(dtype).max
    # A soft edge.
    image[3, 2] = 100
    scene = scene_of(write_image(tmp_path / "a.tif", image, photometric="RGB", alpha="YES"))
    assert (~read(scene)[1]).sum() == 100
    assert "alpha" in lines_of(scene)
    assert "does not look like one" not in lines_of(scene)


def test_grey_and_alpha(tmp_path):
    scene = scene_of(write_image(tmp_path / "a.tif", rgba()[2:], alpha="YES"))
    assert scene.bands == (1,)
    assert (~read(scene)[1]).sum() == 100
    assert "band 2 is declared to be alpha, and taken as a mask" in lines_of(scene)
    assert "(data.bands: [1, 2])" in lines_of(scene)


@pytest.mark.parametrize("place", [1, 4, 5])
def test_alpha_is_a_mask_wherever_it_stands(tmp_path, place):
    # GDAL's own masks know of it in files of two and of four bands alone.
    image = np.concatenate([rgbn()[:3], rgbn(1)[:2]])
    image[place - 1] = rgba()[3]
    path = write_image(tmp_path / "a.tif", image)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.alpha if band == place else ColorInterp.undefined for band in range(1, 6)]
    scene = scene_of(path)
    assert scene.bands == tuple(band for band in range(1, 6) if band != place)
    assert (~read(scene)[1]).sum() == 100


def test_an_image_of_alpha_alone_is_a_band(tmp_path):
    path = write_image(tmp_path / "a.tif", rgba()[3:])
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.alpha]
    scene = scene_of(path)
    assert scene.bands == (1,)
    assert read(scene)[1].all()


def test_alpha_of_a_file_that_is_stacked(tmp_path):
    write_image(tmp_path / "train" / "scene_1.tif", rgbn()[:1])
    write_image(tmp_path / "train" / "more_1.tif", rgbn())
    write_label(tmp_path / "train" / "label_1.geojson", [])

    def of(**data):
        section = DataConfig(
            root=str(tmp_path), image=IMAGE, label=LABEL, stack=("{split}/more_{id}.tif",), splits=("train",), **data
        )
        (scene,) = find_scenes(RunConfig(data=section)).scenes
        return scene

    assert of().bands == (1, 2, 3, 4)
    assert "band 5 is declared to be alpha" in lines_of(of())
    assert "(data.bands: [2, 3, 4, 5])" in lines_of(of())
    assert (~read(of())[1]).sum() == 100
    assert read(of(bands=(1, 2, 3, 4, 5)))[1].all()
    # A mask of a file of which no band is chosen.
    assert read(of(bands=(1,)))[1].all()


# --------------------------------------------------------------------------------------------------- palette and scale


def test_a_palette_image(tmp_path):
    image = (rgbn()[:1] % 3).astype(np.uint8)
    path = write_image(tmp_path / "a.tif", image)
    colours = {0: (9, 8, 7, 255), 1: (200, 100, 50, 255), 2: (1, 2, 3, 255)}
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, colours)
    told("palette", lines_of(scene_of(path)))
    assert "the values of band 1 are indices" in lines_of(scene_of(path))
    # Expanded, as gdal_translate -expand rgb does.
    table = np.array([colours[value][:3] for value in range(3)], np.uint8)
    scene = scene_of(write_image(tmp_path / "b.tif", np.moveaxis(table[image[0]], -1, 0)))
    assert (lines_of(scene), scene.bands) == ("", (1, 2, 3))


def test_a_scale_is_told_and_pixels_stay_as_they_are(tmp_path):
    path = write_image(tmp_path / "a.tif", rgbn(dtype="uint16"))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (1, 1e-4, 1e-4, 1), (0, -0.1, -0.1, 0)
    scene = scene_of(path)
    assert "note: scene a: bands 2, 3 declare a scale or an offset (0.0001, -0.1 for the first)" in lines_of(scene)
    told("scale", lines_of(scene))
    np.testing.assert_array_equal(read(scene)[0], rgbn(dtype="uint16"))
    assert lines_of(scene_of(path, bands=(1, 4))) == ""


# ------------------------------------------------------------------------------------------- georeferences not in use


def control_points(path, count=3):
    places = np.linspace(0, 40, count)
    points = [GroundControlPoint(row, col, *(UTM @ (col, row))) for row in places for col in places]
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = (points, rasterio.CRS.from_epsg(32611))
    return path


def test_control_points_are_named_and_the_remedy_works(tmp_path):
    image = rgbn()[:3]
    path = tmp_path / "train" / "scene_1.tif"
    control_points(write_image(path, image, crs=None, transform=None))
    label = write_label(tmp_path / "train" / "label_1.geojson", [box(UTM, 10, 5, 8, 12)])
    flags = [
        f"--run_dir={tmp_path / 'run'}",
        *data_flags(tmp_path, "train"),
        "--train.val_split=null",
        "--infer.split=train",
    ]
    with pytest.raises(InputError) as caught:
        chipping.main([*flags, "--dry_run", "--chips.size=8"])
    text = str(caught.value)
    told("control points and a label", text)
    assert f"{path} has 9 ground control points in EPSG:32611 and no geotransform" in text
    assert f"label {label} is in EPSG:32611" in text
    assert "warp it first (gdalwarp" in text
    assert "a_srs" not in text
    # As gdalwarp does.
    with rasterio.open(path) as source, WarpedVRT(source, crs="EPSG:32611") as warped:
        pixels, transform = warped.read(), warped.transform
    write_image(path, pixels, transform=transform)
    chipping.main([*flags, "--dry_run", "--chips.size=8"])
    assert scene_of(path).pixel_size == pytest.approx(0.5, rel=0.01)


def test_control_points_that_nobody_asks_for_are_told_all_the_same(tmp_path):
    path = control_points(write_image(tmp_path / "a.tif", rgbn()[:3], crs=None, transform=None))
    told("control points", lines_of(scene_of(path)))
    # Beside a geotransform they are of no need.
    path = tmp_path / "b.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="50" rasterYSize="40"><SRS>EPSG:32611</SRS><GeoTransform>{UTM.c},0.5,0,{UTM.f},0,-0.5'
        '</GeoTransform><GCPList Projection="EPSG:32611"><GCP Id="1" Pixel="0" Line="0" X="0" Y="0"/></GCPList>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">a.tif</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    assert (lines_of(scene_of(path)), scene_of(path).crs) == ("", "EPSG:32611")


def test_rpcs(tmp_path):
    coefficients = [1.0] + [0.0] * 19
    rpcs = RPC(
        height_off=0, height_scale=1, lat_off=36, lat_scale=1, line_den_coeff=coefficients,
        line_num_coeff=coefficients, line_off=0, line_scale=1, long_off=-115, long_scale=1,
        samp_den_coeff=coefficients, samp_num_coeff=coefficients, samp_off=0, samp_scale=1,
    )  # fmt: skip
    path = write_image(tmp_path / "a.tif", rgbn()[:3], crs=None, transform=None, rpcs=rpcs)
    told("control points", lines_of(scene_of(path)))
    assert "the image has rational polynomial coefficients (RPCs) and no geotransform" in lines_of(scene_of(path))
    # Beside a geotransform they are of no need.
    assert lines_of(scene_of(write_image(tmp_path / "b.tif", rgbn()[:3], rpcs=rpcs))) == ""


def test_geolocation_arrays(tmp_path):
    path = write_image(tmp_path / "a.tif", rgbn()[:3], crs=None, transform=None)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="GEOLOCATION", X_DATASET="x.tif", Y_DATASET="y.tif")
    assert "the image has geolocation arrays and no geotransform" in lines_of(scene_of(path))


def test_control_points_where_blocks_divide(tmp_path):
    for name in "12":
        control_points(write_image(tmp_path / f"{name}.tif", rgbn()[:3], crs=None, transform=None))
        write_label(tmp_path / f"{name}.geojson", [])
    section = DataConfig(root=str(tmp_path), image="{id}.tif", label="{id}.geojson")
    with pytest.raises(InputError, match=r"9 ground control points in EPSG:32611 .*; warp it first \(gdalwarp"):
        find_scenes(RunConfig(data=section, split=SplitConfig(by="blocks")))


# ----------------------------------------------------------------------------------------------------- in the commands


def test_once_in_a_run_with_a_count_and_an_example(tmp_path, capsys, dask_address):
    for scene_id in "1234":
        write_scene(tmp_path / "data", "train", scene_id, rgba(int(scene_id)))
    flags = [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "train"), "--train.val_split=null",
        "--infer.split=train", "--cluster.kind=address", f"--cluster.address={dask_address}", "--chips.size=16",
    ]  # fmt: skip
    for more in (["--dry_run"], []):
        chipping.main([*flags, *more])
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "alpha" in line]
        assert line.startswith("note: 4 scenes, such as 1 (train): band 4 is declared to be alpha, and taken as a mask")
    identity_bundle(tmp_path / "run" / "model", bands=3, dtype="uint8")
    infer.main([*flags, "--dry_run"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "alpha" in line]
    assert line.startswith("note: 4 scenes, such as 1 (train): band 4 is declared to be alpha, and taken as a mask")


def test_infer_tells_of_control_points(tmp_path, capsys, dask_address):
    path = control_points(write_image(tmp_path / "a.tif", rgbn()[:1], crs=None, transform=None))
    identity_bundle(tmp_path / "run" / "model", bands=1, dtype="uint8")
    infer.main([
        f"--run_dir={tmp_path / 'run'}", str(path), "--cluster.kind=address", f"--cluster.address={dask_address}",
    ])  # fmt: skip
    told("control points", capsys.readouterr().out)


def test_the_doctor_shows_the_same():
    note, warning = findings("scenes", ["note: scene 1: this", "warning: 2 scenes, such as 3: that: and more"])
    assert (str(note.level), note.text) == ("ok", "scene 1: this")
    assert (str(warning.level), warning.text) == ("warn", "2 scenes, such as 3: that: and more")


def test_texts_that_differ_are_shown_up_to_three(tmp_path):
    scenes = []
    for number in range(6):
        path = write_image(tmp_path / f"{number}.tif", rgbn()[:1])
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = (2.0 + number // 2,)
        scenes.append(scene_of(path))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (9.0,)
    scenes[-1] = scene_of(path)
    lines = list(notice_lines(scenes))
    assert len(lines) == 4
    assert lines[0].startswith("note: 2 scenes, such as 0: band 1 declares a scale or an offset (2, 0 for the first)")
    assert lines[2].startswith("note: scene 4: ")
    assert lines[3] == "note: 1 more scene of this kind, with other values"
