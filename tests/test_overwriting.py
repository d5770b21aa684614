"""Nothing of the user's is overwritten, and nothing is written outside of where it was asked for."""

import os
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from bundles import MEAN, STD, identity_bundle
from geochip.chipping import main as chipping
from geochip.errors import run_command
from geochip.evaluate import main as evaluate
from geochip.infer import main as infer
from geochip.infer_plan import outputs_of, plan_inference
from geochip.run_file import parse_run_config
from geochip.scenes import Catalogue, refuse_overwriting
from helpers import UTM, box, position_coded, tree_hash, write_image, write_label
from told import told


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two images `{id}.tif` with their labels in data/test, a model of them, and the place for a run."""
    monkeypatch.chdir(tmp_path)
    for scene_id in ("1", "2"):
        image = (MEAN + STD * (position_coded(30, 40, 1) % 2)).astype("uint16")
        write_image(tmp_path / "data/test" / f"{scene_id}.tif", image)
        write_label(tmp_path / "data/test" / f"{scene_id}.geojson", [box(UTM, 5, 5, 9, 9)])
    identity_bundle(tmp_path / "model", class_names=("background", "building"))
    return tmp_path


@pytest.fixture
def flags(place, dask_address):
    return [
        f"--data.root={place / 'data'}", "--data.image={split}/{id}.tif", "--data.label={split}/{id}.geojson",
        "--data.splits=[test]", "--train.split=test", "--train.val_split=null", "--infer.split=test",
        f"--model.bundle={place / 'model'}", "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


def refused(main, arguments, place, capsys):
    """The error of a command that must change nothing at all."""
    before = tree_hash(place)
    assert run_command(main, list(map(str, arguments))) == 2
    assert tree_hash(place) == before
    return capsys.readouterr().err


@pytest.mark.parametrize("scene_id", ["../../x", "/tmp/x", "a/b", "..", "a\\b", "a\nb", "x" * 252, "a\tb"])
def test_an_id_of_a_table_is_a_plain_name(place, flags, capsys, scene_id):
    pd.DataFrame({"scene_id": [scene_id], "image": ["test/1.tif"], "split": ["test"]}).to_csv("m.csv", index=False)
    flags = [*flags, f"--run_dir={place / 'run'}", "--split.by=manifest", "--split.manifest=m.csv"]
    for main in (infer, chipping):
        told("id-of-manifest", refused(main, flags, place, capsys))
    # As it says: paths into the column image, a plain name into scene_id.
    pd.DataFrame({"scene_id": ["plain"], "image": ["test/1.tif"], "split": ["test"]}).to_csv("m.csv", index=False)
    infer(flags)
    assert sorted(path.name for path in (place / "run/predictions").iterdir()) == ["plain.tif"]


def test_absolute_ids_do_not_replace_the_images(place, flags, capsys):
    ids = [str(place / "data/test" / name) for name in "12"]
    pd.DataFrame({"scene_id": ids, "split": ["test"] * 2}).to_csv("m.csv", index=False)
    more = ["--run_dir=run", "--data.image={id}.tif", "--split.by=manifest", "--split.manifest=m.csv"]
    told("id-of-manifest", refused(infer, [*flags, *more], place, capsys))


def same_directory(place):
    return ["--run_dir=run", f"--infer.store={place / 'data/test.zarr'}"]


def linked_directory(place):
    (place / "run").mkdir()
    (place / "run/predictions").symlink_to(place / "data/test")
    return ["--run_dir=run"]


def linked_run_dir(place):
    (place / "elsewhere").mkdir()
    (place / "elsewhere/predictions").symlink_to("../data/test", target_is_directory=True)
    (place / "run").symlink_to("elsewhere")
    return ["--run_dir=run"]


def linked_file(place):
    (place / "run/predictions").mkdir(parents=True)
    (place / "run/predictions/2.tif").symlink_to(place / "data/test/2.tif")
    return ["--run_dir=run"]


def hard_link(place):
    (place / "run/predictions").mkdir(parents=True)
    os.link(place / "data/test/2.tif", place / "run/predictions/2.tif")
    return ["--run_dir=run"]


@pytest.mark.parametrize("make", [same_directory, linked_directory, linked_run_dir, linked_file, hard_link])
def test_geotiffs_are_not_written_over_images(place, flags, capsys, make):
    flags = [*flags, *make(place)]
    told("over-input", refused(infer, flags, place, capsys))
    told("over-input", refused(infer, [*flags, "--dry_run"], place, capsys))
    before = tree_hash(place / "data")
    # Either remedy.
    infer([*flags, f"--infer.store={place / 'out/predictions.zarr'}"])
    assert (place / "out/predictions/2.tif").is_file()
    infer([*flags, "--run_dir=other", "--infer.store=null"])
    assert (place / "other/predictions/2.tif").is_file()
    assert tree_hash(place / "data") == before


def test_nor_beside_them_whatever_their_names(place, flags, capsys):
    for scene_id in "12":
        (place / f"data/test/{scene_id}.tif").rename(place / f"data/test/scene_{scene_id}.tif")
    flags = [*flags, "--data.image={split}/scene_{id}.tif"]
    told("beside-input", refused(infer, [*flags, *linked_directory(place)], place, capsys))
    told("beside-input", refused(infer, [*flags, *same_directory(place)], place, capsys))
    assert "data.root" in refused(infer, [*flags, "--run_dir=new", "--infer.store=data.zarr"], place, capsys)
    # Without GeoTIFFs nothing goes there.
    infer([*flags, "--run_dir=new", "--infer.store=data.zarr", "--infer.cog=false"])
    assert not list((place / "data").glob("*.tif"))


def test_a_file_of_the_command_line_is_an_input(place, flags, capsys):
    infer([*flags, "--run_dir=run"])
    stranger = shutil.copy(place / "data/test/1.tif", place / "run/predictions/3.tif")
    told("over-input", refused(infer, [*flags, "--run_dir=run", stranger], place, capsys))


def test_predictions_do_not_become_labels(place, flags, capsys):
    flags = [*flags, "--run_dir=run", "--data.label=../run/predictions/{id}.tif"]
    told("over-input", refused(infer, flags, place, capsys))
    infer([*flags, "--run_dir=other"])


def test_the_tables_beside_the_chip_store(place, flags, capsys):
    for name, key in (("scenes.parquet", "split.manifest"), ("chips.parquet", "chips.aoi")):
        table = pd.DataFrame({"scene_id": ["1", "2"], "split": ["test"] * 2})
        table.to_parquet(place / name)
        more = {
            "split.manifest": ["--split.by=manifest", f"--split.manifest={name}"],
            "chips.aoi": [f"--chips.aoi=../{name}"],
        }[key]
        err = refused(chipping, [*flags, "--run_dir=.", "--chips.size=16", *more], place, capsys)
        told("over-input", err)
        assert f"which {key} names" in err
    more = ["--split.by=manifest", "--split.manifest=scenes.parquet", "--chips.size=16"]
    chipping([*flags, "--run_dir=run", *more])
    assert list(pd.read_parquet("scenes.parquet").columns) == ["scene_id", "split"]


def test_labels_in_a_directory_that_chipping_removes(place, flags, capsys):
    labels = place / "data/town.labels"
    labels.mkdir()
    for scene_id in "12":
        (place / f"data/test/{scene_id}.geojson").rename(labels / f"{scene_id}.geojson")
    flags = [*flags, "--chips.size=16", "--data.label=town.labels/{id}.geojson"]
    err = refused(chipping, [*flags, "--run_dir=run", "--chips.store=data/town"], place, capsys)
    assert "is rewritten and removed as a whole, and" in err
    chipping([*flags, "--run_dir=run", "--chips.store=data/town2"])
    assert len(list(labels.iterdir())) == 2


def test_other_files_in_the_directory_of_indexed_labels_stay(place, flags):
    kept = place / "run/chips.zarr.labels/notes.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    (kept.parent / "old.0123456789abcdef.fgb").write_text("left by a killed run")
    chipping([*flags, "--run_dir=run", "--chips.size=16"])
    assert [path.name for path in kept.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("main", "name", "key"),
    [(chipping, "chips.zarr.creating", "chips.store"), (infer, "predictions.zarr.creating", "infer.store"),
     (chipping, "chips.zarr.labels", "chips.store")],
)  # fmt: skip
def test_a_link_under_a_name_of_geochips_own_is_not_followed(place, flags, capsys, main, name, key):
    (place / "run").mkdir()
    (place / "mine").mkdir()
    (place / "mine/file").write_text("mine")
    (place / "run" / name).symlink_to(place / "mine")
    assert run_command(main, [*flags, "--run_dir=run", "--chips.size=16"]) == 2
    err = capsys.readouterr().err
    told("foreign-directory", err)
    assert f"error: {key}: " in err
    assert [path.name for path in (place / "mine").iterdir()] == ["file"]
    (place / "run" / name).unlink()
    main([*flags, "--run_dir=run", "--chips.size=16"])
    assert [path.name for path in (place / "mine").iterdir()] == ["file"]


def test_a_directory_where_a_file_is_to_be_written(place, flags, capsys):
    flags = [*flags, "--run_dir=run", "--chips.size=16"]
    for main, name in ((chipping, "chips.parquet"), (chipping, "scenes.parquet"), (infer, "predictions/1.tif")):
        (place / "run" / name).mkdir(parents=True)
        told("output-is-directory", refused(main, flags, place, capsys))
        (place / "run" / name).rmdir()
    (place / "run/predictions").rmdir()
    (place / "run/predictions").write_text("a file")
    assert "is no directory, and files would be written into" in refused(infer, flags, place, capsys)
    (place / "run/predictions").unlink()
    infer(flags)
    (place / "run/eval.json").mkdir()
    told("output-is-directory", refused(evaluate, flags, place, capsys))
    (place / "run/eval.json").rmdir()
    evaluate(flags)


def test_scores_are_not_written_over_a_label(place, flags, capsys):
    infer([*flags, "--run_dir=run"])
    (place / "data/test/1.geojson").rename(place / "run/eval.json")
    (place / "data/test/1.json").symlink_to(place / "run/eval.json")
    flags = [*flags, "--run_dir=run", "--data.label={split}/{id}.json"]
    told("over-input", refused(evaluate, flags, place, capsys))
    evaluate([*flags, "--run_dir=other", "--infer.store=run/predictions.zarr"])


def test_a_picture_of_chips_is_no_image(place, flags, capsys):
    flags = [*flags, "--run_dir=data/test", "--chips.size=16"]
    chipping([*flags, "--chips.store=data/test/chips.zarr"])
    told("would-be-image", refused(chipping, [*flags, "--data.image={split}/{id}.png", "--preview"], place, capsys))
    chipping([*flags, "--preview"])
    assert (place / "data/test/chips.png").is_file()


def test_a_run_among_the_data_is_fine_where_nothing_meets(place, flags):
    before = {path: path.read_bytes() for path in (place / "data").rglob("*.tif")}
    flags = [*flags, "--run_dir=data", "--chips.size=16"]
    for main in (chipping, infer, evaluate, infer):
        main(flags)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_place_that_is_mounted_twice_is_told_by_what_lies_there(place, flags, monkeypatch):
    # A bind mount needs root; what it looks like is a directory of one identity under two paths that are no links.
    from geochip.scenes import guard

    config = parse_run_config([*flags, "--run_dir=run"], command="infer", description="")[0]
    plan = plan_inference(config, ())
    outputs = outputs_of(config, Catalogue(scenes=plan.scenes))
    moved = replace(outputs, directory=place / "mounted", files={place / "mounted/1.tif": "a GeoTIFF"})
    refuse_overwriting(config, Catalogue(scenes=plan.scenes), moved)
    known = guard._identity
    monkeypatch.setattr(
        guard, "_identity", lambda path: known(str(path).replace(str(place / "mounted"), str(place / "data/test")))
    )
    with pytest.raises(Exception, match="would be written over"):
        refuse_overwriting(config, Catalogue(scenes=plan.scenes), moved)
