"""The journal beside a store: which tasks are finished, so that a rerun goes on where the last one stopped.

One process writes it, the driver. It is a text file of one JSON document a line: a header that says what the store is
made from, then a record for every finished task. It stands beside the store and not inside, so that the store's bytes
do not depend on the order in which tasks finished.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geochip.errors import InputError
from geochip.files import disk_full, is_disk_full, make_directory, writing_durably
from geochip.store.lock import StoreLock


def journal_path(store: Path) -> Path:
    """Where a store's journal is."""
    return store.with_name(f"{store.name}.journal")


def make_header(
    settings: Mapping[str, Any], scenes: Mapping[str, Mapping[str, str | None]], **extra: Any
) -> dict[str, Any]:
    """The header of a store's journal: what the store is made from.

    Args:
        settings: the settings that decide what the store holds, by the name that a person knows them by.
        scenes: of each scene, by its name, a digest of its "header" and of its "content"; None for what could not be
            read.
        extra: what else a later run shall know, JSON-ready. It makes no other store when it changes.

    Returns:
        All of it, and under "fingerprint" the SHA-256 of the settings and the scenes' headers. The contents are left
        out of it: a file that was mended makes no other store.
    """
    # As it will be read back: lists and tuples are one.
    content: dict[str, Any] = json.loads(json.dumps({**extra, "settings": settings, "scenes": scenes}))
    return {**content, "fingerprint": _fingerprint(content)}


def _fingerprint(header: Mapping[str, Any]) -> str:
    headers = {name: digests["header"] for name, digests in header["scenes"].items()}
    return hashlib.sha256(json.dumps([header["settings"], headers], sort_keys=True).encode()).hexdigest()


