"""The GPUs of this machine: how many PyTorch can compute on, and why there are none."""

import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from geochip.config import Device
from geochip.errors import InputError

_DRIVER = Path("/proc/driver/nvidia/version")


def usable(asked: Device, key: str) -> int:
    """How many GPUs a process may compute on.

    Where Slurm gave the job a GPU that PyTorch cannot use, `auto` is no reason to compute on the CPU: the job would
    hold the GPU, and run to the end of its time, in silence.

    Args:
        asked: auto, cuda or cpu.
        key: where the run file says so, such as train.device.

    Returns:
        Their number; 0 for the CPU.

    Raises:
        InputError: when there are none, and one was asked for, of PyTorch or of Slurm.
    """
    if asked == "cpu":
        return 0
    if torch.cuda.is_available() and (count := torch.cuda.device_count()):
        return count
    if asked == "auto" and not given_by_slurm(os.environ):
        return 0
    who = (
        f"{key}: 'cuda' is not possible"
        if asked == "cuda"
        else f"Slurm gave this job a GPU, which cannot be used ({key})"
    )
    raise InputError(f"{who}: {why_none()}; or compute on the CPU: {key}: cpu")


def given_by_slurm(environ: Mapping[str, str]) -> bool:
    """Whether this process is in a job or step of Slurm that has a GPU."""
    names = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_STEP_GPUS")
    # The first one is a number, the others list the cards.
    return environ.get(names[0], "0") not in ("", "0") or any(environ.get(name) for name in names[1:])


def why_none() -> str:
    """Why PyTorch has no GPU here, and what to do."""
    trouble = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        # It says in words whether the driver is too old, missing, or without a card.
        except (RuntimeError, AssertionError) as error:
            trouble = str(error).splitlines()[0]
    return explain_none(
        cuda=torch.version.cuda, trouble=trouble, driver=has_driver(), driver_version=driver_version(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""), given=given_by_slurm(os.environ),
    )  # fmt: skip


def has_driver() -> bool:
    """Whether this machine has an NVIDIA driver, and so probably a GPU."""
    return _DRIVER.exists() or shutil.which("nvidia-smi") is not None


def driver_version() -> str:
    """The driver's version in what it says of itself in /proc, such as 535.104.05; "" where it is not known."""
    if not _DRIVER.exists():
        return ""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", _DRIVER.read_text())
    return found[1] if found else ""


def explain_none(
    *, cuda: str | None, trouble: str, driver: bool, driver_version: str, visible: str, given: bool
) -> str:
    """Why a PyTorch, of this or another machine, has no GPU to compute on, and what to do.

    Args:
        cuda: for which it is built, such as 13.2; None for CPUs alone.
        trouble: what it says itself; "" for nothing.
        driver: whether there is one.
        driver_version: of it; "" where that is not known.
        visible: CUDA_VISIBLE_DEVICES; "" where it is not set.
        given: whether there should be a GPU.
    """
    named = f"driver {driver_version}" if driver_version else "driver"
    install = "(pytorch.org tells the command)"
    if cuda is None:
        return f"this PyTorch is built for the CPU only: install one that is built with CUDA {install}"
    if old := re.search(r"driver .*too old \(found version (\d+)\)", trouble):
        # 12020 is 12.2.
        newest, minor = divmod(int(old[1]) // 10, 100)
        return (
            f"the {named}, which is for CUDA {newest}.{minor}, is too old for this PyTorch, which is built for CUDA "
            f"{cuda}: install one that is built for CUDA {newest} {install}, or ask the site's staff for a newer "
            "driver"
        )
    if not driver or "no NVIDIA driver" in trouble:
        there = f"the machine has {named}, but not where PyTorch runs" if driver_version else "there is no driver"
        ask = "" if given else "ask for a GPU (gres), and "
        return f"{there}: {ask}start containers with --nv, else ask the site's staff"
    said = f"PyTorch says: {trouble}" if trouble else "none is visible"
    visible = f"CUDA_VISIBLE_DEVICES is {visible}" if visible else "CUDA_VISIBLE_DEVICES is not set"
    return f"{said}; there is a {named}: see `nvidia-smi -L`; {visible}"
