"""The network: built from segmentation-models-pytorch, fed with raw pixels.

Shapes in names: b = batch, c = band, k = class, h = row, w = column.

What the network sees is decided here and nowhere else: training and inference hand over pixels in the source's own
units, and the model normalises them, pads them to what its encoder takes, and crops the answer back.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geochip.config import IGNORE
from geochip.errors import InputError
from geochip.model.encoders import LINEAR, brief, check_names, without_network


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model expects of data and says about it: model.json."""

    architecture: str
    """As `model.architecture` of the run file."""
    encoder: str
    """As `model.encoder`; "linear" has none and ignores it."""
    class_names: tuple[str, ...]
    """A class's place is its id."""
    band_names: tuple[str, ...]
    """Of the bands used, in the order of the network's input."""
    bands: tuple[int, ...]
    """Their numbers in the source's files, counted from 1."""
    dtype: str
    """NumPy name of the source's type, such as uint16."""
    nodata: float | None
    """A pixel all of whose bands hold it is nodata."""
    mean: tuple[float, ...]
    """Of each band over the training split, in the source's units."""
    std: tuple[float, ...]
    """Likewise."""
    chip_size: int
    """Rows and columns that the network was trained on."""
    pixel_size_range: tuple[float, float] | None
    """Smallest and largest ground size of a pixel in the training scenes, in metres; None without a CRS."""
    chip_store_fingerprint: str
    """Of the chip store that it was trained on."""
    geochip_version: str
    """That trained it."""
    split_overlap: dict[str, Any] | None = None
    """Chips that it was trained on and that show the same ground as chips of other splits, as the chip store tells it;
    None when there are none."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last epoch's row of the training log."""

    def __post_init__(self) -> None:
        lengths = {len(self.bands), len(self.band_names), len(self.mean), len(self.std)}
        if len(lengths) != 1 or not self.bands:
            raise ValueError(
                f"bands {self.bands}, band_names {self.band_names}, mean {self.mean} and std {self.std} must be as "
                "many, and at least one"
            )
        if not 2 <= len(self.class_names) <= IGNORE or not _distinct(self.class_names):
            raise ValueError(f"class_names {self.class_names} must be 2 to {IGNORE}, none twice and none empty")
        if min(self.bands) < 1 or not _distinct(self.bands) or not _distinct(self.band_names):
            raise ValueError(f"bands {self.bands} and band_names {self.band_names} must be of different bands")
        if not all(map(math.isfinite, self.mean)) or not all(0 <= value < math.inf for value in self.std):
            raise ValueError(f"mean {self.mean} and std {self.std} must be finite, std at least 0")
        if self.chip_size < 1:
            raise ValueError(f"chip_size {self.chip_size} must be at least 1")
        low, high = self.pixel_size_range or (1.0, 1.0)
        if not 0 < low <= high < math.inf:
            raise ValueError(f"pixel_size_range {self.pixel_size_range} must be [smallest, largest] in metres")


def _distinct(values: tuple[Any, ...]) -> bool:
    return len(set(values)) == len(values) and all(values)


