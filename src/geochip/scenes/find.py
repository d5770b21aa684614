"""Finding the scenes: by templates, by a manifest, or one by one, with what their headers say."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

from geochip.config import DataConfig, RunConfig
from geochip.errors import InputError
from geochip.files import require_regular
from geochip.names import composed, shown
from geochip.scenes.alpha import doubt_alpha
from geochip.scenes.blocks import Division
from geochip.scenes.catalogue import Catalogue, usable
from geochip.scenes.dividing import division_of
from geochip.scenes.header import SetAside, Source, describe
from geochip.scenes.near import near_labels
from geochip.scenes.reader import Scene
from geochip.scenes.sources import (
    NOTHING_ELSE,
    Found,
    find_sources,
    label_path,
    misfit_of,
    require_shared_label,
    source_of_file,
    undivided_sources,
)

# Opening a file on a parallel file system is waiting, not computing: more threads than cores pay off.
_HEADER_THREADS = 16
# As many files tell whether this is one.
_TRIED_FIRST = 32


def find_scenes(config: RunConfig, splits: Sequence[str] | None = None, *, need_labels: bool = True) -> Catalogue:
    """Find the scenes of some splits and read their headers.

    Args:
        config: where to look, and what divides the scenes.
        splits: the splits to look for; all of `data.splits` when None.
        need_labels: leave scenes without a label file out (listed in `unlabelled`); False keeps them.

    Returns:
        Scenes ordered by split as configured, then by id, numbers in ids by value.

    Raises:
        InputError: when the root is no directory, when a split has no scene, when no scene has a label, when the
            splits cannot be made, or when no scene can be used at all.
    """
    data = config.data
    if unknown := [split for split in splits or () if split not in data.splits]:
        raise InputError(f"split {unknown[0]!r} is not among data.splits: {', '.join(data.splits)}; name one of them")
    if not Path(data.root).absolute().is_dir():
        raise InputError(f"data.root: {data.root!r} is no directory; set it to the one that holds the scenes")
    wanted = [split for split in data.splits if split in (splits or data.splits)]
    if config.split.by == "blocks":
        return _in_blocks(config, wanted, need_labels)
    found = find_sources(config, wanted)
    # A scene that is listed but not there is missed, label or no label.
    unlabelled = [
        source for source in found.sources if need_labels and source.label is None and os.path.lexists(source.image)
    ]
    lacking = {(source.split, source.scene_id) for source in unlabelled}
    labelled = (source for source in found.sources if (source.split, source.scene_id) not in lacking)
    described = _described(labelled, data)
    return _catalogue(config, described, [_without_label(config, source) for source in unlabelled], found)


def _in_blocks(config: RunConfig, wanted: Sequence[str], need_labels: bool) -> Catalogue:
    found = undivided_sources(config)
    division = _division(config, found)
    described: list[Scene | SetAside] = []
    unlabelled: list[SetAside] = []
    for item in (item for split in wanted for item in division.members if item.split == split):
        if need_labels and isinstance(item, Scene) and item.label is None:
            unlabelled.append(_without_label(config, item))
        else:
            described.append(item)
    if not described and not unlabelled:
        raise InputError(
            f"split.fractions: {' and '.join(wanted)} has a share of 0, and so no scene; give it one, or name another "
            "split"
        )
    catalogue = _catalogue(config, described, unlabelled, found)
    buffered = tuple(item for item in division.buffered if item.split in wanted)
    return replace(catalogue, buffered=buffered, squares=division.squares)


def _division(config: RunConfig, found: Found) -> Division:
    # All scenes, whatever is wanted of them: every command must come to the same division.
    return division_of(_described(found.sources, config.data), config)


def describe_files(paths: Sequence[str], config: RunConfig) -> Catalogue:
    """Read the headers of images that are named one by one.

    A file that the templates or the manifest know gets its id, its split and, where there is one, its label from there;
    any other file has its stem as its id and no label.

    Raises:
        InputError: when a file is not there, when two would have the same id, or when none can be used.
    """
    named = [_named_source(name, config) for name in paths]
    faults = [misfit_of(source.scene_id) for source in named]
    misnamed = tuple(
        SetAside(scene_id=shown(source.scene_id), split=source.split, path=shown(source.image), reason=fault)
        for source, fault in zip(named, faults, strict=True)
        if fault is not None
    )
    sources = [source for source, fault in zip(named, faults, strict=True) if fault is None]
    doubled = [scene_id for scene_id, n in Counter(source.scene_id for source in sources).items() if n > 1]
    if doubled:
        raise InputError(f"scene id {doubled[0]!r} belongs to more than one of the named files; name each scene once")
    squares = None
    if config.split.by == "blocks" and any(source.split for source in sources):
        division = _division(config, undivided_sources(config))
        squares = division.squares
        split_of: dict[str, str] = {}
        for item in (*division.members, *division.buffered):
            # Of a scene that is divided the part that shall be predicted counts, else the first.
            if item.split == config.infer.split or item.scene_id not in split_of:
                split_of[item.scene_id] = item.split
        sources = [replace(source, split=source.split and split_of[source.scene_id]) for source in sources]
    strangers = [source for source in sources if config.data.stack and not source.split]
    described = {
        item.scene_id: item
        for item in _described((source for source in sources if source not in strangers), config.data)
    }
    for source in strangers:
        described[source.scene_id] = source.aside(
            f"{source.image} does not fit data.image, and so nothing tells which files data.stack means for it; name "
            "images that fit, or leave data.stack out"
        )
    catalogue = _catalogue(
        config, [described[source.scene_id] for source in sources], (), Found(sources=(), misnamed=misnamed)
    )
    return replace(catalogue, squares=squares)


def _named_source(name: str, config: RunConfig) -> Source:
    path = os.path.abspath(name)
    try:
        require_regular(path)
    except OSError as error:
        reason = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
        raise InputError(f"{shown(name)} is no file{reason}; name images that are there") from None
    known = source_of_file(config, path)
    return known or Source(scene_id=composed(Path(path).stem), split="", image=path, stack=(), label=None)


def _described(sources: Iterable[Source], data: DataConfig) -> list[Scene | SetAside]:
    return doubt_alpha(_headers(sources, data))


def _headers(sources: Iterable[Source], data: DataConfig) -> list[Scene | SetAside]:
    waiting = iter(sources)
    wall, cpu = time.perf_counter(), time.thread_time()
    found = [describe(source, data) for source in islice(waiting, _TRIED_FIRST)]
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    if wall < 2 * cpu:
        # Nothing is waited for here, and threads would stand in each other's way.
        return [*found, *(describe(source, data) for source in waiting)]
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return [*found, *pool.map(lambda source: describe(source, data), waiting)]


def _without_label(config: RunConfig, item: Scene | Source) -> SetAside:
    path = label_path(config, item.split, item.scene_id)
    require_shared_label(config, item.split, path)
    return SetAside(scene_id=item.scene_id, split=item.split, path=item.image, reason=f"there is no label file {path}")


def _catalogue(
    config: RunConfig,
    described: Sequence[Scene | SetAside],
    unlabelled: Sequence[SetAside] = (),
    found: Found = NOTHING_ELSE,
) -> Catalogue:
    lacking: dict[str, set[str]] = {}
    for item in unlabelled:
        lacking.setdefault(item.split, set()).add(item.scene_id)
    near = (*found.near, *near_labels(config, lacking, any_fit=bool(described)))
    if unlabelled and not described:
        first = unlabelled[0]
        raise InputError(
            f"data.label: none of the {len(unlabelled)} scenes has a label file; the first one looked for is "
            f"{label_path(config, first.split, first.scene_id)}; correct data.label or data.root"
            + "".join(f"; {text}" for text in near)
        )
    return usable(
        Catalogue(
            scenes=tuple(item for item in described if isinstance(item, Scene)),
            unlabelled=tuple(unlabelled),
            bad=(*(item for item in described if isinstance(item, SetAside)), *found.misnamed),
            order=tuple((item.split, item.scene_id) for item in described),
            near=near,
        )
    )
