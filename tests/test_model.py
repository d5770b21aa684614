import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from geochip.errors import DamagedError, InputError
from geochip.model import (
    Contract,
    build_model,
    bundle_sha256,
    check_bundle_dir,
    fetch_encoder_weights,
    load_bundle,
    rehearse,
    save_bundle,
)
from told import told

LINEAR = Contract(
    architecture="linear",
    encoder="resnet50",
    class_names=("background", "building"),
    band_names=("red", "green", "blue"),
    bands=(3, 2, 1),
    dtype="uint16",
    nodata=0.0,
    mean=(100.0, 200.0, 300.0),
    std=(10.0, 20.0, 0.0),
    chip_size=300,
    pixel_size_range=(0.3, 0.31),
    chip_store_fingerprint="abc",
    geochip_version="0.1.0",
    metrics={"epoch": 3, "val_loss": 0.125, "building_iou": None},
)
UNET = replace(LINEAR, architecture="unet", encoder="resnet18")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def unet():
    return build_model(UNET).eval()


@pytest.mark.parametrize(("height", "width"), [(300, 300), (37, 37), (64, 33), (1, 5)])
def test_any_size_goes_through_and_comes_back(unet, height, width):
    image = torch.randint(1, 2000, (1, 3, height, width), dtype=torch.int32)
    with torch.no_grad():
        logits = unet(image)
    assert logits.shape == (1, 2, height, width)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_padding_is_below_and_to_the_right(unet):
    """What a 37-pixel image becomes is what it becomes as the upper left corner of a padded one."""
    image = torch.randint(1, 2000, (1, 3, 37, 37), dtype=torch.int32)
    whole = torch.zeros((1, 3, 64, 64), dtype=torch.int32)  # nodata
    whole[..., :37, :37] = image
    with torch.no_grad():
        torch.testing.assert_close(unet(image), unet(whole)[..., :37, :37], rtol=0, atol=0)


def test_multiple_of_the_encoder_needs_no_padding(unet):
    image = torch.randint(1, 2000, (1, 3, 64, 96), dtype=torch.int32)
    with torch.no_grad():
        torch.testing.assert_close(unet(image), unet.network(unet.normalise(image)), rtol=0, atol=0)


def test_normalisation_is_that_of_the_contract():
    model = build_model(LINEAR)
    pixels = np.array([[[110, 100]], [[200, 180]], [[300, 307]]], np.uint16)
    normalised = model.normalise(torch.from_numpy(pixels)[None])
    # The last band has no spread: it is shifted and not scaled.
    assert normalised.tolist() == [[[[1.0, 0.0]], [[0.0, -1.0]], [[0.0, 7.0]]]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
def test_every_type_of_pixel_gives_the_same(dtype):
    model = build_model(LINEAR)
    values = np.arange(1, 3 * 4 * 5 + 1).reshape(1, 3, 4, 5)
    expected = model(torch.from_numpy(values.astype(np.int64)))
    assert torch.equal(model(torch.from_numpy(values.astype(dtype))), expected)


def test_large_uint16_values_do_not_turn_negative():
    pixels = torch.from_numpy(np.full((1, 3, 1, 1), 65535, np.uint16))
    assert build_model(LINEAR).normalise(pixels).flatten().tolist() == pytest.approx([6543.5, 3266.75, 65235.0])


def test_nodata_is_where_all_bands_hold_it():
    model = build_model(LINEAR)
    pixels = torch.tensor([[0, 0, 110], [0, 220, 0], [0, 301, 301]], dtype=torch.int32).reshape(1, 3, 1, 3)
    # One band of 0 is a dark pixel, not a missing one.
    assert model.normalise(pixels)[0, :, 0].tolist() == [[0.0, -10.0, 1.0], [0.0, 1.0, -10.0], [0.0, 1.0, 1.0]]


def test_without_a_nodata_value_zero_is_a_value():
    model = build_model(replace(LINEAR, nodata=None))
    assert model.normalise(torch.zeros(1, 3, 1, 1)).flatten().tolist() == [-10.0, -10.0, -300.0]


@pytest.mark.parametrize("nodata", [None, -9999.0, float("nan")])
def test_a_pixel_that_is_not_finite_in_any_band_is_nodata(nodata):
    model = build_model(replace(LINEAR, nodata=nodata))
    pixels = torch.tensor([[float("nan"), 110, 110], [220, float("inf"), 220], [301, 301, 301]]).reshape(1, 3, 1, 3)
    assert model.normalise(pixels)[0, :, 0].tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


def test_nodata_keeps_gradients_finite():
    model = build_model(replace(LINEAR, nodata=float("nan")))
    model(torch.full((1, 3, 2, 2), float("nan"))).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "encoder", "text"),
    [
        (
            "deeplab",
            "resnet18",
            r"architecture: 'deeplab' is not known \(did you mean deeplabv3.*known are linear, unet",
        ),
        ("transformer9", "resnet18", r"'transformer9' is not known.*; known are linear, unet.*deeplabv3plus"),
        ("unet", "resnet19", r"encoder: 'resnet19' is not known \(did you mean resnet18.*get_encoder_names"),
        ("unet", "tu-resnt18", r"timm knows no model 'resnt18' \(did you mean tu-resnet18.*list_models"),
        ("deeplabv3plus", "vgg11", r"'deeplabv3plus' cannot be built with model.encoder 'vgg11': .*; choose another"),
    ],
)
def test_unknown_networks_are_named_with_what_is_known(architecture, encoder, text):
    with pytest.raises(InputError, match=text):
        build_model(replace(LINEAR, architecture=architecture, encoder=encoder))


