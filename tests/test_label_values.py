"""What features' values mean: none at all, true and false, numbers, lists, dates."""

import json

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest

from geochip.chipping import main
from geochip.labels import LabelError, indexed_label
from helpers import UTM, box, data_flags, open_label, read_label, write_label, write_scene
from told import told

NAMES = ("background", "building", "road")
SIZE = {"height": 20, "width": 20, "classes": NAMES, "class_property": "kind"}


def label_of(path, *properties, suffix="geojson"):
    """A label with a box of 2 x 2 pixels in a row of its own for each feature's properties."""
    boxes = [box(UTM, 2 * number, 0, 2, 2) for number in range(len(properties))]
    plain = write_label(path / "plain.geojson", boxes, properties=list(properties))
    if suffix == "geojson":
        return plain
    made = path / f"a.{suffix}"
    table = gpd.read_file(plain)
    if suffix == "parquet":
        table.to_parquet(made)
    else:
        table.to_file(made)
    return made


def drawn(path, count, **rules):
    """The label value of each feature of `label_of`."""
    return read_label(path, **SIZE, **rules)[: 2 * count : 2, 0].tolist()


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "fgb", "parquet"])
@pytest.mark.parametrize("empty", [None, "", "  "])
def test_features_without_a_value(tmp_path, suffix, empty):
    path = label_of(tmp_path, {"kind": "building"}, {"kind": empty}, {"kind": "road"}, suffix=suffix)
    with pytest.raises(LabelError) as caught:
        drawn(path, 3)
    told("no value", str(caught.value))
    assert "feature 1 has no value of 'kind'" in str(caught.value)
    assert drawn(path, 3, no_value="ignore") == [1, 255, 2]
    assert drawn(path, 3, no_value="road") == [1, 2, 2]
    assert drawn(path, 3, no_value="background") == [1, 0, 2]


@pytest.mark.parametrize("how", [{"ignore": (None,)}, {"ignore": ("",)}, {"class_map": {None: "road", 1: "building"}}])
def test_null_among_values_means_features_without_one(tmp_path, how):
    path = label_of(tmp_path, {"kind": 1}, {"kind": None}, {})
    if "ignore" in how:
        how = {**how, "class_map": {1: "building"}}
    value = 255 if "ignore" in how else 2
    assert drawn(path, 3, **how) == [1, value, value]


def test_not_a_number_and_a_property_that_only_some_have(tmp_path):
    path = label_of(tmp_path, {"kind": 1.5}, {}, {"other": 3})
    how = {"class_map": {1.5: "road"}, "no_value": "ignore"}
    assert drawn(path, 3, **how) == [2, 255, 255]
    with open_label(path, **SIZE, **how) as label:
        assert label.unvalued == 2


def test_a_property_that_no_feature_has(tmp_path):
    path = label_of(tmp_path, {"sort": "building"})
    with pytest.raises(LabelError) as caught:
        drawn(path, 1)
    told("no property", str(caught.value))
    assert "it has sort: name one of them, or say with labels.no_value" in str(caught.value)
    assert drawn(path, 1, no_value="ignore") == [255]


def test_a_value_that_is_named_is_no_missing_one(tmp_path):
    path = label_of(tmp_path, {"kind": "None"}, {"kind": "nan"}, {"kind": None})
    assert drawn(path, 3, class_map={"None": "road", "nan": "building"}, no_value="ignore") == [2, 1, 255]


@pytest.mark.parametrize("true", [True, "True", "true"])
@pytest.mark.parametrize("third", [True, None])
def test_true_and_false(tmp_path, true, third):
    path = label_of(tmp_path, {"kind": True}, {"kind": False}, {"kind": third})
    false = {True: False, "True": "False", "true": "false"}[true]
    how = {"class_map": {true: "road", false: "building"}, "no_value": "ignore"}
    assert drawn(path, 3, **how) == [2, 1, 255 if third is None else 2]
    with pytest.raises(LabelError, match=r"feature 1 has kind = 'false', which is not in labels.class_map \(true\)"):
        drawn(path, 3, class_map={True: "road"})


def test_yes_without_quotes_is_true_for_yaml(tmp_path):
    path = label_of(tmp_path, {"kind": "yes"})
    with pytest.raises(
        LabelError, match=r"'yes', which is not .*; YAML takes it for true or false unless it stands in"
    ):
        drawn(path, 1, class_map={True: "road"})
    assert drawn(path, 1, class_map={"yes": "road"}) == [2]


@pytest.mark.parametrize("key", [1, 1.0, "1", "1.0"])
@pytest.mark.parametrize("values", [(1, 2), (1.0, 2.5), (1, None)])
def test_a_number_is_the_same_however_it_is_written(tmp_path, key, values):
    path = label_of(tmp_path, *({"kind": value} for value in values))
    how = {"class_map": {key: "road", 2: "building", "2.5": "building"}, "no_value": "ignore"}
    assert drawn(path, 2, **how) == [2, 255 if values[1] is None else 1]


