"""Trained models made by hand, whose predictions can be told beforehand."""

import torch

from geochip.model import Contract, build_model, save_bundle

MEAN, STD = 100.0, 50.0
"""A pixel of class k holds MEAN + STD * k."""


def contract(*, classes=7, bands=1, **changes):
    values = {
        "architecture": "linear", "encoder": "resnet18", "class_names": tuple(f"class {k}" for k in range(classes)),
        "band_names": tuple(f"band_{band + 1}" for band in range(bands)), "bands": tuple(range(1, bands + 1)),
        "dtype": "uint16", "nodata": 0.0, "mean": (MEAN,) * bands, "std": (STD,) * bands, "chip_size": 64,
        "pixel_size_range": (0.5, 0.5), "chip_store_fingerprint": "made by hand", "geochip_version": "0",
    }  # fmt: skip
    return Contract(**values | changes)


def identity_bundle(directory, *, band=0, **changes):
    """A linear model that answers with the class that one of its bands holds.

    Its logit of class k is 8 (k x - k²/2), which is largest for the k nearest to x.
    """
    described = contract(**changes)
    model = build_model(described)
    ids = torch.arange(len(described.class_names), dtype=torch.float32)
    with torch.no_grad():
        model.network.weight.zero_()
        model.network.weight[:, band, 0, 0] = 8 * ids
        model.network.bias[:] = -4 * ids**2
    save_bundle(directory, model, described)
    return described


def random_bundle(directory, **changes):
    """A real network with random weights: it looks at neighbours, and rounds."""
    torch.manual_seed(0)
    described = contract(architecture="unet", bands=3, classes=3, **changes)
    model = build_model(described)
    save_bundle(directory, model, described)
    return described