def test_same_seed_same_weights():
    first, second = (build_with_seed(3) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["network.weight"], build_with_seed(4)["network.weight"])


def build_with_seed(seed):
    torch.manual_seed(seed)
    return build_model(LINEAR).state_dict()


# --- pretrained weights -----------------------------------------------------------------------------------------------


def put_into_cache(cache: Path) -> dict[str, torch.Tensor]:
    """Pretend that resnet18's weights were fetched: the layout of huggingface_hub's cache."""
    import segmentation_models_pytorch as smp

    settings = smp.encoders.encoders["resnet18"]["pretrained_settings"]["imagenet"]
    snapshot = cache / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    snapshot.mkdir(parents=True)
    weights = smp.encoders.get_encoder("resnet18", weights=None).state_dict()
    weights["conv1.weight"].fill_(0.25)
    safetensors.torch.save_file(weights, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text("{}")
    return weights


def test_cached_weights_are_loaded_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    expected = put_into_cache(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    torch.manual_seed(0)
    fetch_encoder_weights("resnet18", "imagenet")
    assert torch.initial_seed() == 0
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3)), "fetching must leave the random numbers alone"
    loaded = build_model(UNET, encoder_weights="imagenet").network.encoder.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    assert not constants.HF_HUB_OFFLINE, "offline mode must end with the loading"


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_weights_that_cannot_be_had_end_at_once_with_a_remedy(encoder, tmp_path):
    code = (
        "from geochip.errors import InputError\nfrom geochip.model import fetch_encoder_weights\n"
        f"try:\n    fetch_encoder_weights({encoder!r}, 'imagenet')\nexcept InputError as error:\n    print(error)"
    )
    # Nobody listens on port 9: the real client, and a real refusal.
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert f"the imagenet weights of {encoder} are not in this machine's cache" in done.stdout
    assert "no answer from http://127.0.0.1:9" in done.stdout
    assert f"m.fetch_encoder_weights('{encoder}', 'imagenet')" in done.stdout
    assert "--model.encoder_weights null" in done.stdout
    assert "etrying" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_offline_mode_is_named_as_the_reason(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        fetch_encoder_weights("resnet18", "imagenet")


@pytest.mark.parametrize(
    ("encoder", "weights", "text"),
    [
        ("resnet18", "imagent", "no 'imagent' weights of encoder resnet18; there are imagenet, ssl, swsl, or null"),
        ("tu-darknet17", "imagenet", "no 'imagenet' weights of encoder tu-darknet17; there are none at all, or null"),
        ("resnet19", "imagenet", "'resnet19' is not known"),
    ],
)
def test_weights_that_nobody_publishes(encoder, weights, text):
    with pytest.raises(InputError, match=text):
        fetch_encoder_weights(encoder, weights)


# --- rehearsal --------------------------------------------------------------------------------------------------------


def test_one_chip_a_batch_is_refused_for_deeplab():
    model = build_model(replace(UNET, architecture="deeplabv3plus"))
    with pytest.raises(InputError, match=r"train.batch_size: 1 chip of 64 x 64 .*--train.batch_size 2 or more"):
        rehearse(model, batch_size=1, chip_size=64)
    rehearse(model, batch_size=2, chip_size=64)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    rehearse(model, batch_size=1, chip_size=64)


def test_chips_that_the_network_cannot_take_are_refused():
    with pytest.raises(InputError, match=r"cannot take chips of 64 x 64 pixels: .*; choose another"):
        rehearse(build_model(replace(UNET, architecture="pan")), batch_size=2, chip_size=64)


def test_rehearsal_leaves_the_model_as_it_is(unet):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    rehearse(unet.train(), batch_size=2, chip_size=37)
    unet.eval()
    assert all(torch.equal(before[name], value) for name, value in unet.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in unet.parameters())


def test_parameters_without_use_are_no_longer_trained():
    """DDP would wait for their gradients: pspnet uses three of an encoder's five stages."""
    model = build_model(replace(UNET, architecture="pspnet"))
    rehearse(model, batch_size=2, chip_size=64)
    unused = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert unused == {name for name, weight in model.named_parameters() if weight.grad is None}
    assert "network.encoder.layer4.1.conv2.weight" in unused


# --- bundle -----------------------------------------------------------------------------------------------------------


def test_bundle_round_trip_is_exact(unet, tmp_path):
    directory = tmp_path / "run" / "model"
    save_bundle(directory, unet, UNET)
    assert sorted(path.name for path in directory.iterdir()) == ["model.json", "model.safetensors"]
    loaded, contract = load_bundle(directory)
    assert contract == UNET
    assert not loaded.training
    assert loaded.state_dict().keys() == unet.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in unet.state_dict().items())
    image = torch.randint(0, 2000, (2, 3, 40, 40), dtype=torch.int32)
    with torch.no_grad():
        assert torch.equal(loaded(image), unet(image))


