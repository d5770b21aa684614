"""What is left to do of an inference: scenes that are new, blocks that are missing or lost, and what stays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import geochip
from geochip.infer_plan import InferPlan, predictions_depend_on
from geochip.infer_worker import Piece
from geochip.progress import counted
from geochip.scenes import RECORD
from geochip.store import (
    Journal,
    PredictedScene,
    PredictionStore,
    SceneGrid,
    block_key,
    damaged_header,
    grids_of_header,
    lost_blocks,
    make_header,
    read_header,
    stacked,
)
from geochip.windows import blocks

_SHOWN = 5


def header_of(plan: InferPlan, store: Path) -> dict[str, Any]:
    """The header of the store's journal: what it will hold when this run has ended.

    Scenes that the store has and this run does not stay in it; those that it does not have come behind them.
    """
    settings, scenes = predictions_depend_on(plan)
    known = (read_header(store) if store.exists() else None) or {"scenes": {}}
    # A journal of an older geochip does not say in which order its scenes are stacked: the store does.
    held = grids_of_header(known) if "grids" in known else _grids_of(store, known)
    grids = grids_of(plan)
    unchanged = [
        grid
        for grid in grids
        if known["scenes"].get(grid.scene_id, {}).get("header") == scenes[grid.scene_id]["header"]
    ]
    by_id = {grid.scene_id: grid for grid in held}
    # A scene that squares divide has the split that this run is asked for.
    _require_listed(unchanged, by_id, store, any_split=plan.squares is not None)
    new = [grid for grid in grids if grid.scene_id not in by_id]
    return make_header(settings, {**known["scenes"], **scenes}, grids=[asdict(grid) for grid in (*held, *new)])


def _require_listed(grids: Sequence[SceneGrid], held: Mapping[str, SceneGrid], store: Path, *, any_split: bool) -> None:
    """See that a store lists scenes of this run as they are, whose images are those that it was made from.

    Raises:
        DamagedError: when it does not; it could be the size that memory or a whole day is asked for.
    """
    for grid in grids:
        there = held.get(grid.scene_id)
        if there is not None and grid != (replace(there, split=grid.split) if any_split else there):
            raise damaged_header(store, f"its grid of scene {grid.scene_id} is not that of the image")


def _grids_of(store: Path, known: dict[str, Any]) -> list[SceneGrid]:
    if not known["scenes"]:
        return []
    names = SceneGrid.__dataclass_fields__
    scenes = PredictionStore(store).scenes.values()
    return [SceneGrid(**{name: getattr(scene, name) for name in names}) for scene in scenes]


def grids_of(plan: InferPlan) -> list[SceneGrid]:
    """The scenes of a plan as the store knows them."""
    return [
        SceneGrid(
            scene_id=scene.scene_id, split=scene.split, height=scene.height, width=scene.width, crs=scene.crs or "",
            transform=tuple(map(float, tuple(scene.transform)[:6])),  # type: ignore[arg-type]
        )
        for scene in plan.scenes
    ]  # fmt: skip


def store_settings(plan: InferPlan, fingerprint: str) -> dict[str, Any]:
    """What a store is created with besides its scenes; the arguments of `PredictionStore.create`."""
    contract, sliding = plan.contract, plan.sliding
    model = ("architecture", "encoder", "band_names", "dtype", "chip_size", "pixel_size_range", "geochip_version")
    return {
        "class_names": contract.class_names,
        "block": plan.config.infer.block,
        "probability": plan.config.infer.probability,
        "attributes": {
            "geochip_version": geochip.__version__,
            "fingerprint": fingerprint,
            "model_sha256": plan.model_sha256,
            "model": {name: getattr(contract, name) for name in model},
            "chip_store_fingerprint": contract.chip_store_fingerprint,
            "split_overlap": contract.split_overlap,
            "window": sliding.size,
            "stride": sliding.stride,
            "blend": sliding.blend,
            "batch_size": sliding.batch_size,
            **({} if plan.squares is None else {RECORD: plan.squares.to_json()}),
        },
    }


@dataclass(frozen=True, kw_only=True)
class State:
    """What there is of a store."""

    places: dict[str, PredictedScene]
    """Every scene of the store by its id, in the order in which they were added; complete as far as is known."""
    pieces: tuple[Piece, ...]
    """All blocks of the scenes of this run."""
    missing: frozenset[str]
    """Keys of the blocks, of any scene, that are not predicted, or lost."""

    @property
    def to_do(self) -> list[Piece]:
        """The blocks to predict."""
        return [piece for piece in self.pieces if piece.key in self.missing]


def look(plan: InferPlan, store: Path, journal: Journal) -> State:
    """See what is there. A block of a scene that could not be read is missing: it may read now."""
    side, probability = plan.config.infer.block, plan.config.infer.probability
    scenes = stacked(grids_of_header(journal.header))
    all_blocks = [
        (block_key(scene.scene_id, block), scene, block)
        for scene in scenes
        for block in blocks(scene.height, scene.width, side)
    ]
    journal.forget(_unknown(journal, scenes, [key for key, *_ in all_blocks]))
    classes = len(plan.contract.class_names)
    missing = {key for key, *_ in all_blocks if not _is_predicted(journal, key, classes)}
    recorded = [one for one in all_blocks if one[0] not in missing]
    lost = lost_blocks(store, recorded, journal.records, side, probability=probability)
    if lost:
        print(f"lost or damaged since it was predicted: {counted(len(lost), 'block')}, predicted anew")
    missing |= lost
    incomplete = {scene.scene_id for key, scene, _ in all_blocks if key in missing}
    complete = {scene.scene_id for scene in scenes} - incomplete
    places = {scene.scene_id: scene for scene in stacked(scenes, complete)}
    pieces = tuple(
        Piece(scene=scene, place=places[scene.scene_id], block=block)
        for scene in plan.scenes
        for block in blocks(scene.height, scene.width, side)
    )
    _tell_others(plan, scenes, incomplete)
    return State(places=places, pieces=pieces, missing=frozenset(missing))


def _is_predicted(journal: Journal, key: str, classes: int) -> bool:
    if key in journal.dropped:
        return False
    record = journal.records.get(key, {})
    return "pixels" in record and len(record["class_pixels"]) == classes


def _unknown(journal: Journal, scenes: Sequence[PredictedScene], keys: Sequence[str]) -> set[str]:
    """Records of blocks and GeoTIFFs that there are none of."""
    return set(journal.records) - set(keys) - {f"cog/{scene.scene_id}" for scene in scenes}


def _tell_others(plan: InferPlan, scenes: Sequence[PredictedScene], incomplete: set[str]) -> None:
    """Say which scenes the store has besides those of this run."""
    mine = {scene.scene_id for scene in plan.scenes}
    others = [scene.scene_id for scene in scenes if scene.scene_id not in mine]
    if others:
        print(f"{_named(others)} of the store that this run does not have: what is predicted of them stays")
    if gone := [name for name in others if name in incomplete]:
        print(
            f"warning: blocks of {_named(gone)} are not predicted, or lost, and this run does not have them; run again "
            "with these scenes"
        )


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} scene{'s' if len(names) > 1 else ''} ({shown})"


def finished_scenes(state: State, failed: Sequence[str]) -> Iterator[str]:
    """Ids of the scenes that are complete once the missing blocks of this run are predicted, but for some."""
    mine = {piece.scene.scene_id for piece in state.pieces}
    for name, place in state.places.items():
        if place.complete or (name in mine and name not in failed):
            yield name
