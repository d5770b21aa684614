"""A trained model on disk: a directory with the weights (safetensors) and their data contract (JSON). No pickle."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from geochip.documents import as_document, read_document
from geochip.errors import DamagedError, InputError
from geochip.files import read_regular, refuse_foreign, remove_leftover, sync, write_durably
from geochip.model.encoders import brief
from geochip.model.network import Contract, SegmentationModel, build_model, not_finite

FORMAT_VERSION = 1
WEIGHTS_FILE, CONTRACT_FILE = "model.safetensors", "model.json"

# As text: JSON has no NaN.
_NOT_FINITE = ("nan", "inf", "-inf")
_REMEDY = "copy it again, or remove it and run geochip.train_ddp again, which writes it anew from the last checkpoint"


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
    for path in _beside(directory.resolve()):
        refuse_foreign(path, "model.bundle")


def _beside(directory: Path) -> tuple[Path, Path]:
    """Where a new bundle is built, and where the old one is put while they change places."""
    return directory.with_name(f".{directory.name}.new"), directory.with_name(f".{directory.name}.old")


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
    new, old = _beside(directory)
    for leftover in (new, old):
        remove_leftover(leftover, "model.bundle")
    write_durably(new / WEIGHTS_FILE, weights)
    write_durably(new / CONTRACT_FILE, json.dumps(document, indent=2, allow_nan=False).encode())
    if directory.exists():
        # A directory cannot be renamed over a full one. A kill between these lines leaves no bundle, never half of one.
        directory.rename(old)
    new.rename(directory)
    sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class _Document(Contract):
    """All of model.json: the contract, and what it was written with."""

    weights_sha256: str
    """Of model.safetensors, in hex."""

    @property
    def contract(self) -> Contract:
        """What it says of the model."""
        return Contract(**{known.name: getattr(self, known.name) for known in fields(Contract)})


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
    document = _read_document(directory)
    weights = _read_weights(directory)
    if hashlib.sha256(weights).hexdigest() != document.weights_sha256:
        raise _broken(directory, f"{WEIGHTS_FILE} is not the file that {CONTRACT_FILE} was written with")
    contract = document.contract
    try:
        model = build_model(contract)
    except InputError as error:
        raise _broken(directory, f"{CONTRACT_FILE} names a network that cannot be built: {brief(error)}") from None
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, SafetensorError) as error:
        raise _broken(directory, f"{WEIGHTS_FILE} does not fit {contract.architecture}: {brief(error)}") from None
    if name := not_finite(model.state_dict()):
        raise _broken(directory, f"{WEIGHTS_FILE} holds NaN or infinity in {name}")
    return model.eval().to(device), contract


def _read_document(directory: Path) -> _Document:
    """model.json, with its format version checked."""
    path = directory / CONTRACT_FILE
    try:
        document = read_document(path, dict[str, Any], _REMEDY)
    except FileNotFoundError:
        raise InputError(
            f"there is no trained model at {directory}; train one with python -m geochip.train_ddp, or name another "
            "with --model.bundle"
        ) from None
    version = document.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise InputError(
            f"model {directory} has format version {version}, this geochip reads {FORMAT_VERSION}; train it "
            "anew, or use the geochip that wrote it"
        )
    if document.get("nodata") in _NOT_FINITE:
        document["nodata"] = float(document["nodata"])
    return as_document(document, _Document, str(path), _REMEDY)


def _read_weights(directory: Path) -> bytes:
    try:
        return read_regular(directory / WEIGHTS_FILE)
    except OSError as error:
        raise _broken(directory, f"{WEIGHTS_FILE} cannot be read: {error.strerror}") from None


def _broken(directory: Path, what: str) -> DamagedError:
    return DamagedError(f"model {directory} is damaged: {what}; {_REMEDY}")


def bundle_sha256(directory: Path) -> str:
    """SHA-256, in hex, of all in a bundle that changes predictions; where it was trained and how well is left out.

    Raises:
        InputError: when there is no bundle, or it is damaged.
    """
    contract = _read_document(directory).contract
    parts = ("architecture", "encoder", "class_names", "bands", "dtype", "nodata", "mean", "std")
    text = json.dumps({name: getattr(contract, name) for name in parts}, sort_keys=True)
    return hashlib.sha256(hashlib.sha256(_read_weights(directory)).digest() + text.encode()).hexdigest()
