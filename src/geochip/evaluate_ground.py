"""Which ground of the predicted scenes the scores are of: where squares divide the scenes, that of one split."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import shapely
from affine import Affine

from geochip.config import RunConfig
from geochip.labels import Grid
from geochip.scenes import RECORD, Squares, recorded_squares
from geochip.store import PredictedScene, PredictionStore


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is counted of a predicted scene."""

    split: str
    """The split that it belongs to."""
    region: shapely.Geometry | None = None
    """In pixel coordinates; None: all of it."""
    blocks: int = 0
    """Squares of ground that the region is made of."""
    of: int = 0
    """Squares of ground that the scene has."""


def find_parts(
    store: PredictionStore, scene_ids: Collection[str], squares: Squares | None, config: RunConfig
) -> dict[str, Part]:
    """What to count of each scene: of one that is divided the ground of infer.split, else all of it."""
    scenes = [store.scenes[scene_id] for scene_id in scene_ids]
    if squares is None:
        return {scene.scene_id: Part(split=scene.split) for scene in scenes}
    return {
        # What no split has is no part of the division either.
        scene.scene_id: _part(squares, scene, config.infer.split) if scene.split else Part(split="")
        for scene in scenes
    }


def squares_of(store: PredictionStore, config: RunConfig) -> Squares | None:
    """The squares that divide the scenes of a store; None where every scene is whole.

    A store whose first scenes were of no split does not have them; then the chip store's catalogue does.

    Raises:
        DamagedError: when their record cannot be read.
    """
    if RECORD not in store.attrs:
        return recorded_squares(config) if config.split.by == "blocks" else None
    remedy = "remove it and run geochip.infer again"
    return Squares.from_json(store.attrs[RECORD], f"{store.path} ({RECORD})", remedy)


def _part(squares: Squares, scene: PredictedScene, wanted: str) -> Part:
    grid = grid_of(scene)
    # A scene that has nothing of infer.split is what it was predicted as.
    for split in (wanted, scene.split):
        region = squares.region(grid, split)
        if region is None or not shapely.is_empty(region):
            of = {one: squares.count(grid, one) for one in squares.owners}
            return Part(split=split, region=region, blocks=of[split], of=sum(of.values()))
    return Part(split=scene.split)


def grid_of(scene: PredictedScene) -> Grid:
    """The pixel grid of a scene, for its labels."""
    return Grid(height=scene.height, width=scene.width, transform=Affine(*scene.transform), crs=scene.crs or None)


def blocks_counted(squares: Squares | None, parts: Mapping[str, Part]) -> dict[str, Any] | None:
    """Which ground of divided scenes the scores are of; None where every scene is whole."""
    if squares is None:
        return None
    return {
        "side": squares.side,
        "per_scene": {
            scene_id: {"split": part.split, "blocks": part.blocks, "of": part.of}
            for scene_id, part in parts.items()
            if part.split
        },
    }


def describe_blocks(counted: Mapping[str, Any]) -> str:
    """The same in words."""
    of = list(counted["per_scene"].values())
    splits = " and ".join(sorted({one["split"] for one in of}))
    some, every = (sum(one[name] for one in of) for name in ("blocks", "of"))
    return (
        f"counted: {some} of {every} blocks of {counted['side']:g} m, those of {splits}; --infer.split names another "
        "split"
    )
