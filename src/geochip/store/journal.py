"""The journal beside a store: which tasks are finished, so that a rerun goes on where the last one stopped.

One process writes it, the driver. It is a text file of one JSON document a line: a header that says what the store is
made from, then a record for every finished task. It stands beside the store and not inside, so that the store's bytes
do not depend on the order in which tasks finished.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geochip.errors import InputError


def journal_path(store: Path) -> Path:
    """Where a store's journal is."""
    return store.with_name(f"{store.name}.journal")


def make_header(settings: Mapping[str, Any], scenes: Mapping[str, str]) -> dict[str, Any]:
    """The header of a store's journal: what the store is made from.

    Args:
        settings: the settings that decide what the store holds, by the name that a person knows them by.
        scenes: a digest of each scene, by its name.

    Returns:
        Both, and under "fingerprint" the SHA-256 of both.
    """
    # As it will be read back: lists and tuples are one.
    content: dict[str, Any] = json.loads(json.dumps({"settings": settings, "scenes": scenes}))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "fingerprint": digest}


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In words, what differs between two headers."""
    differences = [
        f"{name} was {was!r}, now {now!r}"
        for name, now in new["settings"].items()
        if (was := old["settings"].get(name)) != now
    ]
    before, after = old["scenes"], new["scenes"]
    for words, names in (
        ("scenes that were not there", [name for name in after if name not in before]),
        ("scenes that are gone", [name for name in before if name not in after]),
        ("scenes that changed", [name for name in after if before.get(name, after[name]) != after[name]]),
    ):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            differences.append(f"{len(names)} {words}: {shown}")
    return "; ".join(differences) or "it was made by another version of geochip"


class Journal:
    """Records of finished tasks, kept on disk; see `Journal.open`."""

    def __init__(self, path: Path, header: dict[str, Any], records: dict[str, dict[str, Any]], good_bytes: int) -> None:
        self.path = path
        self.header = header
        self.records = records
        """What is known of each finished task, by its key."""
        self._file = path.open("r+b" if good_bytes else "wb")
        # A record that a kill cut short is taken back, so that the next one begins on a line of its own.
        self._file.truncate(good_bytes)
        self._file.seek(good_bytes)

    @classmethod
    def open(
        cls, path: Path, header: dict[str, Any], *, describe: Callable[[dict[str, Any], dict[str, Any]], str]
    ) -> "Journal":
        """Begin a journal, or go on with one that was made from the same things.

        Args:
            path: where it is or will be.
            header: what the store is made from; "fingerprint" must be the same to go on.
            describe: (old header, new header) -> what differs, in words, for the error.

        Raises:
            InputError: when there is a journal with another fingerprint.
        """
        known, records, good_bytes = read_journal(path)
        if known is None:
            journal = cls(path, header, {}, 0)
            journal._write(header)
            return journal
        if known.get("fingerprint") != header["fingerprint"]:
            raise InputError(describe(known, header))
        return cls(path, known, records, good_bytes)

    @classmethod
    def of_store(cls, store: Path, header: dict[str, Any], *, option: str) -> "Journal":
        """Begin or continue the journal of a store; see `open`.

        Args:
            store: the store, which exists or will be made when this has returned.
            header: of `make_header`.
            option: the key of the run file that names the store, for the errors.

        Raises:
            InputError: when the store was made from something else, or has no journal.
        """
        path = journal_path(store)
        if store.exists() and not path.exists():
            raise InputError(
                f"{option}: {store} exists, but {path.name} beside it does not, so it cannot be continued; "
                f"remove it, or choose another run_dir or --{option}"
            )
        if path.exists() and not store.exists():
            # The store was removed to be made anew: its journal speaks of nothing any more.
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls.open(
            path,
            header,
            describe=lambda old, new: (
                f"{option}: {store} was made from something else: {describe_difference(old, new)}; "
                f"choose another run_dir or --{option}, or remove it to make it anew"
            ),
        )

    def append(self, key: str, record: dict[str, Any]) -> None:
        """Record a finished task; it is on disk when this returns."""
        self.records[key] = record
        self._write({"key": key, **record})

    def _write(self, document: dict[str, Any]) -> None:
        self._file.write(json.dumps(document, separators=(",", ":")).encode() + b"\n")
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
