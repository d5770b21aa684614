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
from geochip.store.predictions import PredictedScene, PredictionStore, SceneGrid, open_scene, write_block

__all__ = [
    "ChipStore",
    "Journal",
    "PredictedScene",
    "PredictionStore",
    "SceneGrid",
    "SplitLayout",
    "SplitResult",
    "create_chip_store",
    "finish_chip_store",
    "journal_path",
    "open_scene",
    "read_journal",
    "sweep_locks",
    "write_block",
    "write_shard",
]
