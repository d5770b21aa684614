"""Names that become paths: what they may be, when two are one, how they are shown and handed to libraries.

A scene's id names files of geochip's own, so it is judged here and nowhere else, by `fault_of_id`.
"""

import unicodedata
from pathlib import Path

TEMPORARY_PREFIX = ".writing-"
"""Of the directories in which GeoTIFFs are written before they get their name."""

RASTER_FAMILY = (
    ".tif", ".tiff", ".gtiff", ".geotiff", ".vrt", ".img", ".png", ".jp2", ".j2k", ".jpg", ".jpeg", ".ecw", ".sid",
    ".bil", ".bip", ".bsq", ".hgt", ".asc",
)  # fmt: skip
"""Suffixes under which images come: a file with another one of them may be the one that is meant."""

# What the file systems in use take; of an id the suffix of the files that it names is taken off.
_LONGEST_NAME = 255
_LONGEST_PATH = 4095
_LONGEST_ID = _LONGEST_NAME - len(".tif")
# Beside a store stand its journal, its lock and their temporary files, which bear its name with more.
_LONGEST_STORE_NAME = 160
# Control characters, line and paragraph separators, and what stands for a byte that is no UTF-8.
_NOT_SHOWN = ("Cc", "Zl", "Zp", "Cs")


def fault_of_id(scene_id: str) -> str | None:
    """What keeps a scene's id from being the name of a file; None when nothing does.

    Args:
        scene_id: any text.

    Returns:
        Words that follow "the id", such as "holds '/'".
    """
    if scene_id in ("", ".", ".."):
        return "is no name" if scene_id else "is empty"
    for character in scene_id:
        if character in "/\\":
            return f"holds {character!r}, which parts directories"
        if unicodedata.category(character) in _NOT_SHOWN:
            return "is not UTF-8" if _is_byte(character) else f"holds the control character {character!r}"
    if scene_id.startswith(TEMPORARY_PREFIX):
        return f"begins with {TEMPORARY_PREFIX!r} like geochip's temporary files"
    if (size := len(scene_id.encode())) > _LONGEST_ID:
        return f"is {size} bytes long, and names of files have room for {_LONGEST_ID}"
    return None


def fault_of_path(path: str, *, made: bool = False) -> str | None:
    """What keeps a text from being a path, or a template of paths; None when nothing does.

    Args:
        path: as the run file or a table has it; {split} and {id} count for nothing.
        made: geochip will make it: control characters are refused too, which would end a line of a job script.
    """
    if "\0" in path:
        return "a path must not hold a NUL character"
    if any(unicodedata.category(character) == "Cs" for character in path):
        return "a path must be UTF-8; rename it"
    if made and any(unicodedata.category(character) in _NOT_SHOWN for character in path):
        return "the name of what geochip makes must not hold control characters such as a newline"
    literal = path.replace("{split}", "").replace("{id}", "").encode()
    if max(map(len, literal.split(b"/"))) > _LONGEST_NAME or len(literal) > _LONGEST_PATH:
        return f"names in a path have at most {_LONGEST_NAME} bytes, and a path {_LONGEST_PATH}"
    return None


def fault_of_store(path: str) -> str | None:
    """What keeps a text from being the path of a store, beside which its journal and its lock will stand."""
    if fault := fault_of_path(path, made=True):
        return fault
    name = Path(path).name
    if name in ("", ".."):
        return "a store needs a name of its own, as in run/chips.zarr"
    if len(name.encode()) > _LONGEST_STORE_NAME:
        return f"the name of a store has at most {_LONGEST_STORE_NAME} bytes: its journal and lock are named after it"
    if "\\" in str(Path(path).absolute()):
        return "must not hold a backslash, which tensorstore takes for /; choose another path"
    return None


def _is_byte(character: str) -> bool:
    """Whether it stands for a byte that is no UTF-8 (PEP 383)."""
    return "\udc80" <= character <= "\udcff"


def shown(text: str) -> str:
    """A text as it can be printed and stored as UTF-8: what cannot is escaped, a byte by its two digits."""
    return "".join(
        character
        if unicodedata.category(character) not in _NOT_SHOWN
        else f"\\x{ord(character) - 0xDC00:02x}"
        if _is_byte(character)
        else character.encode("unicode_escape").decode()
        for character in text
    )


def composed(text: str) -> str:
    """A text in Unicode's normal form C, in which texts are compared: an umlaut, one character or two, looks alike.

    Files from macOS have names in form D, and tables that people type have form C.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def forms(text: str) -> list[str]:
    """The ways in which a text may be spelt on a disk: as it is, in normal form C, and in normal form D."""
    if text.isascii():
        return [text]
    return list(dict.fromkeys([text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]))


def for_ogr(path: str) -> str:
    """A path as pyogrio hands it to GDAL unchanged.

    It takes every path for a URL: what follows a semicolon would be cut off, tabs and newlines left out, and what
    stands before an exclamation mark would be an archive. GDAL's own prefixes pass: this one means the whole file.

    Args:
        path: absolute.
    """
    special = set(path) & set(";!\t\n\r") or path.endswith("?") or path.startswith("//")
    return f"/vsisubfile/0,{path}" if special else path
