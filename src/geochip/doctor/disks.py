"""Checks of the disks that a run writes to: whether it may, and whether there is room."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from geochip.chip_report import estimate, megabytes
from geochip.doctor.facts import disk_type, is_network_disk
from geochip.doctor.findings import Case, Finding, existing, fail, ok, warn
from geochip.doctor.quota import Quota, lustre_quotas
from geochip.errors import GeochipError, InputError
from geochip.scenes import Scene
from geochip.store import PredictionStore, journal_path, read_journal

_SHRINKS_TO = 0.6
"""What compression leaves of imagery, mostly."""
_TRAINING_FILES = 20
# Two checkpoints and the one that is being written, each with Adam's two moments of every weight, and the model.
_COPIES_OF_WEIGHTS = 3 * 3 + 1


def writable(case: Case) -> list[Finding]:
    """Whether files can be made in the directories that a run writes to; none is left there."""
    found = []
    for key, path in case.written.items():
        there = existing(path)
        if (trouble := why_not_writable(path)) is None:
            state = "" if there == path else f", below {there}, which is there"
            found.append(ok(key, f"{path} can be written to{state} ({disk_type(there) or 'unknown disk'})"))
        else:
            found.append(fail(key, f"{path} cannot be written to: {trouble}; choose another {key}"))
    return found


def why_not_writable(path: Path) -> str | None:
    """Why a directory, or the nearest one above it that is there, takes no new file; None when it does."""
    there = existing(path)
    if there != path.absolute():
        next_one = there / path.absolute().relative_to(there).parts[0]
        if os.path.lexists(next_one):
            return f"{next_one} is no directory"
    try:
        # A file without a name where the disk knows such, else one that is removed: nothing is left of it.
        with tempfile.TemporaryFile(prefix=".geochip-doctor-", dir=there) as file:
            file.write(b"geochip")
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


@dataclass(kw_only=True)
class Needed:
    """What a run puts on a disk, at most."""

    bytes: int = 0
    files: int = 0

    def add(self, size: int, files: int) -> None:
        """Count some more."""
        self.bytes += size
        self.files += files


def room(case: Case) -> list[Finding]:
    """Free space and files of each disk that is written to, against what a run takes."""
    needed: dict[int, tuple[Path, Needed]] = {}

    def on(path: Path) -> Needed:
        there = existing(path)
        return needed.setdefault(there.stat().st_dev, (there, Needed()))[1]

    config = case.config
    on(config.chip_store.parent).add(*for_chips(case))
    on(Path(config.run_dir)).add(*for_training(case))
    on(config.prediction_store.parent).add(*for_predictions(case))
    return [judge_room(there, one) for there, one in needed.values()]


@dataclass(frozen=True, kw_only=True)
class Room:
    """What can still be written to a disk."""

    bytes: int
    files: int | None
    """None: any number."""
    binding: tuple[Quota | None, Quota | None] = (None, None)
    """The quotas that leave less bytes, and less files, than are free."""
    quotas: tuple[Quota, ...] = ()
    all_known: bool = False
    """Whether there are no other quotas."""


def room_of(there: Path) -> Room:
    """What is free on the disk of a directory, or what the least of its quotas leaves.

    Args:
        there: a directory on the disk.
    """
    disk = os.statvfs(there)
    # A file system without a number of files of its own says 0.
    free, free_files = disk.f_bavail * disk.f_frsize, disk.f_favail if disk.f_files else None
    quotas, all_known = lustre_quotas(there) if disk_type(there).startswith("lustre") else ([], False)
    by_bytes = by_files = None
    for quota in quotas:
        if (left := quota.bytes.left) is not None and left < free:
            free, by_bytes = left, quota
        if (left := quota.files.left) is not None and (free_files is None or left < free_files):
            free_files, by_files = left, quota
    return Room(
        bytes=free, files=free_files, binding=(by_bytes, by_files), quotas=tuple(quotas), all_known=all_known
    )  # fmt: skip


def judge_room(there: Path, needed: Needed) -> Finding:
    """Compare what is needed with what is free.

    Args:
        there: a directory on the disk.
        needed: what a run puts there.
    """
    room = room_of(there)
    by_bytes, by_files = (f" by the quota of {quota.whose}" if quota else "" for quota in room.binding)
    text = f"{there} has {megabytes(room.bytes)} free{by_bytes}"
    text += "" if room.files is None else f", and room for {room.files} files{by_files}"
    text += f"; a run takes at most {megabytes(needed.bytes)} in {needed.files} files"
    hint = quota_hint(there, room)
    remedy = "free some, choose another run_dir, or ask for fewer or smaller chips"
    if room.files is not None and needed.files > room.files:
        return fail("space", f"{text}: too few files are left; {remedy}{hint}")
    if needed.bytes * _SHRINKS_TO > room.bytes:
        return fail("space", f"{text}: too little even when imagery shrinks to {_SHRINKS_TO} of it; {remedy}{hint}")
    if needed.bytes > room.bytes:
        return warn("space", f"{text}: enough only when imagery shrinks, as it mostly does; {remedy}{hint}")
    if soft := soft_quota(room, needed):
        return warn("space", f"{text}: that passes {soft}; {remedy}")
    return ok("space", f"{text}{hint}")


def soft_quota(room: Room, needed: Needed) -> str:
    """The quota that a run would pass and that may be passed for some days only, in words; "" for none."""
    for quota in room.quotas:
        size, files = quota.bytes.left_for_good, quota.files.left_for_good
        left = megabytes(size) if size is not None and needed.bytes > size else ""
        left = f"{files} files" if not left and files is not None and needed.files > files else left
        if left:
            return (
                f"the soft quota of {quota.whose}, which leaves {left} and may be passed for some days only "
                f"(`{quota.command}`)"
            )
    return ""


def quota_hint(there: Path, room: Room) -> str:
    """Where to look at the quotas, as far as they matter or are not known; "" for a disk of this machine."""
    commands = dict.fromkeys(f"`{quota.command}`" for quota in room.binding if quota)
    binding = f"; see {' and '.join(commands)}" if commands else ""
    if room.all_known:
        return binding or "; no quota leaves less"
    command = quota_command(there)
    return f"{binding}; a quota of yours is not known here: look with `{command}`" if command else binding


def quota_command(there: Path) -> str:
    """The command that shows a person's quota on a disk; "" for a disk of this machine."""
    kind = disk_type(there)
    if kind.startswith("lustre"):
        return f"lfs quota -hu $USER {there}"
    if kind.startswith("gpfs"):
        return "mmlsquota --block-size auto"
    return "quota -s" if is_network_disk(kind) else ""


