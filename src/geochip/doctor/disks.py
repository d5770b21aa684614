"""Checks of the disks that a run writes to: whether it may, and whether there is room."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from geochip.chip_report import estimate, megabytes
from geochip.doctor.facts import disk_type, is_network_disk
from geochip.doctor.findings import Case, Finding, existing, fail, ok, warn
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


def judge_room(there: Path, needed: Needed) -> Finding:
    """Compare what is needed with what is free.

    Args:
        there: a directory on the disk.
        needed: what a run puts there.
    """
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    # A file system without a number of files of its own says 0.
    free_files = disk.f_favail if disk.f_files else None
    text = f"{there} has {megabytes(free)} free"
    text += "" if free_files is None else f", and room for {free_files} files"
    text += f"; a run takes at most {megabytes(needed.bytes)} in {needed.files} files"
    quota = quota_command(there)
    hint = f"; a quota of yours is not known here: look with `{quota}`" if quota else ""
    remedy = "free some, choose another run_dir, or ask for fewer or smaller chips"
    if free_files is not None and needed.files > free_files:
        return fail("space", f"{text}: too few files are left; {remedy}{hint}")
    if needed.bytes * _SHRINKS_TO > free:
        return fail("space", f"{text}: too little even when imagery shrinks to {_SHRINKS_TO} of it; {remedy}{hint}")
    if needed.bytes > free:
        return warn("space", f"{text}: enough only when imagery shrinks, as it mostly does; {remedy}{hint}")
    return ok("space", f"{text}{hint}")


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
