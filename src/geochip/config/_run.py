"""The other sections, and the whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from geochip.config._chips import ChipsConfig
from geochip.config._cluster import ClusterConfig
from geochip.config._data import NO_VALUE, DataConfig, LabelsConfig, SplitConfig
from geochip.config._rules import Device, check, path_rules, seed, store_rules, within


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

    def __post_init__(self) -> None:
        check(
            (self.bundle != "", "model.bundle", self.bundle, "must be the path of a directory, or null"),
            *path_rules("model.bundle", self.bundle, made=True),
        )


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
    save_minutes: float | None = None
    """Also save within an epoch, every so many minutes, against kills and power cuts; null: after each epoch only. (A
    training that is asked to stop saves in any case.)"""

    def __post_init__(self) -> None:
        check(
            within("train.epochs", self.epochs, 1, 1_000_000),
            within("train.batch_size", self.batch_size, 1, 65536),
            (0 < self.lr <= 1e6, "train.lr", self.lr, "must be greater than 0 and at most 1000000"),
            seed("train.seed", self.seed),
            (
                self.save_minutes is None or 0 < self.save_minutes <= 1_000_000,
                "train.save_minutes",
                self.save_minutes,
                "must be greater than 0 and at most 1000000, or null",
            ),
        )


@dataclass(frozen=True)
class InferConfig:
    """How whole scenes are predicted."""

    split: str = "test"
    """Split to predict when no files are named."""
    files: tuple[str, ...] = ()
    """Images to predict instead of a split's; those on the command line come first. evaluate compares one of no split
    with the label that data.label finds for its name."""
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
        check(
            within("infer.window", self.window, 1, 16384, "pixels", or_null=True),
            within("infer.stride", self.stride, 1, 16384, "pixels", or_null=True),
            (
                self.window is None or self.stride is None or self.stride <= self.window,
                "infer.stride",
                self.stride,
                f"must be at most infer.window ({self.window}), else pixels between windows get no prediction",
            ),
            within("infer.batch_size", self.batch_size, 1, 65536),
            within("infer.block", self.block, 16, 65536, "pixels"),
            *path_rules("infer.files", *self.files),
            *store_rules("infer.store", self.store),
        )


@dataclass(frozen=True)
class RunConfig:
    """A whole run: where it is kept, and a section for each part."""

    run_dir: str = "runs/geochip"
    """Directory of everything that the run makes."""
    data: DataConfig = DataConfig()
    """Scenes and labels."""
    labels: LabelsConfig = LabelsConfig()
    """How labels become class ids."""
    split: SplitConfig = SplitConfig()
    """Which scene belongs to which split."""
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
        data, labels, chips = self.data, self.labels, self.chips
        splits, classes = (f"must be one of {key}: {', '.join(names)}" for key, names in (
            ("data.splits", data.splits), ("data.classes", data.classes),
        ))  # fmt: skip
        aoi_divides = self.chips.aoi is not None and "{split}" in self.chips.aoi
        named: list[tuple[str, object, set[str]]] = [
            ("labels.class_map", labels.class_map, set((labels.class_map or {}).values())),
            ("labels.priority", labels.priority, set(labels.priority)),
            ("labels.buffer", labels.buffer, set(labels.buffer) if isinstance(labels.buffer, dict) else set()),
            ("chips.target_classes", chips.target_classes, set(chips.target_classes)),
        ]
        # The other splits are looked at by the commands that use them: no test split is needed to train.
        check(
            (bool(self.run_dir), "run_dir", self.run_dir, "must not be empty"),
            *path_rules("run_dir", self.run_dir, made=True),
            (
                "\\" not in str(Path(self.run_dir).absolute()) or bool(self.chips.store and self.infer.store),
                "run_dir",
                self.run_dir,
                "must not hold a backslash, which tensorstore takes for /; choose another run_dir",
            ),
            (
                Path(self.model.bundle or "model").name not in ("", ".."),
                "model.bundle",
                self.model.bundle,
                "must be the path of a directory of its own, with a name: it is written next to, and replaced",
            ),
            (self.train.split in data.splits, "train.split", self.train.split, splits),
            (
                "{split}" in data.image or len(data.splits) == 1 or aoi_divides or self.split.by != "directories",
                "data.image",
                data.image,
                "must contain {split} when there are several splits, else each would hold the same scenes; or say with "
                "split.by how to divide them, or with {split} in chips.aoi",
            ),
            *(
                (
                    self.split.by != "blocks" or "{split}" not in template,
                    key,
                    template,
                    "must not contain {split} when split.by: blocks makes the splits",
                )
                for key, template in (
                    ("data.image", data.image),
                    ("data.label", data.label),
                    *(("data.stack", template) for template in data.stack),
                )
            ),
            (
                set(self.split.fractions or data.splits) == set(data.splits),
                "split.fractions",
                self.split.fractions,
                f"must give a share to each of data.splits: {', '.join(data.splits)}",
            ),
            (
                labels.class_property is not None
                or len(data.classes) <= 2
                or data.raster_labels
                # Whose labels the table names.
                or self.split.by == "manifest",
                "labels.class_property",
                labels.class_property,
                f"must name the property that tells the {len(data.classes) - 1} classes of geometries apart",
            ),
            *((names <= set(data.classes), key, value, classes) for key, value, names in named),
            (
                labels.no_value in {*NO_VALUE, *data.classes},
                "labels.no_value",
                labels.no_value,
                f"must be ignore, error or one of data.classes: {', '.join(data.classes)}",
            ),
            *(
                (
                    not data.raster_labels or getattr(labels, name) == getattr(LabelsConfig(), name),
                    f"labels.{name}",
                    getattr(labels, name),
                    f"is for geometries, but data.label ({data.label}) is a raster; leave it out",
                )
                for name in ("layer", "class_property", "no_value", "priority", "buffer", "buffer_units", "all_touched")
            ),
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
    def chip_table_path(self) -> Path:
        """Footprints of the chips and what they hold (GeoParquet), beside the chip store."""
        return self.chip_store.parent / "chips.parquet"

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