def for_chips(case: Case) -> tuple[int, int]:
    """Bytes and files that the chips still take."""
    plan = case.plan
    if isinstance(plan, GeochipError):
        return 0, 0
    expected = estimate(plan.plan, len(plan.first.bands), plan.first.dtype, case.config.chips.size)
    store = case.config.chip_store
    there = len(read_journal(journal_path(store))[1]) if store.exists() else 0
    left = max(0.0, 1 - there / plan.plan.shards)
    return round(expected.raw_bytes * left), round(expected.files * left)


def for_training(case: Case) -> tuple[int, int]:
    """Bytes and files of checkpoints, logs and the model."""
    if isinstance(case.network, GeochipError):
        return 0, 0
    weights = sum(one.numel() for one in case.network.parameters())
    return weights * 4 * _COPIES_OF_WEIGHTS, _TRAINING_FILES


def for_predictions(case: Case) -> tuple[int, int]:
    """Bytes and files of the predictions of infer.split, GeoTIFFs included."""
    config, catalogue = case.config, case.to_predict
    settings, store = config.infer, config.prediction_store
    if isinstance(catalogue, GeochipError) or (store.exists() and is_complete(store)):
        return 0, 0
    scenes = catalogue.scenes
    layers = 1 + (len(config.data.classes) if settings.probability else 0)
    pixels = sum(scene.height * scene.width for scene in scenes)
    files = sum((1 + settings.probability) * blocks_of(scene, settings.block) for scene in scenes)
    cogs = len(scenes) if settings.cog else 0
    return pixels * (layers + bool(cogs)), files + cogs


def is_complete(store: Path) -> bool:
    """Whether a prediction store holds all of its predictions."""
    try:
        return PredictionStore(store).complete
    except InputError:
        return False


def blocks_of(scene: Scene, block: int) -> int:
    """Blocks that a scene is predicted in."""
    return -(-scene.height // block) * -(-scene.width // block)
