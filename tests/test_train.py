import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from geochip import train_ddp
from geochip.config import TrainConfig
from geochip.dataset import training_batches, validation_batches
from geochip.errors import InputError, WorkError
from geochip.metrics import confusion_matrix
from geochip.model import load_bundle
from geochip.ranks import Ranks, _require_one_value, choose_device
from geochip.run_file import parse_run_config
from geochip.store import ChipStore
from geochip.train_ddp import find_checkpoint, main, write_checkpoint
from geochip.train_steps import learning_rate, summed_loss, training_mode
from helpers import run
from training import GLOBAL_BATCH, NETWORK, SCORES, SIZE, STEPS, cpus, flags, same, scalars, table, torchrun, weights


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- any number of ranks ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(chips, tmp_path_factory):
    """{number of ranks: (run_dir, finished process)}: the same global batch from 1, 2 and 3 ranks."""
    made = {}
    for ranks in (1, 2, 3):
        run_dir = tmp_path_factory.mktemp(f"ranks{ranks}")
        arguments = flags(chips, run_dir, batch_size=GLOBAL_BATCH // ranks)
        done = run("geochip.train_ddp", *arguments) if ranks == 1 else torchrun(ranks, *arguments)
        assert done.returncode == 0, done.stderr
        made[ranks] = (run_dir, done)
    return made


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_as_one(runs, chips, ranks):
    """The same losses step by step, although the ranks' shares of valid pixels differ."""
    labels = [
        ChipStore(chips).read("train", batch)[1]
        for rank in range(ranks)
        for batch in training_batches(
            ChipStore(chips).written("train"),
            seed=0, epoch=0, batch_size=GLOBAL_BATCH // ranks, rank=rank, world=ranks,
        )[:1]
    ]  # fmt: skip
    assert len({int((label != 255).sum()) for label in labels}) == ranks, "the test needs unequal shares"
    alone, together = (scalars(runs[number][0], "step/train_loss") for number in (1, ranks))
    assert [step for step, _ in together] == list(range(1, 2 * STEPS + 1))
    assert [step for step, _ in alone] == list(range(1, 2 * STEPS + 1))
    np.testing.assert_allclose([loss for _, loss in together], [loss for _, loss in alone], rtol=0, atol=1e-4)
    assert alone[-1][1] < alone[0][1]
    for name, weight in weights(runs[1][0]).items():
        torch.testing.assert_close(weights(runs[ranks][0])[name], weight, rtol=0, atol=2e-6)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_prime_number_of_chips_is_validated_alike(runs, ranks):
    for alone, together in zip(table(runs[1][0]), table(runs[ranks][0]), strict=True):
        assert [together[name] for name in SCORES] == [alone[name] for name in SCORES]
        assert float(together["val_loss"]) == pytest.approx(float(alone["val_loss"]), abs=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_first_line_names_the_global_batch(runs, ranks):
    lines = runs[ranks][1].stdout.splitlines()
    assert lines[0] == (
        f"global batch 6 = {ranks} rank{'s' * (ranks > 1)} x {6 // ranks} chips; 26 chips of train, 4 steps an epoch; "
        "on cpu"
    )
    assert len(lines) == 4, "every line once"
    assert lines[1].startswith("epoch 1 of 2  train loss 0.")
    assert "building precision 0." in lines[2]
    assert lines[3] == f"model: {runs[ranks][0] / 'model'}"


def test_the_table_has_its_columns(runs):
    rows = table(runs[1][0])
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == [
        "epoch", "train_loss", "val_loss", "lr", "seconds", "chips_per_second", "avg_precision", "avg_recall", "avg_f1",
        "background_precision", "background_recall", "background_f1", "background_iou",
        "building_precision", "building_recall", "building_f1", "building_iou",
    ]  # fmt: skip
    # The eighth of eight steps: from lr at step 4 down to lr/10 at step 8.
    assert float(rows[1]["lr"]) == pytest.approx(0.01 * (0.1 + 0.9 / 4))
    assert scalars(runs[1][0], "epoch/val_loss") == [
        (STEPS, pytest.approx(float(rows[0]["val_loss"]))),
        (2 * STEPS, pytest.approx(float(rows[1]["val_loss"]))),
    ]


def test_the_bundle_holds_the_contract_and_the_last_metrics(runs, chips):
    model, contract = load_bundle(runs[2][0] / "model")
    attributes = ChipStore(chips).attrs
    assert contract.mean == tuple(attributes["statistics"]["mean"])
    assert contract.chip_store_fingerprint == attributes["fingerprint"]
    assert (contract.nodata, contract.chip_size, contract.dtype) == (0.0, SIZE, "uint16")
    assert contract.metrics["epoch"] == 2
    assert repr(contract.metrics["building_iou"]) == table(runs[2][0])[1]["building_iou"]
    assert model.nodata == 0.0


def test_a_finished_training_says_so_and_mends_its_bundle(runs, chips):
    run_dir, _ = runs[1]
    before = {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()}
    shutil.rmtree(run_dir / "model")
    done = run("geochip.train_ddp", *flags(chips, run_dir))
    assert done.returncode == 0
    assert "the training had already finished: 2 of 2 epochs" in done.stdout
    assert {path.name: path.read_bytes() for path in (run_dir / "model").iterdir()} == before


def test_a_convolutional_network_trains_as_one_with_batchnorm_frozen(chips, tmp_path):
    losses = []
    for ranks in (1, 2):
        more = ["--train.freeze_batchnorm=true", "--train.lr=1e-4"]
        arguments = flags(chips, tmp_path / str(ranks), *more, architecture="unet", batch_size=4 // ranks, epochs=1)
        done = torchrun(ranks, *arguments)
        assert done.returncode == 0, done.stderr
        losses.append([loss for _, loss in scalars(tmp_path / str(ranks), "step/train_loss")])
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-4)
    assert losses[0][0] != losses[0][1]


def test_ranks_that_do_not_see_the_same_disk_are_told_so():
    with pytest.raises(
        InputError, match=r"the newest checkpoint's epoch differs between ranks \(1, 0\): run_dir must be on a disk"
    ):
        _require_one_value("the newest checkpoint's epoch", [1, 0])


def test_batchnorm_and_unused_parameters_on_two_ranks(chips, tmp_path):
    """pspnet does not use all of its encoder (DDP must not wait for that), and each rank's BatchNorm statistics are its
    own until validation: the figures logged must be those of the model that is saved."""
    done = torchrun(2, *flags(chips, tmp_path, architecture="pspnet", batch_size=3, epochs=1))
    assert done.returncode == 0, done.stderr
    torch.set_num_threads(1)
    model, contract = load_bundle(tmp_path / "model")
    store = ChipStore(chips)
    loss, valid, confusion = 0.0, 0, np.zeros((2, 2), np.int64)
    for batch in validation_batches(store.written("val"), batch_size=3, rank=0, world=1):
        image, label = (torch.from_numpy(part) for part in store.read("val", batch))
        with torch.no_grad():
            logits = model(image)
        loss += float(summed_loss(logits, label))
        valid += int((label != 255).sum())
        confusion += confusion_matrix(label, logits.argmax(dim=1), 2)
    assert contract.metrics["val_loss"] == pytest.approx(loss / valid, rel=1e-5)
    assert contract.metrics["building_recall"] == pytest.approx(confusion[1, 1] / confusion[1].sum(), abs=1e-3)


# --- going on after a stop --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(chips, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    with cpus(1):
        done = run("geochip.train_ddp", *flags(chips, run_dir, **NETWORK))
    assert done.returncode == 0, done.stderr
    return run_dir


def test_killed_and_started_again_ends_with_the_same_weights(chips, uninterrupted, tmp_path):
    command = [sys.executable, "-m", "geochip.train_ddp", *flags(chips, tmp_path, **NETWORK)]
    with cpus(1), subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "train").glob("epoch-*.pt")) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    saved = sorted((tmp_path / "train").glob("epoch-*.pt"))
    assert saved, "killed before its first checkpoint"
    # And the newest one is torn, as by a disk that lost its last blocks.
    torn = tmp_path / "train" / "epoch-0009-0123456789abcdef.pt"
    torn.write_bytes(saved[-1].read_bytes()[:5000])

    with cpus(1):
        again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{torn} is unusable" in again.stderr
    assert "going on after epoch" in again.stdout
    assert not torn.exists()
    assert same(weights(tmp_path), weights(uninterrupted))
    for resumed, whole in zip(table(tmp_path), table(uninterrupted), strict=True):
        for name in ("epoch", "train_loss", "val_loss", "lr", *SCORES):
            assert resumed[name] == whole[name]
    steps = [step for step, _ in scalars(tmp_path, "step/train_loss")]
    assert steps == list(range(1, NETWORK["epochs"] * STEPS + 1)), "no step twice"


