import os
from dataclasses import replace

import pytest
import torch

from geochip.checkpoint import Checkpoint, load_newest, require_same_settings, save_checkpoint
from geochip.errors import DamagedError, InputError, WorkError
from told import told


def checkpoint(epoch, **changes):
    """After some steps of Adam, so that the optimizer has a state."""
    torch.manual_seed(epoch)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    values = {
        "epoch": epoch,
        "step": 0,
        "loss_sums": [0.0] * changes.get("step", 0),
        "valid": [0] * changes.get("step", 0),
        "seconds": 0.0,
        "settings": {"train.lr": 1e-2, "train.seed": 0, "model.encoder_weights": None},
        "history": [{"epoch": number + 1, "train_loss": 0.5, "val_loss": None} for number in range(epoch)],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return Checkpoint(**{**values, **changes})


def names(directory):
    return sorted(path.name[:10] for path in directory.iterdir())


def no_warning(line):
    pytest.fail(f"unexpected warning: {line}")


def test_what_is_loaded_is_what_was_saved(tmp_path):
    saved = checkpoint(3, step=2, loss_sums=[0.1, 1e300], valid=[7, 2**40], seconds=2.5)
    path = save_checkpoint(tmp_path / "train", saved)
    loaded = load_newest(tmp_path / "train", no_warning)
    assert path.parent == tmp_path / "train"
    for name in ("epoch", "step", "loss_sums", "valid", "seconds", "settings", "history"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert all(torch.equal(loaded.model[name], value) for name, value in saved.model.items())
    for number, state in saved.optimizer["state"].items():
        assert all(torch.equal(loaded.optimizer["state"][number][name], value) for name, value in state.items())
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]


def test_nothing_there(tmp_path):
    assert load_newest(tmp_path / "absent", no_warning) is None
    assert load_newest(tmp_path, no_warning) is None


def test_the_newest_two_are_kept(tmp_path):
    (tmp_path / "log.csv").write_text("mine")
    (tmp_path / ".epoch-0001-0123456789abcdef.pt.77.tmp").write_text("a killed process left it")
    for epoch in (1, 2, 9, 10):
        save_checkpoint(tmp_path, checkpoint(epoch))
    assert names(tmp_path) == ["epoch-0009", "epoch-0010", "log.csv"]
    assert load_newest(tmp_path, no_warning).epoch == 10


def test_names_sort_as_the_training_went(tmp_path):
    """Within an epoch, after its last step, and after its validation."""
    paths = []
    for epoch, step in ((0, 3), (0, 11), (1, 0), (1, 2), (1, 11), (2, 0)):
        path = save_checkpoint(tmp_path, checkpoint(epoch, step=step))
        paths.append(path.name)
        assert load_newest(tmp_path, no_warning).place == (epoch, step)
    assert sorted(paths) == paths
    assert sorted(path.name for path in tmp_path.iterdir()) == paths[-2:]


@pytest.mark.parametrize("harm", ["truncate", "empty", "flip"])
def test_a_torn_newest_is_passed_over(harm, tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    path = save_checkpoint(tmp_path, checkpoint(2))
    data = path.read_bytes()
    if harm == "truncate":
        os.truncate(path, len(data) // 2)
    elif harm == "empty":
        os.truncate(path, 0)
    elif harm == "flip":
        # In the middle of a tensor: torch.load alone does not see it.
        at = data.index(checkpoint(2).model["weight"].numpy().tobytes())
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    warnings = []
    assert load_newest(tmp_path, warnings.append).epoch == 1
    assert len(warnings) == 1
    assert path.name in warnings[0]
    assert "its checksum is not the one in its name" in warnings[0]
    assert "passed over" in warnings[0]


def test_going_on_removes_the_torn_ones(tmp_path):
    for epoch in (1, 2, 3):
        path = save_checkpoint(tmp_path, checkpoint(epoch))
    os.truncate(path, 10)
    assert load_newest(tmp_path, lambda line: None).epoch == 2
    save_checkpoint(tmp_path, replace(checkpoint(3), settings={"other": "content"}))
    assert names(tmp_path) == ["epoch-0002", "epoch-0003"]
    assert load_newest(tmp_path, no_warning).epoch == 3


def test_none_is_whole(tmp_path):
    os.truncate(save_checkpoint(tmp_path, checkpoint(1)), 10)
    warnings = []
    assert load_newest(tmp_path, warnings.append) is None
    assert "no checkpoint in" in warnings[1]
    assert "begins anew" in warnings[1]


def test_a_file_of_another_version(tmp_path):
    from hashlib import sha256

    first = tmp_path / "first.pt"
    torch.save({"epoch": 1}, first)
    first.rename(tmp_path / f"epoch-0001-{sha256(first.read_bytes()).hexdigest()[:16]}.pt")
    with pytest.raises(
        InputError,
        match=r"epoch-0001-.* was saved by another version of geochip; go on with that version, or begin another "
        r"training with another run_dir or by removing ",
    ):
        load_newest(tmp_path, no_warning)


def test_one_that_the_disk_does_not_give_now_is_not_passed_over(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1))
    path = save_checkpoint(tmp_path, checkpoint(2))
    path.unlink()
    path.mkdir()
    with pytest.raises(
        WorkError,
        match=r"epoch-0002-.* cannot be read: it is a directory, not a regular file; nothing is lost: see to the disk",
    ):
        load_newest(tmp_path, no_warning)


def test_nothing_but_data_is_unpickled(tmp_path):
    from hashlib import sha256

    marker = tmp_path / "ran"
    first = tmp_path / "first.pt"

    class Attack:
        def __reduce__(self):
            return marker.touch, ()

    torch.save({"epoch": Attack()}, first)
    first.rename(tmp_path / f"epoch-0001-{sha256(first.read_bytes()).hexdigest()[:16]}.pt")
    with pytest.raises(DamagedError) as error:
        load_newest(tmp_path, no_warning)
    told("checkpoint-is-code", str(error.value))
    assert not marker.exists()


def test_the_same_settings_may_go_on(tmp_path):
    saved = checkpoint(1)
    require_same_settings(saved, dict(reversed(saved.settings.items())), tmp_path)


def test_other_settings_are_named(tmp_path):
    settings = {"train.lr": 1e-3, "train.seed": 0, "number of ranks": 2}
    with pytest.raises(InputError) as caught:
        require_same_settings(checkpoint(1), settings, tmp_path)
    text = str(caught.value)
    assert f"{tmp_path} holds a training of 1 epoch with other settings" in text
    with pytest.raises(InputError, match="holds a training of 0 epochs and 1 step with other settings"):
        require_same_settings(checkpoint(0, step=1), settings, tmp_path)
    assert "train.lr: 0.01 there, 0.001 now" in text
    assert "number of ranks: not set there, 2 now" in text
    assert "train.seed" not in text
    assert f"another run_dir or by removing {tmp_path}" in text
