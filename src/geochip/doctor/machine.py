"""Checks of a machine: the one that runs the command, and by the same functions those of the workers."""

from collections.abc import Mapping, Sequence

from geochip.chip_report import estimate, megabytes
from geochip.doctor.facts import Facts, Gpus, gather, is_network_disk
from geochip.doctor.findings import DEVICES, Case, Finding, fail, listed, ok, warn
from geochip.errors import GeochipError
from geochip.gpus import explain_none

_SMALL_SHARED_MEMORY = 2**30
_FILES_OF_A_DRIVER, _FILES_OF_A_WORKER = 512, 10
_ALIKE = ("python", "geochip", "dask", "distributed")
"""What driver and workers must have in the same version: they send each other objects of these."""


def driver(case: Case) -> list[Finding]:
    """The machine that the command runs on."""
    facts = case.facts
    missing = [name for name, version in facts.versions.items() if version == "missing"]
    shown = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    found = [fail("versions", f"{listed(missing)} is not installed ({shown}); install geochip anew")] if missing else []
    return [
        *(found or [ok("versions", shown)]),
        *cpus(case, facts),
        *memory(case, facts),
        shared_memory(facts),
        open_files(case, facts),
        umask(facts),
    ]


def cpus(case: Case, facts: Facts) -> list[Finding]:
    """Whether local workers have a CPU each."""
    text = f"{facts.cpus} of {facts.cpus_of_machine} on {facts.host} may be used"
    workers = case.config.cluster.workers
    if case.config.cluster.kind == "local" and workers is not None and workers > facts.cpus:
        return [warn("cpus", f"{text}, fewer than cluster.workers = {workers}; lower it, more are no faster")]
    return [ok("cpus", text)]


