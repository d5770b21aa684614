import errno
import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import pytest

from geochip.errors import InputError, WorkError
from geochip.store import Journal, describe_difference, journal_path, make_header, read_header, read_journal
from geochip.store.journal import Records


def header(settings=None, *, places=None, **scenes):
    """Scenes as "header content", or None for one whose header cannot be read."""
    digests = {
        name: dict(zip(("header", "content", "stamp"), (text or " ").split(" "), strict=False))
        for name, text in scenes.items()
    }
    digests = {name: {key: value or None for key, value in two.items()} for name, two in digests.items()}
    extra = {} if places is None else {"places": places}
    return make_header(settings or {"chips.size": 1}, digests, **extra)


def journal(path, head):
    return Journal.open(path, head, store=path.with_suffix(""), option="chips.store")


def a_store(path):
    path.mkdir()
    (path / "zarr.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({}, {}, None),
        ({"a": "h x"}, {"a": "h x"}, None),
        ({"a": "h x"}, {"a": "h y"}, "1 scene changed: a"),
        ({"a": "h x"}, {"a": "i x"}, "1 scene changed: a"),
        ({"a": None}, {"a": "h x"}, None),
        ({"a": None}, {"a": None}, None),
        ({"a": "h x"}, {"a": None}, "1 scene readable before and not now: a"),
        ({"a": "h x", "b": "h x"}, {"a": None, "b": None}, "2 scenes readable before and not now: a, b"),
        ({"a": "h x"}, {"b": "h x"}, "1 scene not there before: b; 1 scene gone: a"),
        ({}, {f"s{k}": "h x" for k in range(7)}, "7 scenes not there before: s0, s1, s2, s3, s4, ..."),
        # Of a scene whose label was not there, the header is known.
        ({"a": "h "}, {"a": "h x"}, None),
        ({"a": "h "}, {"a": "i x"}, "1 scene changed: a"),
        ({"a": "h x"}, {"a": "h "}, "1 scene readable before and not now: a"),
        # A scene that could not be read so far may have another content, and be worse; but it is no other scene.
        ({"unread": "h x"}, {"unread": "h y"}, None),
        ({"unread": "h x"}, {"unread": None}, None),
        ({"unread": "h x"}, {"unread": "i x"}, "1 scene changed: unread"),
    ],
)
def test_what_differs_between_scenes(old, new, difference):
    assert describe_difference(header(**old), header(**new), {"unread"}) == difference


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ({"size": 1, "seed": 2}, {"size": 2, "seed": 2}, "size was 1, now 2"),
        ({"size": 1, "aoi": "a.gpkg"}, {"size": 1}, "aoi was 'a.gpkg', now None"),
        ({"size": 1}, {"size": 1, "aoi": "a.gpkg"}, "aoi was None, now 'a.gpkg'"),
        ({"size": 1}, {"size": 1, "aoi": None}, None),
        ({"bands": (1, 2)}, {"bands": [1, 2]}, None),
    ],
)
def test_what_differs_between_settings(old, new, difference):
    found = describe_difference(header(old), header(new))
    assert found == difference


def test_a_header_of_another_version_is_told():
    old = {**header(a="h x"), "fingerprint": "made in another way"}
    assert describe_difference(old, header(a="h x")) == "it was made by another version of geochip"


def test_what_is_noted_beside_the_header_makes_no_other_store(tmp_path):
    store = tmp_path / "chips.zarr"
    path = journal_path(store)
    assert read_header(store) is None
    first = header(a="h x", places={"a": 5})
    assert first["fingerprint"] == header(a="h x")["fingerprint"]
    assert first["fingerprint"] != header(a="i x")["fingerprint"]
    with journal(path, first) as begun:
        begun.append("train/0", {"scenes": ["a"]})
        assert begun.header["places"] == {"a": 5}
    # What a run does not note anew stays, and nothing is done again for it.
    with journal(path, header(a="h x")) as second:
        assert (second.header["places"], list(second.records)) == ({"a": 5}, ["train/0"])
    assert read_header(store)["places"] == {"a": 5}
    with journal(path, header(a="h x", places={"a": 6})) as third:
        assert list(third.records) == ["train/0"]
    assert read_header(store) == header(a="h x", places={"a": 6})
    path.write_bytes(b'{"cut sho')
    with pytest.raises(InputError, match=r"chips.zarr.journal is damaged \(its first line is cut short\); put a copy"):
        read_header(store)


