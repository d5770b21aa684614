"""Checkpoints and bundles that are whole by their checksums and hold something else: told by name, with a remedy that works."""

import hashlib
import io
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from geochip import train_ddp
from geochip.checkpoint import load_newest, save_checkpoint
from geochip.errors import DamagedError, run_command
from geochip.model import load_bundle
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
        (lambda c: c["history"][1].update(val_loss=math.inf), "history must hold finite numbers"),
        (lambda c: c["model"].update(weight=torch.tensor([1, math.nan])), "the model's weight holds NaN or infinity"),
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


def a_column_renamed(content):
    for row in content["history"]:
        row["loss"] = row.pop("train_loss")


def a_row_without_scores(content):
    content["history"][0].pop("avg_f1")


@pytest.mark.parametrize(
    ("change", "names"), [(a_column_renamed, "loss, train_loss"), (a_row_without_scores, "avg_f1")]
)
def test_a_history_of_other_columns_is_named(chips, run_dir, trained, capsys, change, names):
    """The log could not go on with it."""
    max((run_dir / "train").glob("epoch-*.pt")).unlink()
    path = edited(run_dir / "train", change)
    assert run_command(train_ddp.main, flags(chips, run_dir, epochs=3)) == 2
    text = capsys.readouterr().err
    told("checkpoint-damaged", text)
    assert f"{path} is damaged (its history of epoch 1 lacks or adds {names})" in text
    path.unlink()
    assert run_command(train_ddp.main, flags(chips, run_dir, epochs=3)) == 0
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


def test_weights_that_are_not_finite_are_no_model(chips, run_dir, trained):
    """They would give every pixel one class, with exit code 0."""
    path = run_dir / "model" / "model.safetensors"
    loaded = safetensors.torch.load_file(path)
    name = min(loaded)
    loaded[name].view(-1)[0] = math.nan
    safetensors.torch.save_file(loaded, path)
    contract = path.with_name("model.json")
    document = json.loads(contract.read_text())
    contract.write_text(json.dumps({**document, "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    with pytest.raises(DamagedError) as error:
        load_bundle(path.parent)
    told("bundle-damaged", str(error.value))
    assert f"model.safetensors holds NaN or infinity in {name}" in str(error.value)
    assert run_command(train_ddp.main, flags(chips, run_dir, epochs=3)) == 0
    assert same(weights(run_dir), weights(trained))


@pytest.mark.parametrize("more", [[], ["--train.val_split=null"]])
def test_a_training_that_diverges_at_its_last_step_is_told_and_not_saved(chips, tmp_path, capsys, monkeypatch, more):
    """The loss of that step is that of the weights before it, and finite."""
    one_step = flags(chips, tmp_path, *more, batch_size=26, epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(train_ddp, "learning_rate", lambda *_: math.nan)
        assert run_command(train_ddp.main, one_step) == 1
    told("training-diverged", capsys.readouterr().err)
    assert not list((tmp_path / "train").glob("epoch-*"))
    assert not (tmp_path / "model").exists()
    assert run_command(train_ddp.main, one_step) == 0


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
