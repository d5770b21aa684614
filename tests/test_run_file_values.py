"""Values of the run file: of which types and sizes they are, from YAML and from flags."""

import dataclasses
import types
import typing

import pytest
import yaml

from geochip.config import RunConfig, check_batch, fits
from geochip.errors import InputError
from geochip.run_file import config_keys, parse_run_config, read_run_file
from told import told


def parse(*argv):
    return parse_run_config([str(word) for word in argv], command="chipping", description="test")[0]


def error_of(*argv):
    with pytest.raises(InputError) as caught:
        parse(*argv)
    return str(caught.value)


def written(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def with_value(tmp_path, key, value):
    """A run file in which one key has a value."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return written(tmp_path, yaml.safe_dump(value))


def type_of(key):
    kind = RunConfig
    for name in key.split("."):
        kind = next(field.type for field in dataclasses.fields(kind) if field.name == name)
    return kind


def takes_null(key):
    """From the declaration alone."""
    return isinstance(type_of(key), types.UnionType) and type(None) in typing.get_args(type_of(key))


@pytest.mark.parametrize("key", config_keys())
def test_a_key_is_null_only_where_it_may_be(tmp_path, key):
    file = with_value(tmp_path, key, None)
    if takes_null(key):
        read_run_file(str(file))
        return
    with pytest.raises(InputError) as caught:
        read_run_file(str(file))
    assert str(caught.value).startswith(f"{key}: null is not allowed: must be ")
    told("null", str(caught.value))


@pytest.mark.parametrize("key", ["train.augment", "chips.aoi_within", "infer.blend", "chips.size", "data.classes", "run_dir", "labels.ignore"])  # fmt: skip
def test_a_flag_is_null_only_where_its_key_may_be(key):
    text = error_of(f"--{key}=null") if key != "run_dir" else error_of("--run_dir=")
    assert text.startswith(f"{key}: ")
    assert "is not allowed: must" in text


def test_what_is_left_out_has_the_default_that_the_message_names(tmp_path):
    text = error_of(f"--config={with_value(tmp_path, 'chips.size', None)}")
    assert text == "chips.size: null is not allowed: must be a whole number; leave the key out for its default, 300"
    assert parse(f"--config={with_value(tmp_path, 'chips.per_scene', 7)}").chips.size == 300


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("chips.size", True, "chips.size: true is not allowed: must be a whole number"),
        ("chips.size", 3.0, "chips.size: 3.0 is not allowed: must be a whole number"),
        ("chips.size", "3", "chips.size: '3' is not allowed: must be a whole number"),
        ("chips.min_valid", False, "chips.min_valid: false is not allowed: must be a number"),
        ("chips.min_valid", float("nan"), "chips.min_valid: nan is not allowed: must be a number; numbers are finite"),
        ("train.lr", float("-inf"), "train.lr: -inf is not allowed: must be a number; numbers are finite"),
        ("train.augment", 1, "train.augment: 1 is not allowed: must be true or false"),
        ("train.augment", "yes", "train.augment: 'yes' is not allowed: must be true or false"),
        ("data.root", ["a"], "data.root: ['a'] is not allowed: must be text"),
        ("data.root", 5, "data.root: 5 is not allowed: must be text; put it in quotes"),
        ("infer.blend", ["hann"], "infer.blend: ['hann'] is not allowed: must be one of 'hann', 'average'"),
        ("data.bands", [1, None], "data.bands: [1, None] is not allowed: must be a list of whole numbers or null"),
        ("data.bands", [1, True], "data.bands: [1, True] is not allowed: must be a list of whole numbers or null"),
        ("data.classes", ["a", 1], "data.classes: ['a', 1] is not allowed: must be a list of names; put names in quotes"),
        ("data.classes", "ab", "data.classes: 'ab' is not allowed: must be a list of names"),
        ("chips.size_range", [1, 2, 3], "chips.size_range: [1, 2, 3] is not allowed: must be a list of two whole numbers or null"),
        ("labels.class_map", {"a": None}, "labels.class_map: {'a': None} is not allowed: must be a mapping such as {value: name} or null"),
        ("data.splits", [None], "data.splits: [None] is not allowed: must be a list of names"),
        ("split.fractions", {"train": None}, "split.fractions: {'train': None} is not allowed: must be a mapping such as {name: number} or null"),
        ("train.seed", 10**30, f"train.seed: {10**30} is not allowed: must be a whole number; numbers have at most 18 digits"),
        ("data.root", "a\0b", "data.root: 'a\\x00b' is not allowed: must be text; a text must not hold a NUL character"),
        ("chips", [], "chips: [] is not allowed: must be a section with the keys size,"),
        ("cluster.cpu", None, "cluster.cpu: null is not allowed: must be a section with the keys profile,"),
    ],
)  # fmt: skip
def test_types_are_strict(tmp_path, key, value, message):
    text = error_of(f"--config={with_value(tmp_path, key, value)}")
    assert text.startswith(message)
    assert "\n" not in text
    told("type", text)


def test_every_wrong_value_is_told_at_once(tmp_path):
    file = written(tmp_path, "chips: {size: , seed: x}\ntrain: {augment: }\nfoo: 1\n")
    text = error_of(f"--config={file}")
    assert [line.split(":")[0] for line in text.splitlines()] == ["foo", "chips.size", "chips.seed", "train.augment"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--chips.size=true", "chips.size: 'true' is not allowed: must be a whole number"),
        ("--chips.size=1e3", "chips.size: '1e3' is not allowed: must be a whole number"),
        ("--chips.min_valid=.nan", "chips.min_valid: nan is not allowed: must be a number; numbers are finite"),
        ("--chips.min_valid=inf", "chips.min_valid: 'inf' is not allowed: must be a number"),
        ("--data.bands=[1,null]", "data.bands: '[1,null]' is not allowed: must be a list of whole numbers or null"),
        ("--chips.store=", "chips.store: '' is not allowed: must not be empty; null says that there is none"),
        ("--infer.split= ", "infer.split: ' ' is not allowed: must not be empty"),
        ("--data.root=a\udcff", "data.root: 'a\\udcff' is not allowed: must be text; a text must be text that UTF-8 can hold"),
        ("--train.augment=1", "train.augment: '1' is not allowed: must be true or false"),
        (f"--train.seed={'9' * 5000}", f"train.seed: '{'9' * 199}... (5002 characters) is not allowed: must be a whole number"),
        (f"--chips.size={'[' * 20000}", "chips.size: '[[[["),
        ("--chips={size: 3, seed: null}", "chips.seed: null is not allowed: must be a whole number; leave the key out"),
    ],
)  # fmt: skip
def test_flags_are_as_strict(flag, message):
    text = error_of(flag)
    assert text.startswith(message)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--train.seed=9223372036854775808", "train.seed: 9223372036854775808 is not allowed: must be a whole number; numbers have at most 18 digits"),
        ("--chips.seed=-1", "chips.seed: -1 is not allowed: must be 0 to 9223372036854775807 (2**63 - 1)"),
        ("--infer.window=100000", "infer.window: 100000 is not allowed: must be 1 to 16384 pixels, or null"),
        ("--infer.batch_size=100000000", "infer.batch_size: 100000000 is not allowed: must be 1 to 65536"),
        ("--infer.block=1000000", "infer.block: 1000000 is not allowed: must be 16 to 65536 pixels"),
        ("--train.epochs=1000000000", "train.epochs: 1000000000 is not allowed: must be 1 to 1000000"),
        ("--split.block=1e-300", "split.block: 1e-300 is not allowed: must be 0.01 to 10000000 metres"),
        ("--labels.buffer=1e308", "labels.buffer: 1e+308 is not allowed: must be 0 to 1000000"),
        (f"--cluster.cpu.memory={'9' * 400}G", "cluster.cpu.memory: '999"),
        (f"--cluster.cpu.walltime={'9' * 5000}:00", "cluster.cpu.walltime: '999"),
        ("--split.fractions={}", "split.fractions: {} is not allowed: must be shares of at least 0 that add up to 1"),
        ("--chips.store=.", "chips.store: '.' is not allowed: "),
        ("--infer.store=a/..", "infer.store: 'a/..' is not allowed: "),
        ("--model.bundle=/", "model.bundle: '/' is not allowed: must be the path of a directory of its own, with a name"),
        ('--data.classes=["a\\nb", c]', "data.classes: "),
    ],
)  # fmt: skip
def test_numbers_and_names_have_bounds(flag, message):
    assert error_of(flag).startswith(message)


def test_the_largest_seeds_work():
    import numpy as np
    import torch

    from geochip.train_ddp import key_of

    largest = 2**63 - 1
    config = parse(f"--train.seed={largest}", f"--chips.seed={largest}", f"--split.seed={largest}")
    assert config.train.seed == config.chips.seed == config.split.seed == largest
    torch.manual_seed(largest)
    assert 0 <= key_of(largest, 1, 2) < 2**63
    np.random.default_rng((largest, 1))


def test_a_batch_that_no_memory_holds_is_refused_with_one_that_fits():
    with pytest.raises(InputError) as caught:
        check_batch("infer.batch_size", 4096, 512)
    text = str(caught.value)
    told("batch", text)
    most = int(text.rpartition("must be 1 to ")[2])
    check_batch("infer.batch_size", most, 512)
    assert most == 1024


def test_text_that_looks_like_something_else_is_taken_as_its_quotes_say(tmp_path):
    text = "labels: {class_map: {'010': building, 7: building}, ignore: ['no', '', 5]}\ndata: {root: '5'}\n"
    config = parse(f"--config={written(tmp_path, text)}")
    assert config.labels.class_map == {"010": "building", "7": "building"}
    assert config.labels.ignore == ("no", "", "5")
    assert config.data.root == "5"
    told("quotes", error_of(f"--config={written(tmp_path, 'data: {root: true}')}"))


@pytest.mark.parametrize(
    ("key", "text"),
    [("null", ""), ("~", ""), ("''", ""), ("'null'", "null"), ("true", "true"), ("1.5", "1.5"), ("7", "7")],
)
def test_class_map_takes_whatever_value_an_attribute_has(tmp_path, key, text):
    class_map = f"{{{key}: building, x: background}}"
    meant = {text: "building", "x": "background"}
    for given in (
        f"--config={written(tmp_path, f'labels: {{class_map: {class_map}}}')}", f"--labels.class_map={class_map}",
    ):  # fmt: skip
        assert parse(given).labels.class_map == meant


@pytest.mark.parametrize("keys", [("null", "''"), ("1", "'1'"), ("true", "'true'")])
def test_one_value_of_two_classes_is_refused_alike_in_a_file_and_in_a_flag(tmp_path, keys):
    first, second = keys
    class_map = f"{{{first}: building, {second}: background}}"
    text = error_of(f"--config={written(tmp_path, f'labels: {{class_map: {class_map}}}')}")
    assert text == error_of(f"--labels.class_map={class_map}")
    assert "both keys are one value, which is of one class; leave one of them out" in text


@pytest.mark.parametrize("value", ["a", 1, 1.5, True, None, [1], {"a": 1}])
@pytest.mark.parametrize("kind", [int, float, str, bool, tuple[int, ...], dict[str, float], str | None, int | float])
def test_a_value_fits_one_type_only(value, kind):
    natural = {"a": {str, str | None}, 1: {int, float, int | float}, 1.5: {float, int | float}, None: {str | None}}
    expected = (
        {bool} if value is True else {tuple[int, ...]} if value == [1] else {dict[str, float]} if value == {"a": 1} else natural[value]
    )  # fmt: skip
    assert fits(value, kind) == (kind in expected)
