"""What is kept on disk in Zarr: the chip store, the prediction store, and the journal beside either."""

from geochip.store.chips import (
    CHIP_DROPPED,
    CHIP_UNREAD,
    CHIP_WRITTEN,
    ChipStore,
    SplitLayout,
    SplitResult,
    create_chip_store,
    finish_chip_store,
    reopen_chip_store,
    shard_files,
    shards_there,
    sweep_locks,
    sync_shard,
    write_shard,
)
from geochip.store.journal import Journal, journal_path, read_header, read_journal
from geochip.store.lock import StoreLock
from geochip.store.origin import describe_difference, make_header, other_scenes, refuse_other
from geochip.store.predictions import PredictedScene, PredictionStore, SceneGrid, open_scene, write_block

__all__ = [
    "CHIP_DROPPED",
    "CHIP_UNREAD",
    "CHIP_WRITTEN",
    "ChipStore",
    "Journal",
    "PredictedScene",
    "PredictionStore",
    "SceneGrid",
    "SplitLayout",
    "SplitResult",
    "StoreLock",
    "create_chip_store",
    "describe_difference",
    "finish_chip_store",
    "journal_path",
    "make_header",
    "open_scene",
    "other_scenes",
    "read_header",
    "read_journal",
    "refuse_other",
    "reopen_chip_store",
    "shard_files",
    "shards_there",
    "sweep_locks",
    "sync_shard",
    "write_block",
    "write_shard",
]
