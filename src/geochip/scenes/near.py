"""Files that nearly fit a template: another suffix of the kind, or the same letters in another case.

A file that is left out for its name is missed by nobody until the scores are odd, so such files are counted and named,
with the template that would take them.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from geochip.config import DataConfig, RunConfig
from geochip.names import RASTER_FAMILY, composed, shown
from geochip.progress import counted

_VECTORS = (
    ".geojson", ".json", ".geojsonl", ".gpkg", ".shp", ".fgb", ".kml", ".gml", ".parquet", ".geoparquet", ".sqlite",
)  # fmt: skip
_HELD = re.compile(r"(\{split\}|\{id\})")


@dataclass(frozen=True, kw_only=True)
class _Near:
    """A file that nearly fits."""

    scene_id: str
    path: str
    template: str
    """The one that takes it."""
    split: str | None
    """The split's name as the path has it, where it is another one but for case."""


def near_images(config: RunConfig, ids: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """What to say of files that nearly fit data.image.

    Args:
        config: the run file.
        ids: by split, the ids of the images that fit: of those no other file is missed.

    Returns:
        A text for each template that would take some; none when there are none.
    """
    found = [
        near for split, known in ids.items() for near in _near(config, "data.image", config.data.image, split, known)
    ]
    return _told("data.image", config.data.image, found, any(ids.values()))


def near_labels(config: RunConfig, wanted: Mapping[str, Collection[str]], *, any_fit: bool) -> tuple[str, ...]:
    """What to say of files that nearly fit data.label, of scenes that have no label.

    Args:
        config: the run file.
        wanted: by split, the ids of the scenes without a label.
        any_fit: whether other scenes have one.
    """
    found = [
        near
        for split, ids in wanted.items()
        for near in _near(config, "data.label", config.data.label, split, ())
        if near.scene_id in ids
    ]
    return _told("data.label", config.data.label, found, any_fit)


def _told(key: str, template: str, found: Collection[_Near], any_fit: bool) -> tuple[str, ...]:
    by_template: dict[str, list[_Near]] = {}
    for near in found:
        by_template.setdefault(near.template, []).append(near)
    return tuple(_text(key, template, nears, any_fit) for _, nears in sorted(by_template.items()))


def _text(key: str, template: str, nears: Sequence[_Near], any_fit: bool) -> str:
    first, many = nears[0], len(nears) > 1
    them = "them" if many else "it"
    if first.split is not None:
        remedy = f"name the split {first.split!r} in data.splits, or rename the directory"
    elif any_fit:
        remedy = (
            f"--{key} '{first.template}' would take {them} in place of those that fit; to have both, rename some, or "
            "list all in a table (split.by: manifest, with columns image and label)"
        )
    else:
        remedy = f"--{key} '{first.template}' would take {them}"
    return (
        f"{counted(len(nears), 'file')} nearly fit{'' if many else 's'} {key} ({template}) and "
        f"{'are' if many else 'is'} left out, {'the first is' if many else 'namely'} {shown(first.path)}: {remedy}"
    )


def fits_image(config: RunConfig, path: str) -> bool:
    """Whether data.image finds a file of this absolute path."""
    of_images = (pattern for key, _, pattern in _patterns(config) if key == "data.image")
    return any((match := pattern.fit(path)) is not None and pattern.exact(match) for pattern in of_images)


def _near(config: RunConfig, key: str, template: str, split: str, known: Collection[str]) -> Iterator[_Near]:
    """The files that fit a template but for case and suffix, and belong to no other template of the run file."""
    pattern, all_patterns = _Pattern(config.data, template, split), _patterns(config)
    for path in pattern.walk():
        match = pattern.fit(path)
        if match is None or match["id"] in known or pattern.exact(match) or _owner(all_patterns, path) != key:
            continue
        spelt = match[pattern.of_split] if pattern.of_split else split
        yield _Near(
            scene_id=match["id"], path=path, template=pattern.written(match), split=spelt if spelt != split else None
        )


def _patterns(config: RunConfig) -> list[tuple[str, str, "_Pattern"]]:
    """All templates of the run file, each with its key."""
    data = config.data
    templates = [("data.image", data.image), ("data.label", data.label), *(("data.stack", one) for one in data.stack)]
    if config.chips.aoi and "{id}" in config.chips.aoi:
        templates.append(("chips.aoi", config.chips.aoi))
    return [
        (key, template, _Pattern(data, template, split))
        for key, template in templates
        if "{id}" in template
        for split in (data.splits if "{split}" in template else ("",))
    ]


def _owner(patterns: Sequence[tuple[str, str, "_Pattern"]], path: str) -> str | None:
    """The key of the template that a file belongs to most likely: one that it fits, or the one with most letters."""
    fits = [
        (pattern.exact(match), len(template), key)
        for key, template, pattern in patterns
        if (match := pattern.fit(path)) is not None
    ]
    return max(fits, key=lambda fit: fit[:2])[2] if fits else None


class _Pattern:
    """A template with a split filled in, as a pattern of paths to which case and suffix do not matter."""

    def __init__(self, data: DataConfig, template: str, split: str) -> None:
        # What is above the template's own names is as it is: data.root, or what an absolute template begins with.
        root = os.path.abspath(data.root)
        whole = os.path.normpath(Path(root) / template)
        above = os.path.abspath(Path(whole.split("{")[0] + "_").parent)
        self._top = root if f"{above}/".startswith(f"{root}/") else above
        self._absolute = Path(template).is_absolute()
        below = composed(os.path.relpath(whole, self._top))
        family = next((one for one in (RASTER_FAMILY, _VECTORS) if Path(below).suffix.lower() in one), ())
        stem, suffix = (below[: -len(Path(below).suffix)], Path(below).suffix) if family else (below, "")
        self._parts = [*_HELD.split(stem), *([suffix] if suffix else [])]
        self._split = split
        regex, seen = "", False
        self.of_split = 0
        for number, part in enumerate(self._parts, 1):
            if part == "{id}":
                regex += "((?P=id))" if seen else "(?P<id>[^/]+?)"
                seen = True
            elif part == "{split}":
                regex += f"({re.escape(split)})"
                self.of_split = number
            elif suffix and number == len(self._parts):
                regex += f"({'|'.join(map(re.escape, family))})"
            else:
                regex += f"({re.escape(part)})"
        self._regex = re.compile(regex, re.IGNORECASE)
        self._names = [re.compile(name, re.IGNORECASE) for name in self._names_of(stem.split("/"), family)]

    def _names_of(self, names: Sequence[str], family: Sequence[str]) -> Iterator[str]:
        """A pattern for each directory, and for the file."""
        for number, name in enumerate(names, 1):
            filled = re.escape(name.replace("{split}", self._split)).replace(re.escape("{id}"), ".+")
            yield filled + (f"({'|'.join(map(re.escape, family))})" if family and number == len(names) else "")

    def walk(self) -> Iterator[str]:
        """Paths of the files that may fit."""
        found = [Path(self._top)]
        for pattern in self._names:
            found = [
                path for directory in found for path in _listed(directory) if pattern.fullmatch(composed(path.name))
            ]
        return iter(sorted(map(str, found)))

    def fit(self, path: str) -> re.Match[str] | None:
        """Whether a file fits but for case and suffix."""
        if not path.startswith(f"{self._top}/"):
            return None
        return self._regex.fullmatch(composed(path[len(self._top) + 1 :]))

    def exact(self, match: re.Match[str]) -> bool:
        """Whether it fits as it is."""
        expected = [self._split if part == "{split}" else part for part in self._parts]
        return all(part == "{id}" or part == match[number] for number, part in enumerate(expected, 1))

    def written(self, match: re.Match[str]) -> str:
        """The template that takes a file: placeholders stay, and all else is as the file has it."""
        return ("" if not self._absolute else f"{self._top}/") + "".join(
            part if part == "{id}" or (part == "{split}" and match[number] == self._split) else match[number]
            for number, part in enumerate(self._parts, 1)
        )


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        # Not there, a file, or not to be read: nothing is near in it.
        return []
