"""What the labels of a run say as a whole: faults of their files, nodata that is a class, classes without a pixel."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from geochip.config import IGNORE, RunConfig
from geochip.labels import Grid, LabelError, LabelLook, LabelRules, look_at_label
from geochip.plan import Name
from geochip.progress import counted
from geochip.scenes import Scene, missing_share, without_crs
from geochip.store import CHIP_WRITTEN, SplitResult

Record = Mapping[str, Any]

# Classes, in a message.
_NAMED = 5


def look_at_labels(scenes: Mapping[Name, Scene], config: RunConfig) -> tuple[dict[Name, LabelLook], dict[Name, str]]:
    """What the labels' headers say, and what is wrong with them."""
    rules = LabelRules(classes=config.data.classes, labels=config.labels)
    looks: dict[Name, LabelLook] = {}
    faults: dict[Name, str] = {}
    for name, scene in scenes.items():
        assert scene.label is not None
        grid = Grid(height=scene.height, width=scene.width, transform=scene.transform, crs=scene.crs)
        try:
            looks[name] = look_at_label(scene.label, grid, rules)
        except LabelError as error:
            faults[name] = f"{error}{_of_all_scenes(config)}"
            continue
        if scene.crs is None and (declared := looks[name].crs) is not None:
            reason, remedy = without_crs(scene)
            faults[name] = (
                f"{reason} while label {scene.label} is in {declared.to_string()}, so nothing tells where the label "
                f"lies on the image; {remedy}"
            )
    return looks, faults


def _of_all_scenes(config: RunConfig) -> str:
    """What to add to what is wrong with a raster label that is meant for all scenes."""
    if not (config.data.raster_labels and config.data.shared_label):
        return ""
    return ". It is one raster for all scenes; cut it onto the grid of each, and write {id} into data.label"


def classes_never_named(config: RunConfig) -> list[str]:
    """What to say of classes that labels.class_map maps no value to, so that no pixel can be of them."""
    class_map = config.labels.class_map
    if class_map is None:
        return []
    # What lies under no geometry is of the first class anyway.
    possible = {
        *class_map.values(),
        config.labels.no_value,
        *([] if config.data.raster_labels else config.data.classes[:1]),
    }
    return [
        f"labels.class_map maps no value to class {name!r}, so no pixel will be of it; name its value there, or leave "
        "the class out of data.classes"
        for name in config.data.classes
        if name not in possible
    ]


def hidden_classes(looks: Mapping[Name, LabelLook], config: RunConfig) -> list[str]:
    """What to say of raster labels whose nodata value is the id of a class."""
    found = Counter(look.hidden for look in looks.values() if look.hidden is not None)
    return [
        f"{counted(times, 'raster label')} declare{'s' if times == 1 else ''} nodata {value:g}, which is the id of "
        f"class {config.data.classes[int(value)]!r}: such pixels count for nothing (255), as the file says; if they "
        f"are of that class, {map_of_ids(config.data.classes)}"
        for value, times in sorted(found.items())
    ]


def unwritten_labels(looks: Mapping[Name, LabelLook], scenes: Mapping[Name, Scene]) -> list[str]:
    """What to say of raster labels with blocks that were never written: they read as 0, which may be a class."""
    shares = {
        scenes[name].label: share
        for name, look in looks.items()
        if look.bare_driver and (share := missing_share(scenes[name].label or "", look.bare_driver, [1]))
    }
    if not shares:
        return []
    worst = max(shares, key=lambda path: shares[path])
    return [
        f"{counted(len(shares), 'raster label')} with pixels that were never written, as when the program that wrote "
        f"it was killed, of {worst} {shares[worst]:.2%}; it declares no nodata value, and so they count as 0. Write it "
        "again, or let them count for nothing (gdal_edit.py -a_nodata 255); if 0 is meant there, nothing is wrong"
    ]


def describe_labels(config: RunConfig, results: Mapping[str, SplitResult], records: Iterable[Record]) -> None:
    """Print what is odd about the labels as a whole: pixels that count for nothing, and classes that no pixel is of."""
    # Records of earlier versions do not say.
    totals = dict.fromkeys(("unvalued", "label_pixels", "hidden"), 0)
    for record in records:
        totals = {key: total + record.get(key, 0) for key, total in totals.items()}
    if totals["unvalued"]:
        print(
            f"{counted(totals['unvalued'], 'feature')} without a value of {config.labels.class_property!r}: "
            f"{_what_no_value_is(config)}, as the run file says"
        )
    if totals["hidden"]:
        share = 100 * totals["hidden"] / totals["label_pixels"]
        print(
            f"warning: {share:.3g} % of the raster labels' pixels count for nothing (255): they have the value of a "
            f"class that their file declares as nodata; if they are of that class, {map_of_ids(config.data.classes)}"
        )
    for split in dict.fromkeys((config.train.split, config.train.val_split)):
        if split is not None and split in results:
            for name in absent_classes(results[split], config.data.classes):
                print(f"warning: no valid pixel of {split} is of class {name!r}; {_why_absent(config)}")


def _what_no_value_is(config: RunConfig) -> str:
    value = LabelRules(classes=config.data.classes, labels=config.labels).without_value
    return "their pixels are 255" if value in (None, IGNORE) else f"they are {config.data.classes[value or 0]!r}"


def map_of_ids(classes: Sequence[str]) -> str:
    """How to say that pixel values are class ids whatever a file declares as nodata."""
    pairs = [f"{number}: {name}" for number, name in enumerate(classes[:_NAMED])]
    return f"say so with labels.class_map: {{{', '.join(pairs)}{', ...' if len(classes) > _NAMED else ''}}}"


def absent_classes(result: SplitResult, classes: Sequence[str]) -> list[str]:
    """Classes that no valid pixel of a split's chips is of; none where there is no chip at all."""
    written = result.status == CHIP_WRITTEN
    if not written.any():
        return []
    return [
        name for name, there in zip(classes, (result.class_fraction[written] > 0).any(axis=0), strict=True) if not there
    ]


def _why_absent(config: RunConfig) -> str:
    if config.data.raster_labels:
        return (
            "perhaps its value stands for nodata in the labels or is not in labels.class_map, or no chip shows it: the "
            "scores of that class will mean nothing"
        )
    return (
        "perhaps the labels lie elsewhere than their scenes, labels.class_map or labels.class_property says otherwise, "
        "or no chip shows it: the scores of that class will mean nothing"
    )
