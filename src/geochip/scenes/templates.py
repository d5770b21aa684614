"""The templates of the run file: from a split and an id to a path, and back."""

import glob
import os
import re
from pathlib import Path

from geochip.config import DataConfig
from geochip.errors import InputError


def filled(data: DataConfig, template: str, split: str, scene_id: str) -> Path:
    """The path that a template stands for; absolute, since Dask workers may have been started elsewhere."""
    return Path(data.root).absolute() / template.replace("{split}", split).replace("{id}", scene_id)


def id_in(data: DataConfig, split: str, image: str) -> str | None:
    """What stands at {id} in the absolute path of an image; None when it does not fit the template."""
    match = re.fullmatch(_regex(data, split), image)
    return match["id"] if match else None


def matching(data: DataConfig, split: str) -> list[tuple[str, str]]:
    """(id, path) of the images that there are, by id.

    Raises:
        InputError: when there is none.
    """
    pattern = "*".join(glob.escape(part) for part in _image(data, split).split("{id}"))
    regex = re.compile(_regex(data, split))
    hits = [(match["id"], name) for name in glob.iglob(pattern) if (match := regex.fullmatch(name))]
    if not hits:
        of_split = f" (split {split!r})" if split else ""
        raise InputError(
            f"data.image: no file matches {pattern}{of_split}; correct data.root, data.image or data.splits"
        )
    return sorted(hits, key=lambda hit: natural(hit[0]))


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which img9 comes before img10, and no two texts are alike."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
    return parts, text


def _image(data: DataConfig, split: str) -> str:
    return os.path.abspath(Path(data.root) / data.image.replace("{split}", split))


def _regex(data: DataConfig, split: str) -> str:
    first, *rest = (re.escape(part) for part in _image(data, split).split("{id}"))
    # A second {id} in a template must repeat the first.
    return first + "(?P<id>[^/]+?)" + "(?P=id)".join(rest)
