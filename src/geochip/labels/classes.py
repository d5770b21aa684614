"""From what a label says to class ids: by name, by map, ignored, and which lies on top."""

import contextlib
import datetime
import functools
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geochip.config import IGNORE, NO_VALUE, LabelsConfig, is_number
from geochip.labels.errors import LabelError
from geochip.names import composed

_TRUTHS = ("true", "false")
# What YAML 1.1 reads as true or false when it is a key without quotes.
_LIKE_TRUTHS = ("yes", "no", "on", "off", "y", "n")


@dataclass(frozen=True, kw_only=True)
class LabelRules:
    """How labels are read. Picklable."""

    classes: tuple[str, ...]
    """Class names in the order of their ids."""
    labels: LabelsConfig
    """The run file's section about labels."""

    @property
    def buffers(self) -> bool:
        """Whether any point or line is made wider."""
        return self.largest_buffer > 0

    @property
    def largest_buffer(self) -> float:
        """The largest buffer of any class."""
        buffer = self.labels.buffer
        return max(buffer.values(), default=0.0) if isinstance(buffer, dict) else buffer

    def buffer_of(self, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """The buffer of each of some class ids; ignored features get the largest."""
        buffer = self.labels.buffer
        table = np.full(IGNORE + 1, self.largest_buffer)
        if isinstance(buffer, dict):
            table[: len(self.classes)] = [buffer.get(name, 0.0) for name in self.classes]
        widths: npt.NDArray[np.float64] = table[values]
        return widths

    def value_of(self, value: Any) -> int | None:
        """The class id of a feature's value, or 255 for one to ignore; None when it is no class.

        Texts are compared as they stand. A number is what a key says as a number: 1, 1.0 and "1" are one; true and
        false may be written in any case.
        """
        text = as_text(value)
        if text in self._ids:
            return self._ids[text]
        if text.lower() in _TRUTHS:
            return self._ids.get(text.lower(), self._ids.get(text.capitalize()))
        if isinstance(value, int | float | np.integer | np.floating):
            return self._numbers.get(float(value))
        return None

    @property
    def without_value(self) -> int | None:
        """The class id of features without a value, or 255; None when they are an error."""
        named = self.labels.no_value
        if "" in self._ids:
            return self._ids[""]
        return NO_VALUE[named] if named in NO_VALUE else self._classes[named]

    @functools.cached_property
    def _classes(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        """The class id, or 255, of each value that the run file names."""
        class_map = self.labels.class_map
        named = {name: name for name in self.classes} if class_map is None else class_map
        ids = {str(text): self._classes[name] for text, name in named.items()}
        return ids | dict.fromkeys(map(str, self.labels.ignore), IGNORE)

    @functools.cached_property
    def _numbers(self) -> dict[float, int]:
        return {float(text): number for text, number in self._ids.items() if is_number(text)}


def as_text(value: Any) -> str:
    """A value as a run file names it, in Unicode's normal form C, as the run file's values are.

    1.0 is "1", since one missing value makes floats of a column of integers; true and false, lists and mappings are as
    JSON has them; of dates and times the day alone where the time is midnight.
    """
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, np.ndarray | list | tuple | dict):
        return composed(json.dumps(value, default=_for_json, ensure_ascii=False))
    if isinstance(value, np.datetime64 | datetime.datetime):
        return pd.Timestamp(value).isoformat().removesuffix("T00:00:00")
    return composed(str(value))


def _for_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def class_ids(
    path: str,
    column: npt.NDArray[Any] | None,
    columns: Iterable[str],
    drawn: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64] | None,
    rules: LabelRules,
) -> tuple[npt.NDArray[np.uint8], int]:
    """The class id of each feature that is drawn.

    Args:
        path: the file, for errors.
        column: values of the class property, for all features; None when the file has none of that name.
        columns: the properties that it has instead.
        drawn: indexes of the features to look at.
        numbers: each feature's number in the file, for errors; None: not known.
        rules: what the values mean.

    Returns:
        (drawn,) class ids, and how many of the features have no value: null, NaN, blank text or nothing at all.

    Raises:
        LabelError: for a value that is no class, and for a missing one unless labels.no_value says what it means.
    """
    name = rules.labels.class_property
    if name is None or not len(drawn):
        return np.ones(len(drawn), np.uint8), 0
    default = rules.without_value
    if column is None:
        if default is None:
            raise LabelError(
                f"label {path} has no property {name!r}, which labels.class_property asks for; it has "
                f"{', '.join(columns) or 'none'}: name one of them, or say with labels.no_value what features without "
                "it are"
            )
        return np.full(len(drawn), default, np.uint8), len(drawn)
    codes, values = _factorized(column[drawn])
    ids = [rules.value_of(value) for value in values]
    blank = [number is None and not as_text(value).strip() for number, value in zip(ids, values, strict=True)]
    # The code of a missing value is -1: the last place.
    lacking = np.array([*blank, True])[codes]
    wrong = np.flatnonzero(np.array([number is None for number in ids] + [True])[codes] & ~lacking)
    if default is None:
        wrong = np.union1d(wrong, np.flatnonzero(lacking))
    if len(wrong):
        at, code = drawn[wrong[0]], codes[wrong[0]]
        feature = "a feature" if numbers is None else f"feature {numbers[at]}"
        raise LabelError(f"label {path}: {feature} {_fault(name, None if lacking[wrong[0]] else values[code], rules)}")
    # Where nothing lacks a value the default is not used.
    default = default or 0
    table = np.array([*(default if number is None else number for number in ids), default], np.uint8)
    return table[codes], int(lacking.sum())


