"""What the doctor looks at, and what it says about it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import geochip
from geochip.chip_prepare import Prepared, prepare
from geochip.cluster import Jobs, job_script
from geochip.config import Device, RunConfig
from geochip.doctor.facts import Facts, gather
from geochip.errors import GeochipError, InputError
from geochip.model import Contract, SegmentationModel, build_model
from geochip.scenes import Catalogue, describe_files, find_scenes
from geochip.slurm import inside_a_job

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, with its value, and what to do where something is wrong."""

    level: Level
    """ok; warn: a run may go wrong, or could go better; FAIL: a run would fail."""
    what: str
    """What was looked at, in one or two words."""
    text: str
    how: str = ""
    """How to make the check, where it could not be made; "" where it was made."""

    def __str__(self) -> str:
        return f"{self.level:<5}{self.what}: {self.text}"


def ok(what: str, text: str) -> Finding:
    """A finding that all is well."""
    return Finding(level="ok", what=what, text=text)


def warn(what: str, text: str) -> Finding:
    """A finding that a person should know of."""
    return Finding(level="warn", what=what, text=text)


def not_made(what: str, text: str, how: str) -> Finding:
    """A finding that something could not be looked at, and how it can be: what it would have shown is not known."""
    return Finding(level="warn", what=what, text=text, how=how)


def fail(what: str, text: str) -> Finding:
    """A finding that would end a run."""
    return Finding(level="FAIL", what=what, text=text)


def fails(what: str, error: Exception) -> list[Finding]:
    """What an error says, a finding a line: the commands' own errors say what to do."""
    return [fail(what, line.strip()) for line in str(error).splitlines() if line.strip()]


def closing(findings: Sequence[Finding]) -> str:
    """The last line, where nothing would end a run as far as could be seen."""
    warned = "; see what begins with warn" if any(one.level == "warn" for one in findings) else ""
    unmade = [one for one in findings if one.how]
    if not unmade:
        return f"nothing was found that would make a run fail{warned}"
    checks = f"{len(unmade)} check{'s were' if len(unmade) > 1 else ' was'} not made"
    # Two workers that wait are helped by one word.
    how = "; ".join(dict.fromkeys(one.how for one in unmade))
    return (
        f"{checks} ({listed(one.what for one in unmade)}), so a run may still fail: {how}; the other checks found "
        f"nothing that would make a run fail{warned}"
    )


DEVICES = ("train.device", "infer.device")
"""The keys of the run file that say what to compute on."""


@dataclass(kw_only=True)
class Case:
    """A run file under examination, with what several checks need to know."""

    config: RunConfig
    probe: bool = True
    """Start a worker and look from there."""
    patient: bool = False
    """Wait for the workers of a batch system as long as a run would, not for a minute."""
    refused: set[Jobs] = field(default_factory=set)
    """Jobs ("cpu", "gpu") that Slurm would not take: no worker of theirs needs to be waited for."""

    @cached_property
    def facts(self) -> Facts:
        """The machine that the command runs on, its GPUs apart."""
        return gather()

    @cached_property
    def plan(self) -> Prepared | GeochipError:
        """What chipping would do, or why it cannot."""
        try:
            return prepare(self.config)
        except GeochipError as error:
            return error
        except PermissionError as error:
            return InputError(not_allowed(error))

    @cached_property
    def to_predict(self) -> Catalogue | GeochipError:
        """The scenes of an inference, or why there are none."""
        settings = self.config.infer
        try:
            if settings.files:
                return describe_files(settings.files, self.config)
            return find_scenes(self.config, [settings.split], need_labels=False)
        except GeochipError as error:
            return error
        except PermissionError as error:
            return InputError(not_allowed(error))

    @cached_property
    def network(self) -> SegmentationModel | GeochipError:
        """The network with random weights, or why it cannot be built; for bands as many as the scenes have."""
        config = self.config
        bands = 3 if isinstance(self.plan, GeochipError) else len(self.plan.first.bands)
        contract = Contract(
            architecture=config.model.architecture, encoder=config.model.encoder, class_names=config.data.classes,
            band_names=tuple(f"band {number}" for number in range(bands)), bands=tuple(range(1, bands + 1)),
            dtype="uint16", nodata=None, mean=(0.0,) * bands, std=(1.0,) * bands, chip_size=config.chips.size,
            pixel_size_range=None, chip_store_fingerprint="", geochip_version=geochip.__version__,
        )  # fmt: skip
        try:
            return build_model(contract)
        except GeochipError as error:
            return error

    @cached_property
    def scripts(self) -> dict[Jobs, str] | GeochipError:
        """The scripts of the workers' Slurm jobs, or why there are none; none for other kinds of cluster."""
        cluster = self.config.cluster
        if cluster.kind != "slurm":
            return {}
        kinds: tuple[Jobs, ...] = ("cpu", "gpu")
        try:
            return {jobs: job_script(cluster, jobs, self.config.run_dir) for jobs in kinds}
        except GeochipError as error:
            return error

    def devices(self, *which: Device, keys: Sequence[str] = DEVICES) -> str:
        """The keys of the run file that say what to compute on, where they say one of these; "" for none of them."""
        asked = {"train.device": self.config.train.device, "infer.device": self.config.infer.device}
        return " and ".join(f"{key}: {asked[key]}" for key in keys if asked[key] in which)

    @property
    def elsewhere(self) -> bool:
        """Whether scheduler and workers would be in a Slurm job that this process is not in."""
        return self.config.cluster.kind == "srun" and not inside_a_job()

    @property
    def written(self) -> dict[str, Path]:
        """Directories that a run writes to, by the key of the run file that names them, each once."""
        config = self.config
        named = {
            "run_dir": Path(config.run_dir),
            "chips.store": config.chip_store.parent,
            "model.bundle": config.bundle_dir.parent,
            "infer.store": config.prediction_store.parent,
        }
        found: dict[Path, str] = {}
        for key, path in named.items():
            found.setdefault(path.absolute(), key)
        return {key: path for path, key in found.items()}


def existing(path: Path) -> Path:
    """The directory itself, or the nearest one above it that is there already, as far as we may look."""
    # Path.is_dir raises PermissionError below a directory that is closed to us.
    return next(one for one in (path.absolute(), *path.absolute().parents) if os.path.isdir(one))  # noqa: PTH112


def not_allowed(error: PermissionError) -> str:
    """What may not be looked at, and what to do."""
    return f"{error.filename}: {error.strerror}; have its owner give you access, or name another place"


def listed(names: Iterable[object], most: int = 6) -> str:
    """Names in a row, not endlessly many."""
    every = [str(name) for name in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
