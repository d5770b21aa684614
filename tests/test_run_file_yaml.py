"""The run file as a file, and as YAML."""

import io
import os
import sys
from contextlib import redirect_stdout

import pytest

from geochip.config import YamlError, read_yaml
from geochip.errors import InputError
from geochip.run_file import parse_command, parse_run_config
from told import told


def parse(*argv):
    return parse_run_config([str(word) for word in argv], command="chipping", description="test")[0]


def error_of(*argv):
    with pytest.raises(InputError) as caught:
        parse(*argv)
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.yaml"


def test_anchors_and_merges_work(file):
    file.write_text(
        "chips: &common\n  seed: 5\n  size: 64\n"
        "cluster:\n  cpu: &job\n    account: me\n    memory: 8GiB\n    walltime: &hour '01:00:00'\n"
        "  gpu:\n    <<: *job\n    gres: gpu:1\n    memory: 16GiB\n    walltime: *hour\n"
        "train: &training {seed: 3}\nsplit:\n  <<: [*training]\n  block: 50\n"
    )
    config = parse("--config", file)
    assert (config.cluster.gpu.account, config.cluster.gpu.memory, config.cluster.gpu.gres) == ("me", "16GiB", "gpu:1")
    assert (config.cluster.cpu.memory, config.cluster.gpu.walltime) == ("8GiB", "01:00:00")
    assert (config.split.seed, config.split.block) == (3, 50)


def test_of_two_merged_mappings_the_first_goes_before(file):
    file.write_text("train: &a {seed: 1}\nchips: &b {seed: 2, size: 9}\nsplit: {seed: 4}\n")
    merged = read_yaml("a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: [*a, *b], z: 4}\n")
    assert merged["c"] == {"x": 1, "y": 3, "z": 4}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\na: 2\n", "a stands twice (line 2); join them"),
        ("a: {<<: {x: 1}, <<: {y: 1}}\n", "<< stands twice (line 1); join them"),
        ("? [a]\n: 1\n", "line 1: a key must be a name, not a list or a mapping"),
        ("a: !!python/object/apply:os.system [true]\n", "it is no valid YAML: could not determine a constructor for the tag"),
        ("a: !!binary aGk=\n", "it is no valid YAML: could not determine a constructor for the tag"),
        ("a: !!timestamp 2001-12-14\n", "it is no valid YAML: could not determine a constructor for the tag"),
        ("a: &a [*a]\n", "line 1: holds itself, by an alias"),
        ("a: *b\n", "it is no valid YAML: found undefined alias 'b'"),
        ("a:\n\tb: 1\n", "it is no valid YAML: while scanning for the next token found character '\\t'"),
        ("a: 1\n---\nb: 2\n", "it is no valid YAML: expected a single document"),
        (f"a: {'[' * 31}{']' * 31}\n", "it is nested 32 levels deep, a run file at most 30"),
        ("[" * 20000, "it is nested too deeply"),
        (f"a: {'9' * 5000}\n", "line 1: a number of 5000 digits; at most 18 are read"),
        ("a: <<\n", "it is no valid YAML: could not determine a constructor for the tag"),
        (b"a: \xff\n", "it is not UTF-8 text (byte 3); save it as UTF-8"),
        ("x" * 2_000_000, "it has 2000000 bytes, a run file at most 1048576"),
        ("a: \x07\n", "it is no valid YAML: "),
    ],
)  # fmt: skip
def test_yaml_that_no_run_file_holds(file, text, line):
    with pytest.raises(YamlError) as caught:
        read_yaml(text)
    assert str(caught.value).startswith(line)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    told_of = error_of(f"--config={file}")
    assert told_of.startswith(f"--config: {file} cannot be read: {line}")
    assert "\n" not in told_of
    if "twice" in line:
        told("twice", told_of)
    if "no valid" in line:
        told("yaml", told_of)


def test_a_bomb_of_aliases_is_refused_before_it_goes_off(file):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    file.write_text("\n".join(["a0: &a0 [x]", *levels]))
    assert "values with those of its aliases, a run file at most 200000" in error_of(f"--config={file}")


def test_numbers_are_read_as_yaml_1_2_has_them():
    text = "[12:00:00, 010, 0x10, 1e3, 1_000, .5, -3, 2001-12-14, yes, ~, 0, 1., 'x']"
    assert read_yaml(text) == ["12:00:00", "010", 16, 1000.0, 1000, 0.5, -3, "2001-12-14", "yes", None, 0, 1.0, "x"]


def test_only_true_and_false_are_truth_values(file):
    file.write_text("data: {classes: [no, yes]}\ntrain: {augment: false}\ninfer: {probability: True}\n")
    config = parse("--config", file)
    assert (config.data.classes, config.train.augment, config.infer.probability) == (("no", "yes"), False, True)
    file.write_text("train: {augment: yes}\n")
    assert error_of(f"--config={file}") == "train.augment: 'yes' is not allowed: must be true or false"


