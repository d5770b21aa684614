"""Tables of scenes that are damaged, or hold what no table of scenes holds."""

import os
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geochip.config import DataConfig, RunConfig, SplitConfig
from geochip.errors import InputError
from geochip.scenes import find_scenes
from helpers import FLAT_IMAGE, FLAT_LABEL, ids_by_split, position_coded, write_flat, write_image, write_label
from told import told


@pytest.fixture
def config(tmp_path):
    """A configuration with a table of this name."""
    write_flat(tmp_path / "data", "1")
    write_flat(tmp_path / "data", "2", x=100)

    def make(name, column="split"):
        data = DataConfig(
            root=str(tmp_path / "data"), image=FLAT_IMAGE, label=FLAT_LABEL, splits=("train", "val", "test")
        )
        return RunConfig(data=data, split=SplitConfig(by="manifest", manifest=str(tmp_path / name), column=column))

    return make


def refused(config, *, splits=("train",)):
    with pytest.raises(InputError) as error:
        find_scenes(config, splits)
    assert str(error.value).startswith("split.")
    return str(error.value)


GOOD = {"scene_id": ["1", "2"], "split": ["train", "train"]}


def test_only_a_regular_file_is_opened(tmp_path, config):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "directory.parquet").mkdir()
    (tmp_path / "link.csv").symlink_to("link.csv")
    assert "(it is a named pipe, not a regular file); give the path of the table" in refused(config("pipe.csv"))
    assert "(it is a directory, not a regular file)" in refused(config("directory.parquet"))
    assert "could not be read (" in refused(config("link.csv"))


