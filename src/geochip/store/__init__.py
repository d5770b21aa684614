"""What is kept on disk in Zarr: the chip store, the prediction store, and the journal beside either."""

from geochip.store.chips import (
    ChipStore,
    SplitLayout,
    SplitResult,
    create_chip_store,
    finish_chip_store,
    sweep_locks,
    write_shard,
)
from geochip.store.journal import Journal, journal_path, read_journal

__all__ = [
    "ChipStore",
    "Journal",
    "SplitLayout",
    "SplitResult",
    "create_chip_store",
    "finish_chip_store",
    "journal_path",
    "read_journal",
    "sweep_locks",
    "write_shard",
]
