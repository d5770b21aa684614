"""The GPUs of this machine: how many PyTorch can compute on, and why there are none."""

import os
import warnings
from collections.abc import Mapping

import torch

from geochip.config import Device
from geochip.errors import InputError


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
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"this PyTorch ({torch.__version__}) is built for CPUs alone; install one for CUDA "
            "(pytorch.org/get-started)"
        )
    said = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        # It says in words whether the driver is too old, missing, or without a card.
        except (RuntimeError, AssertionError) as error:
            said = " ".join(str(error).split())
    if "driver" in said and "old" in said:
        return (
            f"the GPU's driver is too old for this PyTorch, which is built for CUDA {torch.version.cuda} ({said}); "
            "install a PyTorch for an older CUDA (pytorch.org/get-started/previous-versions)"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    where = "" if visible is None else f", CUDA_VISIBLE_DEVICES is '{visible}'"
    return (
        f"PyTorch sees no GPU here ({said or 'no reason given'}{where}); see what nvidia-smi says on this machine; "
        "in an Apptainer image use exec --nv"
    )
