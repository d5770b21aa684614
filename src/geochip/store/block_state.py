"""Which blocks of a prediction store are there: their files, as the journal has them.

A file of the size and time that the journal noted is taken for the one that was written. One of another time, as after
a copy or an edit, is read and its CRC-32 compared. What a disk spoils without touching the time shows when it is read:
each chunk carries a checksum of its own; `geochip.infer --verify` reads all of them.
"""

import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from geochip.files import require_regular
from geochip.progress import counted
from geochip.store._metadata import is_file
from geochip.store.predictions import PredictedScene, block_files
from geochip.windows import Window

Record = Mapping[str, Any]

_READERS = 8
_PART = 2**22


def block_key(scene_id: str, block: Window) -> str:
    """Name of a block in the journal."""
    return f"block/{scene_id}/{block.row_off}/{block.col_off}"


def stamp_of(file: Path) -> list[int]:
    """Bytes of a file, their CRC-32, and when it was written, in nanoseconds since 1970.

    Raises:
        OSError: when it is not there, or no regular file.
    """
    facts = require_regular(file)
    crc = 0
    with file.open("rb") as opened:
        while part := opened.read(_PART):
            crc = zlib.crc32(part, crc)
    return [facts.st_size, crc, facts.st_mtime_ns]


def stamps_of_block(store: Path, scene: PredictedScene, block: Window, side: int, *, probability: bool) -> Record:
    """The stamps of a block's files, by the array."""
    files = block_files(store, scene, block, side, probability=probability)
    return {name: stamp_of(file) for name, file in files.items()}


def lost_blocks(
    store: Path, blocks: Iterable[tuple[str, PredictedScene, Window]], records: Mapping[str, Record], side: int, *,
    probability: bool,
) -> set[str]:  # fmt: skip
    """Blocks that are recorded as predicted, and whose files are lost, or others.

    Args:
        store: the store.
        blocks: key, scene and place of each to look at.
        records: of the journal, by key; those of an older geochip say nothing of the files.
        side: rows and columns of the store's blocks.
        probability: whether the store holds probabilities as well.

    Returns:
        Their keys.
    """
    gone: set[str] = set()
    doubtful: list[tuple[str, Path, int]] = []
    for key, scene, block in blocks:
        noted = records[key].get("files", {})
        for name, file in block_files(store, scene, block, side, probability=probability).items():
            if not is_file(file):
                gone.add(key)
            elif name in noted:
                size, crc, written = noted[name]
                facts = file.stat()
                if facts.st_size != size:
                    gone.add(key)
                elif facts.st_mtime_ns != written:
                    doubtful.append((key, file, crc))
    doubtful = [one for one in doubtful if one[0] not in gone]
    if doubtful:
        files = counted(len(doubtful), "file")
        print(f"another time of change than when they were written: {files} of blocks, read again")
        with ThreadPoolExecutor(_READERS) as readers:
            found = readers.map(_crc, (file for _, file, _ in doubtful))
            gone |= {key for (key, _, crc), now in zip(doubtful, found, strict=True) if now != crc}
    return gone


def _crc(file: Path) -> int | None:
    try:
        return stamp_of(file)[1]
    except OSError:
        return None