def test_checkpoints_are_pruned(uninterrupted):
    assert sorted(path.name[:10] for path in (uninterrupted / "train").glob("epoch-*")) == ["epoch-0005", "epoch-0006"]


def test_weights_do_change(uninterrupted, chips, tmp_path):
    """The comparison above can fail: another seed gives other weights."""
    main(flags(chips, tmp_path, "--train.seed=1"))
    main(flags(chips, tmp_path / "other", "--train.seed=2"))
    assert not same(weights(tmp_path), weights(tmp_path / "other"))


def test_other_settings_are_refused(chips, tmp_path, capsys):
    main(flags(chips, tmp_path, epochs=1))
    before = sorted(tmp_path.rglob("*"))
    for flag, text in (
        ("--train.lr=0.5", "train.lr: 0.01 there, 0.5 now"),
        ("--train.epochs=7", "train.epochs: 1 there, 7 now"),
        ("--train.batch_size=5", "train.batch_size: 6 there, 5 now"),
        ("--model.architecture=unet", "model.architecture: linear there, unet now"),
        ("--train.val_split=null", "train.val_split: val there, None now"),
    ):
        with pytest.raises(InputError, match=text):
            main([*flags(chips, tmp_path, epochs=1), flag])
    fixed = {"fingerprint of the chip store": "another", "number of ranks": 2}
    with pytest.raises(InputError) as caught:
        find_checkpoint(parse_run_config([f"--run_dir={tmp_path}"], command="", description="")[0], fixed, Ranks())
    assert "number of ranks: 1 there, 2 now" in str(caught.value)
    assert "fingerprint of the chip store: " in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    # Where it computes, and what "linear" does not use, may change.
    main([*flags(chips, tmp_path, epochs=1), "--train.device=cpu", "--model.encoder=resnet50"])
    assert "had already finished" in capsys.readouterr().out


