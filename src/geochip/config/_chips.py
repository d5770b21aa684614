"""The section of the run file about chips."""

from dataclasses import dataclass
from typing import Literal

from geochip.config._rules import check, compose, path_rules, seed, store_rules, within


@dataclass(frozen=True)
class ChipsConfig:
    """How chips are cut from the scenes."""

    size: int = 300
    """Height and width of a chip, in pixels."""
    method: Literal["random", "grid"] = "random"
    """random: windows anywhere in a scene, wholly inside it and no two alike; grid: windows in rows and columns."""
    per_scene: int = 5
    """Random windows drawn from each scene."""
    per_area: float | None = None
    """Random windows for each million pixels of a scene (or of the part of it inside chips.aoi), in place of per_scene:
    large scenes are then sampled as densely as small ones."""
    stride: int | None = None
    """Distance between the windows of a grid, in pixels; null: chips.size."""
    edge: Literal["shift", "drop", "pad"] = "shift"
    """What a grid does at a scene's lower and right edge: shift: the last window is moved back to end with the scene;
    drop: the rest is left out; pad: the last window hangs over, 255 in the label there."""
    size_range: tuple[int, int] | None = None
    """Smallest and largest height and width of random windows, in pixels of the scene; each is resampled to chips.size
    (bilinear). null: windows of chips.size, never resampled."""
    aoi: str | None = None
    """Vector file of the area of interest: one for all scenes, or a template with {split} and {id}, relative to
    data.root. Outside of it labels are 255. null: everything."""
    aoi_layer: str | None = None
    """Layer of chips.aoi that holds the area; null: the only one with geometries, of a KML all folders."""
    aoi_within: bool = True
    """Windows must lie wholly inside the area of interest; false: they must touch it."""
    min_valid: float = 0.0
    """Smallest share of a chip's pixels, 0 to 1, whose label is not 255 (nodata, outside the area of interest)."""
    target_classes: tuple[str, ...] = ()
    """Classes to look for: a chip must hold min_target_fraction of them, or is kept with negative_rate."""
    min_target_fraction: float = 0.01
    """Smallest share of a chip's valid pixels, 0 to 1, that is of target_classes."""
    negative_rate: float = 0.0
    """Share of the chips, 0 to 1, that may hold less than min_target_fraction: the first window tried does for them."""
    max_tries: int = 20
    """Windows tried for each random chip under min_valid and target_classes; a chip for which none fits is dropped and
    counted."""
    seed: int = 0
    """Seed of the windows; a scene's windows depend on it and on the scene's id alone."""
    allow_overlap: bool = False
    """Go on although chips of train.split show the same ground as chips of another split; the store, the model and
    eval.json say so then."""
    store: str | None = None
    """Path of the chip store; null: chips.zarr in run_dir."""

    def __post_init__(self) -> None:
        compose(self, "target_classes")
        low, high = self.size_range or (1, 1)
        shares = ("min_valid", "min_target_fraction", "negative_rate")
        grid = self.method == "grid"
        check(
            within("chips.size", self.size, 1, 16384, "pixels"),
            within("chips.per_scene", self.per_scene, 1, 1_000_000),
            (
                self.per_area is None or 0 < self.per_area <= 1_000_000,
                "chips.per_area",
                self.per_area,
                "must be greater than 0 and at most 1000000 chips for a million pixels, or null",
            ),
            within("chips.stride", self.stride, 1, 1_000_000, "pixels", or_null=True),
            (1 <= low <= high <= 65536, "chips.size_range", self.size_range, "must be [smallest, largest], 1 to 65536"),
            (
                not grid or self.size_range is None,
                "chips.size_range",
                self.size_range,
                "is for chips.method: random; leave it out with a grid",
            ),
            (
                not grid or self.per_area is None,
                "chips.per_area",
                self.per_area,
                "is for chips.method: random; a grid's chips.stride says how dense it is",
            ),
            (
                grid or self.stride is None,
                "chips.stride",
                self.stride,
                "is for chips.method: grid; chips.per_scene or chips.per_area say how many random windows there are",
            ),
            (
                grid or self.edge == "shift",
                "chips.edge",
                self.edge,
                "is for chips.method: grid; random windows lie inside their scene",
            ),
            (
                bool(self.target_classes) or self.negative_rate == 0,
                "chips.negative_rate",
                self.negative_rate,
                "is for chips.target_classes, which names no class",
            ),
            *(within(f"chips.{name}", getattr(self, name), 0, 1) for name in shares),
            within("chips.max_tries", self.max_tries, 1, 1_000_000),
            seed("chips.seed", self.seed),
            *path_rules("chips.aoi", self.aoi),
            *store_rules("chips.store", self.store),
            (
                self.aoi is None or not _other_braces(self.aoi),
                "chips.aoi",
                self.aoi,
                "only {split} and {id} can be filled in, there is another opening brace",
            ),
        )

    @property
    def depend_on_content(self) -> bool:
        """Whether what the pixels hold decides which windows become chips."""
        return self.min_valid > 0 or bool(self.target_classes)

    @property
    def largest_window(self) -> int:
        """Height and width of the largest window that may be cut, in pixels of the scene."""
        return self.size_range[1] if self.size_range else self.size


def _other_braces(template: str) -> bool:
    return "{" in template.replace("{split}", "").replace("{id}", "")
