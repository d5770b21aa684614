"""The run file: one YAML file that every command reads, each key of which a command-line flag can override.

The dataclasses below are the grammar: field names are the keys, the line under a field is its help text, and
`__post_init__` holds what a value may be. jsonargparse turns them into flags, YAML and `--print_config`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geochip.errors import InputError

Device = Literal["auto", "cpu", "cuda"]

IGNORE = 255
"""Label and prediction value of pixels that count for nothing: nodata, or outside the scene."""
PROBABILITY_STEPS = 254
"""A probability of 1 is stored as this number; 255 is left for nodata."""


def _check(*rules: tuple[bool, str, object, str]) -> None:
    """Raise one `InputError` with a line for each rule (holds, key, value, what is allowed) that does not hold."""
    broken = [f"{key}: {value!r} is not allowed: {allowed}" for holds, key, value, allowed in rules if not holds]
    if broken:
        raise InputError("\n".join(broken))


@dataclass(frozen=True)
class DataConfig:
    """Where the scenes and their labels are, and what the labels mean."""

    root: str = "data"
    """Directory that the templates below are relative to."""
    image: str = "{split}/RGB-PanSharpen_AOI_2_Vegas_img{id}.tif"
    """Template of the images' paths: {split} is a split's name, {id} becomes the scene's id."""
    label: str = "{split}/buildings_AOI_2_Vegas_img{id}.geojson"
    """Template of the labels' paths, filled with the image's split and id."""
    splits: tuple[str, ...] = ("train", "val", "test")
    """Splits to look for; each becomes a group of the chip store."""
    bands: tuple[int, ...] | None = None
    """Bands to use, in this order, counted from 1 as GDAL does; null: all but an alpha band."""
    classes: tuple[str, ...] = ("background", "building")
    """Class names; a class's place in this list is its id, the first is what lies under no geometry."""
    class_property: str | None = None
    """Property of a label's features that holds the class name; null: every geometry is of the second class."""
    max_bad_scenes: int = 0
    """So many scenes may be unreadable before a command ends with exit code 1; they are set aside and named anyway."""

    def __post_init__(self) -> None:
        names = [*self.splits, *self.classes]
        bands = self.bands
        _check(
            ("{id}" in self.image, "data.image", self.image, "must contain {id}"),
            ("{id}" in self.label, "data.label", self.label, "must contain {id}"),
            *(
                (
                    not re.search(r"\{(?!split\}|id\})", template),
                    key,
                    template,
                    "only {split} and {id} can be filled in, there is another opening brace",
                )
                for key, template in (("data.image", self.image), ("data.label", self.label))
            ),
            (
                "{split}" in self.image or len(self.splits) == 1,
                "data.image",
                self.image,
                "must contain {split} when there are several splits, else each would hold the same scenes",
            ),
            (bool(self.splits), "data.splits", self.splits, "must name at least one split"),
            (len(set(self.splits)) == len(self.splits), "data.splits", self.splits, "must not name a split twice"),
            (
                all(re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-][A-Za-z0-9_.-]*", name) for name in self.splits),
                "data.splits",
                self.splits,
                "a split's name is made of letters, digits, '_', '-' and '.'",
            ),
            (2 <= len(self.classes) <= 255, "data.classes", self.classes, "must be 2 to 255 names, background first"),
            (len(set(self.classes)) == len(self.classes), "data.classes", self.classes, "must not name a class twice"),
            (all(names), "data.classes, data.splits", names, "a name must not be empty"),
            (
                self.class_property is not None or len(self.classes) <= 2,
                "data.class_property",
                self.class_property,
                f"must name the property that tells the {len(self.classes) - 1} classes of geometries apart",
            ),
            (
                bands is None or (len(bands) > 0 and min(bands) >= 1),
                "data.bands",
                bands,
                "must be band numbers of at least 1, or null for all",
            ),
            (
                bands is None or len(set(bands)) == len(bands),
                "data.bands",
                bands,
                "must not name a band twice",
            ),
            (self.max_bad_scenes >= 0, "data.max_bad_scenes", self.max_bad_scenes, "must be at least 0"),
        )


