"""What Slurm says, in words that a person can act on: refusals, and the reasons for which jobs wait."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A reason of Slurm in words."""

    words: str
    """What keeps the job."""
    remedy: str
    """What to do."""
    hopeless: bool
    """Whether waiting cannot heal it."""


def words_of(command: str, stderr: str) -> str:
    """What a command wrote to standard error, in one line and without its own name before each."""
    lines = [re.sub(rf"^(?:{command}: )?(?:error: )?", "", line.strip()) for line in stderr.splitlines()]
    return "; ".join(line for line in lines if line)


# What a command says (part of it, lower case), what to do.
_REMEDIES = (
    # Names of limits, before the sentence that follows each of them and speaks of accounting and of all limits at once.
    ("submitjob", "ask for fewer workers (cluster.workers), or wait until other jobs of yours have ended"),
    (
        "wallduration",
        "ask for less time ({key}.walltime; `sacctmgr show qos` and `sacctmgr show assoc user=$USER` show the limits)",
    ),
    (
        "policy",
        "ask for less: fewer workers (cluster.workers), or lower cores, memory or walltime of {key}; `sacctmgr show "
        "qos` and `sacctmgr show assoc user=$USER` show the limits",
    ),
    (
        "reservation",
        "name a reservation that you may use (--reservation in {key}.directives; `scontrol show reservation`)",
    ),
    ("tres", "name resources that there are ({key}.gres and {key}.directives; `sinfo -o '%P %G'` lists them)"),
    ("wckey", "correct --wckey in {key}.directives"),
    ("dependency", "correct --dependency in {key}.directives"),
    (
        "account",
        "name an account that you may use there ({key}.account; `sacctmgr show user $USER withassoc` lists them), or "
        "another partition ({key}.partition)",
    ),
    ("partition", "name another partition ({key}.partition; `sinfo` lists them)"),
    ("qos", "name a quality of service that you may use ({key}.qos), or leave it out"),
    ("time limit", "ask for less time ({key}.walltime; `sinfo -o '%P %l'` shows the limits)"),
    ("gres", "name generic resources that there are ({key}.gres; `sinfo -o '%P %G'` lists them)"),
    ("feature", "name a feature that there is (--constraint in {key}.directives; `sinfo -o '%P %f'` lists them)"),
    ("memory spec", "ask for less memory ({key}.memory; `sinfo -o '%P %m'` shows what nodes have)"),
    (
        "node configuration",
        "no node has what is asked for: lower cores, memory or gres of {key}, or name another partition "
        "(`sinfo -o '%P %c %m %G'` shows what there is)",
    ),
    ("cpu count", "ask for fewer cores ({key}.cores; `sinfo -o '%P %c'` shows what nodes have)"),
    ("processors", "ask for fewer cores ({key}.cores; `sinfo -o '%P %c'` shows what nodes have)"),
    ("contact slurm controller", "Slurm's controller does not answer: try `scontrol ping`, and run this again later"),
    ("timed out", "Slurm's controller is busy: run the same command again later"),
    ("unrecognized option", "correct {key}.directives; `man sbatch` lists the options"),
    ("invalid option", "correct {key}.directives; `man sbatch` lists the options"),
    ("permission", "ask the site's staff whether you may submit from here"),
)


def remedy(said: str, key: str = "cluster.cpu") -> str:
    """What to do when a Slurm command refuses with these words.

    Args:
        said: by the command.
        key: section of the run file that describes the job, cluster.cpu or cluster.gpu.
    """
    found = (advice for words, advice in _REMEDIES if words in said.lower())
    return next(found, "see `man sbatch`, or ask the site's staff").format(key=key)


