"""The scene catalogue: which scenes can be used, which cannot, and what tells one from another."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from geochip.errors import InputError, WorkError
from geochip.files import require_regular
from geochip.scenes.header import SetAside, file_facts
from geochip.scenes.reader import Scene
from geochip.scenes.regions import Squares

_SHOWN = 5


# Fields that say how pixels are read, beside those that every digest has.
_LATER = ("band_nodata", "alpha")

# Of an image, at either end.
_END_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The scenes that can be used, and those that cannot."""

    scenes: tuple[Scene, ...] = ()
    unlabelled: tuple[SetAside, ...] = ()
    """Scenes without a label file."""
    bad: tuple[SetAside, ...] = ()
    """Scenes whose header cannot be read or does not fit the configuration."""
    buffered: tuple[SetAside, ...] = ()
    """Scenes of train.split that lie too close to those of another one (split.buffer)."""
    order: tuple[tuple[str, str], ...] = ()
    """(split, scene id) of every scene in `scenes` and `bad`: a scene that is found bad keeps its turn. Files whose
    names give no id are in `bad` alone."""
    near: tuple[str, ...] = ()
    """What is to be said of files that nearly fit a template."""
    squares: Squares | None = None
    """Whose ground is whose, where squares of ground divide the scenes: a scene stands here once for each split that
    has a part of it. None: every scene is whole."""


def usable(catalogue: Catalogue) -> Catalogue:
    """The catalogue, if it has a scene.

    Raises:
        InputError: when it has none; the reasons are shown.
    """
    if not catalogue.scenes:
        shown = [str(item) for item in catalogue.bad[:_SHOWN]]
        more = [f"... and {len(catalogue.bad) - _SHOWN} more"] if len(catalogue.bad) > _SHOWN else []
        raise InputError("\n".join(["no scene can be used", *shown, *more]))
    return catalogue


def set_aside(catalogue: Catalogue, faults: Iterable[tuple[Scene, str]]) -> Catalogue:
    """Move scenes that turned out unusable from `scenes` to `bad`, each with its reason; `order` stays as it is.

    Raises:
        InputError: when no scene is left.
    """
    reasons = {(scene.split, scene.scene_id): reason for scene, reason in faults}
    kept = tuple(scene for scene in catalogue.scenes if (scene.split, scene.scene_id) not in reasons)
    gone = tuple(
        SetAside(scene_id=scene.scene_id, split=scene.split, path=scene.image, reason=reason)
        for scene in catalogue.scenes
        if (reason := reasons.get((scene.split, scene.scene_id)))
    )
    return usable(replace(catalogue, scenes=kept, bad=(*catalogue.bad, *gone)))


def odd_ones(scenes: Sequence[Scene], like: tuple[str, tuple[str, ...]] | None = None) -> list[tuple[Scene, str]]:
    """Scenes that cannot share an array with the others: another dtype or other bands.

    Args:
        scenes: the scenes.
        like: dtype and band names that they must have; None: those that most of them have.
    """
    (dtype, bands) = like or Counter((scene.dtype, scene.band_names) for scene in scenes).most_common(1)[0][0]
    return [
        (
            scene,
            f"{scene.image} has the bands {', '.join(scene.band_names)} of {scene.dtype} where most scenes have "
            f"{', '.join(bands)} of {dtype}; chips of one store share both: convert the file, or choose common bands "
            "with data.bands",
        )
        for scene in scenes
        if (scene.dtype, scene.band_names) != (dtype, bands)
    ]


def scene_digest(scene: Scene, *, with_label: bool) -> dict[str, str]:
    """What tells whether a scene is the one that it was, wherever its files are.

    Args:
        scene: the scene.
        with_label: whether its label counts.

    Returns:
        "header": a digest of what the image's header says; "content": of the images' sizes and of their first and last
        bytes (all of every image would take as long to read as the work itself) and, if it counts, of the label's
        bytes; "stamp": `Scene.image_stamp`, which tells when the pixels between have to be looked at.
    """
    others = ["image", "stack", "label", "image_bytes", "image_stamp", "label_bytes", "unused_georeference", "notices"]
    others.append("region")
    # As they mostly are: stores that were made before there were such fields hold the digest without them.
    others += [one.name for one in fields(scene) if one.name in _LATER and getattr(scene, one.name) == one.default]
    header = {one.name: getattr(scene, one.name) for one in fields(scene) if one.name not in others}
    header["transform"] = tuple(scene.transform)[:6]
    content = hashlib.sha256(f"{scene.image_bytes} ".encode())
    for path in (scene.image, *scene.stack):
        content.update(_ends_digest(path))
    if with_label and scene.label is not None:
        facts = file_facts(scene.label)
        content.update(_label_digest(scene.label, facts))
    return {
        "header": hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:16],
        "content": content.hexdigest()[:16],
        "stamp": scene.image_stamp,
    }


@lru_cache(maxsize=64)
def _label_digest(path: str, _facts: tuple[int, int]) -> bytes:
    """Of a label's bytes; many scenes may share one, which is read once."""
    # The attributes of a shapefile stand in a file of their own.
    companions = [Path(path).with_suffix(".dbf")] if Path(path).suffix.lower() == ".shp" else []
    return b"".join(_bytes_digest(file) for file in (Path(path), *companions))


def _bytes_digest(path: Path) -> bytes:
    """Of a file's bytes; of why there are none where it cannot be read, which is told where it is used."""
    try:
        if path.is_dir():
            # A geodatabase.
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return hashlib.sha256(b"".join(_bytes_digest(file) for file in files)).digest()
        require_regular(path)
        with path.open("rb") as file:
            # In pieces: a label of a whole city is not held in memory.
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        return f"unread {error.errno}".encode()


def _ends_digest(path: str) -> bytes:
    try:
        require_regular(path)
        with Path(path).open("rb") as file:
            head = file.read(_END_BYTES)
            file.seek(max(len(head), file.seek(0, 2) - _END_BYTES))
            return hashlib.sha256(head + file.read()).digest()
    except OSError as error:
        return f"unread {error.errno}".encode()


def settle_bad_scenes(bad: Sequence[SetAside], *, scenes: int, allowed: int, what: str, rest: str) -> None:
    """End a command that had to leave scenes out: print them where they are allowed for.

    Args:
        bad: the scenes, with their reasons.
        scenes: how many there were in all.
        allowed: `data.max_bad_scenes`.
        what: what could not be done with them, as in "could not be ...".
        rest: what became of the others.

    Raises:
        WorkError: when more are bad than are allowed.
    """
    if not bad:
        return
    listed = "\n".join(str(item) for item in bad)
    # The parts of one that is divided are one image.
    count = len({(item.path, item.scene_id) for item in bad})
    if count > allowed:
        raise WorkError(
            f"{listed}\n{count} of {scenes} scenes could not be {what} (see above), data.max_bad_scenes allows "
            f"{allowed}; {rest}. Mend the files and run again, or allow it with --data.max_bad_scenes"
        )
    print(f"set aside, as data.max_bad_scenes allows:\n{listed}")