def test_a_constant_schedule_may_be_given_more_epochs(chips, tmp_path):
    constant = "--train.schedule=constant"
    main(flags(chips, tmp_path / "a", constant, epochs=1))
    main(flags(chips, tmp_path / "a", constant, epochs=2))
    main(flags(chips, tmp_path / "b", constant, epochs=2))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert [row["lr"] for row in table(tmp_path / "a")] == ["0.01", "0.01"]


# --- the parts --------------------------------------------------------------------------------------------------------


def test_one_cycle_is_a_triangle():
    settings = TrainConfig(lr=1.0)
    rates = [learning_rate(step, 10, settings) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0, 0.82, 0.64, 0.46, 0.28])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 1.0, step_size_up=5, cycle_momentum=False)
        for rate in rates:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
            theirs.step()
    assert [learning_rate(step, 10, TrainConfig(lr=0.5, schedule="constant")) for step in (0, 9)] == [0.5, 0.5]


def test_loss_leaves_ignored_pixels_out_and_is_zero_without_any():
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0], [5.0, -5.0]]).T.reshape(1, 2, 1, 3).requires_grad_()
    label = torch.tensor([0, 1, 255], dtype=torch.uint8).reshape(1, 1, 3)
    expected = np.log(1 + np.exp(-2)) + np.log(2)
    assert float(summed_loss(logits, label).detach()) == pytest.approx(expected)
    nothing = summed_loss(logits, torch.full_like(label, 255))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert logits.grad.abs().sum() == 0