def test_texts_are_compared_as_they_stand(tmp_path):
    path = label_of(tmp_path, {"kind": "1"}, {"kind": "01"}, {"kind": "1.0"})
    assert drawn(path, 3, class_map={"1": "road", "01": "building", "1.0": "road"}) == [2, 1, 2]
    with pytest.raises(LabelError, match=r"feature 1 has kind = '01', which is not in labels.class_map \(1, 1.0\)"):
        drawn(path, 3, class_map={"1": "road", "1.0": "road"})


@pytest.mark.parametrize("indexed", [False, True])
def test_lists_mappings_and_dates_have_a_text_of_their_own(tmp_path, indexed):
    for values, texts in (
        ((["a", "b"], ["c"]), ('["a", "b"]', '["c"]')),
        (([1, 2], [3]), ("[1, 2]", "[3]")),
        (({"a": 1}, {"b": [2]}), ('{ "a": 1 }', '{ "b": [ 2 ] }')),
        (("2020-01-31", "2021-02-28"), ("2020-01-31", "2021-02-28")),
        (("2020-01-31T10:30:00", "2021-02-28T00:00:00"), ("2020-01-31T10:30:00", "2021-02-28")),
        (("10:30:00", "11:00:00"), ("10:30:00", "11:00:00")),
    ):
        path = str(label_of(tmp_path, *({"kind": value} for value in values)))
        if indexed:
            path = indexed_label(path, tmp_path / "index", at_least=1)
        assert drawn(path, 2, class_map=dict(zip(texts, NAMES[1:], strict=True))) == [1, 2]
        # And it is the one that the message shows.
        with pytest.raises(LabelError) as caught:
            drawn(path, 2, class_map={texts[0]: "road"})
        assert f"feature 1 has kind = {texts[1]!r}" in str(caught.value)


def test_values_of_a_parquet_table(tmp_path):
    plain = label_of(tmp_path, {"kind": "x"}, {"kind": "y"}, {"kind": "z"})
    shapes = gpd.read_file(plain)[["geometry"]]
    for values, texts in (
        (pd.array([1, None, 3], "Int64"), ("1", None, "3")),
        (pd.Categorical(["a", None, "b"]), ("a", None, "b")),
        ([["p"], None, ["q", "r"]], ('["p"]', None, '["q", "r"]')),
        (pd.array([True, None, False], "boolean"), ("true", None, "false")),
        (
            pd.to_datetime(["2020-01-31", None, "2020-02-01T01:02:03"], format="mixed"),
            ("2020-01-31", None, "2020-02-01T01:02:03"),
        ),
        (np.array([1.0, np.nan, 2.5]), ("1", None, "2.5")),
    ):
        shapes.assign(kind=values).to_parquet(tmp_path / "a.parquet")
        class_map = {texts[0]: "building", texts[2]: "road"}
        assert drawn(tmp_path / "a.parquet", 3, class_map=class_map, no_value="ignore") == [1, 255, 2]


def test_chipping_says_how_many_and_follows(tmp_path, dask_address, capsys):
    write_scene(tmp_path / "data", "train", "1", transform=UTM)
    boxes = [box(UTM, 0, 0, 10, 10), box(UTM, 20, 20, 10, 10)]
    label = tmp_path / "data" / "train" / "label_1.geojson"
    write_label(label, boxes, properties=[{"kind": "building"}, {"kind": None}])
    flags = [
        *data_flags(tmp_path / "data", "train"), "--chips.size=30", "--chips.method=grid", "--labels.class_property=kind",
        "--cluster.kind=address", f"--cluster.address={dask_address}", f"--run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    main([*flags, "--labels.no_value=ignore"])
    assert "without a value of 'kind': their pixels are 255, as the run file says" in capsys.readouterr().out
    main([*flags, "--labels.no_value=building", f"--run_dir={tmp_path / 'other'}"])
    assert "without a value of 'kind': they are 'building', as the run file says" in capsys.readouterr().out


def test_stores_of_earlier_versions_are_gone_on_with(tmp_path, dask_address):
    """Their journals know nothing of the keys that there are now."""
    write_scene(tmp_path / "data", "train", "1", transform=UTM)
    flags = [
        *data_flags(tmp_path / "data", "train"), "--chips.size=30", "--cluster.kind=address",
        f"--cluster.address={dask_address}", f"--run_dir={tmp_path}",
    ]  # fmt: skip
    main(flags)
    journal = next(path for path in tmp_path.iterdir() if path.name.endswith("journal.jsonl") or "journal" in path.name)
    settings = json.loads(journal.read_text().splitlines()[0])["settings"]
    assert not {"labels.layer", "labels.no_value", "chips.aoi_layer", "split.manifest_layer"} & set(settings)
