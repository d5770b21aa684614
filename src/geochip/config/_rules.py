"""What every section of the run file shares."""

import os
import unicodedata
from typing import Literal

from geochip.errors import InputError
from geochip.names import composed, fault_of_path, fault_of_store

Device = Literal["auto", "cpu", "cuda"]
Value = str | int | float | bool | None
"""What a feature's attribute, or a pixel of a label raster, may be."""

IGNORE = 255
"""Label and prediction value of pixels that count for nothing: nodata, or outside the scene."""
PROBABILITY_STEPS = 254
"""A probability of 1 is stored as this number; 255 is left for nodata."""

Rule = tuple[bool, str, object, str]
"""(holds, key, value, what is allowed)"""


LARGEST_SEED = 2**63 - 1
"""Of all seeds: what every consumer of them takes, PyTorch's included."""

_LONGEST = 200


def shown(value: object) -> str:
    """A value as a message shows it: null, true and false as YAML writes them, and never longer than a line or two."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A whole number of thousands of digits.
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


def check(*rules: Rule) -> None:
    """Raise one `InputError` with a line for each rule that does not hold."""
    broken = [f"{key}: {shown(value)} is not allowed: {allowed}" for holds, key, value, allowed in rules if not holds]
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


def within(key: str, value: float | None, low: float, high: float, unit: str = "", *, or_null: bool = False) -> Rule:
    """The rule that a number is `low` to `high`, both included."""
    allowed = f"must be {low} to {high}{unit and ' '}{unit}{', or null' if or_null else ''}"
    return (value is None and or_null) or (value is not None and low <= value <= high), key, value, allowed


def seed(key: str, value: int) -> Rule:
    """The rule of every seed."""
    return 0 <= value <= LARGEST_SEED, key, value, f"must be 0 to {LARGEST_SEED} (2**63 - 1)"


_LARGEST_BATCH = 2**28
"""Pixels that pass through a network at once: 1 GiB a band, and far more inside any network."""


def check_batch(key: str, batch_size: int, size: int) -> None:
    """Raise `InputError` when a batch of `size` x `size` pixels each holds more than any machine's memory does."""
    pixels = batch_size * size**2
    most = _LARGEST_BATCH // size**2
    check(
        (
            pixels <= _LARGEST_BATCH,
            key,
            batch_size,
            f"so many times {size} x {size} pixels take {pixels * 4 / 2**30:.1f} GiB of memory for each band and far "
            f"more within the network; must be 1 to {most}",
        )
    )


def available_cpus() -> int:
    """CPUs that this process may use: what Slurm or taskset left it, not what the machine has."""
    usable = len(os.sched_getaffinity(0))
    # A Slurm that binds no processes leaves them all CPUs of the node, other people's too.
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return min(usable, int(given)) if given.isdigit() and int(given) else usable
