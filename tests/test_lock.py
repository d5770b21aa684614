import json
import os
import signal
import subprocess
import sys
import time

import pytest

from geochip.errors import InputError, WorkError
from geochip.store import StoreLock
from geochip.store.lock import Holder, _text
from told import told

HOLD = """
import sys, time
from pathlib import Path
from geochip.store import StoreLock
with StoreLock(Path(sys.argv[1]), "infer.store"):
    print("held", flush=True)
    time.sleep(1000)
"""

# Waits for a file, so that all contenders begin at once; says what became of it, and keeps the lock.
CONTEND = """
import sys, time
from pathlib import Path
from geochip.errors import InputError
from geochip.store import StoreLock
store, go = Path(sys.argv[1]), Path(sys.argv[2])
lock = StoreLock(store, beat=0.2, stale=0.5)
print("ready", flush=True)
while not go.exists():
    pass
try:
    lock.acquire()
except InputError as error:
    print("refused", str(error).count("is being written by process"), flush=True)
else:
    print("held", flush=True)
    sys.stdin.read()
    lock.release()
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def end(process):
    process.kill()
    process.communicate()


def elsewhere(path, **changes):
    """Make the lock one of another machine."""
    document = {**json.loads(path.read_text()), "kernel": "another", "host": "node7", **changes}
    path.write_text(json.dumps(document))


def old_lock(store, seconds=3600):
    """A lock of another machine without a sign of life for that long."""
    with StoreLock(store) as lock:
        text = lock.path.read_text()
    lock.path.write_text(text)
    elsewhere(lock.path, token="old")
    os.utime(lock.path, (time.time() - seconds,) * 2)
    return lock.path


class StillWaitingError(Exception):
    pass


@pytest.fixture
def store(tmp_path):
    return tmp_path / "chips.zarr"


def test_a_second_process_is_refused_by_name_until_the_first_is_gone(store):
    first = start(HOLD, store)
    try:
        assert first.stdout.readline() == "held\n"
        lock = store.with_name("chips.zarr.lock")
        document = json.loads(lock.read_text())
        with pytest.raises(InputError) as refused:
            StoreLock(store, "infer.store").acquire()
        host = document["host"]
        assert str(refused.value) == (
            f"infer.store: {store} is being written by process {first.pid} on {host} (user {document['user']}, since "
            f"{document['since']}); wait for it or end it (kill {first.pid} on {host}), or choose another run_dir or "
            f"--infer.store; if that process is gone, remove {lock}"
        )
        assert json.loads(lock.read_text()) == document
    finally:
        end(first)
    # Killed, it left its lock. Nobody waits for a process that is known to be gone.
    assert lock.exists()
    with StoreLock(store, beat=1000, stale=1000):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(store.parent.iterdir()) == []


def test_a_process_that_ends_by_itself_leaves_nothing(store):
    first = start(HOLD, store)
    assert first.stdout.readline() == "held\n"
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert list(store.parent.iterdir()) == []


def test_one_process_does_not_hold_a_lock_twice(store):
    with StoreLock(store), pytest.raises(InputError, match=f"is being written by process {os.getpid()} on"):
        StoreLock(store).acquire()
    with StoreLock(store) as again:
        assert again.path.exists()


@pytest.mark.parametrize("kernel", ["same", "another"])
def test_of_several_that_take_over_one_wins(store, tmp_path, kernel):
    lock = old_lock(store)
    if kernel == "same":
        # A process that is gone, on this machine.
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        elsewhere(lock, kernel=Holder.this_process().kernel, pid=gone.pid)
    others = [start(CONTEND, store, tmp_path / "go") for _ in range(6)]
    try:
        assert [other.stdout.readline() for other in others] == ["ready\n"] * 6
        (tmp_path / "go").touch()
        said = sorted(other.stdout.readline() for other in others)
        assert said == ["held\n"] + ["refused 1\n"] * 5
        for other in others:
            other.communicate("")
    finally:
        for other in others:
            end(other)
    assert [path.name for path in tmp_path.iterdir()] == ["go"]


def test_who_is_late_to_a_takeover_finds_the_new_holder(store):
    old_lock(store)
    winner = StoreLock(store, beat=0.01)

    class Late(StoreLock):
        def _lives(self, path, holder):
            lives = super()._lives(path, holder)
            if holder.token == "old":
                # Between this one's look at the old lock and its takeover.
                winner.acquire()
            return lives

    with pytest.raises(InputError, match=f"is being written by process {os.getpid()} "):
        Late(store, beat=0.01).acquire()
    winner.check()
    assert Holder.read(winner.path) == winner._mine
    winner.release()
    assert list(store.parent.iterdir()) == []


def test_a_holder_elsewhere_is_refused_at_its_first_sign_of_life(store):
    lock = StoreLock(store, beat=0.05)
    with lock:
        elsewhere(lock.path)
        lock._mine = Holder.read(lock.path)
        # Its last sign of life is long ago, as a clock says that is wrong.
        os.utime(lock.path, (0, 0))
        with pytest.raises(InputError, match=r"is being written by process .* on node7"):
            StoreLock(store, beat=1, stale=0.001).acquire()


def test_a_holder_elsewhere_is_waited_for_and_then_taken_over(store, capsys):
    path = old_lock(store, seconds=0)
    with StoreLock(store, beat=0.1, stale=1) as lock:
        assert Holder.read(path) == lock._mine
        assert "waiting for a sign of life of it, at most 1 s" in capsys.readouterr().err


def test_the_age_of_a_lock_is_told_by_the_file_server(store, monkeypatch):
    # A local clock an hour ahead takes nothing over; what is an hour old is, with a clock far behind.
    path = old_lock(store, seconds=0)
    ahead = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: ahead)
    waits = iter(range(40))

    def sleep(_):
        if next(waits, None) is None:
            raise StillWaitingError

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(StillWaitingError):
        StoreLock(store, beat=0.001, stale=600).acquire()
    monkeypatch.undo()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    with StoreLock(store, beat=0.001, stale=600):
        pass


def test_a_holder_shows_signs_of_life(store):
    with StoreLock(store, beat=0.01) as lock:
        os.utime(lock.path, (0, 0))
        deadline = time.monotonic() + 60
        while lock.path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.path.stat().st_mtime > 0


def test_a_pid_that_another_process_has_by_now_holds_nothing(store):
    path = old_lock(store)
    mine = Holder.this_process()
    elsewhere(path, kernel=mine.kernel, pid=mine.pid, started=mine.started - 1000)
    os.utime(path, (0, 0))
    with StoreLock(store, beat=0.01):
        assert Holder.read(path).started == mine.started


def test_a_lock_without_a_text_is_waited_for(store):
    path = store.with_name("chips.zarr.lock")
    path.write_text('{"host": "no')
    lock = StoreLock(store, beat=0.2, stale=1000)
    touch = start(f"import os, time\nwhile True:\n    os.utime({str(path)!r})\n    time.sleep(0.05)")
    try:
        with pytest.raises(InputError, match=r"is being written by a process that its lock does not name; wait for it"):
            lock.acquire()
    finally:
        end(touch)
    os.utime(path, (0, 0))
    with StoreLock(store, beat=0.01, stale=1):
        pass
    assert not path.exists()


def lost(lock):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            lock.check()
        except WorkError as error:
            return str(error)
        time.sleep(0.01)
    return None


def test_who_has_lost_its_lock_stops_and_leaves_that_of_the_other(store):
    with StoreLock(store, beat=0.01) as lock:
        lock.check()
        elsewhere(lock.path, token="of another", pid=12)
        assert lost(lock).startswith(f"chips.store: {store} is being written by process 12 on node7 (user ")
    assert Holder.read(lock.path).token == "of another"


def test_a_lock_that_somebody_removed_is_made_again(store):
    with StoreLock(store, beat=0.01) as lock:
        lock.path.unlink()
        deadline = time.monotonic() + 60
        while not lock.path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert Holder.read(lock.path) == lock._mine
        lock.check()


def test_a_file_system_without_hard_links_has_locks_too(store, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with StoreLock(store) as lock:
        assert Holder.read(lock.path) == lock._mine
        with pytest.raises(InputError, match="is being written by"):
            StoreLock(store).acquire()
    assert list(store.parent.iterdir()) == []


def test_a_lock_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(
        InputError, match=r"^chips.store: the lock .*chips.zarr.lock cannot be made: No such file or directory; choose"
    ):
        StoreLock(tmp_path / "none" / "chips.zarr").acquire()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda path: path.symlink_to("nowhere"), "it is no regular file"),
        (lambda path: path.symlink_to("/dev/null"), "it is no regular file"),
        (lambda path: path.mkdir(), "it is no regular file"),
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "it is not UTF-8"),
        (lambda path: path.write_text("[]"), "Expected `object`"),
        (lambda path: edit(path, pid="12"), "$.pid"),
        (lambda path: edit(path, pid=-12), "$.pid"),
        (lambda path: edit(path, pid=10**30), "$.pid"),
        (lambda path: edit(path, host=7), "$.host"),
        (lambda path: edit(path, started=None), "$.started"),
    ],
)  # fmt: skip
def test_what_was_never_a_lock_is_named_at_once(store, spoil, fault):
    path = store.with_name("chips.zarr.lock")
    spoil(path)
    with pytest.raises(InputError) as refused:
        StoreLock(store).acquire()
    told("lock", str(refused.value))
    assert fault in str(refused.value)
    path.rmdir() if path.is_dir() else path.unlink()
    with StoreLock(store):
        pass
    assert list(store.parent.iterdir()) == []


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(_text(Holder.this_process())), **changes}) + "\n")
