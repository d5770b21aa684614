"""The run file: one YAML file that every command reads, each key of which a command-line flag can override.

The dataclasses below are the grammar: field names are the keys, the line under a field is its help text, and
`__post_init__` holds what a value may be. jsonargparse turns them into flags, YAML and `--print_config`.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from geochip.errors import InputError

Device = Literal["auto", "cpu", "cuda"]

IGNORE = 255
"""Label and prediction value of pixels that count for nothing: nodata, or outside the scene."""


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
    """Split to predict when the command line names no files."""
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
        val_split = self.train.val_split
        _check(
            (bool(self.run_dir), "run_dir", self.run_dir, "must not be empty"),
            (self.train.split in self.data.splits, "train.split", self.train.split, splits),
            (val_split is None or val_split in self.data.splits, "train.val_split", val_split, f"{splits}, or null"),
            (self.infer.split in self.data.splits, "infer.split", self.infer.split, splits),
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
        return self.prediction_store.with_suffix("")

    @property
    def eval_path(self) -> Path:
        """The scores."""
        return Path(self.run_dir) / "eval.json"


def available_cpus() -> int:
    """CPUs that this process may use: what Slurm or taskset left it, not what the machine has."""
    return len(os.sched_getaffinity(0))


def parse_run_config(
    argv: Sequence[str], *, command: str, description: str, files: str | None = None
) -> tuple[RunConfig, tuple[str, ...]]:
    """Read the run file and the flags of one command.

    Args:
        argv: the command line without the program's name.
        command: the module's name, such as "chipping".
        description: what the command does, for --help.
        files: help text of the file names that may follow the flags; None when the command takes none.

    Returns:
        The configuration, and the file names (empty when there are none).

    Raises:
        InputError: for unknown keys, wrong types and impossible values; each line of its text names a key, its value
            and what is allowed.
    """
    parser = _parser(f"python -m geochip.{command}", description)
    if files is not None:
        parser.add_argument("files", nargs="*", type=str, help=files)
    # The bare flag prints the comments too: they are where a person learns what a key means.
    argv = ["--print_config=comments" if word == "--print_config" else word for word in argv]
    try:
        namespace = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InputError(_explain(str(error))) from None
    names = tuple(namespace.pop("files", None) or ())
    config = parser.instantiate(namespace)
    return RunConfig(**{field.name: config[field.name] for field in fields(RunConfig)}), names


def _parser(prog: str, description: str) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument("--config", action="config", help="the run file (YAML); flags after it override its keys")
    parser.add_class_arguments(RunConfig, None)
    return parser


def config_keys(section: type = RunConfig, prefix: str = "") -> list[str]:
    """All keys of the run file, dotted, in the order of the dataclasses."""
    keys: list[str] = []
    for field in fields(section):
        if isinstance(field.type, type) and is_dataclass(field.type):
            keys += config_keys(field.type, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def _explain(message: str) -> str:
    """Put jsonargparse's message into one line that names the key, the value and what is allowed."""
    keys = config_keys()
    for pattern, form in (
        (r"Group '(\w+)' does not accept option '([\w.]+)'", "{0}.{1}"),
        (r"Option '([\w.]+)' is not accepted", "{0}"),
        (r"unrecognized arguments: --?([\w.]+)", "{0}"),
    ):
        if found := re.search(pattern, message):
            key = form.format(*found.groups())
            close = get_close_matches(key, keys, n=1, cutoff=0.8)
            section = f"{key.split('.')[0]}."
            known = [name for name in keys if name.startswith(section)] or [field.name for field in fields(RunConfig)]
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            return f"{key}: there is no such key; {hint}"
    if found := re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL):
        key, reason = found.groups()
        if key == "config":
            return f"--config: {_one_line(reason)}; give the path of a run file"
        if wrong := re.search(r"(?:Got|Given) value: (.*)", reason, re.DOTALL):
            return f"{key}: {_one_line(wrong[1])!r} is not allowed: must be {_expected(key)}"
        return f"{key}: {_one_line(reason)}"
    return _one_line(message)


def _expected(key: str) -> str:
    """What a key takes, in words."""
    annotation: Any = RunConfig
    for name in key.split("."):
        annotation = next((field.type for field in fields(annotation) if field.name == name), Any)
    if isinstance(annotation, type) and is_dataclass(annotation):
        return f"a section with the keys {', '.join(field.name for field in fields(annotation))}"
    words = str(annotation).replace("typing.", "")
    if isinstance(annotation, type):
        words = annotation.__name__
    replacements = {
        r"tuple\[int, \.\.\.\]": "a list of whole numbers", r"tuple\[str, \.\.\.\]": "a list of names",
        r"\bint\b": "a whole number", r"\bfloat\b": "a number", r"\bstr\b": "text", r"\bbool\b": "true or false",
        r"\bNone\b": "null", r"\bLiteral\[(.*?)\]": r"one of \1",
        r" \| ": " or ",
    }  # fmt: skip
    for pattern, word in replacements.items():
        words = re.sub(pattern, word, words)
    return words


def _one_line(text: str) -> str:
    return " ".join(text.split())