def test_a_scene_whose_header_could_be_read_at_last_is_made_anew(tmp_path):
    path = tmp_path / "c.journal"
    with journal(path, header(a=None, b="h x")) as first:
        first.append("0", {"scenes": ["a", "b"], "unread": ["a"]})
        first.append("1", {"scenes": ["b"]})
    before = path.read_bytes()
    with journal(path, header(a="h y", b="h x")) as second:
        # Not before the store says that it is unfinished again.
        assert (second.dropped, path.read_bytes()) == ({"0"}, before)
        settle(second)
        assert second.records == {"1": {"scenes": ["b"]}}
        second.append("0", {"scenes": ["a", "b"], "unread": []})
        assert second.records.unread == set()
    with pytest.raises(InputError, match="1 scene readable before and not now: a"):
        journal(path, header(a=None, b="h x"))
    with journal(path, header(a="h y", b="h x")) as third:
        assert set(third.records) == {"0", "1"}


def test_records_are_those_of_the_file_and_not_in_memory(tmp_path):
    path = tmp_path / "c.journal"

    def line(number):
        return {"number": number, "class_pixels": list(range(2000))}

    with journal(path, header()) as first:
        tracemalloc.start()
        for number in range(300):
            first.append(f"train/{number}", line(number))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert path.stat().st_size > 2_500_000
        assert most < 500_000
        assert len(first.records) == 300
        assert first.records["train/123"] == line(123)
        # A record that is written again counts in place of the old one.
        first.append("train/123", {"number": -1, "unread": ["a"]})
        assert first.records["train/123"] == {"number": -1, "unread": ["a"]}
        assert [record["number"] for record in first.records.values()][122:125] == [122, -1, 124]
        assert first.records.unread == {"train/123"}
        assert "train/300" not in first.records
        assert first.records.get("train/300", {}) == {}
        with pytest.raises(KeyError, match="train/300"):
            first.records["train/300"]
    # Also when the journal is closed, and by who reads it.
    assert first.records["train/7"]["number"] == 7
    _, records, _ = read_journal(path)
    assert records == first.records
    assert records.unread == {"train/123"}
    assert isinstance(records, Records)
    with journal(path, header()) as second:
        second.append("train/123", {"unread": []})
        assert second.records.unread == set()


def test_a_journal_ends_at_its_first_line_that_is_not_whole(tmp_path):
    path = tmp_path / "c.journal"
    with journal(path, header()) as first:
        first.append("0", {})
        first.append("1", {})
    whole = path.read_bytes()
    for tail in (
        b'{"key": "2"',
        b'{"key": "2"}',
        b"\0" * 100 + b"\n",
        b"[1, 2]\n",
        b'{"no": "key"}\n',
        b'\xff{"key"\n',
    ):
        path.write_bytes(whole + tail)
        assert read_journal(path)[2] == len(whole)
        with journal(path, header()) as second:
            second.append("2", {"n": 2})
        assert path.read_bytes() == whole + b'{"key":"2","n":2}\n'


# Appends until the disk is full, and says how many records it could write.
FILL = """
import sys
from pathlib import Path
from geochip.errors import WorkError
from geochip.store import Journal, make_header
place = Path(sys.argv[1])
header = make_header({}, {})
journal = Journal.of_store(place / "chips.zarr", header, option="chips.store")
number = 0
try:
    while True:
        journal.append(str(number), {"text": "x" * 5000})
        number += 1
except WorkError as error:
    text = str(error)
assert list(journal.records) == [str(k) for k in range(number)], journal.records
journal.close()
(place / "chips.zarr").mkdir()
(place / "filler").unlink()
(place / "chips.zarr" / "zarr.json").write_text("{}")
with Journal.of_store(place / "chips.zarr", header, option="chips.store") as again:
    assert list(again.records) == [str(k) for k in range(number)]
    again.append("last", {})
    assert again.records["last"] == {}
print(number, text)
"""


def test_a_full_disk_is_told_and_what_was_recorded_stays(tmp_path):
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small file system with")
    place = tmp_path / "small"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=256k none {place} && head -c 100000 /dev/zero > {place}/filler && exec "
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount + '"$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces to mount a small file system in")
    done = subprocess.run(
        [*command, sys.executable, "-c", FILL, place], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    number, _, text = done.stdout.partition(" ")
    assert 10 < int(number) < 40
    assert text.startswith(f"{place}/chips.zarr.journal: the disk or your quota on it is full (")
    assert "what is finished is kept" in text


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO])
def test_a_record_that_does_not_reach_the_disk_is_taken_back(tmp_path, monkeypatch, number):
    path = tmp_path / "c.journal"

    def fsync(_):
        raise OSError(number, os.strerror(number))

    with journal(path, header()) as begun:
        begun.append("0", {})
        before = path.read_bytes()
        monkeypatch.setattr(os, "fsync", fsync)
        # A full quota is told as such; what is none of a person's business keeps its name.
        with pytest.raises(WorkError if number == errno.EDQUOT else OSError, match=r"quota|Input/output error"):
            begun.append("1", {})
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert list(begun.records) == ["0"]
        begun.append("2", {})
    assert list(read_journal(path)[1]) == ["0", "2"]


