"""What is told of bands that are not the model's, and that following it works."""

import re

import numpy as np
import pytest
import rasterio

import geochip
from bundles import MEAN, STD, identity_bundle
from geochip.errors import run_command
from geochip.infer import main
from helpers import data_flags, write_scene
from told import told

CLASSES = np.random.default_rng(0).integers(0, 7, (20, 30)).astype(np.uint8)


@pytest.fixture
def flags(tmp_path, dask_address):
    """A model of red, green and blue that answers with what red holds."""
    identity_bundle(tmp_path / "run/model", bands=3, band=0, band_names=("red", "green", "blue"))
    return [
        f"--run_dir={tmp_path / 'run'}", *data_flags(tmp_path / "data", "test"), "--train.split=test",
        "--train.val_split=null", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


def write(tmp_path, names, red):
    """A scene whose bands have these descriptions; the one with the number `red` holds the classes."""
    image = np.random.default_rng(1).integers(1, 600, (len(names), 20, 30)).astype(np.uint16)
    image[red - 1] = MEAN + STD * CLASSES
    write_scene(tmp_path / "data", "test", "1", image)
    with rasterio.open(tmp_path / "data/test/scene_1.tif", "r+") as dataset:
        for number, name in enumerate(names, 1):
            if name:
                dataset.set_band_description(number, name)


def error_of(flags, capsys):
    assert run_command(main, flags) == 2
    return capsys.readouterr().err


def assert_right(tmp_path):
    np.testing.assert_array_equal(geochip.open_scene(tmp_path / "run/predictions.zarr", "1")["class"], CLASSES)


@pytest.mark.parametrize("chosen", [None, [4, 3, 2]])
def test_names_that_the_model_does_not_know(tmp_path, flags, capsys, chosen):
    write(tmp_path, ("B01", "B02", "B03", "B04"), red=4)
    err = error_of(flags, capsys)
    told("bands-named-otherwise", err)
    assert "has the bands B01, B02, B03, B04, the model takes red, green, blue" in err
    if chosen is None:
        # The other remedy: the file says which is which.
        with rasterio.open(tmp_path / "data/test/scene_1.tif", "r+") as dataset:
            for number, name in ((4, "red"), (3, "green"), (2, "blue")):
                dataset.set_band_description(number, name)
        main(flags)
    else:
        main([*flags, f"--data.bands={chosen}"])
        out = capsys.readouterr().out
        assert "warning: scene 1: the bands B04, B03, B02 are taken for red, green, blue" in out
        assert "as data.bands says" in out
    assert_right(tmp_path)


def test_the_models_names_in_another_order(tmp_path, flags, capsys):
    write(tmp_path, ("blue", "green", "red"), red=3)
    err = error_of([*flags, "--data.bands=[1, 2, 3]"], capsys)
    told("bands-in-another-order", err)
    order = re.search(r"--data.bands '(.+?)'", err)[1]
    main([*flags, f"--data.bands={order}"])
    assert "warning" not in capsys.readouterr().out
    assert_right(tmp_path)
    main([*flags, f"--infer.store={tmp_path / 'second.zarr'}"])
    np.testing.assert_array_equal(geochip.open_scene(tmp_path / "second.zarr", "1")["class"], CLASSES)


def test_one_of_the_models_bands_in_the_place_of_another(tmp_path, flags, capsys):
    write(tmp_path, ("nir", "red", "green"), red=2)
    err = error_of([*flags, "--data.bands=[1, 2, 3]"], capsys)
    assert "correct --data.bands, or leave data.bands out" in err
    told("bands-named-otherwise", error_of(flags, capsys))
    # What is meant: near infrared goes in as blue.
    main([*flags, "--data.bands=[2, 3, 1]"])
    assert "the bands red, green, nir are taken for red, green, blue" in capsys.readouterr().out
    assert_right(tmp_path)


def test_another_number_of_bands(tmp_path, flags, capsys):
    write(tmp_path, ("", "", "", ""), red=1)
    assert "name 3 bands with --data.bands" in error_of([*flags, "--data.bands=[1, 2]"], capsys)
    main([*flags, "--data.bands=[1, 2, 3]"])
    assert_right(tmp_path)
    write(tmp_path, ("", ""), red=1)
    told("bands-too-few", error_of([*flags, f"--infer.store={tmp_path / 'two.zarr'}"], capsys))
