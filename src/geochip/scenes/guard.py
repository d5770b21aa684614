"""No output is an input: what a command would write is held against what it reads, before it writes anything.

Compared is where paths lead to, through symbolic links, and where both are there, whether they are one file: hard links
and a directory that is mounted twice lead to the same bytes by other names.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from geochip.config import RunConfig
from geochip.errors import InputError
from geochip.names import shown
from geochip.scenes.catalogue import Catalogue
from geochip.scenes.header import SetAside
from geochip.scenes.near import fits_image
from geochip.scenes.reader import Scene
from geochip.scenes.sources import aoi_path, label_path
from geochip.scenes.templates import filled


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a command would write."""

    option: str
    """The key of the run file that says where."""
    remedy: str
    """What to do when that is no good place, such as "choose another run_dir"."""
    files: Mapping[Path, str]
    """Single files, each with what it is, such as "the table of chips"."""
    stores: Collection[Path] = ()
    """Directories of geochip's own, in which anything may be rewritten and removed."""
    directory: Path | None = None
    """That many of `files` go to: nothing that is read may lie in it, whatever its name."""

    def refusal(self, what: str) -> InputError:
        """The error that says what is wrong."""
        return InputError(f"{self.option}: {what}; nothing was written: {self.remedy}")


def refuse_overwriting(config: RunConfig, catalogue: Catalogue, outputs: Outputs) -> None:
    """See that a command writes nothing over what it reads, and that there is room for what it writes.

    Args:
        config: the run file.
        catalogue: the scenes that it works on, usable or not.
        outputs: what it would write.

    Raises:
        InputError: when it would; nothing has been written.
    """
    _require_room(outputs)
    places = _Places()
    written = {places.of(path): path for path in outputs.files}
    known = {found: path for path in outputs.files if (found := _identity(path)) is not None}
    trees = {os.path.realpath(path): path for path in outputs.stores}
    own = outputs.directory
    if own is not None and places.is_one(own, Path(config.data.root)):
        raise outputs.refusal(f"{own} is data.root, and files would be written into it")
    for path, key in inputs_of(config, catalogue):
        place = places.of(path)
        target = written.get(place) or (known.get(_identity(path) or (0, 0)) if known else None)
        if target is not None:
            raise outputs.refusal(
                f"{target} ({outputs.files[target]}) would be written over {shown(path)}, which {key} names"
            )
        if own is not None and places.is_one(own, places.parent(path)):
            raise outputs.refusal(f"files would be written to {own}, where {shown(path)} lies, which {key} names")
        if (tree := next((one for one in trees if f"{place}/".startswith(f"{one}/")), None)) is not None:
            raise outputs.refusal(
                f"{trees[tree]} is rewritten and removed as a whole, and {shown(path)} lies in it, which {key} names"
            )


def refuse_read_later(config: RunConfig, outputs: Outputs, also: Mapping[str, str] | None = None) -> None:
    """The same for a command that looks for no scenes: by what the run file names, and what its templates would find.

    Args:
        config: the run file.
        outputs: what it would write; `files` only.
        also: more that it reads, by path, each with the key that names it.

    Raises:
        InputError: when an output would be read as an input, now or by the next command.
    """
    _require_room(outputs)
    places = _Places()
    for output, what in outputs.files.items():
        named = [*_named_once(config), *((Path(path), key) for path, key in (also or {}).items())]
        for path, key in named:
            if places.is_one(output, path):
                raise outputs.refusal(f"{output} ({what}) would be written over {path}, which {key} names")
        for form in (os.path.abspath(output), places.of(output)):
            if fits_image(config, form):
                raise outputs.refusal(f"{output} ({what}) would be taken for an image by data.image")


def inputs_of(config: RunConfig, catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    """Path and key of everything that is read, and of labels that would be read if they were there."""
    items: list[Scene | SetAside] = [*catalogue.scenes, *catalogue.unlabelled, *catalogue.buffered, *catalogue.bad]
    for item in items:
        yield from _of_scene(config, item)
    yield from ((str(path), key) for path, key in _named_once(config))


def _of_scene(config: RunConfig, item: Scene | SetAside) -> Iterable[tuple[str, str]]:
    split, scene_id = item.split, item.scene_id
    if isinstance(item, Scene):
        yield item.image, "data.image"
        yield item.label or str(label_path(config, split, scene_id)), "data.label"
        yield from ((path, "data.stack") for path in item.stack)
    else:
        yield item.path, "data.image"
        yield str(label_path(config, split, scene_id)), "data.label"
        yield from ((str(filled(config.data, one, split, scene_id)), "data.stack") for one in config.data.stack)
    if config.chips.aoi is not None and "{id}" in config.chips.aoi:
        yield str(aoi_path(config, split, scene_id)), "chips.aoi"


def _named_once(config: RunConfig) -> Iterator[tuple[Path, str]]:
    """What the run file names without {id}."""
    if config.split.by == "manifest" and config.split.manifest:
        yield Path(config.split.manifest), "split.manifest"
    for key, template in (("chips.aoi", config.chips.aoi), ("data.label", config.data.label)):
        if template is not None and "{id}" not in template:
            yield from ((filled(config.data, template, split, ""), key) for split in config.data.splits)


def _require_room(outputs: Outputs) -> None:
    for path, what in outputs.files.items():
        if path.is_dir():
            raise outputs.refusal(f"{path} is a directory, and {what} would be a file of that name")
    for path in (*outputs.stores, *([outputs.directory] if outputs.directory else ())):
        if os.path.lexists(path) and not path.is_dir():
            raise outputs.refusal(f"{path} is no directory, and files would be written into one of that name")


def _identity(path: Path | str) -> tuple[int, int] | None:
    """What is one for all names of a file; None where there is none."""
    try:
        facts = Path(path).stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


class _Places:
    """Where paths lead to; of many files in one directory that one is followed once."""

    def __init__(self) -> None:
        self._real: dict[Path, Path] = {}
        self._one: dict[tuple[Path, Path], bool] = {}

    def parent(self, path: Path | str) -> Path:
        """Where the directory of a file is."""
        above = Path(os.path.abspath(path)).parent
        if above not in self._real:
            self._real[above] = Path(os.path.realpath(above))
        return self._real[above]

    def of(self, path: Path | str) -> str:
        """Where a path leads to, whether something is there or not."""
        place = self.parent(path) / Path(path).name
        try:
            return os.path.realpath(place) if place.is_symlink() else str(place)
        except OSError:
            # Of a name that is too long for anything to be there.
            return str(place)

    def is_one(self, path: Path, other: Path) -> bool:
        """Whether two paths lead to one place."""
        if (path, other) not in self._one:
            known = _identity(path)
            same = os.path.realpath(path) == os.path.realpath(other)
            self._one[path, other] = same or (known is not None and known == _identity(other))
        return self._one[path, other]