def test_a_walltime_needs_no_quotes(file):
    file.write_text("cluster: {gpu: {walltime: 12:00:00}}\n")
    assert parse("--config", file).cluster.gpu.walltime == "12:00:00"
    assert parse("--cluster.gpu.walltime=12:00:00").cluster.gpu.walltime == "12:00:00"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        (b"\xef\xbb\xbfchips: {size: 64}\r\n", 64),
        (b"chips:\r\n  size: 64\r\n", 64),
        (b"# \xc3\xa4\xf0\x9f\x98\x80\n---\nchips: {size: 64}\n...\n", 64),
        ("data: {root: läufe/\U0001f600\x85x}\nchips: {size: 64}\n".replace("\x85", "\\x7f").encode(), 64),
    ],
)
def test_encodings_and_line_ends(file, text, keys):
    file.write_bytes(text)
    assert parse("--config", file).chips.size == keys


def test_text_comes_through_as_it_is(file):
    file.write_text('data: {root: "läufe \U0001f600 \\x7f \\e"}\n')
    assert parse("--config", file).data.root == "läufe \U0001f600 \x7f \x1b"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1: 2\n", "1: there is no such key; "),
        ("~: 2\n", "null: there is no such key; "),
        ("chips: {1: 2}\n", "chips.1: there is no such key; "),
        ("chips: {null: 2}\n", "chips.null: there is no such key; "),
        ("chips: {true: 2}\n", "chips.True: there is no such key; "),
    ],
)
def test_keys_that_are_no_names(file, text, line):
    file.write_text(text)
    assert error_of(f"--config={file}").startswith(line)


@pytest.mark.parametrize(
    "kind", ["directory", "pipe", "device", "dangling", "loop", "missing", "long", "NUL", "inline"]
)
def test_what_is_no_file_is_not_opened(tmp_path, kind):
    path = tmp_path / "run.yaml"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    elif kind == "loop":
        path.symlink_to(path)
    named = {"device": "/dev/zero", "long": "x" * 5000, "NUL": "a\0b", "inline": "chips: {size: 3}"}.get(
        kind, str(path)
    )
    for argv in (["--config", named], [f"--config={named}"]):
        told("no run file", error_of(*argv))


def test_a_link_to_a_run_file_is_followed(tmp_path, file):
    file.write_text("chips: {size: 64}\n")
    link = tmp_path / "link.yaml"
    link.symlink_to(file)
    assert parse("--config", link).chips.size == 64


def test_of_several_run_files_and_flags_the_later_goes_before(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("chips: {size: 64, seed: 1}\ntrain: {val_split: null}\n")
    second.write_text("chips: {size: 32}\n")
    config = parse("--config", first, f"--config={second}", "--chips.per_scene=3")
    assert (config.chips.size, config.chips.seed, config.chips.per_scene, config.train.val_split) == (32, 1, 3, None)
    assert parse("--chips.size=16", "--config", first).chips.size == 64
    assert parse("--config", first, "--chips.size=16").chips.size == 16


def printed(*argv):
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit) as ended:
        parse_command(list(argv), command="chipping", description="test", switches={"dry_run": "x"})
    assert ended.value.code == 0
    return text.getvalue()


@pytest.mark.parametrize(
    "how", ["--print_config", "--print_config=", "--print_config=comments", "--print_config=skip_default"]
)
def test_a_printed_configuration_reads_back_as_the_same(file, how):
    flags = [
        "--train.val_split=null", "--infer.split=train", "--labels.class_map={'010': building, 'no': building, 7: building}",
        "--labels.ignore=['null', '1e3', '12:00:00', '']", "--data.root=läufe/\U0001f600 # x", "--model.encoder_weights=null",
        "--data.bands=[3,1]", "--labels.buffer={building: 1.5}", "--train.lr=1e-05", "--chips.size=64",
        "--cluster.gpu.walltime=1-12", "--cluster.cpu.account='007'", "--split.fractions={train: 0.5, val: 0.25, test: 0.25}",
    ]  # fmt: skip
    file.write_text(printed(*flags, how))
    again = parse("--config", file)
    assert again == parse(*flags)
    assert again.labels.ignore == ("null", "1e3", "12:00:00", "")
    assert again.train.val_split is None


def test_what_is_wrong_is_not_printed():
    assert error_of("--chips.size=null", "--print_config").startswith("chips.size: 'null' is not allowed")
    assert error_of("--chips.size=0", "--print_config").startswith("chips.size: 0 is not allowed")
    assert (
        error_of("--print_config=all") == "--print_config: 'all' is not allowed: must be some of comments, skip_default"
    )


def test_help_names_every_key(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    assert "--chips.size" in capsys.readouterr().out
