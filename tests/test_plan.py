from dataclasses import replace

import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from geochip.config import ChipsConfig, DataConfig, LabelsConfig, RunConfig
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


CHIPS, DATA, LABELS = ChipsConfig(), DataConfig(), LabelsConfig()


def plan_of(scenes, chips=CHIPS, **more):
    named = {(one.split, one.scene_id): one for one in scenes}
    return plan_chips(list(named), named, chips, **more)


def names(plan):
    return [(split.split, one.scene_id, one.places) for split in plan.splits for one in split.scenes]


@given(st.integers(1, 200), st.integers(1, 90), st.integers(1, 12))
def test_tasks_are_the_positions_cut_into_shards(per_scene, size, count):
    scenes = [scene(str(i), ("train", "val")[i % 3 == 2], height=100 + i, width=80) for i in range(count)]
    plan = plan_of(scenes, ChipsConfig(size=size, per_scene=per_scene))
    for split in plan.splits:
        tasks = [task for task in plan.tasks() if task.split == split.split]
        assert [task.start for task in tasks] == list(range(0, split.chips, plan.shard))
        assert all(task.chips == plan.shard for task in tasks[:-1])
        cut = [
            (one.scene.scene_id, place) for task in tasks for one in task.cuts for place in range(one.first, one.stop)
        ]
        assert cut == [(one.scene_id, place) for one in split.scenes for place in range(one.places)]
        assert [split.scenes[index].scene_id for index in split.scene_index()] == [name for name, _ in cut]
    assert plan.chips == sum(task.chips for task in plan.tasks())
    assert plan.shards == len({task.key for task in plan.tasks()}) == len(list(plan.tasks()))


def test_a_shard_holds_whole_scenes_of_about_64_chips_and_bounded_memory():
    assert plan_of([scene("a")], ChipsConfig(per_scene=5)).shard == 65
    assert plan_of([scene("a")], ChipsConfig(per_scene=64)).shard == 64
    assert plan_of([scene("a")], ChipsConfig(per_scene=1000, size=9)).shard == 64
    # 4096 x 4096 x (3 x 2 + 1) bytes are 112 MiB a chip.
    assert plan_of([scene("a")], ChipsConfig(per_scene=5, size=4096)).shard == 2


def test_a_run_of_a_million_scenes_stays_under_50000_tasks():
    # Ten scenes that are said to have as many chips as a million.
    large = [scene(str(i), height=20_000, width=20_000) for i in range(10)]
    plan = plan_of(large, ChipsConfig(per_scene=500_000, size=16))
    assert plan.chips == 5_000_000
    assert plan.shards == 50_000
    assert plan.shards_per_task == 1
    # Chips of which a shard cannot hold more than two.
    plan = plan_of(large, ChipsConfig(per_scene=20_000, size=4096))
    assert (plan.shard, plan.shards, plan.shards_per_task) == (2, 100_000, 2)


def test_scenes_that_cannot_be_used_keep_their_places():
    scenes = {("train", name): scene(name) for name in "abde"}
    order = [("train", name) for name in "abcde"]
    plan = plan_chips(order, scenes, ChipsConfig(size=64), unusable=frozenset({("train", "b")}))
    assert names(plan) == [("train", name, 5) for name in "abcde"]
    (split,) = plan.splits
    assert [one.usable for one in split.scenes] == [True, False, False, True, True]
    assert [one.reserved for one in split.scenes] == [False, False, True, False, False]
    assert split.scenes[2].scene is None
    # What was reserved stays, whatever the mended file's header says.
    scenes["train", "c"] = scene("c", height=64, width=65)
    mended = plan_chips(order, scenes, ChipsConfig(size=64), reserved={("train", "c"): 5})
    assert names(mended) == names(plan)
    assert mended.splits[0].scenes[2].reserved
    assert plan_chips(order, scenes, ChipsConfig(size=64)).chips == 22


def test_splits_and_scenes_stand_in_the_given_order():
    plan = plan_of([scene("b", "val"), scene("a"), scene("c", "val")], ChipsConfig(size=64, per_scene=2))
    assert names(plan) == [("val", "b", 2), ("val", "c", 2), ("train", "a", 2)]


def fingerprint(scenes, chips=CHIPS, *, unusable=frozenset(), data=DATA, labels=LABELS, aois=None):
    plan = plan_of(scenes, chips, unusable=unusable, aois=aois)
    return make_header(*chips_depend_on(plan, RunConfig(data=data, chips=chips, labels=labels)))


def test_the_fingerprint_says_what_differs():
    scenes = [scene(str(i)) for i in range(8)]
    old = fingerprint(scenes)
    assert (
        fingerprint(scenes, ChipsConfig(store="x", allow_overlap=True), data=DataConfig(root="else", max_bad_scenes=3))
        == old
    )
    assert fingerprint([replace(item, image="there/x.tif") for item in scenes]) == old
    new = fingerprint(
        [*[replace(scenes[0], height=11)], *scenes[2:], scene("9")],
        ChipsConfig(size=64),
        data=DataConfig(bands=(1, 2)),
        labels=LabelsConfig(all_touched=True),
    )
    assert new["fingerprint"] != old["fingerprint"]
    assert describe_difference(old, new) == (
        "data.bands was None, now [1, 2]; labels.all_touched was False, now True; chips.size was 300, now 64; 1 scene not "
        "there before: train/9; 1 scene gone: train/1; 1 scene changed: train/0"
    )
    assert describe_difference(old, old) is None
    assert describe_difference({**old, "fingerprint": "other"}, old) == "it was made by another version of geochip"
    gone = describe_difference(old, fingerprint(scenes[:1]))
    assert gone == "7 scenes gone: train/1, train/2, train/3, train/4, train/5, ..."


def test_another_area_of_interest_makes_another_store():
    first, second = (
        fingerprint([scene("a")], aois={("train", "a"): shapely.box(0, 0, 350, end)}) for end in (350, 351)
    )
    assert describe_difference(first, second) == "1 scene changed: train/a"
    assert describe_difference(first, fingerprint([scene("a")])) == "1 scene changed: train/a"


def test_another_content_is_a_difference_unless_it_could_not_be_read(tmp_path):
    label = tmp_path / "a.geojson"
    label.write_text("one")
    one = scene("a", label=str(label))
    old = fingerprint([one])
    # As long as before: only its content tells.
    label.write_text("two")
    relabelled = fingerprint([one])
    regrown = fingerprint([replace(one, image_bytes=11, label=None)])
    for new in (relabelled, regrown):
        assert new["fingerprint"] == old["fingerprint"]
        assert describe_difference(old, new) == "1 scene changed: train/a"
        assert describe_difference(old, new, unread=["train/a"]) is None
    # A run that was killed before it could tell that the label is of no use holds nobody to it.
    unusable = fingerprint([one], unusable=frozenset({("train", "a")}))
    assert describe_difference(unusable, relabelled) is None


def test_a_header_that_could_not_be_read_may_turn_out_to_be_any():
    known = {("train", "a"): scene("a")}
    order = [("train", "a"), ("train", "b")]
    config = RunConfig()
    before = make_header(*chips_depend_on(plan_chips(order, known, config.chips), config))
    known["train", "b"] = scene("b", height=77)
    after = make_header(*chips_depend_on(plan_chips(order, known, config.chips), config))
    assert describe_difference(before, after) is None
    assert describe_difference(after, before) == "1 scene readable before and not now: train/b"
