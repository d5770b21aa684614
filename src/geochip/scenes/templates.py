"""The templates of the run file: from a split and an id to a path, and back."""

import glob
import os
import re
from pathlib import Path

from geochip.config import DataConfig
from geochip.names import composed, forms


def filled(data: DataConfig, template: str, split: str, scene_id: str) -> Path:
    """The path that a template stands for; absolute, since Dask workers may have been started elsewhere.

    Where there is a file whose name only is composed otherwise (see `geochip.names.composed`), it is that file's.
    """
    return as_on_disk(data, template.replace("{split}", split).replace("{id}", scene_id))


def as_on_disk(data: DataConfig, name: str) -> Path:
    """A path relative to data.root, absolute; spelt as the file is that there is, if Unicode has several spellings."""
    first, *others = (Path(data.root).absolute() / form for form in forms(name))
    if others and not os.path.lexists(first):
        return next((path for path in others if os.path.lexists(path)), first)
    return first


def id_in(data: DataConfig, split: str, image: str) -> str | None:
    """What stands at {id} in the absolute path of an image; None when it does not fit the template."""
    match = re.fullmatch(_regex(data, split), composed(image))
    return match["id"] if match else None


def id_in_name(data: DataConfig, stem: str) -> str | None:
    """What stands at {id} in the name of a file without its suffix; None when it is not as data.image has it."""
    name = Path(data.image.replace("{split}", "")).stem
    if "{id}" not in name:
        return None
    match = re.fullmatch(_pattern(composed(name)), composed(stem))
    return match["id"] if match else None


def matching(data: DataConfig, split: str) -> list[tuple[str, str]]:
    """(id, path) of the images that there are, by id.

    Ids are in Unicode's normal form C, so two files may have one; paths are as they are on the disk.
    """
    regex = re.compile(_regex(data, split))
    for pattern in image_patterns(data, split):
        hits = [(match["id"], name) for name in glob.iglob(pattern) if (match := regex.fullmatch(composed(name)))]
        if hits:
            return sorted(hits, key=lambda hit: (natural(hit[0]), hit[1]))
    return []


def image_patterns(data: DataConfig, split: str) -> list[str]:
    """The patterns that a shell would find the images by, one for each spelling of the template in Unicode."""
    return ["*".join(glob.escape(part) for part in form.split("{id}")) for form in forms(_image(data, split))]


def natural(text: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key under which img9 comes before img10, and no two texts are alike."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]
    return parts, text


def _image(data: DataConfig, split: str) -> str:
    return os.path.abspath(Path(data.root) / data.image.replace("{split}", split))


def _regex(data: DataConfig, split: str) -> str:
    return _pattern(composed(_image(data, split)))


def _pattern(template: str) -> str:
    first, *rest = (re.escape(part) for part in template.split("{id}"))
    # A second {id} in a template must repeat the first.
    return first + "(?P<id>[^/]+?)" + "(?P=id)".join(rest)
