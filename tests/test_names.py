"""What may be the name of a file, and what may be a path in a run file."""

import unicodedata

import pytest

from geochip.config import ChipsConfig, DataConfig, InferConfig, LabelsConfig, ModelConfig, RunConfig, SplitConfig
from geochip.errors import InputError
from geochip.names import composed, fault_of_id, fault_of_path, for_ogr, forms, shown
from told import told

NFC = "Gr\u00f6\u00dfe"
NFD = unicodedata.normalize("NFD", NFC)


@pytest.mark.parametrize(
    ("scene_id", "fault"),
    [
        ("", "is empty"), (".", "is no name"), ("..", "is no name"), ("a/b", "holds '/'"), ("/data/1", "holds '/'"),
        ("../../x", "holds '/'"), ("a\\b", "holds '\\\\'"), ("a\nb", "holds the control character '\\n'"),
        ("a\tb", "control character"), ("a\0", "control character"), ("a\x7f", "control character"),
        ("a\u2028b", "control character"), ("\udcff", "is not UTF-8"), (".writing-x", "begins with '.writing-'"),
        ("x" * 252, "is 252 bytes long, and names of files have room for 251"), ("\u00f6" * 126, "is 252 bytes long"),
    ],
)  # fmt: skip
def test_what_cannot_name_a_file(scene_id, fault):
    assert fault in fault_of_id(scene_id)


@pytest.mark.parametrize("scene_id", ["1", "007", NFC, "a;b", "a b", "...", ".hidden", "x" * 251, "a,b'c\"", "-rf"])
def test_what_can(tmp_path, scene_id):
    assert fault_of_id(scene_id) is None
    (tmp_path / f"{scene_id}.tif").write_bytes(b"")
    assert len(list(tmp_path.iterdir())) == 1


def test_paths():
    assert fault_of_path("a/{split}/" + "x" * 255 + "{id}") is None
    assert "NUL" in fault_of_path("a\0b")
    assert "UTF-8" in fault_of_path("a\udcffb")
    assert "255 bytes" in fault_of_path("x" * 256)
    assert "a path 4095" in fault_of_path("x/" * 2100)
    assert fault_of_path("a\nb") is None
    assert "newline" in fault_of_path("a\nb", made=True)


def test_texts_in_two_forms_are_one():
    assert NFC != NFD
    assert composed(NFD) == NFC
    assert forms("plain") == ["plain"]
    assert forms(NFC) == [NFC, NFD]


def test_what_cannot_be_printed_is_shown():
    for text in ("a\udcffb\nc\0", "\ud800"):
        assert shown(text).isascii()
        shown(text).encode()
    assert shown("a\udcffb\n") == "a\\xffb\\n"
    assert shown(NFC) == NFC


def test_a_plain_path_is_left_alone():
    assert for_ogr("/a/b.gpkg") == "/a/b.gpkg"


CHANGES = [
    lambda text: RunConfig(run_dir=text), lambda text: ChipsConfig(store=text), lambda text: InferConfig(store=text),
    lambda text: ModelConfig(bundle=text), lambda text: DataConfig(root=text),
    lambda text: DataConfig(image=f"{text}{{id}}"), lambda text: DataConfig(label=f"{text}{{id}}"),
    lambda text: DataConfig(stack=(f"{text}{{id}}",)), lambda text: ChipsConfig(aoi=text),
    lambda text: SplitConfig(by="manifest", manifest=text), lambda text: InferConfig(files=(text,)),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("text", ["a\0b", "a\udcffb", "x" * 256 + "/y"])
def test_every_path_of_a_run_file_is_judged(change, text):
    with pytest.raises(InputError, match=" is not allowed: "):
        change(text)
    change("fine")


@pytest.mark.parametrize("key", [ChipsConfig, InferConfig])
@pytest.mark.parametrize("text", [".", "..", "", "/", "a/..", "./."])
def test_a_store_has_a_name(key, text):
    with pytest.raises(InputError) as error:
        key(store=text)
    told("store-name", str(error.value))
    assert key(store="./x").store == "./x"


def test_a_backslash_is_refused_where_tensorstore_would_turn_it(tmp_path, monkeypatch):
    for make in (lambda: RunConfig(run_dir="a\\b"), lambda: ChipsConfig(store="a\\b"), lambda: InferConfig(store="\\")):
        with pytest.raises(InputError) as error:
            make()
        told("backslash", str(error.value))
    (tmp_path / "x\\y").mkdir()
    monkeypatch.chdir(tmp_path / "x\\y")
    with pytest.raises(InputError, match="backslash"):
        RunConfig()
    elsewhere = RunConfig(chips=ChipsConfig(store=str(tmp_path / "c")), infer=InferConfig(store=str(tmp_path / "p")))
    assert elsewhere.run_dir == "runs/geochip"


@pytest.mark.parametrize("template", ["{{id}}.tif", "{id}}{.tif", "{ID}/{id}.tif"])
def test_braces_that_stand_for_nothing(template):
    with pytest.raises(InputError, match=r"only \{split\} and \{id\} can be filled in"):
        DataConfig(image=template)
    with pytest.raises(InputError, match=r"only \{split\} and \{id\} can be filled in"):
        ChipsConfig(aoi=template)


@pytest.mark.parametrize("name", ["zarr.json", "__split", "x" * 201])
def test_a_split_is_a_directory_of_the_store(name):
    with pytest.raises(InputError, match=r"data.splits.*zarr.json"):
        DataConfig(splits=(name,))


def test_names_of_classes_are_compared_as_they_look():
    assert DataConfig(classes=("other", NFD)).classes == ("other", NFC)
    with pytest.raises(InputError, match="must not name a class twice"):
        DataConfig(classes=(NFC, NFD))
    labels = LabelsConfig(class_map={NFD: NFD, 3: "x"}, priority=(NFD,), buffer={NFD: 2})
    assert labels.class_map == {NFC: NFC, "3": "x"}
    assert (labels.priority, labels.buffer) == ((NFC,), {NFC: 2})
    config = RunConfig(data=DataConfig(classes=("other", NFC)), chips=ChipsConfig(target_classes=(NFD,)))
    assert config.chips.target_classes == (NFC,)


def test_the_longest_store_name_leaves_room_for_its_journal(tmp_path):
    name = "x" * 160
    assert ChipsConfig(store=name).store == name
    (tmp_path / f".{name}.journal.lock.{'0' * 32}.tmp").touch()
    with pytest.raises(InputError, match="at most 160 bytes"):
        ChipsConfig(store=name + "x")
