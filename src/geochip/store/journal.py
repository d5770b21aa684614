"""The journal beside a store: which tasks are finished, so that a rerun goes on where the last one stopped.

One process writes it, the driver. It is a text file of one JSON document a line: a header that says what the store is
made from, then a record for every finished task. It stands beside the store and not inside, so that the store's bytes
do not depend on the order in which tasks finished.
"""

import json
import os
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geochip.errors import DamagedError, InputError, WorkError
from geochip.files import disk_full, is_disk_full, make_directory, require_regular, writing_durably
from geochip.store.lock import StoreLock
from geochip.store.origin import made_from_something_else, named, other_scenes, refuse_other
from geochip.store.records import Kinds, any_records, parse_header, parse_record

# Of damaged lines, in what is told.
_SHOWN = 5


def journal_path(store: Path) -> Path:
    """Where a store's journal is."""
    return store.with_name(f"{store.name}.journal")


def read_header(store: Path) -> dict[str, Any] | None:
    """The header of a store's journal; None when there is no journal.

    Raises:
        DamagedError: when there is one, and its first line is no header.
    """
    path = journal_path(store)
    if not _is_there(path):
        return None
    with path.open("rb") as file:
        return _header(file.readline(), path)


def _is_there(path: Path) -> bool:
    """Whether there is a journal.

    Raises:
        DamagedError: when something else stands in its place.
    """
    try:
        require_regular(path)
    except FileNotFoundError:
        if not path.is_symlink():
            return False
        fault = "it is a symbolic link to nothing"
    except OSError as error:
        fault = str(error.strerror)
    else:
        return True
    raise DamagedError(f"journal {path} cannot be read ({fault}); {_remedy(path)}")


def _remedy(path: Path) -> str:
    store = path.with_name(path.name.removesuffix(".journal"))
    return f"put a copy of it back, or remove it and {store} and run the same command again, which makes both anew"


def damaged_header(store: Path, fault: str) -> DamagedError:
    """Say that the header of a store's journal is damaged, and what to do."""
    path = journal_path(store)
    return DamagedError(f"journal {path} is damaged ({fault}); {_remedy(path)}")


def _header(line: bytes, path: Path) -> dict[str, Any]:
    if line and not line.endswith(b"\n"):
        raise DamagedError(f"journal {path} is damaged (its first line is cut short); {_remedy(path)}")
    return parse_header(line, f"journal {path}: its first line", _remedy(path))


class Records(Mapping[str, dict[str, Any]]):
    """The records of a journal by key, each read from the file when it is asked for.

    Fifty thousand of them would fill gigabytes as Python objects: kept is where each one stands.
    """

    def __init__(self, path: Path, kinds: Kinds = any_records) -> None:
        """An index of the file at `path`, without entries yet; also when there is no such file.

        Args:
            path: the file.
            kinds: what its records must hold.
        """
        self.path, self.kinds = path, kinds
        self.damaged: dict[int, str] = {}
        """Lines of the file, counted from 1, that are no such records, and why; what they recorded is not done."""
        self.unread: set[str] = set()
        """Keys of the records whose "unread" names scenes."""
        self._places: dict[str, tuple[int, int]] = {}
        self._handle = -1
        try:
            # Its own handle: the records stay readable when the journal is closed.
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        weakref.finalize(self, os.close, self._handle)

    def note(self, document: Mapping[str, Any], start: int, length: int) -> None:
        """Note a record that stands in the file; it takes the place of an older one with its key.

        Args:
            document: the record, with its "key".
            start: its first byte in the file.
            length: its bytes.
        """
        key = document["key"]
        self._places[key] = (start, length)
        if document.get("unread"):
            self.unread.add(key)
        else:
            self.unread.discard(key)

    def unread_scenes(self) -> set[str]:
        """Names of the scenes that could not be read so far."""
        return {name for key in self.unread for name in self[key]["unread"]}

    def keys_of(self, scenes: Collection[str]) -> frozenset[str]:
        """Keys of the records of tasks that some of these scenes, by name, went into."""
        if not scenes:
            # No record need be read for it.
            return frozenset()
        names = set(scenes)
        return frozenset(key for key in self if not names.isdisjoint(self[key].get("scenes", ())))

    def line(self, key: str) -> bytes:
        """The record as it stands in the file, its key and the end of the line included."""
        start, length = self._places[key]
        return os.pread(self._handle, length, start)

    def __getitem__(self, key: str) -> dict[str, Any]:
        try:
            record = parse_record(self.line(key), self.kinds)
        except ValueError as error:
            # It was whole when the file was opened.
            raise DamagedError(
                f"journal {self.path}: the record of {key} was changed meanwhile ({error}); run the same command again"
            ) from None
        del record["key"]
        return record

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"<{len(self)} records>"


