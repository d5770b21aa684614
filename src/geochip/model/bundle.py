"""A trained model on disk: a directory with the weights (safetensors) and their data contract (JSON). No pickle."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from geochip.errors import InputError
from geochip.files import sync, write_durably
from geochip.model.encoders import brief
from geochip.model.network import Contract, SegmentationModel, build_model

FORMAT_VERSION = 1
WEIGHTS_FILE, CONTRACT_FILE = "model.safetensors", "model.json"


def check_bundle_dir(directory: Path) -> None:
    """Raise `InputError` when a bundle cannot be saved to `directory` without harm to what is there."""
    if directory.is_dir():
        strangers = sorted({path.name for path in directory.iterdir()} - {WEIGHTS_FILE, CONTRACT_FILE})
        if strangers:
            raise InputError(
                f"model.bundle: {directory} holds {strangers[0]!r}, which is no part of a model and would be removed; "
                "choose a directory of its own"
            )
    elif directory.exists():
        raise InputError(f"model.bundle: {directory} is a file; choose a directory")


def save_bundle(directory: Path, model: SegmentationModel, contract: Contract) -> None:
    """Write weights and contract as `directory`, whole or not at all; an older bundle there is replaced.

    Args:
        directory: will hold model.safetensors and model.json.
        model: on any device.
        contract: of this model.

    Raises:
        InputError: when `directory` holds something else.
        OSError: when the file system refuses.
    """
    directory = directory.resolve()
    check_bundle_dir(directory)
    weights = safetensors.torch.save({name: value.contiguous().cpu() for name, value in model.state_dict().items()})
    document = {
        "format_version": FORMAT_VERSION,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **asdict(contract),
    }
    if contract.nodata is not None and not math.isfinite(contract.nodata):
        document["nodata"] = str(contract.nodata)  # JSON has no NaN
    new, old = (directory.with_name(f".{directory.name}.{suffix}") for suffix in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    write_durably(new / WEIGHTS_FILE, weights)
    write_durably(new / CONTRACT_FILE, json.dumps(document, indent=2, allow_nan=False).encode())
    if directory.exists():
        # A directory cannot be renamed over a full one. A kill between these lines leaves no bundle, never half of one.
        directory.rename(old)
    new.rename(directory)
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_bundle(directory: Path, device: torch.device | str = "cpu") -> tuple[SegmentationModel, Contract]:
    """Load what `save_bundle` wrote.

    Args:
        directory: the bundle.
        device: where the model shall be.

    Returns:
        The model, in evaluation mode, and its contract.

    Raises:
        InputError: when there is no bundle, or it is damaged, or of another format version.
    """
    document = _read_contract(directory)
    path = directory / WEIGHTS_FILE
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise _broken(directory, f"{WEIGHTS_FILE} cannot be read: {error.strerror}") from None
    if hashlib.sha256(weights).hexdigest() != document.pop("weights_sha256"):
        raise _broken(directory, f"{WEIGHTS_FILE} is not the file that {CONTRACT_FILE} was written with")
    contract = _contract(document, directory)
    model = build_model(contract)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise _broken(directory, f"{WEIGHTS_FILE} does not fit {contract.architecture}: {brief(error)}") from None
    return model.eval().to(device), contract


def _read_contract(directory: Path) -> dict[str, Any]:
    """model.json as it stands, with its format version checked and taken out."""
    path = directory / CONTRACT_FILE
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"there is no trained model at {directory}; train one with python -m geochip.train_ddp, or name another "
            "with --model.bundle"
        ) from None
    except (OSError, ValueError) as error:
        raise _broken(directory, f"{CONTRACT_FILE} cannot be read: {brief(error)}") from None
    if not isinstance(document, dict) or "format_version" not in document or "weights_sha256" not in document:
        raise _broken(directory, f"{CONTRACT_FILE} is no geochip model's")
    version = document.pop("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"model {directory} has format version {version}, this geochip reads {FORMAT_VERSION}; train it "
            "anew, or use the geochip that wrote it"
        )
    return document


def _contract(document: dict[str, Any], directory: Path) -> Contract:
    try:
        values: dict[str, Any] = {
            # What bundles of earlier versions do not know may be missing.
            known.name: document.get(known.name) if known.default is None else document[known.name]
            for known in fields(Contract)
        }
        for name, kind in (("class_names", str), ("band_names", str), ("bands", int), ("mean", float), ("std", float)):
            values[name] = tuple(kind(value) for value in values[name])
        if values["nodata"] is not None:
            values["nodata"] = float(values["nodata"])
        if values["pixel_size_range"] is not None:
            low, high = values["pixel_size_range"]
            values["pixel_size_range"] = (float(low), float(high))
        return Contract(**values)
    except KeyError as error:
        raise _broken(directory, f"{CONTRACT_FILE} has no key {error}") from None
    except (TypeError, ValueError) as error:
        raise _broken(directory, f"{CONTRACT_FILE} does not hold what it must: {brief(error)}") from None


def _broken(directory: Path, what: str) -> InputError:
    return InputError(
        f"model {directory} is damaged: {what}; copy it again, or remove it and run python -m geochip.train_ddp again, "
        "which writes it anew from the last checkpoint"
    )


def bundle_sha256(directory: Path) -> str:
    """SHA-256, in hex, of all in a bundle that changes predictions; where it was trained and how well is left out.

    Raises:
        InputError: when there is no bundle, or it is damaged.
    """
    contract = _contract(_read_contract(directory), directory)
    parts = ("architecture", "encoder", "class_names", "bands", "dtype", "nodata", "mean", "std")
    text = json.dumps({name: getattr(contract, name) for name in parts}, sort_keys=True)
    try:
        weights = (directory / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise _broken(directory, f"{WEIGHTS_FILE} cannot be read: {error.strerror}") from None
    return hashlib.sha256(hashlib.sha256(weights).digest() + text.encode()).hexdigest()
