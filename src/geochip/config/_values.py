"""Whether a value is of its key's type, strictly: what a parser lets through, a key need not.

`true` is no number, 3.0 no whole one, null is a value only where a key's type names it, and the same holds for what
lists and mappings hold.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from geochip.config._rules import Value, shown

_WHOLE = 2**63
"""Whole numbers stay below: what reads them, NumPy, PyTorch or GDAL, keeps them in 64 bits."""


def type_faults(values: Mapping[str, Any], section: type, prefix: str = "") -> list[str]:
    """A line for each value that is not of its key's type.

    Args:
        values: of the section by name, sections in it as mappings; keys that the section does not have are passed over.
        section: the dataclass that it is of.
        prefix: of the section's keys, such as "chips.".
    """
    faults = []
    for field in fields(section):
        if field.name not in values:
            continue
        value, key, kind = values[field.name], f"{prefix}{field.name}", field.type
        if isinstance(kind, type) and is_dataclass(kind):
            if isinstance(value, Mapping):
                faults += type_faults(value, kind, f"{key}.")
            else:
                faults.append(f"{key}: {shown(value)} is not allowed: must be {in_words(kind)}; or leave it out")
        elif isinstance(value, str) and not value.strip():
            nothing = "; null says that there is none" if fits(None, kind) else ""
            faults.append(f"{key}: {shown(value)} is not allowed: must not be empty{nothing}")
        elif not fits(value, kind):
            default = (
                "" if field.default in (MISSING, "") else f"; leave the key out for its default, {_default(field)}"
            )
            remedy = _remedy(value, kind) or (default if value is None else "")
            faults.append(f"{key}: {shown(value)} is not allowed: must be {in_words(kind)}{remedy}")
    return faults


def _default(field: Any) -> str:
    return shown(list(field.default) if isinstance(field.default, tuple) else field.default)


def fits(value: object, kind: Any) -> bool:
    """Whether a value, as YAML gives it, is of a type that a key is declared with."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if outer is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if outer is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if outer is dict:
        return isinstance(value, dict) and all(
            fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items()
        )
    if kind is float:
        return fits(value, int) or (type(value) is float and math.isfinite(value))
    if kind is int:
        return type(value) is int and abs(value) < _WHOLE
    if kind is str:
        return type(value) is str and not _unusable(value)
    return type(value) is kind if kind in (bool, NoneType) else True


def _unusable(text: str) -> str:
    """What makes a text one that no file system and no document takes; empty when nothing does."""
    if "\0" in text:
        return "must not hold a NUL character"
    return "" if text.isprintable() or _encodes(text) else "must be text that UTF-8 can hold"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _remedy(value: object, kind: Any) -> str:
    """What to say besides the type; empty when that says it."""
    parts = list(_parts(value))
    for text in (one for one in parts if isinstance(one, str)):
        if why := _unusable(text):
            return f"; a text {why}"
    if any(isinstance(one, float) and not math.isfinite(one) for one in parts):
        return "; numbers are finite"
    if any(type(one) is int and abs(one) >= _WHOLE for one in parts):
        return "; numbers have at most 18 digits"
    # YAML makes a number of an account's name that is all digits, and true of true.
    texts = any(one is str for one in _parts_of_type(kind))
    if texts and any(isinstance(one, bool | int | float) for one in parts):
        return "; put it in quotes" if not isinstance(value, list | tuple | dict) else "; put names in quotes"
    return ""


def _parts(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for one in value:
            yield from _parts(one)


def _parts_of_type(kind: Any) -> Iterator[Any]:
    yield kind
    if get_origin(kind) is not Literal:
        for one in get_args(kind):
            yield from _parts_of_type(one)


_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null",
    tuple[int, ...]: "a list of whole numbers", tuple[str, ...]: "a list of names",
    tuple[int, int]: "a list of two whole numbers", tuple[Value, ...]: "a list of values",
    dict[str, float]: "a mapping such as {name: number}", dict[Value, str]: "a mapping such as {value: name}",
}  # fmt: skip


def in_words(kind: Any) -> str:
    """What a key of a type takes."""
    if isinstance(kind, type) and is_dataclass(kind):
        return f"a section with the keys {', '.join(field.name for field in fields(kind))}"
    if kind in _WORDS:
        return _WORDS[kind]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(in_words, get_args(kind)))
    return str(kind).replace("typing.", "")
