import logging
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from distributed import LocalCluster

from helpers import IMAGE, LABEL, box, data_flags, write_label, write_scene

# No test fails for the time that it takes: machines are busy.
hypothesis.settings.register_profile("geochip", deadline=None)
hypothesis.settings.load_profile("geochip")

# Threads of PyTorch that wait for work sleep: where tests share the cores, spinning takes them from others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(config, items):
    """Among several processes, give every other file of the first ones a Slurm to wait for: the cores have time for both."""
    if not config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    files = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = sorted((path for path in files if path.parent.name == "slurm"), key=lambda path: -len(files[path]))
    others = [path for path in files if path not in waiting]
    order = [path for pair in zip(waiting, others, strict=False) for path in pair]
    order += [path for path in files if path not in order]
    items[:] = [item for path in order for item in files[path]]


@pytest.fixture(scope="session")
def dask_address():
    """A running cluster of two worker processes: tests that do not start their own save its start-up time."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def chips(tmp_path_factory):
    """The chip store of `training.make_chips`; treat it as read-only."""
    from training import make_chips

    return make_chips(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="session")
def real_data():
    """Real scenes, where a checkout has them beside it; they are not part of this repository."""
    path = Path(__file__).parents[2] / "shared" / "data"
    if not (path / "vegas" / "train").is_dir():
        pytest.skip(f"no real scenes in {path}: they are not distributed with geochip")
    return path


@pytest.fixture(scope="session")
def varied_run(tmp_path_factory, dask_address):
    """A run_dir with a finished store of three classes; treat it as read-only.

    train (2 shards): scenes a, b (without data in its left third), c (no data at all: its chips are dropped), d (cut
    short: its chips are unread), e; val: f and g in another CRS. 20 chips of each, 24 x 24 pixels.
    """
    from geochip.chipping import main

    directory = tmp_path_factory.mktemp("varied")
    for split, scene_id, crs in (
        *(("train", name, "EPSG:32611") for name in "abcde"),
        *(("val", name, "EPSG:32645") for name in "fg"),
    ):
        rows, cols = np.indices((60, 70), dtype=np.uint16)
        image = np.stack([1 + band * 20_000 + rows * 128 + cols for band in range(3)]).astype(np.uint16)
        image[:, :, : {"b": 23, "c": 70}.get(scene_id, 0)] = 0
        transform = write_scene(directory / "data", split, scene_id, image, crs=crs, nodata=0)
        write_label(
            directory / "data" / LABEL.format(split=split, id=scene_id),
            [box(transform, 10, 20, 15, 20), box(transform, 40, 0, 5, 70)], crs=crs,
            properties=[{"kind": "building"}, {"kind": "main road"}],
        )  # fmt: skip
    cut_short = directory / "data" / IMAGE.format(split="train", id="d")
    cut_short.write_bytes(cut_short.read_bytes()[:-9000])
    main([
        f"--run_dir={directory / 'run'}", *data_flags(directory / "data", "train", "val"), "--data.max_bad_scenes=1",
        "--data.classes=[background,building,main road]", "--labels.class_property=kind",
        "--chips.size=24", "--chips.per_scene=20", "--chips.min_valid=0.5",
        "--cluster.kind=address", f"--cluster.address={dask_address}",
    ])  # fmt: skip
    return directory / "run"
