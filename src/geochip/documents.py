"""Documents that geochip keeps on disk: each is read through the dataclass that says what it holds.

Whatever is read from disk may be damaged: cut short, edited, of another version. One dataclass for each format says
which fields there are, of which types; what a type cannot say, its `__post_init__` checks with a `ValueError`. So a
damaged file is told by its name where it is read, and never believed.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from geochip.errors import DamagedError, InputError
from geochip.files import read_regular

_T = TypeVar("_T")


def read_document(path: Path, kind: type[_T], remedy: str) -> _T:
    """Read a file of one JSON document.

    Args:
        path: the file.
        kind: the dataclass of what it holds; fields that it does not name are passed over.
        remedy: what to do when it is damaged or cannot be read, such as "run geochip.chipping again".

    Raises:
        FileNotFoundError: when there is none.
        DamagedError: when it does not hold that.
        InputError: when it cannot be read at all.
    """
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); {remedy}") from None
    return parse_document(data, kind, str(path), remedy)


def parse_document(data: bytes, kind: type[_T], where: str, remedy: str) -> _T:
    """The same for bytes; `where` names what they were read from.

    Raises:
        DamagedError: when they do not hold that.
    """
    return as_document(parse_json(data, where, remedy), kind, where, remedy)


def parse_json(data: bytes, where: str, remedy: str) -> Any:
    """What bytes of JSON hold.

    Raises:
        DamagedError: when they are not JSON.
    """
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError:
        fault = "it is not UTF-8"
    except json.JSONDecodeError as error:
        fault = f"it is not JSON: {error}" if data.strip() else "it is empty"
    except (ValueError, RecursionError) as error:
        # An integer of thousands of digits; nested without end.
        fault = f"it is not JSON that can be read: {error}"
    raise DamagedError(f"{where} is damaged ({fault}); {remedy}")


def as_document(value: Any, kind: type[_T], where: str, remedy: str) -> _T:
    """A value of plain lists, mappings, texts and numbers as the dataclass that says what it should be.

    Args:
        value: as `json.loads` gives it.
        kind: the dataclass, or any type made of such.
        where: names what it was read from, for the error.
        remedy: what to do when it is damaged.

    Raises:
        DamagedError: when it is something else; names the field.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise DamagedError(f"{where} is damaged ({error}); {remedy}") from None