CONTENTS = {
    "cut.parquet": lambda data: data[: len(data) // 2],
    "end.parquet": lambda data: data[:-9] + b"\0" * 9,
    "middle.parquet": lambda data: data[:40] + bytes(255 - byte for byte in data[40:140]) + data[140:],
    "empty.parquet": lambda data: b"",
    "magic.parquet": lambda data: b"PAR1" + b"\xff" * 50 + b"PAR1",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_damaged_parquet(tmp_path, config, name):
    table = pd.DataFrame({"scene_id": [str(n) for n in range(500)], "split": ["train"] * 500})
    table.to_parquet(tmp_path / name)
    (tmp_path / name).write_bytes(CONTENTS[name]((tmp_path / name).read_bytes()))
    assert "could not be read (" in refused(config(name))


TEXTS = {
    "latin.csv": "scene_id,split\nGr\u00f6\u00dfe,train\n".encode("latin-1"),
    "wide.csv": "scene_id,split\n1,train\n".encode("utf-16"),
    "nothing.csv": b"",
    "blank.csv": b"\n\n\n",
    "ragged.csv": b"scene_id,split\n1,train\n2,train,x,y,z\n",
    "shifted.csv": b"scene_id,split\n1,train,x\n2,train,y\n",
    "quote.csv": b'scene_id,split\n"1,train\n',
    "zeros.csv": b"\0" * 64,
    "binary.csv": bytes(range(256)) * 4,
    "binary.gpkg": bytes(range(256)) * 4,
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_that_is_no_table(tmp_path, config, name):
    (tmp_path / name).write_bytes(TEXTS[name])
    refused(config(name))


def test_a_nul_in_a_cell(tmp_path, config):
    for column in ("scene_id", "image", "label"):
        table = {**GOOD, "image": ["images/scene_1.tif", "images/scene_2.tif"], "label": ["", ""]}
        table[column] = ["a\0b", "c"]
        pd.DataFrame(table).to_parquet(tmp_path / "m.parquet")
        err = refused(config("m.parquet"))
        assert "in row 1" in err
        assert "control character" in err or "NUL" in err


@pytest.mark.parametrize("cell", [["1"], {"a": 1}, b"1", np.array([1, 2])], ids=["list", "structure", "bytes", "array"])
def test_a_cell_that_is_no_name(tmp_path, config, cell):
    pq.write_table(pa.table({"scene_id": [cell, cell], "split": ["train"] * 2}), tmp_path / "m.parquet")
    told("manifest-cell", refused(config("m.parquet")))
    pq.write_table(pa.table({"scene_id": ["1", "2"], "split": [cell, cell]}), tmp_path / "n.parquet")
    told("manifest-cell", refused(config("n.parquet")))


@pytest.mark.parametrize("values", [[1, 2], [1.0, 2.0], pd.Categorical(["1", "2"]), pd.array([1, 2], "Int64")])
def test_numbers_and_categories_are_names(tmp_path, config, values):
    pd.DataFrame({"scene_id": values, "split": pd.Categorical(["train", "train"])}).to_parquet(tmp_path / "m.parquet")
    assert ids_by_split(find_scenes(config("m.parquet"), ["train"]))["train"] == ["1", "2"]


def test_columns_of_one_name(tmp_path, config):
    (tmp_path / "m.csv").write_text("scene_id,split,split\n1,train,val\n")
    assert "has several columns 'split'; rename all but the one that counts" in refused(config("m.csv"))
    table = pa.Table.from_arrays(
        [pa.array(["1"]), pa.array(["2"]), pa.array(["train"])], ["scene_id", "scene_id", "split"]
    )
    pq.write_table(table, tmp_path / "m.parquet")
    assert "has several columns 'scene_id'" in refused(config("m.parquet"))


def test_only_the_columns_that_count_are_read(tmp_path, config, monkeypatch):
    (tmp_path / "m.csv").write_text(' scene_id , split ,notes\n1, train ,"x\ny"\n2,train,z\n')
    assert ids_by_split(find_scenes(config("m.csv"), ["train"]))["train"] == ["1", "2"]
    wide = pd.DataFrame({**GOOD, **{f"c{n}": [n, n] for n in range(300)}})
    for name in ("wide.csv", "wide.parquet"):
        wide.to_csv(tmp_path / name, index=False) if name.endswith("csv") else wide.to_parquet(tmp_path / name)
        assert ids_by_split(find_scenes(config(name), ["train"]))["train"] == ["1", "2"]
    from geochip.scenes import manifest

    assert set(manifest._table(str(tmp_path / "wide.csv"), {"scene_id", "split"}).columns) == {"scene_id", "split"}


def test_a_column_is_found_however_its_umlauts_are_composed(tmp_path, config):
    (tmp_path / "m.csv").write_text("scene_id,Gro\u0308\u00dfe\n1,train\n2,train\n")
    found = find_scenes(config("m.csv", column="Gr\u00f6\u00dfe"), ["train"])
    assert ids_by_split(found)["train"] == ["1", "2"]


def test_ids_that_look_alike_are_one(tmp_path, config):
    (tmp_path / "m.csv").write_text("scene_id,image,split\na\u0308,x.tif,train\n\u00e4,y.tif,train\n")
    assert "lists scene '\u00e4' of train twice" in refused(config("m.csv"))


def test_images_of_one_name(tmp_path, config):
    root = tmp_path / "data"
    for number in (1, 2, 3):
        write_image(root / f"tile_{number}/image.tif", position_coded(4, 5))
        write_label(root / f"tile_{number}/label.geojson", [])
    rows = [(f"tile_{n}/image.tif", f"tile_{n}/label.geojson", "train" if n < 3 else "val") for n in (1, 2, 3)]
    table = pd.DataFrame(rows, columns=["image", "label", "split"])
    table.to_csv(tmp_path / "m.csv", index=False)
    err = refused(config("m.csv"))
    told("same-stem", err)
    assert re.search(r"images of one name, scene 'image' of train, in row 1 \(train\) and in row 2 \(train\)", err)
    # As it says.
    table.insert(0, "scene_id", ["a", "b", "c"])
    table.to_csv(tmp_path / "m.csv", index=False)
    assert ids_by_split(find_scenes(config("m.csv"), ["train", "val"])) == {
        "train": ["a", "b"],
        "val": ["c"],
        "test": [],
    }


def test_one_image_twice_is_a_row_too_many(tmp_path, config):
    (tmp_path / "m.csv").write_text("image,split\nimages/scene_1.tif,train\nimages/scene_1.tif,train\n")
    assert "lists image " in (err := refused(config("m.csv")))
    assert err.endswith("a scene belongs to one split, once: remove a row")


def test_two_images_under_one_id(tmp_path, config):
    (tmp_path / "m.csv").write_text("scene_id,image,split\n1,a.tif,train\n1,b.tif,train\n")
    assert "give one of them another scene_id, with the path of its image" in refused(config("m.csv"))


def test_a_name_that_no_file_can_have_is_one_bad_scene(tmp_path, config):
    (tmp_path / "m.csv").write_text(f"scene_id,image,split\n1,images/scene_1.tif,train\n2,{'x' * 300}.tif,train\n")
    assert "row 2: names in a path have at most 255 bytes" in refused(config("m.csv"))
    # With the template's letters it is too long.
    (tmp_path / "m.csv").write_text(f"scene_id,split\n1,train\n{'x' * 249},train\n")
    catalogue = find_scenes(config("m.csv"), ["train"], need_labels=False)
    assert [scene.scene_id for scene in catalogue.scenes] == ["1"]
    assert "names in a path have at most 255 bytes" in catalogue.bad[0].reason
