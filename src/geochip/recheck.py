"""Would the same be made of a scene again? Asked for scenes of whose files only the time of change differs."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from geochip.cluster import run_tasks
from geochip.errors import GeochipError
from geochip.progress import ProgressReport
from geochip.store import Journal

Different = Sequence[tuple[str, str | None]]
"""Scenes whose pixels are others now, each with None, and scenes that cannot be read, each with the reason."""


def describe_doubtful(count: int) -> str:
    """Say that so many scenes are doubtful."""
    return (
        f"{count} scene{'s have' if count > 1 else ' has'} files with another time of change than before: what was "
        "made of them is compared with them, before anything else"
    )


def recheck(
    client: Any,
    journal: Journal,
    tasks: Iterable[tuple[str, tuple[Any, ...], Collection[str]]],
    compare: Callable[..., Different],
    *,
    store: Path,
    option: str,
) -> None:
    """Compare what was made of the journal's doubtful scenes with what their files hold now.

    What is found to be the same is noted also when this is interrupted, so that it is not compared again.

    Args:
        client: of the cluster that does it.
        journal: of the store.
        tasks: key, arguments of `compare`, and the names of the scenes that it looks at.
        compare: runs on a worker.
        store: the store, for the errors.
        option: the key of the run file that names it, for the errors.

    Raises:
        InputError: when a scene has changed.
        WorkError: when one cannot be read.
    """
    work = list(tasks)
    left = Counter(name for _, _, names in work for name in names)
    names_of = {key: names for key, _, names in work}
    different: dict[str, str | None] = {}
    print(describe_doubtful(len(journal.doubtful)))

    def on_result(key: str, found: Different) -> None:
        # That it has changed is worse than that another part of it cannot be read.
        for name, reason in found:
            if different.get(name, "") is not None:
                different[name] = reason
        left.subtract(names_of[key])
        progress.advance(1)

    try:
        with ProgressReport("comparing", len(work)) as progress:
            run_tasks(client, compare, ((key, arguments) for key, arguments, _ in work), on_result)
    except BaseException:
        with contextlib.suppress(GeochipError, OSError):
            journal.confirm(name for name, tasks_left in left.items() if not tasks_left and name not in different)
        raise
    journal.settle(different, store=store, option=option)
