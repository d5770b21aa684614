"""What a machine is like: gathered on the driver and, by the same function, on a worker.

Workers import it too: nothing here reads a run file, and PyTorch is imported only where GPUs are asked for.
"""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

import geochip
from geochip.doctor.collective import try_collective

PACKAGES = ("dask", "distributed", "numpy", "zarr", "tensorstore", "torch")

_NETWORK_DISKS = (
    "nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse.ceph", "fuse.sshfs", "9p", "gluster",
    "fuse.gluster", "panfs", "weka", "afs", "pvfs", "orangefs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """What PyTorch says of a machine's GPUs."""

    cuda: str | None
    """CUDA version that this PyTorch was built for; None: built without."""
    devices: tuple[tuple[str, int], ...] = ()
    """Name and memory, in bytes, of each that this process may use and that can compute."""
    nccl: str | None = None
    """Version of NCCL, for training on several of them."""
    nccl_trouble: str = ""
    """Why NCCL does not work on the first of them; "" where it does, and where it was not tried."""
    visible: str = ""
    """CUDA_VISIBLE_DEVICES, where it is set: MIG slices stand in it as MIG-<uuid>."""
    given: bool = False
    """Whether Slurm gave GPUs to the job that this process is in."""
    driver: bool = False
    """Whether there is a driver, and so probably a GPU."""
    driver_version: str = ""
    """Such as 535.104.05; "" where it is not known."""
    trouble: str = ""
    """Why PyTorch cannot use what is there, mostly in its own words."""

    @property
    def is_slice(self) -> bool:
        """Whether this process has a MIG slice, a part of a GPU."""
        return "MIG" in self.visible or any(" MIG " in name for name, _ in self.devices)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A machine, as a process on it sees it."""

    host: str
    versions: dict[str, str]
    cpus: int
    """CPUs that the process may use."""
    cpus_of_machine: int
    memory: int
    """Bytes that the process may use, as far as the machine and its control group tell."""
    shared_memory: int
    """Bytes of /dev/shm."""
    open_files: int
    """The soft limit; -1: none."""
    umask: int
    interfaces: dict[str, str] = field(default_factory=dict)
    """Network interfaces that are up, with their IPv4 addresses."""
    scratch: str = ""
    """Directory for what does not fit into memory."""
    scratch_disk: str = ""
    """Type of the file system that it is on."""
    gpus: Gpus | None = None
    """None: not looked for."""


def gather(scratch: str | None = None, *, gpus: bool = False, nccl: bool = True) -> Facts:
    """Look at the machine that this runs on.

    Args:
        scratch: directory for temporary files; None: the system's.
        gpus: look for GPUs, which takes a second or two.
        nccl: try NCCL, too, where there are any, which takes some seconds.
    """
    scratch = scratch or tempfile.gettempdir()
    return Facts(
        host=socket.gethostname(),
        versions=versions(),
        cpus=len(os.sched_getaffinity(0)),
        cpus_of_machine=os.cpu_count() or 1,
        memory=_memory(),
        shared_memory=_size_of_disk("/dev/shm"),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        umask=_umask(),
        interfaces=_interfaces(),
        scratch=scratch,
        scratch_disk=disk_type(Path(scratch)),
        gpus=look_for_gpus(nccl=nccl) if gpus else None,
    )


def versions() -> dict[str, str]:
    """Versions of what a run's files and messages depend on, by name."""
    import rasterio

    found = {"python": platform.python_version(), "geochip": geochip.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return {**found, "gdal": rasterio.__gdal_version__}


def _memory() -> int:
    limits = [psutil.virtual_memory().total]
    # A container's or a job's own limit, where control groups of the second version hold one.
    for line in Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").exists() else ():
        group = Path("/sys/fs/cgroup") / line.rpartition("::")[2].lstrip("/")
        for directory in (group, *group.parents):
            limit = directory / "memory.max"
            if directory.is_relative_to("/sys/fs/cgroup") and limit.is_file() and limit.read_text().strip().isdigit():
                limits.append(int(limit.read_text()))
    return int(min(limits))


def _size_of_disk(path: str) -> int:
    try:
        return shutil.disk_usage(path).total
    except OSError:
        return 0


def _umask() -> int:
    # There is no way to look at it without setting it, but in Linux's /proc.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _interfaces() -> dict[str, str]:
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return {
        name: next((one.address for one in addresses if one.family == socket.AF_INET), "no IPv4 address")
        for name, addresses in sorted(psutil.net_if_addrs().items())
        if name in up
    }


def disk_type(path: Path) -> str:
    """Type of the file system that a path is on, such as ext4, tmpfs or lustre; "" where that cannot be told."""
    there = Path(os.path.realpath(path))
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    return next((mounts[one] for one in (there, *there.parents) if one in mounts), "")


def is_network_disk(kind: str) -> bool:
    """Whether a type of file system is one that machines share over a network."""
    return kind.startswith(_NETWORK_DISKS)


def look_for_gpus(*, nccl: bool = True) -> Gpus:
    """What PyTorch can use here, and why not more; every GPU computes one number, and NCCL is tried if asked for."""
    import torch

    from geochip.gpus import driver_version, given_by_slurm, has_driver

    there = Gpus(
        cuda=torch.version.cuda,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        given=given_by_slurm(os.environ),
        driver=has_driver(),
        driver_version=driver_version(),
    )
    if there.cuda is None:
        return there
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    trouble = " ".join(str(warning.message) for warning in told)
    if not available:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:  # says why more often than is_available, which may be silent
            trouble = str(error).splitlines()[0]
    devices, usable = [], []
    if available:
        for number in range(torch.cuda.device_count()):
            try:
                torch.ones(2, device=f"cuda:{number}").sum().item()
            except RuntimeError as error:  # of another generation than PyTorch was built for, broken, or taken
                trouble = f"GPU {number}: {str(error).splitlines()[0]}"
                continue
            properties = torch.cuda.get_device_properties(number)
            devices.append((str(properties.name), int(properties.total_memory)))
            usable.append(f"cuda:{number}")
    version, nccl_trouble = None, ""
    if torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        nccl_trouble = try_collective("nccl", usable[0]) if usable and nccl else ""
    return replace(there, devices=tuple(devices), nccl=version, nccl_trouble=nccl_trouble, trouble=trouble)
