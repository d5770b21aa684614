"""The journal beside a store: which tasks are finished, so that a rerun goes on where the last one stopped.

One process writes it, the driver. It is a text file of one JSON document a line: a header that says what the store is
made from, then a record for every finished task. It stands beside the store and not inside, so that the store's bytes
do not depend on the order in which tasks finished.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geochip.errors import InputError
from geochip.files import make_directory, write_durably


def journal_path(store: Path) -> Path:
    """Where a store's journal is."""
    return store.with_name(f"{store.name}.journal")


def make_header(settings: Mapping[str, Any], scenes: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """The header of a store's journal: what the store is made from.

    Args:
        settings: the settings that decide what the store holds, by the name that a person knows them by.
        scenes: of each scene, by its name, a digest of its "header" and of its "content".

    Returns:
        Both, and under "fingerprint" the SHA-256 of the settings and the scenes' headers. The contents are left out of
        it: a file that was mended makes no other store.
    """
    # As it will be read back: lists and tuples are one.
    content: dict[str, Any] = json.loads(json.dumps({"settings": settings, "scenes": scenes}))
    headers = {name: digests["header"] for name, digests in content["scenes"].items()}
    digest = hashlib.sha256(json.dumps([content["settings"], headers], sort_keys=True).encode()).hexdigest()
    return {**content, "fingerprint": digest}


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any], unread: Collection[str] = ()) -> str | None:
    """In words, what differs between two headers; None when nothing does.

    Args:
        old: what a store was begun with.
        new: what it would be continued with.
        unread: names of scenes that could not be read so far, whose content may be another one by now.
    """
    differences = [
        f"{name} was {was!r}, now {now!r}"
        for name, now in new["settings"].items()
        if (was := old["settings"].get(name)) != now
    ]
    before, after = old["scenes"], new["scenes"]
    changed = [
        name
        for name in after
        if name in before
        and (before[name]["header"] != after[name]["header"] or (before[name] != after[name] and name not in unread))
    ]
    for words, names in (
        ("not there before", [name for name in after if name not in before]),
        ("gone", [name for name in before if name not in after]),
        ("changed", changed),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            differences.append(f"{len(names)} scene{'s' if len(names) > 1 else ''} {words}: {shown}")
    if not differences and old.get("fingerprint") != new["fingerprint"]:
        return "it was made by another version of geochip"
    return "; ".join(differences) or None


class Journal:
    """Records of finished tasks, kept on disk; see `Journal.open`."""

    def __init__(self, path: Path, header: dict[str, Any], records: dict[str, dict[str, Any]], good_bytes: int) -> None:
        self.path = path
        self.header = header
        self.records = records
        """What is known of each finished task, by its key."""
        self._file = path.open("r+b")
        # A record that a kill cut short is taken back, so that the next one begins on a line of its own.
        self._file.truncate(good_bytes)
        self._file.seek(good_bytes)

    @classmethod
    def open(cls, path: Path, header: dict[str, Any], *, store: Path, option: str) -> "Journal":
        """Begin a journal, or go on with one that was made from the same things.

        Args:
            path: where it is or will be.
            header: of `make_header`.
            store: the store, for the error.
            option: the key of the run file that names the store, for the error.

        Raises:
            InputError: when there is a journal of something else.
        """
        known, records, good_bytes = read_journal(path)
        if known is None:
            write_durably(path, _line(header))
            return cls(path, header, {}, path.stat().st_size)
        unread = {name for record in records.values() for name in record.get("unread", ())}
        if difference := describe_difference(known, header, unread):
            raise InputError(
                f"{option}: {store} was made from something else: {difference}; "
                f"choose another run_dir or --{option}, or remove it to make it anew"
            )
        if known != header:
            # A file was mended: from now on its content is what must not change, and what was made of its old one is
            # not done.
            changed = {name for name, digests in header["scenes"].items() if known["scenes"][name] != digests}
            records = {key: record for key, record in records.items() if changed.isdisjoint(record.get("scenes", ()))}
            lines = [_line(header), *(_line({"key": key, **record}) for key, record in records.items())]
            write_durably(path, b"".join(lines))
            good_bytes = path.stat().st_size
        return cls(path, header, records, good_bytes)

    @classmethod
    def of_store(cls, store: Path, header: dict[str, Any], *, option: str) -> "Journal":
        """Begin or continue the journal of a store; see `open`.

        Args:
            store: the store, which exists or will be made when this has returned.
            header: of `make_header`.
            option: the key of the run file that names the store, for the errors.

        Raises:
            InputError: when the store was made from something else, has no journal, or is none.
        """
        path = journal_path(store)
        if store.exists() and not (store / "zarr.json").is_file():
            raise InputError(f"{option}: {store} exists and is no Zarr store; choose another --{option}")
        if store.exists() and not path.exists():
            raise InputError(
                f"{option}: {store} exists, but {path.name} beside it does not, so it cannot be continued; "
                f"remove it, or choose another run_dir or --{option}"
            )
        make_directory(path.parent, "run_dir")
        if path.exists() and not store.exists():
            # The store was removed to be made anew: its journal speaks of nothing any more.
            path.unlink()
        return cls.open(path, header, store=store, option=option)

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Record a finished task; it is on disk when this returns.

        Args:
            key: of the task.
            record: JSON-ready. "scenes" in it names the scenes that it is made of, "unread" those of them that could
                not be read: their files may be mended.
        """
        self.records[key] = record
        self._write({"key": key, **record})

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(_line(document))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the records stay readable."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def read_journal(path: Path) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]], int]:
    """Read a journal without changing it.

    Returns:
        The header (None when there is no journal, or none whose header was written whole), the records by key (the
        last one of a key counts), and the number of bytes up to the end of the last whole line.
    """
    header: dict[str, Any] | None = None
    records: dict[str, dict[str, Any]] = {}
    good_bytes = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            try:
                document = json.loads(line) if line.endswith(b"\n") else None
            except json.JSONDecodeError:
                document = None
            if not isinstance(document, dict):
                break
            good_bytes += len(line)
            if header is None:
                header = document
            else:
                records[document.pop("key")] = document
    return header, records, good_bytes
