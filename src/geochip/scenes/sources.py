"""Which files a scene is made of: by the templates of the run file, or by a manifest."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError
from geochip.files import is_there
from geochip.names import composed, fault_of_id, shown
from geochip.scenes.header import SetAside, Source
from geochip.scenes.manifest import Entry, read_manifest
from geochip.scenes.near import near_images
from geochip.scenes.templates import as_on_disk, filled, id_in, id_in_name, image_patterns, matching, natural


@dataclass(frozen=True, kw_only=True)
class Found:
    """Scenes, of which nothing has been read yet."""

    sources: tuple[Source, ...]
    misnamed: tuple[SetAside, ...] = ()
    """Files whose name gives no id, or that of another file: no scene, and no place is kept for them."""
    near: tuple[str, ...] = ()
    """What is to be said of files that nearly fit data.image."""


NOTHING_ELSE = Found(sources=())


def label_path(config: RunConfig, split: str, scene_id: str) -> Path:
    """Where the label of a scene is, whether there is one or not; absolute."""
    if config.split.by == "manifest":
        entry = read_manifest(config.data, config.split).get((split, scene_id))
        if entry is not None and entry.label:
            return _listed(config.data, entry.label)
    return filled(config.data, config.data.label, split, scene_id)


def require_shared_label(config: RunConfig, split: str, path: Path) -> None:
    """Raise `InputError` when a label that is not there is the one of many scenes: they do not simply have none.

    Args:
        config: the run file.
        split: of a scene.
        path: of its label.
    """
    data = config.data
    if data.shared_label and path == filled(data, data.label, split, "") and not path.exists():
        raise InputError(
            f"data.label: {path} is not there, the one label file of all scenes{f' of {split}' if split else ''}; "
            "correct data.label or data.root, or write {id} into it where every scene has a file of its own"
        )


def aoi_path(config: RunConfig, split: str, scene_id: str) -> Path | None:
    """Where the area of interest of a scene is, whether there is one or not; absolute. None when none is configured."""
    return None if config.chips.aoi is None else filled(config.data, config.chips.aoi, split, scene_id)


def labels_of_stranger(config: RunConfig, scene_id: str) -> dict[Path, str]:
    """Where the label of a scene of no split may be, each with the split whose label it would be.

    An image that was named on the command line is called by its file's name; where that is as data.image has it, what
    stands at {id} is looked for as well.

    Args:
        config: the run file.
        scene_id: of the prediction store.
    """
    ids = dict.fromkeys([scene_id, id_in_name(config.data, scene_id) or scene_id])
    splits = config.data.splits if "{split}" in config.data.label else ("",)
    return {label_path(config, split, one): split for one in ids for split in splits}


def find_sources(config: RunConfig, splits: Sequence[str]) -> Found:
    """The scenes of some splits, ordered by split as given, then by id, numbers in ids by value.

    Raises:
        InputError: when there is none in one of the splits, or the manifest cannot be used.
    """
    data = config.data
    if config.split.by == "manifest":
        entries = read_manifest(data, config.split)
        listed = [entry for split in splits for entry in _of_split(entries, split, config)]
        sources = (source_of(config, entry.split, entry.scene_id, _image(data, entry)) for entry in listed)
        return Found(sources=tuple(sources))
    found = [_matched(config, split) for split in splits]
    return Found(
        sources=tuple(source for one in found for source in one.sources),
        misnamed=tuple(item for one in found for item in one.misnamed),
        near=near_images(config, {split: _ids(one) for split, one in zip(splits, found, strict=True)}),
    )


def undivided_sources(config: RunConfig) -> Found:
    """All scenes, by id, where the templates do not tell splits apart; `split` is empty."""
    found = _matched(config, "")
    return Found(sources=found.sources, misnamed=found.misnamed, near=near_images(config, {"": _ids(found)}))


def _ids(found: Found) -> set[str]:
    return {source.scene_id for source in found.sources} | {item.scene_id for item in found.misnamed}


def _matched(config: RunConfig, split: str) -> Found:
    """The scenes of one split by the templates.

    Raises:
        InputError: when there is none.
    """
    data = config.data
    if not (hits := matching(data, split)):
        of_split = f" (split {split!r})" if split else ""
        near = "".join(f"; {text}" for text in near_images(config, {split: set()}))
        raise InputError(
            f"data.image: no file matches {image_patterns(data, split)[0]}{of_split}; correct data.root, data.image or "
            f"data.splits{near}"
        )
    first_of: dict[str, str] = {}
    sources, misnamed = [], []
    for scene_id, path in hits:
        fault = misfit_of(scene_id)
        if fault is None and scene_id in first_of:
            fault = (
                f"{shown(path)} and {shown(first_of[scene_id])} have the same name, spelt in two ways of Unicode; "
                "rename one of them"
            )
        if fault is not None:
            misnamed.append(SetAside(scene_id=shown(scene_id), split=split, path=shown(path), reason=fault))
            continue
        first_of[scene_id] = path
        sources.append(source_of(config, split, scene_id, path))
    return Found(sources=tuple(sources), misnamed=tuple(misnamed))


def misfit_of(scene_id: str) -> str | None:
    """Why a file whose name gives this id is no scene; None when it is one."""
    fault = fault_of_id(scene_id)
    if fault is None:
        return None
    return f"its id, {shown(scene_id)}, names files of the predictions and {fault}; rename the file"


def source_of_file(config: RunConfig, path: str) -> Source | None:
    """The scene that a file is the image of; None when neither the templates nor the manifest know it."""
    data = config.data
    if config.split.by == "manifest":
        for (split, scene_id), entry in read_manifest(data, config.split).items():
            if composed(_image(data, entry)) == composed(path):
                return source_of(config, split, scene_id, path)
        return None
    for split in data.splits:
        found = id_in(data, split, path)
        if found is not None:
            return source_of(config, split, found, path)
    return None


def source_of(config: RunConfig, split: str, scene_id: str, image: str) -> Source:
    """The files of a scene."""
    label = label_path(config, split, scene_id)
    return Source(
        scene_id=scene_id,
        split=split,
        image=image,
        stack=tuple(str(filled(config.data, template, split, scene_id)) for template in config.data.stack),
        label=str(label) if is_there(label) else None,
    )


def _image(data: DataConfig, entry: Entry) -> str:
    if entry.image:
        return str(_listed(data, entry.image))
    return str(filled(data, data.image, entry.split, entry.scene_id))


def _listed(data: DataConfig, path: str) -> Path:
    """Where a file is that a table names, relative to data.root; absolute, without "..", as it is spelt on the disk."""
    return Path(os.path.abspath(as_on_disk(data, path)))


def _of_split(entries: dict[tuple[str, str], Entry], split: str, config: RunConfig) -> list[Entry]:
    chosen = [entry for entry in entries.values() if entry.split == split]
    if not chosen:
        others = dict.fromkeys(entry.split for entry in entries.values())
        raise InputError(
            f"split.manifest: {config.split.manifest} has no row with {split!r} in its column {config.split.column!r}, "
            f"of data.splits only {', '.join(others) or 'none'}; correct the table, split.column or data.splits"
        )
    return sorted(chosen, key=lambda entry: natural(entry.scene_id))