def test_steps_without_any_valid_pixel_give_no_nan(chips, tmp_path):
    """All labels of the training chips are 255, whatever the table says of them."""
    from geochip.store import write_shard

    store = tmp_path / "chips.zarr"
    shutil.copytree(chips, store)
    image, label = ChipStore(store).read("train", np.arange(26))
    write_shard(store, "train", 0, image, np.full_like(label, 255))
    main(flags(store, tmp_path, "--train.schedule=constant", epochs=1))
    assert table(tmp_path)[0]["train_loss"] == "0.0"
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())


def test_without_validation(chips, tmp_path, capsys):
    main(flags(chips, tmp_path, "--train.val_split=null", epochs=1))
    assert list(table(tmp_path)[0]) == ["epoch", "train_loss", "val_loss", "lr", "seconds", "chips_per_second"]
    assert table(tmp_path)[0]["val_loss"] == ""
    assert "val loss" not in capsys.readouterr().out


def test_frozen_batchnorm_keeps_its_statistics(chips, tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    training_mode(model, TrainConfig(freeze_batchnorm=True))
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    training_mode(model, TrainConfig())
    assert model[1].training
    torch.set_num_threads(1)
    main(flags(chips, tmp_path, "--train.freeze_batchnorm=true", architecture="pspnet", batch_size=1, epochs=1))
    kept = {name: value for name, value in weights(tmp_path).items() if name.endswith("running_var")}
    assert len(kept) > 5
    assert all((value == 1).all() for value in kept.values())


def test_augmentation_can_be_switched_off(chips, tmp_path):
    # A unet sees which way a chip lies; a linear model would not.
    unet = {"architecture": "unet", "encoder": "tu-mobilenetv3_small_050", "epochs": 1}
    for name, augment in (("with", "true"), ("without", "false")):
        with cpus(1):
            main(flags(chips, tmp_path / name, f"--train.augment={augment}", "--train.val_split=null", **unet))
    assert table(tmp_path / "with")[0]["train_loss"] != table(tmp_path / "without")[0]["train_loss"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_mistake_under_torchrun_is_told_once_and_ends_all_ranks(chips, tmp_path):
    done = torchrun(2, *flags(chips, tmp_path / "run", batch_size=20))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("geochip: error:")]
    assert len(told) == 1
    assert "26 chips, fewer than one global batch of 40 (2 ranks x train.batch_size 20)" in told[0]
    assert "exitcode  : 2 " in done.stderr, done.stderr
    # torchrun reports of itself with a traceback; there must be none of ours.
    assert "train_ddp.py" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_chip_that_one_rank_cannot_read_ends_all(chips, tmp_path):
    store = tmp_path / "chips.zarr"
    shutil.copytree(chips, store)
    (shard,) = (store / "train" / "image").glob("c.0.*")
    data = bytearray(shard.read_bytes())
    data[40] ^= 255  # in the first chip: one rank has it
    shard.write_bytes(data)
    done = torchrun(2, *flags(store, tmp_path / "run", batch_size=3, epochs=50))
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("geochip: error:")]
    assert len(told) == 1
    assert "of split 'train'" in told[0]
    assert "the store is damaged" in told[0]
    assert "train_ddp.py" not in done.stderr


