"""What a store is made from, as the header of its journal says it, and what differs when it is another thing now."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from geochip.errors import InputError

# Of scenes, in a message.
_SHOWN = 5


def make_header(
    settings: Mapping[str, Any], scenes: Mapping[str, Mapping[str, str | None]], **extra: Any
) -> dict[str, Any]:
    """The header of a store's journal: what the store is made from.

    Args:
        settings: the settings that decide what the store holds, by the name that a person knows them by.
        scenes: of each scene, by its name, a digest of its "header" and of its "content"; None for what could not be
            read. With another "stamp" it may be another one although both are the same; see `Journal.doubtful`.
        extra: what else a later run shall know, JSON-ready. It makes no other store when it changes.

    Returns:
        All of it, and under "fingerprint" the SHA-256 of the settings and the scenes' headers. The contents are left
        out of it: a file that was mended makes no other store.
    """
    # As it will be read back: lists and tuples are one.
    content: dict[str, Any] = json.loads(json.dumps({**extra, "settings": settings, "scenes": scenes}))
    return {**content, "fingerprint": _fingerprint(content)}


def _fingerprint(header: Mapping[str, Any]) -> str:
    headers = {name: digests["header"] for name, digests in header["scenes"].items()}
    return hashlib.sha256(json.dumps([header["settings"], headers], sort_keys=True).encode()).hexdigest()


def describe_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], unread: Collection[str] = (), *, grows: bool = False
) -> str | None:
    """In words, what differs between two headers; None when nothing does.

    Args:
        old: what a store was begun with.
        new: what it would be continued with.
        unread: names of scenes that could not be read so far, whose content may be another one by now. A scene whose
            header could not be read before may have any by now.
        grows: scenes may be added.
    """
    was, now = old["settings"], new["settings"]
    differences = [
        f"{name} was {was.get(name)!r}, now {now.get(name)!r}"
        for name in {**now, **was}
        if was.get(name) != now.get(name)
    ]
    before, after = old["scenes"], new["scenes"]
    changed, unreadable = [], []
    for name in after:
        if name not in before or alike(before[name], after[name]) or before[name]["header"] is None:
            continue
        if None in (after[name]["header"], after[name]["content"]):
            if name not in unread and before[name]["content"] is not None:
                unreadable.append(name)
        elif before[name]["header"] != after[name]["header"] or (
            name not in unread and before[name]["content"] is not None
        ):
            changed.append(name)
    for words, names in (
        ("not there before", [] if grows else [name for name in after if name not in before]),
        ("gone", [name for name in before if name not in after]),
        ("changed", changed),
        ("readable before and not now", unreadable),
    ):
        if names:
            differences.append(named(words, names))
    if not differences and old.get("fingerprint") != _fingerprint(old):
        return "it was made by another version of geochip"
    return "; ".join(differences) or None


def alike(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a scene is, by its digests, the one that it was."""
    return all(before[name] == after[name] for name in ("header", "content"))


def other_scenes(
    known: Mapping[str, Any], header: Mapping[str, Any], unread: Collection[str]
) -> tuple[set[str], set[str]]:
    """Scenes that are not surely those that a store was made from, where nothing speaks against going on with it.

    Args:
        known: the header of its journal.
        header: the header of what it would be continued with.
        unread: names of scenes that could not be read so far.

    Returns:
        Names of scenes that were mended: what was made of what they were is not done; and of those that are doubtful,
        since their files were written or copied: all that was compared of them is the same.
    """
    before, after = known["scenes"], header["scenes"]
    other = {name for name in after if name in before and before[name] != after[name]}
    mended = {name for name in other if name in unread or not alike(before[name], after[name])}
    return mended, other - mended


def refuse_other(
    known: Mapping[str, Any], header: Mapping[str, Any], unread: Collection[str], *, store: Path, option: str,
    grows: bool = False,
) -> None:  # fmt: skip
    """Raise `InputError` when a store was made from something else.

    Args:
        known: the header of its journal.
        header: the header of what it would be continued with.
        unread: names of scenes that could not be read so far.
        store: the store.
        option: the key of the run file that names it.
        grows: scenes may be added.
    """
    if difference := describe_difference(known, header, unread, grows=grows):
        raise made_from_something_else(store, option, difference)


def made_from_something_else(store: Path, option: str, difference: str) -> InputError:
    """The error for it.

    Args:
        store: the store.
        option: the key of the run file that names it.
        difference: what differs, in words.
    """
    return InputError(
        f"{option}: {store} was made from something else: {difference}; "
        f"choose another run_dir or --{option}, or remove it to make it anew"
    )


def named(words: str, names: Sequence[str]) -> str:
    """As in "2 scenes changed: a, b"."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"{len(names)} scene{'s' if len(names) > 1 else ''} {words}: {shown}"
