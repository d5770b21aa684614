"""What can be broken, how, and which commands then read it."""

import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from fuzz import mutations
from fuzz.mutations import edit_bytes, edit_csv, edit_json, edit_lines, edit_tree, edit_yaml

# Removed before a command, so that it has its work to do again.
NO_CHIPS = ("run/chips.zarr", "run/chips.zarr.journal", "run/chips.parquet", "run/scenes.parquet")
NO_PREDICTIONS = ("run/predictions.zarr", "run/predictions.zarr.journal", "run/predictions")

Command = tuple[str, tuple[str, ...], tuple[str, ...]]
"""(module, its flags, what is removed before)"""

DRY: Command = ("chipping", ("--dry_run",), ())
CHIP: Command = ("chipping", (), ())
CHIP_ANEW: Command = ("chipping", (), NO_CHIPS)
VERIFY: Command = ("chipping", ("--verify",), ())
PREVIEW: Command = ("chipping", ("--preview",), ())
TRAIN: Command = ("train_ddp", (), ())
TRAIN_ANEW: Command = ("train_ddp", (), ("run/train", "run/model"))
INFER: Command = ("infer", (), ())
INFER_DRY: Command = ("infer", ("--dry_run",), NO_PREDICTIONS)
INFER_ANEW: Command = ("infer", (), NO_PREDICTIONS)
INFER_FILES: Command = ("infer", ("data/val/scene_c.tif", "--infer.cog=false"), NO_PREDICTIONS)
EVALUATE: Command = ("evaluate", (), ())
DOCTOR: Command = ("doctor", ("--no_probe",), ())
MANIFEST = ("--split.by=manifest", "--split.manifest=data/manifest.csv")
MASKS = (
    "--data.label={split}/mask_{id}.tif", "--labels.class_property=null", "--labels.class_map={0: background, 1: building}",
    "--labels.priority=[]", "--labels.buffer=0",
)  # fmt: skip


# These read back how the scenes were divided.
BLOCKS = (
    "--split.by=blocks", "--split.block=100", "--split.buffer=0", "--data.image=train/scene_{id}.tif",
    "--data.label=train/label_{id}.geojson",
)  # fmt: skip


def _in_blocks(command: Command) -> Command:
    module, flags, removed = command
    return module, (*flags, *BLOCKS), removed


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of thing that can be broken."""

    files: tuple[str, ...]
    """Patterns of its files, relative to a case's directory."""
    commands: tuple[Command, ...]
    edits: tuple[Callable[[random.Random, bytes], tuple[bytes, str]], ...] = (edit_bytes,)
    """How its content is changed, besides other things put in the file's place."""
    whole: float = 0.2
    """How often another thing is put in the file's place."""


