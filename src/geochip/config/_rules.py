"""What every section of the run file shares."""

import os
import unicodedata
from typing import Literal

from geochip.errors import InputError
from geochip.names import composed, fault_of_path, fault_of_store

Device = Literal["auto", "cpu", "cuda"]

IGNORE = 255
"""Label and prediction value of pixels that count for nothing: nodata, or outside the scene."""
PROBABILITY_STEPS = 254
"""A probability of 1 is stored as this number; 255 is left for nodata."""

Rule = tuple[bool, str, object, str]
"""(holds, key, value, what is allowed)"""


def check(*rules: Rule) -> None:
    """Raise one `InputError` with a line for each rule that does not hold."""
    broken = [f"{key}: {value!r} is not allowed: {allowed}" for holds, key, value, allowed in rules if not holds]
    if broken:
        raise InputError("\n".join(broken))


def compose(section: object, *names: str) -> None:
    """Put texts of a frozen section into the form of Unicode in which they are compared.

    Args:
        section: a dataclass.
        names: of its fields: tuples of texts, or mappings from texts to texts or numbers.
    """
    for name in names:
        value = getattr(section, name)
        if isinstance(value, tuple):
            object.__setattr__(section, name, tuple(map(composed, value)))
        elif isinstance(value, dict):
            texts = {composed(str(key)): composed(one) if isinstance(one, str) else one for key, one in value.items()}
            object.__setattr__(section, name, texts)


def path_rules(key: str, *paths: str | None, made: bool = False) -> list[Rule]:
    """What paths, and templates of paths, may be.

    Args:
        key: of the run file.
        paths: its values; None is none.
        made: geochip makes what is there.
    """
    found = [(path, fault_of_path(path, made=made)) for path in paths if path is not None]
    return [(fault is None, key, path, fault or "") for path, fault in found]


def store_rules(key: str, path: str | None) -> list[Rule]:
    """What the path of a store may be; None is none."""
    fault = None if path is None else fault_of_store(path)
    return [(fault is None, key, path, fault or "")]


ONE_LINE = "must be one line of text, without line breaks or other control characters"


def one_line(text: str | None) -> bool:
    """Whether a text has no line break or other control character, and no byte that is not UTF-8; None has none.

    Written into a job script, what has one would add lines of its own.
    """
    return text is None or not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)


def available_cpus() -> int:
    """CPUs that this process may use: what Slurm or taskset left it, not what the machine has."""
    usable = len(os.sched_getaffinity(0))
    # A Slurm that binds no processes leaves them all CPUs of the node, other people's too.
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(usable, int(given)) if given.isdigit() and int(given) else usable
