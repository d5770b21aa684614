"""What was taken for something else, or not taken at all, in the files of a scene: told once in a run, with a count."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from geochip.progress import counted

if TYPE_CHECKING:
    from geochip.scenes.reader import Scene

# Texts of one kind that differ, in their numbers mostly.
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What a person should know of a scene that is used nevertheless."""

    kind: str
    """What it is about, in a word: notices of one kind stand together."""
    text: str
    """What was found, what follows and what to do, without the scene's name: scenes alike have the same text."""
    level: Literal["note", "warning"] = "note"
    """A warning is what would most likely not be meant."""


def notice_lines(scenes: Iterable["Scene"]) -> Iterator[str]:
    """What is to be told of some scenes: a line for each text, with the number of scenes and the first of them.

    Args:
        scenes: in the order of the catalogue; which one is named depends on it alone.

    Yields:
        Lines that begin with "note: " or "warning: ", by kind; of many texts of one kind the most frequent ones.
    """
    times: Counter[Notice] = Counter()
    example: dict[Notice, Scene] = {}
    seen: set[tuple[Notice, str, str]] = set()
    for scene in scenes:
        for notice in scene.notices:
            # The parts of a scene that squares of ground divide are one scene.
            if (notice, scene.scene_id, scene.image) in seen:
                continue
            seen.add((notice, scene.scene_id, scene.image))
            times[notice] += 1
            example.setdefault(notice, scene)
    kinds = dict.fromkeys((notice.level, notice.kind) for notice in example)
    for level, kind in sorted(kinds, key=lambda one: one[0]):
        alike = [notice for notice, _ in times.most_common() if (notice.level, notice.kind) == (level, kind)]
        for notice in alike[:_SHOWN]:
            scene, number = example[notice], times[notice]
            name = f"{scene.scene_id}{f' ({scene.split})' if scene.split else ''}"
            whose = f"scene {name}" if number == 1 else f"{counted(number, 'scene')}, such as {name}"
            yield f"{level}: {whose}: {notice.text}"
        if rest := sum(times[notice] for notice in alike[_SHOWN:]):
            yield f"{level}: {counted(rest, 'more scene')} of this kind, with other values"
