from dataclasses import replace

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geochip.config import ChipsConfig, DataConfig
from geochip.plan import chips_depend_on, plan_chips
from geochip.scenes import Scene
from geochip.store import describe_difference, make_header

NORTH_UP = Affine(0.5, 0, 1000, 0, -0.5, 2000)


def scene(scene_id, split="train", height=400, width=500, **more):
    facts = {
        "image": f"{scene_id}.tif", "label": None, "count": 3, "dtype": "uint16", "crs": "EPSG:32611",
        "transform": NORTH_UP, "nodata": None, "bands": (1, 2, 3), "band_names": ("r", "g", "b"), "pixel_size": 0.5,
        "image_bytes": 10, "label_bytes": 20,
    }  # fmt: skip
    return Scene(scene_id=scene_id, split=split, height=height, width=width, **(facts | more))


def windows_of(plan, scene_id):
    return [
        window
        for split in plan.splits
        for index, window in zip(split.scene_index, split.windows, strict=True)
        if split.scenes[index].scene_id == scene_id
    ]


def test_adding_a_scene_changes_no_other_scenes_windows():
    few = plan_chips([scene("a"), scene("c")], ChipsConfig(size=64))
    more = plan_chips([scene("a"), scene("b"), scene("c"), scene("d", "val")], ChipsConfig(size=64))
    for name in "ac":
        assert windows_of(few, name) == windows_of(more, name)
        assert len(windows_of(few, name)) == 5


def test_windows_depend_on_seed_and_scene():
    a = windows_of(plan_chips([scene("a")], ChipsConfig(size=64)), "a")
    b = windows_of(plan_chips([scene("b")], ChipsConfig(size=64)), "b")
    other_seed = windows_of(plan_chips([scene("a")], ChipsConfig(size=64, seed=1)), "a")
    assert a != b
    assert a != other_seed


def test_windows_of_a_scene_are_fixed_for_ever():
    # A change here means that the same run file gives other chips than before: say so in the changelog.
    (first, second) = windows_of(plan_chips([scene("225")], ChipsConfig(size=300, per_scene=2)), "225")
    assert (first.row_off, first.col_off, second.row_off, second.col_off) == (67, 139, 6, 116)


@given(st.integers(1, 200), st.integers(1, 90), st.integers(1, 12))
def test_tasks_are_the_positions_cut_into_shards(per_scene, size, count):
    scenes = [scene(str(i), ("train", "val")[i % 3 == 2], height=100 + i, width=80) for i in range(count)]
    plan = plan_chips(scenes, ChipsConfig(size=size, per_scene=per_scene))
    for split in plan.splits:
        tasks = [task for task in plan.tasks() if task.split == split.split]
        assert [task.start for task in tasks] == list(range(0, len(split.windows), plan.shard))
        assert all(task.chips == plan.shard for task in tasks[:-1])
        cut = [(scene.scene_id, window) for task in tasks for scene, windows in task.cuts for window in windows]
        planned = [
            (split.scenes[index].scene_id, window)
            for index, window in zip(split.scene_index, split.windows, strict=True)
        ]
        assert cut == planned
    assert plan.chips == sum(task.chips for task in plan.tasks())
    assert len({task.key for task in plan.tasks()}) == len(list(plan.tasks()))


def test_a_shard_holds_whole_scenes_of_about_64_chips_and_bounded_memory():
    assert plan_chips([scene("a")], ChipsConfig(per_scene=5)).shard == 65
    assert plan_chips([scene("a")], ChipsConfig(per_scene=64)).shard == 64
    assert plan_chips([scene("a")], ChipsConfig(per_scene=1000, size=9)).shard == 64
    # 4096 x 4096 x (3 x 2 + 1) bytes are 112 MiB a chip.
    assert plan_chips([scene("a")], ChipsConfig(per_scene=5, size=4096)).shard == 2


@pytest.mark.parametrize("transform", [NORTH_UP, NORTH_UP @ Affine.rotation(30)])
def test_each_chip_has_the_grid_of_its_window(transform):
    (split,) = plan_chips([scene("a", transform=transform)], ChipsConfig(size=64)).splits
    for window, coefficients in zip(split.windows, split.transforms(), strict=True):
        assert Affine(*coefficients) @ (3, 2) == pytest.approx(transform @ (window.col_off + 3, window.row_off + 2))


def fingerprint(scenes, data, chips, train_split="train"):
    return make_header(*chips_depend_on(scenes, data, chips, train_split))


def test_the_fingerprint_says_what_differs():
    scenes = [scene(str(i)) for i in range(8)]
    data, chips = DataConfig(splits=("train",)), ChipsConfig()
    old = fingerprint(scenes, data, chips)
    assert fingerprint(scenes, replace(data, root="elsewhere", max_bad_scenes=3), replace(chips, store="x")) == old
    moved = [replace(item, image="there/x.tif") for item in scenes]
    assert fingerprint(moved, data, chips) == old
    new = fingerprint(
        [*[replace(scenes[0], height=11)], *scenes[2:], scene("9")],
        replace(data, bands=(1, 2)),
        replace(chips, size=64),
        "val",
    )
    assert new["fingerprint"] != old["fingerprint"]
    assert describe_difference(old, new) == (
        "data.bands was None, now [1, 2]; train.split was 'train', now 'val'; chips.size was 300, now 64; 1 scene not there "
        "before: train/9; 1 scene gone: train/1; 1 scene changed: train/0"
    )
    assert describe_difference(old, old) is None
    assert describe_difference(old, {**old, "fingerprint": "other"}) == "it was made by another version of geochip"
    gone = describe_difference(old, fingerprint(scenes[:1], data, chips))
    assert gone == "7 scenes gone: train/1, train/2, train/3, train/4, train/5, ..."


def test_another_content_is_a_difference_unless_it_could_not_be_read(tmp_path):
    label = tmp_path / "a.geojson"
    label.write_text("one")
    one = scene("a", label=str(label))
    data, chips = DataConfig(splits=("train",)), ChipsConfig()
    old = fingerprint([one], data, chips)
    # As long as before: only its content tells.
    label.write_text("two")
    relabelled = fingerprint([one], data, chips)
    regrown = fingerprint([replace(one, image_bytes=11, label=None)], data, chips)
    for new in (relabelled, regrown):
        assert new["fingerprint"] == old["fingerprint"]
        assert describe_difference(old, new) == "1 scene changed: train/a"
        assert describe_difference(old, new, unread=["train/a"]) is None


def test_small_scenes_give_one_hanging_chip():
    (split,) = plan_chips([scene("a", height=40, width=30)], ChipsConfig(size=64)).splits
    assert [(w.row_off, w.col_off, w.height, w.width) for w in split.windows] == [(0, 0, 64, 64)]
    assert np.array_equal(split.scene_index, [0])
