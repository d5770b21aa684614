"""Does a prediction store hold what its journal says? Every block and every GeoTIFF is read again, on the workers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geochip.config import IGNORE
from geochip.errors import DamagedError, GeochipError
from geochip.store import PredictedScene, PredictionStore, block_key, grids_of_header, stacked, stamp_of
from geochip.store.cog import cog_path, fault_of_cog
from geochip.windows import Window, blocks

Record = Mapping[str, Any]
Block = tuple[PredictedScene, Window, Record]

_AGAIN = "run python -m geochip.infer again"
_ANEW = f"{_AGAIN}, which writes it anew"


def expected_scenes(store: PredictionStore, header: Mapping[str, Any], records: Mapping[str, Record]) -> list[
    PredictedScene
]:  # fmt: skip
    """The scenes that a store must hold by its journal, complete where all their blocks are predicted.

    Raises:
        DamagedError: when an older geochip's journal leaves that to the store, and the store has lost it.
    """
    grids: Sequence[Any] = list(store.scenes.values()) if not header.get("grids") else grids_of_header(header)
    complete = {
        grid.scene_id
        for grid in grids
        if all(
            "pixels" in records.get(block_key(grid.scene_id, block), {})
            for block in blocks(grid.height, grid.width, store.block)
        )
    }
    return stacked(grids, complete)


def faults_of_groups(store: PredictionStore, expected: Sequence[PredictedScene]) -> list[str]:
    """What is wrong with all that is no pixels."""
    faults = []
    by_group: dict[str, list[PredictedScene]] = {}
    for scene in expected:
        by_group.setdefault(scene.group, []).append(scene)
    if other := set(store.groups) ^ set(by_group):
        faults.append(f"{store.path}: its root and its journal do not name the same groups: {sorted(other)}; {_ANEW}")
    for group in sorted(set(store.groups) & set(by_group)):
        try:
            held = store.scenes_of(group)
        except DamagedError as error:
            faults.append(str(error))
            continue
        if [one.scene_id for one in held] != [one.scene_id for one in by_group[group]]:
            faults.append(f"{store.path / group}: holds other scenes than the journal says; {_ANEW}")
            continue
        for found, wanted in zip(held, by_group[group], strict=True):
            faults += [
                f"{store.path / group}: {name} of scene {found.scene_id} is {getattr(found, name)}, by the journal "
                f"{getattr(wanted, name)}; {_ANEW}"
                for name in ("split", "crs", "transform", "complete")
                if getattr(found, name) != getattr(wanted, name)
            ]
    return faults


def blocks_to_verify(
    store: PredictionStore, expected: Sequence[PredictedScene], records: Mapping[str, Record]
) -> Iterator[Block]:
    """Every block of every scene but those of scenes that could not be read, with its record; {} for one without."""
    for scene in expected:
        for block in blocks(scene.height, scene.width, store.block):
            record = records.get(block_key(scene.scene_id, block), {})
            if "error" not in record:
                yield scene, block, record


def verify_blocks(path: str, some: Sequence[Block]) -> list[str]:
    """Read blocks and compare them with their records; runs on a Dask worker.

    Returns:
        What is wrong with them, in words.
    """
    store = PredictionStore(path)
    return [fault for scene, block, record in some for fault in _faults_of_block(store, scene, block, record)]


def _faults_of_block(store: PredictionStore, scene: PredictedScene, block: Window, record: Record) -> Iterator[str]:
    where = f"scene {scene.scene_id}, {block}"
    if "pixels" not in record:
        yield f"{where}: not in the journal; {_AGAIN}"
        return
    for name, file in store.files_of(scene, block).items():
        try:
            values = store.read(scene, block, name)
            stamp = stamp_of(file)
        except GeochipError as error:
            yield f"{where}: {error}"
            continue
        except OSError as error:
            yield f"{where}: {file} cannot be read ({error.strerror}); remove it and {_AGAIN}"
            continue
        noted = record.get("files", {}).get(name)
        counts = np.bincount(values.ravel(), minlength=IGNORE + 1) if name == "class" else None
        if noted is not None and list(stamp[:2]) != list(noted[:2]):
            yield f"{where}: {file} is another file than the one that was written; remove it and {_AGAIN}"
        elif counts is not None and counts[: len(store.class_names)].tolist() != list(record["class_pixels"]):
            yield (
                f"{where}: the classes have {counts[: len(store.class_names)].tolist()} pixels, by the journal "
                f"{list(record['class_pixels'])}; remove {file} and {_AGAIN}"
            )


def verify_cogs(path: str, directory: str, scenes: Sequence[PredictedScene]) -> list[str]:
    """Compare GeoTIFFs with the store; runs on a Dask worker.

    Returns:
        What is wrong with them, in words.
    """
    store = PredictionStore(path)
    return [fault for scene in scenes for fault in _faults_of_cog(store, scene, Path(directory))]


def _faults_of_cog(store: PredictionStore, scene: PredictedScene, directory: Path) -> Iterator[str]:
    file = cog_path(directory, scene.scene_id)
    if not file.is_file():
        yield f"scene {scene.scene_id}: {file} is not there; {_ANEW}"
        return
    try:
        fault = fault_of_cog(store, scene, file)
    except DamagedError:
        return  # told with its block
    if fault is not None:
        yield f"scene {scene.scene_id}: {file} {fault}; remove it and {_ANEW}"


def unknown_records(
    store: PredictionStore, expected: Sequence[PredictedScene], records: Mapping[str, Record]
) -> list[str]:
    """Records of blocks and GeoTIFFs that the store has none of."""
    known = {
        block_key(scene.scene_id, block)
        for scene in expected
        for block in blocks(scene.height, scene.width, store.block)
    } | {f"cog/{scene.scene_id}" for scene in expected}
    return [f"{key}: in the journal, but not in the store; {_AGAIN}" for key in records if key not in known]
