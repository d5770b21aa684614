import ast
import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import xarray as xr

from geochip.store import ChipStore

PAGE = Path(__file__).parents[1] / "docs" / "chips.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def block(varied_run, tmp_path, monkeypatch):
    """Runs one block of the page beside a run_dir called `run`; returns the names that it has made."""
    (tmp_path / "run").symlink_to(varied_run)
    monkeypatch.chdir(tmp_path)

    def execute(number):
        names = {}
        exec(compile(BLOCKS[number], f"{PAGE}, block {number + 1}", "exec"), names)
        return names

    return execute


def test_the_page_has_as_many_blocks_as_are_tested():
    assert len(BLOCKS) == 6


def test_see_what_is_there(block, varied_run, capsys):
    names = block(0)
    store = ChipStore(varied_run / "chips.zarr")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "train: 60 of 100 chips hold pixels", "val: 40 of 40 chips hold pixels",
    ]  # fmt: skip
    for split, line in zip(("train", "val"), lines, strict=True):
        _, label = store.read(split, store.written(split))
        balance = ast.literal_eval(line.split("; ")[1])
        for index, name in enumerate(("background", "building", "main road")):
            assert balance[name] == pytest.approx((label == index).sum() / (label != 255).sum(), abs=1e-3)
    assert names["statistics"]["split"] == "train"


def test_choose_a_chip_and_take_it_to_a_gis(block, varied_run, tmp_path, capsys):
    names = block(1)
    store = ChipStore(varied_run / "chips.zarr")
    at = names["at"]
    row = store.table("train").iloc[at]
    assert store.arrays("train", "class_fraction")["class_fraction"][at, 1] > 0.3
    assert f"chip {at} is from scene {row.scene_id}, " in capsys.readouterr().out
    (image,), (label,) = store.read("train", np.array([at]))
    with rasterio.open(tmp_path / "image.tif") as chip, rasterio.open(tmp_path / "label.tif") as classes:
        np.testing.assert_array_equal(chip.read(), image)
        np.testing.assert_array_equal(classes.read(1), label)
        assert classes.nodata == 255
        # The pixels lie on the ground where the scene's own do.
        with rasterio.open(varied_run.parent / "data" / "train" / f"scene_{row.scene_id}.tif") as scene:
            assert chip.crs == classes.crs == scene.crs
            window = scene.window(*chip.bounds)
            assert window.row_off == pytest.approx(row.row_off, abs=1e-6)
            assert window.col_off == pytest.approx(row.col_off, abs=1e-6)
            np.testing.assert_array_equal(scene.read(window=window.round()), image)


def test_compute_over_all_chips(block, varied_run):
    names = block(2)
    store = ChipStore(varied_run / "chips.zarr")
    assert names["train"].image.chunks[0][0] > 1
    np.testing.assert_allclose(names["mean"], store.attrs["statistics"]["mean"])
    assert names["brightest"].sizes == {"chip": 60}
    assert float(names["brightest"].max()) == max(store.attrs["statistics"]["max"])


def test_ask_where(block, capsys):
    names = block(3)
    assert set(names["missing"].scene_id) == {"c", "d"}
    assert len(names["chips"]) == 100
    # The first chip is of scene a, whose chips lie within a few metres; no other scene is near.
    assert set(names["near"].scene_id) == {"a"}
    assert len(names["near"]) == 20
    assert len(names["shared"]) == 0
    assert "20 chips within 500 m of " in capsys.readouterr().out


def test_take_batches(block, varied_run):
    names = block(4)
    assert names["batches"] == 2
    assert names["image_bchw"].shape == (20, 3, 24, 24)
    store = ChipStore(varied_run / "chips.zarr")
    image, label = store.read("train", np.arange(80, 100))
    np.testing.assert_array_equal(names["label_bhw"], label)
    statistics = store.attrs["statistics"]
    expected = (image[7, 2] - statistics["mean"][2]) / statistics["std"][2]
    np.testing.assert_allclose(names["image_bchw"][7, 2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")  # as the page says
def test_make_a_store_of_some_chips(block, varied_run, tmp_path):
    block(5)
    chips = gpd.read_parquet(varied_run / "chips.parquet")
    whole = chips[(chips.split == "train") & (chips.valid_fraction == 1)]
    assert 40 <= len(whole) < 60
    image, _ = ChipStore(varied_run / "chips.zarr").read("train", whole.position.to_numpy())
    with xr.open_zarr(tmp_path / "whole-chips.zarr") as some:
        assert some.scene_id.values.tolist() == whole.scene_id.tolist()
        np.testing.assert_array_equal(some.image, image)
