"""Scenes are added to a prediction store: they are predicted alone, and what was there stays as it was."""

import numpy as np
import pytest
import xarray as xr

import geochip
from bundles import MEAN, STD, identity_bundle
from geochip.errors import run_command
from geochip.evaluate import main as evaluate
from geochip.infer import main
from geochip.store import PredictionStore, _mending
from helpers import data_flags, tree_hash, write_scene
from told import told

pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


def classes_of(shape, seed):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)


def deliver(root, scene_id, shape):
    write_scene(
        root / "data", "test", scene_id, (MEAN + STD * classes_of(shape, int(scene_id))[None]).astype(np.uint16)
    )


@pytest.fixture
def flags(tmp_path, dask_address):
    identity_bundle(tmp_path / "model", classes=2, class_names=("background", "building"))
    for scene_id, shape in (("2", (90, 70)), ("5", (40, 30))):
        deliver(tmp_path, scene_id, shape)
    return [
        f"--run_dir={tmp_path / 'run'}", f"--model.bundle={tmp_path / 'model'}", *data_flags(tmp_path / "data", "test"),
        "--train.split=test", "--train.val_split=null", "--infer.split=test", "--infer.block=50",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ]  # fmt: skip


def blocks_of(store):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in store.glob("*/class/c.*")}


def check(store, scenes):
    for scene_id, shape in scenes.items():
        np.testing.assert_array_equal(geochip.open_scene(store, scene_id)["class"], classes_of(shape, int(scene_id)))
    opened = PredictionStore(store)
    assert set(opened.scenes) == set(scenes)
    assert all(scene.complete for scene in opened.scenes.values())
    with xr.open_datatree(store) as tree:
        assert sum(len(group.scene_id) for group in tree.children.values()) == len(scenes)


def test_new_scenes_are_predicted_alone(tmp_path, flags, capsys):
    store = tmp_path / "run" / "predictions.zarr"
    main(flags)
    old = blocks_of(store)
    # One of a shape that is there, whose id comes first; one of a new shape.
    deliver(tmp_path, "1", (90, 70))
    deliver(tmp_path, "7", (33, 44))
    capsys.readouterr()
    main(flags)
    out = capsys.readouterr().out
    assert "5 of 10 blocks are there already" in out
    assert "predicted 2 scenes" in out
    everything = {"1": (90, 70), "2": (90, 70), "5": (40, 30), "7": (33, 44)}
    check(store, everything)
    assert {file: now for file, now in blocks_of(store).items() if file in old} == old
    assert [scene.index for scene in PredictionStore(store).scenes.values() if scene.scene_id in "12"] == [1, 0][::-1]
    assert run_command(main, [*flags, "--verify"]) == 0
    assert run_command(evaluate, flags) == 0
    # A fresh store holds the same blocks, in another order.
    main([*flags, f"--infer.store={tmp_path / 'fresh.zarr'}"])
    fresh, grown = PredictionStore(tmp_path / "fresh.zarr"), PredictionStore(store)
    for scene_id in everything:
        one, other = fresh.scenes[scene_id], grown.scenes[scene_id]
        for file in (fresh.path / one.group / "class").glob(f"c.{one.index}.*"):
            same = file.name.replace(f"c.{one.index}.", f"c.{other.index}.", 1)
            assert (grown.path / other.group / "class" / same).read_bytes() == file.read_bytes()
    assert fresh.attrs["fingerprint"] == grown.attrs["fingerprint"]
    before = tree_hash(tmp_path / "run")
    main(flags)
    assert tree_hash(tmp_path / "run") == before


def test_scenes_that_are_gone_stay_and_changed_ones_are_refused(tmp_path, flags, capsys):
    store = tmp_path / "run" / "predictions.zarr"
    main(flags)
    (tmp_path / "data" / "test" / "scene_5.tif").unlink()
    deliver(tmp_path, "9", (40, 30))
    capsys.readouterr()
    main(flags)
    out = capsys.readouterr().out
    told("scenes stay", out)
    assert "predicted 1 scene, " in out
    check(store, {"2": (90, 70), "5": (40, 30), "9": (40, 30)})
    (store / "40x30" / "class" / "c.0.0.0").unlink()
    main(flags)
    told("others lost", capsys.readouterr().out)
    assert not PredictionStore(store).scenes["5"].complete
    before = tree_hash(tmp_path / "run")
    deliver(tmp_path, "2", (91, 70))
    assert run_command(main, flags) == 2
    assert "made from something else: 1 scene changed: 2" in capsys.readouterr().err
    assert tree_hash(tmp_path / "run") == before


class KilledError(Exception):
    pass


@pytest.mark.parametrize("after", range(0, 30, 3))
def test_killed_at_any_time_the_same_command_ends_it(tmp_path, flags, monkeypatch, capsys, after):
    store = tmp_path / "run" / "predictions.zarr"
    main(flags)
    old = blocks_of(store)
    deliver(tmp_path, "1", (90, 70))
    deliver(tmp_path, "7", (33, 44))
    left = iter(range(after))
    write = _mending.write_durably

    def killed(path, data):
        if next(left, None) is None:
            raise KilledError
        write(path, data)

    monkeypatch.setattr(_mending, "write_durably", killed)
    try:
        main(flags)
    except KilledError:
        # Whatever is there, nothing is scored as if it were whole.
        code = run_command(evaluate, flags)
        assert code == (0 if after == 0 else 2), capsys.readouterr().err
        assert after == 0 or "geochip.infer again" in capsys.readouterr().err
    monkeypatch.undo()
    main(flags)
    check(store, {"1": (90, 70), "2": (90, 70), "5": (40, 30), "7": (33, 44)})
    assert {file: now for file, now in blocks_of(store).items() if file in old} == old
    assert run_command(main, [*flags, "--verify"]) == 0
