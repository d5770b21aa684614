"""How a command ends when the system refuses something."""

import errno
import io
import os
import subprocess
import sys

import numpy as np
import pytest

from geochip.errors import WorkError, run_command
from geochip.files import naming, write_durably, writing_durably
from told import told


def ended(act, capsys):
    """(exit code, what stderr got) of a command that does this."""
    code = run_command(lambda _: act(), [])
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return code, text


def refused(number, *names):
    def act():
        raise OSError(number, os.strerror(number), *names)

    return act


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "see to its permissions"), (errno.EISDIR, "a file belongs there"),
        (errno.ENOTDIR, "a directory belongs in its place"), (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.EROFS, "can be written to"), (errno.ENOSPC, "free some space"), (errno.EDQUOT, "free some space"),
        (errno.ENODEV, "see to it"), (errno.EIO, "see to it"), (errno.ELOOP, "remove the symbolic link"),
        (errno.EMFILE, "ulimit -n"), (errno.ENOENT, "put it back"), (errno.EFBIG, "ulimit -f"),
    ],
)  # fmt: skip
def test_a_file_that_the_system_refuses_is_told_with_a_remedy(capsys, number, remedy):
    code, text = ended(refused(number, "/some/where"), capsys)
    assert code == 1
    assert text.startswith(f"geochip: error: /some/where: {os.strerror(number)}; ")
    assert remedy in text
    told("refused file", text)


def test_real_refusals(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for act in (
        lambda: (tmp_path / "file" / "x").read_text(), lambda: tmp_path.read_bytes(),
        lambda: (tmp_path / ("x" * 300)).write_text(""), lambda: (tmp_path / "none").rename(tmp_path / "b"),
        lambda: write_durably(tmp_path / "file" / "x", b""),
    ):  # fmt: skip
        code, text = ended(act, capsys)
        assert code == 1
        assert str(tmp_path) in text
    assert "none -> " in ended(lambda: (tmp_path / "none").rename(tmp_path / "b"), capsys)[1]
    assert "caf\\xe9" in ended(refused(errno.EIO, b"caf\xe9"), capsys)[1]


def test_an_error_without_a_file_is_a_defect():
    with pytest.raises(OSError, match="Device or resource busy"):
        run_command(lambda _: refused(errno.EBUSY)(), [])
    with pytest.raises(OSError, match="no number"):
        run_command(lambda _: (_ for _ in ()).throw(OSError("no number")), [])


def test_what_is_written_when_the_disk_is_full_has_a_name(tmp_path, capsys):
    def full():
        with writing_durably(tmp_path / "model.json") as file:
            file.write(b"x")
            # As a handle's write and fsync say it.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    code, text = ended(full, capsys)
    assert (code, text) == (
        1,
        f"geochip: error: {tmp_path}/model.json: No space left on device; free some space and run the same command "
        "again: what is finished is kept\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_device_has_a_name(capsys):
    def full():
        with naming("/dev/full"), open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
            file.write(b"x")

    assert ended(full, capsys)[1].startswith("geochip: error: /dev/full: No space left on device; free some space")


def test_a_name_that_an_error_has_is_kept():
    with pytest.raises(FileNotFoundError) as caught, naming("/a"):
        open("/nowhere/at/all")  # noqa: PTH123, SIM115
    assert caught.value.filename == "/nowhere/at/all"
    with pytest.raises(WorkError), naming("/a"):
        raise WorkError("x")


def test_too_little_memory_is_told(capsys):
    code, text = ended(lambda: np.zeros(2**60, np.uint8), capsys)
    assert code == 1
    assert "Unable to allocate" in text
    told("memory", text)
    told("memory", ended(lambda: (_ for _ in ()).throw(MemoryError()), capsys)[1])


def test_too_little_memory_for_pytorch_is_told(capsys):
    import torch

    code, text = ended(lambda: torch.empty(2**60), capsys)
    assert code == 1
    told("memory", text)


PRINTS = """
import sys
from geochip.errors import run_command
def main(argv):
    for number in range(int(argv[0])):
        print("line", number)
sys.exit(run_command(main))
"""


@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_reader_that_ends_first(lines):
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, str(lines)], stdout=writes, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writes)
    assert done.returncode == 1
    told("stdout", done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_standard_output_on_a_full_disk():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", PRINTS, "3"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("geochip: error: standard output: No space left on device; free some space")
    assert len(done.stderr.splitlines()) == 1


def test_names_that_the_terminal_does_not_have_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    assert run_command(lambda _: print("Straße 東 \udcff"), []) == 0
    assert raw.getvalue() == b"Stra\xdfe \\u6771 \\udcff\n"