def test_a_journal_that_cannot_be_rewritten_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "c.journal"
    journal(path, header(a=None)).close()
    before = path.read_bytes()

    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WorkError, match=r"c.journal: the disk or your quota on it is full"):
        journal(path, header(a="h x"))
    assert path.read_bytes() == before


def test_who_has_the_journal_of_a_store_has_its_lock(tmp_path):
    store = a_store(tmp_path / "chips.zarr")
    # Nothing is left behind by a journal that could not be opened.
    with pytest.raises(InputError, match=r"chips.zarr exists, but chips.zarr.journal beside it does not, so it cannot"):
        Journal.of_store(store, header(), option="chips.store")
    assert [path.name for path in tmp_path.iterdir()] == ["chips.zarr"]
    shutil.rmtree(store)
    with Journal.of_store(store, header(), option="chips.store") as begun:
        begun.append("0", {})
        with pytest.raises(InputError, match=f"^infer.store: .*chips.zarr is being written by process {os.getpid()} "):
            Journal.of_store(store, header(), option="infer.store")
    assert [path.name for path in tmp_path.iterdir()] == ["chips.zarr.journal"]
    # The store was never made: its journal speaks of nothing.
    with Journal.of_store(store, header(), option="chips.store") as again:
        assert again.records == {}
        a_store(store)
        again.append("1", {})
    with Journal.of_store(store, header(), option="chips.store") as third:
        assert list(third.records) == ["1"]


def test_nothing_is_recorded_by_who_lost_the_store(tmp_path):
    with Journal.of_store(tmp_path / "chips.zarr", header(), option="chips.store") as begun:
        begun._lock._lost = "process 12 on node7 (user somebody, since yesterday)"
        with pytest.raises(
            WorkError, match=r"chips.zarr is being written by process 12 on node7 .* now, which took its"
        ):
            begun.append("0", {})
    assert list(read_journal(begun.path)[1]) == []


def test_a_journal_is_lines_of_json_with_the_header_first(tmp_path):
    path = tmp_path / "c.journal"
    with journal(path, header(a="h x", places={"a": 1})) as begun:
        begun.append("train/0", {"unread": ["a"]})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["settings"] == {"chips.size": 1}
    assert lines[0]["scenes"] == {"a": {"header": "h", "content": "x"}}
    assert lines[1:] == [{"key": "train/0", "unread": ["a"]}]


def test_a_journal_goes_on_where_it_stopped(tmp_path):
    path = journal_path(tmp_path / "chips.zarr")
    assert path.name == "chips.zarr.journal"
    with journal(path, header()) as first:
        assert first.records == {}
        first.append("train/0", {"n": 1})
        first.append("train/4", {"n": 2})
    with path.open("ab") as file:
        file.write(b'{"key": "train/8", "n"')
    with journal(path, header()) as second:
        assert second.records == {"train/0": {"n": 1}, "train/4": {"n": 2}}
        second.append("train/8", {"n": 3})
        second.append("train/0", {"n": 9})
    known, records, size = read_journal(path)
    assert known == header()
    assert records == {"train/0": {"n": 9}, "train/4": {"n": 2}, "train/8": {"n": 3}}
    assert size == path.stat().st_size


def test_a_journal_of_something_else_is_refused_and_kept(tmp_path):
    path = tmp_path / "c.journal"
    journal(path, header(a="h x")).close()
    before = path.read_bytes()
    with pytest.raises(
        InputError,
        match=r"chips.store: .*c was made from something else: chips.size was 1, now 2; 1 scene gone: a; choose",
    ):
        journal(path, header({"chips.size": 2}))
    with pytest.raises(InputError, match="1 scene changed: a"):
        journal(path, header(a="h y"))
    assert path.read_bytes() == before


