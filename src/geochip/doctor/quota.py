"""What the quotas of Lustre leave: mostly a person, a group or a project may write less than is free."""

import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 10.0
"""How long `lfs` may take."""
# Used, soft limit, hard limit and the time that is left beyond the soft one, of KiB and of files. A name that is longer
# than its column stands on a line before. A * marks what is over a limit, brackets what some server did not tell.
_USED, _LIMIT = r"\[?(\d+)\]?\**", r"(\d+|\[\d+\])"
_ROW = re.compile(r"(?:^|\s)" + r"\s+".join([_USED, _LIMIT, _LIMIT, r"(\S+)"] * 2) + r"(?:\s|$)")
_NO_TIME_LEFT = ("none", "expired")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A quota of bytes, or of files."""

    used: int
    """As far as the servers told."""
    soft: int = 0
    """May be passed for some days; 0: no such limit."""
    hard: int = 0
    """May not be passed; 0: no such limit."""
    expired: bool = False
    """The days are over: nothing more can be written."""

    @property
    def left(self) -> int | None:
        """What can still be written; None: any amount."""
        if self.expired:
            return 0
        return max(0, self.hard - self.used) if self.hard else None

    @property
    def left_for_good(self) -> int | None:
        """What can still be written, and stay for longer than some days; None: any amount."""
        return max(0, self.soft - self.used) if self.soft else self.left


@dataclass(frozen=True, kw_only=True)
class Quota:
    """A quota on a directory."""

    whose: str
    """Such as "group 500"."""
    command: str
    """Shows it to a person."""
    bytes: Counted
    files: Counted


def parse_quota(text: str) -> tuple[Counted, Counted]:
    """Bytes and files in what `lfs quota -q` prints.

    Args:
        text: of which other lines, such as headers, are passed over.

    Raises:
        ValueError: when there are no such numbers, or no server told the limits.
    """
    if not (row := _ROW.search(text)):
        raise ValueError(f"no quota in {text!r}")
    return _counted(*row.groups()[:4], unit=1024), _counted(*row.groups()[4:], unit=1)


def _counted(used: str, soft: str, hard: str, grace: str, *, unit: int) -> Counted:
    # Limits in brackets: int says that they are no numbers.
    return Counted(
        used=int(used) * unit, soft=int(soft) * unit, hard=int(hard) * unit, expired=grace in _NO_TIME_LEFT
    )  # fmt: skip


def parse_project(text: str) -> int:
    """The project that new files of a directory belong to, in what `lfs project -d` prints; 0 for none.

    Args:
        text: such as " 1000 P /lustre/trees": number, P where new files inherit it, directory.
    """
    found = re.match(r"\s*(\d+)\s+P\s", text)
    return int(found[1]) if found else 0


def lustre_quotas(directory: Path) -> tuple[list[Quota], bool]:
    """The quotas of new files in a directory on Lustre, and whether these are all of them.

    Args:
        directory: that is there.
    """
    if shutil.which("lfs") is None:
        return [], False
    asked = {"-u": ("user", os.geteuid()), "-g": ("group", group_of_new_files(directory))}
    # Where this fails, Lustre is older than projects, or does without.
    if project := parse_project(_lfs("project", "-d", str(directory))):
        asked["-p"] = ("project", project)
    found = []
    for option, (kind, number) in asked.items():
        try:
            blocks, files = parse_quota(_lfs("quota", "-q", option, str(number), str(directory)))
        except ValueError:
            continue
        command = f"lfs quota -h {option} {number} {directory}"
        found.append(Quota(whose=f"{kind} {number}", command=command, bytes=blocks, files=files))
    return found, len(found) == len(asked)


def group_of_new_files(directory: Path) -> int:
    """The number of the group that new files in a directory belong to."""
    there = directory.stat()
    return there.st_gid if there.st_mode & stat.S_ISGID else os.getegid()


def _lfs(*arguments: str) -> str:
    """What lfs prints; "" where it does not answer."""
    # Its exit code is another one than 0 when a single server does not answer: what the others told is printed.
    try:
        done = subprocess.run(
            ["lfs", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
