"""The table of scenes that tells later commands the division, when it is damaged: told by name, and mended as it is said."""

import io
import json
import os

import geopandas as gpd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from geopandas.testing import assert_geodataframe_equal

from geochip.chipping import main as chipping
from geochip.errors import InputError
from geochip.run_file import parse_command
from geochip.scenes import find_scenes
from geochip.store import ChipStore
from helpers import FLAT_IMAGE, FLAT_LABEL, write_flat
from told import told


@pytest.fixture(scope="module")
def made(tmp_path_factory, dask_address):
    """Six scenes in squares of their own, and their chips."""
    root = tmp_path_factory.mktemp("recorded")
    for number in range(6):
        write_flat(root / "data", number, x=100 * number)
    chipping(flags_of(root, dask_address))
    return root


def flags_of(root, address):
    return [
        f"--run_dir={root / 'run'}", f"--data.root={root / 'data'}", f"--data.image={FLAT_IMAGE}",
        f"--data.label={FLAT_LABEL}", '--data.splits=["train", "val"]', "--split.by=blocks", "--split.block=100",
        "--split.buffer=0", "--chips.size=4", "--chips.per_scene=2", "--cluster.kind=address",
        f"--cluster.address={address}",
    ]  # fmt: skip


def asked(made):
    """The same settings for `find_scenes`."""
    return parse_command(flags_of(made, "tcp://127.0.0.1:1"), command="infer", description="").config


@pytest.fixture
def table(made):
    """The table of scenes, put back afterwards."""
    path = made / "run" / "scenes.parquet"
    whole = path.read_bytes()
    yield path
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(whole)


def altered(path, change):
    """Write a table again with something changed, as geochip writes it otherwise."""
    pq.write_table(change(pq.read_table(path)), path)


def _with(name, value):
    def change(table):
        at = table.column_names.index(name)
        return table.set_column(at, name, [[value] * len(table)])

    return change


def _attributes(text):
    return lambda table: table.replace_schema_metadata({b"PANDAS_ATTRS": text})


def _twice(table):
    at = table.column_names.index("split")
    others = pa.array(["val" if one == "train" else "train" for one in table["split"].to_pylist()], pa.large_string())
    return pa.concat_tables(
        [table, table.set_column(at, table.schema.field(at).with_type(pa.large_string()), others)],
        promote_options="permissive",
    )


DAMAGE = {
    "a column lost": (lambda table: table.drop_columns(["status"]), "status"),
    "numbers for text": (_with("split", 7), "Expected `str`, got `int`"),
    "nothing for text": (_with("scene_id", None), "Expected `str`, got `null`"),
    "an unknown status": (_with("status", "fine"), "Invalid enum value 'fine'"),
    "a scene of two splits": (_twice, "is of several splits, and no squares divide it"),
    "attributes that are no JSON": (_attributes(b"\xff"), "it is not UTF-8"),
    "attributes that are a list": (_attributes(b"[]"), "Expected `object`, got `array`"),
    "squares of other splits": (
        _attributes(
            json.dumps(
                {"squares": {"crs": "EPSG:32611", "side": 9, "home": "x", "apart": 0, "owners": {"x": [[0, 0]]}}}
            ).encode()
        ),
        "which has no squares",
    ),
    "squares that are a text": (_attributes(b'{"squares": "x"}'), "Expected `object | null`, got `str`"),
}


@pytest.mark.parametrize(("change", "fault"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_table_of_other_content_is_told(made, table, change, fault):
    altered(table, change)
    with pytest.raises(InputError) as caught:
        find_scenes(asked(made))
    told("blocks-record-damaged", str(caught.value))
    assert fault in str(caught.value)


@pytest.mark.parametrize("harm", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * len(data)])
def test_bytes_that_are_no_table_are_told(made, table, harm):
    table.write_bytes(harm(table.read_bytes()))
    with pytest.raises(InputError) as caught:
        find_scenes(asked(made))
    told("blocks-record-damaged", str(caught.value))


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir])
def test_something_else_in_its_place_is_told_and_keeps_nobody_waiting(made, table, put):
    table.unlink()
    put(table)
    with pytest.raises(InputError) as caught:
        find_scenes(asked(made))
    told("blocks-record-unreadable", str(caught.value))


def test_after_it_is_removed_chipping_makes_the_same_again(made, table, dask_address, capsys):
    before, chips = find_scenes(asked(made)).order, ChipStore(made / "run" / "chips.zarr").attrs
    rows = gpd.read_parquet(io.BytesIO(table.read_bytes()))
    table.unlink()
    chipping(flags_of(made, dask_address))
    assert_geodataframe_equal(gpd.read_parquet(table), rows)
    assert find_scenes(asked(made)).order == before
    assert ChipStore(made / "run" / "chips.zarr").attrs == chips