def test_the_file_of_a_scene_that_could_not_be_read_may_change_until_it_can(tmp_path):
    path = tmp_path / "c.journal"
    with journal(path, header(a="h x", b="h x")) as first:
        first.append("0", {"scenes": ["a", "b"], "unread": ["a"]})
        first.append("1", {"scenes": ["a"]})
        first.append("2", {"scenes": ["b"]})
    with journal(path, header(a="h mended", b="h x")) as second:
        # What was made of its old content is not done.
        assert second.dropped == {"0", "1"}
        settle(second)
        assert second.records == {"2": {"scenes": ["b"]}}
        second.append("0", {"scenes": ["a", "b"], "unread": []})
    assert read_journal(path)[0] == header(a="h mended", b="h x")
    with pytest.raises(InputError, match="1 scene changed: a"):
        journal(path, header(a="h x", b="h x"))


def settle(open_journal, different=None):
    open_journal.settle(different or {}, store=open_journal.path.with_suffix(""), option="chips.store")


def test_what_was_made_of_files_of_another_time_is_to_be_compared(tmp_path):
    path = tmp_path / "c.journal"
    with journal(path, header(a="h x 1", b="h x 1", c="h x 1", d="h x 1")) as first:
        first.append("0", {"scenes": ["a", "b"]})
        first.append("1", {"scenes": ["b", "c"], "unread": ["c"]})
        first.append("2", {"scenes": ["d"]})
        assert (first.doubtful, first.doubtful_keys) == (frozenset(), frozenset())
    before = path.read_bytes()
    # c could not be read: what was made of it is made again anyway.
    later = header(a="h x 2", b="h x 1", c="h x 2", d="h x 2")
    with journal(path, later) as second:
        assert (second.doubtful, second.doubtful_keys, second.dropped) == ({"a", "d"}, {"0", "2"}, {"1"})
        # Nothing is noted of what is not known yet: the files may be as they were tomorrow.
        assert path.read_bytes() == before
        with pytest.raises(
            WorkError, match=r"scene a: no\n1 scene could not be compared: a \(see above\), .*; mend what"
        ):
            settle(second, {"a": "no"})
    # d was found to be the same; a stays doubtful as long as nobody has compared it.
    with journal(path, later) as third:
        assert (third.doubtful, third.doubtful_keys, third.dropped) == ({"a"}, {"0"}, {"1"})
        words = r"chips.store: .*c was made from something else: 1 scene changed: a; choose"
        before = path.read_bytes()
        with pytest.raises(InputError, match=words):
            settle(third, {"a": None, "b": "no"})
        assert path.read_bytes() == before
    # As it was after all.
    with journal(path, header(a="h x 1", b="h x 1", c="h x 1", d="h x 2")) as fourth:
        assert (fourth.doubtful, fourth.dropped, len(fourth.records)) == (frozenset(), frozenset(), 3)
    with journal(path, later) as fifth:
        settle(fifth)
        assert (fifth.doubtful, fifth.doubtful_keys, fifth.dropped) == (frozenset(), frozenset(), frozenset())
        assert set(fifth.records) == {"0", "2"}
        fifth.append("1", {"scenes": ["b", "c"], "unread": []})
    assert read_header(tmp_path / "c") == later
    with journal(path, later) as sixth:
        assert sixth.doubtful == frozenset()
        assert sixth.records["1"] == {"scenes": ["b", "c"], "unread": []}


def test_who_lost_the_store_settles_nothing(tmp_path):
    class Lost:
        def check(self):
            raise WorkError("taken over")

        def release(self):
            pass

    path = tmp_path / "c.journal"
    with journal(path, header(a="h x 1")) as first:
        first.append("0", {"scenes": ["a"]})
    before = path.read_bytes()
    with journal(path, header(a="h x 2")) as second:
        second._lock = Lost()
        with pytest.raises(WorkError, match="taken over"):
            settle(second)
        with pytest.raises(WorkError, match="taken over"):
            second.confirm(["a"])
    assert path.read_bytes() == before


def test_there_is_no_journal(tmp_path):
    assert read_journal(tmp_path / "none") == (None, {}, 0)


def test_what_is_no_store_is_not_offered_for_removal(tmp_path):
    (tmp_path / "photographs").mkdir()
    with pytest.raises(
        InputError, match=r"^chips.store: .*photographs exists and is no Zarr store; choose another --chips.store$"
    ):
        Journal.of_store(tmp_path / "photographs", header(), option="chips.store")
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"run_dir: .*file/below cannot be written to: Not a directory; choose another run_dir"
    ):
        Journal.of_store(tmp_path / "file" / "below" / "c.zarr", header(), option="chips.store")
