"""Checkpoints and bundles that are whole by their checksums and hold something else: told by name, with a remedy that works."""

import hashlib
import io
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from geochip import train_ddp
from geochip.checkpoint import load_newest, save_checkpoint
from geochip.errors import DamagedError, run_command
from test_checkpoint import checkpoint, no_warning
from told import told
from training import flags, same, weights


def edited(directory, change):
    """The newest checkpoint with other content and a checksum to match; returns its path."""
    path = max(directory.glob("epoch-*.pt"))
    content = torch.load(path, weights_only=True)
    content = change(content) or content
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.unlink()
    path = path.with_name(f"{path.name[:-19]}{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt")
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c.update(epoch="two"), "Expected `int`, got `str` - at `$.epoch`"),
        (lambda c: c.update(epoch=7, history=[{}] * 7), "it holds epoch and step (7, 0), not (2, 0)"),
        (lambda c: c.update(step=-1), "step -1 must be at least 0"),
        (lambda c: c.update(history=None), "at `$.history`"),
        (lambda c: c.update(history=[]), "history has 0 items where there should be 2"),
        (lambda c: c.update(history=[{"epoch": "one"}, {}]), "at `$.history"),
        (lambda c: c.update(loss_sums=[1.0]), "loss_sums has 1 items where there should be 0"),
        (lambda c: c.update(seconds=math.nan), "losses must be finite"),
        (lambda c: c.update(settings=[]), "at `$.settings`"),
        (lambda c: c.update(model={"weight": 3}), "Expected `Tensor`, got `int`"),
        (lambda c: c.update(optimizer=None), "at `$.optimizer`"),
        (lambda c: [1, 2], "Expected `object`, got `array`"),
    ],
)
def test_wrong_content_under_a_right_checksum(change, fault, tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    save_checkpoint(tmp_path, checkpoint(2))
    path = edited(tmp_path, change)
    with pytest.raises(DamagedError) as error:
        load_newest(tmp_path, no_warning)
    told("checkpoint-damaged", str(error.value))
    assert path.name in str(error.value)
    assert fault in str(error.value)
    path.unlink()
    assert load_newest(tmp_path, no_warning).epoch == 1


def test_bytes_that_torch_cannot_read_under_a_right_checksum(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    for data in (b"", b"nothing that torch wrote", b"PK\x03\x04" + bytes(60), b"\x80\x02]q\x00."):
        path = tmp_path / f"epoch-0002-step-000000-{hashlib.sha256(data).hexdigest()[:16]}.pt"
        path.write_bytes(data)
        with pytest.raises(DamagedError, match="remove it and run the same command again"):
            load_newest(tmp_path, no_warning)
        path.unlink()


@pytest.fixture(scope="module")
def trained(chips, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    assert run_command(train_ddp.main, flags(chips, directory, epochs=3)) == 0
    return directory


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def of_another_shape(content):
    content["model"] = {name: torch.zeros(3) for name in content["model"]}


def without_a_moment(content):
    for state in content["optimizer"]["state"].values():
        del state["exp_avg_sq"]


def moments_of_another_shape(content):
    for state in content["optimizer"]["state"].values():
        state["exp_avg"] = torch.zeros(7)


def no_momentum(content):
    content["optimizer"]["param_groups"][0]["betas"] = "none"


@pytest.mark.parametrize("change", [of_another_shape, without_a_moment, moments_of_another_shape, no_momentum])
def test_a_checkpoint_of_something_else_is_named_and_the_one_before_it_goes_on(chips, run_dir, trained, capsys, change):
    """Removed as the message says, the training ends with the weights that it would have had."""
    command = flags(chips, run_dir, epochs=3)
    # Of the last epoch but one, so that steps are left to do.
    max((run_dir / "train").glob("epoch-*.pt")).unlink()
    shutil.rmtree(run_dir / "model")
    path = edited(run_dir / "train", change)
    assert run_command(train_ddp.main, command) == 2
    text = capsys.readouterr().err
    told("checkpoint-of-another-network", text)
    assert path.name in text
    assert "Traceback" not in text
    path.unlink()
    assert run_command(train_ddp.main, command) == 0
    assert same(weights(run_dir), weights(trained))


def test_a_damaged_bundle_is_written_anew_from_the_last_checkpoint(chips, run_dir):
    """Byte for byte, when it is removed or left where it is."""
    directory: Path = run_dir / "model"
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    (directory / "model.json").write_text("null")
    assert run_command(train_ddp.main, flags(chips, run_dir, epochs=3)) == 0
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    shutil.rmtree(directory)
    assert run_command(train_ddp.main, flags(chips, run_dir, epochs=3)) == 0
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_a_named_pipe_as_a_checkpoint_keeps_nobody_waiting(chips, run_dir, capsys):
    path = max((run_dir / "train").glob("epoch-*.pt"))
    path.unlink()
    os.mkfifo(path)
    assert run_command(train_ddp.main, flags(chips, run_dir, epochs=3)) == 1
    assert f"{path} cannot be read: it is a named pipe, not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["log.csv", "tensorboard"])
def test_something_else_where_the_log_belongs(chips, tmp_path, capsys, name):
    place = tmp_path / "run" / "train" / name
    place.parent.mkdir(parents=True)
    if name == "log.csv":
        place.mkdir()
    else:
        os.mkfifo(place)
    assert run_command(train_ddp.main, flags(chips, tmp_path / "run")) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"geochip: error: run_dir: {place} ")
    assert list(place.parent.glob("epoch-*")) == []