def test_a_mistake_without_torchrun_has_exit_code_2_and_no_traceback(tmp_path):
    done = run("geochip.train_ddp", f"--run_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"geochip: error: there is no chip store at {tmp_path / 'chips.zarr'}; make one with python -m geochip.chipping\n"
    )


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--model.architecture=deeplab"], r"model.architecture: 'deeplab' is not known \(did you mean deeplabv3"),
        (["--model.architecture=unet", "--model.encoder=resnet19"], r"model.encoder: 'resnet19' is not known"),
        (
            ["--model.architecture=unet", "--model.encoder_weights=imagent"],
            "there are no 'imagent' weights of encoder resnet18",
        ),
        (
            ["--model.architecture=deeplabv3plus", "--train.batch_size=1"],
            r"train.batch_size: 1 chip of 32 x 32 .* --train.batch_size 2 or more",
        ),
        (["--train.split=test", "--data.splits=[train,val,test]"], r"has no split 'test'; it has train, val"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(more, text, chips, tmp_path):
    with pytest.raises(InputError, match=text):
        main([*flags(chips, tmp_path / "run"), *more])
    assert not (tmp_path / "run").exists()


def test_places_that_cannot_be_written(chips, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"run_dir: .*/file cannot be written to: .*; choose another run_dir"):
        main(flags(chips, tmp_path / "file"))
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"holds 'thesis.txt'"):
        main(flags(chips, tmp_path / "run"))
    nothing = {
        "loss_sums": [],
        "valid": [],
        "seconds": 0.0,
        "settings": {},
        "history": [],
        "model": {},
        "optimizer": {},
    }
    checkpoint = train_ddp.Checkpoint(epoch=0, step=0, **nothing)
    with pytest.raises(WorkError, match=r"the checkpoint of epoch 0 in .* could not be written: .*; mend that and run"):
        write_checkpoint(tmp_path / "file" / "train", checkpoint, Ranks())


def test_a_training_that_diverges_is_stopped_before_it_is_saved(chips, tmp_path, monkeypatch):
    # Larger than a run file may say, so that it is beyond what float32 holds at once.
    monkeypatch.setattr(train_ddp, "learning_rate", lambda *_: 1e37)
    with pytest.raises(WorkError, match=r"loss of epoch 1 is (nan|inf): .*smaller --train.lr \(this one has 0\.01\)"):
        main(flags(chips, tmp_path))
    assert not list((tmp_path / "train").glob("epoch-*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there(chips, tmp_path):
    with pytest.raises(
        InputError, match=r"^train.device: 'cuda' is not possible: .*; or compute on the CPU: train.device"
    ):
        main([*flags(chips, tmp_path), "--train.device=cuda"])
    assert choose_device("auto", Ranks()) == torch.device("cpu")


def test_more_ranks_than_gpus(monkeypatch):
    # The one case that needs a GPU to be real: a machine that has one, and two ranks on it.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    two = Ranks(rank=1, world=2, local_rank=1, local_world=2)
    with pytest.raises(InputError, match=r"2 ranks were started on a machine with 1 GPU, .*--nproc-per-node=1"):
        choose_device("auto", two)
    assert choose_device("cpu", two) == torch.device("cpu")


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        ("MIG-2c9ab1f0-1111-5222-8333-444455556666,MIG-7d0f", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"),
        (None, "NVIDIA A100-SXM4-80GB MIG 1g.10gb"),
        ("MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7/0", "NVIDIA A100-SXM4-80GB"),
    ],
)
def test_one_rank_on_a_slice_of_a_gpu(visible, name, monkeypatch):
    """As above, a GPU that is cut into slices (MIG): PyTorch counts one, whatever the job has."""
    used = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert choose_device("auto", Ranks()) == torch.device("cuda", 0)
    assert used == [torch.device("cuda", 0)]
    with pytest.raises(InputError, match=r"2 ranks were started on a slice of a GPU \(MIG\): .*--nproc-per-node=1"):
        choose_device("auto", Ranks(rank=0, world=2, local_rank=0, local_world=2))