@dataclass(frozen=True)
class ChipsConfig:
    """How chips are cut from the scenes."""

    size: int = 300
    """Height and width of a chip, in pixels of the scene: chips are never resized."""
    per_scene: int = 5
    """Random windows drawn from each scene, wholly inside it and no two alike."""
    seed: int = 0
    """Seed of the windows; a scene's windows depend on it and on the scene's id alone."""
    store: str | None = None
    """Path of the chip store; null: chips.zarr in run_dir."""

    def __post_init__(self) -> None:
        _check(
            (1 <= self.size <= 16384, "chips.size", self.size, "must be 1 to 16384 pixels"),
            (1 <= self.per_scene <= 100_000, "chips.per_scene", self.per_scene, "must be 1 to 100000"),
            (self.seed >= 0, "chips.seed", self.seed, "must be at least 0"),
        )


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    architecture: str = "deeplabv3plus"
    """A segmentation-models-pytorch architecture (deeplabv3plus, deeplabv3, unet, fpn, segformer, ...), or "linear":
    one weight per band and class, for trials of everything around the network."""
    encoder: str = "resnet50"
    """A segmentation-models-pytorch encoder, such as resnet18, resnet50 or tu-convnext_tiny."""
    encoder_weights: str | None = "imagenet"
    """Pretrained weights of the encoder, fetched once and then cached; null: begin from random weights."""
    bundle: str | None = None
    """Directory of the trained model; null: model in run_dir."""


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained. The defaults are those of the Raster Vision tutorial's job."""

    split: str = "train"
    """Split to train on."""
    val_split: str | None = "val"
    """Split to validate on after each epoch; null: none."""
    epochs: int = 3
    """Passes over the training split."""
    batch_size: int = 2
    """Chips a rank and step; times the number of ranks it is the global batch."""
    lr: float = 1e-4
    """Adam's learning rate, at its peak."""
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    """one_cycle: from lr/10 up to lr over the first half of the steps, and down again; constant: lr throughout."""
    augment: bool = True
    """Flip and turn training chips at random, by multiples of 90 degrees."""
    freeze_batchnorm: bool = False
    """Keep the running statistics of BatchNorm layers as they are; sensible with pretrained weights and few chips."""
    seed: int = 0
    """Seed of the weights, of the order of chips and of the augmentation."""
    device: Device = "auto"
    """Where to compute; auto: a GPU for each local rank where there is one, else the CPU."""

    def __post_init__(self) -> None:
        _check(
            (self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1"),
            (self.batch_size >= 1, "train.batch_size", self.batch_size, "must be at least 1"),
            (0 < self.lr < float("inf"), "train.lr", self.lr, "must be greater than 0"),
            (self.seed >= 0, "train.seed", self.seed, "must be at least 0"),
        )


@dataclass(frozen=True)
class InferConfig:
    """How whole scenes are predicted."""

    split: str = "test"
    """Split to predict when no files are named."""
    files: tuple[str, ...] = ()
    """Images to predict instead of a split's; those on the command line come first."""
    window: int | None = None
    """Height and width of the sliding window, in pixels; null: the chip size that the model was trained on."""
    stride: int | None = None
    """Distance between windows, in pixels, 1 to window; null: half the window."""
    blend: Literal["hann", "average"] = "hann"
    """How overlapping windows are weighted: hann trusts a window's middle more than its edge."""
    batch_size: int = 8
    """Windows that pass through the network at once."""
    block: int = 2048
    """Height and width, in pixels, of the piece of a scene that one task predicts and writes."""
    probability: bool = False
    """Keep each class's probability as well, in steps of 1/254."""
    cog: bool = True
    """Write a cloud-optimised GeoTIFF for each scene."""
    device: Device = "auto"
    """Where to compute; auto: a GPU where there is one, else the CPU."""
    store: str | None = None
    """Path of the prediction store; null: predictions.zarr in run_dir."""

    def __post_init__(self) -> None:
        _check(
            (self.window is None or self.window >= 1, "infer.window", self.window, "must be at least 1, or null"),
            (self.stride is None or self.stride >= 1, "infer.stride", self.stride, "must be at least 1, or null"),
            (
                self.window is None or self.stride is None or self.stride <= self.window,
                "infer.stride",
                self.stride,
                f"must be at most infer.window ({self.window}), else pixels between windows get no prediction",
            ),
            (self.batch_size >= 1, "infer.batch_size", self.batch_size, "must be at least 1"),
            (self.block >= 16, "infer.block", self.block, "must be at least 16 pixels"),
        )


@dataclass(frozen=True)
class ClusterConfig:
    """Where Dask runs: chipping and inference are spread over its workers."""

    kind: Literal["local", "address"] = "local"
    """local: worker processes on this machine; address: a Dask scheduler that runs already."""
    workers: int | None = None
    """Worker processes of a local cluster; null: one for each CPU that this process may use."""
    address: str | None = None
    """Address of the running scheduler, such as tcp://10.0.0.1:8786, for kind: address."""

    def __post_init__(self) -> None:
        _check(
            (self.workers is None or self.workers >= 1, "cluster.workers", self.workers, "must be at least 1, or null"),
            (
                self.kind != "address" or bool(self.address),
                "cluster.address",
                self.address,
                "must be given for cluster.kind: address, such as tcp://10.0.0.1:8786",
            ),
        )


@dataclass(frozen=True)
class RunConfig:
    """A whole run: where it is kept, and a section for each part."""

    run_dir: str = "runs/geochip"
    """Directory of everything that the run makes."""
    data: DataConfig = DataConfig()
    """Scenes and labels."""
    chips: ChipsConfig = ChipsConfig()
    """Chips."""
    model: ModelConfig = ModelConfig()
    """Network."""
    train: TrainConfig = TrainConfig()
    """Training."""
    infer: InferConfig = InferConfig()
    """Inference."""
    cluster: ClusterConfig = ClusterConfig()
    """Dask cluster."""

    def __post_init__(self) -> None:
        splits = f"must be one of data.splits: {', '.join(self.data.splits)}"
        # The other splits are looked at by the commands that use them: no test split is needed to train.
        _check(
            (bool(self.run_dir), "run_dir", self.run_dir, "must not be empty"),
            (self.train.split in self.data.splits, "train.split", self.train.split, splits),
        )

    @property
    def chip_store(self) -> Path:
        """The chip store."""
        return Path(self.chips.store or Path(self.run_dir) / "chips.zarr")

    @property
    def catalogue_path(self) -> Path:
        """The scene catalogue (GeoParquet), beside the chip store."""
        return self.chip_store.parent / "scenes.parquet"

    @property
    def train_dir(self) -> Path:
        """Checkpoints and logs of the training."""
        return Path(self.run_dir) / "train"

    @property
    def bundle_dir(self) -> Path:
        """The trained model."""
        return Path(self.model.bundle or Path(self.run_dir) / "model")

    @property
    def prediction_store(self) -> Path:
        """The prediction store."""
        return Path(self.infer.store or Path(self.run_dir) / "predictions.zarr")

    @property
    def cog_dir(self) -> Path:
        """Cloud-optimised GeoTIFFs, one a scene, beside the prediction store."""
        store = self.prediction_store
        return store.with_suffix("") if store.suffix == ".zarr" else store.with_name(f"{store.name}_tif")

    @property
    def eval_path(self) -> Path:
        """The scores."""
        return Path(self.run_dir) / "eval.json"


def available_cpus() -> int:
    """CPUs that this process may use: what Slurm or taskset left it, not what the machine has."""
    return len(os.sched_getaffinity(0))
