"""Inference whose workers are Slurm jobs that are taken away."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bundles import identity_bundle
from helpers import data_flags, run, tree_hash, write_scene
from slurm.runs import finish, take_down, wait_for_records

pytestmark = pytest.mark.usefixtures("slurm")


def test_workers_that_are_cancelled_preempted_and_on_a_node_that_goes_down_cost_nothing_but_time(
    tmp_path, slurm, start_process
):
    random = np.random.default_rng(0)
    for scene_id in "12":
        write_scene(tmp_path / "data", "test", scene_id, random.integers(50, 500, (1, 900, 700)).astype(np.uint16))
    identity_bundle(tmp_path / "model")
    flags = [
        *data_flags(tmp_path / "data", "test"), "--train.split=test", "--train.val_split=null", "--infer.split=test",
        f"--model.bundle={tmp_path / 'model'}", "--infer.block=32", "--infer.probability=true", "--infer.device=cpu",
    ]  # fmt: skip
    run_dir, quiet = tmp_path / "run", tmp_path / "quiet"
    process = start_process(
        [sys.executable, "-m", "geochip.infer", f"--run_dir={run_dir}", *flags, "--cluster.kind=slurm",
         "--cluster.workers=2", "--cluster.gpu.interface=lo", "--cluster.gpu.memory=2GiB",
         "--cluster.gpu.partition=preempt"]
    )  # fmt: skip
    store = run_dir / "predictions.zarr"
    wait_for_records(store, 50, process)
    slurm.run("scancel", slurm.jobs()[0])
    wait_for_records(store, 200, process)
    node = take_down(slurm, process)
    # By itself it may have come back by now.
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False)
    # For longer than Dask remembers a worker.
    slurm.submit("-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 17")
    with ThreadPoolExecutor() as pool:
        undisturbed = pool.submit(run, "geochip.infer", f"--run_dir={quiet}", *flags, "--cluster.workers=1")
        told = finish(process, run_dir, slurm)
    assert told.count(" was cancelled on ") == 1
    assert told.count(" instead\n") == 1
    assert " was requeued (preempted, or its node failed)" in told
    assert "Slurm: 0 of 2 workers are there; " in told

    assert undisturbed.result().returncode == 0, undisturbed.result().stderr
    assert tree_hash(store) == tree_hash(quiet / "predictions.zarr")
    assert tree_hash(run_dir / "predictions") == tree_hash(quiet / "predictions")
