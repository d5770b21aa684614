import pytest

from geochip.files import write_durably


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"first", b"second and longer", b""):
        write_durably(path, content)
        assert path.read_bytes() == content
        assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_durably(path, "text is not bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_what_the_file_system_refuses_is_raised(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        write_durably(tmp_path / "file" / "below", b"content")