class SegmentationModel(nn.Module):
    """A network that takes raw pixels of any height and width."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, contract: Contract, *, multiple: int) -> None:
        """Wrap a network.

        Args:
            network: takes normalised float32 (b, c, h, w) and returns logits (b, k, h, w), for h and w that are
                multiples of `multiple`.
            contract: tells the normalisation and nodata.
            multiple: of pixels.
        """
        super().__init__()
        self.network = network
        self.nodata = contract.nodata
        self.multiple = multiple
        # A band without any spread carries nothing: dividing by 1 makes it 0 instead of NaN.
        std = [value if value > 0 else 1.0 for value in contract.std]
        # Not among the weights: the contract alone says how to normalise.
        for name, values in (("mean", contract.mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, image_bchw: Tensor) -> Tensor:
        """Logits of each pixel.

        Args:
            image_bchw: pixels in the source's own units, of any real type, uint16 included. A pixel is nodata where
                all bands hold the contract's nodata value or any is not finite; it reaches the network as 0, the
                band's mean.

        Returns:
            logits_bkhw: float32, of the input's height and width.
        """
        height, width = image_bchw.shape[-2:]
        normalised = self.normalise(image_bchw)
        # Below and to the right, where windows may hang over a scene, and with what nodata becomes.
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        logits: Tensor = self.network(functional.pad(normalised, padding))
        return logits[..., :height, :width].float()

    def normalise(self, image_bchw: Tensor) -> Tensor:
        """(pixel - mean) / std in float32, and 0 where a pixel is nodata."""
        pixels = image_bchw.to(torch.float32)
        missing = ~pixels.isfinite().all(dim=1, keepdim=True)
        if self.nodata is not None:
            missing |= (pixels == self.nodata).all(dim=1, keepdim=True)
        return ((pixels - self.mean) / self.std).masked_fill(missing, 0.0)


def build_model(contract: Contract, *, encoder_weights: str | None = None) -> SegmentationModel:
    """Build a model with weights drawn from torch's random numbers.

    Args:
        contract: names architecture and encoder; its classes, bands, normalisation and nodata are built in.
        encoder_weights: name of the encoder's pretrained weights, which `fetch_encoder_weights` must have found; None:
            random ones.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        InputError: for an architecture, encoder or weights that segmentation-models-pytorch does not know, or that do
            not go together.
    """
    bands, classes = len(contract.bands), len(contract.class_names)
    if contract.architecture == LINEAR:
        return SegmentationModel(nn.Conv2d(bands, classes, kernel_size=1), contract, multiple=1)
    check_names(contract.architecture, contract.encoder)
    with without_network(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import segmentation_models_pytorch as smp

        try:
            network = smp.create_model(
                contract.architecture,
                encoder_name=contract.encoder,
                encoder_weights=encoder_weights,
                in_channels=bands,
                classes=classes,
            )
        except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, NotImplementedError, OSError) as error:
            raise InputError(
                f"model.architecture {contract.architecture!r} cannot be built with model.encoder "
                f"{contract.encoder!r}: {brief(error)}; choose another of the two, unet with resnet50 for example"
            ) from error
    return SegmentationModel(network, contract, multiple=math.lcm(32, int(network.encoder.output_stride)))


def rehearse(model: SegmentationModel, *, batch_size: int, chip_size: int) -> None:
    """Run one training step on shapes alone, without computing, to learn beforehand what would stop it.

    Parameters that the network has but does not use (an encoder's last layer, often) stop being trainable: DDP would
    wait for their gradients for ever.

    Args:
        model: in the mode that it will be trained in.
        batch_size: chips a rank and step.
        chip_size: rows and columns.

    Raises:
        InputError: when the network cannot be trained on such batches.
    """
    shapes = {name: value.detach().to("meta") for name, value in [*model.named_parameters(), *model.named_buffers()]}
    for name, parameter in model.named_parameters():
        shapes[name].requires_grad_(parameter.requires_grad)
    image = torch.empty(batch_size, model.mean.shape[1], chip_size, chip_size, device="meta")
    try:
        torch.func.functional_call(model, shapes, (image,)).sum().backward()
    except (ValueError, RuntimeError, AssertionError) as error:
        if "more than 1 value per channel" in str(error):
            raise InputError(
                f"train.batch_size: {batch_size} chip of {chip_size} x {chip_size} pixels leaves BatchNorm one value "
                "per channel somewhere in this network, which has no variance; use --train.batch_size 2 or more, or "
                "--train.freeze_batchnorm true with pretrained weights"
            ) from None
        raise InputError(
            f"model.architecture: the network cannot take chips of {chip_size} x {chip_size} pixels: {brief(error)}; "
            "choose another model.architecture, model.encoder or chips.size"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(shapes[name].grad is not None)


def not_finite(state: Mapping[str, Tensor]) -> str:
    """Name the first of a model's weights that holds NaN or infinity, which makes every prediction one class.

    Args:
        state: a state_dict.

    Returns:
        Its name; empty when all are finite.
    """
    return next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), "")
