"""Trainings that are asked to stop, and that go on as if nothing had happened."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from geochip import train_ddp, train_steps
from geochip.errors import InputError, WorkError
from geochip.interruption import Requests, StoppedError
from geochip.train_ddp import main
from helpers import run
from training import NETWORK, STEPS, asking, at_call, cpus, flags, scalars, table

TESTS = Path(__file__).parent
# Two epochs of four steps, three batches of validation after each.
SMALL = {**NETWORK, "epochs": 2}


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_same_training(run_dir, quiet):
    """The weights to the bit, the log to the last digit (except for how long it took), every step once."""
    assert (run_dir / "model" / "model.safetensors").read_bytes() == (
        quiet / "model" / "model.safetensors"
    ).read_bytes()
    rows, expected = table(run_dir), table(quiet)
    for row in (*rows, *expected):
        assert float(row.pop("seconds")) > 0
        assert float(row.pop("chips_per_second")) > 0
    assert rows == expected
    for tag in ("step/train_loss", "epoch/val_loss"):
        assert scalars(run_dir, tag) == scalars(quiet, tag)
    assert not (run_dir / "train" / "interrupted").exists()
    assert not (run_dir / "train" / "stop").exists()


def word(run_dir):
    """What an interrupted training left for the batch script."""
    return (run_dir / "train" / "interrupted").read_text()


def stopped(arguments, monkeypatch, module, function, count, how, run_dir):
    """Train in this process, asked to stop at a certain point: it must do so."""
    with monkeypatch.context() as patch:
        act = asking(how, run_dir / "train")
        patch.setattr(module, function, at_call(count, getattr(module, function), act))
        with pytest.raises(StoppedError) as caught:
            main(arguments)
    assert caught.value.exit_code == 130
    assert not (run_dir / "model").exists()
    # As they were: a signal now ends this process again.
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL


@pytest.mark.parametrize("more", [[], ["--train.freeze_batchnorm=true"]], ids=["batchnorm", "frozen batchnorm"])
def test_a_training_that_is_stopped_again_and_again_ends_as_a_quiet_one(more, chips, tmp_path, monkeypatch, capsys):
    quiet, run_dir = tmp_path / "quiet", tmp_path / "run"
    arguments = flags(chips, run_dir, *more, **SMALL)
    with cpus(1):
        main(flags(chips, quiet, *more, **SMALL))
        for module, function, count, how, why, where in (
            # While the data are looked for, in a step, again in the step that follows, in the second of three batches
            # of validation, while the epoch's checkpoint is written, and by a file.
            (train_ddp, "find_data", 1, "SIGTERM", "SIGTERM", "in epoch 1 of 2, after 0 of 4 steps"),
            (train_ddp, "summed_loss", 2, "SIGUSR2", "SIGUSR2", "in epoch 1 of 2, after 2 of 4 steps"),
            (train_ddp, "summed_loss", 1, "SIGTERM", "SIGTERM", "in epoch 1 of 2, after 3 of 4 steps"),
            (train_steps, "confusion_matrix", 2, "SIGTERM", "SIGTERM", "in epoch 1 of 2, after 4 of 4 steps"),
            (train_ddp, "write_checkpoint", 1, "SIGUSR2", "SIGUSR2", "in epoch 2 of 2, after 0 of 4 steps"),
            (train_ddp, "summed_loss", 1, "stop", "the file ", "in epoch 2 of 2, after 1 of 4 steps"),
            (train_steps, "confusion_matrix", 1, "stop", "the file ", "in epoch 2 of 2, after 4 of 4 steps"),
        ):
            stopped(arguments, monkeypatch, module, function, count, how, run_dir)
            why += f"{run_dir / 'train' / 'stop'} " * (how == "stop")
            assert word(run_dir) == f"interrupted by {why.strip()} {where}\n"
            told = capsys.readouterr().err.splitlines()[-1]
            assert told == (
                f"geochip: {word(run_dir).strip()}; saved in {run_dir / 'train'}, and the same command goes on from there"
            )
        main(arguments)
    assert "going on after epoch 1 of 2 and 4 of 4 steps, from" in capsys.readouterr().out
    assert_same_training(run_dir, quiet)


def ranks(count, *arguments, asked=None):
    """A finished torchrun; `asked` is what `train_asked.py` takes before the flags."""
    command = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    with cpus(count):
        if asked is None:
            return run(*command, "-m", "geochip.train_ddp", *arguments)
        return run(*command, TESTS / "train_asked.py", *asked, *arguments)


def test_two_ranks_stop_together_and_go_on_as_two_that_were_never_stopped(chips, tmp_path):
    """One rank gets SIGUSR2 in a step; then torchrun gets SIGTERM, in a batch of validation that only one rank has."""
    quiet, run_dir = tmp_path / "quiet", tmp_path / "run"
    done = ranks(2, *flags(chips, quiet, batch_size=3, **SMALL))
    assert done.returncode == 0, done.stderr
    arguments = flags(chips, run_dir, batch_size=3, **SMALL)
    for asked, line in (
        (("train_ddp", "summed_loss", 6, 1, "SIGUSR2"), "interrupted by SIGUSR2 in epoch 2 of 2, after 2 of 4 steps"),
        # Five batches: the third of the first rank is the last of all, so it asks at the second.
        (("train_steps", "confusion_matrix", 2, 0, "torchrun"), "interrupted by SIGTERM in epoch 2 of 2, after 4 of 4"),
    ):
        done = ranks(2, *arguments, asked=[*asked, run_dir / "train"])
        assert done.returncode != 0
        assert word(run_dir).startswith(line), done.stderr
        told = [text for text in done.stderr.splitlines() if text.startswith("geochip:")]
        assert len(told) == 1, "told once, and nothing else"
        assert told[0].startswith(f"geochip: {line}")
        assert "train_ddp.py" not in done.stderr, "no traceback of ours"
        assert not (run_dir / "model").exists()
    done = ranks(2, *arguments)
    assert done.returncode == 0, done.stderr
    assert f"going on after epoch 1 of 2 and 4 of 4 steps, from {run_dir / 'train'}" in done.stdout
    assert_same_training(run_dir, quiet)


def test_killed_within_an_epoch_it_goes_on_after_what_was_saved_there(chips, tmp_path):
    quiet, run_dir = tmp_path / "quiet", tmp_path / "run"
    arguments = flags(chips, run_dir, epochs=2)
    main(flags(chips, quiet, epochs=2))
    # At every step; which is no setting that the result depends on.
    killed = subprocess.run(
        [sys.executable, TESTS / "train_asked.py", "train_ddp", "summed_loss", "7", "0", "SIGKILL",
         run_dir / "train", *arguments, "--train.save_minutes=1e-9"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name[:22] for path in (run_dir / "train").glob("epoch-*")) == [
        "epoch-0001-step-000001",
        "epoch-0001-step-000002",
    ]
    assert not (run_dir / "train" / "interrupted").exists(), "nobody asked"
    again = run("geochip.train_ddp", *arguments)
    assert "going on after epoch 1 of 2 and 2 of 4 steps, from" in again.stdout, again.stderr
    assert_same_training(run_dir, quiet)
    assert sorted(path.name[:22] for path in (run_dir / "train").glob("epoch-*")) == [
        "epoch-0001-step-000002",
        "epoch-0002-step-000000",
    ]


def test_asked_at_the_very_end_it_finishes(chips, tmp_path, monkeypatch):
    arguments, act = flags(chips, tmp_path, epochs=1), asking("SIGTERM", tmp_path / "train")
    also = asking("stop", tmp_path / "train")
    monkeypatch.setattr(train_ddp, "write_checkpoint", at_call(1, train_ddp.write_checkpoint, lambda: (act(), also())))
    main(arguments)
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "train" / "interrupted").exists()
    assert not (tmp_path / "train" / "stop").exists()


def test_requests_and_answers_of_the_last_time_are_gone_with_the_next_start(chips, tmp_path, monkeypatch):
    train_dir = tmp_path / "train"
    train_dir.mkdir()
    for name in ("stop", "interrupted"):
        (train_dir / name).write_text("of old\n")
    os.utime(train_dir / "stop", (0, 0))
    # One that is refused, too: it must not be taken for one that shall be started again.
    with pytest.raises(InputError, match="fewer than one global batch"):
        main(flags(chips, tmp_path, batch_size=50))
    assert not list(train_dir.iterdir())
    (train_dir / "stop").write_text("of old\n")
    os.utime(train_dir / "stop", (0, 0))
    main(flags(chips, tmp_path, epochs=1))
    assert [row["epoch"] for row in table(tmp_path)] == ["1"]


def test_a_request_that_comes_while_a_training_starts_is_obeyed(chips, tmp_path):
    # PyTorch may take minutes to load from a busy disk, and a batch script asks once.
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "stop").touch()
    with pytest.raises(StoppedError):
        main(flags(chips, tmp_path))
    assert "after 0 of" in (tmp_path / "train" / "interrupted").read_text()
    assert not (tmp_path / "train" / "stop").exists()


def test_a_file_that_cannot_be_removed_is_named(tmp_path):
    (tmp_path / "stop").mkdir()
    with pytest.raises(WorkError, match=r"stop cannot be removed: .*; remove it and run the same command again"):
        Requests(tmp_path, first=True, save_minutes=None).forget()
    Requests(tmp_path, first=False, save_minutes=None).forget()  # another rank's business


def test_fewer_epochs_than_the_one_that_it_is_in(chips, tmp_path, monkeypatch):
    constant = "--train.schedule=constant"
    arguments = flags(chips, tmp_path, constant, epochs=2)
    stopped(arguments, monkeypatch, train_ddp, "summed_loss", STEPS + 1, "SIGUSR2", tmp_path)
    with pytest.raises(
        InputError, match=r"train.epochs: 1 is not possible: .* is within epoch 2; use --train.epochs 2"
    ):
        main(flags(chips, tmp_path, constant, epochs=1))


def test_a_training_that_diverged_is_not_saved_within_its_epoch(chips, tmp_path, monkeypatch):
    monkeypatch.setattr(train_ddp, "summed_loss", at_call(3, train_ddp.summed_loss, asking("SIGTERM", tmp_path)))
    monkeypatch.setattr(train_ddp, "learning_rate", lambda *_: float("nan"))
    with pytest.raises(WorkError, match=r"loss of epoch 1 is (nan|inf): .*smaller --train.lr \(this one has 0.01\)"):
        main(flags(chips, tmp_path))
    assert not list((tmp_path / "train").glob("epoch-*"))
    assert not (tmp_path / "train" / "interrupted").exists()


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_during_the_imports_is_kept(tmp_path):
    """PyTorch takes seconds to import; this one asks for a stop, says that it survived, and ends the process."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "from geochip.interruption import Requests\n"
        "raise SystemExit(str(Requests(None, first=False, save_minutes=None).votes()))\n"
    )
    done = run("geochip.train_ddp", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    assert (done.returncode, done.stderr) == (1, "[1, 1, 0, 0]\n")


def test_a_second_sigterm_ends_at_once_unless_it_is_the_first_ones_echo():
    script = (
        "import os, signal\n"
        "from geochip import interruption\n"
        "interruption.take_note_of_signals()\n"
        "for _ in range(3): os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('noted', flush=True)\n"
        "interruption.SAME_REQUEST_S = -1.0\n"  # as if it had come later
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "print('noted', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('never')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted\nnoted\n"), done.stderr


def test_signals_do_what_they_did_before(monkeypatch):
    """A shell that ignores SIGUSR2 for torchrun's sake hands that on: it is ignored again afterwards."""
    script = (
        "import signal\n"
        "from geochip import interruption\n"
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)\n"
        "interruption.take_note_of_signals()\n"
        "interruption.take_note_of_signals()\n"
        "signal.raise_signal(signal.SIGUSR2)\n"
        "requests = interruption.Requests(None, first=False, save_minutes=None)\n"
        "print(requests.votes())\n"
        "interruption.take_no_more_notes()\n"
        "signal.raise_signal(signal.SIGUSR2)\n"
        "print(requests.votes(), signal.getsignal(signal.SIGTERM).name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 0, 0, 0]\n[0, 0, 0, 0] SIG_DFL\n"


def test_votes_are_counted_by_what_they_are_for(tmp_path):
    requests = Requests(tmp_path, first=True, save_minutes=None)
    for votes, stop, save in (
        ([0, 0, 0, 0], None, False),
        ([2, 0, 0, 0], "SIGUSR2", False),
        ([0, 1, 0, 1], "SIGTERM", True),
        ([0, 0, 1, 0], f"the file {tmp_path / 'stop'}", False),
    ):
        requests.count(votes)
        assert (requests.stop, requests.save) == (stop, save)
    (tmp_path / "stop").touch()
    assert requests.votes() == [0, 0, 1, 0]
    assert Requests(tmp_path, first=False, save_minutes=1e-9).votes() == [0, 0, 0, 0], (
        "one rank looks at file and clock"
    )
    timed = Requests(tmp_path, first=True, save_minutes=1e-9)
    assert timed.votes()[3] == 1
    timed = Requests(tmp_path, first=True, save_minutes=1e9)
    assert timed.votes()[3] == 0