def read_header(store: Path) -> dict[str, Any] | None:
    """The header of a store's journal; None when there is no journal, or none whose header was written whole."""
    try:
        with journal_path(store).open("rb") as file:
            return _document(file.readline())
    except FileNotFoundError:
        return None


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any], unread: Collection[str] = ()) -> str | None:
    """In words, what differs between two headers; None when nothing does.

    Args:
        old: what a store was begun with.
        new: what it would be continued with.
        unread: names of scenes that could not be read so far, whose content may be another one by now. A scene whose
            header could not be read before may have any by now.
    """
    was, now = old["settings"], new["settings"]
    differences = [
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in {**now, **was}
        if was.get(name) != now.get(name)
    ]
    before, after = old["scenes"], new["scenes"]
    changed, unreadable = [], []
    for name in after:
        if name not in before or before[name] == after[name] or before[name]["header"] is None:
            continue
        if None in after[name].values():
            if name not in unread and before[name]["content"] is not None:
                unreadable.append(name)
        elif before[name]["header"] != after[name]["header"] or (
            name not in unread and before[name]["content"] is not None
        ):
            changed.append(name)
    for words, names in (
        ("not there before", [name for name in after if name not in before]),
        ("gone", [name for name in before if name not in after]),
        ("changed", changed),
        ("readable before and not now", unreadable),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            differences.append(f"{len(names)} scene{'s' if len(names) > 1 else ''} {words}: {shown}")
    if not differences and old.get("fingerprint") != _fingerprint(old):
        return "it was made by another version of geochip"
    return "; ".join(differences) or None


def refuse_other(
    known: Mapping[str, Any], header: Mapping[str, Any], records: "Records", *, store: Path, option: str
) -> None:
    """Raise `InputError` when a store was made from something else.

    Args:
        known: the header of its journal.
        header: the header of what it would be continued with.
        records: of its journal.
        store: the store.
        option: the key of the run file that names it.
    """
    unread = {name for key in records.unread for name in records[key]["unread"]}
    if difference := describe_difference(known, header, unread):
        raise InputError(
            f"{option}: {store} was made from something else: {difference}; "
            f"choose another run_dir or --{option}, or remove it to make it anew"
        )


class Records(Mapping[str, dict[str, Any]]):
    """The records of a journal by key, each read from the file when it is asked for.

    Fifty thousand of them would fill gigabytes as Python objects: kept is where each one stands.
    """

    def __init__(self, path: Path) -> None:
        """An index of the file at `path`, without entries yet; also when there is no such file."""
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

    def line(self, key: str) -> bytes:
        """The record as it stands in the file, its key and the end of the line included."""
        start, length = self._places[key]
        return os.pread(self._handle, length, start)

    def __getitem__(self, key: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.line(key))
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
        self._lock = lock
        # Unbuffered: what a full disk did not take is not tried again when the file is closed.
        self._file = path.open("r+b", buffering=0)
        # A record that a kill cut short is taken back, so that the next one begins on a line of its own.
        self._file.truncate(good_bytes)
        self._size = self._file.seek(good_bytes)

    @classmethod
    def open(
        cls, path: Path, header: dict[str, Any], *, store: Path, option: str, lock: StoreLock | None = None
    ) -> "Journal":
        """Begin a journal, or go on with one that was made from the same things.

        Args:
            path: where it is or will be.
            header: of `make_header`.
            store: the store, for the error.
            option: the key of the run file that names the store, for the error.
            lock: of the store, held already; given back when the journal is closed.

        Raises:
            InputError: when there is a journal of something else.
            WorkError: when the disk is full.
        """
        known, records, good_bytes = read_journal(path)
        if known is None:
            _rewrite(path, header, records, [])
            _, records, good_bytes = read_journal(path)
            return cls(path, header, records, good_bytes, lock)
        refuse_other(known, header, records, store=store, option=option)
        # What an earlier run noted for later ones stays, until it is noted anew.
        header = {**known, **header}
        if known != header:
            # A file was mended: from now on its content is what must not change, and what was made of its old one is
            # not done.
            changed = {name for name, digests in header["scenes"].items() if known["scenes"][name] != digests}
            kept = [key for key in records if not changed or changed.isdisjoint(records[key].get("scenes", ()))]
            _rewrite(path, header, records, kept)
            _, records, good_bytes = read_journal(path)
        return cls(path, header, records, good_bytes, lock)

    @classmethod
    def of_store(cls, store: Path, header: dict[str, Any], *, option: str) -> "Journal":
        """Begin or continue the journal of a store, and hold the store's lock until it is closed; see `open`.

        Args:
            store: the store, which exists or will be made when this has returned.
            header: of `make_header`.
            option: the key of the run file that names the store, for the errors.

        Raises:
            InputError: when the store was made from something else, has no journal, is none, or is being written by
                another process.
            WorkError: when the disk is full.
        """
        path = journal_path(store)
        if store.exists() and not (store / "zarr.json").is_file():
            raise InputError(f"{option}: {store} exists and is no Zarr store; choose another --{option}")
        make_directory(path.parent, "run_dir")
        lock = StoreLock(store, option)
        lock.acquire()
        try:
            if store.exists() and not path.exists():
                raise InputError(
                    f"{option}: {store} exists, but {path.name} beside it does not, so it cannot be continued; "
                    f"remove it, or choose another run_dir or --{option}"
                )
            if path.exists() and not store.exists():
                # The store was removed to be made anew: its journal speaks of nothing any more.
                path.unlink()
            return cls.open(path, header, store=store, option=option, lock=lock)
        except BaseException:
            lock.release()
            raise

    def append(self, key: str, record: Mapping[str, Any]) -> None:
        """Record a finished task; it is on disk when this returns.

        Args:
            key: of the task.
            record: JSON-ready. "scenes" in it names the scenes that it is made of, "unread" those of them that could
                not be read: their files may be mended.

        Raises:
            WorkError: when the disk is full, or another process has taken the store over; the journal is as it was.
        """
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


def _document(line: bytes) -> dict[str, Any] | None:
    """What a line says; None when it was not written whole."""
    try:
        document = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def read_journal(path: Path) -> tuple[dict[str, Any] | None, Records, int]:
    """Read a journal without changing it.

    Returns:
        The header (None when there is no journal, or none whose header was written whole), the records by key (the
        last one of a key counts), and the number of bytes up to the end of the last whole line.
    """
    header: dict[str, Any] | None = None
    records = Records(path)
    good_bytes = 0
    if not path.exists():
        return header, records, good_bytes
    with path.open("rb") as file:
        for line in file:
            document = _document(line)
            if document is None or (header is not None and "key" not in document):
                break
            if header is None:
                header = document
            else:
                records.note(document, good_bytes, len(line))
            good_bytes += len(line)
    return header, records, good_bytes


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
