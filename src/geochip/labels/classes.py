"""From what a label says to class ids: by name, by map, ignored, and which lies on top."""

import contextlib
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geochip.config import IGNORE, LabelsConfig
from geochip.labels.errors import LabelError
from geochip.names import composed


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

    def value_of(self, text: str) -> int | None:
        """The class id of a feature's class as text, or 255 for one to ignore; None when it is no class."""
        if text in self.labels.ignore:
            return IGNORE
        name = text if self.labels.class_map is None else self.labels.class_map.get(text)
        return self._ids.get(name) if name is not None else None

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}


def as_text(value: Any) -> str:
    """A value as a run file names it: 1.0 is "1", since one missing value makes floats of a column of integers.

    In Unicode's normal form C, as the run file's values are.
    """
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return composed(str(value))


def class_ids(
    path: str,
    column: npt.NDArray[Any] | None,
    columns: Iterable[str],
    drawn: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.int64],
    rules: LabelRules,
) -> npt.NDArray[np.uint8]:
    """The class id of each feature that is drawn.

    Args:
        path: the file, for errors.
        column: values of the class property, for all features; None when the file has none of that name.
        columns: the properties that it has instead.
        drawn: indexes of the features to look at.
        numbers: each feature's number in the file, for errors.
        rules: what the values mean.

    Raises:
        LabelError: for a missing property, and for a value that is no class.
    """
    name = rules.labels.class_property
    if name is None or not len(drawn):
        return np.ones(len(drawn), np.uint8)
    if column is None:
        raise LabelError(
            f"label {path} has no property {name!r}, which labels.class_property asks for; it has "
            f"{', '.join(columns) or 'none'}"
        )
    # A list, as GeoJSON allows for a property, is no value that can be compared: its text is.
    cells = [str(cell) if isinstance(cell, (list, dict, np.ndarray)) else cell for cell in column[drawn]]
    codes, values = pd.factorize(np.array(cells, dtype=object) if column.dtype == object else column[drawn])
    ids = [rules.value_of(as_text(value)) for value in values]
    known = np.array([number is not None for number in ids] + [False])
    wrong = np.flatnonzero(~known[codes])
    if len(wrong):
        code = codes[wrong[0]]
        shown = "no value" if code < 0 else repr(as_text(values[code]))
        raise LabelError(
            f"label {path}: feature {numbers[drawn[wrong[0]]]} has {name} = {shown}, which is {_what_is_not(rules)}"
        )
    table = np.array(ids, np.uint8)
    return table[codes]


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