_WAITS = "nothing: it starts when its turn comes"
_REASONS: dict[str, tuple[str, str, bool]] = {
    "": ("Slurm has not looked at it yet", _WAITS, False),
    "Priority": ("jobs with a higher priority are before it", _WAITS, False),
    "Resources": ("it waits until enough nodes are free", "nothing, or ask for less: cores, memory, walltime", False),
    "BeginTime": ("its begin time has not come; a requeued job waits two minutes or so", _WAITS, False),
    "Cleaning": ("what its last start left is being cleaned up", _WAITS, False),
    "Prolog": ("the node's prolog is running", _WAITS, False),
    "Licenses": ("it waits for a licence", _WAITS, False),
    "Reservation": ("it waits for its reservation to begin", _WAITS, False),
    "NodeDown": ("a node that it needs is down", "nothing, or name another partition", False),
    "ReqNodeNotAvail": (
        "a node that it needs is reserved (maintenance, often) or down",
        "ask for less walltime, so that it ends before a reservation (`scontrol show reservation`), or wait",
        False,
    ),
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": (
        "the nodes that could run it are down, drained or kept for partitions of higher priority",
        "wait, or name another partition (`sinfo -R` says why nodes are down)",
        False,
    ),
    "PartitionDown": ("the partition is down", "wait, or name another partition", False),
    "PartitionInactive": ("the partition starts no jobs", "name another partition", False),
    "JobHeldUser": ("it is held", "release it with `scontrol release`", False),
    "JobHeldAdmin": ("it is held by the site's staff", "ask them", False),
    "launch failed requeued held": (
        "it could not be started on its node, and is held",
        "tell the site's staff which node it was",
        False,
    ),
    "Dependency": ("it waits for another job", _WAITS, False),
    "DependencyNeverSatisfied": ("it waits for a job that failed", "take the dependency out of the directives", True),
    "PartitionTimeLimit": (
        "it asks for more time than the partition allows",
        "lower walltime (`sinfo -o '%P %l'` shows the limits), or name another partition",
        True,
    ),
    # Also where nodes that it needs are down or drained for a while.
    "PartitionNodeLimit": (
        "it asks for more nodes than the partition has at the moment",
        "ask for less, or name another partition",
        False,
    ),
    "PartitionConfig": (
        "no node of its partition has what it asks for",
        "lower cores, memory or gres (`sinfo -o '%P %c %m %G'` shows what there is), or name another partition",
        True,
    ),
    "MaxMemPerLimit": (
        "it asks for more memory than one job may have there",
        "lower memory, or name another partition",
        True,
    ),
    "ReservationDeleted": ("its reservation is no more", "take --reservation out of the directives", True),
    "BadConstraints": (
        "no node has what it asks for",
        "lower cores, memory or gres, or take --constraint out of the directives (`sinfo -o '%P %c %m %G %f'`)",
        True,
    ),
    "InvalidAccount": ("its account is not valid", "name an account that you may use", True),
    "AccountNotAllowed": ("its account may not use the partition", "name another account or partition", True),
    "InvalidQOS": ("its quality of service is not valid", "name another qos, or leave it out", True),
    "QOSNotAllowed": ("its quality of service is not allowed there", "name another qos or partition", True),
}  # fmt: skip


def explain(reason: str) -> Explained:
    """A reason code of Slurm in words, with what to do."""
    name = reason if reason in _REASONS else reason.split(",")[0].strip("() ")
    if name in _REASONS:
        words, advice, hopeless = _REASONS[name]
    # Newer ones say it in a sentence.
    elif "not permitted to use this partition" in reason:
        words, advice, hopeless = "it may not use the partition", "name another partition, account or qos", True
    elif limit := re.fullmatch(r"(Assoc|QOS|Max)(\w*)", name):
        words, advice, hopeless = _limit(limit[1], name)
    else:
        words, advice, hopeless = "Slurm does not start it", "see `man squeue` under JOB REASON CODES", False
    return Explained(words=f"{words} ({reason})" if reason else words, remedy=advice, hopeless=hopeless)


def _limit(of: str, name: str) -> tuple[str, str, bool]:
    """A limit of an account (Assoc...) or a quality of service (QOS...), of which there are over a hundred."""
    whose = {"Assoc": "your account", "QOS": "the quality of service"}.get(of, "your account")
    if "PerJob" in name or "Min" in re.sub("Minutes?", "", name) or name.endswith(("TimeLimit", "PerNode")):
        advice = "ask for less: walltime, cores, memory or gres; or name another account, qos or partition"
        return f"it asks for more, or less, than one job may have by the limits of {whose}", advice, True
    # Of all its jobs together, used up like a budget, as GrpTRESMins is: GrpWall.
    if ("Minutes" in name and "RunMinutes" not in name) or name.endswith("GrpWallLimit"):
        return f"the budget of {whose} is used up", "name another account, or ask for more budget", True
    return (
        f"{whose} has as much running as its limits allow",
        "nothing: it starts when other jobs end; or ask for fewer workers",
        False,
    )
