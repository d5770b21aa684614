"""The table of scenes that a chip store was made with, read back: which split each scene, or its ground, belongs to."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from geochip.config import RunConfig
from geochip.documents import as_document, parse_json
from geochip.errors import DamagedError, InputError
from geochip.files import read_regular
from geochip.scenes.regions import RECORD, Squares

_ATTRIBUTES = b"PANDAS_ATTRS"
"""Where pandas and GeoPandas keep the attributes of a table."""


@dataclass(frozen=True, kw_only=True)
class RecordedScene:
    """A row of scenes.parquet, as far as it tells of splits."""

    scene_id: str
    split: str
    status: Literal["ok", "unlabelled", "buffered", "bad"]
    reason: str
    """Why it is not used; empty for one that is."""


@dataclass(frozen=True, kw_only=True)
class RecordedScenes:
    """What scenes.parquet tells of splits."""

    scenes: list[RecordedScene]
    squares: Squares | None = None
    """The squares that divide the scenes, which then have a row for each split; None: each scene is whole."""

    def __post_init__(self) -> None:
        if self.squares is not None:
            strange = [one for one in self.scenes if one.split not in self.squares.owners]
            if strange:
                raise ValueError(
                    f"scene {strange[0].scene_id!r} is of split {strange[0].split!r}, which has no squares"
                )
            return
        splits: dict[str, str] = {}
        for one in self.scenes:
            # Files that share an id are set aside.
            if one.status != "bad" and splits.setdefault(one.scene_id, one.split) != one.split:
                raise ValueError(f"scene {one.scene_id!r} is of several splits, and no squares divide it")


def recorded_scenes(config: RunConfig) -> RecordedScenes | None:
    """The table of the scenes of the chip store; None without a store, or without its table.

    Raises:
        DamagedError: when it does not hold what geochip wrote.
        InputError: when it cannot be read at all.
    """
    path = config.catalogue_path
    if not config.chip_store.is_dir():
        return None
    remedy = (
        f"remove it and run geochip.chipping again, which makes it anew (if that finds the scenes divided otherwise "
        f"than in {config.chip_store}, as after files were added, remove that too)"
    )
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); {remedy}") from None
    names = list(RecordedScene.__dataclass_fields__)
    try:
        table = pq.read_table(pa.BufferReader(data), columns=names)
        rows = table.select(names).to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        fault = " ".join(str(error).split())[:200]
        raise DamagedError(f"{path} is damaged ({fault}); {remedy}") from None
    attributes = (table.schema.metadata or {}).get(_ATTRIBUTES)
    document: dict[str, Any] = {"scenes": rows}
    if attributes is not None:
        kept = as_document(parse_json(attributes, str(path), remedy), dict[str, Any], str(path), remedy)
        document["squares"] = kept.get(RECORD)
    return as_document(document, RecordedScenes, str(path), remedy)
