"""Bringing what is no pixels of a store to what it should be: lost, damaged or grown metadata and small arrays.

What it should be is laid out anew beside the store, without pixels, as its creation does it, and compared file by file.
So creating, mending and growing a store give the same bytes.
"""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path

from geochip.errors import InputError
from geochip.files import disk_full, is_disk_full, read_regular, write_durably
from geochip.store._metadata import is_file

ROOT = Path("zarr.json")


def building_path(store: Path) -> Path:
    """Where a store is laid out before it gets its name."""
    return store.with_name(f"{store.name}.creating")


def differing(building: Path, store: Path, later: Collection[str] = ()) -> list[Path]:
    """The files of a store, relative to it, that are not there or not those that were laid out; but for the root.

    Args:
        building: where it was laid out.
        store: the store.
        later: names of arrays whose values are written later: of them it is enough that there are some.
    """
    files = sorted(file.relative_to(building) for file in building.rglob("*") if file.is_file())
    return [file for file in files if file != ROOT and not _as_laid_out(building, store, file, later)]


def _as_laid_out(building: Path, store: Path, file: Path, later: Collection[str]) -> bool:
    if file.name != ROOT.name and file.parent.name in later:
        return is_file(store / file)
    try:
        return read_regular(store / file) == (building / file).read_bytes()
    except OSError:
        return False


def replace(building: Path, store: Path, files: Collection[Path], data: bytes | None = None) -> None:
    """Put files of what was laid out into the store, each whole or not at all.

    Args:
        building: where it was laid out.
        store: the store.
        files: which, relative to both.
        data: what they shall hold instead.

    Raises:
        InputError: when a directory stands where one of them belongs.
        WorkError: when the disk is full.
    """
    for relative in files:
        target = store / relative
        for parent in reversed(target.relative_to(store).parents[:-1]):
            # A file, a named pipe or a link to nothing where a directory belongs is none of a user's: it is in a store.
            if os.path.lexists(store / parent) and not (store / parent).is_dir():
                (store / parent).unlink()
        if target.is_dir() and not target.is_symlink():
            raise InputError(f"{target} is a directory, where a file of {store} belongs; move it away and run again")
        try:
            write_durably(target, (building / relative).read_bytes() if data is None else data)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(target) from None
            raise


def unfinished_root(building: Path) -> bytes:
    """The root that was laid out, as one of a store that is being changed."""
    document = json.loads((building / ROOT).read_bytes())
    document["attributes"]["complete"] = False
    return json.dumps(document, indent=2).encode()


def same_root(building: Path, store: Path, but: Collection[str] = ()) -> bool:
    """Whether a store's root is the one that was laid out, but for some of its attributes."""
    try:
        documents = [json.loads(read_regular(root / ROOT)) for root in (building, store)]
        for document in documents:
            document["attributes"] = {k: v for k, v in document["attributes"].items() if k not in but}
        return json.dumps(documents[0]) == json.dumps(documents[1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def remove(building: Path) -> None:
    """Remove what was laid out."""
    shutil.rmtree(building, ignore_errors=True)
