"""The journal beside a store: which tasks are finished, so that a rerun goes on where the last one stopped.

One process writes it, the driver. It is a text file of one JSON document a line: a header that says what the store is
made from, then a record for every finished task. It stands beside the store and not inside, so that the store's bytes
do not depend on the order in which tasks finished.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from geochip.errors import InputError


def journal_path(store: Path) -> Path:
    """Where a store's journal is."""
    return store.with_name(f"{store.name}.journal")


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
