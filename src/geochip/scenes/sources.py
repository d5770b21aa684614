"""Which files a scene is made of: by the templates of the run file, or by a manifest."""

import os
from collections.abc import Sequence
from pathlib import Path

from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError
from geochip.scenes.header import Source
from geochip.scenes.manifest import Entry, read_manifest
from geochip.scenes.templates import filled, id_in, matching, natural


def label_path(config: RunConfig, split: str, scene_id: str) -> Path:
    """Where the label of a scene is, whether there is one or not; absolute."""
    if config.split.by == "manifest":
        entry = read_manifest(config.data, config.split).get((split, scene_id))
        if entry is not None and entry.label:
            return Path(os.path.abspath(Path(config.data.root) / entry.label))
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


def find_sources(config: RunConfig, splits: Sequence[str]) -> list[Source]:
    """The scenes of some splits, ordered by split as given, then by id, numbers in ids by value.

    Raises:
        InputError: when there is none in one of the splits, or the manifest cannot be used.
    """
    data = config.data
    if config.split.by == "manifest":
        entries = read_manifest(data, config.split)
        listed = [entry for split in splits for entry in _of_split(entries, split, config)]
        return [_source(config, entry.split, entry.scene_id, _image(data, entry)) for entry in listed]
    return [_source(config, split, scene_id, path) for split in splits for scene_id, path in matching(data, split)]


def undivided_sources(config: RunConfig) -> list[Source]:
    """All scenes, by id, where the templates do not tell splits apart; `split` is empty."""
    return [_source(config, "", scene_id, path) for scene_id, path in matching(config.data, "")]


def source_of_file(config: RunConfig, path: str) -> Source | None:
    """The scene that a file is the image of; None when neither the templates nor the manifest know it."""
    data = config.data
    if config.split.by == "manifest":
        for (split, scene_id), entry in read_manifest(data, config.split).items():
            if _image(data, entry) == path:
                return _source(config, split, scene_id, path)
        return None
    for split in data.splits:
        found = id_in(data, split, path)
        if found is not None:
            return _source(config, split, found, path)
    return None


def _source(config: RunConfig, split: str, scene_id: str, image: str) -> Source:
    label = label_path(config, split, scene_id)
    return Source(
        scene_id=scene_id,
        split=split,
        image=image,
        stack=tuple(str(filled(config.data, template, split, scene_id)) for template in config.data.stack),
        label=str(label) if label.exists() else None,
    )


def _image(data: DataConfig, entry: Entry) -> str:
    if entry.image:
        return os.path.abspath(Path(data.root) / entry.image)
    return str(filled(data, data.image, entry.split, entry.scene_id))


def _of_split(entries: dict[tuple[str, str], Entry], split: str, config: RunConfig) -> list[Entry]:
    chosen = [entry for entry in entries.values() if entry.split == split]
    if not chosen:
        others = dict.fromkeys(entry.split for entry in entries.values())
        raise InputError(
            f"split.manifest: {config.split.manifest} has no row with {split!r} in its column {config.split.column!r}, "
            f"of data.splits only {', '.join(others) or 'none'}; correct the table, split.column or data.splits"
        )
    return sorted(chosen, key=lambda entry: natural(entry.scene_id))