@pytest.mark.parametrize("nodata", [None, 0.0, -3.4028234663852886e38, float("nan"), float("-inf")])
def test_every_nodata_value_survives(nodata, tmp_path):
    contract = replace(LINEAR, nodata=nodata)
    save_bundle(tmp_path / "model", build_model(contract), contract)
    json.loads((tmp_path / "model" / "model.json").read_text(), parse_constant=pytest.fail)
    assert repr(load_bundle(tmp_path / "model")[1].nodata) == repr(nodata)


def test_saving_again_replaces_the_bundle_and_nothing_is_left_beside_it(tmp_path):
    for mean in (100.0, 50.0):
        contract = replace(LINEAR, mean=(mean, mean, mean))
        save_bundle(tmp_path / "model", build_model(contract), contract)
    assert load_bundle(tmp_path / "model")[1].mean == (50.0, 50.0, 50.0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sha256_follows_what_changes_predictions(tmp_path):
    model = build_model(LINEAR)

    def sha(contract, name):
        save_bundle(tmp_path / name, model, contract)
        return bundle_sha256(tmp_path / name)

    first = sha(LINEAR, "a")
    assert len(first) == 64
    assert sha(replace(LINEAR, metrics={}, geochip_version="9", chip_store_fingerprint="x"), "b") == first
    assert sha(replace(LINEAR, mean=(1.0, 2.0, 3.0)), "c") != first
    assert sha(replace(LINEAR, nodata=None), "d") != first
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert sha(LINEAR, "e") != first


def break_json(directory, **changes):
    path = directory / "model.json"
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in document.items() if value != "gone"}))


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def flip_a_byte(directory):
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "text"),
    [
        (lambda d: (d / "model.json").unlink(), "there is no trained model at .*; train one with"),
        (lambda d: (d / "model.json").write_text('{"a": '), "model.json is damaged .it is not JSON: .*; copy it again"),
        (lambda d: (d / "model.json").write_text("[]"), "model.json is damaged .Expected `object`, got `array`"),
        (lambda d: (d / "model.json").write_text("{}"), "model.json is damaged .Object missing required field"),
        (lambda d: break_json(d, format_version=None, nodata="wide"), "Expected `float . null`, got `str`"),
        (lambda d: break_json(d, format_version=99), "format version 99, this geochip reads 1; train it anew"),
        (lambda d: break_json(d, chip_size="gone"), "missing required field `chip_size`"),
        (lambda d: break_json(d, mean=[1.0]), "model.json is damaged .*must be as many"),
        (lambda d: break_json(d, std=["wide", 1, 1]), r"Expected `float`, got `str` - at `\$.std.0.`"),
        (lambda d: break_json(d, std=[math.nan, 1, 1]), "std .* must be finite"),
        (lambda d: break_json(d, mean=[1, None, 1]), r"Expected `float`, got `null` - at `\$.mean.1.`"),
        (lambda d: break_json(d, mean=[1, 10**400, 1]), "model.json is damaged"),
        (lambda d: break_json(d, std=[1, -1, 1]), "std .* at least 0"),
        (lambda d: break_json(d, chip_size=0), "chip_size 0 must be at least 1"),
        (lambda d: break_json(d, chip_size=30.5), "Expected `int`, got `float`"),
        (lambda d: break_json(d, bands=[0, 1, 2]), "must be of different bands"),
        (lambda d: break_json(d, band_names=["a", "a", "b"]), "must be of different bands"),
        (lambda d: break_json(d, class_names=["only"]), "class_names .* must be 2 to 255"),
        (lambda d: break_json(d, class_names=["a", "a"]), "class_names .* none twice"),
        (lambda d: break_json(d, pixel_size_range=[3, 1]), "pixel_size_range .*smallest, largest"),
        (lambda d: break_json(d, metrics=7), "Expected `object`, got `int`"),
        (lambda d: break_json(d, architecture="unett"), "names a network that cannot be built: .*unett"),
        (lambda d: as_pipe(d / "model.json"), "model.json could not be read .it is a named pipe"),
        (lambda d: as_pipe(d / "model.safetensors"), "model.safetensors cannot be read: it is a named pipe"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors cannot be read: No such file"),
        (flip_a_byte, "model.safetensors is not the file that model.json was written with"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 9), "is not the file that model.json"),
        (lambda d: break_json(d, architecture="unet", encoder="resnet18"), "does not fit unet: .*; copy it again"),
    ],
)
def test_broken_bundles_are_refused(harm, text, tmp_path):
    save_bundle(tmp_path / "model", build_model(LINEAR), LINEAR)
    harm(tmp_path / "model")
    with pytest.raises(InputError, match=text) as error:
        load_bundle(tmp_path / "model")
    if error.type is DamagedError:
        told("bundle-damaged", str(error.value))


def test_a_bundle_without_weights_has_no_sha256(tmp_path):
    save_bundle(tmp_path / "model", build_model(LINEAR), LINEAR)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model.safetensors cannot be read"):
        bundle_sha256(tmp_path / "model")


def test_a_bundle_never_removes_other_peoples_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match=r"holds 'thesis.txt', which is no part of a model and would be removed"):
        save_bundle(tmp_path, build_model(LINEAR), LINEAR)
    with pytest.raises(InputError, match=r"thesis.txt is a file; choose a directory"):
        check_bundle_dir(tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize("name", [".model.new", ".model.old"])
def test_what_a_killed_run_left_is_never_removed_or_written_through_a_link(name, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("all of it")
    (tmp_path / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match="is a symbolic link where geochip makes a directory of its own; remove it"):
        save_bundle(tmp_path / "model", build_model(LINEAR), LINEAR)
    assert [path.name for path in elsewhere.iterdir()] == ["thesis.txt"]
    (tmp_path / name).unlink()
    save_bundle(tmp_path / "model", build_model(LINEAR), LINEAR)
    assert [path.name for path in tmp_path.iterdir() if path != elsewhere] == ["model"]
