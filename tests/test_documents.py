"""What is read from disk is what it should be, or is told by name."""

import os
from dataclasses import dataclass

import pytest

from geochip.documents import read_document
from geochip.errors import DamagedError, InputError
from geochip.files import NotRegularError, read_regular, require_regular


@dataclass(frozen=True)
class Inner:
    name: str
    size: float = 0.0

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("size is negative")


@dataclass(frozen=True)
class Outer:
    number: int
    inner: tuple[Inner, ...] = ()
    text: str | None = None


def test_a_whole_document_becomes_its_dataclass(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"number": 3, "inner": [{"name": "x", "size": 2}], "unknown": []}')
    assert read_document(path, Outer, "make it anew") == Outer(3, (Inner("x", 2.0),))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "it is empty"),
        (b'{"number": ', "it is not JSON"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b"{}", "missing required field `number`"),
        (b'{"number": "3"}', "Expected `int`, got `str` - at `$.number`"),
        (b'{"number": 3, "inner": [{"name": null}]}', "at `$.inner[0].name`"),
        (b'{"number": 3, "inner": [{"name": "x", "size": -1}]}', "size is negative"),
        (b'{"number": ' + b"9" * 5000 + b"}", "it is not JSON that can be read"),
        (b"[" * 100_000, "it is not JSON that can be read"),
    ],
)
def test_damage_is_told_with_file_field_and_remedy(tmp_path, data, fault):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(DamagedError) as error:
        read_document(path, Outer, "make it anew")
    assert str(path) in str(error.value)
    assert fault in str(error.value)
    assert "make it anew" in str(error.value)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in (("pipe", "a named pipe"), ("link", "a named pipe"), (".", "a directory")):
        with pytest.raises(NotRegularError, match=kind):
            require_regular(tmp_path / name)
        with pytest.raises(NotRegularError, match=kind):
            read_regular(tmp_path / name)
        with pytest.raises(InputError, match=f"could not be read .*{kind}.*; make it anew"):
            read_document(tmp_path / name, Outer, "make it anew")
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "nothing", Outer, "make it anew")