def edit_checkpoint(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A checkpoint of other content; `break_file` gives it the name that its checksum asks for."""
    import torch

    content = torch.load(io.BytesIO(data), weights_only=True)
    changed, what = edit_tree(rng, content)
    buffer = io.BytesIO()
    torch.save(changed, buffer)
    return buffer.getvalue(), what


def edit_table(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A Parquet table without one of its columns, with none of its rows, or with other values in a column."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    name = rng.choice(table.column_names)
    how = rng.choice(["drop", "rows", "text", "metadata"])
    if how == "drop":
        table = table.drop_columns([name])
    elif how == "rows":
        table = table.slice(0, 0)
    elif how == "metadata":
        table = table.replace_schema_metadata({})
    else:
        table = table.set_column(table.column_names.index(name), name, [["x"] * len(table)])
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue(), f"{how} {name}"


def edit_weights(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Weights of other shapes, types or values."""
    import safetensors.torch
    import torch

    weights = safetensors.torch.load(data)
    name = rng.choice(sorted(weights))
    how = rng.choice(["nan", "shape", "dtype", "drop", "add"])
    if how == "nan":
        weights[name] = torch.full_like(weights[name], float("nan"))
    elif how == "shape":
        weights[name] = torch.zeros(3)
    elif how == "dtype":
        weights[name] = weights[name].to(torch.int64)
    elif how == "drop":
        del weights[name]
    else:
        weights["added"] = torch.zeros(1)
    return safetensors.torch.save(weights), f"{how} {name}"


TARGETS: dict[str, Target] = {
    "run file": Target(
        files=("run.yaml",), edits=(edit_yaml, edit_yaml, edit_yaml, edit_bytes), whole=0.1,
        commands=(DRY, DRY, INFER, EVALUATE, TRAIN, CHIP_ANEW, TRAIN_ANEW, INFER_ANEW, DOCTOR),
    ),
    "images": Target(
        files=("data/*/scene_*.tif",), commands=(DRY, CHIP, CHIP_ANEW, INFER, INFER_ANEW, INFER_FILES, EVALUATE, DOCTOR)
    ),
    "labels": Target(
        files=("data/*/label_*.geojson", "data/aoi.geojson"), edits=(edit_json, edit_json, edit_bytes),
        commands=(DRY, CHIP, CHIP_ANEW, EVALUATE, DOCTOR),
    ),
    "masks": Target(
        files=("data/*/mask_*.tif",),
        commands=(("chipping", MASKS, NO_CHIPS), ("chipping", (*MASKS, "--dry_run"), NO_CHIPS), ("evaluate", MASKS, ())),
    ),
    "manifests": Target(
        files=("data/manifest.csv",), edits=(edit_csv, edit_csv, edit_csv, edit_bytes),
        commands=tuple(
            (module, (*MANIFEST, *flags), removed) for module, flags, removed in (DRY, CHIP_ANEW, INFER_ANEW, EVALUATE)
        ),
    ),
    "chip store": Target(
        files=("run/chips.zarr/**/zarr.json", "run/chips.zarr/**/c.*"), edits=(edit_bytes,),
        commands=(CHIP, VERIFY, PREVIEW, TRAIN, TRAIN_ANEW, DRY, DOCTOR),
    ),
    "chip store's documents": Target(
        files=("run/chips.zarr/**/zarr.json",), edits=(edit_json,), whole=0.0,
        commands=(CHIP, VERIFY, PREVIEW, TRAIN, TRAIN_ANEW, DRY, DOCTOR),
    ),
    "prediction store": Target(
        files=("run/predictions.zarr/**/zarr.json", "run/predictions.zarr/**/c.*"), edits=(edit_bytes,),
        commands=(INFER, EVALUATE, DOCTOR),
    ),
    "prediction store's documents": Target(
        files=("run/predictions.zarr/**/zarr.json",), edits=(edit_json,), whole=0.0, commands=(INFER, EVALUATE, DOCTOR)
    ),
    "journals": Target(
        files=("run/*.journal",), edits=(edit_lines, edit_lines, edit_lines, edit_bytes),
        commands=(CHIP, VERIFY, PREVIEW, TRAIN_ANEW, DRY, INFER, EVALUATE, DOCTOR),
    ),
    "tables": Target(
        files=("run/*.parquet", "run/eval.json", "run/train/log.csv", "run/predictions/*.tif"),
        edits=(edit_bytes,), commands=(CHIP, TRAIN, INFER, EVALUATE, DOCTOR),
    ),
    "columns": Target(
        files=("run/*.parquet", "run/scenes.parquet", "run/scenes.parquet"), edits=(edit_table, edit_table, edit_bytes),
        whole=0.1, commands=(CHIP, DRY, PREVIEW, INFER, DOCTOR, *(_in_blocks(one) for one in (DRY, CHIP, INFER_DRY, DOCTOR))),
    ),
    "bundles": Target(
        files=("run/model/model.json", "run/model/model.safetensors"), edits=(edit_bytes,),
        commands=(INFER, INFER_DRY, INFER_ANEW, TRAIN, DOCTOR),
    ),
    "contracts": Target(
        files=("run/model/model.json",), edits=(edit_json,), whole=0.0, commands=(INFER, INFER_DRY, INFER_ANEW, TRAIN)
    ),
    "weights": Target(
        files=("run/model/model.safetensors",), edits=(edit_weights,), whole=0.0, commands=(INFER, INFER_ANEW, TRAIN)
    ),
    "checkpoints": Target(
        files=("run/train/*.pt",), edits=(edit_checkpoint, edit_checkpoint, edit_bytes), commands=(TRAIN, TRAIN, DOCTOR)
    ),
}  # fmt: skip

# Kinds without a file of their own.
OTHERS = ("flags", "directories", "locks")
KINDS = (*TARGETS, *OTHERS)


def break_something(rng: random.Random, kind: str, directory: Path) -> tuple[str, Command]:
    """Break one thing of a kind below a case's directory; returns what was done and the command that shall cope."""
    if kind == "flags":
        return _odd_flag(rng)
    if kind == "directories":
        return _odd_directory(rng, directory)
    if kind == "locks":
        return _odd_lock(rng, directory)
    target = TARGETS[kind]
    files = sorted(path for pattern in target.files for path in directory.glob(pattern))
    path = rng.choice(files)
    command = rng.choice(target.commands)
    if rng.random() < target.whole:
        what = mutations.replace_file(rng, path, sorted(set(directory.rglob("*.*")) - {path}))
    else:
        data, what = rng.choice(target.edits)(rng, path.read_bytes())
        _write(path, data, as_if_right=rng.random() < 0.7)
    return f"{path.relative_to(directory)}: {what}", command


def _write(path: Path, data: bytes, *, as_if_right: bool) -> None:
    """Write broken content; `as_if_right`: with the checksum that goes with it, where a checksum is kept."""
    if as_if_right and path.suffix == ".pt":
        checksum = hashlib.sha256(data).hexdigest()[:16]
        path.unlink()
        path = path.with_name(re.sub(r"[0-9a-f]{16}\.pt", f"{checksum}.pt", path.name))
    if as_if_right and path.name == "model.safetensors":
        contract = path.with_name("model.json")
        document = json.loads(contract.read_text())
        contract.write_text(json.dumps({**document, "weights_sha256": hashlib.sha256(data).hexdigest()}))
    path.write_bytes(data)


def _odd_flag(rng: random.Random) -> tuple[str, Command]:
    from geochip.run_file import config_keys

    module, flags, removed = rng.choice(TARGETS["run file"].commands)
    key = rng.choice([key for key in config_keys() if not key.startswith("cluster.") or key.count(".") == 2])
    value = mutations.odd_value(rng, mutations.ODD)
    # As a person would write it, and as a shell passes it on: bare, or as YAML.
    text = str(value) if rng.random() < 0.5 or not isinstance(value, list | dict) else yaml.safe_dump(value).strip()
    text = mutations.DIGITS if rng.random() < 0.05 else text.replace("\0", "")
    return f"--{key}={text[:60]!a}", (module, (*flags, f"--{key}={text}"), removed)


def _odd_directory(rng: random.Random, directory: Path) -> tuple[str, Command]:
    inner = [path for path in sorted(directory.glob("run/**/")) if path.is_dir() and path != directory / "run"]
    path = rng.choice([*inner, directory / "data", *sorted((directory / "data").glob("*/"))])
    what = mutations.replace_directory(rng, path)
    command = rng.choice([CHIP, VERIFY, PREVIEW, TRAIN, DRY, INFER, EVALUATE, DOCTOR])
    return f"{path.relative_to(directory)}/: {what}", command


def _odd_lock(rng: random.Random, directory: Path) -> tuple[str, Command]:
    name, module = rng.choice([("chips.zarr", "chipping"), ("predictions.zarr", "infer"), ("train", "train_ddp")])
    lock = directory / "run" / f"{name}.lock"
    # Of another machine: only signs of life tell whether its holder lives, and there are none.
    content = {
        "host": "elsewhere", "user": "x", "pid": 7, "started": 1.0, "since": "then", "kernel": "another", "token": "0",
    }  # fmt: skip
    how = rng.choice(
        ["document", "edited", "edited", "edited", "garbage", "fifo", "dangling", "directory", "empty", "old"]
    )
    if how == "document":
        lock.write_text(json.dumps(content))
    elif how == "edited":
        changed, how = edit_tree(rng, content)
        lock.write_text(json.dumps(changed))
    elif how == "old":
        lock.write_text(rng.choice(["host 1", "host\n1\n", "1", "host x", "\0", f"host {mutations.DIGITS}"]))
    elif how == "fifo":
        os.mkfifo(lock)
    elif how == "dangling":
        lock.symlink_to("/nowhere/at/all")
    elif how == "directory":
        lock.mkdir()
    else:
        lock.write_bytes(rng.randbytes(20) if how == "garbage" else b"")
    return f"{lock.relative_to(directory)}: {how}", (module, (), ())