def _factorized(cells: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """The place of each cell's value among the distinct ones, -1 for none; and those."""
    if cells.dtype == object:
        # A list, as GeoJSON allows for a property, cannot be compared: its text can. And 1 is not true.
        plain = [
            as_text(cell) if isinstance(cell, list | dict | tuple | np.ndarray | bool | np.bool_) else cell
            for cell in cells
        ]
        cells = np.empty(len(plain), object)
        cells[:] = plain
    codes, values = pd.factorize(cells)
    return np.asarray(codes), list(values)


def _fault(name: str, value: Any, rules: LabelRules) -> str:
    """What is wrong with a feature's value; None: it has none."""
    if value is None:
        return (
            f"has no value of {name!r}; say with labels.no_value what such features are (ignore, or one of "
            f"{', '.join(rules.classes)}), or mend the file"
        )
    text = as_text(value)
    quotes = "; YAML takes it for true or false unless it stands in quotes" if text.lower() in _LIKE_TRUTHS else ""
    return f"has {name} = {text!r}, which is {_what_is_not(rules)}{quotes}"


def _what_is_not(rules: LabelRules) -> str:
    if rules.labels.class_map is None:
        listed, key = rules.classes, "data.classes"
    else:
        listed, key = tuple(map(str, rules.labels.class_map)), "labels.class_map"
    return f"not in {key} ({', '.join(listed)}); add it there or to labels.ignore, or mend the file"


def unknown_pixel(path: str, value: Any, rules: LabelRules) -> LabelError:
    """What to say of a raster label's pixel that is no class."""
    if rules.labels.class_map is None:
        last = len(rules.classes) - 1
        what = (
            f"no class id (0 to {last}: {', '.join(rules.classes)}); say what it is with labels.class_map or "
            "labels.ignore, or declare it as the raster's nodata value"
        )
    else:
        what = _what_is_not(rules)
    return LabelError(f"label {path} has pixels of value {as_text(value)}, which is {what}")


def pixel_values(rules: LabelRules) -> dict[float, int]:
    """The class id of each value that a raster label's pixels may have; 255 for those to ignore."""
    class_map = rules.labels.class_map
    found = {str(number): number for number in range(len(rules.classes))}
    if class_map is not None:
        found = {str(value): rules.classes.index(name) for value, name in class_map.items()}
    found |= {str(value): IGNORE for value in rules.labels.ignore}
    return {float(text): number for text, number in found.items() if _is_number(text)}


def nodata_is_class(nodata: float, rules: LabelRules) -> tuple[int, bool] | None:
    """Which class the nodata value of a raster label is, by the run file.

    Returns:
        The class id, and whether labels.class_map names the value, which then counts more than what the file declares;
        None when it is no class.
    """
    number = pixel_values(rules).get(float(nodata))
    if number is None or number == IGNORE:
        return None
    return number, rules.labels.class_map is not None


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False


def drawing_order(values: npt.NDArray[np.uint8], rules: LabelRules) -> npt.NDArray[np.int64] | None:
    """In which order features of these class ids are drawn, the one on top last; None: as they stand.

    Ignored ones lie on top of all, then come the classes of labels.priority, then all others; among those that rank
    alike the later one in the file wins.
    """
    ranks = np.zeros(IGNORE + 1, np.int64)
    priority = rules.labels.priority
    for place, name in enumerate(priority):
        ranks[rules.classes.index(name)] = len(priority) - place
    ranks[IGNORE] = len(priority) + 1
    if not ranks[values].any():
        return None
    return np.argsort(ranks[values], kind="stable")
