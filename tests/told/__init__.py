"""What geochip tells a person, for the tests that see it and for the tables in docs/ that are made from here.

A test asserts a message by `told(key, text)`; the entry under that key says how the message begins or what stands in it,
what it means, and what to do. So no row of docs/troubleshooting.md or docs/security.md speaks of a message that no test
has seen. `python tests/told` writes the tables.
"""

import importlib
import pkgutil
import re
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Told:
    """One row of a table."""

    message: str
    """As it is told, with ... for what differs from case to case."""
    meaning: str
    remedy: str
    page: Literal["troubleshooting", "security"] = "troubleshooting"
    topic: str = ""
    """Heading of the rows of its kind; of its module when empty."""


def entries() -> dict[str, Told]:
    """All rows by key: those of each module's TOLD, whose TOPIC is their heading."""
    found: dict[str, Told] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name == "__main__":
            continue
        table = importlib.import_module(f"{__name__}.{module.name}")
        for key, row in table.TOLD.items():
            assert key not in found, f"{key} stands in two tables"
            found[key] = replace(row, topic=row.topic or table.TOPIC)
    return found


def pattern_of(message: str) -> str:
    """A regular expression for a message: every ... may be anything."""
    return ".*?".join(re.escape(" ".join(part.split())) for part in message.split("..."))


def told(key: str, text: str) -> None:
    """Assert that a text holds the message of an entry."""
    message = entries()[key].message
    flat = " ".join(text.split())
    assert re.search(pattern_of(message), flat), f"{key}: {message!r} is not told in:\n{text}"
