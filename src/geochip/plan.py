"""Which chips are cut where, and which task cuts them: pure and deterministic.

Row i of a split's plan IS position i in the store. The plan depends on the scenes and the configuration alone, and a
scene's windows on the seed and its own id and shape alone: adding a scene changes no other scene's windows.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine

from geochip.config import ChipsConfig, DataConfig
from geochip.scenes import Scene, scene_digest
from geochip.windows import Window, random_windows

_CHIPS_PER_SHARD = 64
_LARGEST_SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """The chips of one split, by position."""

    split: str
    scenes: tuple[Scene, ...]
    scene_index: npt.NDArray[np.int64]
    """(chip,) index into `scenes`, ascending."""
    windows: tuple[Window, ...]
    """(chip,) where in its scene each chip is cut."""

    def transforms(self) -> npt.NDArray[np.float64]:
        """(chip, 6) affine coefficients a, b, c, d, e, f of each chip's own pixel grid."""
        rows = [
            tuple(self.scenes[index].transform @ Affine.translation(window.col_off, window.row_off))[:6]
            for index, window in zip(self.scene_index, self.windows, strict=True)
        ]
        return np.array(rows, np.float64).reshape(-1, 6)


@dataclass(frozen=True, kw_only=True)
class ChipTask:
    """What one task does: all chips of one shard."""

    split: str
    start: int
    """Position of its first chip."""
    cuts: tuple[tuple[Scene, tuple[Window, ...]], ...]
    """Scenes with their windows, in the order of positions."""

    @property
    def key(self) -> str:
        """Name of the task in the journal."""
        return f"{self.split}/{self.start}"

    @property
    def chips(self) -> int:
        """Number of chips."""
        return sum(len(windows) for _, windows in self.cuts)


@dataclass(frozen=True, kw_only=True)
class ChipPlan:
    """All chips of a store."""

    splits: tuple[SplitPlan, ...]
    shard: int
    """Chips in a shard, and so in a task."""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return sum(len(split.windows) for split in self.splits)

    def tasks(self) -> Iterator[ChipTask]:
        """One task for each shard, split by split."""
        for split in self.splits:
            for start in range(0, len(split.windows), self.shard):
                positions = range(start, min(start + self.shard, len(split.windows)))
                cuts: dict[int, list[Window]] = {}
                for position in positions:
                    cuts.setdefault(int(split.scene_index[position]), []).append(split.windows[position])
                yield ChipTask(
                    split=split.split,
                    start=start,
                    cuts=tuple((split.scenes[index], tuple(windows)) for index, windows in cuts.items()),
                )


def plan_chips(scenes: Sequence[Scene], chips: ChipsConfig) -> ChipPlan:
    """Draw the windows of all scenes and share them out over shards.

    Args:
        scenes: usable scenes, all of one dtype and number of bands; their order, split by split, is the order of chips.
        chips: size, number and seed.

    Returns:
        The plan; splits in the order in which they first occur.
    """
    splits = []
    for name in dict.fromkeys(scene.split for scene in scenes):
        members = tuple(scene for scene in scenes if scene.split == name)
        drawn = [
            random_windows(scene.height, scene.width, chips.size, chips.per_scene, scene_generator(chips.seed, scene))
            for scene in members
        ]
        splits.append(
            SplitPlan(
                split=name,
                scenes=members,
                scene_index=np.repeat(np.arange(len(members)), [len(windows) for windows in drawn]),
                windows=tuple(window for windows in drawn for window in windows),
            )
        )
    chip_bytes = chips.size**2 * (len(scenes[0].bands) * np.dtype(scenes[0].dtype).itemsize + 1)
    return ChipPlan(splits=tuple(splits), shard=_chips_per_shard(chips.per_scene, chip_bytes))


def scene_generator(seed: int, scene: Scene) -> np.random.Generator:
    """The random numbers of one scene: they depend on the seed and the scene's id, on nothing else."""
    digest = hashlib.sha256(f"{seed}/{scene.scene_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _chips_per_shard(per_scene: int, chip_bytes: int) -> int:
    most = max(1, min(_CHIPS_PER_SHARD, _LARGEST_SHARD_BYTES // chip_bytes))
    if per_scene > most:
        return most
    # Whole scenes: a scene whose chips lie in two shards is read and rasterized twice.
    return round(most / per_scene) * per_scene


def chips_depend_on(
    scenes: Sequence[Scene], data: DataConfig, chips: ChipsConfig, train_split: str
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """What decides what the chips hold, to compare with what a rerun would make.

    Paths are left out: a data set that was moved gives the same chips.

    Returns:
        The settings by their keys in the run file, and each scene's digests by split/id.
    """
    settings = {f"data.{name}": getattr(data, name) for name in ("splits", "bands", "classes", "class_property")}
    settings["train.split"] = train_split
    settings |= {f"chips.{name}": value for name, value in asdict(chips).items() if name != "store"}
    return settings, {f"{scene.split}/{scene.scene_id}": scene_digest(scene, with_label=True) for scene in scenes}