class Journal:
    """Records of finished tasks, kept on disk; see `Journal.of_store`."""

    def __init__(
        self, path: Path, header: dict[str, Any], records: Records, good_bytes: int, lock: StoreLock | None = None
    ) -> None:
        self.path = path
        self.header = header
        """What the store is made from, and what earlier runs noted beside that."""
        self.records = records
        """What is known of each finished task, by its key."""
        self.doubtful: frozenset[str] = frozenset()
        """Names of scenes whose files were written or copied since, although all that was compared of them is the same:
        what was made of them has to be compared with what they hold now, and `settle` called, before anything is
        added."""
        self.doubtful_keys: frozenset[str] = frozenset()
        """Of the tasks that have some of them."""
        self.dropped: frozenset[str] = frozenset()
        """Of tasks that are recorded, but of scenes that have been mended since: they are not done, and `settle` takes
        them out."""
        self._known: dict[str, Any] | None = None
        """The header on disk, as long as it is another one."""
        self._lock = lock
        # Unbuffered: what a full disk did not take is not tried again when the file is closed.
        self._file = path.open("r+b", buffering=0)
        # A record that a kill cut short is taken back, so that the next one begins on a line of its own.
        self._file.truncate(good_bytes)
        self._size = self._file.seek(good_bytes)

    @classmethod
    def open(
        cls,
        path: Path,
        header: dict[str, Any],
        *,
        store: Path,
        option: str,
        lock: StoreLock | None = None,
        kinds: Kinds = any_records,
        grows: bool = False,
    ) -> "Journal":
        """Begin a journal, or go on with one that was made from the same things.

        Args:
            path: where it is or will be.
            header: of `make_header`.
            store: the store, for the error.
            option: the key of the run file that names the store, for the error.
            lock: of the store, held already; given back when the journal is closed.
            kinds: what its records must hold.
            grows: scenes that it does not know may be added.

        Raises:
            InputError: when there is a journal of something else.
            WorkError: when the disk is full.
        """
        known, records, good_bytes = read_journal(path, kinds)
        if known is None:
            _rewrite(path, header, records, [])
            _, records, good_bytes = read_journal(path, kinds)
            return cls(path, header, records, good_bytes, lock)
        unread = records.unread_scenes()
        refuse_other(known, header, unread, store=store, option=option, grows=grows)
        _tell_damage(records)
        mended, doubtful = other_scenes(known, header, unread)
        # What an earlier run noted for later ones stays, until it is noted anew.
        journal = cls(path, {**known, **header}, records, good_bytes, lock)
        # From now on their content is what must not change, and what was made of their old one is not done.
        journal.dropped = records.keys_of(mended)
        journal.doubtful, journal.doubtful_keys = frozenset(doubtful), records.keys_of(doubtful)
        journal._known = known
        if not doubtful and not journal.dropped:
            try:
                journal.settle({}, store=store, option=option)
            except BaseException:
                journal._file.close()
                raise
        return journal

    @classmethod
    def of_store(
        cls, store: Path, header: dict[str, Any], *, option: str, kinds: Kinds = any_records, grows: bool = False
    ) -> "Journal":
        """Begin or continue the journal of a store, and hold the store's lock until it is closed; see `open`.

        Args:
            store: the store, which exists or will be made when this has returned.
            header: of `make_header`.
            option: the key of the run file that names the store, for the errors.
            kinds: what its records must hold.
            grows: scenes that it does not know may be added.

        Raises:
            InputError: when the store was made from something else, has no journal, is none, or is being written by
                another process.
            WorkError: when the disk is full.
        """
        path = journal_path(store)
        if os.path.lexists(store) and not (store / "zarr.json").is_file() and not (store.is_dir() and _is_there(path)):
            # One with a journal beside it is a store that has lost its root.
            raise InputError(f"{option}: {store} exists and is no Zarr store; choose another --{option}")
        make_directory(path.parent, "run_dir")
        lock = StoreLock(store, option)
        lock.acquire()
        try:
            if store.exists() and not _is_there(path):
                raise InputError(
                    f"{option}: {store} exists, but {path.name} beside it does not, so it cannot be continued; "
                    f"remove it, or choose another run_dir or --{option}"
                )
            if not store.exists() and os.path.lexists(path) and not path.is_dir():
                # The store was removed to be made anew: its journal speaks of nothing any more.
                path.unlink()
            return cls.open(path, header, store=store, option=option, lock=lock, kinds=kinds, grows=grows)
        except BaseException:
            lock.release()
            raise

    def settle(self, different: Mapping[str, str | None], *, store: Path, option: str) -> None:
        """Say what came of the doubtful scenes; nothing can be added before.

        Args:
            different: those whose pixels are others now, each with None, and those that cannot be read, each with the
                reason.
            store: the store, for the errors.
            option: the key of the run file that names it, for the errors.

        Raises:
            InputError: when a scene has changed. The store is as it was, and the journal but for the times of scenes
                that have not.
            WorkError: when one cannot be read, the disk is full, or another process has taken the store over.
        """
        if different:
            self.confirm(self.doubtful - set(different))
            if changed := sorted(name for name, reason in different.items() if reason is None):
                raise made_from_something_else(store, option, named("changed", changed))
            listed = "\n".join(f"scene {name}: {reason}" for name, reason in sorted(different.items()))
            raise WorkError(
                f"{listed}\n{named('could not be compared', sorted(different))} (see above), and nothing was changed; "
                "mend what keeps them from being read, and run the same command again"
            )
        kept = [key for key in self.records if key not in self.dropped]
        if self._known not in (None, self.header) or len(kept) < len(self.records) or self.records.damaged:
            self._rewrite(self.header, kept)
        self._known, self.dropped, self.doubtful, self.doubtful_keys = None, frozenset(), frozenset(), frozenset()

    def forget(self, keys: Collection[str]) -> None:
        """Take out records, by key, with the next `settle`: of tasks that are not done, or that there are none of."""
        self.dropped |= frozenset(keys) & frozenset(self.records)

    def confirm(self, names: Iterable[str]) -> None:
        """Note that doubtful scenes are what they were; the others stay doubtful.

        Raises:
            WorkError: when the disk is full, or another process has taken the store over.
        """
        same = set(names)
        if not same or self._known is None:
            return
        scenes = {
            name: self.header["scenes"][name] if name in same else digests
            for name, digests in self._known["scenes"].items()
        }
        self._known = {**self._known, "scenes": scenes}
        self._rewrite(self._known, list(self.records))
        self.doubtful -= same

    def _rewrite(self, header: Mapping[str, Any], keys: Collection[str]) -> None:
        """Write the journal anew; the old one stays until the new one is complete."""
        if self._lock is not None:
            self._lock.check()
        _rewrite(self.path, header, self.records, keys)
        self._file.close()
        _, self.records, self._size = read_journal(self.path, self.records.kinds)
        self._file = self.path.open("r+b", buffering=0)
        self._file.seek(self._size)

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Record a finished task; it is on disk when this returns.

        Args:
            key: of the task.
            record: JSON-ready. "scenes" in it names the scenes that it is made of, "unread" those of them that could
                not be read: their files may be mended.

        Raises:
            WorkError: when the disk is full, or another process has taken the store over; the journal is as it was.
        """
        assert self._known is None, "settle comes first"
        if self._lock is not None:
            self._lock.check()
        document = {"key": key, **record}
        line = _line(document)
        try:
            done = 0
            while done < len(line):
                done += self._file.write(line[done:])
            os.fsync(self._file.fileno())
        except BaseException as error:
            # Also after a Ctrl-C: half a line would join the next one.
            self._file.truncate(self._size)
            self._file.seek(self._size)
            if isinstance(error, OSError) and is_disk_full(error):
                raise disk_full(self.path) from None
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise
        self.records.note(document, self._size, len(line))
        self._size += len(line)

    def close(self) -> None:
        """Close the file and give the store's lock back; the records stay readable."""
        self._file.close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def read_journal(path: Path, kinds: Kinds = any_records) -> tuple[dict[str, Any] | None, Records, int]:
    """Read a journal without changing it.

    Args:
        path: the journal.
        kinds: what its records must hold.

    Returns:
        The header (None when there is no journal), the records by key (the last one of a key counts; its `damaged`
        names the lines that are none), and the number of bytes up to the end of the last good line: what a kill cut
        short stands behind it.

    Raises:
        DamagedError: when something else stands in its place, or its first line is no header.
    """
    if not _is_there(path):
        return None, Records(path, kinds), 0
    records = Records(path, kinds)
    with path.open("rb") as file:
        line = file.readline()
        header = _header(line, path)
        good_bytes = at = len(line)
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                break
            try:
                document = parse_record(line, kinds)
            except (ValueError, RecursionError) as error:
                records.damaged[number] = str(error)
            else:
                records.note(document, at, len(line))
                good_bytes = at + len(line)
            at += len(line)
    return header, records, good_bytes


def _tell_damage(records: Records) -> None:
    for number, why in list(records.damaged.items())[:_SHOWN]:
        print(f"warning: journal {records.path}: line {number} is damaged ({why}); what it recorded is done anew")
    if (more := len(records.damaged) - _SHOWN) > 0:
        print(f"warning: journal {records.path}: {more} more lines are damaged; what they recorded is done anew")


def _rewrite(path: Path, header: Mapping[str, Any], records: Records, keys: Collection[str]) -> None:
    """Write a journal anew with some of its records; the old one stays until the new one is complete.

    Raises:
        WorkError: when the disk is full.
    """
    try:
        with writing_durably(path) as file:
            file.write(_line(header))
            for key in keys:
                file.write(records.line(key))
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from None
        raise