def memory(case: Case, facts: Facts) -> list[Finding]:
    """Whether local workers have the memory that chipping takes."""
    text, cluster = f"{megabytes(facts.memory)} on {facts.host}", case.config.cluster
    if cluster.kind != "local" or (each := worker_bytes(case)) is None:
        return [ok("memory", text)]
    workers = cluster.workers or facts.cpus
    text = f"{text}; {workers} workers that chip take about {megabytes(each)} each"
    if workers * each > facts.memory:
        fit = max(1, facts.memory // each)
        return [warn("memory", f"{text}, more than there is; use --cluster.workers {fit}, or smaller chips")]
    return [ok("memory", text)]


def worker_bytes(case: Case) -> int | None:
    """Memory that a worker takes for chipping, about; None where there is no plan."""
    if isinstance(case.plan, GeochipError):
        return None
    first = case.plan.first
    return estimate(case.plan.plan, len(first.bands), first.dtype, case.config.chips.size).worker_bytes


def shared_memory(facts: Facts, where: str = "") -> Finding:
    """Whether /dev/shm is large enough for ranks and NCCL to hand tensors over."""
    text = f"{megabytes(facts.shared_memory)}{where}"
    if facts.shared_memory < _SMALL_SHARED_MEMORY:
        return warn(
            "/dev/shm",
            f"{text} is little: training on several GPUs may end with `Bus error`; start the container with "
            "--shm-size=8g, or ask the site's staff",
        )
    return ok("/dev/shm", text)


def open_files(case: Case, facts: Facts) -> Finding:
    """Whether the driver may open as many files and connections as workers and readers need."""
    workers = case.config.cluster.workers or facts.cpus
    wanted = _FILES_OF_A_DRIVER + _FILES_OF_A_WORKER * workers
    if 0 <= facts.open_files < wanted:
        return warn(
            "open files",
            f"at most {facts.open_files}; {workers} workers want {wanted}: raise it with `ulimit -n {wanted}`",
        )
    return ok("open files", f"at most {facts.open_files}" if facts.open_files >= 0 else "no limit")


def umask(facts: Facts) -> Finding:
    """Whether others could change what a run writes."""
    text = f"{facts.umask:03o}"
    if not facts.umask & 0o002:
        return warn("umask", f"{text} lets everybody change what a run writes; set `umask 027`, or 077 for you alone")
    return ok("umask", text)


def interface(facts: Facts, named: str | None, of_workers: Mapping[str, str | None]) -> list[Finding]:
    """Whether the network interfaces that are named are there.

    Args:
        facts: of the machine that the scheduler is on.
        named: cluster.scheduler_interface.
        of_workers: the workers' ones, by the key of the run file; the scheduler uses them where it has none of its own.
    """
    what, there = "interface", facts.interfaces
    shown = f"{facts.host} has {', '.join(f'{name} ({address})' for name, address in there.items())}"
    if named is not None and named not in there:
        return [fail(what, f"cluster.scheduler_interface: {named} is not up here; {shown}; name one that nodes reach")]
    if named is not None:
        return [ok(what, f"cluster.scheduler_interface: {named}; {shown}")]
    wanted = {key: name for key, name in of_workers.items() if name is not None}
    absent = [
        warn(
            what,
            f"{key}: {name} is not up here, so Dask chooses where workers find this machine; {shown}; name one that "
            "nodes reach with cluster.scheduler_interface",
        )
        for key, name in wanted.items()
        if name not in there
    ]
    if wanted:
        return absent or [ok(what, f"{listed(f'{key}: {name}' for key, name in wanted.items())}; {shown}")]
    fast = next((name for name in there if name.startswith(("ib", "hsn"))), None)
    hint = f"; {fast} looks like the fast network: name it in interface of cluster.cpu and cluster.gpu" if fast else ""
    return [ok(what, f"none is named, Dask chooses; {shown}{hint}")]


def scratch(facts: Facts, where: str) -> Finding:
    """Whether what does not fit into a worker's memory goes to a disk of its own machine."""
    text = f"{facts.scratch} ({facts.scratch_disk or 'unknown disk'}){where}"
    if is_network_disk(facts.scratch_disk):
        return warn(
            "scratch",
            f"{text} is shared over the network: workers that spill would slow it down for everybody; set "
            "local_directory to a disk of the node, such as /tmp or what the site puts into $TMPDIR",
        )
    return ok("scratch", text)


def same_versions(mine: Mapping[str, str], theirs: Mapping[str, str], where: str) -> list[Finding]:
    """Whether a worker runs what the driver runs."""
    found = []
    for name in mine:
        if (here := mine[name]) == (there := theirs.get(name, "missing")):
            continue
        # 3.11.2 and 3.11.9 understand each other.
        minor = name == "python" and here.split(".")[:2] == there.split(".")[:2]
        judge = fail if name in _ALIKE and not minor else warn
        found.append(judge("versions", f"{name} is {here} here and {there}{where}; use the same environment on both"))
    return found or [ok("versions", f"as here{where}")]


def gpus_here(case: Case) -> list[Finding]:
    """GPUs of this machine, where it is this machine that would compute."""
    if not case.devices("cuda", "auto"):
        return [ok("gpu", "train.device and infer.device are cpu")]
    trains = case.config.cluster.kind == "local" and case.config.train.device != "cpu"
    facts = gather(gpus=True, nccl=trains)
    assert facts.gpus is not None
    if case.config.cluster.kind != "local" and not facts.gpus.devices:
        return [ok("gpu", f"none on {facts.host}, which need not have one: the jobs of the cluster compute")]
    where = f" on {facts.host}"
    return judge_gpus(case, facts.gpus, where) + (judge_nccl(case, facts.gpus, where) if trains else [])


def judge_gpus(case: Case, gpus: Gpus, where: str, asked: str = "", keys: Sequence[str] = DEVICES) -> list[Finding]:
    """What there is to compute with, and what it means for the number of ranks.

    Args:
        case: whose devices are not all cpu.
        gpus: what there is.
        where: such as " on node1".
        asked: how the machine's job asks for GPUs, such as "gres gpu:1"; "" where that is not known.
        keys: of the run file, that say what this machine computes on.
    """
    if gpus.devices:
        return gpus_there(gpus, where)
    given = asked or ("what Slurm says, SLURM_GPUS_ON_NODE" if gpus.given else "")
    demanded = case.devices("cuda", keys=keys)
    why = explain_none(
        cuda=gpus.cuda, trouble=gpus.trouble, driver=gpus.driver, driver_version=gpus.driver_version,
        visible=gpus.visible, given=bool(given),
    )  # fmt: skip
    if demanded:
        otherwise = "use cpu, and ask for no GPU" if given else "use auto or cpu"
        return [fail("gpu", f"none{where}, but {demanded} needs one; {why}; or {otherwise}")]
    if given:
        # A step that has a GPU and cannot use it ends, rather than take days on the CPU.
        return [
            fail(
                "gpu",
                f"none that PyTorch can use{where}, in spite of {given}: with "
                f"{case.devices('auto', keys=keys)} a run ends there; {why}; or use cpu, and ask for no GPU",
            )
        ]
    if gpus.driver:
        return [warn("gpu", f"none that PyTorch can use{where}; {why}")]
    return [ok("gpu", f"none{where}: computes on the CPU")]


def gpus_there(gpus: Gpus, where: str) -> list[Finding]:
    """GPUs that can be used."""
    named = listed(f"{name} with {megabytes(size)}" for name, size in gpus.devices)
    text = f"{named}{where}; CUDA {gpus.cuda}, NCCL {gpus.nccl or 'missing'}"
    found = []
    if gpus.is_slice:
        found.append(ok("gpu", f"{text}; a MIG slice: train one rank on it (--nproc-per-node=1), NCCL refuses more"))
    else:
        found.append(ok("gpu", f"{text}; up to {len(gpus.devices)} ranks on it (--nproc-per-node)"))
    if gpus.nccl is None and len(gpus.devices) > 1 and not gpus.is_slice:
        found.append(warn("gpu", f"this PyTorch is built without NCCL{where}: training on several GPUs would fail"))
    if gpus.trouble:
        found.append(warn("gpu", f"{gpus.trouble}{where}"))
    return found


def judge_nccl(case: Case, gpus: Gpus, where: str) -> list[Finding]:
    """Whether ranks that train on these GPUs can add up their gradients, as far as one rank shows it."""
    what = "nccl"
    if case.config.train.device == "cpu" or not gpus.devices or gpus.nccl is None:
        return []
    if not gpus.nccl_trouble:
        return [ok(what, f"one rank adds up a tensor{where}")]
    # One rank alone adds nothing up; whether there are other nodes with ranks is not known here.
    judge = fail if len(gpus.devices) > 1 and not gpus.is_slice else warn
    return [
        judge(
            what,
            f"one rank cannot add up a tensor{where}, as several do at each step of training: {gpus.nccl_trouble}; "
            "NCCL_DEBUG=INFO has NCCL say more, and NCCL_SOCKET_IFNAME (GEOCHIP_INTERFACE in site.env) names a network "
            "interface; one rank alone (--nproc-per-node=1) trains without NCCL",
        )
    ]
