"""The processes of one training, as torchrun starts them: who and where they are, how they add up and fail together.

A rank that fails alone leaves the others waiting in a collective, and an error of all is told by each of them. So what
may fail runs through `Ranks.alike`: all go on, or all end, and one tells why.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from geochip.config import Device
from geochip.errors import GeochipError, InputError
from geochip.gpus import usable

P = ParamSpec("P")
T = TypeVar("T")


class ToldElsewhereError(GeochipError):
    """An error that another rank tells: this one ends with the same exit code, without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that train together."""

    rank: int = 0
    """This process, 0 to world - 1."""
    world: int = 1
    """How many there are."""
    local_rank: int = 0
    """This process among those of its machine."""
    local_world: int = 1
    """How many are on this machine."""

    @classmethod
    def join(cls) -> "Ranks":
        """Join the others that torchrun started; alone without torchrun."""
        names = {"rank": "RANK", "world": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
        if not all(name in os.environ for name in names.values()) or os.environ["WORLD_SIZE"] == "1":
            return cls()
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
            _listen_on_this_machine_only()
        # gloo for tensors in memory, among them all small sums, NCCL for those on GPUs.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(**{field: int(os.environ[name]) for field, name in names.items()})

    def leave(self) -> None:
        """End the process group. Only where all ranks arrive: it may wait for collectives that are under way."""
        if self.world > 1:
            dist.destroy_process_group()

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.rank == 0:
            print(text, flush=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in its own memory; a collective."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, tensor: Tensor) -> None:
        """Overwrite a tensor with the first rank's; a collective."""
        if self.world > 1:
            dist.broadcast(tensor, src=0)

    def alike(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` on every rank, and return only when it succeeded on all of them; a collective.

        Raises:
            GeochipError: the one of the first rank that has one, on that rank; `ToldElsewhereError` on the others.
        """
        error = None
        try:
            result = work(*args, **kwargs)
        except GeochipError as caught:
            error = caught
        codes = self._of_each(error.exit_code if error else 0)
        first = next((rank for rank, code in enumerate(codes) if code), None)
        if error is not None and first == self.rank:
            raise error
        if first is not None:
            raise ToldElsewhereError(codes[first])
        return result

    def require_same(self, what: str, value: int) -> None:
        """See that a number is the same on all ranks; a collective.

        Raises:
            InputError: when it is not, as `alike` does.
        """
        self.alike(_require_one_value, what, self._of_each(value))

    def _of_each(self, value: int) -> list[int]:
        """What each rank gives, by rank; a collective.

        Added up as numbers: what torch.distributed gathers as objects it unpickles, whoever sent it.
        """
        values = torch.zeros(self.world, dtype=torch.int64)
        values[self.rank] = value
        return [int(one) for one in self.sum(values)]


def _listen_on_this_machine_only() -> None:
    """Let ranks of one machine meet on its loopback interface, unless the environment names another.

    Left to themselves, gloo and NCCL listen on a network.
    """
    loopback = next((name for name in psutil.net_if_addrs() if re.fullmatch(r"lo\d*", name)), None)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if loopback is not None:
            os.environ.setdefault(variable, loopback)


def _require_one_value(what: str, values: list[int]) -> None:
    if len(set(values)) > 1:
        raise InputError(
            f"{what} differs between ranks ({', '.join(map(str, values))}): run_dir must be on a disk that all "
            "machines share"
        )


def choose_device(asked: Device, ranks: Ranks) -> torch.device:
    """The rank's device.

    Args:
        asked: as `train.device`.
        ranks: of which each on a machine gets a GPU of its own.

    Raises:
        InputError: when there are fewer GPUs than ranks on this machine, or none where one was asked for.
    """
    gpus = usable(asked, "train.device")
    if gpus == 0:
        return torch.device("cpu")
    if ranks.local_world > 1 and is_mig_slice():
        raise InputError(
            f"{ranks.local_world} ranks were started on a slice of a GPU (MIG): a process sees one slice, however many "
            "the job has, and NCCL refuses two ranks on one GPU; use --nproc-per-node=1 and ask Slurm for a larger "
            "slice or for whole GPUs"
        )
    if gpus < ranks.local_world:
        raise InputError(
            f"{ranks.local_world} ranks were started on a machine with {gpus} GPU{'s' if gpus > 1 else ''}, each "
            f"needs its own; use --nproc-per-node={gpus}, or --train.device cpu"
        )
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device


def is_mig_slice() -> bool:
    """Whether the GPU that this process sees is a MIG slice: Slurm names it by its UUID; else its own name tells it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.strip().startswith("MIG-") or " MIG " in torch.cuda.get_device_name(0)
