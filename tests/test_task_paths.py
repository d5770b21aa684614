"""Workers of a cluster that was there before were started elsewhere: every path that they are given is absolute."""

import dataclasses
from pathlib import Path

import pytest
from distributed import Client

from bundles import identity_bundle
from geochip import chipping, infer
from geochip.doctor import main as examine
from geochip.labels import index
from geochip.store import ChipStore, PredictionStore
from helpers import box, data_flags, position_coded, write_label, write_scene


def texts(value):
    """All texts and paths within what a task is given."""
    if isinstance(value, str | Path):
        yield str(value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from texts(getattr(value, field.name))
    elif isinstance(value, dict):
        yield from texts(tuple(value.items()))
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from texts(one)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Paths that tasks are given, by whether they are absolute; the run is begun in `tmp_path` with relative ones."""
    monkeypatch.chdir(tmp_path)
    found = {True: set(), False: set()}
    submit = Client.submit

    def noting(self, function, *arguments, **options):
        for text in texts(arguments):
            if text and (tmp_path / text).exists():
                found[Path(text).is_absolute()].add(text)
        return submit(self, function, *arguments, **options)

    monkeypatch.setattr(Client, "submit", noting)
    return found


@pytest.fixture
def flags(tmp_path, dask_address):
    return [
        "--run_dir=run", *data_flags("data", "train"), "--chips.size=24", "--chips.per_scene=4",
        "--train.val_split=null", "--infer.split=train", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


def test_of_chipping_with_an_index_and_an_area_of_interest(tmp_path, given, flags, monkeypatch):
    for scene_id in "12":
        transform = write_scene(tmp_path / "data", "train", scene_id)
        write_label(tmp_path / "data" / "train" / f"aoi_{scene_id}.geojson", [box(transform, 0, 0, 60, 70)])
    monkeypatch.setattr(index, "_SMALLEST", 1)
    monkeypatch.setattr(index, "LARGE", 1)
    aoi = "--chips.aoi={split}/aoi_{id}.geojson"
    chipping.main([*flags, aoi])
    assert given[False] == set()
    assert {Path(text).suffix for text in given[True]} >= {".tif", ".fgb", ".geojson", ".zarr"}
    labels = ChipStore(tmp_path / "run" / "chips.zarr").read("train", [0, 1, 2, 3])[1]
    assert (labels == 1).any()
    given[True].clear()
    chipping.main([*flags, aoi, "--verify"])
    assert given == {True: {str(tmp_path / "run" / "chips.zarr")}, False: set()}


def test_of_infer_and_its_geotiffs(tmp_path, given, flags):
    identity_bundle(tmp_path / "run" / "model", classes=2)
    write_scene(tmp_path / "data", "train", "1", position_coded(60, 70, bands=1).astype("uint16"))
    infer.main([*flags, "--infer.block=32", "--infer.window=16", "--data.bands=[1]"])
    assert given[False] == set()
    assert {Path(text).suffix for text in given[True]} >= {".tif", ".zarr", ""}
    assert PredictionStore(tmp_path / "run" / "predictions.zarr").complete
    assert [path.name for path in (tmp_path / "run" / "predictions").iterdir()] == ["1.tif"]


def test_of_the_doctor(tmp_path, given, flags, capsys):
    write_scene(tmp_path / "data", "train", "1")
    (tmp_path / "run").mkdir()
    examine([*flags, "--model.encoder_weights=null"])
    assert given[False] == set()
    assert str(tmp_path / "data" / "train" / "scene_1.tif") in given[True]
    assert f"{tmp_path / 'run'}: each sees the other's file" in capsys.readouterr().out
